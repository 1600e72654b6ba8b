"""When pods were made, bound, Ready and gone, stamped in this process: a pod's conditions know only whole seconds."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import msgspec

from tests.cluster.lab import Cluster, LabFailed
from tests.cluster.lab.client import ApiClient, Refused

_RETRY_SECONDS: Final = 0.3


class _Meta(msgspec.Struct):
    name: str
    uid: str
    namespace: str = ""


class _Spec(msgspec.Struct):
    node_name: str = msgspec.field(default="", name="nodeName")


class _Condition(msgspec.Struct):
    type: str
    status: str


class _Address(msgspec.Struct):
    ip: str = ""


class _Status(msgspec.Struct):
    conditions: list[_Condition] = []
    pod_ips: list[_Address] = msgspec.field(default=[], name="podIPs")


class _Pod(msgspec.Struct):
    metadata: _Meta
    spec: _Spec
    status: _Status


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_pod: Final = msgspec.json.Decoder(_Pod).decode


class Seen(msgspec.Struct):
    """A pod's stamps (time.monotonic), None until it happens.

    Attributes:
        name: of the pod.
        made: first seen.
        bound: it has a node.
        ready: first Ready.
        gone: its object was deleted.
        ips: its addresses, the last known.
    """

    name: str
    made: float
    bound: float | None = None
    ready: float | None = None
    gone: float | None = None
    ips: tuple[str, ...] = ()

    @property
    def wait(self) -> float:
        """Seconds from bind to Ready. Raises ValueError before that."""
        if self.bound is None or self.ready is None:
            raise ValueError(f"{self.name} is not Ready yet")
        return self.ready - self.bound


class PodWatch:
    """Follows the pods with a label while it is entered; it begins anew when the API server was away."""

    def __init__(self, cluster: Cluster, selector: str, *, namespace: str = "default") -> None:
        """`selector` as in kubectl's --selector."""
        self._client = ApiClient(cluster)
        self._path = f"/api/v1/namespaces/{namespace}/pods?watch=1&labelSelector={quote(selector)}"
        self._changed = threading.Condition()
        self._seen: dict[str, Seen] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._client.interrupt()
        self._thread.join(10)

    @property
    def pods(self) -> list[Seen]:
        """All that were ever seen, in the order of their making."""
        with self._changed:
            return list(self._seen.values())

    def wait(self, done: Callable[[list[Seen]], bool], seconds: float, what: str) -> list[Seen]:
        """Returns the pods once `done` of them is true, within a millisecond. Raises LabFailed."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not done(list(self._seen.values())):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise LabFailed(f"{what}: not within {seconds:.0f} s")
                self._changed.wait(left)
            return list(self._seen.values())

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for line in self._client.lines(self._path):
                    self._saw(time.monotonic(), line)
            except (OSError, http.client.HTTPException, Refused, ValueError, AttributeError):
                # http.client itself stumbles over a socket that `interrupt` has shut down.
                self._stop.wait(_RETRY_SECONDS)
            self._client.close()

    def _saw(self, now: float, line: bytes) -> None:
        event = _decode_event(line)
        if event.type not in {"ADDED", "MODIFIED", "DELETED"}:
            return
        pod = _decode_pod(event.object)
        with self._changed:
            seen = self._seen.setdefault(pod.metadata.uid, Seen(pod.metadata.name, now))
            if pod.spec.node_name and seen.bound is None:
                seen.bound = now
            if seen.ready is None and any(it.type == "Ready" and it.status == "True" for it in pod.status.conditions):
                seen.ready = now
            seen.ips = tuple(it.ip for it in pod.status.pod_ips) or seen.ips
            if event.type == "DELETED":
                seen.gone = now
            self._changed.notify_all()
