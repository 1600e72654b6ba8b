"""Actors: one owner for everything that changes.

An actor is an object whose handlers run one at a time, in the order its mailbox gives. A handler is a plain function:
it cannot await, so it cannot block, and between two handlers the actor's state is always whole. What takes time (a
write to the store, a request to another process) is handed to `Actor.pipe`, and its result comes back as a message.

An actor's task runs in an empty context. Otherwise every span of its life would be a child of whichever span was open
when it was started; the trace context of a message comes in its envelope instead.
"""

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, Protocol, cast

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct
from opentelemetry import context as otel
from prometheus_client import Histogram

from runtime.clock import Clock, SystemClock
from runtime.envelope import Envelope, Reply
from runtime.errors import ActorStopped, AskCycle, AskTimeout
from runtime.mailbox import Mailbox, MailboxStatistics
from runtime.timers import Timers
from telemetry import metrics
from telemetry.health import HealthTree

_FAIRNESS = 64
"""After so many messages in a row an actor lets the rest of the loop run."""


class Question[R](Struct, frozen=True):
    """Base of messages that are asked; `R` is the type of the answer. Messages that are told need no base."""


class _Later:
    """The type of `LATER`."""

    def __repr__(self) -> str:
        return "LATER"


LATER = _Later()
"""Returned by a handler that keeps `envelope.reply` and answers it in a later handler."""


class Stop(Struct, frozen=True):
    """Internal: finish what is in hand and end."""


class Observer(Protocol):
    """Sees every message at the moment an actor takes it: for event hashes, message logs and simulation."""

    def delivered(self, actor: str, message: object) -> None:
        """`message` is about to be handled by `actor`."""
        ...


class System(Struct, frozen=True):
    """What every actor of a process is given instead of globals: the ports."""

    clock: Clock
    random: random.Random
    observer: Observer | None = None
    health: HealthTree | None = None
    """Where supervisors report their children."""

    @classmethod
    def real(cls, *, health: HealthTree | None = None) -> "System":
        """The machine's clock and an unseeded source of randomness."""
        return cls(clock=SystemClock(), random=random.Random(), health=health)  # noqa: S311  (jitter, not secrets)


class _Behalf(Struct, frozen=True):
    chain: tuple[str, ...]
    deadline: float | None


_behalf: contextvars.ContextVar[_Behalf | None] = contextvars.ContextVar("spiderpool_behalf", default=None)
"""On whose behalf the running code works: the ask chain so far and when its first asker gives up."""


def working_until() -> float | None:
    """When the first asker of the work that runs now gives up (clock port); None where nobody's message is worked on.

    For work that asks through other means than a `Ref`, which keeps to this by itself.
    """
    behalf = _behalf.get()
    return behalf.deadline if behalf is not None else None


class Ref[M]:
    """How others reach an actor. It stays valid over restarts of the actor."""

    __slots__ = ("_mailbox", "_system", "name")

    def __init__(self, name: str, mailbox: Mailbox, system: System) -> None:
        """`name` is the path of the actor, for example ``controller/ippools/blue``."""
        self.name = name
        self._mailbox = mailbox
        self._system = system

    def __repr__(self) -> str:
        return f"<Ref {self.name}>"

    def tell(self, message: M, *, key: str = "") -> None:
        """Send without waiting for an answer.

        Raises `MailboxFull` or `ActorStopped`; then the message was not queued.
        """
        behalf = _behalf.get()
        self._mailbox.put_nowait(
            Envelope(
                message=message,
                queued_at=self._system.clock.now(),
                trace=otel.get_current(),
                key=key,
                chain=behalf.chain if behalf else (),
            )
        )

    async def ask[R](
        self, message: Question[R], *, timeout: float | None = None, deadline: float | None = None, key: str = ""
    ) -> R:
        """Send and wait for the answer.

        There is always a deadline: the nearest of `timeout` (seconds from now), `deadline` (on the clock port) and the
        one under which the caller itself works. Raises `AskTimeout`, `MailboxFull`, `ActorStopped`, `AskCycle`, and
        whatever the actor answers with. Cancelling leaves a message that has not been taken undone; one that has
        been taken is carried through, its answer dropped.
        """
        behalf = _behalf.get()
        chain = behalf.chain if behalf else ()
        if self.name in chain:
            raise AskCycle((*chain, self.name))
        now = self._system.clock.now()
        ends = [d for d in (deadline, behalf.deadline if behalf else None) if d is not None]
        if timeout is not None:
            ends.append(now + timeout)
        if not ends:
            msg = f"ask of {self.name} needs a timeout or a deadline"
            raise ValueError(msg)
        end = min(ends)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._mailbox.put_nowait(
            Envelope(
                message=message,
                queued_at=now,
                deadline=end,
                reply=Reply(future),
                trace=otel.get_current(),
                key=key,
                chain=chain,
            )
        )
        timer = loop.call_later(max(0.0, end - now), _expire, future, self.name, end - now)
        try:
            return cast("R", await future)
        finally:
            timer.cancel()

    def statistics(self) -> MailboxStatistics:
        """A look at the mailbox."""
        return self._mailbox.statistics()


