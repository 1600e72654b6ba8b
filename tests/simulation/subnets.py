"""The owners of subnets, with those of pools beside them: what they are asked is asked of them directly.

Every replica has its own connection to one store in memory, its own snapshots and its own actors. All of them believe
that every subnet and every pool is theirs. The store tells after each of its changes whether pools and subnets agree.
"""

import json
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from actors.pools.claims import Claim, Granted, Surrender
from actors.pools.governor import Governor
from actors.pools.ippools import IPPools
from actors.pools.terms import Terms, Witnesses
from actors.subnets.messages import AutoPool, Discard, Discarded, NotProvided, Provide, Provided
from actors.subnets.subnets import Subnets
from api.annotations import (
    IPPOOL_IP_NUMBER,
    OWNER_APPLICATION_GV,
    OWNER_APPLICATION_KIND,
    OWNER_APPLICATION_NAME,
    OWNER_APPLICATION_NAMESPACE,
)
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL, SUBNET
from api.meta import ObjectMeta
from api.subnet import SpiderSubnet, SubnetSpec
from ipam.ranges import Ranges, parse_ranges
from ipam.subnetbook import free, ground, is_automatic, read_entries
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore, Policy
from tests.simulation.node import Violation

SECONDS = 30.0
CIDR = "10.6.0.0/16"


