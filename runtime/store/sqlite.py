"""The store in one SQLite file: the embedded default, for a single machine and for the demo.

Several processes may open the same file. A watch hears of its own process's writes at once and of another's by looking,
20 times a second, whether the file has changed. All calls of SQLite run on one thread of the store's own.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from api.kinds import Kind
from runtime.store import document as rules
from runtime.store.document import Document, Key, Selector
from runtime.store.observe import count, observed
from runtime.store.port import AlreadyExists, Event, EventType, Invalid, Listing, NotFound, StoreError, Unavailable
from runtime.store.sqlite_file import Batch, Change, SQLiteFile

FILE_NAME = "store.sqlite"
"""What the programs call the file, in their state folder."""

_BATCH = 200
"""Changes that a watch reads at a time."""

_BOOKMARK_AFTER = 100
"""A watch that has shown nothing for so many changes says how far it is."""

_SYSTEM: dict[str, str | int] = {"db.system.name": "sqlite"}


class SQLiteStore:
    """`Store` in a file. Not thread safe: one loop uses it, other loops and processes open the file themselves."""

    def __init__(
        self,
        path: str | Path,
        *,
        patience: float = 5.0,
        poll: float = 0.05,
        history: int = 10_000,
        history_bytes: int = 64 << 20,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Open nothing yet: the first request does, and makes the file when there is none.

        Args:
            path: the file, in a folder that exists, on a local file system (two more files lie beside it).
            patience: seconds that a write waits for another process's before it is `Busy`.
            poll: seconds between two looks for another process's writes, while there is a watch.
            history: how many changes a watch may lie behind before it is `Expired`, and
            history_bytes: how many bytes of objects these may be.
            wall: seconds since the epoch, for timestamps.
        """
        self.path = Path(path)
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """How many requests there were, by verb, resource (with ``/status``) and outcome: OK or the error's name."""
        self._poll = poll
        self._wall = wall
        self._limits = {"patience": patience, "history_changes": history, "history_bytes": history_bytes}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite")
        self._file: SQLiteFile | None = None
        self._closed = False
        self._watches: dict[_Watch, None] = {}
        self._poller: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SQLiteStore {self.path}{' closed' if self._closed else ''}, {len(self._watches)} watches>"

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """Read one object. Raises `NotFound`, `Invalid`, `Unavailable`."""
        key = rules.key_of(kind, namespace, name)

        def work(file: SQLiteFile) -> T:
            return rules.decode(kind, _found(key, file.read(key)))

        with observed("get", kind.plural, requests=self.requests, attributes=_SYSTEM):
            return await self._run(work)

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """Read all objects that match, sorted by namespace and name. Raises `Invalid`, `Unavailable`."""
        selector = rules.selector_of(kind, namespace=namespace, fields=fields, labels=labels)

        def work(file: SQLiteFile) -> Listing[T]:
            documents, revision = file.scan(selector)
            return Listing(items=[rules.decode(kind, document) for document in documents], revision=str(revision))

        with observed("list", kind.plural, requests=self.requests, attributes=_SYSTEM):
            return await self._run(work)

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """Store a new object. Raises `AlreadyExists`, `Invalid`, `Busy`, `Unavailable`, `Ambiguous`."""
        document = rules.created(kind, item, uid=str(uuid.uuid4()), wall=self._wall())
        key = rules.key_of(kind, document["metadata"].get("namespace", ""), document["metadata"]["name"])

        def decide(before: bytes | None) -> Document:
            if before is not None:
                msg = f"{key} already exists"
                raise AlreadyExists(msg)
            return document

        with observed("create", kind.plural, requests=self.requests, attributes=_SYSTEM):
            return await self._write(kind, key, decide)

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
        """Apply a JSON merge patch.

        Raises `NotFound`, `Conflict`, `Invalid`, `Busy`, `Unavailable`, `Ambiguous`.
        """
        key = rules.key_of(kind, namespace, name)
        scoped = rules.scoped(kind, change, subresource)

        def decide(before: bytes | None) -> Document | None:
            document: Document = msgspec.json.decode(_found(key, before))
            rules.check(key, document, resource_version=resource_version, uid=uid)
            after = rules.patched(kind, key, document, scoped)
            return None if after is document else after

        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        with observed("patch", resource, requests=self.requests, attributes=_SYSTEM):
            return await self._write(kind, key, decide)

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """See the port. Raises `NotFound`, `Conflict`, `Invalid`, `Busy`, `Unavailable`, `Ambiguous`."""
        whole = rules.whole_status(kind, item, status)

        def decide(before: bytes | None) -> Document | None:
            document: Document = msgspec.json.decode(_found(whole.key, before))
            rules.check(whole.key, document, resource_version=whole.resource_version, uid="")
            after = rules.replaced(document, whole.status)
            return None if after is document else after

        with observed("update", f"{kind.plural}/status", requests=self.requests, attributes=_SYSTEM):
            return await self._write(kind, whole.key, decide)

    async def delete[T](
        self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
    ) -> None:
        """Delete an object, or mark it while it has finalizers.

        Raises `NotFound`, `Conflict`, `Invalid`, `Busy`, `Unavailable`, `Ambiguous`.
        """
        key = rules.key_of(kind, namespace, name)

        def decide(before: bytes | None) -> Document | None:
            document: Document = msgspec.json.decode(_found(key, before))
            rules.check(key, document, resource_version=resource_version, uid=uid)
            after = rules.marked(document, wall=self._wall())
            return None if after is document else after

        with observed("delete", kind.plural, requests=self.requests, attributes=_SYSTEM):
            await self._write(kind, key, decide)

    @asynccontextmanager
    async def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """Follow the changes after `since`. Raises `Expired`, `Invalid`, `Unavailable`."""
        selector = rules.selector_of(kind, namespace=namespace, fields=fields)
        if not since.isdecimal():
            msg = f"{selector.resource}: {since!r} is not the revision of a list"
            raise Invalid(msg)
        watch = _Watch(self._run, selector, int(since))
        code = "OK"
        self._watches[watch] = None
        try:
            await watch.fill()
            if self._poller is None:
                self._poller = asyncio.create_task(self._look_for_changes(), name=f"watch {self.path}")
            yield _Stream(kind, watch)
        except StoreError as error:
            code = type(error).__name__
            raise
        finally:
            count("watch", kind.plural, code, requests=self.requests)
            del self._watches[watch]
            if not self._watches:
                await self._stop_looking()

    async def compact(self) -> None:
        """Forget the history: a watch from any revision but the last raises `Expired`."""
        await self._run(SQLiteFile.compact)

    async def aclose(self) -> None:
        """End the watches and close the file. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for watch in self._watches:
            watch.end()
        await self._stop_looking()
        if self._file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        self._thread.shutdown(wait=False)

    async def _write[T](self, kind: Kind[T], key: Key, decide: Callable[[bytes | None], Document | None]) -> T:
        """Make one change and tell this process's watches of it."""

        def checked(before: bytes | None) -> Document | None:
            after = decide(before)
            if after is not None:
                rules.decode(kind, msgspec.json.encode(after))
            return after

        loop = asyncio.get_running_loop()

        def work(file: SQLiteFile) -> T:
            stored = file.change(key, checked)
            loop.call_soon_threadsafe(self._wake, key.resource)  # from here, since the caller may have been cancelled
            return rules.decode(kind, _found(key, stored))

        return await self._run(work)

    def _wake(self, resource: str) -> None:
        for watch in self._watches:
            if watch.selector.resource == resource:
                watch.wake()

    async def _run[R](self, work: Callable[[SQLiteFile], R]) -> R:
        """Do something with the file, on its thread. Cancelled, the work goes on and its result is lost."""
        if self._closed:
            msg = f"{self.path}: the store is closed"
            raise Unavailable(msg)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._opened()))

    def _opened(self) -> SQLiteFile:
        if self._file is None:
            self._file = SQLiteFile(
                self.path,
                patience=self._limits["patience"],
                history_changes=int(self._limits["history_changes"]),
                history_bytes=int(self._limits["history_bytes"]),
            )
        return self._file

    async def _look_for_changes(self) -> None:
        """Wake the watches when another connection has written. An error is left for the watches to run into."""
        seen = None
        while True:
            try:
                version = await self._run(SQLiteFile.data_version)
            except StoreError:
                version = None
            if version != seen or version is None:
                seen = version
                for watch in self._watches:
                    watch.wake()
            await asyncio.sleep(self._poll)

    async def _stop_looking(self) -> None:
        poller, self._poller = self._poller, None
        if poller is not None:
            poller.cancel()
            await asyncio.gather(poller, return_exceptions=True)


