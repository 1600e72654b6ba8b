"""The applications that this replica has an actor for, and what it tells them of the cluster.

Kubernetes' own workloads are followed from the start, without those that ask for nothing; of foreign kinds those that
a pod has come of. A pool whose application nobody sees any more has it looked for.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import anyio
from msgspec import structs

from actors.applications.application import ApplicationActor, Message, Missing, Room, Seen
from actors.applications.lookup import BUILT_IN, Lookup
from actors.applications.settlement import Terms
from api.core import Bare
from api.ippool import SpiderIPPool
from api.meta import ObjectMeta
from api.subnet import SpiderSubnet
from ipam import autopool
from ipam.autopool import application_key
from ipam.identity import Workload
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.store.port import Expired, Store, StoreError
from runtime.store.reflector import Reflector
from runtime.store.snapshot import Snapshot
from runtime.supervision import Intensity, Supervisor

_log = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 30.0
_IDLE_SECONDS: Final = 120.0
"""What an actor is kept for of which nobody wants anything: longer than any ADD waits."""

type Mine = Callable[[str], bool]


class PoolIndex:
    """Automatic pools by application, kept up when somebody asks."""

    def __init__(self, snapshot: Snapshot[SpiderIPPool]) -> None:
        """`snapshot` is of all pools."""
        self._snapshot = snapshot
        self._since = 0
        self._keys: dict[str, str] = {}
        self._pools: dict[str, dict[str, SpiderIPPool]] = {}

    def __repr__(self) -> str:
        return f"<PoolIndex {len(self._keys)} pools of {len(self._pools)} applications>"

    def of(self, workload: Workload) -> Sequence[SpiderIPPool]:
        """Those of applications of that name."""
        self._refresh()
        return tuple(self._pools.get(application_key(workload), {}).values())

    def owners(self) -> list[Workload]:
        """The applications that have pools."""
        self._refresh()
        owners = (autopool.owner_of(next(iter(pools.values()))) for pools in self._pools.values())
        return [owner for owner in owners if owner is not None]

    def _refresh(self) -> None:
        if self._since == self._snapshot.revision:
            return
        try:
            changes, self._since = self._snapshot.changes(self._since)
        except Expired:
            self._since = self._snapshot.revision
            self._keys.clear()
            self._pools.clear()
            for name, pool in self._snapshot.objects.items():
                self._take(name, pool)
            return
        for change in changes:
            self._take(change.key, change.object)

    def _take(self, name: str, pool: SpiderIPPool | None) -> None:
        owner = autopool.owner_of(pool) if pool is not None else None
        key = application_key(owner) if owner is not None else ""
        before = self._keys.pop(name, "")
        if before and before != key:
            rest = self._pools[before]
            del rest[name]
            if not rest:
                del self._pools[before]
        if pool is not None and owner is not None:
            self._keys[name] = key
            self._pools.setdefault(key, {})[name] = pool


class Applications:
    """Actors by application, under a supervisor of their own."""

    def __init__(
        self,
        name: str,
        system: System,
        store: Store,
        *,
        terms: Terms,
        lookup: Lookup,
        index: PoolIndex,
        pools: Snapshot[SpiderIPPool],
        subnets: Snapshot[SpiderSubnet],
        statefulsets: Reflector[Any],
    ) -> None:
        """`name` is the path of the supervisor; `statefulsets` are followed for others as well, without templates."""
        self.supervisor = Supervisor(name, system, intensity=Intensity(failures=20, seconds=10.0))
        self._system = system
        self._store = store
        self._terms = structs.replace(terms, hungry=self._hungers)
        self._lookup = lookup
        self._index = index
        self._pools = pools
        self._subnets = subnets
        self._followed: dict[tuple[str, str], Reflector[Any]] = {}
        for key, kind in BUILT_IN.items():
            if kind is statefulsets.kind:
                self._followed[key] = statefulsets
            else:
                self._followed[key] = Reflector(store, kind, random=system.random, transform=_asking)
        self._statefulsets = statefulsets
        self._foreign: dict[tuple[str, str], Reflector[Bare]] = {}
        self._refs: dict[str, Ref[Message]] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._hungry: dict[str, tuple[Workload, frozenset[str]]] = {}
        self._lives = 0

    def __repr__(self) -> str:
        return f"<Applications {len(self._refs)} actors, {len(self._hungry)} short of addresses>"

    def __call__(self, workload: Workload) -> Ref[Message]:
        """The actor of an application, whether it exists or not: the actor finds out."""
        key = application_key(workload)
        self._used[key] = self._system.clock.now()
        ref = self._refs.get(key)
        if ref is None:
            self._lives += 1
            child = self._names[key] = f"{workload.kind}-{workload.namespace}-{workload.name}~{self._lives}"
            ref = self._refs[key] = self.supervisor.add_actor(
                child, lambda: ApplicationActor(workload, self._terms), capacity=ApplicationActor.capacity
            )
        return ref

    def supervise(self, supervisor: Supervisor) -> None:
        """Make the reflectors of Kubernetes' own kinds children of `supervisor`."""
        for reflector in self._followed.values():
            if reflector is not self._statefulsets:
                supervisor.add_service(f"applications-{reflector.kind.plural}", reflector.run)

    async def run(self, mine: Mine) -> None:
        """Tell the applications that are ours what becomes of them and their subnets, until cancelled."""
        for reflector in self._followed.values():
            await reflector.synced()
        async with anyio.create_task_group() as group:
            for reflector in self._followed.values():
                group.start_soon(self._follow, reflector, mine)
            group.start_soon(self._follow_subnets)
            group.start_soon(self._follow_pools, group.start_soon, mine)
            while True:
                await self._follow_foreign(group.start_soon, mine)
                await self._sweep(mine)
                await anyio.sleep(SWEEP_SECONDS)

    # -- what is seen --------------------------------------------------------------------------------------------------

    async def _follow(self, reflector: Reflector[Any], mine: Mine) -> None:
        since, kind = 0, (reflector.kind.api_version, reflector.kind.kind)
        while True:
            await reflector.snapshot.wait(since)
            try:
                changes, since = reflector.snapshot.changes(since)
                items = [(change.object, change.last) for change in changes]
            except Expired:
                since = reflector.snapshot.revision
                items = [(item, None) for item in reflector.snapshot.values()]
            for item, last in items:
                either = item if item is not None else last
                if either is None:
                    continue
                workload = _workload(kind, either.metadata)
                if mine(application_key(workload)):
                    self._show(workload, item)

    def _show(self, workload: Workload, item: Any) -> None:
        """Pass on what a watch shows of an application: the object, or None."""
        found = autopool.application(item) if item is not None and autopool.built_in(workload) else None
        if found is not None:
            self._tell(workload, Seen(found))
        elif application_key(workload) in self._refs or self._index.of(workload):
            self._tell(workload, Missing())

    async def _follow_subnets(self) -> None:
        """When a subnet has more to give, have those ask again that lack addresses of it."""
        since = 0
        free: dict[str, object] = {}
        while True:
            await self._subnets.wait(since)
            try:
                changes, since = self._subnets.changes(since)
                names = [change.key for change in changes]
            except Expired:
                since, names = self._subnets.revision, list(self._subnets.objects)
            for name in names:
                subnet = self._subnets.get(name)
                was, free[name] = free.get(name), None if subnet is None else _state(subnet)
                if free[name] != was:
                    self._feed(name)

    async def _follow_pools(self, start: Callable[..., object], mine: Mine) -> None:
        """When a pool has been given addresses back, have its application ask again if it has too many."""
        since = 0
        used: dict[str, int] = {}
        while True:
            await self._pools.wait(since)
            try:
                changes, since = self._pools.changes(since)
            except Expired:
                since, changes = self._pools.revision, []
            for change in changes:
                new = change.key not in used
                if change.object is None:
                    used.pop(change.key, None)
                    owner = autopool.owner_of(change.last) if change.last is not None else None
                    fewer = True
                else:
                    owner = autopool.owner_of(change.object)
                    now = change.object.status.allocated_ip_count or 0
                    fewer = now < used.get(change.key, 0)
                    used[change.key] = now
                if new and owner is not None and not self._follows(owner):
                    await self._follow_foreign(start, mine)
                if fewer and owner is not None and application_key(owner) in self._hungry:
                    self._tell(owner, Room())

    async def _follow_foreign(self, start: Callable[..., object], mine: Mine) -> None:
        """Follow the foreign kinds that applications with pools are of."""
        for workload in self._index.owners():
            kind = workload.api_version, workload.kind
            if self._follows(workload):
                continue
            try:
                foreign = await self._lookup.foreign(workload)
            except StoreError as error:
                _log.warning("%s (%s) cannot be followed: %s", *reversed(kind), error)
                continue
            if foreign is None or self._follows(workload):
                continue
            reflector = Reflector(self._store, foreign.kind, random=self._system.random, transform=_bare)
            self._foreign[kind] = reflector
            start(reflector.run)
            start(self._follow, reflector, mine)

    def _follows(self, workload: Workload) -> bool:
        kind = workload.api_version, workload.kind
        return kind in self._followed or kind in self._foreign

    async def _sweep(self, mine: Mine) -> None:
        """Show everybody what is, once more, and drop the actors of those that are not ours or not there."""
        for kind, reflector in list(self._followed.items()):
            for item in reflector.snapshot.values():
                workload = _workload(kind, item.metadata)
                if mine(application_key(workload)):
                    self._show(workload, item)
        for workload in self._index.owners():
            if mine(application_key(workload)) and self._lost(workload):
                self._tell(workload, Missing())
        now = self._system.clock.now()
        for key in [k for k in self._refs if now - self._used[k] > _IDLE_SECONDS]:
            del self._refs[key]
            del self._used[key]
            self._hungry.pop(key, None)
            await self.supervisor.remove(self._names.pop(key))

    def _lost(self, workload: Workload) -> bool:
        """Whether there is a pool that may have to go, of an application that no watch shows."""
        kind = workload.api_version, workload.kind
        reflector: Reflector[Any] | None = self._followed.get(kind) or self._foreign.get(kind)
        if reflector is not None and reflector.is_synced:
            seen = reflector.snapshot.get(workload.name, namespace=workload.namespace)
            if seen is not None and (kind not in self._followed or autopool.application(seen) is not None):
                return False
        return bool(autopool.surplus(workload, self._index.of(workload), None))

    # -- telling -------------------------------------------------------------------------------------------------------

    def _hungers(self, workload: Workload, subnets: frozenset[str]) -> None:
        key = application_key(workload)
        if subnets:
            self._hungry[key] = workload, subnets
        else:
            self._hungry.pop(key, None)

    def _feed(self, subnet: str) -> None:
        for workload, subnets in list(self._hungry.values()):
            if subnet in subnets:
                self._tell(workload, Room())

    def _tell(self, workload: Workload, message: Seen | Missing | Room) -> None:
        try:
            self(workload).tell(message)
        except ActorError as error:
            _log.warning("%s: %s", workload, error)


def _asking[T: autopool.BuiltIn](item: T) -> T | None:
    """Without what is not looked at; nothing of one that asks for nothing."""
    return autopool.trimmed(item) if autopool.application(item) is not None else None


def _bare(item: Bare) -> Bare:
    meta = item.metadata
    return Bare(metadata=ObjectMeta(name=meta.name, namespace=meta.namespace, uid=meta.uid, generation=meta.generation))


def _workload(kind: tuple[str, str], meta: ObjectMeta) -> Workload:
    return Workload(api_version=kind[0], kind=kind[1], namespace=meta.namespace, name=meta.name, uid=meta.uid)


def _state(subnet: SpiderSubnet) -> tuple[object, ...]:
    """What of a subnet decides how much it can give."""
    return subnet.spec, subnet.status.total_ip_count, subnet.status.allocated_ip_count
