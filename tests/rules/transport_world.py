"""A client and a server on loopback with certificates of their own, and a proxy between them that can do harm."""

import asyncio
import contextlib
import datetime
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.transport.credentials import token_file
from runtime.transport.port import Call, Handler, Peer, Refused
from runtime.transport.server import ServerTiming, TlsServer
from runtime.transport.tls import Timing, TlsChannel

NAME = "spiderpool-controller.kube-system.svc"
QUICK = Timing(connect=2.0, backoff_first=0.01, backoff_most=0.05, ping=0.1, silence=0.4, token_check=0.05)
QUICK_SERVER = ServerTiming(
    hello=0.5, authenticate=0.1, doubt=0.3, ping=0.1, silence=0.4, drain=0.5, certificate=0.05, audit=60.0
)


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key, authority=True)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, folder: Path, name: str = NAME) -> None:
        """Write tls.crt and tls.key for a DNS name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key, san=[x509.DNSName(name)])
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "tls.key").write_bytes(pem)
        (folder / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool = False,
        san: list[x509.GeneralName] | None = None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@functools.cache
def authority(name: str = "test authority") -> Authority:
    return Authority(name)


class Accounts:
    """Stands for TokenReview: knows some tokens."""

    def __init__(self) -> None:
        self.peers = {"good": Peer(account="agent", node="n1", pod="ns/a", pod_uid="u1")}
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def __call__(self, token: str) -> Peer:
        self.asked.append(token)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if token not in self.peers:
            msg = f"nobody knows the token {token!r}"
            raise Refused(msg)
        return self.peers[token]


async def echo(call: Call) -> bytes:
    return call.payload


class Gate:
    """A handler that waits to be let go, and remembers what happened to its calls."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[bytes] = []
        self.ended: list[bytes] = []
        self.cancelled: list[bytes] = []

    async def __call__(self, call: Call) -> bytes:
        self.begun.append(call.payload)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(call.payload)
            raise
        self.ended.append(call.payload)
        return call.payload


class World:
    """Files of one test, one server, and channels to it."""

    def __init__(self, folder: Path, handler: Handler = echo, **server: Any) -> None:
        self.folder = folder
        self.token_path = folder / "token"
        self.ca_path = folder / "ca.crt"
        self.token_path.write_text("good\n")
        self.ca_path.write_bytes(authority().pem)
        authority().issue(folder)
        self.accounts = Accounts()
        self.handler = handler
        self._server_settings = server
        self.server = self.new_server(0)

    def new_server(self, port: int) -> TlsServer:
        settings: dict[str, Any] = {
            "timing": QUICK_SERVER,
            "name": "controller-0",
            "authenticate": self.accounts,
            **self._server_settings,
        }
        return TlsServer(
            "127.0.0.1",
            port,
            cert_file=self.folder / "tls.crt",
            key_file=self.folder / "tls.key",
            handler=self.handler,
            **settings,
        )

    def channel(self, port: int, **settings: Any) -> TlsChannel:
        wanted: dict[str, Any] = {"server_name": NAME, "timing": QUICK, **settings}
        return TlsChannel(
            "127.0.0.1", port, ca_file=self.ca_path, token=token_file(self.token_path), random=Random(1), **wanted
        )

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[TlsServer]:
        """A server, running until the block ends."""
        server = self.server = self.new_server(port)
        async with anyio.create_task_group() as group:
            group.start_soon(server.run)
            await server.listening()
            try:
                yield server
            finally:
                group.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def connecting(self, port: int | None = None, **settings: Any) -> AsyncIterator[TlsChannel]:
        """A channel to the running server (or another port), running until the block ends."""
        channel = self.channel(self.server.port if port is None else port, **settings)
        async with anyio.create_task_group() as group:
            group.start_soon(channel.run)
            try:
                yield channel
            finally:
                group.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def connecting_later(self) -> AsyncIterator[Callable[[int], Awaitable[TlsChannel]]]:
        """A function that makes a connected channel to a port; the channel runs until the block ends."""
        async with anyio.create_task_group() as group:

            async def connect(port: int) -> TlsChannel:
                channel = self.channel(port)
                group.start_soon(channel.run)
                await until(lambda: channel.connected)
                return channel

            try:
                yield connect
            finally:
                group.cancel_scope.cancel()


def soon(seconds: float = 5.0) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await anyio.sleep(0.005)


class Proxy:
    """A TCP relay that can break its connections or hold every byte back."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.held = asyncio.Event()
        self.held.set()
        self._writers: list[asyncio.StreamWriter] = []
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.held.set()
            server.close()
            self.cut()
            await server.wait_closed()
            await asyncio.sleep(0.01)

    def hold(self) -> None:
        """Pass nothing on, and leave the connections open."""
        self.held.clear()

    def release(self) -> None:
        self.held.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.held.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
