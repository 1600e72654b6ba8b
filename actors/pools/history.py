"""The histories of the pools that this replica writes: who had which address when, in one ConfigMap per pool.

Messages: `Note` from the pools' actors; `Due`, `Kept`, `NotKept` and `Forget` from its own work; `Drain` when the
program ends. State: the changes that are not stored yet, and the page as it was last written. Persists: the ConfigMaps.
Answers: `Drain`, when everything is stored that can be.

A page is written some seconds after a change, with everything that came until then, and the bigger it is the longer
after the last time: a busy pool costs a few kilobytes a second, an idle one nothing. Nobody waits for it, and nothing
is decided from it. Every write demands the resourceVersion of what was read. Where another replica was first, the page
is read again and the changes put into that one, so two owners at a time lose nothing but the order of a moment.

What a crash leaves, await by await: changes that are not stored are lost, those of a write without an answer may be
stored. Whoever reads a page compares it with the pool's records, read after it: what is held and not noted, and what is
noted and no longer held, goes into the history marked as found late. A change that is told twice is in it once.

The ConfigMap belongs to the pool's object, so the cluster removes it with the pool. A store without that gets a sweep.
"""

import hashlib
import logging
from base64 import b64encode
from collections.abc import Callable
from typing import assert_never

import anyio
import msgspec
from msgspec import Struct

from api.core import ConfigMap
from api.ippool import AllocationRecord, decode_records
from api.kinds import CONFIGMAP, IPPOOL
from api.meta import ObjectMeta, OwnerReference
from ipam.history import CHANGES, Book, Change, DamagedPage, decoded, fitted, folded, missed
from runtime.actor import LATER, Actor, Question, Ref
from runtime.envelope import Envelope, Reply
from runtime.errors import ActorError
from runtime.store.port import AlreadyExists, Ambiguous, Conflict, NotFound, Store, StoreError
from telemetry import metrics

_log = logging.getLogger(__name__)

LABELS = {"app.kubernetes.io/part-of": "spiderpool", "spiderpool.spidernet.io/keeps": "address-history"}
"""Of the ConfigMaps."""
KEY = "history"
"""The page's name in one."""
FLUSH_SECONDS = 10.0
"""From the first change to its write, and between two writes, at least."""
BYTES_PER_SECOND = 10_000
"""Of one pool's history in the long run."""
_RETRY_SECONDS = 30.0
_ATTEMPTS = 5
"""Of one write, while others are first."""
_WRITERS = 2
"""Writes under way at a time."""
DRAIN_SECONDS = 2.0
"""For what is not stored yet when the program ends."""
SWEEP_SECONDS = 600.0
_FORGET_SECONDS = 600.0
"""What a page that is not written any more is remembered for."""
_NAME_LIMIT = 253

_written, _conflicting, _failing = (
    metrics.HISTORY_WRITES.labels(outcome) for outcome in ("written", "conflict", "failed")
)


class Note(Struct, frozen=True, tag=True):
    """Changes of a pool that were committed."""

    pool: str
    changes: tuple[Change, ...]


class Due(Struct, frozen=True, tag=True):
    """A pool's page may be written."""

    pool: str


class Page(Struct, frozen=True, tag=True):
    """A history as it is stored."""

    data: bytes
    version: str
    """The ConfigMap's resourceVersion."""


class Kept(Struct, frozen=True, tag=True):
    """The first `count` changes are stored; no page: the pool is gone, and its history with it."""

    pool: str
    page: Page | None
    count: int


class NotKept(Struct, frozen=True, tag=True):
    """They may be or not."""

    pool: str
    error: Exception


class Forget(Struct, frozen=True, tag=True):
    """A page has not been written for long."""

    pool: str


class Drain(Question[bool], frozen=True, tag=True):
    """Store everything now. Answered with whether all of it is."""


Message = Note | Due | Kept | NotKept | Forget | Drain


class _Open(Struct):
    """What is in hand of one pool."""

    pending: list[Change]
    page: Page | None = None
    writing: bool = False
    not_before: float = 0.0
    """When it may be written again, by the monotonic clock."""


