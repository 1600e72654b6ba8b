"""The node's journal as actors see it: a port, and the one on disk behind it."""

from typing import Protocol

import anyio
import anyio.to_thread

from cni import journal
from cni.journal import JournalEntry, Key
from telemetry import traces


class Journal(Protocol):
    """What the node built and owes, durable before anybody is answered."""

    async def load(self) -> list[JournalEntry]:
        """Every entry."""
        ...

    async def put(self, entry: JournalEntry) -> None:
        """Write one entry, durable on return. Raises `cni.errors.IoFailure`."""
        ...

    async def remove(self, key: Key) -> None:
        """Forget one entry; an unknown one is ignored. Raises `cni.errors.IoFailure`."""
        ...


class DiskJournal:
    """The journal in a directory; the file work happens on worker threads."""

    def __init__(self, entries: journal.Journal) -> None:
        """`entries` does the file work."""
        self._entries = entries

    async def load(self) -> list[JournalEntry]:
        """See `Journal`."""
        return list(await anyio.to_thread.run_sync(self._entries.load_all))

    async def put(self, entry: JournalEntry) -> None:
        """See `Journal`."""
        with traces.span("journal.put"):
            await anyio.to_thread.run_sync(self._entries.put, entry)

    async def remove(self, key: Key) -> None:
        """See `Journal`."""
        with traces.span("journal.remove"):
            await anyio.to_thread.run_sync(self._entries.remove, key)
