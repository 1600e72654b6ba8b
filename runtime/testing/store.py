"""A store whose requests go wrong, to put between an actor and the store that it believes in.

`FaultyStore` is one process's connection: give every simulated process its own, all over one shared `MemoryStore`. What
happens to a request is decided by a policy from a seeded `random.Random`, so a seed repeats. The faults are those of a
real API server behind a real network:

* the request is lost, or its reply is: both are `Ambiguous` to the caller, and only in the second is it applied;
* the request is **late**: the caller has had its `Ambiguous` and gone on, and then the write lands after all;
* the request is duplicated on its way, so that it is applied twice;
* somebody else writes the object just before, so that a demanded resourceVersion no longer holds;
* the store is unreachable or busy; a watch is cut; both directions take their time.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from random import Random
from typing import Any, Protocol

from msgspec import Struct

from api.kinds import Kind
from api.meta import ObjectMeta
from runtime.store.port import Ambiguous, Busy, Event, Listing, Store, StoreError, Unavailable

FOREIGN_ANNOTATION = "testing.spiderpool.spidernet.io/foreign-writer"
"""What the foreign writer of `Fault.CONFLICT` counts up."""


class Fault(StrEnum):
    """What happens to one request."""

    NONE = "none"
    LOST_REQUEST = "lost request"
    """Never reaches the store. `Ambiguous` for a write, `Unavailable` for a read."""
    LOST_REPLY = "lost reply"
    """Applied, but `Ambiguous` for a write, `Unavailable` for a read."""
    LATE = "late"
    """As a lost request, except that a write is applied `Decision.late` seconds after the caller has given up."""
    DUPLICATE = "duplicate"
    """Applied twice in a row; the caller gets the first answer."""
    CONFLICT = "conflict"
    """Before a patch, an update or a delete, a foreign writer touches an annotation: the object moves on."""
    UNAVAILABLE = "unavailable"
    """Not applied, and the caller knows: `Unavailable`."""
    BUSY = "busy"
    """Not applied: `Busy` with a retry_after of one second."""
    WATCH_CUT = "watch cut"
    """Only for a watch: its stream ends after the next event."""


class Call(Struct, frozen=True):
    """One request, as a policy sees it. `verb` is get, list, create, patch, update, delete or watch."""

    verb: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def is_write(self) -> bool:
        """Whether an unknown outcome matters."""
        return self.verb in ("create", "patch", "update", "delete")


class Decision(Struct, frozen=True):
    """The fate of one request. Times, in seconds: the way there, the way back, and until a late write lands."""

    fault: Fault = Fault.NONE
    before: float = 0.0
    after: float = 0.0
    late: float = 0.0


class Policy(Protocol):
    """Decides what happens to requests."""

    def decide(self, call: Call, random: Random) -> Decision:
        """Choose the fate of this request. Must draw from `random` only."""
        ...


class Chances(Struct, frozen=True):
    """The usual policy: every fault has a probability, every delay a range in seconds.

    A fault that makes no sense for the verb (a duplicate get, a cut patch) is not drawn. `verbs`, when not empty,
    limits the faults (not the delays) to these verbs.
    """

    lost_request: float = 0.0
    lost_reply: float = 0.0
    late: float = 0.0
    duplicate: float = 0.0
    conflict: float = 0.0
    unavailable: float = 0.0
    busy: float = 0.0
    watch_cut: float = 0.0
    before: tuple[float, float] = (0.0, 0.0)
    after: tuple[float, float] = (0.0, 0.0)
    late_by: tuple[float, float] = (0.0, 5.0)
    verbs: tuple[str, ...] = ()

    def decide(self, call: Call, random: Random) -> Decision:
        """Draw one fault and the delays. Always draws the same number of times, so that seeds stay comparable."""
        before, after, late = (random.uniform(*span) for span in (self.before, self.after, self.late_by))
        draw = random.random()
        chosen = Fault.NONE
        for fault, chance in self._chances(call):
            if draw < chance:
                chosen = fault
                break
            draw -= chance
        return Decision(fault=chosen, before=before, after=after, late=late)

    def _chances(self, call: Call) -> Sequence[tuple[Fault, float]]:
        if self.verbs and call.verb not in self.verbs:
            return ()
        reach = [(Fault.UNAVAILABLE, self.unavailable), (Fault.BUSY, self.busy)]
        if call.verb == "watch":
            return [*reach, (Fault.WATCH_CUT, self.watch_cut)]
        reach += [(Fault.LOST_REQUEST, self.lost_request), (Fault.LOST_REPLY, self.lost_reply)]
        if call.is_write:
            reach += [(Fault.LATE, self.late), (Fault.DUPLICATE, self.duplicate)]
        if call.verb in ("patch", "update", "delete"):
            reach.append((Fault.CONFLICT, self.conflict))
        return reach


class Script:
    """A policy for pointed tests: the n-th request that `when` accepts gets the n-th decision, all others none."""

    def __init__(self, *decisions: Decision | Fault, when: Callable[[Call], bool] = lambda call: call.is_write) -> None:
        """`decisions` are used up in order; a bare `Fault` has no delays."""
        self.left = [item if isinstance(item, Decision) else Decision(fault=item) for item in decisions]
        self._when = when

    def decide(self, call: Call, random: Random) -> Decision:  # noqa: ARG002  (part of the protocol)
        """Take the next decision for a request that counts."""
        return self.left.pop(0) if self.left and self._when(call) else Decision()


class FaultyStore:
    """`Store` that passes requests on to another one, as far as its policy lets it."""

    def __init__(self, store: Store, *, policy: Policy, random: Random) -> None:
        """`store` is not closed with this one: others share it."""
        self.policy = policy
        """May be replaced at any time."""
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        """How many requests had each (verb, plural, fault)."""
        self._store = store
        self._random = random
        self._late: dict[asyncio.Task[None], None] = {}
        self._foreign = 0
        self._streams: dict[_FaultyStream[Any], None] = {}
        self._reachable = True

    def __repr__(self) -> str:
        state = "reachable" if self._reachable else "cut off"
        return f"<FaultyStore {state}, {len(self._late)} late writes, over {self._store!r}>"

    def cut(self) -> None:
        """Cut the connection until `heal`: watches end, replies under way are lost, new calls are `Unavailable`."""
        self._reachable = False
        for stream in self._streams:
            stream.end()

    def heal(self) -> None:
        """Undo `cut`."""
        self._reachable = True

    async def settle(self) -> None:
        """Wait until every late write has landed."""
        while self._late:
            await asyncio.wait(list(self._late))

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        """See the port."""
        call = Call("get", kind.plural, namespace, name)
        return await self._pass(call, lambda: self._store.get(kind, name, namespace=namespace))

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        """See the port."""
        call = Call("list", kind.plural, namespace)
        return await self._pass(call, lambda: self._store.list(kind, namespace=namespace, fields=fields, labels=labels))

    async def create[T](self, kind: Kind[T], item: T) -> T:
        """See the port."""
        metadata = getattr(item, "metadata", None)
        call = Call("create", kind.plural, getattr(metadata, "namespace", ""), getattr(metadata, "name", ""))
        return await self._pass(call, lambda: self._store.create(kind, item))

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
        """See the port."""

        def send() -> Awaitable[T]:
            return self._store.patch(
                kind,
                name,
                change,
                namespace=namespace,
                subresource=subresource,
                resource_version=resource_version,
                uid=uid,
            )

        return await self._pass(Call("patch", kind.plural, namespace, name, subresource), send, kind)

    async def replace_status[T](self, kind: Kind[T], item: T, status: Mapping[str, Any] | Struct) -> T:
        """See the port."""
        metadata: ObjectMeta = item.metadata  # type: ignore[attr-defined]
        call = Call("update", kind.plural, metadata.namespace, metadata.name, "status")
        return await self._pass(call, lambda: self._store.replace_status(kind, item, status), kind)

    async def delete[T](
        self, kind: Kind[T], name: str, *, namespace: str = "", resource_version: str = "", uid: str = ""
    ) -> None:
        """See the port."""

        def send() -> Awaitable[None]:
            return self._store.delete(kind, name, namespace=namespace, resource_version=resource_version, uid=uid)

        await self._pass(Call("delete", kind.plural, namespace, name), send, kind)

    @asynccontextmanager
    async def watch[T](
        self, kind: Kind[T], *, since: str, namespace: str = "", fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[AsyncIterator[Event[T]]]:
        """See the port. Every event takes the `Decision.after` of the watch to arrive."""
        call = Call("watch", kind.plural, namespace)
        decision = await self._outward(call)
        async with self._store.watch(kind, since=since, namespace=namespace, fields=fields) as events:
            stream = _FaultyStream(events, delay=decision.after, cut=decision.fault is Fault.WATCH_CUT)
            self._streams[stream] = None
            try:
                yield stream
            finally:
                del self._streams[stream]
                await stream.aclose()

    async def aclose(self) -> None:
        """End this connection's watches and drop its late writes. The store below stays open."""
        self.cut()
        for task in list(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _outward(self, call: Call) -> Decision:
        """Take one request as far as the store, or raise what stopped it."""
        decision = self.policy.decide(call, self._random)
        self.outcomes[call.verb, call.plural, decision.fault.value] += 1
        if decision.before:
            await asyncio.sleep(decision.before)
        if not self._reachable or decision.fault is Fault.UNAVAILABLE:
            msg = f"{call.verb} {call.plural} {call.name}: connection refused"
            raise Unavailable(msg)
        if decision.fault is Fault.BUSY:
            msg = f"{call.verb} {call.plural} {call.name}: too many requests"
            raise Busy(msg)
        return decision

    async def _pass[R](self, call: Call, send: Callable[[], Awaitable[R]], kind: Kind[Any] | None = None) -> R:
        decision = await self._outward(call)
        match decision.fault:
            case Fault.LOST_REQUEST:
                raise _no_answer(call)
            case Fault.LATE:
                task = asyncio.get_running_loop().create_task(self._land(send, decision.late))
                self._late[task] = None
                task.add_done_callback(self._late.pop)
                raise _no_answer(call)
            case Fault.CONFLICT if kind is not None:
                await self._foreign_write(kind, call)
        try:
            answer = await send()
        except StoreError:
            await self._homeward(call, decision)
            raise
        if decision.fault is Fault.DUPLICATE:
            await _ignored(send)
        await self._homeward(call, decision)
        return answer

    async def _homeward(self, call: Call, decision: Decision) -> None:
        """Take the answer back to the caller, or raise what stopped it."""
        if decision.after:
            await asyncio.sleep(decision.after)
        if decision.fault is Fault.LOST_REPLY or not self._reachable:
            raise _no_answer(call)

    async def _land(self, send: Callable[[], Awaitable[Any]], seconds: float) -> None:
        await asyncio.sleep(seconds)
        await _ignored(send)

    async def _foreign_write(self, kind: Kind[Any], call: Call) -> None:
        self._foreign += 1
        mark = {"metadata": {"annotations": {FOREIGN_ANNOTATION: str(self._foreign)}}}
        await _ignored(lambda: self._store.patch(kind, call.name, mark, namespace=call.namespace))


class _FaultyStream[T]:
    """A watch that can be slow and can be cut."""

    def __init__(self, events: AsyncIterator[Event[T]], *, delay: float, cut: bool) -> None:
        self._events = events
        self._delay = delay
        self._cut = cut
        self._end = asyncio.get_running_loop().create_future()
        self._next: asyncio.Task[Event[T] | None] | None = None

    def __aiter__(self) -> AsyncIterator[Event[T]]:
        return self

    async def __anext__(self) -> Event[T]:
        if self._end.done():
            raise StopAsyncIteration
        if self._next is None:
            self._next = asyncio.create_task(_first(self._events))
        await asyncio.wait((self._next, self._end), return_when=asyncio.FIRST_COMPLETED)
        if self._end.done():
            raise StopAsyncIteration
        upcoming, self._next = self._next, None
        event = upcoming.result()
        if event is None:
            raise StopAsyncIteration
        if self._delay:
            await asyncio.sleep(self._delay)
        if self._cut:
            self.end()
        return event

    def end(self) -> None:
        """End the stream, now or when its reader next looks."""
        if not self._end.done():
            self._end.set_result(None)

    async def aclose(self) -> None:
        """Stop reading the stream below."""
        self.end()
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
            self._next = None


async def _first[T](events: AsyncIterator[Event[T]]) -> Event[T] | None:
    """Read one event; None at the end (a task cannot carry StopAsyncIteration out)."""
    async for event in events:
        return event
    return None


async def _ignored(send: Callable[[], Awaitable[Any]]) -> None:
    """Send a request whose answer nobody gets."""
    try:
        await send()
    except StoreError:
        return


def _no_answer(call: Call) -> StoreError:
    what = f"{call.verb} {call.plural} {call.name}: the connection was lost before an answer came"
    return Ambiguous(what) if call.is_write else Unavailable(what)