class HistoryActor(Actor[Message]):
    """See the module."""

    capacity = 1024

    def __init__(
        self, store: Store, *, namespace: str, spend: Callable[[int], object], missed: set[str] | None = None
    ) -> None:
        """`spend` is told of the bytes that are written; `missed` names pools of which changes were lost on the way."""
        self._store = store
        self._namespace = namespace
        self._spend = spend
        self._missed = missed if missed is not None else set()
        self._pools: dict[str, _Open] = {}
        self._due: dict[str, None] = {}
        self._draining: Reply | None = None

    def __repr__(self) -> str:
        waiting = sum(len(it.pending) for it in self._pools.values())
        return f"<HistoryActor {len(self._pools)} pools, {waiting} changes to store>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Take changes in, and write the pages that are due."""
        match message:
            case Note(pool, changes):
                self._note(pool, changes)
            case Due(pool):
                self._due[pool] = None
            case Kept(pool, page, count):
                self._kept(pool, page, count)
            case NotKept(pool, error):
                _log.warning("the history of pool %s is not stored yet: %s: %s", pool, type(error).__name__, error)
                _failing.inc()
                self._pools[pool].page, self._pools[pool].writing = None, False
                self.timers.start(pool, _RETRY_SECONDS, Due(pool))
            case Forget(pool):
                if pool in self._pools and not self._pools[pool].pending and not self._pools[pool].writing:
                    del self._pools[pool]
            case Drain():
                self._draining = envelope.reply
                self._due |= dict.fromkeys(pool for pool, it in self._pools.items() if it.pending)
            case _:
                assert_never(message)
        self._write_due()
        return LATER if isinstance(message, Drain) else None

    def _note(self, pool: str, changes: tuple[Change, ...]) -> None:
        it = self._pools.setdefault(pool, _Open([]))
        it.pending += changes
        excess = 0 if it.writing else len(it.pending) - CHANGES
        if excess > 0:
            # The store is away for long. The log would not hold them anyway, and the records show what they came to.
            del it.pending[:excess]
            it.page = None
            metrics.HISTORY_CHANGES_DROPPED.inc(excess)
        if not it.writing and not self.timers.running(pool) and pool not in self._due:
            wait = max(FLUSH_SECONDS, it.not_before - self.system.clock.now())
            self.timers.start(pool, wait, Due(pool))

    def _kept(self, pool: str, page: Page | None, count: int) -> None:
        it = self._pools[pool]
        del it.pending[:count]
        it.page, it.writing = page, False
        if page is None:
            it.pending.clear()
        size = _stored_bytes(page.data) if page is not None else 0
        pause = max(FLUSH_SECONDS, size / BYTES_PER_SECOND)
        it.not_before = self.system.clock.now() + pause
        if not it.pending:
            self.timers.start(f"forget/{pool}", _FORGET_SECONDS, Forget(pool))
        elif self._draining is not None:
            self._due[pool] = None
        else:
            self.timers.start(pool, pause, Due(pool))

    def _write_due(self) -> None:
        writing = sum(it.writing for it in self._pools.values())
        for pool in list(self._due):
            if writing >= _WRITERS:
                return
            del self._due[pool]
            it = self._pools.get(pool)
            if it is not None and it.pending and not it.writing:
                self._begin(pool, it)
                writing += 1
        if self._draining is not None and not writing:
            self._draining.resolve(not any(it.pending for it in self._pools.values()))
            self._draining = None

    def _begin(self, pool: str, it: _Open) -> None:
        it.writing = True
        self.timers.cancel(pool)
        self.timers.cancel(f"forget/{pool}")
        if pool in self._missed:
            self._missed.discard(pool)
            it.page = None
        changes = tuple(it.pending)
        self.pipe(
            self._keep(pool, it.page, changes),
            lambda page: Kept(pool, page, len(changes)),
            failed=lambda error: NotKept(pool, error),
        )

    async def _keep(self, pool: str, page: Page | None, changes: tuple[Change, ...]) -> Page | None:
        """Store the changes; returns the page that holds them, None where the pool is gone. Raises `StoreError`."""
        attempt = 0
        while True:
            attempt += 1
            try:
                if page is not None:
                    return await self._replace(pool, page, folded(_book(pool, page.data), changes))
                return await self._take_over(pool, changes)
            except (Conflict, AlreadyExists, Ambiguous, NotFound) as error:
                # Another owner's, or our own without an answer; or it was removed. What is there now will tell.
                if attempt >= _ATTEMPTS:
                    raise
                if not isinstance(error, NotFound):
                    _conflicting.inc()
                page = None

    async def _take_over(self, pool: str, changes: tuple[Change, ...]) -> Page | None:
        """The same where it is not known what is stored."""
        name = name_of(pool)
        try:
            found = await self._store.get(CONFIGMAP, name, namespace=self._namespace)
        except NotFound:
            found = None
        looked = self.system.clock.wall()
        try:
            spider = await self._store.get(IPPOOL, pool)
        except NotFound:
            return None
        uid = spider.metadata.uid
        owner = OwnerReference(api_version=IPPOOL.api_version, kind=IPPOOL.kind, name=pool, uid=uid)
        ours = found is not None and any(owner.uid == uid for owner in found.metadata.owner_references)
        before = found.binary_data.get(KEY, b"") if found is not None and ours else b""
        book = folded(_book(pool, before) if before else Book(), changes)
        records = _records(pool, spider.status.allocated_ips)
        if records is not None:
            late = missed(book, records, at=looked, but=[change.ip for change in changes])
            book = folded(book, late)
        if found is not None and ours:
            return await self._replace(pool, Page(before, found.metadata.resource_version), book)
        data = fitted(book)
        if found is not None:  # of an earlier pool of the name
            change = {"ownerReferences": [msgspec.to_builtins(owner)], "labels": LABELS}
            stored = await self._patch(name, found.metadata.resource_version, data, metadata=change)
        else:
            meta = ObjectMeta(name=name, namespace=self._namespace, labels=LABELS, owner_references=[owner])
            stored = await self._store.create(CONFIGMAP, ConfigMap(metadata=meta, binary_data={KEY: data}))
        return self._count(data, stored)

    async def _replace(self, pool: str, page: Page, book: Book) -> Page:
        data = fitted(book)
        if data == page.data:
            return page
        stored = await self._patch(name_of(pool), page.version, data)
        return self._count(data, stored)

    async def _patch(self, name: str, version: str, data: bytes, **others: object) -> ConfigMap:
        change = {"binaryData": {KEY: b64encode(data).decode()}, **others}
        return await self._store.patch(CONFIGMAP, name, change, namespace=self._namespace, resource_version=version)

    def _count(self, data: bytes, stored: ConfigMap) -> Page:
        size = _stored_bytes(data)
        _written.inc()
        metrics.HISTORY_BYTES.inc(size)
        self._spend(size)
        return Page(data, stored.metadata.resource_version)


