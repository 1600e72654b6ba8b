"""The way out for traces: the node's namespace ends at the LAN, and the user's collector is outside.

Bytes are passed on unread. For https the exporter is given this as its proxy (it sends CONNECT and then TLS that only
the collector can read); for http the endpoint itself is rewritten.
"""

import contextlib
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from cni.netlink.socket import Netns

_NAMES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SECONDS = 5.0


class Relay:
    """Listens in a namespace and connects from outside. Serves while the `with` block runs."""

    def __init__(self, netns: Netns, endpoint: str, *, outside: Executor) -> None:
        """`endpoint` is the URL of the collector; what runs on `outside` can reach it."""
        self._outside = outside
        self._url = urlsplit(endpoint)
        self._target = (self._url.hostname or "", self._url.port or (443 if self._url.scheme == "https" else 80))
        with netns.entered():
            self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, name="relay", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def settings(self, name: str) -> dict[str, str]:
        """The environment by which an exporter comes this way; `name` is the variable that held the endpoint."""
        here = f"127.0.0.1:{self.port}"
        if self._url.scheme == "https":
            return {"HTTPS_PROXY": f"http://{here}", "NO_PROXY": ""}
        return {name: urlunsplit(self._url._replace(netloc=here)), "NO_PROXY": "*"}

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, self._connected() as server:
            server.settimeout(None)
            if self._url.scheme == "https":
                while (head := client.recv(4096)) and not head.endswith(b"\r\n\r\n"):
                    pass
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join()

    def _connected(self) -> socket.socket:
        return self._outside.submit(socket.create_connection, self._target, _SECONDS).result()


def endpoint(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that names a collector, and its value."""
    return next(((name, environ[name]) for name in _NAMES if environ.get(name, "").strip()), None)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
