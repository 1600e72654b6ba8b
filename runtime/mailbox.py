"""The mailbox: a bounded queue with a lane for internal messages, a gate, and statistics.

A deque and one waiter instead of an anyio stream: that is 10 to 60 times faster, loses nothing when the taker is
cancelled in the tick of a delivery, and can be looked at (depth, age) without taking from it.

Two lanes. The user lane is bounded and carries what others ask; the internal lane carries timers, results of the
actor's own I/O and the order to stop. The internal lane always goes first and is never full. The user lane can be held:
an actor with a write in flight holds it, so that requests pile up here, are counted, are refused when there are too
many, and then go into the next write all together.
"""

import asyncio
from collections import deque

from msgspec import Struct

from runtime.clock import Clock
from runtime.envelope import Envelope
from runtime.errors import ActorStopped, MailboxFull
from telemetry import metrics


class MailboxStatistics(Struct, frozen=True):
    """A look at one mailbox. Ages are in seconds."""

    depth: int
    internal_depth: int
    capacity: int
    oldest_age: float
    held: bool
    delivered: int
    batches: int
    largest_batch: int
    rejected: int
    expired: int


class Mailbox:
    """Queue of `Envelope`s for one actor. Not thread safe: one loop puts and takes."""

    def __init__(self, owner: str, *, capacity: int, clock: Clock) -> None:
        """`capacity` bounds the user lane; `owner` is the actor's name, for error texts."""
        self.owner = owner
        self.kind = ""
        """What the owner is, as the metrics' label; known once it lives."""
        self.capacity = capacity
        self._clock = clock
        self._user: deque[Envelope] = deque()
        self._internal: deque[Envelope] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._held = False
        self._closed = False
        self._delivered = 0
        self._batches = 0
        self._largest_batch = 0
        self._rejected = 0
        self._expired = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "held" if self._held else "open"
        return f"<Mailbox {self.owner} {state}, {len(self._user)} queued, {len(self._internal)} internal>"

    def put_nowait(self, envelope: Envelope) -> None:
        """Queue a message on the user lane.

        Raises `MailboxFull` when the lane is at its capacity and `ActorStopped` when the mailbox is closed.
        """
        if self._closed:
            raise ActorStopped(self.owner)
        if len(self._user) >= self.capacity:
            self._rejected += 1
            metrics.MAILBOX_REJECTIONS.labels(actor=self.kind).inc()
            raise MailboxFull(self.owner, self.capacity)
        self._user.append(envelope)
        if not self._held:
            self._wake()

    def put_internal(self, envelope: Envelope) -> None:
        """Queue a message on the internal lane; dropped silently when the mailbox is closed."""
        if not self._closed:
            self._internal.append(envelope)
            self._wake()

    def hold(self) -> None:
        """Let user messages pile up: `take` hands out internal ones only."""
        self._held = True

    def release(self) -> None:
        """End `hold`."""
        self._held = False
        if self._user:
            self._wake()

    async def wait(self) -> None:
        """Return as soon as `take_nowait` would give something. Cancelling leaves the mailbox unchanged."""
        while not self._internal and (self._held or not self._user):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def take_internal(self) -> Envelope | None:
        """The next internal message, or None."""
        return self._internal.popleft() if self._internal else None

    def take_nowait(self, limit: int) -> list[Envelope]:
        """Up to `limit` user messages in order of arrival, none while held.

        Messages whose deadline has passed are answered with `DeadlineExceeded` by the caller of this method; they are
        counted here through `count_expired`.
        """
        if self._held or not self._user:
            return []
        if limit >= len(self._user):
            batch = list(self._user)
            self._user.clear()
        else:
            batch = [self._user.popleft() for _ in range(limit)]
        self._delivered += len(batch)
        self._batches += 1
        self._largest_batch = max(self._largest_batch, len(batch))
        return batch

    def count_expired(self) -> None:
        """Count one message that nobody waits for any more."""
        self._expired += 1

    def close(self) -> list[Envelope]:
        """Refuse everything from now on and return what was still queued, so that each can be answered."""
        self._closed = True
        left = [*self._internal, *self._user]
        self._internal.clear()
        self._user.clear()
        return left

    def statistics(self) -> MailboxStatistics:
        """Depths, ages and totals since the mailbox was made."""
        oldest = self._clock.now() - self._user[0].queued_at if self._user else 0.0
        return MailboxStatistics(
            depth=len(self._user),
            internal_depth=len(self._internal),
            capacity=self.capacity,
            oldest_age=oldest,
            held=self._held,
            delivered=self._delivered,
            batches=self._batches,
            largest_batch=self._largest_batch,
            rejected=self._rejected,
            expired=self._expired,
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