class _Watch:
    """Where one watch is in the history, and how it waits there."""

    def __init__(self, run: "Callable[[Callable[[SQLiteFile], Batch]], Any]", selector: Selector, since: int) -> None:
        self.selector = selector
        self._run = run
        self._cursor = since
        self._shown = since
        self._ready: list[Change | None] = []
        self._woken = asyncio.Event()
        self._ended = False

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    def end(self) -> None:
        """The store closes."""
        self._ended = True
        self._woken.set()

    async def fill(self) -> None:
        """Read on. Raises `Expired`, `Unavailable`."""
        batch: Batch = await self._run(lambda file: file.changes(self.selector, self._cursor, limit=_BATCH))
        self._cursor = batch.revision
        self._ready = [*batch.changes]
        if batch.changes:
            self._shown = batch.changes[-1].revision
        elif self._cursor - self._shown >= _BOOKMARK_AFTER:
            self._shown = self._cursor
            self._ready.append(None)
        if batch.more:
            self._woken.set()

    async def next(self) -> tuple[Change | None, int] | None:
        """Wait for the next change; None in its place is a bookmark, and None alone is the end."""
        while not self._ready:
            if self._ended:
                return None
            await self._woken.wait()
            self._woken.clear()
            if not self._ended:
                await self.fill()
        change = self._ready.pop(0)
        return change, self._shown if change is None else change.revision


class _Stream[T]:
    """A watch as its reader sees it."""

    def __init__(self, kind: Kind[T], watch: _Watch) -> None:
        self._kind = kind
        self._watch = watch

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self

    async def __anext__(self) -> Event[T]:
        taken = await self._watch.next()
        if taken is None:
            raise StopAsyncIteration
        change, revision = taken
        if change is None:
            return Event(type=EventType.BOOKMARK, revision=str(revision))
        return Event(type=change.type, revision=str(revision), object=rules.decode(self._kind, change.document))


def _found(key: Key, document: bytes | None) -> bytes:
    """Insist on a document."""
    if document is None:
        msg = f"{key} not found"
        raise NotFound(msg)
    return document
