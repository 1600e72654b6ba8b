"""The pools that this replica has an actor for: made when first asked for."""

from collections.abc import Callable

from actors.ippool import IPPoolActor, Message
from ipam.ranges import Ranges
from runtime.actor import Ref, System
from runtime.store.port import Store
from runtime.supervision import Intensity, Supervisor


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
        self._refs: dict[str, Ref[Message]] = {}

    def __call__(self, name: str) -> Ref[Message]:
        """The actor of the pool of that name, whether the pool exists or not: the actor finds out."""
        ref = self._refs.get(name)
        if ref is None:
            ref = self._refs[name] = self.supervisor.add_actor(
                name,
                lambda: IPPoolActor(name, self._store, reserved=self._reserved, max_records=self._max_records),
                capacity=IPPoolActor.capacity,
            )
        return ref
