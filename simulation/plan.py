"""What is to be simulated, and whether that makes sense. Pure."""

from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct, structs

_V4 = IPv4Network("10.0.0.0/8")
_V6 = IPv6Network("fd5d:0::/32")
_PER_POOL = 1000
"""Pods of a pool, where nobody says how many pools there are: a LAN segment of usual size."""
_SPARE = 10
"""Percent of addresses more than NICs, where nobody says how big pools are."""
MOST_PODS = 1_000_000
MOST_NICS = 16


class PlanError(ValueError):
    """A value that makes no sense.

    Attributes:
        field: which one, by its name in `Plan`.
        problem: the value, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Plan(Struct, frozen=True, kw_only=True):
    """One simulation. Equal plans have equal outcomes."""

    nodes: int = 5000
    pods_per_node: int = 20
    pools: int = 0
    """In each family; 0: one for every thousand pods."""
    pool_size: int = 0
    """Addresses in each pool; 0: those that the pods need, and a tenth more."""
    controllers: int = 1
    seed: int = 1
    dual_stack: bool = False
    nics: int = 1
    """Of each pod; all of them get addresses of the same pools, by one request."""
    over: float = 30.0
    """Seconds in which all pods arrive, evenly spread."""
    churn: float = 0.0
    """The share of pods that are deleted again, each a while after it has its addresses."""
    api_latency: float = 0.003
    """Seconds that the API server takes for a request, on average."""
    network_latency: float = 0.0003
    """Seconds between two machines, one way, on average."""
    write_budget: float = 2_500_000.0
    """Bytes of pools a second, of all controllers together; 0: no limit."""
    kill_owner_at: float | None = None
    """When, in seconds, the controller dies that owns the most pools; None: nobody dies."""

    @property
    def pods(self) -> int:
        """How many there are in all."""
        return self.nodes * self.pods_per_node

    def completed(self) -> "Plan":
        """With what was left to us. Raises `PlanError`."""
        self._check()
        pools = self.pools or min(self.nodes, -(-self.pods // _PER_POOL))
        if pools > self.nodes:
            raise PlanError("pools", f"{pools}: expected at most one for each of the {self.nodes} nodes")
        busiest = -(-self.nodes // pools) * self.pods_per_node * self.nics
        plan = structs.replace(self, pools=pools, pool_size=self.pool_size or -(-busiest * (100 + _SPARE) // 100))
        if pools * plan.block > _V4.num_addresses:
            raise PlanError("pool_size", f"{plan.pool_size}: {pools} pools of that size do not fit into {_V4}")
        return plan

    @property
    def block(self) -> int:
        """Addresses of the IPv4 subnet of a pool: its own, the network's and the gateway, as a power of two."""
        return 1 << (self.pool_size + 3 - 1).bit_length()

    def subnet(self, version: int, at: int) -> IPv4Network | IPv6Network:
        """Of the pool of that number. None overlaps with another."""
        if version == 4:
            return IPv4Network((int(_V4[0]) + at * self.block, 33 - self.block.bit_length()))
        return IPv6Network((int(_V6[0]) + (at << 64), 64))

    def _check(self) -> None:
        for field in ("nodes", "pods_per_node", "controllers"):
            if getattr(self, field) < 1:
                raise PlanError(field, f"{getattr(self, field)}: expected a number, 1 or more")
        for field in ("pools", "pool_size", "over", "api_latency", "network_latency", "write_budget"):
            value = getattr(self, field)
            if not 0 <= value < float("inf"):
                raise PlanError(field, f"{value}: expected a number, 0 or more")
        if self.pods > MOST_PODS:
            raise PlanError("nodes", f"{self.nodes} with {self.pods_per_node} pods each: expected {MOST_PODS} at most")
        if not 1 <= self.nics <= MOST_NICS:
            raise PlanError("nics", f"{self.nics}: expected a number from 1 to {MOST_NICS}")
        if not 0 <= self.churn <= 1:
            raise PlanError("churn", f"{self.churn}: expected a share from 0 to 1")
        if self.kill_owner_at is not None and not 0 <= self.kill_owner_at < float("inf"):
            raise PlanError("kill_owner_at", f"{self.kill_owner_at}: expected a number of seconds, 0 or more")
        if self.kill_owner_at is not None and self.controllers < 2:
            raise PlanError(
                "kill_owner_at", f"{self.kill_owner_at}: there has to be another controller (--controllers)"
            )
