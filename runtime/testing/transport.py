"""The transport port as a simulated network: it delays, loses, doubles, delivers late, cuts and partitions.

All chance is drawn from the `random.Random` that it is given, in the order in which things happen, so in the
deterministic loop (`runtime.testing.loop`) a seed repeats to the letter. Nothing here is an anyio task group: those
cancel their tasks in the order of a set, which is the order of memory addresses.

What a caller sees is what the TLS transport would show it: a lost message ends in `DeadlineExceeded`, a cut in
`Disconnected`, a partition in `Disconnected` once the silence is noticed and in `Unreachable` after that.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from random import Random
from types import TracebackType
from typing import Self

from msgspec import Struct

from runtime.testing.record import EventRecord
from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Disconnected,
    Handler,
    Interim,
    Overloaded,
    Peer,
    RemoteFailure,
    Silent,
    TransportError,
    Unreachable,
)

type _Pair = tuple[str, str]


class Weather(Struct, frozen=True, kw_only=True):
    """How bad the network is. Chances are per message, from 0 to 1; ranges are seconds, drawn evenly."""

    delay: tuple[float, float] = (0.0002, 0.002)
    """One way."""
    lose_request: float = 0.0
    lose_reply: float = 0.0
    double_request: float = 0.0
    """The handler gets the request twice, each with its own delay; the caller gets the first answer."""
    late: float = 0.0
    """A message (request or reply) takes `late_by` on top of its delay, perhaps until long after the caller gave up."""
    late_by: tuple[float, float] = (0.5, 20.0)
    cut: float = 0.0
    """The connection breaks while the request is under way, before, during or after its handling."""
    cut_after: tuple[float, float] = (0.0, 0.05)
    silence: float = 3.0
    """How long both ends of a partition take to notice it."""
    suspect: float = 0.3
    """How long a request that is in a hurry takes to notice it."""


CALM = Weather()
"""Delays and nothing else."""


class Fault(Struct, frozen=True, tag=True):
    """What the network did to somebody, for the event record."""

    what: str
    source: str
    destination: str


class _Flight:
    """One request of a caller until the caller has its answer."""

    __slots__ = ("deadline", "future", "interim", "pair", "payload", "peer", "tasks", "traceparent")

    def __init__(
        self,
        *,
        pair: _Pair,
        payload: bytes,
        peer: Peer,
        deadline: float,
        traceparent: str,
        future: asyncio.Future[bytes],
        interim: Interim | None,
    ) -> None:
        self.pair = pair
        self.payload = payload
        self.peer = peer
        self.deadline = deadline
        self.traceparent = traceparent
        self.future = future
        self.interim = interim
        self.tasks: dict[asyncio.Task[bytes], None] = {}

    def fail(self, error: TransportError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class SimulatedNetwork:
    """Every address in the simulation, and what lies between them.

    An async context manager: leaving it ends every handler that still runs.
    """

    def __init__(self, random: Random, *, weather: Weather = CALM, record: EventRecord | None = None) -> None:
        """`record` gets a `Fault` for whatever goes wrong."""
        self.weather = weather
        """May be changed at any time; holds for the messages sent after that."""
        self._random = random
        self._record = record
        self._handlers: dict[str, Handler] = {}
        self._flights: dict[_Flight, None] = {}
        self._orphans: dict[asyncio.Task[bytes], str] = {}
        """Handlers whose caller has gone, each with the address that runs it."""
        self._partitions: dict[frozenset[str], float] = {}
        self._silent: set[frozenset[str]] = set()
        """Partitions that a request in a hurry has noticed."""
        self._held: dict[frozenset[str], list[Callable[[], object]]] = {}
        self._waiting: dict[asyncio.Future[None], None] = {}

    def __repr__(self) -> str:
        cut = sorted("|".join(sorted(pair)) for pair in self._partitions)
        return f"<SimulatedNetwork serving={sorted(self._handlers)} flights={len(self._flights)} partitions={cut}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for address in list(self._handlers):
            self.withdraw(address)
        while tasks := [*self._orphans, *(task for flight in self._flights for task in flight.tasks)]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    def serve(self, address: str, handler: Handler) -> None:
        """From now on `handler` answers what is sent to `address`."""
        self._handlers[address] = handler
        self._wake()

    def withdraw(self, address: str) -> None:
        """Whoever served `address` is dead: its handlers end here and now, its callers are disconnected."""
        self._handlers.pop(address, None)
        for flight in list(self._flights):
            if flight.pair[1] == address:
                flight.fail(Disconnected(f"{address} has gone"))
                for task in flight.tasks:
                    task.cancel()
        for task, where in self._orphans.items():
            if where == address:
                task.cancel()

    def channel(self, source: str, destination: str, *, peer: Peer | None = None) -> "SimulatedChannel":
        """The calling side at `source`. `peer` is what its credentials prove, by default an account named `source`."""
        return SimulatedChannel(self, source, destination, peer=peer or Peer(account=source))

    def cut(self, source: str, destination: str) -> None:
        """Break the connection from `source` to `destination`. The next request makes a new one at once."""
        self._note("cut", source, destination)
        for flight in list(self._flights):
            if flight.pair == (source, destination):
                self._disconnect(flight, "the connection was cut")

    def partition(self, one: str, other: str) -> None:
        """Let nothing pass between two addresses until `heal`.

        What is sent meanwhile arrives after a `heal` that comes before the silence was noticed (TCP sends it again),
        and never if it comes later.
        """
        pair = frozenset((one, other))
        if pair in self._partitions:
            return
        self._note("partition", one, other)
        loop = asyncio.get_running_loop()
        since = loop.time()
        self._partitions[pair] = since
        loop.call_later(self.weather.silence, self._notice, pair, since)

    def heal(self, one: str, other: str) -> None:
        """End a partition."""
        pair = frozenset((one, other))
        if self._partitions.pop(pair, None) is None:
            return
        self._silent.discard(pair)
        self._note("heal", one, other)
        for deliver in self._held.pop(pair, []):
            self._after(self._delay(), pair, deliver)
        self._wake()

    def reachable(self, source: str, destination: str) -> bool:
        """Whether a connection is up, as far as both ends have noticed."""
        pair = frozenset((source, destination))
        since = self._partitions.get(pair)
        alive = since is None or asyncio.get_running_loop().time() < since + self.weather.silence
        return alive and destination in self._handlers and pair not in self._silent

    async def request(
        self,
        source: str,
        destination: str,
        payload: bytes,
        *,
        peer: Peer,
        deadline: float,
        traceparent: str,
        hurry: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        """See `runtime.transport.port.Channel.request`."""
        loop = asyncio.get_running_loop()
        if hurry and not self.reachable(source, destination):
            msg = f"no connection to {destination}"
            raise Unreachable(msg)
        await self._connection(source, destination, deadline)
        flight = _Flight(
            pair=(source, destination),
            payload=payload,
            peer=peer,
            deadline=deadline,
            traceparent=traceparent,
            future=loop.create_future(),
            interim=interim,
        )
        self._flights[flight] = None
        timer = loop.call_at(deadline, flight.fail, DeadlineExceeded(f"{destination} did not answer in time"))
        if hurry:
            self._suspect(flight, loop.time())
        try:
            self._send(flight)
            return await flight.future
        finally:
            timer.cancel()
            del self._flights[flight]
            answered = flight.future.done() and not flight.future.cancelled()
            for task in flight.tasks:
                self._orphans[task] = destination
                if not answered:  # the Cancel frame
                    self._after(self._delay(), frozenset(flight.pair), task.cancel)

    # ------------------------------------------------------------------ on the way

    async def _connection(self, source: str, destination: str, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            msg = f"the deadline had passed before the request to {destination} could be sent"
            raise Unreachable(msg)
        while not self.reachable(source, destination):
            waiter = loop.create_future()
            self._waiting[waiter] = None
            error = Unreachable(f"no connection to {destination} came up before the deadline")
            timer = loop.call_at(deadline, _fail, waiter, error)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiting.pop(waiter, None)

    def _send(self, flight: _Flight) -> None:
        remaining = flight.deadline - asyncio.get_running_loop().time()
        if self._happens(self.weather.cut):
            low, high = self.weather.cut_after
            asyncio.get_running_loop().call_later(self._random.uniform(low, high), self._cut_flight, flight)
        if self._happens(self.weather.lose_request):
            self._note("lose request", *flight.pair)
            return
        handler = self._handlers[flight.pair[1]]
        copies = 1
        if self._happens(self.weather.double_request):
            self._note("double request", *flight.pair)
            copies = 2
        for _ in range(copies):
            self._after(
                self._delay(*flight.pair), frozenset(flight.pair), lambda: self._arrive(flight, handler, remaining)
            )

    def _arrive(self, flight: _Flight, handler: Handler, remaining: float) -> None:
        destination = flight.pair[1]
        if self._handlers.get(destination) is not handler:  # a successor at the same address has no part in it
            flight.fail(Disconnected(f"{destination} has gone"))
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + remaining
        call = Call(
            payload=flight.payload,
            peer=flight.peer,
            deadline=deadline,
            traceparent=flight.traceparent,
            interim=partial(self._say_ahead, flight),
        )
        task = loop.create_task(_serve(handler, call), context=Context())
        timer = loop.call_at(deadline, task.cancel)
        flight.tasks[task] = None
        if flight.future.done():
            self._orphans[task] = destination
        task.add_done_callback(lambda task: self._served(flight, task, timer))

    def _say_ahead(self, flight: _Flight, payload: bytes) -> None:
        """Every message has a delay of its own: what is said ahead may come behind the reply, and is lost then."""

        def hear() -> None:
            if flight.interim is not None and not flight.future.done():
                flight.interim(payload)

        if self._happens(self.weather.lose_reply):
            self._note("lose interim", *flight.pair)
        else:
            self._after(self._delay(*flight.pair), frozenset(flight.pair), hear)

    def _served(self, flight: _Flight, task: asyncio.Task[bytes], timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        flight.tasks.pop(task, None)
        self._orphans.pop(task, None)
        if task.cancelled():
            return
        error = task.exception()
        if self._happens(self.weather.lose_reply):
            self._note("lose reply", *flight.pair)
            return
        reply = b"" if error is not None else task.result()
        self._after(self._delay(*flight.pair), frozenset(flight.pair), lambda: self._settle(flight, reply, error))

    def _settle(self, flight: _Flight, reply: bytes, error: BaseException | None) -> None:
        if flight.future.done():
            return
        match error:
            case None:
                flight.future.set_result(reply)
            case Overloaded():
                flight.fail(Overloaded(str(error)))
            case _:
                flight.fail(RemoteFailure(f"{type(error).__name__}: {error}".splitlines()[0]))

    # ------------------------------------------------------------------ what goes wrong

    def _cut_flight(self, flight: _Flight) -> None:
        if flight in self._flights:
            self.cut(*flight.pair)

    def _suspect(self, flight: _Flight, begun: float) -> None:
        """Look now and then whether a request in a hurry waits for somebody who says nothing."""
        if flight.future.done():
            return
        pair = frozenset(flight.pair)
        since, now = self._partitions.get(pair), asyncio.get_running_loop().time()
        if since is not None and now >= max(since, begun) + self.weather.suspect:
            self._note("silent", *flight.pair)
            self._silent.add(pair)
            flight.fail(Silent(f"{flight.pair[1]} is silent"))
            return
        asyncio.get_running_loop().call_later(self.weather.suspect / 3, self._suspect, flight, begun)

    def _disconnect(self, flight: _Flight, why: str) -> None:
        """The caller knows at once, the other side a moment later; it then stops working for nobody."""
        flight.fail(Disconnected(f"{flight.pair[1]}: {why}"))
        for task in flight.tasks:
            asyncio.get_running_loop().call_later(self._delay(), task.cancel)

    def _notice(self, pair: frozenset[str], since: float) -> None:
        if self._partitions.get(pair) != since:
            return
        self._held.pop(pair, None)
        for flight in list(self._flights):
            if frozenset(flight.pair) == pair:
                self._disconnect(flight, "nothing heard any more")

    def _after(self, delay: float, pair: frozenset[str], deliver: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(delay, self._pass, pair, deliver)

    def _pass(self, pair: frozenset[str], deliver: Callable[[], object]) -> None:
        since = self._partitions.get(pair)
        if since is None:
            deliver()
        elif asyncio.get_running_loop().time() < since + self.weather.silence:
            self._held.setdefault(pair, []).append(deliver)

    def _delay(self, source: str = "", destination: str = "") -> float:
        """Seconds on the way. Without addresses it is a message of the network's own, which is never late."""
        seconds = self._random.uniform(*self.weather.delay)
        if source and self._happens(self.weather.late):
            self._note("late", source, destination)
            seconds += self._random.uniform(*self.weather.late_by)
        return seconds

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance

    def _note(self, what: str, source: str, destination: str) -> None:
        if self._record is not None:
            self._record.event("network", Fault(what=what, source=source, destination=destination))

    def _wake(self) -> None:
        for waiter in list(self._waiting):
            if not waiter.done():
                waiter.set_result(None)


class SimulatedChannel:
    """`runtime.transport.port.Channel` across a `SimulatedNetwork`."""

    def __init__(self, network: SimulatedNetwork, source: str, destination: str, *, peer: Peer) -> None:
        """Made by `SimulatedNetwork.channel`."""
        self._network = network
        self._peer = peer
        self.source = source
        self.destination = destination

    def __repr__(self) -> str:
        return f"<SimulatedChannel {self.source} -> {self.destination}>"

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,
        patient: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        """See the port. A patient caller is told of silence as any other: here that costs nothing."""
        del patient
        return await self._network.request(
            self.source,
            self.destination,
            payload,
            peer=self._peer,
            deadline=deadline,
            traceparent=traceparent,
            hurry=hurry,
            interim=interim,
        )

    @property
    def connected(self) -> bool:
        """See the port."""
        return self._network.reachable(self.source, self.destination)


async def _serve(handler: Handler, call: Call) -> bytes:
    return await handler(call)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
