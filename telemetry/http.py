"""The small HTTP server behind /metrics, /healthz, the probes of the original's chart, and the webhooks.

HTTP/1.1 with keep-alive on asyncio streams, over TLS where a context is given: GET and HEAD of a handful of paths, and
POST of those that set something off or are asked something. What else a request says is in its path and query: a body
that nobody asked for is read past. It is separate from the CNI socket on purpose,
so that a kubelet that floods one cannot starve the probes of the other.

Two agents of a node run at once while one replaces the other, on the node's network. So the port is shared
(SO_REUSEPORT), and a unix socket in the pod answers for this process alone: that is where the probes ask.

========================= ====================================================================================
GET /metrics              the metrics, if the server was given a program
GET /healthz              the supervision tree as JSON; 200 when ok or degraded, else 503. ``?text``: for people
GET /debug/traces         the ids of the traces in memory as JSON, with ``?<id>`` the spans of one (`FinishedSpan`), if
                          the server was given a recorder
GET /v1/runtime/startup   200 once nothing is starting, else 500 (as the original's)
GET /v1/runtime/readiness 200 when ok or degraded, else 500
GET /v1/runtime/liveness  200 unless something has failed, else 500
========================= ====================================================================================

A probe that is not 200 says in its body which parts are the reason, a line each. A path that exists is answered with
405 to any method but its own.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from telemetry import metrics
from telemetry.health import HealthTree, State
from telemetry.recorder import SpanRecorder

logger = logging.getLogger(__name__)

_HEAD_LIMIT = 16 * 1024
_BODY_LIMIT = 64 * 1024
"""Of a body that nobody asked for. Nothing of it is kept; a client that sends more has another server in mind."""
_HELD_LIMIT = 64 * 1024 * 1024
"""Bytes of all bodies that are under way: whoever reaches the port may send, and the program's memory is limited."""
_IDLE_SECONDS = 60.0
_CONNECTIONS = 64
_HANDSHAKE_SECONDS = 5.0
_WELL = (State.OK, State.DEGRADED)


class Response(Struct, frozen=True):
    """What a route answers."""

    body: bytes = b""
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = "text/plain; charset=utf-8"
    allow: str = ""
    """The methods that the path has, where it is not for the one that was used."""


type Answer = Callable[[str], Response]
"""Gets the query string; runs on the event loop, so it must be quick."""


class Post(Struct, frozen=True):
    """A route for POST: it sets something off, and says that it has."""

    answer: Answer


class Ask(Struct, frozen=True):
    """A route for POST that answers what is in the body."""

    answer: Callable[[bytes], Awaitable[Response]]
    """Runs on the event loop; the connection waits for it."""
    limit: int
    """Bytes of the longest body."""


type Route = Answer | Post | Ask
"""What a path does. A bare function is for GET and HEAD."""


