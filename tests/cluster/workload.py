"""Workloads on a cluster with the product: Deployments that kubelet probes, streams of pods, who reaches whom."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from tests.cluster.lab import Cluster
from tests.cluster.lab.client import ApiClient
from tests.cluster.lab.cluster import CORE
from tests.cluster.lab.images import PAUSE
from tests.cluster.lab.pods import pod
from tests.cluster.product import is_ready
from tests.servers.process import CommandFailed

PORT: Final = 8080
_READY_SECONDS: Final = 180.0
_SANDBOX_FAILED: Final = "FailedCreatePodSandBox"
_PODS: Final = f"{CORE}/namespaces/default/pods"


class Workload:
    """Pods of one label that a controller of Kubernetes makes, spread over the nodes."""

    KIND: str

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        *,
        namespace: str = "default",
        grace: int = 1,
        bare: bool = False,
        annotations: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        """Nothing exists before `scale`.

        Args:
            cluster: that it is for.
            name: of it, and the value of its pods' label `app`.
            namespace: of it.
            grace: of its pods' ends, seconds.
            bare: pods that only wait, at the least cost for runtime and kubelet, instead of probed HTTP servers.
            annotations: of its pods.
            **spec: further fields of its pods' spec.
        """
        self.cluster = cluster
        self.name = name
        self.namespace = namespace
        self._grace = grace
        self._bare = bare
        self._annotations = dict(annotations or {})
        self._spec = spec

    def manifests(self, replicas: int) -> list[dict[str, Any]]:
        """Everything that it is made of."""
        return [
            {
                "apiVersion": "apps/v1",
                "kind": self.KIND,
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": self.name}},
                    "template": {
                        "metadata": {"labels": {"app": self.name}, "annotations": self._annotations},
                        "spec": self._template(),
                    },
                },
            }
        ]

    def _template(self) -> dict[str, Any]:
        spec: dict[str, Any] = pod(self.name, probe=not self._bare)["spec"]
        if self._bare:
            spec["containers"][0].update(image=PAUSE, command=["/pause"])
            spec["automountServiceAccountToken"] = False
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": self.name}},
        }
        return {
            **spec,
            "terminationGracePeriodSeconds": self._grace,
            "topologySpreadConstraints": [spread],
            **self._spec,
        }

    def scale(self, replicas: int, *, wait: bool = True, timeout: float = _READY_SECONDS) -> None:
        """Have that many; with `wait`, return when all are Ready, or when none is left."""
        self.cluster.apply(*self.manifests(replicas))
        if wait:
            self.settle(replicas, timeout=timeout)

    def settle(self, replicas: int, *, timeout: float = _READY_SECONDS) -> None:
        """Wait until exactly so many pods exist and all are Ready. Raises LabFailed."""

        def done() -> bool:
            pods = self.pods()
            return len(pods) == replicas and all(is_ready(pod) for pod in pods)

        self.cluster.wait(done, timeout, f"{replicas} Ready pods of {self.name}", interval=0.5)

    def pods(self) -> list[dict[str, Any]]:
        """Its pods, those that are going included. Raises OSError, LabFailed."""
        return self.cluster.items(f"{CORE}/namespaces/{self.namespace}/pods?labelSelector=app%3D{self.name}")

    def remove(self) -> None:
        """Delete all of it and wait until the pods are gone."""
        self.cluster.delete(*self.manifests(0), timeout=120)
        self.cluster.wait(lambda: not self.pods(), _READY_SECONDS, f"no pod of {self.name}")


class Deployment(Workload):
    """Pods that serve HTTP, Ready when kubelet's probe reaches them, and a Service for them; without it when `bare`."""

    KIND = "Deployment"

    def manifests(self, replicas: int) -> list[dict[str, Any]]:
        """The Deployment and its Service of both families."""
        (deployment,) = super().manifests(replicas)
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "selector": {"app": self.name},
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": 80, "targetPort": PORT}],
            },
        }
        return [deployment] if self._bare else [deployment, service]

    def roll(self, *, timeout: float) -> None:
        """Replace all pods, as `kubectl rollout restart` does, and wait until none of the old is left to be replaced.

        Raises CommandFailed.
        """
        what = (f"deployment/{self.name}", f"--namespace={self.namespace}")
        self.cluster.kubectl("rollout", "restart", *what)
        self.cluster.kubectl("rollout", "status", *what, f"--timeout={timeout:.0f}s", timeout=timeout + 10)

    def cluster_ips(self) -> list[str]:
        """The Service's addresses, one of each family."""
        service = self.cluster.get(f"{CORE}/namespaces/{self.namespace}/services/{self.name}")
        return list(service["spec"]["clusterIPs"])


