"""The serving side over TLS: admits clients by their token and runs the handler for each of their requests.

Who a client is, is asked when it connects and again every minute with the newest token that it sent, so a deleted pod
or account loses its connection. A refusal is a line in the log for the auditor, and tells the client why.
"""

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from msgspec import Struct

from runtime.transport.connection import Connection
from runtime.transport.credentials import ServerCertificate, one_line
from runtime.transport.frames import (
    MAX_FRAME,
    MAX_HELLO,
    PROTOCOL,
    Cancel,
    Failure,
    Frame,
    FrameError,
    FrameTooLarge,
    Hello,
    InterimFrame,
    RefusedFrame,
    ReplyFrame,
    Request,
    Token,
    Welcome,
)
from runtime.transport.port import Call, Handler, Overloaded, Peer, Refused, TransportError

_log = logging.getLogger(__name__)

Authenticate = Callable[[str], Awaitable[Peer]]
"""Says whose token it is. Raises `Refused` with the reason; any other exception means that it cannot be said now."""


class ServerTiming(Struct, frozen=True, kw_only=True):
    """How patient a server is. All in seconds."""

    hello: float = 5.0
    """From the end of the TLS handshake to the client's first frame; the handshake itself gets as much."""
    authenticate: float = 60.0
    """How often a connected client is asked who it is."""
    doubt: float = 600.0
    """How long a connection is kept while that question has no answer, because the API server gives none."""
    ping: float = 15.0
    silence: float = 45.0
    """A client that says nothing for `ping` is pinged; after `silence` its connection counts as broken. Clients ping
    more often than that, so a server of hundreds of them has nothing to send."""
    drain: float = 0.8
    """What requests under way get to end, when the server is stopped."""
    certificate: float = 10.0
    """How often the certificate's files are looked at."""
    audit: float = 60.0
    """The same refusal of the same host is logged once in this time."""


class ServerStatistics(Struct, frozen=True):
    """What a server is doing at the moment."""

    connections: int
    """Admitted ones."""
    in_flight: int
    """Requests whose handler runs."""


class _Session:
    """One admitted client."""

    def __init__(self, connection: Connection, peer: Peer, token: str) -> None:
        self.connection = connection
        self.peer = peer
        self.token = token
        self.running: dict[int, anyio.CancelScope] = {}
        self.asked = anyio.current_time()


