"""The envelope: what travels with a message besides its content."""

import asyncio
from typing import Any

from msgspec import Struct
from opentelemetry.context import Context


class Reply:
    """The asker's end of one ask. The answering side calls `resolve` or `fail` once; later calls change nothing."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[Any]) -> None:
        """`future` belongs to the asker's loop, which is also the actor's."""
        self._future = future

    def __repr__(self) -> str:
        return f"<Reply {'done' if self.done else 'pending'}>"

    @property
    def done(self) -> bool:
        """Whether it was answered, or nobody waits any more."""
        return self._future.done()

    def resolve(self, value: object) -> None:
        """Answer with a value."""
        if not self._future.done():
            self._future.set_result(value)

    def fail(self, error: Exception) -> None:
        """Answer with an exception, which `ask` raises."""
        if not self._future.done():
            self._future.set_exception(error)


class Envelope(Struct, frozen=True, kw_only=True):
    """One message on its way. Times are in seconds on the clock port's monotonic scale."""

    message: Any
    queued_at: float
    deadline: float | None = None
    """When the asker gives up; a message that is older when its turn comes is not dealt with."""
    reply: Reply | None = None
    """None for a tell."""
    trace: Context | None = None
    """The sender's trace context: an actor's task has none of its own."""
    key: str = ""
    """Idempotency key, for messages that carry one across processes."""
    chain: tuple[str, ...] = ()
    """Names of the actors that wait for this message's answer, the first asker first."""
