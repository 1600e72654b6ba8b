"""A real kube-controller-manager beside a `ControlPlane`: what it takes for owners to have pods, and for them to go.

It runs as the administrator and without leader election. Nodes are nobody's business here: no controller judges or
taints them, so that a test may say how they are.
"""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from typing import TYPE_CHECKING, Final, Self

from tests.servers.process import ServerProcess, free_port
from tests.servers.provide import Progress, executable, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from tests.servers.control_plane import ControlPlane

CONTROLLERS: Final = (
    "daemonset-controller",
    "deployment-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "statefulset-controller",
)


class ControllerManager:
    """The process; a context manager. It outlives restarts of the API server, and ends before its `ControlPlane`."""

    def __init__(
        self, control_plane: ControlPlane, *, controllers: Sequence[str] = CONTROLLERS, progress: Progress = silent
    ) -> None:
        """`controllers` are those that run, by the names that `--controllers` knows."""
        self._port = free_port()
        self.process = ServerProcess(
            "kube-controller-manager",
            [
                executable("kube-controller-manager", progress=progress),
                f"--kubeconfig={control_plane.admin_kubeconfig}",
                f"--controllers={','.join(controllers)}",
                f"--cert-dir={control_plane.folder / 'controller-manager'}",
                "--bind-address=127.0.0.1",
                f"--secure-port={self._port}",
                "--leader-elect=false",
                "--use-service-account-credentials=false",
                "--kube-api-qps=500",
                "--kube-api-burst=500",
                "--profiling=false",
            ],
            folder=control_plane.folder,
        )

    def __repr__(self) -> str:
        return f"<ControllerManager {self.process!r}>"

    def __enter__(self) -> Self:
        try:
            self.process.start()
            self.process.wait_until(self._healthy)
        except BaseException:
            self.process.stop(kill=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stop(kill=True)

    def _healthy(self) -> bool:
        # Its certificate is one that it made for itself a moment ago.
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=5, context=trusting)
        with closing(connection):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