class TlsServer:
    """Serves the transport port's requests. `run` is a service for a supervisor."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        cert_file: Path,
        key_file: Path,
        authenticate: Authenticate,
        handler: Handler,
        name: str = "",
        max_in_flight: int = 2048,
        max_in_flight_per_client: int = 256,
        timing: ServerTiming | None = None,
    ) -> None:
        """Say where to listen and who answers.

        With `port` 0 the kernel chooses one, see `port`. `name` is what clients show in their logs. Beyond
        `max_in_flight` requests altogether, or `max_in_flight_per_client` of one connection, a client gets
        `Overloaded`.
        """
        self._host = host
        self._wanted_port = port
        self._certificate = ServerCertificate(cert_file, key_file)
        self._authenticate = authenticate
        self._handler = handler
        self._name = name
        self._max_in_flight = max_in_flight
        self._max_per_client = max_in_flight_per_client
        self._timing = timing or ServerTiming()
        self._port = 0
        self._listening = anyio.Event()
        self._stopping = anyio.Event()
        self._idle = anyio.Event()
        self._group: TaskGroup | None = None
        self._sessions: dict[_Session, None] = {}
        self._in_flight = 0
        self._audited: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<TlsServer {self._host}:{self._port or self._wanted_port} {self.statistics()}>"

    @property
    def port(self) -> int:
        """The port that it listens on; 0 while it does not."""
        return self._port

    def statistics(self) -> ServerStatistics:
        """What it is doing at the moment."""
        return ServerStatistics(connections=len(self._sessions), in_flight=self._in_flight)

    def peers(self) -> tuple[Peer, ...]:
        """Who is connected."""
        return tuple(session.peer for session in self._sessions)

    async def listening(self) -> int:
        """Wait until connections are accepted; returns the port. Waits for ever when `run` does not get that far."""
        while not self._port:
            await self._listening.wait()
        return self._port

    async def run(self) -> None:
        """Serve until cancelled; requests under way then get a moment to end, and new ones `Overloaded`.

        Raises:
            CredentialError: The certificate's files cannot be used.
            OSError: The address cannot be listened on.
        """
        context = await self._certificate.load()
        self._stopping, self._idle = anyio.Event(), anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._certificate.follow, self._timing.certificate)
                # Shielded: when we are cancelled, it is told to stop, and ends in its own time.
                group.start_soon(self._serve, context)
                try:
                    await anyio.sleep_forever()
                finally:
                    self._stopping.set()
        except BaseExceptionGroup as group_error:
            if (expected := group_error.subgroup((OSError, TransportError))) is not None:
                raise _first(expected) from None
            raise

    # ------------------------------------------------------------------ connections

    async def _serve(self, context: ssl.SSLContext) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as self._group:
                listener = await asyncio.start_server(
                    self._accepted,
                    self._host,
                    self._wanted_port,
                    ssl=context,
                    ssl_handshake_timeout=self._timing.hello,
                    backlog=1024,
                )
                try:
                    self._port = listener.sockets[0].getsockname()[1]
                    self._listening.set()
                    _log.info("listening on %s port %d", self._host, self._port)
                    await self._stopping.wait()
                finally:
                    listener.close()
                    self._port = 0
                    self._listening = anyio.Event()
                if self._in_flight:
                    with anyio.move_on_after(self._timing.drain):
                        await self._idle.wait()
                self._group.cancel_scope.cancel()
            self._group = None

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # In an empty context: a request's trace comes with it, and is not whatever was current when we began to listen.
        Context().run(self._take_on, reader, writer)

    def _take_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._group is None or self._stopping.is_set():
            writer.transport.abort()
        else:
            self._group.start_soon(self._connection, reader, writer)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, limit=MAX_HELLO)
        try:
            session = await self._admit(connection)
            if session is not None:
                await self._converse(session)
        except TransportError as error:
            _log.info("connection from %s ended: %s", connection.remote, one_line(error))
        finally:
            await connection.close()

    async def _admit(self, connection: Connection) -> _Session | None:
        """The client's session, or None when it was told why it gets none. Raises `TransportError`."""
        with anyio.move_on_after(self._timing.hello):
            first = await connection.receive_one()
            if not isinstance(first, Hello):
                msg = f"the client began with {type(first).__name__} instead of Hello"
                raise FrameError(msg)
            if first.protocol != PROTOCOL:
                msg = f"the client speaks protocol {first.protocol}, this server {PROTOCOL}"
                self._refuse(connection, msg)
                return None
            try:
                peer = await self._authenticate(first.token)
            except Refused as error:
                self._refuse(connection, str(error))
                return None
            except Exception as error:  # noqa: BLE001  (whatever it is, we do not know who the client is)
                _log.warning("cannot tell who %s is: %s", connection.remote, one_line(error))
                connection.send(Failure(0, "internal", f"cannot check the token: {one_line(error)}"))
                return None
            connection.accept_up_to(MAX_FRAME)
            connection.send(Welcome(self._name))
            _log.info("admitted %s as %s", connection.remote, _who(peer))
            return _Session(connection, peer, first.token)
        connection.send(Failure(0, "internal", f"no hello, or no answer about its token, in {self._timing.hello:g} s"))
        return None

    async def _converse(self, session: _Session) -> None:
        """Serve an admitted client to its end. Raises `TransportError`."""
        self._sessions[session] = None
        failure: TransportError | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, session.connection)
                group.start_soon(self._ask_again, session, group)
                try:
                    await self._read(session, group)
                except TransportError as error:
                    failure = error
                group.cancel_scope.cancel()  # nobody waits for what still runs
        finally:
            del self._sessions[session]
        if failure is not None:
            raise failure

    async def _watch(self, connection: Connection) -> None:
        await connection.watch(ping=self._timing.ping, silence=self._timing.silence)

    async def _ask_again(self, session: _Session, group: TaskGroup) -> None:
        """Ask from time to time who the client is, and end the conversation when it is nobody any more."""
        while True:
            await anyio.sleep(self._timing.authenticate)
            try:
                peer = await self._authenticate(session.token)
            except Refused as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001  (what it is does not matter: the question has no answer)
                doubt = anyio.current_time() - session.asked
                _log.warning("cannot tell for %.0f s who %s is: %s", doubt, session.connection.remote, one_line(error))
                if doubt > self._timing.doubt:
                    session.connection.abort(f"for {doubt:.0f} s nobody could tell who the client is")
                    return
                continue
            else:
                reason = ""
                if peer != session.peer:
                    reason = f"the new token belongs to {_who(peer)}, the connection to {_who(session.peer)}"
            if reason:
                self._refuse(session.connection, reason)
                group.cancel_scope.cancel()
                return
            session.asked = anyio.current_time()

    def _refuse(self, connection: Connection, reason: str) -> None:
        """Tell the client and, once in a while, the log."""
        connection.send(RefusedFrame(reason))
        key, now = (connection.host, reason), anyio.current_time()
        last = self._audited.get(key)
        if last is not None and now < last + self._timing.audit:
            return
        self._audited[key] = now
        self._audited.move_to_end(key)
        if len(self._audited) > 1024:
            self._audited.popitem(last=False)
        _log.warning("audit: refused %s: %s", connection.remote, reason)

    # ------------------------------------------------------------------ requests

    async def _read(self, session: _Session, group: TaskGroup) -> None:
        """Take the client's frames until there are no more. Raises `TransportError`."""
        while True:
            for frame in await session.connection.receive():
                match frame:
                    case Request():
                        self._begin(session, frame, group)
                    case Cancel():
                        scope = session.running.pop(frame.id, None)
                        if scope is not None:
                            scope.cancel()
                    case Token():
                        session.token = frame.token
                    case _:
                        msg = f"the client sent {type(frame).__name__}, which is not for a server"
                        raise FrameError(msg)
            await session.connection.flush()  # who does not read our answers is not read either

    def _begin(self, session: _Session, request: Request, group: TaskGroup) -> None:
        if request.id in session.running:
            msg = f"the client used request id {request.id} twice"
            raise FrameError(msg)
        if self._stopping.is_set():
            session.connection.send(Failure(request.id, "overloaded", "the server is stopping"))
        elif self._in_flight >= self._max_in_flight:
            text = f"{self._in_flight} requests are under way"
            session.connection.send(Failure(request.id, "overloaded", text))
        elif len(session.running) >= self._max_per_client:
            text = f"{len(session.running)} requests of this client are under way"
            session.connection.send(Failure(request.id, "overloaded", text))
        else:
            call = Call(
                payload=request.payload,
                peer=session.peer,
                deadline=anyio.current_time() + request.remaining_ms / 1000,
                traceparent=request.traceparent,
                interim=partial(self._say_ahead, session, request.id),
            )
            scope = anyio.CancelScope(deadline=call.deadline)
            session.running[request.id] = scope
            self._in_flight += 1
            group.start_soon(self._answer, session, request.id, call, scope)

    async def _answer(self, session: _Session, number: int, call: Call, scope: anyio.CancelScope) -> None:
        try:
            frame: Frame = Failure(number, "deadline", "stopped when the caller's time was up")
            with scope:
                frame = await self._outcome(number, call)
            if session.running.get(number) is not scope:
                return  # cancelled by the client, who expects no answer
            try:
                session.connection.send(frame)
            except FrameTooLarge as error:
                session.connection.send(Failure(number, "internal", f"the reply: {error}"))
            try:
                await session.connection.flush()
            except TransportError:
                return  # the reading side ends the conversation
        finally:
            if session.running.get(number) is scope:
                del session.running[number]
            self._in_flight -= 1
            if not self._in_flight and self._stopping.is_set():
                self._idle.set()

    def _say_ahead(self, session: _Session, number: int, payload: bytes) -> None:
        if number in session.running:
            with suppress(FrameTooLarge):  # and so will be the reply, which says it
                session.connection.send(InterimFrame(number, payload))

    async def _outcome(self, number: int, call: Call) -> Frame:
        try:
            return ReplyFrame(number, await self._handler(call))
        except Overloaded as error:
            return Failure(number, "overloaded", one_line(error))
        except Exception as error:  # noqa: BLE001  (the caller is told, and the log has the traceback)
            _log.exception("a request of %s failed", _who(call.peer))
            return Failure(number, "internal", one_line(error))


async def is_own_address(host: str) -> bool:
    """Whether a host, by name or address, is this machine: only a machine's own addresses can be listened on."""

    def bind() -> bool:
        try:
            found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        except OSError:
            return False
        for family, kind, protocol, _, address in found:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.bind(address)
                    return True
            except OSError:
                continue
        return False

    return await anyio.to_thread.run_sync(bind)


def _who(peer: Peer) -> str:
    return f"{peer.account} (pod {peer.pod or '-'}, node {peer.node or '-'})"


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception of a group."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
