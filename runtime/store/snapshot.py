"""What a process knows of one kind of object: the latest of each, and what changed since a subscriber last looked.

A subscriber keeps a number, not a queue. However slow it is, it costs nothing, and what changed ten times since it last
looked it gets once, as it is now.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct

from runtime.store.port import Expired


class Change[T](Struct, frozen=True):
    """One object that is not as it was. `key` is ``namespace/name``, or the name of a cluster-wide object."""

    key: str
    object: T | None
    """None when it is gone."""
    last: T | None = None
    """What it was when it went."""


def key_of(name: str, namespace: str = "") -> str:
    """Make the key of an object in a snapshot."""
    return f"{namespace}/{name}" if namespace else name


class Snapshot[T]:
    """Objects by key, with a revision that counts changes. Frozen Structs: whoever reads one keeps it."""

    def __init__(self, *, tombstones: int = 10_000) -> None:
        """Begin empty. `tombstones` is how many deletions are remembered for subscribers that have not looked yet."""
        self._objects: dict[str, T] = {}
        self._revisions: dict[str, int] = {}  # of every object and tombstone, the latest change last
        self._gone: dict[str, T] = {}
        self._tombstones = tombstones
        self._forgotten = 0
        self._revision = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<Snapshot revision {self._revision}, {len(self._objects)} objects>"

    @property
    def revision(self) -> int:
        """Counts changes in this process; 0 is the empty beginning."""
        return self._revision

    @property
    def objects(self) -> Mapping[str, T]:
        """All objects by key, a live view."""
        return MappingProxyType(self._objects)

    @property
    def waiting(self) -> int:
        """How many subscribers wait for the next change."""
        return len(self._waiters)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, name: str, *, namespace: str = "") -> T | None:
        """Return one object, None when it is not known. A cache may lag: ask the store before refusing anything."""
        return self._objects.get(key_of(name, namespace))

    def changes(self, since: int) -> tuple[list[Change[T]], int]:
        """Return what changed after the revision `since`, oldest first and each object once, and where to go on.

        Raises `Expired` when deletions since then have been forgotten: look at all `objects`, go on at `revision`.
        """
        if since < self._forgotten:
            msg = f"revision {since} is older than {self._forgotten}, whose deletions are forgotten"
            raise Expired(msg)
        found: list[Change[T]] = []
        for key, revision in reversed(self._revisions.items()):
            if revision <= since:
                break
            found.append(Change(key, self._objects.get(key), self._gone.get(key)))
        found.reverse()
        return found, self._revision

    def values(self) -> Iterable[T]:
        """Return all objects, as they are now."""
        return tuple(self._objects.values())

    async def wait(self, since: int) -> int:
        """Wait until there is something after the revision `since`, and return the revision then."""
        while self._revision <= since:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter.cancelled() and waiter in self._waiters:
                    # Who waits with a time limit comes again and again, and nothing may change for days.
                    self._waiters.remove(waiter)
        return self._revision

    def put(self, key: str, item: T) -> None:
        """Take in an object, or its next version."""
        self._objects[key] = item
        self._gone.pop(key, None)
        self._touch(key)

    def remove(self, key: str) -> None:
        """Let an object go; one that is not known changes nothing."""
        if key not in self._objects:
            return
        self._gone[key] = self._objects.pop(key)
        self._touch(key)
        while len(self._gone) > self._tombstones:
            oldest = next(iter(self._gone))
            del self._gone[oldest]
            self._forgotten = self._revisions.pop(oldest)

    def replace(self, items: Mapping[str, T], *, equal: Iterable[str] = ()) -> None:
        """Become exactly these objects; those with keys in `equal` are known to be as they were."""
        unchanged = set(equal)
        for key in [key for key in self._objects if key not in items]:
            self.remove(key)
        for key, item in items.items():
            if key not in unchanged:
                self.put(key, item)

    def _touch(self, key: str) -> None:
        self._revision += 1
        self._revisions.pop(key, None)
        self._revisions[key] = self._revision
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
