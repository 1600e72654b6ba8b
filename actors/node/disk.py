"""The node's journal as actors see it: a port, and the one on disk behind it."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import anyio
from msgspec import Struct

from cni import journal
from cni.claims import Claims
from cni.errors import TryAgainLater
from cni.journal import JournalEntry, Key
from cni.workers import Workers
from telemetry import traces

_PAUSES_SECONDS = (0.005, 0.25)
"""Between two looks at a claim of another process: the first, and the longest. Only a roll-over has any."""


class Journal(Protocol):
    """What the node built and owes, durable before anybody is answered."""

    async def load(self) -> list[JournalEntry]:
        """Every entry. Another agent of this node may be changing them: what is decided needs a claim and `get`."""
        ...

    def claim(self, container_id: str, *, seconds: float) -> AbstractAsyncContextManager[None]:
        """Keep all other processes away from a container's entries, and from what they stand for, in the block.

        The same process may claim it several times over. Raises `cni.errors.TryAgainLater` when another one has it for
        longer than `seconds`.
        """
        ...

    async def get(self, *keys: Key) -> list[JournalEntry | None]:
        """Entries as they are now, None where there is none."""
        ...

    async def of(self, container_id: str) -> list[JournalEntry]:
        """The entries of one container. Raises `cni.errors.IoFailure`."""
        ...

    async def put(self, entry: JournalEntry) -> None:
        """Write one entry, durable on return unless it is "adding". Raises `cni.errors.IoFailure`."""
        ...

    async def check(self) -> None:
        """Whether entries can be written. Raises `cni.errors.IoFailure`."""
        ...

    async def remove(self, key: Key) -> None:
        """Forget one entry; an unknown one is ignored. Raises `cni.errors.IoFailure`."""
        ...


class _Write(Struct):
    """An entry that is to be written."""

    entry: JournalEntry
    done: bool = False
    failure: Exception | None = None


class DiskJournal:
    """The journal in a directory; the file work happens on a thread of its own.

    Entries that come while others are written are written together next: the disk is waited for once for all of them.
    """

    def __init__(self, entries: journal.Journal, claims: Claims) -> None:
        """They do the file work."""
        self._entries = entries
        self._claims = claims
        self._uses: Counter[str] = Counter()
        self._worker = Workers("journal", threads=1)
        self._writing = anyio.Lock(fast_acquire=True)
        self._waiting: list[_Write] = []

    async def load(self) -> list[JournalEntry]:
        """See `Journal`."""
        await self._worker.run(self._claims.open)
        return list(await self._worker.run(self._entries.load_all))

    @asynccontextmanager
    async def claim(self, container_id: str, *, seconds: float) -> AsyncIterator[None]:
        """See `Journal`."""
        if not self._claims.take(container_id):
            with traces.span("journal.claim"):
                await self._wait_for(container_id, seconds)
        self._uses[container_id] += 1
        try:
            yield
        finally:
            self._uses[container_id] -= 1
            if not self._uses[container_id]:
                del self._uses[container_id]
                self._claims.drop(container_id)

    async def _wait_for(self, container_id: str, seconds: float) -> None:
        pause, longest = _PAUSES_SECONDS
        with anyio.move_on_after(seconds):
            while not self._claims.take(container_id):
                await anyio.sleep(pause)
                pause = min(2 * pause, longest)
            return
        msg = f"container {container_id[:12]}: another agent of this node is at work on it"
        raise TryAgainLater(msg, f"waited {seconds:g} s")

    async def get(self, *keys: Key) -> list[JournalEntry | None]:
        """See `Journal`."""
        return await self._worker.run(self._entries.get_all, keys)

    async def of(self, container_id: str) -> list[JournalEntry]:
        """See `Journal`."""
        return await self._worker.run(self._entries.of, container_id)

    async def put(self, entry: JournalEntry) -> None:
        """See `Journal`."""
        write = _Write(entry)
        self._waiting.append(write)
        try:
            with traces.span("journal.put"):
                async with self._writing:
                    if not write.done:
                        writes, self._waiting = self._waiting, []
                        try:
                            await self._worker.run(self._write, writes)
                        except RuntimeError as error:  # there is no thread for it
                            _settle(writes, [error] * len(writes))
        finally:
            # Who is cancelled may be written already, by somebody who took his entry along.
            if write in self._waiting:
                self._waiting.remove(write)
        if write.failure is not None:
            raise write.failure

    def _write(self, writes: list[_Write]) -> None:
        # On the thread: whoever waits sees the outcome, though the one that called is cancelled meanwhile.
        failures: list[Exception | None]
        try:
            failures = list(self._entries.put_all([write.entry for write in writes]))
        except Exception as error:  # noqa: BLE001 - raised again, to each that waits
            failures = [error] * len(writes)
        _settle(writes, failures)

    async def check(self) -> None:
        """See `Journal`."""
        await self._worker.run(self._entries.check)

    async def remove(self, key: Key) -> None:
        """See `Journal`."""
        with traces.span("journal.remove"):
            await self._worker.run(self._entries.remove, key)


def _settle(writes: Sequence[_Write], failures: Sequence[Exception | None]) -> None:
    for write, failure in zip(writes, failures, strict=True):
        write.done, write.failure = True, failure


def open_journal(state: Path) -> DiskJournal:
    """The journal in a node's state folder. Nothing is touched before `load`."""
    return DiskJournal(journal.Journal(state / "journal"), Claims(state / "journal.lock"))
