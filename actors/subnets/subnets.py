"""The subnets that this replica has an actor for, and who tells them that there is something to do."""

import logging
from collections.abc import Awaitable, Callable, Mapping

import anyio
from msgspec import Struct

from actors.subnets.sight import Sight
from actors.subnets.subnet import Look, Message, SubnetActor
from api.ippool import SpiderIPPool
from api.subnet import SpiderSubnet
from ipam.ranges import Ranges
from ipam.subnetbook import read_entries
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.store.port import Expired, Store
from runtime.store.snapshot import Snapshot
from runtime.supervision import Intensity, Supervisor
from telemetry import metrics

_log = logging.getLogger(__name__)

_SWEEP_SECONDS = 30.0
_RESYNC_SECONDS = 300.0
"""A subnet of ours is looked at so often though nothing has changed."""
_IDLE_SECONDS = 60.0
"""What an actor of a subnet that is not ours any more is kept for."""
_OVERLAY_SECONDS = 30.0
"""How long the snapshot may take to show what was written here."""


class _Overlay(Struct):
    """A pool as it was read or written here, which the snapshot may not show yet."""

    pool: SpiderIPPool
    until: float


class Subnets:
    """Actors by subnet name, under a supervisor of their own."""

    def __init__(
        self,
        name: str,
        system: System,
        store: Store,
        *,
        subnets: Snapshot[SpiderSubnet],
        pools: Snapshot[SpiderIPPool],
        reserved: Callable[[int], Ranges],
        waits: Callable[[str, str], None] = lambda _name, _text: None,
    ) -> None:
        """`name` is the path of the supervisor; `waits` as in `SubnetActor`."""
        self.supervisor = Supervisor(name, system, intensity=Intensity(failures=20, seconds=10.0))
        self._system = system
        self._store = store
        self._subnets = subnets
        self._pools = pools
        self._waits = waits
        self._sight = Sight(
            pools=self._of_cidr,
            first=self._first,
            wrote=self._wrote,
            gone=self._gone,
            reserved=reserved,
            wall=system.clock.wall,
        )
        self._overlays: dict[str, _Overlay] = {}
        self._refs: dict[str, Ref[Message]] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._looked: dict[str, float] = {}
        self._shapes: dict[str, tuple[object, ...]] = {}
        self._lives = 0

    def __call__(self, name: str) -> Ref[Message]:
        """The actor of the subnet of that name, whether the subnet exists or not: the actor finds out."""
        self._used[name] = self._system.clock.now()
        ref = self._refs.get(name)
        if ref is None:
            self._lives += 1
            child = self._names[name] = name if name not in self._names else f"{name}~{self._lives}"
            ref = self._refs[name] = self.supervisor.add_actor(
                child,
                lambda: SubnetActor(name, self._store, sight=self._sight, waits=self._waits),
                capacity=SubnetActor.capacity,
            )
        return ref

    def supervise(
        self, parent: Supervisor, *, mine: Callable[[str], bool], ready: Callable[[], Awaitable[None]]
    ) -> None:
        """Put the actors under a supervisor, and beside them who looks for work, from when `ready` returns."""

        def service(follow: Callable[[Callable[[str], bool]], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                await ready()
                await follow(mine)

            return run

        parent.add_supervisor(self.supervisor)
        parent.add_service("subnet-ownership", service(self.follow))
        parent.add_service("subnet-changes", service(self.watch_subnets))
        parent.add_service("subnet-pools", service(self.watch_pools))

    def measure(self, *, debug: bool) -> None:
        """Set the gauges of subnets; those of single ones only with `debug`."""
        found = self._subnets.objects
        metrics.TOTAL_SUBNET_COUNTS.set(len(found))
        # A subnet that is gone has no addresses, not the last ones that it had.
        for gauge in (
            metrics.DEBUG_SUBNET_IPPOOL_COUNTS,
            metrics.DEBUG_SUBNET_TOTAL_IP_COUNTS,
            metrics.DEBUG_SUBNET_AVAILABLE_IP_COUNTS,
        ):
            gauge.clear()
        for name, subnet in found.items() if debug else ():
            status, version = subnet.status, 6 if ":" in subnet.spec.subnet else 4
            total, given = status.total_ip_count or 0, status.allocated_ip_count or 0
            pools = len(read_entries(status.controlled_ippools, version)[0])
            metrics.DEBUG_SUBNET_IPPOOL_COUNTS.labels(SpiderSubnet=name).set(pools)
            metrics.DEBUG_SUBNET_TOTAL_IP_COUNTS.labels(SpiderSubnet=name).set(total)
            metrics.DEBUG_SUBNET_AVAILABLE_IP_COUNTS.labels(SpiderSubnet=name).set(total - given)

    # -- what actors see -----------------------------------------------------------------------------------------------

    def _of_cidr(self, cidr: str) -> Mapping[str, SpiderIPPool]:
        now = self._system.clock.now()
        found = {name: pool for name, pool in self._pools.objects.items() if pool.spec.subnet == cidr}
        for name, overlay in list(self._overlays.items()):
            seen = self._pools.objects.get(name)
            if now > overlay.until or (seen is not None and _newer(seen, overlay.pool)):
                del self._overlays[name]
            elif overlay.pool.spec.subnet == cidr:
                found[name] = overlay.pool
        return found

    def _first(self, subnet: SpiderSubnet) -> str:
        def age(one: SpiderSubnet) -> tuple[str, str]:
            return one.metadata.creation_timestamp or "", one.metadata.name

        same = [one for one in self._subnets.objects.values() if one.spec.subnet == subnet.spec.subnet]
        oldest = min([*same, subnet], key=age)
        return "" if oldest.metadata.name == subnet.metadata.name else oldest.metadata.name

    def _wrote(self, pool: SpiderIPPool) -> None:
        self._overlays[pool.metadata.name] = _Overlay(pool, self._system.clock.now() + _OVERLAY_SECONDS)

    def _gone(self, name: str) -> None:
        self._overlays.pop(name, None)

    # -- what there is to do -------------------------------------------------------------------------------------------

    async def follow(self, mine: Callable[[str], bool]) -> None:
        """Look from time to time at the subnets that are ours, and drop the actors of those that are not."""
        while True:
            now = self._system.clock.now()
            for name in list(self._subnets.objects):
                if not mine(name):
                    self._looked.pop(name, None)
                elif now - self._looked.get(name, float("-inf")) >= _RESYNC_SECONDS:
                    self._look(name)
            await anyio.sleep(_SWEEP_SECONDS)
            for name in [n for n in self._refs if not mine(n) and now - self._used[n] > _IDLE_SECONDS]:
                del self._refs[name]
                del self._used[name]
                await self.supervisor.remove(self._names[name])

    async def watch_subnets(self, mine: Callable[[str], bool]) -> None:
        """Have the owner look at a subnet that has changed."""
        since = 0
        while True:
            await self._subnets.wait(since)
            try:
                changes, since = self._subnets.changes(since)
                names = [change.key for change in changes if change.object is not None]
                left = {change.last.spec.subnet for change in changes if change.object is None and change.last}
                names += [name for name, one in self._subnets.objects.items() if one.spec.subnet in left]
            except Expired:
                names, since = list(self._subnets.objects), self._subnets.revision
            for name in filter(mine, names):
                self._look(name)

    async def watch_pools(self, mine: Callable[[str], bool]) -> None:
        """Have the owner look at the subnet of a pool that has changed, but for its status, or has gone."""
        since = 0
        while True:
            await self._pools.wait(since)
            cidrs: set[str] = set()
            try:
                changes, since = self._pools.changes(since)
                for change in changes:
                    cidrs |= self._noticed(change.key, change.object, change.last)
            except Expired:
                since = self._pools.revision
                cidrs = {pool.spec.subnet for pool in self._pools.objects.values()}
                cidrs |= {str(shape[0]) for shape in self._shapes.values()}
            for name, subnet in list(self._subnets.objects.items()):
                if subnet.spec.subnet in cidrs and mine(name):
                    self._look(name)

    def _noticed(self, name: str, pool: SpiderIPPool | None, last: SpiderIPPool | None) -> set[str]:
        """The subnets, by CIDR, that a change of a pool is news for."""
        if pool is None:
            self._shapes.pop(name, None)
            self._gone(name)
            return {last.spec.subnet} if last is not None else set()
        meta = pool.metadata
        shape = (
            pool.spec.subnet,
            meta.uid,
            meta.generation,
            tuple(meta.finalizers),
            tuple(meta.owner_references),
            tuple(sorted(meta.labels.items())),
        )
        before, self._shapes[name] = self._shapes.get(name), shape
        overlay = self._overlays.get(name)
        if before == shape or (overlay is not None and overlay.pool.metadata.resource_version == meta.resource_version):
            return set()
        return {pool.spec.subnet}

    def _look(self, name: str) -> None:
        self._looked[name] = self._system.clock.now()
        try:
            self(name).tell(Look())
        except ActorError as error:
            _log.warning("subnet %s: %s", name, error)


def _newer(seen: SpiderIPPool, ours: SpiderIPPool) -> bool:
    """Whether the snapshot shows what was written here, or something later."""
    a, b = seen.metadata, ours.metadata
    return a.uid != b.uid or a.generation > b.generation or a.resource_version == b.resource_version
