"""Requests to a cluster's API server from this process, for where starting kubectl would cost more than the answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Self

from tests.cluster.lab import plan

if TYPE_CHECKING:
    from tests.cluster.lab.cluster import Cluster

_PORT: Final = 6443
_IDLE_SECONDS: Final = 30.0
"""The API server closes what is idle for longer, and the next request would be the one to notice."""

_MERGE: Final = "application/merge-patch+json"


class Refused(Exception):
    """The API server answered with an error.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, status: int, asked: str, answer: str) -> None:
        super().__init__(f"{asked}: {status} {answer[:500]}")
        self.status = status


class ApiClient:
    """One connection as the administrator, opened when it is needed; for one thread at a time.

    Every method raises OSError or http.client.HTTPException when the server is away, and `Refused`.
    """

    def __init__(self, cluster: Cluster, *, timeout: float = 30.0) -> None:
        """Nothing is dialled yet. `timeout` is that of an answer, seconds."""
        self._space = cluster.plane.netns()
        self._timeout = timeout
        keys = cluster.folder / "pki"
        self._tls = ssl.create_default_context(cafile=str(keys / "ca.crt"))
        self._tls.load_cert_chain(keys / "admin.crt", keys / "admin.key")
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The next request opens a new connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str) -> Any:
        """An object or a list."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """What is no JSON: /metrics."""
        return self._request("GET", path)

    def create(self, path: str, body: Any) -> Any:
        """POST to a collection."""
        return json.loads(self._request("POST", path, body))

    def merge(self, path: str, body: Any) -> Any:
        """A JSON merge patch."""
        return json.loads(self._request("PATCH", path, body, _MERGE))

    def delete(self, path: str, *, force: bool = False) -> None:
        """DELETE of one object, or of a collection; one that is not there is fine. `force`: without a grace period."""
        try:
            self._request("DELETE", path, {"gracePeriodSeconds": 0} if force else None)
        except Refused as problem:
            if problem.status != http.HTTPStatus.NOT_FOUND:
                raise

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of a watch, until the server or `interrupt` ends it."""
        connection = self._connected()
        if connection.sock is not None:
            connection.sock.settimeout(None)
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise Refused(answer.status, f"GET {path}", answer.read().decode(errors="replace"))
        while line := answer.readline():
            yield line

    def interrupt(self) -> None:
        """Ends the watch of another thread."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> http.client.HTTPConnection:
        now = time.monotonic()
        if now - self._used > _IDLE_SECONDS:
            self.close()
        self._used = now
        if self._connection is None:
            host, _ = plan.API
            plain = self._space.run(lambda: socket.create_connection((host, _PORT), timeout=self._timeout))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = http.client.HTTPConnection(host, _PORT)
            try:
                connection.sock = self._tls.wrap_socket(plain, server_hostname=host)
            except OSError:
                plain.close()
                raise
            self._connection = connection
        return self._connection

    def _request(self, verb: str, path: str, body: Any = None, kind: str = "application/json") -> str:
        kept = self._connection
        connection = self._connected()
        try:
            connection.request(
                verb, path, None if body is None else json.dumps(body), {"Content-Type": kind, "Accept": "*/*"}
            )
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException):
            self.close()
            if verb == "GET" and connection is kept:
                return self._request(
                    verb, path
                )  # the server has left an old connection; a new one says whether it is there
            raise
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise Refused(answer.status, f"{verb} {path}", text)
        return text
