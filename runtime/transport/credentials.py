"""Certificates and tokens as files that somebody renews while we run.

Kubernetes replaces a projected token well before it expires, and cert-manager or Helm may replace a certificate at any
time. A file is read again, on a worker thread, and what it says holds for whatever is set up after that.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread

from runtime.transport.port import TransportError

_log = logging.getLogger(__name__)

TokenSource = Callable[[], Awaitable[str]]
"""Gives the newest token. May raise: the next attempt to connect asks again."""


class CredentialError(TransportError):
    """One of our own files is missing or is not what it should be. The text names it."""


def token_file(path: Path) -> TokenSource:
    """A token that is read from `path` whenever it is asked for. The source raises `CredentialError`."""

    async def read() -> str:
        try:
            text = await anyio.Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeError) as error:
            msg = f"token file {path}: {_reason(error)}"
            raise CredentialError(msg) from error
        if not text.strip():
            msg = f"token file {path} is empty"
            raise CredentialError(msg)
        return text.strip()

    return read


class Trust:
    """The authorities in a CA file, as a client's TLS context."""

    def __init__(self, ca_file: Path) -> None:
        """`ca_file` holds PEM certificates."""
        self._path = ca_file
        self._pem = b""
        self._context: ssl.SSLContext | None = None

    async def context(self) -> ssl.SSLContext:
        """A context that trusts what the file says now; the same one while that does not change.

        Raises `CredentialError`.
        """
        try:
            pem = await anyio.Path(self._path).read_bytes()
            if self._context is None or pem != self._pem:
                self._context = await anyio.to_thread.run_sync(_client_context, pem)
                self._pem = pem
        except (OSError, ValueError) as error:
            msg = f"CA file {self._path}: {_reason(error)}"
            raise CredentialError(msg) from error
        return self._context


async def served_until(host: str, port: int, *, trust: Trust, name: str) -> float:
    """When the certificate of a server expires, Unix seconds, by a connection that accepts it for `name`.

    Raises `CredentialError` for our own file, OSError when there is no connection; `ssl.SSLError` is one.
    """
    _, writer = await asyncio.open_connection(host, port, ssl=await trust.context(), server_hostname=name)
    try:
        shown = writer.get_extra_info("peercert")
        return float(ssl.cert_time_to_seconds(shown["notAfter"]))
    finally:
        writer.close()


class ServerCertificate:
    """A server's certificate and key. Connections that are up keep the one they began with."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Both files are PEM; `cert_file` holds the chain, the leaf first."""
        self._cert_file = cert_file
        self._key_file = key_file
        self._pem = (b"", b"")
        self._newest: ssl.SSLContext | None = None

    async def load(self) -> ssl.SSLContext:
        """The context to listen with: every handshake takes the newest certificate. Raises `CredentialError`."""
        await self._refresh()
        assert self._newest is not None
        context = self._newest

        def newest(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
            assert self._newest is not None
            connection.context = self._newest

        context.sni_callback = newest
        return context

    async def follow(self, seconds: float) -> None:
        """Look at the files every so many seconds, for ever. A pair that does not fit is logged and not used."""
        complained = ""
        while True:
            await anyio.sleep(seconds)
            try:
                if await self._refresh():
                    _log.info("new server certificate from %s", self._cert_file)
                complained = ""
            except CredentialError as error:
                if str(error) != complained:  # half of a pair may have been written: the next look shows
                    _log.warning("keeping the server certificate as it is: %s", error)
                complained = str(error)

    async def _refresh(self) -> bool:
        try:
            pem = (await anyio.Path(self._cert_file).read_bytes(), await anyio.Path(self._key_file).read_bytes())
            if pem == self._pem:
                return False
            self._newest = await anyio.to_thread.run_sync(_server_context, self._cert_file, self._key_file)
        except (OSError, ValueError) as error:
            msg = f"server certificate {self._cert_file} with key {self._key_file}: {_reason(error)}"
            raise CredentialError(msg) from error
        self._pem = pem
        return True


def _client_context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=pem.decode("ascii"))
    return context


def _server_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # connections last for days: nobody resumes a session
    context.load_cert_chain(cert_file, key_file, password=_no_password)
    return context


def _no_password() -> str:
    """Instead of OpenSSL's own prompt on the terminal."""
    raise ValueError("the key is encrypted")


def _reason(error: Exception) -> str:
    """What went wrong, without the path that an `OSError` repeats."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def one_line(error: BaseException) -> str:
    """An exception as text for an operator: its type unless it is a plain one of ours, and its first line."""
    text = str(error).partition("\n")[0][:500]
    if isinstance(error, TransportError):
        return text
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, asyncio.TimeoutError) and not text:
        return "timed out"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
