"""What the owners of pools are told though nobody asks them for an address: overlaps, deletion, what a status lacks."""

import logging
from collections.abc import Callable
from typing import Final

import anyio

from actors.pools.messages import Message, Reconsider, Reread
from actors.pools.survey import Survey
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from api.meta import FINALIZER
from ipam.departure import departing
from ipam.overlap import conditions
from ipam.ranges import MAX_INT64
from ipam.territory import PoolError, territory
from runtime.actor import Ref
from runtime.clock import Clock
from runtime.errors import ActorError
from runtime.store.port import Conflict, Expired, NotFound, Store, StoreError
from runtime.store.snapshot import Snapshot

_log = logging.getLogger(__name__)

_SWEEP_SECONDS: Final = 30.0
"""Everything is looked at again: others may have owned it until then."""
_UPKEEP_SECONDS: Final = 2.0
"""What a pool lacks is left to whoever asks for an address first: that write brings the counts along."""


class _Rounds:
    """What has changed, again and again, and from time to time everything, however much changes in between."""

    def __init__(self, snapshot: Snapshot[SpiderIPPool], clock: Clock) -> None:
        self._snapshot = snapshot
        self._clock = clock
        self._revision = 0
        self._sweep_at = clock.now() + _SWEEP_SECONDS

    async def next(self) -> tuple[set[str], bool]:
        """Wait for a change or the sweep; returns names, and whether they are all."""
        with anyio.move_on_after(max(self._sweep_at - self._clock.now(), 0.0)):
            await self._snapshot.wait(self._revision)
        if self._clock.now() < self._sweep_at:
            try:
                changes, self._revision = self._snapshot.changes(self._revision)
            except Expired:
                pass
            else:
                return {change.key for change in changes}, False
        self._sweep_at = self._clock.now() + _SWEEP_SECONDS
        self._revision = self._snapshot.revision
        return set(self._snapshot.objects), True


class Attention:
    """Three services over the snapshot of the pools. Each costs as much as has changed, and all pools once a sweep."""

    def __init__(
        self,
        owner: Callable[[str], Ref[Message]],
        store: Store,
        *,
        snapshot: Snapshot[SpiderIPPool],
        survey: Survey,
        clock: Clock,
        mine: Callable[[str], bool],
    ) -> None:
        """`owner` gives the actor of a pool, `mine` says whether the pool is this replica's."""
        self._owner = owner
        self._store = store
        self._snapshot = snapshot
        self._survey = survey
        self._clock = clock
        self._mine = mine
        self._totals: dict[str, tuple[str, int, int]] = {}
        """By pool: its uid and generation, and how many addresses it has then."""

    async def overlaps(self) -> None:
        """Have owners say so when pools come to overlap, or no longer do.

        Looks when the snapshot shows another spec, and again with the sweep.
        """
        revision, edition = 0, 0
        while True:
            with anyio.move_on_after(_SWEEP_SECONDS):
                while edition == self._survey.edition():
                    revision = await self._snapshot.wait(revision)
            edition = self._survey.edition()
            for name, pool in list(self._snapshot.objects.items()):
                overlap = self._survey.glimpse(name)
                if conditions(pool, overlap, now=0.0) is not pool.status.conditions and self._mine(name):
                    self._tell(name, Reconsider())

    async def leaving(self) -> None:
        """Tell the owners of pools that are being deleted, when that is seen, and again with the sweep."""
        rounds = _Rounds(self._snapshot, self._clock)
        told: dict[str, bool] = {}
        while True:
            changed, swept = await rounds.next()
            if swept:
                told = {name: once for name, once in told.items() if name in changed}
            for name in changed:
                pool = self._snapshot.get(name)
                if pool is None or not departing(pool.metadata):
                    told.pop(name, None)
                else:
                    told.setdefault(name, False)
            for name, once in told.items():
                if (swept or not once) and self._mine(name):
                    told[name] = True
                    self._tell(name, Reread())

    async def upkeep(self) -> None:
        """Complete what pools lack.

        Counts that the status lacks, or that no longer fit the spec, are written by the owner. Our finalizer is put
        where admission did not see the pool: one that is in use must not vanish. A crash leaves the pool as it was,
        and the next sweep finds it.
        """
        rounds = _Rounds(self._snapshot, self._clock)
        while True:
            changed, _ = await rounds.next()
            await anyio.sleep(_UPKEEP_SECONDS)
            for name in changed:
                pool = self._snapshot.get(name)
                if pool is None:
                    self._totals.pop(name, None)
                elif self._mine(name) and pool.metadata.deletion_timestamp is None:
                    if not self._counted(name, pool):
                        self._tell(name, Reread())
                    if FINALIZER not in pool.metadata.finalizers:
                        await self._hold(pool)

    def _counted(self, name: str, pool: SpiderIPPool) -> bool:
        """Whether the status says how many addresses the pool has; also where that cannot be said."""
        meta = pool.metadata
        known = self._totals.get(name)
        if known is None or known[:2] != (meta.uid, meta.generation):
            try:
                size = min(territory(pool).addresses.size, MAX_INT64)
            except PoolError:
                return True  # who asks for an address is told
            known = self._totals[name] = (meta.uid, meta.generation, size)
        return pool.status.total_ip_count == known[2]

    async def _hold(self, pool: SpiderIPPool) -> None:
        """Add the finalizer to the version that was seen, or leave it to the next look."""
        meta = pool.metadata
        change = {"metadata": {"finalizers": [*meta.finalizers, FINALIZER]}}
        try:
            await self._store.patch(IPPOOL, meta.name, change, resource_version=meta.resource_version)
        except (Conflict, NotFound):
            pass
        except StoreError as error:
            _log.warning("pool %s: the finalizer could not be set: %s", meta.name, error)

    def _tell(self, name: str, message: Message) -> None:
        try:
            self._owner(name).tell(message)
        except ActorError as error:
            _log.warning("pool %s: %s", name, error)
