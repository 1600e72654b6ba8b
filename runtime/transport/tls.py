"""The calling side over TLS: one connection that is made again whenever it breaks, and many requests on it at once.

The serving side is `runtime.transport.server`.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import anyio
import anyio.lowlevel
from msgspec import Struct

from runtime.transport.connection import Connection
from runtime.transport.credentials import TokenSource, Trust, one_line
from runtime.transport.frames import (
    PROTOCOL,
    Cancel,
    Failure,
    Frame,
    FrameError,
    Hello,
    InterimFrame,
    Ping,
    RefusedFrame,
    ReplyFrame,
    Request,
    Token,
    Welcome,
)
from runtime.transport.port import (
    DeadlineExceeded,
    Disconnected,
    Interim,
    Overloaded,
    Refused,
    RemoteFailure,
    Silent,
    TransportError,
    Unreachable,
)
from runtime.transport.vigil import Patience, Vigil
from telemetry import metrics

_log = logging.getLogger(__name__)

_LONGEST_MS = 2**31 - 1
"""What is sent for a deadline that never comes: 24 days."""


class Timing(Struct, frozen=True, kw_only=True):
    """How patient a channel is. All in seconds."""

    connect: float = 5.0
    """For TCP, TLS and the server's look at our token, together."""
    backoff_first: float = 0.02
    backoff_most: float = 0.5
    """Pauses between attempts double from the first to the most; each is cut by up to half, at random."""
    ping: float = 10.0
    silence: float = 30.0
    """A server that says nothing for `ping` is pinged; after `silence` the connection counts as broken. This is for
    idle connections."""
    patience: Patience = Patience()
    """For a server that owes an answer."""
    token_check: float = 10.0
    """How often the token source is asked whether there is a newer token."""


class _Link:
    """One accepted connection, with the requests that wait on it."""

    def __init__(
        self, connection: Connection, server: str, token: str, *, patience: Patience, woken: Callable[[], None]
    ) -> None:
        """`woken` is called when a silent server speaks again."""
        self.connection = connection
        self.server = server
        self.token = token
        self.ids = itertools.count(1)
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        self.interims: dict[int, Interim] = {}
        self.hurried: set[int] = set()
        """Those whose callers can ask somebody else."""
        self.patient: set[int] = set()
        """Those whose replies may be held back."""
        self.silent = False
        self._woken = woken
        self._vigil = Vigil(patience)
        self._timer: asyncio.TimerHandle | None = None

    def wait_for(self, number: int, future: asyncio.Future[bytes], *, hurry: bool, patient: bool) -> None:
        """A request went out."""
        self.waiting[number] = future
        if hurry:
            self.hurried.add(number)
        if patient:
            self.patient.add(number)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._vigil.begin(loop.time()), self._look)

    def forget(self, number: int) -> None:
        """Nobody waits for it any more."""
        del self.waiting[number]
        self.interims.pop(number, None)
        self.hurried.discard(number)
        self.patient.discard(number)

    def fail_all(self, why: str) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(Disconnected(why))

    def _speaks(self) -> None:
        self.silent = False
        self._woken()

    def _look(self) -> None:
        """See to it that whoever waits does not wait for the dead."""
        self._timer = None
        if len(self.waiting) == len(self.patient) and not self.silent:
            return
        loop = asyncio.get_running_loop()
        verdict = self._vigil.look(loop.time(), self.connection.heard)
        if verdict.broken:
            self.connection.abort(
                f"nothing heard for {loop.time() - self.connection.heard:.1f} s while a request waited"
            )
            return
        if verdict.ping:
            self.connection.send(Ping())
        if verdict.silent:
            if not self.silent:
                _log.warning("%s at %s is silent", self.server, self.connection.remote)
            self.silent = True
            self.connection.on_word = self._speaks
            for number in self.hurried:
                future = self.waiting[number]
                if not future.done():
                    future.set_exception(Silent(f"{self.server}: {self.connection.remote} is silent"))
        self._timer = loop.call_at(verdict.again, self._look)


