"""Keeps a snapshot of one kind of object up to date: list, watch, and again when that breaks.

The watch goes on where it broke; only a revision that the store has forgotten costs another list. Every way to fail
waits, longer each time and never as long as the next process, so that a store which comes back is not run over.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from api.kinds import Kind
from runtime.store.port import Busy, Denied, Event, EventType, Expired, Invalid, NotFound, Store, StoreError
from runtime.store.snapshot import Snapshot, key_of
from telemetry import metrics

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
"""Seconds after the first failure."""

LONGEST_PAUSE = 30.0
"""Seconds; every failure doubles the pause up to this."""

HEALTHY_AFTER = 10.0
"""Seconds that a watch must have lasted for the next failure to count as the first."""


class Reflector[T]:
    """Follows one kind of object. `run` does the work, in whatever task the owner gives it."""

    def __init__(
        self,
        store: Store,
        kind: Kind[T],
        *,
        random: Random,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        transform: Callable[[T], T | None] | None = None,
        before: Sequence[Kind[T]] = (),
        topic: str = "",
    ) -> None:
        """Ask nothing yet.

        Args:
            store: where the objects are.
            kind: which they are.
            random: spreads the pauses.
            namespace: only this one's; empty for all.
            fields: only those whose fields have these values.
            transform: makes an object smaller before it is kept, or says None of one that is not wanted.
            before: the same kind in older versions, the newest first, for a store that does not have this one.
            topic: what metrics and the log call it; the kind's plural, where it is not given.
        """
        self.snapshot: Snapshot[T] = Snapshot()
        """What is known. Empty until `synced`."""
        self._store = store
        self._kind = kind
        self._kinds = (kind, *before)
        self._topic = topic or kind.plural
        self._random = random
        self._namespace = namespace
        self._fields = fields
        self._transform = transform
        self._versions: dict[str, str] = {}
        self._revision = ""
        self._synced = asyncio.Event()
        self._answered = asyncio.Event()
        self._contact = float("-inf")
        self._failures = 0
        self._error: StoreError | None = None
        self._hurry = asyncio.Event()

    def __repr__(self) -> str:
        state = "synced" if self._synced.is_set() else "not synced"
        return f"<Reflector {self._topic} {state} at {self._revision or '-'}, {self.snapshot!r}>"

    @property
    def kind(self) -> Kind[T]:
        """What is followed."""
        return self._kind

    @property
    def is_synced(self) -> bool:
        """Whether all objects have been listed once."""
        return self._synced.is_set()

    @property
    def error(self) -> StoreError | None:
        """Why the store cannot be followed right now, None when it can."""
        return self._error

    async def synced(self) -> None:
        """Wait until all objects have been listed once."""
        await self._synced.wait()

    async def answered(self) -> None:
        """Wait until all objects have been listed once, or the store has said that we get none of this kind.

        For a kind that a store need not have; `run` goes on asking for it.
        """
        await self._answered.wait()

    def contact_age(self) -> float:
        """Seconds since the store last said anything, infinite before it first did. A quiet watch has bookmarks."""
        return asyncio.get_running_loop().time() - self._contact

    def hurry(self) -> None:
        """There is reason to believe that the store has changed its mind: whoever pauses asks at once."""
        self._failures = 0
        self._hurry.set()

    async def run(self) -> None:
        """List and watch until cancelled. Raises nothing of the store's."""
        while True:
            begin = asyncio.get_running_loop().time()
            try:
                if not self._revision:
                    await self._list()
                await self._watch()
                reason, pause = "closed", 0.0
            except (Expired, Invalid) as error:
                self._revision = ""
                reason, pause = "expired" if isinstance(error, Expired) else "error", self._failed(error)
            except Busy as error:
                reason, pause = "error", max(self._failed(error), error.retry_after * self._random.uniform(1.0, 1.5))
            except NotFound as error:
                if self._try_before():
                    continue
                reason, pause = "error", self._failed(error)
            except StoreError as error:
                reason, pause = "error", self._failed(error)
            metrics.STORE_WATCH_RESTARTS.labels(self._topic, reason).inc()
            if asyncio.get_running_loop().time() - begin >= HEALTHY_AFTER:
                self._failures = 0
            elif reason == "closed":
                pause = self._next_pause()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
            self._hurry.clear()

    def _try_before(self) -> bool:
        """Go on with the next older version of the kind; False when all have been tried, and the newest is next.

        A kind that is not there is listed anew when it comes: what revisions of its last life say is not known.
        """
        at = (self._kinds.index(self._kind) + 1) % len(self._kinds)
        self._kind, self._revision = self._kinds[at], ""
        return at > 0

    async def _list(self) -> None:
        listing = await self._store.list(self._kind, namespace=self._namespace, fields=self._fields)
        items: dict[str, T] = {}
        versions: dict[str, str] = {}
        for item in listing.items:
            key, version = _identity(item)
            kept = self._transform(item) if self._transform else item
            if kept is not None:
                items[key], versions[key] = kept, version
        equal = [key for key, version in versions.items() if self._versions.get(key) == version]
        self.snapshot.replace(items, equal=equal)
        self._versions = versions
        self._heard(listing.revision)
        self._synced.set()
        self._answered.set()

    async def _watch(self) -> None:
        async with self._store.watch(
            self._kind, since=self._revision, namespace=self._namespace, fields=self._fields
        ) as events:
            self._heard(self._revision)
            async for event in events:
                self._take(event)

    def _take(self, event: Event[T]) -> None:
        if event.object is not None:
            key, version = _identity(event.object)
            kept = None
            if event.type in (EventType.ADDED, EventType.MODIFIED):
                kept = self._transform(event.object) if self._transform else event.object
            if kept is None:
                self._versions.pop(key, None)
                self.snapshot.remove(key)
            else:
                self._versions[key] = version
                self.snapshot.put(key, kept)
        self._heard(event.revision)

    def _heard(self, revision: str) -> None:
        self._revision = revision
        self._contact = asyncio.get_running_loop().time()
        if self._error is not None:
            logger.info("following %s again", self._topic)
        self._error = None
        metrics.STORE_CACHED_OBJECTS.labels(self._topic).set(len(self.snapshot))

    def _failed(self, error: StoreError) -> float:
        """Remember a failure, say so once, and return how many seconds to wait."""
        if type(error) is not type(self._error) and not isinstance(error, Expired):
            logger.warning("cannot follow %s: %s: %s", self._topic, type(error).__name__, error)
        self._error = error
        if isinstance(error, (NotFound, Denied)):
            self._answered.set()
        return self._next_pause()

    def _next_pause(self) -> float:
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return pause * self._random.uniform(0.5, 1.0)


def _identity(item: Any) -> tuple[str, str]:
    """Return the key and the resourceVersion of an object."""
    metadata = item.metadata
    return key_of(metadata.name, metadata.namespace), metadata.resource_version
