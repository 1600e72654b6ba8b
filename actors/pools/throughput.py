"""What a replica has written of pools, and for how many addresses: whether requests share their writes."""

from collections import Counter
from collections.abc import Iterable

from api.status import PoolWork
from ipam.history import Change
from runtime.supervision import ChildStatus
from telemetry import metrics


class Throughput:
    """Of one replica, since it began. Plain counters; for the event loop's thread."""

    def __init__(self) -> None:
        """Nothing was written."""
        self.writes = 0
        """That changed who has an address."""
        self.granted = 0
        """Addresses that nobody had before."""
        self.sizes: Counter[int] = Counter()
        """Writes, by how many changes they had."""

    def __repr__(self) -> str:
        return f"<Throughput {self.writes} writes, {self.granted} addresses>"

    def noted(self, _pool: str, changes: tuple[Change, ...]) -> None:
        """One write was committed."""
        self.writes += 1
        self.sizes[len(changes)] += 1
        self.granted += sum(change.what == "granted" for change in changes)

    def measure(self) -> None:
        """Set the gauge."""
        if self.granted:
            metrics.POOL_WRITES_PER_GRANT.set(self.writes / self.granted)


def work(actors: Iterable[ChildStatus]) -> dict[str, PoolWork]:
    """What the pools' actors have in hand and have done, by the pool's name."""
    found: dict[str, PoolWork] = {}
    for actor in actors:
        box = actor.mailbox
        if box is not None and actor.state == "running":
            # The name of an actor that follows one of the same pool has a tilde.
            found[actor.name.partition("~")[0]] = PoolWork(
                waiting=box.depth,
                oldest=box.oldest_age,
                batches=box.batches,
                requests=box.delivered,
                largest=box.largest_batch,
                busy=box.held,
            )
    return found