class TlsChannel:
    """`runtime.transport.port.Channel` to one server. `run` must be running; it is a service for a supervisor."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        server_name: str,
        ca_file: Path,
        token: TokenSource,
        random: Random,
        timing: Timing | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        """Say where to connect.

        `host` is an address or a name to dial. `server_name` is what the certificate must be for, whatever was dialled.
        `ca_file` is read again before each attempt. `token` proves who we are (`credentials.token_file`); `random`
        spreads the attempts of many clients. `on_connect` is called whenever requests can go out again.
        """
        self._host = host
        self._port = port
        self._server_name = server_name
        self._trust = Trust(ca_file)
        self._token = token
        self._random = random
        self._timing = timing or Timing()
        self._on_connect = on_connect
        self._link: _Link | None = None
        self._refusal = ""
        self._last_failure = "not tried yet"
        self._ended = False
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        link = self._link
        state = f"connected to {link.server}" if link is not None else f"down: {self._last_failure}"
        if link is not None and link.silent:
            state += ", which is silent"
        waiting = len(link.waiting) if link is not None else 0
        return f"<TlsChannel {self.address} {state}, {waiting} waiting>"

    @property
    def address(self) -> str:
        """`host:port` as dialled."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def connected(self) -> bool:
        """See the port."""
        return self._link is not None and not self._link.silent

    @property
    def server(self) -> str:
        """What the server calls itself; empty without a connection."""
        return self._link.server if self._link is not None else ""

    @property
    def last_failure(self) -> str:
        """Why the last connection or attempt ended, for health pages; empty while there is a connection."""
        return self._last_failure

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
        """See the port.

        Raises besides: `FrameTooLarge` (a `TransportError`): the payload is larger than the protocol allows. When the
        server refuses our credentials, `Refused` comes at once and does not wait for the deadline.
        """
        link = await self._ready(deadline, wait=not hurry)
        loop = asyncio.get_running_loop()
        remaining = deadline - loop.time()
        if remaining <= 0:
            msg = f"{self.address}: the deadline had passed before the request could be sent"
            raise Unreachable(msg)
        number = next(link.ids)
        remaining_ms = _LONGEST_MS if math.isinf(remaining) else min(math.ceil(remaining * 1000), _LONGEST_MS)
        link.connection.send(Request(number, remaining_ms, traceparent, payload))
        future: asyncio.Future[bytes] = loop.create_future()
        link.wait_for(number, future, hurry=hurry, patient=patient)
        if interim is not None:
            link.interims[number] = interim
        # A timer and not a cancel scope: a reply and the deadline in the same tick cannot then lose the reply.
        timer = loop.call_at(deadline, self._expire, future)
        answered = False
        try:
            reply = await future
            answered = True
        except TransportError as error:
            answered = not isinstance(error, DeadlineExceeded | Silent)
            raise
        finally:
            timer.cancel()
            link.forget(number)
            if not answered:
                link.connection.send(Cancel(number))
                if future.done() and not future.cancelled():
                    future.exception()  # we were cancelled in the tick in which it came: it counts as seen
        return reply

    async def run(self) -> None:
        """Connect, and connect again, until cancelled. Requests under way then get `Disconnected`.

        Raises nothing of its own: what goes wrong is logged, and told to whoever asks in vain.
        """
        self._ended = False
        failures = 0
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    await self._live()
                except (TransportError, OSError) as error:
                    self._down(error)
                if asyncio.get_running_loop().time() - began > self._timing.backoff_most:
                    failures = 0  # it held for a while: not a server that accepts us and drops us
                pause = min(self._timing.backoff_first * 2**failures, self._timing.backoff_most)
                failures = min(failures + 1, 30)
                await anyio.sleep(pause * self._random.uniform(0.5, 1.0))
        finally:
            self._ended = True
            self._last_failure = "closed"
            self._change()

    # ------------------------------------------------------------------ one connection

    async def _live(self) -> None:
        """One connection from its making to its end. Raises what ended it."""
        connection, welcome, token = await self._connect()
        try:
            link = _Link(connection, welcome.server, token, patience=self._timing.patience, woken=self._up)
            _log.info("connected to %s (%s)", self.address, welcome.server)
            self._link, self._refusal, self._last_failure = link, "", ""
            self._up()
            ended: TransportError = Disconnected("closed")
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._watch, connection)
                    group.start_soon(self._renew_token, link)
                    try:
                        await self._read(link)
                    except TransportError as error:
                        ended = error
                    group.cancel_scope.cancel()
            finally:
                self._link = None
                link.fail_all(f"{self.address}: {one_line(ended)}")
            raise ended
        finally:
            await connection.close()

    async def _connect(self) -> tuple[Connection, Welcome, str]:
        with anyio.CancelScope(deadline=anyio.current_time() + self._timing.connect) as scope:
            try:
                token = await self._token()
            except TransportError:
                raise
            except Exception as error:
                msg = f"no token: {one_line(error)}"
                raise Unreachable(msg) from error
            reader, writer = await asyncio.open_connection(
                self._host,
                self._port,
                ssl=await self._trust.context(),
                server_hostname=self._server_name,
                ssl_handshake_timeout=self._timing.connect,
                ssl_shutdown_timeout=self._timing.connect,
            )
            connection = Connection(reader, writer)
            accepted = False
            try:
                connection.send(Hello(PROTOCOL, token))
                welcome = _welcome(await connection.receive_one())
                accepted = True
                return connection, welcome, token
            finally:
                if not accepted:
                    await connection.close()
        assert scope.cancelled_caught
        msg = f"no welcome within {self._timing.connect:g} s"
        raise Unreachable(msg)

    async def _watch(self, connection: Connection) -> None:
        await connection.watch(ping=self._timing.ping, silence=self._timing.silence)

    async def _renew_token(self, link: _Link) -> None:
        while True:
            await anyio.sleep(self._timing.token_check)
            try:
                token = await self._token()
            except Exception as error:  # noqa: BLE001  (a source may raise anything; the token that we have may do)
                _log.warning("%s: no newer token: %s", self.address, one_line(error))
                continue
            if token != link.token:
                link.token = token
                link.connection.send(Token(token))

    async def _read(self, link: _Link) -> None:
        """Give every reply to who waits for it, until the connection ends."""
        while True:
            for frame in await link.connection.receive():
                match frame:
                    case ReplyFrame():
                        future = link.waiting.get(frame.id)
                        if future is not None and not future.done():
                            future.set_result(frame.payload)
                    case InterimFrame():
                        interim = link.interims.get(frame.id)
                        if interim is not None:
                            interim(frame.payload)
                    case Failure():
                        future = link.waiting.get(frame.id)
                        if future is not None and not future.done():
                            future.set_exception(self._failure(frame))
                    case RefusedFrame():
                        raise Refused(frame.reason)
                    case _:
                        msg = f"the server sent {type(frame).__name__}, which is not for a client"
                        raise FrameError(msg)

    # ------------------------------------------------------------------ state

    async def _ready(self, deadline: float, *, wait: bool) -> _Link:
        """The connection, when it takes more data. Raises `Unreachable` or `Refused`.

        Without `wait`, and when the connection breaks before the request has gone out, it does not wait for another
        one: whoever asks may know somebody who is connected.
        """
        waits_for = "no connection"
        with anyio.CancelScope(deadline=deadline):
            while True:
                link = self._link
                if link is not None and not link.silent:
                    waits_for, wait = "takes no more data", False
                    try:
                        await link.connection.flush()
                    except Disconnected:
                        await anyio.lowlevel.checkpoint()
                        continue
                    if link is self._link:
                        return link
                    continue
                waits_for = "the server is silent" if link is not None else "no connection"
                if link is None and self._refusal:
                    msg = f"{self.address}: {self._refusal}"
                    raise Refused(msg)
                if not wait or (link is None and self._ended):
                    break
                await self._changed.wait()
        msg = f"{self.address}: {waits_for}" + (f" ({self._last_failure})" if self._last_failure else "")
        raise Unreachable(msg)

    def _down(self, error: Exception) -> None:
        metrics.RPC_CONNECTION_FAILURES.labels(reason=type(error).__name__).inc()
        text = one_line(error)
        self._refusal = text if isinstance(error, Refused) else ""
        level = logging.DEBUG if text == self._last_failure else logging.WARNING
        _log.log(level, "%s: %s", self.address, text)
        self._last_failure = text
        self._change()

    def _up(self) -> None:
        self._change()
        if self._on_connect is not None:
            self._on_connect()

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _expire(self, future: asyncio.Future[bytes]) -> None:
        if not future.done():
            future.set_exception(DeadlineExceeded(f"{self.address}: no reply in time"))

    def _failure(self, frame: Failure) -> TransportError:
        text = f"{self.address}: {frame.text}"
        match frame.kind:
            case "overloaded":
                return Overloaded(text)
            case "deadline":
                return DeadlineExceeded(text)
            case "internal":
                return RemoteFailure(text)


def _welcome(frame: Frame) -> Welcome:
    """The server's answer to `Hello`, if it is a welcome. Raises `Refused`, `Unreachable` and `FrameError`."""
    match frame:
        case Welcome():
            return frame
        case RefusedFrame(reason=reason):
            raise Refused(reason)
        case Failure(text=text):
            raise Unreachable(text)
        case _:
            msg = f"the server began with {type(frame).__name__} instead of Welcome"
            raise FrameError(msg)
