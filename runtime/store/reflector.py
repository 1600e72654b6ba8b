"""A local copy of one kind of object, kept up to date: list once, then watch.

The copy lags behind the store. It serves to choose and to save reads; whoever is about to refuse or to free something
reads the store itself.

A watch ends every few minutes by design and is begun again where it left off. When that revision is too old (410),
all is listed again. Errors make it pause, longer each time and by a random share, and a server that says when to come
back is heeded. Followers keep a cursor instead of a queue: one that is slow sees several changes of an object as one.
"""

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import anyio
from msgspec import Struct

from api.kinds import Kind
from api.meta import ObjectMeta
from runtime.store.port import Busy, Event, EventType, Expired, Store, StoreError
from telemetry import metrics

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0

type Key = tuple[str, str]
"""Namespace and name."""


class Changes[T](Struct, frozen=True):
    """What has happened since a cursor:

    the newest state of every object that changed, and the keys of those that went.
    """

    present: Sequence[T]
    gone: Sequence[Key]
    cursor: int
    """For the next look."""


class Snapshot[T]:
    """The objects as last seen. Read by anybody on the loop, written by the reflector."""

    def __init__(self) -> None:
        """Empty, at revision 0."""
        self.revision = 0
        """Counts the changes seen here; nothing to do with the store's revisions."""
        self._objects: dict[Key, T] = {}
        self._changed: dict[Key, int] = {}
        """When each object, present or gone, changed last; in order of change."""
        self._moved = anyio.Event()

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self._objects)} objects at {self.revision}>"

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, name: str, *, namespace: str = "") -> T | None:
        """One object, or None."""
        return self._objects.get((namespace, name))

    def values(self) -> Collection[T]:
        """All objects. Not to be kept across an await."""
        return self._objects.values()

    def changes(self, cursor: int) -> Changes[T]:
        """What has changed after `cursor` (0: everything)."""
        keys = []
        for key, at in reversed(self._changed.items()):
            if at <= cursor:
                break
            keys.append(key)
        keys.reverse()
        return Changes(
            present=[self._objects[key] for key in keys if key in self._objects],
            gone=[key for key in keys if key not in self._objects],
            cursor=self.revision,
        )

    async def wait(self, cursor: int) -> None:
        """Return when there is something after `cursor`."""
        while self.revision <= cursor:
            await self._moved.wait()

    def put(self, key: Key, item: T) -> None:
        """For the reflector: an object is there, or is another."""
        self._objects[key] = item
        self._mark(key)

    def drop(self, key: Key) -> None:
        """For the reflector: an object is gone."""
        if self._objects.pop(key, None) is not None:
            self._mark(key)

    def replace(self, objects: Mapping[Key, T]) -> None:
        """For the reflector: this is all there is."""
        for key in [key for key in self._objects if key not in objects]:
            self.drop(key)
        for key, item in objects.items():
            known = self._objects.get(key)
            if known is None or _version(known) != _version(item):
                self.put(key, item)

    def _mark(self, key: Key) -> None:
        self.revision += 1
        self._changed.pop(key, None)
        self._changed[key] = self.revision
        moved, self._moved = self._moved, anyio.Event()
        moved.set()


class Reflector[T]:
    """Keeps a `Snapshot` of one kind. `run` is a service for a supervisor."""

    def __init__(
        self,
        store: Store,
        kind: Kind[T],
        *,
        random: random.Random,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        transform: Callable[[T], T] | None = None,
    ) -> None:
        """`namespace` and `fields` narrow what is watched; `transform` may leave out of an object what nobody needs."""
        self.kind = kind
        self.snapshot: Snapshot[T] = Snapshot()
        self._store = store
        self._random = random
        self._namespace = namespace
        self._fields = fields
        self._transform = transform
        self._synced = anyio.Event()
        self._since = ""
        self._size = metrics.STORE_CACHED_OBJECTS.labels(resource=kind.plural)

    def __repr__(self) -> str:
        state = "synced" if self._synced.is_set() else "not listed yet"
        return f"<Reflector {self.kind.plural} {state}, {len(self.snapshot)} objects>"

    async def synced(self) -> None:
        """Return when everything has been listed once."""
        await self._synced.wait()

    async def run(self) -> None:
        """List and watch until cancelled. No error of the store ends it."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                if not self._since:
                    await self._list()
                await self._watch()
                self._count("closed")
                pause = _FIRST_PAUSE_SECONDS
                # A server that closes every watch at once is not to be asked in a tight loop.
                await anyio.sleep(_FIRST_PAUSE_SECONDS * self._random.uniform(0.5, 1.0))
            except Expired:
                self._count("expired")
                self._since = ""
                await anyio.sleep(_FIRST_PAUSE_SECONDS * self._random.uniform(0.5, 1.0))
            except StoreError as error:
                self._count("error")
                _log.warning("watching %s: %s", self.kind.plural, error)
                wait = error.retry_after if isinstance(error, Busy) else pause
                await anyio.sleep(wait * self._random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _list(self) -> None:
        listing = await self._store.list(self.kind, namespace=self._namespace, fields=self._fields)
        self.snapshot.replace({_key(item): self._kept(item) for item in listing.items})
        self._since = listing.revision
        self._size.set(len(self.snapshot))
        self._synced.set()

    async def _watch(self) -> None:
        async with self._store.watch(
            self.kind, since=self._since, namespace=self._namespace, fields=self._fields
        ) as events:
            async for event in events:
                self._see(event)

    def _see(self, event: Event[T]) -> None:
        item = event.object
        if item is not None and event.type is EventType.DELETED:
            self.snapshot.drop(_key(item))
        elif item is not None:
            self.snapshot.put(_key(item), self._kept(item))
        self._since = event.revision
        self._size.set(len(self.snapshot))

    def _kept(self, item: T) -> T:
        return item if self._transform is None else self._transform(item)

    def _count(self, reason: str) -> None:
        metrics.STORE_WATCH_RESTARTS.labels(resource=self.kind.plural, reason=reason).inc()


def _meta(item: object) -> ObjectMeta:
    metadata = getattr(item, "metadata", None)
    assert isinstance(metadata, ObjectMeta)
    return metadata


def _key(item: object) -> Key:
    metadata = _meta(item)
    return metadata.namespace, metadata.name


def _version(item: object) -> tuple[str, str]:
    metadata = _meta(item)
    return metadata.uid, metadata.resource_version
