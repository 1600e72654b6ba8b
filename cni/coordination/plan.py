"""What is to be built around one NIC of a pod: enough to build it, to compare it, and to take it away again."""

from collections.abc import Collection, Iterable
from ipaddress import ip_address

from msgspec import Struct
from msgspec.structs import replace

POD_VETH = "veth0"
MARK = 1
"""Of packets that answer what came in by veth0; other marks of the pod's own programs are left alone."""
REPLY_TABLE = 100
"""In the pod: where marked packets go; with an overlay, packets from the address of its NIC."""
MAIN_TABLE = 254
RULE_PRIORITY = 1000
"""Of the node's rules and of the rule for marked packets."""
NIC_RULE_PRIORITY = RULE_PRIORITY + 1
"""Of the rules for packets from a NIC's address, beside a rule for marked packets: that one comes first, or a reply
would leave by the LAN though its request came by the node. Without marks the kernel may choose."""
RULE_PROTOCOL = 83
"""On the node's rules: by it they are known as ours when the agent leaves the node."""
BOOT = 3
"""Protocol of routes: what `ip route add` and Go's netlink use, shown by `ip route` as nothing."""
KERNEL = 2
"""Protocol of routes that come with an address, whenever its link comes up."""


class RoutePlan(Struct, frozen=True, kw_only=True):
    """One route."""

    destination: str
    """A network."""
    gateway: str = ""
    source: str = ""
    table: int = MAIN_TABLE
    device: str = ""
    """The link that it goes through. Empty: what it stands beside, the pod's end of the way to the node."""
    onlink: bool = False
    """Whether the gateway is taken to be on the link though no route says so."""
    metric: int = 0
    """0: the kernel's, none for IPv4 and 1024 for IPv6."""
    protocol: int = BOOT
    metrics: bytes = b""
    """MTU and the like, as the kernel spells them (RTA_METRICS)."""

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.destination else 4

    @property
    def is_default(self) -> bool:
        """Whether it takes everything that no other route does."""
        return self.destination in {"0.0.0.0/0", "::/0"}


class RulePlan(Struct, frozen=True, kw_only=True):
    """One routing rule of a pod."""

    version: int
    table: int
    source: str = ""
    """A network; empty: any."""
    mark: int = 0
    priority: int | None = None
    """None: the kernel's choice, before all rules that it finds but those of priority 0."""


class Pair(Struct, frozen=True):
    """What a DEL knows of a pod's pair."""

    host_veth: str
    container_id: str


