"""The running programs behind a store, and how a verb asks them: by the HTTP that they serve for probes.

A controller replica is reached through the API server's proxy to its pod, so that a kubeconfig is all it takes; a
spiderpool-standalone through the unix socket in its state folder.
"""

import argparse
import asyncio
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

from api.core import SERVICE_LABEL, EndpointSlice, ObjectReference
from api.kinds import ENDPOINTSLICE
from api.status import SOCKET_NAME
from runtime.store.apiserver import Call
from runtime.store.kubernetes import KubernetesStore
from runtime.store.observe import Outcome
from runtime.store.port import Store, StoreError

_HTTP_PORT = "http"
_SECONDS = 10.0
_MOST_HEAD = 64 << 10


class Silent(Exception):
    """A program did not answer, or not well. Its text is one line."""


class Program(Protocol):
    """One that can be asked."""

    @property
    def name(self) -> str:
        """Of its pod, or its own."""
        ...

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body of a good answer. Raises `Silent`."""
        ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags by which people say where the controller runs."""
    parser.add_argument("-n", "--namespace", default="spiderpool", help="of the release (default %(default)s)")
    parser.add_argument("--controller", default="spiderpool-controller", metavar="NAME", help="its Deployment's name")


async def replicas(store: Store, state_dir: str, *, namespace: str, controller: str) -> Sequence[Program]:
    """Those that serve a store: the controller's replicas, or the one program of a state folder. Raises `StoreError`.

    Replicas that are not ready are among them; they may not answer.
    """
    if not isinstance(store, KubernetesStore):
        return [Standalone(Path(state_dir))]
    slices = (await store.list(ENDPOINTSLICE, namespace=namespace, labels={SERVICE_LABEL: controller})).items
    return [Replica(store, namespace, name, port) for name, port in sorted(health_ports(slices).items())]


def health_ports(slices: Iterable[EndpointSlice]) -> dict[str, int]:
    """The port of the controller's HTTP by the name of the replica's pod."""
    found: dict[str, int] = {}
    for item in slices:
        port = next((p.port for p in item.ports or () if p.name == _HTTP_PORT and p.port), 0)
        for endpoint in item.endpoints or ():
            target: ObjectReference | None = endpoint.target_ref
            if target is not None and port:
                found[target.name] = port
    return found


class Replica:
    """A replica of the controller."""

    def __init__(self, store: KubernetesStore, namespace: str, pod: str, port: int) -> None:
        """Nothing is asked yet."""
        self._store = store
        self._namespace = namespace
        self._port = port
        self.name = pod

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """See `Program.ask`."""
        proxy = f"/api/v1/namespaces/{self._namespace}/pods/{self.name}:{self._port}/proxy{path}"
        call = Call(method=method, path=proxy, query=query or {}, what=f"ask pod {self.name}")
        try:
            return await self._store.server.request(call, Outcome())
        except StoreError as error:
            raise Silent(_line(error)) from error


class Standalone:
    """The spiderpool-standalone of a state folder."""

    name = "spiderpool-standalone"

    def __init__(self, folder: Path) -> None:
        """Nothing is asked yet."""
        self._path = folder / SOCKET_NAME

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """See `Program.ask`."""
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            async with asyncio.timeout(_SECONDS):
                status, body = await _exchange(self._path, method, target)
        except TimeoutError:
            msg = f"{self._path}: no answer within {_SECONDS:g} s"
            raise Silent(msg) from None
        except (OSError, EOFError, ValueError) as error:
            msg = f"{self._path}: {error.strerror if isinstance(error, OSError) else error}: is it running?"
            raise Silent(msg) from error
        if status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT}:
            msg = f"{method} {target}: HTTP {status}: {_line(body.decode(errors='replace'))}"
            raise Silent(msg)
        return body


async def _exchange(path: Path, method: str, target: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_MOST_HEAD)
    try:
        writer.write(
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        return int(head.split(" ", 2)[1]), await reader.read()
    finally:
        writer.close()


def _line(text: object) -> str:
    return " ".join(str(text).split())
