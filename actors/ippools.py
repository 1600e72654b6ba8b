"""The pools that this replica has an actor for: made when first asked for, dropped when others own them."""

from collections.abc import Callable

import anyio

from actors.ippool import IPPoolActor, Message
from ipam.ranges import Ranges
from runtime.actor import Ref, System
from runtime.store.port import Store
from runtime.supervision import Intensity, Supervisor

_SWEEP_SECONDS = 30.0
_IDLE_SECONDS = 60.0
"""What an actor of a pool that is not ours any more is kept for: longer than any request waits."""


class IPPools:
    """Actors by pool name, under a supervisor of their own."""

    def __init__(
        self, name: str, system: System, store: Store, *, reserved: Callable[[int], Ranges], max_records: int
    ) -> None:
        """`name` is the path of the supervisor."""
        self.supervisor = Supervisor(name, system, intensity=Intensity(failures=20, seconds=10.0))
        self._store = store
        self._reserved = reserved
        self._max_records = max_records
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
                lambda: IPPoolActor(name, self._store, reserved=self._reserved, max_records=self._max_records),
                capacity=IPPoolActor.capacity,
            )
        return ref

    async def follow(self, mine: Callable[[str], bool]) -> None:
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
