"""The agent's unix socket: a small, strict HTTP/1.1 server for the shims of this node, and for the original's plugins.

One request a connection, since every exec of the shim makes its own. Who may speak is decided by what the kernel says
of the peer: root of the agent's own user namespace and nobody else (SO_PEERCRED). Whatever goes wrong inside a call of
the shim, the answer is a CNI error object; elsewhere an error is a JSON string. A traceback goes to the log.

The socket is bound under a temporary name and renamed over its final one, and it stays there on the way out: whoever
removes a path can only have looked beforehand whether it is still his, and a successor may bind in between. A socket
that nobody listens on refuses connections, which for the shim is the same as none: it waits.

On the way out, what connected before a successor's rename and waits in the queue is taken in first: nobody else would
answer it.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from msgspec import Struct

from cni.errors import CniError, InternalError
from cni.openapi import HEALTHY, error_body
from cni.protocol import Invocation, parse_invocation, peek_version
from cni.result import encode_error

_log = logging.getLogger(__name__)

Handler = Callable[[Invocation], Awaitable[bytes]]
"""Carries one call out: what goes on the plugin's stdout. Raises `CniError`."""


class Knock(Struct, frozen=True):
    """A request to another path than the shim's."""

    query: str = ""
    """What comes behind the question mark, as it came."""
    body: bytes = b""


class Answer(Struct, frozen=True):
    """What it gets."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"


Door = Callable[[Knock], Awaitable[Answer]]
"""Serves one path and method. What it raises is a defect: the answer is 500 and says no more than that."""

PATH = "/v1/cni"
MAX_BODY = 1 << 20
"""Bytes of stdin; the shim refuses more before it connects."""
_MAX_HEAD = 64 * 1024
_CREDENTIALS = struct.Struct("3i")
_HEAD_SECONDS = 10.0
_TURNS = 3
"""Of the loop, until a connection that it has accepted is a call here; a server that is closed before drops it."""


class _Refused(Exception):
    """Ends an exchange with an HTTP status and one line."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status

    def answer(self, *, plain: bool) -> Answer:
        """For the shim a line of text, for everybody else JSON."""
        if plain:
            return Answer(self.status, f"{self}\n".encode(), "text/plain; charset=utf-8")
        return Answer(self.status, error_body(str(self)) + b"\n")


class CniServer:
    """Serves while the ``async with`` block runs; then calls under way get `drain` seconds to end, and no more."""

    def __init__(
        self, path: Path, handler: Handler, *, doors: Mapping[str, Mapping[str, Door]] | None = None, drain: float = 1.0
    ) -> None:
        """`path` is where the shims connect. `doors` are more paths of requests, each with its methods."""
        self._path = path
        self._handler = handler
        self._doors = {HEALTHY: {"GET": _healthy}, **(doors or {})}
        self._drain = drain
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        self._inode = 0
        self._calls: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<CniServer {self._path} {len(self._calls)} calls>"

    async def __aenter__(self) -> Self:
        """Begin to serve. Raises `OSError` when the socket cannot be made."""
        self._listener = listener = await anyio.to_thread.run_sync(self._bind)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=_MAX_HEAD, backlog=512)
        return self

    def is_current(self) -> bool:
        """Whether the socket at the path is still this one: no successor has taken over. Blocks for a moment."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return True  # nobody else's either

    def is_lost(self) -> bool:
        """Whether nobody serves at the path any more: the file is gone, or a successor died. Blocks for a moment."""
        try:
            if self._path.stat().st_ino == self._inode:
                return False
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
                caller.connect(os.fspath(self._path))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            pass  # busy: then somebody is there
        return False

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        server, self._server = self._server, None
        with anyio.CancelScope(shield=True):
            await self._accept_queued()
            if server is not None:
                server.close()
            if self._calls:
                await asyncio.wait(self._calls, timeout=self._drain)
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            await asyncio.sleep(0)  # a transport that was closed lets go of its socket in the next turn

    def _bind(self) -> socket.socket:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(temporary))
            temporary.chmod(0o600)
            listener.listen(512)
            self._inode = temporary.stat().st_ino
            temporary.rename(self._path)
        except OSError:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise
        return listener

    async def _accept_queued(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # none is left
            connection.settimeout(0)
            reader = asyncio.StreamReader(limit=_MAX_HEAD, loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, self._accept, loop=loop)
            await loop.connect_accepted_socket(lambda protocol=protocol: protocol, connection)  # type: ignore[misc]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.get_running_loop().create_task(self._converse(reader, writer), name="cni.call")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer, headers = await self._exchange(reader, writer)
            body = answer.body
            head = [f"HTTP/1.1 {answer.status} {_phrase(answer.status)}"]
            head += [f"Content-Type: {answer.content_type}"] if body else []
            head += [f"{name}: {value}" for name, value in headers.items()]
            head += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
            writer.write("\r\n".join(head).encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the shim was killed: kubelet comes again
        finally:
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[Answer, Mapping[str, str]]:
        path = ""
        try:
            _check_peer(writer)
            async with asyncio.timeout(_HEAD_SECONDS):
                method, path, query, headers = await _read_head(reader)
                body = await reader.readexactly(_length(headers))
            if path != PATH:
                return await _knock(self._door(method, path), Knock(query, body), f"{method} {path}"), {}
            _check_method(method, path, ("POST",))
        except _Refused as refusal:
            return refusal.answer(plain=path in {"", PATH}), {}
        code, answer = await self._invoke(headers, body)
        return Answer(body=answer), {"Cni-Exit": str(code)}

    def _door(self, method: str, path: str) -> Door:
        doors = self._doors.get(path)
        if doors is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"no such path: {path}")
        _check_method(method, path, doors)
        return doors[method]

    async def _invoke(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Exit code and stdout of one call."""
        try:
            return 0, await self._handler(parse_invocation(headers, body))
        except CniError as error:
            _log.info("a CNI call failed: %r", error, extra={"code": error.code, "details": error.details})
            return 1, encode_error(error, peek_version(body))
        except Exception as error:  # noqa: BLE001 - a call must end with an error object whatever happens
            _log.exception("a CNI call met a defect")
            problem = InternalError("the agent met a defect, its log says where", f"{type(error).__name__}: {error}")
            return 1, encode_error(problem, peek_version(body))


async def _healthy(_: Knock) -> Answer:
    """Whoever is served is served by an agent that serves."""
    return Answer()


async def _knock(door: Door, knock: Knock, what: str) -> Answer:
    try:
        return await door(knock)
    except Exception as error:  # noqa: BLE001 - a plugin is told something whatever happens
        _log.exception("%s met a defect", what)
        text = f"{what}: the agent met a defect, its log says where: {type(error).__name__}"
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, error_body(text))


def _check_method(method: str, path: str, known: Collection[str]) -> None:
    if method not in known:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {' or '.join(known)}, not {method}")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"  # the original's own ones


def _check_peer(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid != 0:
        _log.warning("refused process %d of user %d on the CNI socket", pid, uid)
        raise _Refused(HTTPStatus.FORBIDDEN, f"user {uid} is not root")


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, str, str, dict[str, str]]:
    """Method, path, query and headers."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _Refused(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is longer than {_MAX_HEAD} bytes"
        ) from None
    request, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = request.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator or name != name.strip():
            raise _Refused(HTTPStatus.BAD_REQUEST, "a header line is malformed")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
    path, _, query = words[1].partition("?")
    return words[0], path, query, headers


def _length(headers: Mapping[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise _Refused(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    if int(text) > MAX_BODY:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is {text} bytes, at most {MAX_BODY} are taken")
    return int(text)
