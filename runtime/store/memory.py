"""The store in memory, for simulation: deterministic, without threads and without a clock of its own.

Every method does its work in one step of the loop, without an await in it: a caller sees the store before or after a
write and never in between. Delays, losses and duplicates come from the wrapper `runtime.testing.store.FaultyStore`.
uids and resourceVersions are counters, so equal runs give equal documents. Watches are indexed by the values of their
field selector: 5,000 simulated nodes that watch their own pods cost one look-up for each change, not 5,000.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from msgspec import Struct

from api.kinds import Kind
from api.meta import ObjectMeta
from runtime.store import document as rules
from runtime.store.document import Document, Key, Selector
from runtime.store.port import AlreadyExists, Event, EventType, Expired, Invalid, Listing, NotFound

type _Index = dict[tuple[str, ...], dict[tuple[str, ...], dict[_Watch, None]]]
"""Watches of one resource, by the names and then the values of the fields they select by (dicts keep their order)."""


class _Record:
    """One version of one object. Decoded at most once for each type: the Structs are frozen and may be shared."""

    __slots__ = ("_decoded", "_document", "_kind")

    def __init__(self, document: Document | None, kind: Kind[Any] | None = None, item: Any = None) -> None:
        """With `item` instead of a document, of its `kind`: the document is made when somebody wants it."""
        self._document = document
        self._kind = kind
        self._decoded: dict[Any, Any] = {} if kind is None else {kind.type: item}

    @property
    def document(self) -> Document:
        if self._document is None:
            assert self._kind is not None
            self._document = rules.whole_document(self._kind, self._decoded[self._kind.type])
        return self._document

    def decode[T](self, kind: Kind[T]) -> T:
        if kind.type not in self._decoded:
            self._decoded[kind.type] = rules.converted(kind, self.document)
        item: T = self._decoded[kind.type]
        return item


class _Change:
    """One line of the history. `gone` is the last state of what a watch lost, with the revision that took it."""

    __slots__ = ("after", "before", "gone", "resource", "revision")

    def __init__(self, *, revision: int, resource: str, before: _Record | None, after: _Record | None) -> None:
        self.revision = revision
        self.resource = resource
        self.before = before
        self.after = after
        self.gone = None if before is None else _Record(rules.stamped(before.document, revision))

    def sees(self, selector: Selector) -> tuple[EventType, _Record] | None:
        """Say what a watch with this selector shows for the change."""
        before = self.before.document if self.before else None
        kind = selector.sees(before, self.after.document if self.after else None)
        record = self.gone if kind is EventType.DELETED else self.after
        return None if kind is None or record is None else (kind, record)


class _Watch:
    """One open stream: what is queued for it, and the future it waits on."""

    def __init__(self, selector: Selector, capacity: int) -> None:
        self.selector = selector
        names = {"metadata.namespace": selector.namespace} if selector.namespace else {}
        wanted = sorted({**names, **dict(selector.fields)}.items())
        self.names = tuple(name for name, _ in wanted)
        self.values = tuple(value for _, value in wanted)
        self.ended = False
        self.expired = False
        self._capacity = capacity
        self._queue: deque[tuple[EventType, int, _Record | None]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, event: EventType, revision: int, record: _Record | None) -> None:
        """Queue one event. A stream that lags by more than its capacity has expired, as on a compacted store."""
        if len(self._queue) >= self._capacity:
            self.expired = True
            self._queue.clear()
        if not self.expired:
            self._queue.append((event, revision, record))
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> tuple[EventType, int, _Record | None] | None:
        """Take the next event, or None when the store has ended the stream. Raises `Expired`."""
        while not self._queue:
            if self.expired:
                msg = f"{self.selector.resource}: the watch fell behind by more than the history holds"
                raise Expired(msg)
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()


class _Stream[T]:
    """A watch as its reader sees it: an iterator that needs no closing."""

    def __init__(self, kind: Kind[T], watch: _Watch) -> None:
        self._kind = kind
        self._watch = watch

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self

    async def __anext__(self) -> Event[T]:
        taken = await self._watch.next()
        if taken is None:
            raise StopAsyncIteration
        event, revision, record = taken
        return Event(type=event, revision=str(revision), object=None if record is None else record.decode(self._kind))


class MemoryStore:
    """`Store` in this process's memory. Not thread safe: one loop uses it."""

    def __init__(
        self, *, history: int = 10_000, bookmark_every: int = 100, wall: Callable[[], float] = lambda: 0.0
    ) -> None:
        """Make an empty store.

        `history` is the number of changes that a watch may lie behind, `bookmark_every` the number of changes after
        which every watch of the resource learns the revision; `wall` gives seconds since the epoch for timestamps.
        """
        self.requests: Counter[str] = Counter()
        """How many calls came, by verb and plural: ``patch spiderippools``. Counted before they are judged."""
        self._history_limit = history
        self._bookmark_every = bookmark_every
        self._wall = wall
        self._revision = 1
        self._compacted = 0
        self._uids = 0
        self._records: dict[str, dict[Key, _Record]] = {}
        self._history: deque[_Change] = deque()
        self._watches: dict[str, _Index] = {}

    def __repr__(self) -> str:
        objects = sum(len(records) for records in self._records.values())
        return f"<MemoryStore revision {self._revision}, {objects} objects, {len(self._history)} changes>"

    @property
    def revision(self) -> int:
        """The number of the last change."""
        return self._revision

    def peek[T](self, kind: Kind[T]) -> list[T]:
        """Read all objects of a kind at once and uncounted, sorted by namespace and name: for invariants in tests."""
        records = self._records.get(rules.resource_of(kind), {})
        return [records[key].decode(kind) for key in sorted(records)]

    def documents(self, kind: Kind[Any]) -> list[Document]:
        """Like `peek`, but the documents as stored. Not to be changed."""
        records = self._records.get(rules.resource_of(kind), {})
        return [records[key].document for key in sorted(records)]

    def adopt[T](self, kind: Kind[T], items: Iterable[T]) -> None:
        """Take in objects as they are, uid and resourceVersion included: a world that was there before anybody looked.

        Costs a twentieth of creating them, and is no request. No watch is told: before the first one. Raises
        `AlreadyExists` and `Invalid`; what came before that is taken in.
        """
        records = self._records.setdefault(rules.resource_of(kind), {})
        for item in items:
            metadata: ObjectMeta = item.metadata  # type: ignore[attr-defined]
            key = rules.key_of(kind, metadata.namespace, metadata.name)
            if key in records:
                msg = f"{key} already exists"
                raise AlreadyExists(msg)
            records[key] = _Record(None, kind, item)

    def compact(self) -> None:
        """Forget the history: a watch from any revision but the last raises `Expired`. Open watches go on."""
        self._history.clear()
        self._compacted = self._revision

    def end_watches(self) -> None:
        """End every open watch after what is queued for it, as an API server does that restarts."""
        for index in self._watches.values():
            for groups in index.values():
                for group in groups.values():
                    for watch in group:
                        watch.ended = True
                        watch.wake()

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """Read one object. Raises `NotFound`, `Invalid`."""
        self.requests[f"get {kind.plural}"] += 1
        return self._find(kind, rules.key_of(kind, namespace, name)).decode(kind)

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """Read all objects that match, sorted by namespace and name. Raises `Invalid`."""
        self.requests[f"list {kind.plural}"] += 1
        selector = rules.selector_of(kind, namespace=namespace, fields=fields, labels=labels)
        records = self._records.get(selector.resource, {})
        chosen: Iterable[Key] = records
        if selector.namespace or selector.fields or selector.labels:
            chosen = [key for key, record in records.items() if selector.matches(record.document)]
        return Listing(items=[records[key].decode(kind) for key in sorted(chosen)], revision=str(self._revision))

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """Store a new object. Raises `AlreadyExists`, `Invalid`."""
        self.requests[f"create {kind.plural}"] += 1
        uid = f"00000000-0000-4000-8000-{self._uids + 1:012x}"
        document = rules.created(kind, item, uid=uid, wall=self._wall())
        metadata = document["metadata"]
        key = rules.key_of(kind, metadata.get("namespace", ""), metadata["name"])
        if key in self._records.get(key.resource, {}):
            msg = f"{key} already exists"
            raise AlreadyExists(msg)
        record = _Record(rules.stamped(document, self._revision + 1))
        stored = record.decode(kind)
        self._uids += 1
        self._commit(key, None, record)
        return stored

    async def patch[T](
        self,
        kind: Kind[T],
        name: str,
        change: Mapping[str, Any],
        *,
        namespace: str = "",
        subresource: str = "",
        resource_version: str = "",
        uid: str = "",
    ) -> T:
        """Apply a JSON merge patch. Raises `NotFound`, `Conflict`, `Invalid`."""
        self.requests[f"patch {kind.plural}{'/' if subresource else ''}{subresource}"] += 1
        key = rules.key_of(kind, namespace, name)
        scoped = rules.scoped(kind, change, subresource)
        before = self._find(kind, key)
        rules.check(key, before.document, resource_version=resource_version, uid=uid)
        return self._change(kind, key, before, rules.patched(kind, key, before.document, scoped))

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """See the port. Raises `NotFound`, `Conflict`, `Invalid`."""
        self.requests[f"update {kind.plural}/status"] += 1
        whole = rules.whole_status(kind, item, status)
        before = self._find(kind, whole.key)
        rules.check(whole.key, before.document, resource_version=whole.resource_version, uid="")
        return self._change(kind, whole.key, before, rules.replaced(before.document, whole.status))

    def _change[T](self, kind: Kind[T], key: Key, before: _Record, after: Document) -> T:
        """Put a document in the place of the one that was there; the same one is no change."""
        if after is before.document:
            return before.decode(kind)
        record = _Record(rules.stamped(after, self._revision + 1))
        stored = record.decode(kind)
        self._commit(key, before, None if rules.is_final(after) else record)
        return stored

    async def delete[T](
        self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
    ) -> None:
        """Delete an object, or mark it while it has finalizers. Raises `NotFound`, `Conflict`, `Invalid`."""
        self.requests[f"delete {kind.plural}"] += 1
        key = rules.key_of(kind, namespace, name)
        before = self._find(kind, key)
        rules.check(key, before.document, resource_version=resource_version, uid=uid)
        if not before.document["metadata"].get("finalizers"):
            self._commit(key, before, None)
            return
        after = rules.marked(before.document, wall=self._wall())
        if after is not before.document:
            self._commit(key, before, _Record(rules.stamped(after, self._revision + 1)))

    @asynccontextmanager
    async def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """Follow the changes after `since`. Raises `Expired`, `Invalid`."""
        self.requests[f"watch {kind.plural}"] += 1
        watch = _Watch(rules.selector_of(kind, namespace=namespace, fields=fields), self._history_limit)
        self._catch_up(watch, since)
        groups = self._watches.setdefault(watch.selector.resource, {}).setdefault(watch.names, {})
        groups.setdefault(watch.values, {})[watch] = None
        try:
            yield _Stream(kind, watch)
        finally:
            del groups[watch.values][watch]
            if not groups[watch.values]:
                del groups[watch.values]

    async def aclose(self) -> None:
        """End all watches; the objects stay, so that another simulated process can go on with them."""
        self.end_watches()

    def _catch_up(self, watch: _Watch, since: str) -> None:
        """Queue what happened after `since`. Raises `Expired` when that is not held (any more)."""
        if not since.isdecimal():
            msg = f"{watch.selector.resource}: {since!r} is not the revision of a list"
            raise Invalid(msg)
        if not self._compacted <= int(since) <= self._revision:
            msg = f"{watch.selector.resource}: revision {since} is not in {self._compacted}..{self._revision}"
            raise Expired(msg)
        missed: deque[_Change] = deque()
        for change in reversed(self._history):
            if change.revision <= int(since):
                break
            missed.appendleft(change)
        for change in missed:
            seen = change.sees(watch.selector) if change.resource == watch.selector.resource else None
            if seen is not None:
                watch.push(seen[0], change.revision, seen[1])

    def _find(self, kind: Kind[Any], key: Key) -> _Record:
        record = self._records.get(key.resource, {}).get(key)
        if record is None:
            msg = f"{kind.kind} {key} not found"
            raise NotFound(msg)
        return record

    def _commit(self, key: Key, before: _Record | None, after: _Record | None) -> None:
        """Make one change, remember it, and tell the watches."""
        self._revision += 1
        records = self._records.setdefault(key.resource, {})
        if after is None:
            del records[key]
        else:
            records[key] = after
        change = _Change(revision=self._revision, resource=key.resource, before=before, after=after)
        self._history.append(change)
        while len(self._history) > self._history_limit:
            self._compacted = self._history.popleft().revision
        for names, groups in self._watches.get(key.resource, {}).items():
            self._tell(change, names, groups)

    def _tell(self, change: _Change, names: tuple[str, ...], groups: dict[tuple[str, ...], dict[_Watch, None]]) -> None:
        """Queue a change for the watches that select by these fields."""
        was, now = _values(change.before, names), _values(change.after, names)
        if change.gone is not None and was != now:
            for watch in groups.get(was or (), ()):
                watch.push(EventType.DELETED, change.revision, change.gone)
        if change.after is not None:
            event = EventType.MODIFIED if was == now else EventType.ADDED
            for watch in groups.get(now or (), ()):
                watch.push(event, change.revision, change.after)
        if change.revision % self._bookmark_every == 0:
            for group in groups.values():
                for watch in group:
                    watch.push(EventType.BOOKMARK, change.revision, None)


def _values(record: _Record | None, names: tuple[str, ...]) -> tuple[str, ...] | None:
    return None if record is None else tuple(rules.field(record.document, name) for name in names)