class StatefulSet(Workload):
    """Pods with names, all made at once."""

    KIND = "StatefulSet"

    def manifests(self, replicas: int) -> list[dict[str, Any]]:
        """The StatefulSet alone: nobody asks for its pods by name."""
        (made,) = super().manifests(replicas)
        made["spec"] |= {"serviceName": self.name, "podManagementPolicy": "Parallel"}
        return [made]


def url(address: str, port: int = PORT) -> str:
    """Of an address of either family."""
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def fetch(cluster: Cluster, name: str, address: str, *, port: int = PORT, namespace: str = "default") -> str:
    """What a pod gets by HTTP from an address. Raises CommandFailed."""
    argv = ("timeout", "5", "wget", "-q", "-O", "-", url(address, port))
    return cluster.exec(name, *argv, namespace=namespace)


def sandbox_failures(cluster: Cluster) -> dict[str, int]:
    """How often a pod's sandbox could not be made so far, by message, as kubelet's events count it."""
    counts: dict[str, int] = {}
    for event in cluster.items(f"{CORE}/events?fieldSelector=reason%3D{_SANDBOX_FAILED}"):
        series = event.get("series") or {}
        message = f"{event['involvedObject']['name']}: {event.get('message', '')}"
        counts[message] = counts.get(message, 0) + max(event.get("count") or 1, series.get("count", 1))
    return counts


class Streamed(msgspec.Struct):
    """What a stream of pods saw.

    Attributes:
        started: pods that were created.
        ready: those that got Ready.
        gap: the longest time, seconds, in which no pod got Ready.
    """

    started: int = 0
    ready: int = 0
    gap: float = 0.0


class Stream:
    """Pods that come and go while something else happens: each is created, awaited and deleted."""

    def __init__(self, cluster: Cluster, *, nodes: tuple[str, ...] = ("n1", "n2"), pause: float = 0.5) -> None:
        """Begins when entered. `pause` is the time between two creations, seconds."""
        self._cluster = cluster
        self._nodes = nodes
        self._pause = pause
        self._stop = threading.Event()
        self._seen = Streamed()
        self._error: Exception | None = None
        self._names: list[str] = []
        self._last = 0.0
        self._api = ApiClient(cluster)

    def _create(self) -> None:
        number = self._seen.started
        name = f"stream-{number}"
        node = self._nodes[number % len(self._nodes)]
        self._api.create(_PODS, pod(name, node=node, labels={"stream": "yes"}))
        self._names.append(name)
        self._seen.started += 1

    def _look(self) -> None:
        items = self._api.get(f"{_PODS}?labelSelector=stream%3Dyes")["items"]
        ready = [
            item["metadata"]["name"] for item in items if is_ready(item) and "deletionTimestamp" not in item["metadata"]
        ]
        if ready:
            now = time.monotonic()
            self._seen.gap = max(self._seen.gap, now - self._last)
            self._last = now
            self._seen.ready += len(ready)
            for name in ready:
                self._api.delete(f"{_PODS}/{name}")
            self._names = [name for name in self._names if name not in ready]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._create()
                self._look()
                self._stop.wait(self._pause)
            deadline = time.monotonic() + _READY_SECONDS
            while self._names and time.monotonic() < deadline:
                self._look()
                time.sleep(0.3)
        except Exception as error:  # noqa: BLE001 - told to the test by `running`
            self._error = error
        finally:
            self._api.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[Streamed]:
        """Pods stream while the block runs; behind it the counts are final and every pod has been Ready once.

        Raises OSError, HTTPException, Refused, AssertionError.
        """
        self._last = time.monotonic()
        thread = threading.Thread(target=self._run, name="stream")
        thread.start()
        try:
            yield self._seen
        finally:
            self._stop.set()
            thread.join()
        if self._error is not None:
            raise self._error
        with contextlib.suppress(CommandFailed):
            self._cluster.kubectl("wait", "--for=delete", "pod", "--selector=stream=yes", "--timeout=60s", timeout=70)
        assert not self._names, f"never Ready: {', '.join(self._names)}"