class CoordinationPlan(Struct, frozen=True, kw_only=True):
    """The way between a pod and its node for one NIC, and the pod's routes that the NIC changes.

    It is kept in journals: a field that is added needs a default that is right for plans without it.
    """

    netns: str
    ifname: str
    """The pod's NIC."""
    container_id: str
    overlay: bool = False
    """Whether the way is the cluster's own network's pair, which somebody else made."""
    first: bool = True
    """Whether no NIC of the pod came before."""
    pod_end: str = POD_VETH
    host_veth: str
    """The node's end."""
    host_index: int = 0
    """Of the node's end, where it was there before; 0: the pair is made for this NIC, and removed with it."""
    pod_mac: str
    """Of the pod's end."""
    host_mac: str
    """Of the node's end."""
    mtu: int
    """Of the pair; 0 where it was there before."""
    link_address: str = ""
    """An IPv4 address that veth0 gets."""
    pod_addresses: tuple[str, ...] = ()
    """Of the NIC."""
    host_addresses: tuple[str, ...] = ()
    """The node's, without those of a family that the NIC does not have."""
    known_hosts: tuple[str, ...] = ()
    """Those of them that the pod's end knows already, from an earlier NIC."""
    table: int = 0
    """In the pod, of the NIC; 0: it needs none."""
    routes: tuple[RoutePlan, ...] = ()
    """In the pod, in an order in which every next hop is known when it is needed."""
    withdrawn: tuple[RoutePlan, ...] = ()
    """Routes that leave the pod's main table, default routes among them; they come back when this is undone."""
    rules: tuple[RulePlan, ...] = ()
    """In the pod, in the order of their making; without those for marked packets."""
    marked: tuple[int, ...] = ()
    """IP versions whose replies are marked from this NIC on."""
    common_routes: tuple[RoutePlan, ...] = ()
    """In the pod, that an earlier NIC brought for all: they go with the last one."""
    common_rules: tuple[RulePlan, ...] = ()
    """The same of rules, those for marked packets among them."""
    host_table: int
    rp_filter: int
    """Of the pod; negative leaves it alone."""
    tx_queue_len: int = 0
    """Of the NIC; 0 leaves it alone."""
    former_tx_queue_len: int = 0
    """What a NIC of somebody else's had; 0: it need not come back."""
    mac: str = ""
    """That the NIC gets; empty leaves it alone."""
    former_mac: str = ""
    """What a NIC of somebody else's had; empty: it need not come back."""
    notes: tuple[str, ...] = ()
    """What could not be arranged, and why."""

    @property
    def makes_pair(self) -> bool:
        """Whether the pair is this NIC's."""
        return not self.host_index

    @property
    def sets_end(self) -> bool:
        """Whether the settings of the pod's end are this NIC's business."""
        return self.makes_pair or self.overlay

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions of the NIC's addresses."""
        return tuple(sorted({ip_address(one).version for one in self.pod_addresses}))

    @property
    def new_hosts(self) -> tuple[str, ...]:
        """The node's addresses that the pod's end gets neighbours for."""
        return tuple(one for one in self.host_addresses if one not in self.known_hosts)

    @property
    def common_marked(self) -> tuple[int, ...]:
        """IP versions whose replies are marked since an earlier NIC that is not the pair's."""
        return tuple(one.version for one in self.common_rules if one.mark)

    def common_hosts(self, version: int) -> tuple[str, ...]:
        """The node's addresses of an IP version that an earlier NIC brought neighbours for, for all."""
        if all(one.version != version for one in self.common_routes):
            return ()
        return tuple(one for one in self.known_hosts if ip_address(one).version == version)

    @property
    def shared_routes(self) -> tuple[RoutePlan, ...]:
        """Of the main table, that this NIC or an earlier one brought for all."""
        both = (*self.routes, *self.common_routes)
        return tuple(one for one in both if one.device == self.pod_end and one.table == MAIN_TABLE)

    @property
    def host_routes(self) -> tuple[RoutePlan, ...]:
        """Of the node's end."""
        return tuple(RoutePlan(destination=single(one), table=self.host_table) for one in self.pod_addresses)

    @property
    def mark_rules(self) -> tuple[RulePlan, ...]:
        """For marked packets."""
        return tuple(
            RulePlan(version=version, table=REPLY_TABLE, mark=MARK, priority=RULE_PRIORITY) for version in self.marked
        )


def host_veth(container_id: str) -> str:
    """The name of the node's end: a repeated ADD, and a DEL that has lost all memory, find it."""
    return f"veth{container_id[:11]}"


def single(address: str) -> str:
    """The network that is one address."""
    return f"{address}/{128 if ':' in address else 32}"


def unchanged(plan: CoordinationPlan, plans: Collection[CoordinationPlan]) -> CoordinationPlan:
    """A plan without what plans of the same pod may have changed since.

    The routes that they took out of the main table, and rp_filter, which the pod's interfaces have in common.
    """
    gone = {(route.device, route.destination, route.gateway) for one in plans for route in one.withdrawn}
    filters = {one.rp_filter for one in plans if one.rp_filter >= 0}
    left = tuple(
        one
        for one in plan.routes
        if one.table != MAIN_TABLE or (one.device or plan.pod_end, one.destination, one.gateway) not in gone
    )
    return replace(plan, routes=left, rp_filter=-1 if filters - {plan.rp_filter} else plan.rp_filter)


def gone_from_main(plans: Iterable[CoordinationPlan], ifname: str) -> frozenset[tuple[str, str]]:
    """(destination, next hop) of the routes of a NIC that the plans of its pod took out of the main table."""
    return frozenset(
        (route.destination, route.gateway) for plan in plans for route in plan.withdrawn if route.device == ifname
    )
