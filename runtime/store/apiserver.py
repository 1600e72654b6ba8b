"""HTTP to one API server: deadlines, credentials, and what an error leaves behind. Knows nothing of objects.

aiohttp alone, with three of its ways changed: `trust_env` would cost a thread hop for each request, compressed answers
cost the API server more than the network saves, and its silent second try of a DELETE would hide that the first one
worked.
"""

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
from msgspec import Struct
from yarl import URL

from runtime.store.credentials import Credentials, CredentialsError
from runtime.store.observe import Outcome
from runtime.store.port import Ambiguous, Denied, StoreError, Unavailable
from runtime.store.status import error_of

READ_BUFFER = 2**21
"""Bytes. A line of a watch may be twice as long, and the biggest object that etcd takes is 1.5 MiB."""

_LARGE_BODY = 2**19

CONNECT_TIMEOUT = 5.0
"""Seconds for the TCP and TLS handshake."""


class Call(Struct, frozen=True, kw_only=True):
    """One request. `query` values are not yet quoted; `body` is JSON."""

    method: str
    path: str
    what: str
    """The request in words, for errors."""
    query: Mapping[str, str] = {}
    body: bytes | None = None
    content_type: str = "application/json"
    accept: str = "application/json"
    is_write: bool = False
    demanded_uid: bool = False


