"""The pools that this replica has an actor for: made when first asked for, dropped when others own them."""

from collections.abc import Callable

import anyio

from actors.pools.attention import Attention
from actors.pools.governor import Governor
from actors.pools.ippool import IPPoolActor
from actors.pools.messages import Message
from actors.pools.survey import Survey
from actors.pools.terms import Terms, Witnesses
from api.ippool import SpiderIPPool
from ipam.overlap import Atlas
from ipam.withheld import withheld_now
from runtime.actor import Ref, System
from runtime.store.port import Store
from runtime.store.snapshot import Snapshot
from runtime.supervision import Intensity, Supervisor
from telemetry import metrics

_SWEEP_SECONDS = 30.0
_IDLE_SECONDS = 60.0
"""What an actor of a pool that is not ours any more is kept for: longer than any request waits."""


class IPPools:
    """Actors by pool name, under a supervisor of their own."""

    def __init__(
        self,
        name: str,
        system: System,
        store: Store,
        *,
        terms: Terms,
        governor: Governor,
        snapshot: Snapshot[SpiderIPPool],
        witnesses: Witnesses | None = None,
    ) -> None:
        """`name` is the path of the supervisor; `snapshot` is of the pools."""
        self.supervisor = Supervisor(name, system, intensity=Intensity(failures=20, seconds=10.0))
        self.governor = governor
        self._store = store
        self._terms = terms
        self._snapshot = snapshot
        self._survey = Survey(store, snapshot)
        self._witnesses = witnesses or Witnesses()
        self._clock = system.clock
        self._refs: dict[str, Ref[Message]] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, float] = {}
        self._lives = 0

    def __call__(self, name: str) -> Ref[Message]:
        """The actor of the pool of that name, whether the pool exists or not: the actor finds out."""
        self._used[name] = self._clock.now()
        ref = self._refs.get(name)
        if ref is None:
            self._lives += 1
            # A pool that comes back while its last actor still ends needs another name. No pool's has a tilde.
            child = self._names[name] = name if name not in self._names else f"{name}~{self._lives}"
            ref = self._refs[name] = self.supervisor.add_actor(
                child,
                lambda: IPPoolActor(
                    name,
                    self._store,
                    terms=self._terms,
                    governor=self.governor,
                    survey=self._survey,
                    witnesses=self._witnesses,
                ),
                capacity=IPPoolActor.capacity,
            )
        return ref

    def supervise(self, supervisor: Supervisor, mine: Callable[[str], bool]) -> None:
        """Drop actors of other replicas' pools, and tell the owners of ours what they are not asked for."""
        attention = Attention(
            self, self._store, snapshot=self._snapshot, survey=self._survey, clock=self._clock, mine=mine
        )
        supervisor.add_service("ownership", lambda: self._follow(mine))
        supervisor.add_service("overlaps", attention.overlaps)
        supervisor.add_service("leaving", attention.leaving)
        supervisor.add_service("upkeep", attention.upkeep)

    def atlas(self) -> Atlas:
        """Where all pools lie, as the snapshot shows them now."""
        return self._survey.atlas()

    def measure(self) -> None:
        """Set the gauges of the byte budget and of what is withheld."""
        metrics.POOL_WRITE_BALANCE_BYTES.set(self.governor.balance)
        kinds = {"cool-down": 0, "quarantine": 0, "provider": 0}
        for pool in self._snapshot.objects.values():
            for entry in withheld_now(pool, now=self._clock.wall()):
                kinds["cool-down" if entry.resting else "quarantine" if entry.owed is None else "provider"] += 1
        for kind, count in kinds.items():
            metrics.POOL_ADDRESSES_WITHHELD.labels(kind=kind).set(count)

    async def _follow(self, mine: Callable[[str], bool]) -> None:
        """Drop from time to time the actors of pools that are not ours and that nobody asks any more.

        What such an actor remembers is out of date. That is no danger, only memory: no answer is given without a write
        or a read that proves it current.
        """
        while True:
            await anyio.sleep(_SWEEP_SECONDS)
            now = self._clock.now()
            for name in [n for n in self._refs if not mine(n) and now - self._used[n] > _IDLE_SECONDS]:
                del self._refs[name]
                del self._used[name]
                await self.supervisor.remove(self._names[name])
