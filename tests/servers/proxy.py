"""A proxy in front of the API server that misbehaves on demand, as networks and load balancers do.

Clients dial it with TLS (a certificate of the same authority), it dials the API server, and one connection of a client
is one connection behind it. Then it can cut what is open, hold replies back, lose requests, and lose the reply of a
write *after* the write was committed, which is the fault that a client can tell from none of the others.

HTTP/1.1 only, and credentials have to be in the requests: a bearer token passes, a client certificate does not.

It runs on a thread with a loop of its own; its methods may be called from any thread.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from enum import Enum
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from tests.servers.process import free_port

if TYPE_CHECKING:
    from tests.servers.control_plane import ControlPlane

_HEAD: Final = 64 * 1024
_PIECE: Final = 64 * 1024
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})


class Request(msgspec.Struct, frozen=True):
    """What a fault is chosen by."""

    method: str
    path: str
    """Without the query."""
    agent: str
    """User-Agent."""

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.method not in _READS


class Kind(Enum):
    """What happens to a request that a fault meets."""

    DROP_REPLY = "its reply was read to the end and thrown away, the connection cut"
    LOSE_REQUEST = "it was not passed on, the connection cut"
    HOLD_REPLY = "its reply was kept back for a while"


class Fault(msgspec.Struct):
    """A fault that waits for its requests. `DROP_REPLY` counts only those that the API server has carried out."""

    kind: Kind
    when: Callable[[Request], bool]
    left: int
    seconds: float = 0.0


class _Gone(Exception):
    """One side has ended the conversation, or a fault has."""


def is_write(request: Request) -> bool:
    """The usual choice for a fault."""
    return request.is_write


class Proxy:
    """A context manager; `url` is where clients dial.

    Attributes:
        url: `https://127.0.0.1:port`.
        met: how often each kind of fault has struck; `cut` counts connections.
        passed: requests by method and HTTP status of the reply that the client got.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self.met: Counter[str] = Counter()
        self.passed: Counter[tuple[str, int]] = Counter()
        pair = control_plane.authority.issue("api-proxy", hosts=["127.0.0.1", "localhost"])
        self._serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._serving.load_cert_chain(pair.certificate, pair.key)
        self._serving.set_alpn_protocols(["http/1.1"])
        self._dialling = ssl.create_default_context(cafile=str(control_plane.ca_file))
        self._dialling.set_alpn_protocols(["http/1.1"])
        self._target = control_plane.url.rpartition("/")[2].rsplit(":", 1)
        self._faults: list[Fault] = []
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-proxy", daemon=True)
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"<Proxy {self.url} {len(self._open)} connections, {len(self._faults)} faults wait>"

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- faults --------------------------------------------------------------------------------------------------------

    def drop_replies(self, count: int = 1, *, when: Callable[[Request], bool] = is_write) -> None:
        """The next `count` requests that match and succeed are carried out, and nobody is told."""
        self._add(Fault(Kind.DROP_REPLY, when, count))

    def lose_requests(self, count: int = 1, *, when: Callable[[Request], bool] = is_write) -> None:
        """The next `count` requests that match are not carried out, and nobody is told."""
        self._add(Fault(Kind.LOSE_REQUEST, when, count))

    def hold_replies(self, count: int = 1, *, seconds: float, when: Callable[[Request], bool] = is_write) -> None:
        """The replies of the next `count` requests that match come late; they are carried out in time."""
        self._add(Fault(Kind.HOLD_REPLY, when, count, seconds))

    def cut(self) -> int:
        """Cut every open connection, watches too, wherever it is; returns how many there were."""
        return self._call(self._cut())

    def heal(self) -> None:
        """Forget the faults that have not struck yet."""
        self._loop.call_soon_threadsafe(self._faults.clear)

    def _add(self, fault: Fault) -> None:
        self._loop.call_soon_threadsafe(self._faults.append, fault)

    def _call[T](self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _struck_by(self, request: Request, *kinds: Kind) -> Fault | None:
        for fault in self._faults:
            if fault.kind in kinds and fault.when(request):
                fault.left -= 1
                if not fault.left:
                    self._faults.remove(fault)
                self.met[fault.kind.name] += 1
                return fault
        return None

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self._port, ssl=self._serving, limit=_HEAD, backlog=512
        )

    async def _close(self) -> None:
        assert self._server is not None
        self._closing = True
        self._server.close()
        await self._cut()
        await asyncio.sleep(0.05)  # transports that were aborted let go of their sockets

    async def _cut(self) -> int:
        tasks = list(self._open)
        for task, writer in self._open.items():
            task.cancel()
            writer.transport.abort()  # a task that has not begun yet does not do it
        await asyncio.gather(*tasks, return_exceptions=True)
        self.met["cut"] += len(tasks)
        return len(tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:
            writer.transport.abort()
            return
        task = self._loop.create_task(self._converse(reader, writer))
        self._open[task] = writer
        task.add_done_callback(lambda task: self._open.pop(task, None))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind: asyncio.StreamWriter | None = None
        try:
            host, port = self._target
            back, behind = await asyncio.open_connection(host, int(port), ssl=self._dialling, limit=_HEAD)
            while True:
                await self._exchange(reader, writer, back, behind)
        except (_Gone, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            # Not closed in order: a client must find out by itself, as it does when a machine on the way dies.
            writer.transport.abort()
            if behind is not None:
                behind.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamReader,
        behind: asyncio.StreamWriter,
    ) -> None:
        head = await _head(reader)
        request, length, chunked = _request(head)
        if self._struck_by(request, Kind.LOSE_REQUEST):
            raise _Gone
        behind.write(head)
        async for piece in _body(reader, length, chunked=chunked):
            behind.write(piece)
            await behind.drain()

        answer = await _head(back)
        status, length, chunked = _answer(answer, request.method)
        done = status < HTTPStatus.MULTIPLE_CHOICES
        fault = self._struck_by(request, Kind.DROP_REPLY, Kind.HOLD_REPLY) if done else None
        if fault is not None and fault.kind is Kind.DROP_REPLY:
            async for _ in _body(back, length, chunked=chunked):
                pass
            raise _Gone
        if fault is not None:
            await asyncio.sleep(fault.seconds)
        writer.write(answer)
        async for piece in _body(back, length, chunked=chunked):
            writer.write(piece)
            await writer.drain()
        await writer.drain()
        self.passed[request.method, status] += 1


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to and with the empty line. Raises `IncompleteReadError` where the stream ends."""
    return await reader.readuntil(b"\r\n\r\n")


def _fields(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _request(head: bytes) -> tuple[Request, int, bool]:
    """The request, the length of its body, and whether that comes in chunks instead."""
    first, fields = _fields(head)
    method, target, _ = first.split(" ", 2)
    request = Request(method=method, path=target.partition("?")[0], agent=fields.get("user-agent", ""))
    return request, int(fields.get("content-length", "0")), fields.get("transfer-encoding", "") == "chunked"


def _answer(head: bytes, method: str) -> tuple[int, int, bool]:
    """Status, length of the body, and whether that comes in chunks instead. Raises `_Gone` where it has no end."""
    first, fields = _fields(head)
    status = int(first.split(" ", 2)[1])
    if method == "HEAD" or status in _BODILESS:
        return status, 0, False
    chunked = fields.get("transfer-encoding", "") == "chunked"
    if not chunked and "content-length" not in fields:
        raise _Gone
    return status, int(fields.get("content-length", "0")), chunked


async def _body(reader: asyncio.StreamReader, length: int, *, chunked: bool) -> AsyncIterator[bytes]:
    """The body as it comes, framing included."""
    if not chunked:
        while length:
            piece = await reader.read(min(length, _PIECE))
            if not piece:
                raise _Gone
            length -= len(piece)
            yield piece
        return
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        chunk = await reader.readexactly(size + 2)  # trailers, which may follow the last chunk, are not sent by Go here
        yield line + chunk
        if not size:
            return