class Histories:
    """The way to the history of every pool, for their actors."""

    def __init__(self) -> None:
        """Nobody listens before `ref` is set."""
        self.ref: Ref[Message] | None = None
        self.missed: set[str] = set()
        """Pools of which changes were lost on the way."""

    def __repr__(self) -> str:
        return f"<Histories {self.ref}>"

    def noted(self, pool: str, changes: tuple[Change, ...]) -> None:
        """Changes of a pool were committed. Does not raise and does not wait."""
        if self.ref is None:
            return
        try:
            self.ref.tell(Note(pool, changes))
        except ActorError:
            self.missed.add(pool)
            metrics.HISTORY_CHANGES_DROPPED.inc(len(changes))

    async def run(self) -> None:
        """Wait to be stopped, and store what there is then: before the actor is, and after the pools' actors."""
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await self.drain(DRAIN_SECONDS)

    async def drain(self, seconds: float) -> bool:
        """Have everything stored that can be; returns whether all of it is."""
        if self.ref is None:
            return True
        try:
            return await self.ref.ask(Drain(), timeout=seconds)
        except ActorError:
            return False


async def keep_swept(store: Store, namespace: str) -> None:
    """Sweep from time to time, as long as it is let."""
    while True:
        try:
            await sweep(store, namespace)
        except StoreError as error:
            _log.warning("histories of pools that are gone are not removed: %s", error)
        await anyio.sleep(SWEEP_SECONDS)


async def sweep(store: Store, namespace: str) -> None:
    """Remove the histories of pools that are gone, from a store that does not do so by itself. Raises `StoreError`."""
    kept = (await store.list(CONFIGMAP, namespace=namespace, labels=LABELS)).items
    uids = {pool.metadata.uid for pool in (await store.list(IPPOOL)).items} if kept else set()
    for item in kept:
        if not any(owner.uid in uids for owner in item.metadata.owner_references):
            try:
                await store.delete(CONFIGMAP, item.metadata.name, namespace=namespace, uid=item.metadata.uid)
            except (NotFound, Conflict):
                continue


def name_of(pool: str) -> str:
    """The ConfigMap's."""
    name = f"spiderpool-history.{pool}"
    if len(name) <= _NAME_LIMIT:
        return name
    return f"{name[: _NAME_LIMIT - 17].rstrip('.-')}.{hashlib.sha256(pool.encode()).hexdigest()[:16]}"


def _stored_bytes(data: bytes) -> int:
    return len(data) * 4 // 3


def _book(pool: str, data: bytes) -> Book:
    try:
        return decoded(data)
    except DamagedPage as error:
        _log.warning("the history of pool %s cannot be read, and begins anew: %s", pool, error)
        return Book()


def _records(pool: str, text: str | None) -> dict[str, AllocationRecord] | None:
    try:
        return decode_records(text)
    except ValueError as error:
        _log.warning("the records of pool %s cannot be compared with its history: %s", pool, error)
        return None
