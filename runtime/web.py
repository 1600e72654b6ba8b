"""Requests to other people's HTTP services: a port, and its adapter on aiohttp.

What counts for whoever asks is what a failure leaves behind: a request that was surely not carried out, or one that
may have been, or may still be.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol

import aiohttp
from msgspec import Struct

ANSWER_BYTES: Final = 1 << 20
"""Longer answers are none."""
CONNECT_SECONDS: Final = 5.0
"""For the TCP and TLS handshake."""
_CONNECTIONS: Final = 64


class Answer(Struct, frozen=True):
    """Status and body; whatever the status, the request is over."""

    status: int
    body: bytes


class WebError(Exception):
    """There is no answer."""


class Unsent(WebError):
    """The request was surely not carried out: nobody could be reached."""


class Unanswered(WebError):
    """It may have been carried out, or may still be."""


class Web(Protocol):
    """Where requests are sent."""

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str], seconds: float) -> Answer:
        """Send JSON, and wait so long for all of the answer. Redirects are answers. Raises `WebError`."""
        ...


class _Progress:
    """How far one request came."""

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False


class AiohttpWeb:
    """`Web` on aiohttp. Not thread safe: one loop uses it. To be closed."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """`tls` is for servers whose URL says https; None: the authorities that this machine trusts."""
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<AiohttpWeb{' open' if self._session is not None else ''}>"

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str], seconds: float) -> Answer:
        """See `Web`."""
        progress = _Progress()
        try:
            async with (
                asyncio.timeout(seconds),
                self._opened().post(
                    url,
                    data=body,
                    headers={"Content-Type": "application/json", **headers},
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                    trace_request_ctx=progress,
                ) as response,
            ):
                read = await response.content.read(ANSWER_BYTES + 1)
                while not response.content.at_eof() and len(read) <= ANSWER_BYTES:
                    read += await response.content.read(ANSWER_BYTES + 1 - len(read))
                if len(read) > ANSWER_BYTES:
                    response.close()
                    msg = f"the answer has more than {ANSWER_BYTES} bytes"
                    raise Unanswered(msg)
                return Answer(response.status, read)
        except TimeoutError as error:
            raise _lost(progress, f"no answer within {seconds:.1f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _lost(progress, str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Give up all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig(trace_config_ctx_factory=_context)  # type: ignore[arg-type]
            tracing.on_request_headers_sent.append(_mark_sent)
            tls: ssl.SSLContext | bool = self._tls or True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=tls),
                trust_env=False,
                trace_configs=[tracing],
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._session._retry_connection = False  # noqa: SLF001 - there is no public switch
        return self._session


def _context(trace_request_ctx: _Progress) -> _Progress:
    return trace_request_ctx


async def _mark_sent(session: aiohttp.ClientSession, context: Any, params: object) -> None:  # noqa: ARG001
    context.sent = True


def _lost(progress: _Progress, text: str) -> WebError:
    return Unanswered(text) if progress.sent else Unsent(text)