class Unfenced:
    """A store whose writes demand nothing, for the negative control."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def patch(self, kind: Any, name: str, change: Mapping[str, Any], **options: Any) -> Any:
        if kind is IPPOOL:
            options.pop("resource_version", "")
        return await self._store.patch(kind, name, change, **options)


class Replica:
    """One of them."""

    def __init__(self, name: str, world: "Subnetting") -> None:
        self.name = name
        self.world = world
        self.system = System(clock=VirtualClock(), random=world.random)
        below: Any = Unfenced(world.store) if not world.fenced else world.store
        self.store = FaultyStore(Points(below, world, name), policy=world.chances, random=world.random)
        self.pools_seen: Reflector[SpiderIPPool] = Reflector(self.store, IPPOOL, random=world.random)
        self.subnets_seen: Reflector[SpiderSubnet] = Reflector(self.store, SUBNET, random=world.random)
        self.supervisor = Supervisor(name, self.system)
        self.supervisor.add_service("seenpools", self.pools_seen.run)
        self.supervisor.add_service("seensubnets", self.subnets_seen.run)
        self.pools = IPPools(
            f"{name}/ippools",
            self.system,
            self.store,
            terms=Terms(reserved=world.reserved, max_records=5000),
            governor=Governor(self.system.clock, rate=0.0, replicas=lambda: 1),
            snapshot=self.pools_seen.snapshot,
            witnesses=Witnesses(waits=lambda pool, text: world.told.append((pool, text))),
        )
        self.subnets = Subnets(
            f"{name}/subnets",
            self.system,
            self.store,
            subnets=self.subnets_seen.snapshot,
            pools=self.pools_seen.snapshot,
            reserved=world.reserved,
            waits=lambda subnet, text: world.told.append((subnet, text)),
        )
        self.supervisor.add_supervisor(self.pools.supervisor)
        self.pools.supervise(self.supervisor, lambda _name: True)
        self.subnets.supervise(self.supervisor, mine=lambda _name: True, ready=self._synced)
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self.supervisor.run()

    async def _synced(self) -> None:
        await self.pools_seen.synced()
        await self.subnets_seen.synced()

    async def provide(self, name: str, size: int, subnet: str = "lan", **labels: str) -> Provided | NotProvided:
        return await self.subnets(subnet).ask(Provide(subnet, wanted(name, size, **labels)), timeout=SECONDS)

    async def discard(self, name: str, subnet: str = "lan") -> Discarded | NotProvided:
        return await self.subnets(subnet).ask(Discard(subnet, name), timeout=SECONDS)

    async def claim(self, pool: str, uid: str, *, parent_mac: str = "") -> str:
        """An address, or nothing."""
        claim = Claim(pod=f"ns/{uid}", uid=uid, nic="eth0", node="n1", cid="c1", parent_mac=parent_mac, by=1)
        answer = await self.pools(pool).ask(claim, timeout=SECONDS)
        return answer.address.partition("/")[0] if isinstance(answer, Granted) else ""

    async def surrender(self, pool: str, uid: str) -> None:
        await self.pools(pool).ask(Surrender(uid=uid, nic="eth0", cid="c1"), timeout=SECONDS)


class Points:
    """A store that counts what changes it, and kills its replica at the point that the world says.

    A crash is before a write, or after it and before its answer.
    """

    def __init__(self, store: Any, world: "Subnetting", name: str) -> None:
        self._store = store
        self._world = world
        self._name = name

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name not in {"create", "patch", "replace_status", "delete"}:
            return call

        async def counted(*args: Any, **options: Any) -> Any:
            await self._world.point(self._name)
            try:
                return await call(*args, **options)
            finally:
                self._world.check()
                await self._world.point(self._name)

        return counted


def wanted(name: str, size: int, **labels: str) -> AutoPool:
    app = {
        OWNER_APPLICATION_GV: "apps_v1",
        OWNER_APPLICATION_KIND: "Deployment",
        OWNER_APPLICATION_NAMESPACE: "ns",
        OWNER_APPLICATION_NAME: name,
    }
    return AutoPool(name, size, {**app, **labels}, {IPPOOL_IP_NUMBER: str(size)}, {"ipam.spidernet.io/app-name": name})


class Subnetting:
    """The replicas and their store."""

    def __init__(
        self,
        *,
        seed: int = 1,
        chances: Policy | None = None,
        fenced: bool = True,
        crash_at: int = 0,
        reserved: tuple[str, ...] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.chances: Policy = chances or Chances()
        self.fenced = fenced
        self.told: list[tuple[str, str]] = []
        self.reserved_ips = list(reserved)
        self.replicas: dict[str, Replica] = {}
        self.points = 0
        self.crash_at = crash_at
        self.violations: list[str] = []
        self.group: anyio.abc.TaskGroup

    def reserved(self, version: int) -> Ranges:
        return parse_ranges(self.reserved_ips, 4) if version == 4 else Ranges(version)

    async def replica(self, name: str) -> Replica:
        made = self.replicas[name] = Replica(name, self)
        self.group.start_soon(made.run)
        return made

    async def point(self, name: str) -> None:
        """Somebody may die here."""
        self.points += 1
        if self.points == self.crash_at:
            self.replicas[name].scope.cancel()
            self.group.start_soon(self._revive, name)
            await anyio.sleep(0.001)

    async def _revive(self, name: str) -> None:
        await anyio.sleep(0.3)
        await self.replica(name)

    async def subnet(self, name: str = "lan", *ips: str, cidr: str = CIDR, **spec: Any) -> None:
        made = SubnetSpec(ip_version=4, subnet=cidr, ips=list(ips) or ["10.6.0.1-10.6.0.100"], **spec)
        await self.store.create(SUBNET, SpiderSubnet(metadata=ObjectMeta(name=name), spec=made))

    async def pool(self, name: str, *ips: str, cidr: str = CIDR, **meta: Any) -> None:
        spec = IPPoolSpec(ip_version=4, subnet=cidr, ips=list(ips))
        await self.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name, **meta), spec=spec))

    # -- what is so ----------------------------------------------------------------------------------------------------

    def status(self, name: str = "lan") -> dict[str, Any]:
        """A subnet's status as it is stored, its text decoded."""
        for document in self.store.documents(SUBNET):
            if document["metadata"]["name"] == name:
                status = dict(document.get("status", {}))
                if "controlledIPPools" in status:
                    status["controlledIPPools"] = json.loads(status["controlledIPPools"])
                return status
        raise LookupError(name)

    def spec(self, name: str) -> dict[str, Any]:
        """A pool's."""
        return next(it["spec"] for it in self.store.documents(IPPOOL) if it["metadata"]["name"] == name)

    def meta(self, name: str, kind: Any = IPPOOL) -> dict[str, Any]:
        return next(it["metadata"] for it in self.store.documents(kind) if it["metadata"]["name"] == name)

    def names(self) -> set[str]:
        return {pool.metadata.name for pool in self.store.peek(IPPOOL)}

    def check(self) -> None:
        """What holds at every moment: pools are inside their entries, and no two have an address."""
        first: dict[str, SpiderSubnet] = {}
        for subnet in self.store.peek(SUBNET):
            first.setdefault(subnet.spec.subnet, subnet)
        for subnet in first.values():
            entries, _ = read_entries(subnet.status.controlled_ippools, 4)
            taken = Ranges(4)
            for name, entry in entries.items():
                if twice := taken.intersection(entry.addresses):
                    self.violations.append(f"{twice} is {name}'s and another's, {subnet.status.controlled_ippools}")
                taken = taken.union(entry.addresses)
            given = Ranges(4)
            for pool in self.store.peek(IPPOOL):
                if pool.spec.subnet != subnet.spec.subnet or not is_automatic(pool):
                    continue
                name, has = pool.metadata.name, ground(pool.spec)
                inside = entries[name].addresses if name in entries else Ranges(4)
                if beyond := has.difference(inside):
                    self.violations.append(f"pool {name} has {beyond}, its entry {inside}")
                if twice := given.intersection(has):
                    self.violations.append(f"pools share {twice}, {name} one of them")
                given = given.union(has)

    def judge(self) -> None:
        """Raises `Violation` where something did not hold at some moment."""
        if self.violations:
            raise Violation(self.violations[0])

    def settled(self) -> bool:
        """What holds in the end: the subnets say exactly what pools there are."""
        for subnet in self.store.peek(SUBNET):
            entries, problems = read_entries(subnet.status.controlled_ippools, 4)
            whole = ground(subnet.spec)
            pools = {it.metadata.name: it for it in self.store.peek(IPPOOL) if it.spec.subnet == subnet.spec.subnet}
            says = {name: entry.addresses for name, entry in entries.items()}
            so = {
                name: ground(pool.spec)
                for name, pool in pools.items()
                if is_automatic(pool) or ground(pool.spec).intersection(whole)
            }
            count = whole.size - free(whole, entries, Ranges(4)).size
            if problems or says != so or (subnet.status.allocated_ip_count or 0) != count:
                return False
        return True

    async def calm(self, *, seconds: float = 400.0) -> None:
        """No more faults; then everything has to fit, in time."""
        self.chances = Chances()
        for replica in self.replicas.values():
            replica.store.policy = self.chances
            replica.store.heal()
            await replica.store.settle()
        with anyio.move_on_after(seconds):
            while not self.settled():  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.5)
        self.check()
        self.judge()
        if not self.settled():
            raise Violation(f"never settled: {self.status()}, {[self.spec(n) for n in self.names()]}")


def act(
    scene: Callable[[Subnetting], Awaitable[None]], *, world: type[Subnetting] = Subnetting, **options: Any
) -> Subnetting:
    """Play a scene in virtual time."""
    seed = options.get("seed", 1)

    async def main() -> Subnetting:
        made = world(**options)
        async with anyio.create_task_group() as group:
            made.group = group
            with anyio.fail_after(3600):
                await scene(made)
            group.cancel_scope.cancel()
        made.judge()
        return made

    return run(main, seed=seed)