class HttpServer:
    """Serves while the ``async with`` block runs.

    >>> async with HttpServer("127.0.0.1", 5711, health=tree, program=Program.AGENT) as server:
    ...     print(server.port)
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        health: HealthTree | None = None,
        program: metrics.Program | None = None,
        recorder: SpanRecorder | None = None,
        routes: Mapping[str, Route] | None = None,
        unix: Path | None = None,
        tls: ssl.SSLContext | None = None,
        idle: float = _IDLE_SECONDS,
        connections: int = _CONNECTIONS,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing is opened before the block is entered, which raises OSError when the address cannot be had.

        Args:
            host: an address or a name; empty for all addresses of both families.
            port: 0 for any free one.
            health: gives /healthz and /v1/runtime/*.
            program: gives /metrics, with the metrics of that program.
            recorder: gives /debug/traces.
            routes: more paths, or others for the same ones; a function is for GET, `Post` and `Ask` for POST.
            unix: path of a unix socket that is served as well; what lies there is replaced.
            tls: with what the port is served; plain without.
            idle: seconds that a connection is kept for the next request, and that one may take to come.
            connections: at a time; one more is closed.
            leaving: whether an answer is the last one of its connection, so that the next request goes elsewhere.
        """
        self._host = host or None
        self._port = port
        self._unix = unix
        self._tls = tls
        self._idle = idle
        self._most = connections
        self._leaving = leaving
        self._held = 0
        self._server: asyncio.Server | None = None
        self._unix_server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._program = program
        self._routes: dict[str, Route] = {
            **({"/healthz": _tree(health), **probes(health)} if health else {}),
            **(_trace_routes(recorder) if recorder else {}),
            **(routes or {}),
        }

    def __repr__(self) -> str:
        return f"<HttpServer {self._host or '*'}:{self.port}{'' if self._server else ' closed'}>"

    @property
    def port(self) -> int:
        """The port that is listened on; before that the one asked for."""
        if self._server is None or not self._server.sockets:
            return self._port
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        if self._unix is not None:
            listener = await asyncio.to_thread(_at_path, self._unix)
            self._unix_server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_HEAD_LIMIT)
        try:
            if self._host is None:
                listener = _any_address(self._port)
                self._server = await asyncio.start_server(
                    self._accept, sock=listener, limit=_HEAD_LIMIT, **self._over()
                )
            else:
                self._server = await asyncio.start_server(
                    self._accept, self._host, self._port, limit=_HEAD_LIMIT, reuse_port=True, **self._over()
                )
        except OSError:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        servers = self._server, self._unix_server
        self._server = self._unix_server = None
        for server in servers:
            if server is not None:
                server.close()
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def drain(self, seconds: float) -> None:
        """Take no more connections, and return when every request that has begun to come is answered, or then."""
        for server in (self._server, self._unix_server):
            if server is not None:
                server.close()
        await asyncio.sleep(0)  # a request that is there already is seen
        for task in self._connections - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy, timeout=seconds)

    def _over(self) -> dict[str, Any]:
        return {"ssl": self._tls, "ssl_handshake_timeout": _HANDSHAKE_SECONDS} if self._tls is not None else {}

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._most:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer), name="telemetry.http")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client has gone or has nothing to say
        except Exception:
            logger.exception("a request was not answered")
        finally:
            self._busy.discard(_this_task())
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection stays open."""
        self._busy.discard(_this_task())
        try:
            async with asyncio.timeout(self._idle):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await _send(writer, Response(status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), keep=False, body=True)
            return False
        self._busy.add(_this_task())
        request, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        words = request.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            await _send(writer, Response(status=HTTPStatus.BAD_REQUEST), keep=False, body=True)
            return False
        method, target, version = words
        path, _, query = target.partition("?")
        route = self._routes.get(path)
        limit = route.limit if isinstance(route, Ask) else _BODY_LIMIT
        sent = await self._body(reader, headers, limit)
        unread = isinstance(sent, Response)
        keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close" and not unread
        answer = sent if isinstance(sent, Response) else await self._answer(method, path, query, sent)
        keep = keep and not self._leaving()
        await _send(writer, answer, keep=keep, body=method != "HEAD")
        return keep

    async def _body(self, reader: asyncio.StreamReader, headers: Mapping[str, str], limit: int) -> bytes | Response:
        """What was sent, or a refusal: then something of it is left, so that the connection is of no more use."""
        length = _length(headers, limit)
        if isinstance(length, Response):
            return length
        if self._held + length > _HELD_LIMIT:
            return Response(b"too much is being sent at once\n", HTTPStatus.SERVICE_UNAVAILABLE)
        self._held += length
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                return await reader.readexactly(length)
        finally:
            self._held -= length

    async def _answer(self, method: str, path: str, query: str, sent: bytes) -> Response:
        route = self._routes.get(path)
        if route is None and (path != "/metrics" or self._program is None):
            return Response(b"not found\n", HTTPStatus.NOT_FOUND)
        methods = ("POST",) if isinstance(route, Post | Ask) else ("GET", "HEAD")
        if method not in methods:
            allow = ", ".join(methods)
            return Response(f"use {allow}\n".encode(), HTTPStatus.METHOD_NOT_ALLOWED, allow=allow)
        if isinstance(route, Ask):
            return await route.answer(sent)
        if route is not None:
            return route.answer(query) if isinstance(route, Post) else route(query)
        assert self._program is not None
        metrics.refresh()
        body = await asyncio.to_thread(metrics.render, self._program)
        return Response(body=body, content_type=metrics.CONTENT_TYPE)


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _length(headers: Mapping[str, str], limit: int) -> int | Response:
    """Bytes of the body, or a refusal."""
    if "transfer-encoding" in headers:
        return Response(b"a body needs a Content-Length\n", HTTPStatus.LENGTH_REQUIRED)
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return Response(f"Content-Length: {length[:20]!r} is no number\n".encode(), HTTPStatus.BAD_REQUEST)
    if len(length) > 9 or int(length) > limit:
        return Response(f"a body of more than {limit} bytes\n".encode(), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return int(length)


def _any_address(port: int) -> socket.socket:
    """One socket for both families, so that port 0 is one port."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=True)
    return socket.create_server(("", port), reuse_port=True)


def _at_path(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _tree(health: HealthTree) -> Route:
    def answer(query: str) -> Response:
        status = HTTPStatus.OK if health.status() in _WELL else HTTPStatus.SERVICE_UNAVAILABLE
        if query == "text":
            return Response(health.render().encode(), status)
        return Response(health.to_json(), status, "application/json")

    return answer


def probes(health: HealthTree) -> dict[str, Answer]:
    """What tells a kubelet how the program is."""

    def probe(is_well: Callable[[State], bool]) -> Answer:
        def answer(_query: str) -> Response:
            if is_well(health.status()):
                return Response()
            reasons = "".join(f"{' '.join(line.split())}\n" for line in health.reasons())
            return Response(reasons.encode(), HTTPStatus.INTERNAL_SERVER_ERROR)

        return answer

    return {
        "/v1/runtime/startup": probe(lambda state: state is not State.STARTING and state is not State.FAILED),
        "/v1/runtime/readiness": probe(lambda state: state in _WELL),
        "/v1/runtime/liveness": probe(lambda state: state is not State.FAILED),
    }


def _trace_routes(recorder: SpanRecorder) -> dict[str, Route]:
    def answer(query: str) -> Response:
        try:
            found = recorder.trace(query) if query else recorder.trace_ids()
        except ValueError:
            return Response(b"not a trace id\n", HTTPStatus.BAD_REQUEST)
        if not found and query:
            return Response(b"no such trace\n", HTTPStatus.NOT_FOUND)
        return Response(msgspec.json.encode(found) + b"\n", content_type="application/json")

    return {"/debug/traces": answer}


async def _send(writer: asyncio.StreamWriter, answer: Response, *, keep: bool, body: bool) -> None:
    allow = f"Allow: {answer.allow}\r\n" if answer.allow else ""
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"{allow}"
        f"Content-Length: {len(answer.body)}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (answer.body if body else b""))
    async with asyncio.timeout(_IDLE_SECONDS):
        await writer.drain()