class _Progress:
    """How far one request came."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class ApiServer:
    """Connections to one API server, for requests and for watches. Not thread safe: one loop uses it."""

    def __init__(
        self, credentials: Credentials, *, deadline: float = 10.0, connections: int = 100, agent: str = "spiderpool"
    ) -> None:
        """Open nothing yet.

        Args:
            credentials: where and as whom.
            deadline: seconds for one request, waiting for a free connection included.
            connections: how many at most at a time, one for each watch included.
            agent: the User-Agent header, which audit logs and managedFields show.
        """
        self.credentials = credentials
        self.deadline = deadline
        self._connections = connections
        self._headers = {"Accept-Encoding": "identity", "User-Agent": agent}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._streams: dict[aiohttp.ClientResponse, None] = {}
        self._limits: dict[asyncio.Timeout, None] = {}

    def __repr__(self) -> str:
        return f"<ApiServer {self.credentials.url}{' closed' if self._closed else ''}>"

    async def request(self, call: Call, outcome: Outcome) -> bytes:
        """Send a request and return the body of a good answer. Sets `outcome.code` to the HTTP status.

        Raises the `StoreError` tree: `Unavailable` when it cannot have arrived, `Ambiguous` when a write may have.
        """
        status, body, headers = await self._reach(call)
        if status == HTTPStatus.UNAUTHORIZED and await self._renew(call):
            status, body, headers = await self._reach(call)
        outcome.code = str(status)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise error_of(
                status,
                body,
                what=call.what,
                is_write=call.is_write,
                retry_after=headers.get("Retry-After", ""),
                demanded_uid=call.demanded_uid,
            )
        return body

    @asynccontextmanager
    async def stream(self, call: Call, *, silence: float) -> AsyncIterator[aiohttp.StreamReader]:
        """Open an answer that goes on. `silence` is how many seconds without a byte mean that it is dead.

        Raises the `StoreError` tree on entry; what reading raises is the reader's to see.
        """
        response = await self._open(call, silence)
        if response.status == HTTPStatus.UNAUTHORIZED:
            _hang_up(response)
            await self._renew(call)
            response = await self._open(call, silence)
        try:
            if response.status != HTTPStatus.OK:
                body = await self._rest(response)
                raise error_of(
                    response.status, body, what=call.what, retry_after=response.headers.get("Retry-After", "")
                )
            self._streams[response] = None
            yield response.content
        finally:
            self._streams.pop(response, None)
            _hang_up(response)

    async def aclose(self) -> None:
        """Close all connections: whoever waits on one gets `Unavailable` or `Ambiguous`. Idempotent."""
        self._closed = True
        # Closing the session alone wakes nobody who waits for a byte.
        for response in self._streams:
            _hang_up(response)
        for limit in [limit for limit in self._limits if not limit.expired()]:
            limit.reschedule(asyncio.get_running_loop().time())
        if self._session is not None:
            await self._session.close()

    async def _reach(self, call: Call) -> tuple[int, bytes, Mapping[str, str]]:
        """Send a request; a read is sent again when a kept connection turns out to be dead."""
        try:
            return await self._send(call)
        except _Stale:
            pass
        try:
            return await self._send(call)
        except _Stale as error:
            raise Unavailable(str(error)) from error.__cause__

    async def _send(self, call: Call) -> tuple[int, bytes, Mapping[str, str]]:
        progress = _Progress()
        try:
            async with self._limited(), await self._begin(call, progress, timeout=None) as response:
                if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                    return response.status, await self._rest(response), response.headers
                return response.status, await response.read(), response.headers
        except TimeoutError as error:
            msg = f"{call.what}: {self._too_late()}"
            raise _lost(call, progress, msg) from error
        except (aiohttp.ClientError, OSError) as error:
            msg = f"{call.what}: {_words(error)}"
            dead = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            if dead and progress.sent and not call.is_write:
                raise _Stale(msg) from error
            raise _lost(call, progress, msg) from error

    async def _open(self, call: Call, silence: float) -> aiohttp.ClientResponse:
        progress = _Progress()
        try:
            async with self._limited():
                return await self._begin(call, progress, timeout=silence)
        except TimeoutError as error:
            msg = f"{call.what}: {self._too_late()}"
            raise Unavailable(msg) from error
        except (aiohttp.ClientError, OSError) as error:
            msg = f"{call.what}: {_words(error)}"
            raise Unavailable(msg) from error

    async def _begin(self, call: Call, progress: _Progress, *, timeout: float | None) -> aiohttp.ClientResponse:
        if self._closed:
            msg = f"{call.what}: the store is closed"
            raise Unavailable(msg)
        headers = {"Accept": call.accept, **self._headers}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        if self.credentials.tokens is not None:
            headers["Authorization"] = f"Bearer {await self._token(call)}"
        query = f"?{urlencode(call.query)}" if call.query else ""
        return await self._opened().request(
            call.method,
            URL(f"{self.credentials.url}{call.path}{query}", encoded=True),
            data=_payload(call.body),
            headers=headers,
            allow_redirects=False,
            server_hostname=self.credentials.server_name or None,
            proxy=self.credentials.proxy or None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=timeout),
            trace_request_ctx=progress,
        )

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        """Bound the block by the deadline and by the store's end. Raises `TimeoutError` for both."""
        async with asyncio.timeout(self.deadline) as limit:
            self._limits[limit] = None
            try:
                yield
            finally:
                del self._limits[limit]

    def _too_late(self) -> str:
        return "the store was closed" if self._closed else f"no answer within {self.deadline:g} s"

    async def _token(self, call: Call) -> str:
        assert self.credentials.tokens is not None
        try:
            return await self.credentials.tokens.token()
        except (OSError, CredentialsError) as error:
            msg = f"{call.what}: no token: {error}"
            raise Denied(msg) from error

    async def _renew(self, call: Call) -> bool:
        """Look for another token after a refusal; a second try with the same one would be refused too."""
        if self.credentials.tokens is None:
            return False
        try:
            return await self.credentials.tokens.renew()
        except (OSError, CredentialsError) as error:
            msg = f"{call.what}: no token: {error}"
            raise Denied(msg) from error

    async def _rest(self, response: aiohttp.ClientResponse) -> bytes:
        """Read the body of an error as far as it comes: the status has said what matters."""
        try:
            async with asyncio.timeout(self.deadline):
                return await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return b""

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig(trace_config_ctx_factory=_context)  # type: ignore[arg-type]
            tracing.on_request_headers_sent.append(_mark_sent)
            tls: ssl.SSLContext | bool = self.credentials.tls or True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, ssl=tls),
                trust_env=False,
                read_bufsize=READ_BUFFER,
                trace_configs=[tracing],
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._session._retry_connection = False  # noqa: SLF001 - there is no public switch
        return self._session


class _Stale(Exception):
    """A read got no answer on a connection that may just have been kept too long."""


def _context(trace_request_ctx: _Progress) -> _Progress:
    return trace_request_ctx


async def _mark_sent(session: aiohttp.ClientSession, context: Any, params: object) -> None:  # noqa: ARG001
    context.sent = True


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """End an answer that goes on, and its connection at once: TLS would wait for a farewell that nobody listens to."""
    transport = response.connection.transport if response.connection is not None else None
    response.close()
    if transport is not None:
        transport.abort()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """Choose the form that aiohttp writes piece by piece, where one write would hold the loop."""
    return io.BytesIO(body) if body is not None and len(body) > _LARGE_BODY else body


def _lost(call: Call, progress: _Progress, text: str) -> StoreError:
    return Ambiguous(text) if call.is_write and progress.sent else Unavailable(text)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