def _expire(future: asyncio.Future[Any], actor: str, seconds: float) -> None:
    if not future.done():
        future.set_exception(AskTimeout(actor, seconds))


class Actor[M]:
    """Base class. Subclasses define `handle` over their closed union of messages `M`.

    Hooks (`started`, `handle`, `handle_batch`, `stopped`) run on the actor's own task, one at a time.
    """

    batch: int = 1
    """Largest number of user messages taken at once. Above 1, `handle_batch` gets them instead of `handle`. An actor
    may change it while it runs, but not to 1 or from it."""
    capacity: ClassVar[int] = 1024
    """Bound of the mailbox's user lane."""

    ref: Ref[M]
    system: System
    timers: Timers
    _cell: "Cell[M]"

    def started(self) -> None:
        """Called before the first message of a life, also after a restart."""

    def handle(self, message: M, envelope: Envelope) -> object:
        """Deal with one message and return the answer, or `LATER` to answer through `envelope.reply` another time.

        An exception goes to the asker; where nobody asked, it goes to the supervisor and ends this life.
        """
        raise NotImplementedError

    def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Deal with several user messages at once; each must be answered through its `reply`, now or later.

        An exception is answered to every asker of the batch and ends this life.
        """
        raise NotImplementedError

    def stopped(self) -> None:
        """Called at the end of a life that ends in order, before unanswered asks get `ActorStopped`."""

    def pipe[T](
        self,
        work: Coroutine[Any, Any, T],
        done: Callable[[T], M],
        *,
        failed: Callable[[Exception], M] | None = None,
        on_behalf: Envelope | None = None,
    ) -> None:
        """Run `work` beside the actor and send it `done(result)` or `failed(error)` as an internal message.

        Without `failed` an exception ends this life of the actor. `on_behalf` lends the work that message's trace
        context, ask chain and deadline. The work is cancelled when the actor stops.
        """
        self._cell.pipe(work, done, failed, on_behalf)

    def hold(self) -> None:
        """Let user messages pile up in the mailbox; internal ones still come."""
        self._cell.mailbox.hold()

    def release(self) -> None:
        """End `hold`."""
        self._cell.mailbox.release()


class Cell[M]:
    """The body of an actor: mailbox, task and outstanding replies. Made and run by a supervisor."""

    def __init__(self, name: str, factory: Callable[[], Actor[M]], system: System, *, capacity: int) -> None:
        """`factory` makes a new actor for every life."""
        self.name = name
        self.system = system
        self.mailbox = Mailbox(name, capacity=capacity, clock=system.clock)
        self.ref: Ref[M] = Ref(name, self.mailbox, system)
        self._factory = factory
        self._group: TaskGroup | None = None
        self._pending: dict[int, Reply] = {}
        self._waits: Histogram
        self._batches: Histogram

    def request_stop(self) -> None:
        """Ask for an orderly end: the message in hand is the last."""
        self.mailbox.put_internal(Envelope(message=Stop(), queued_at=self.system.clock.now()))

    def close(self) -> None:
        """Answer everything still queued or unanswered with `ActorStopped` and refuse new messages."""
        for envelope in self.mailbox.close():
            if envelope.reply is not None:
                envelope.reply.fail(ActorStopped(self.name))
        self._fail_pending()

    async def run(self) -> None:
        """Live one life: until `request_stop`, or an exception that nobody asked for."""
        actor = self._factory()
        self.mailbox.kind = kind = type(actor).__name__.removesuffix("Actor").lower()
        self._waits = metrics.MAILBOX_WAIT_SECONDS.labels(actor=kind)
        self._batches = metrics.MAILBOX_BATCH_SIZE.labels(actor=kind)
        actor.ref = self.ref
        actor.system = self.system
        actor.timers = Timers(self._timer_fired)
        actor._cell = self  # noqa: SLF001 - body and actor are one
        self.mailbox.release()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                actor.started()
                await self._loop(actor)
                actor.stopped()
                group.cancel_scope.cancel()
        except BaseExceptionGroup as group_error:
            # One child of a task group with one failure: the supervisor wants the cause, not the wrapping.
            if len(group_error.exceptions) == 1:
                raise group_error.exceptions[0] from None
            raise
        finally:
            self._group = None
            actor.timers.cancel_all()
            self._fail_pending()

    async def _loop(self, actor: Actor[M]) -> None:
        spent = 0
        while True:
            await self.mailbox.wait()
            internal = self.mailbox.take_internal()
            if internal is not None:
                if isinstance(internal.message, Stop):
                    return
                self._deliver(actor, internal)
            elif actor.batch > 1:
                batch = [e for e in self.mailbox.take_nowait(actor.batch) if self._wanted(e)]
                if batch:
                    self._batches.observe(len(batch))
                    self._deliver_batch(actor, batch)
            else:
                for envelope in self.mailbox.take_nowait(1):
                    if self._wanted(envelope):
                        self._deliver(actor, envelope)
            spent += 1
            if spent >= _FAIRNESS:
                spent = 0
                await asyncio.sleep(0)

    def _wanted(self, envelope: Envelope) -> bool:
        """Whether somebody still waits for the answer; tells are always wanted."""
        if envelope.reply is not None and envelope.reply.done:
            self.mailbox.count_expired()
            return False
        self._waits.observe(self.system.clock.now() - envelope.queued_at)
        if envelope.reply is not None:
            self._pending[id(envelope.reply)] = envelope.reply
            if len(self._pending) > 2 * self.mailbox.capacity:
                self._pending = {key: reply for key, reply in self._pending.items() if not reply.done}
        return True

    def _deliver(self, actor: Actor[M], envelope: Envelope) -> None:
        if self.system.observer is not None:
            self.system.observer.delivered(self.name, envelope.message)
        token = otel.attach(envelope.trace) if envelope.trace is not None else None
        try:
            answer = actor.handle(envelope.message, envelope)
        except Exception as error:
            if envelope.reply is None:
                raise
            envelope.reply.fail(error)
        else:
            if envelope.reply is not None and answer is not LATER:
                envelope.reply.resolve(answer)
        finally:
            if token is not None:
                otel.detach(token)
        if envelope.reply is not None and envelope.reply.done:
            self._pending.pop(id(envelope.reply), None)

    def _deliver_batch(self, actor: Actor[M], batch: list[Envelope]) -> None:
        if self.system.observer is not None:
            for envelope in batch:
                self.system.observer.delivered(self.name, envelope.message)
        try:
            actor.handle_batch(batch)
        except Exception as error:
            for envelope in batch:
                if envelope.reply is not None:
                    envelope.reply.fail(error)
            raise

    def pipe[T](
        self,
        work: Coroutine[Any, Any, T],
        done: Callable[[T], M],
        failed: Callable[[Exception], M] | None,
        on_behalf: Envelope | None,
    ) -> None:
        """See `Actor.pipe`."""
        if self._group is None:
            work.close()
            return
        context = contextvars.Context()
        if on_behalf is not None:
            context.run(_behalf.set, _Behalf((*on_behalf.chain, self.name), on_behalf.deadline))
            if on_behalf.trace is not None:
                context.run(otel.attach, on_behalf.trace)
        _ = context.run(self._group.start_soon, self._piped, work, done, failed)

    async def _piped[T](
        self,
        work: Coroutine[Any, Any, T],
        done: Callable[[T], M],
        failed: Callable[[Exception], M] | None,
    ) -> None:
        try:
            result = await work
        except Exception as error:
            if failed is None:
                raise
            message = failed(error)
        else:
            message = done(result)
        self.mailbox.put_internal(Envelope(message=message, queued_at=self.system.clock.now()))

    def _timer_fired(self, message: object) -> None:
        self.mailbox.put_internal(Envelope(message=message, queued_at=self.system.clock.now()))

    def _fail_pending(self) -> None:
        pending, self._pending = self._pending, {}
        for reply in pending.values():
            reply.fail(ActorStopped(self.name))
