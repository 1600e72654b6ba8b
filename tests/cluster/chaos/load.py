"""The pods under the faults: a stream, two Deployments and a StatefulSet, probed by kubelet."""

from __future__ import annotations

import http.client
import random
import threading
from typing import Any, Final

from tests.cluster.lab import Cluster, LabFailed, pod
from tests.cluster.lab.client import ApiClient, Refused
from tests.cluster.lab.images import PAUSE
from tests.cluster.product import is_ready
from tests.cluster.workload import Deployment, StatefulSet, Workload

AWAY: Final = (OSError, http.client.HTTPException, Refused, ValueError)
"""What a request meets while the API server is away."""

PODS: Final = "/api/v1/namespaces/default/pods"
_APPS: Final = "/apis/apps/v1/namespaces/default"
_STREAM: Final = "chaos-stream"
_SELECTOR: Final = f"{PODS}?labelSelector=kind%3D{_STREAM}"
_MOST: Final = 24
"""Pods of the stream at once; those on a node without power stay until it is back."""

_PAUSE_SECONDS: Final = 0.7
_FORCED: Final = 0.2
"""The part of the stream's pods that are deleted by force, Ready or not."""


class Load:
    """Begins with `start`; `finish` waits until all is as it should be, `remove` leaves nothing."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._api = ApiClient(cluster, timeout=5)
        self._random = random.Random(seed)
        self._workloads: list[Workload] = [
            *(Deployment(cluster, name) for name in ("web", "shop")),
            StatefulSet(cluster, "ledger", grace=0),
        ]
        self._sizes = {"web": 6, "shop": 4, "ledger": 3}
        self._stop = threading.Event()
        self._stream = threading.Thread(target=self._run, name="stream", daemon=True)
        self.made = 0
        self.ready = 0

    def start(self) -> None:
        """Everything is Ready once before the first fault. Raises LabFailed."""
        for workload in self._workloads:
            workload.scale(self._sizes[workload.name], wait=False)
        self._settled()
        self._stream.start()

    def scale(self, dice: float) -> str:
        """Have another number of pods of one workload; says which. Raises what AWAY lists."""
        name = ("web", "shop", "ledger")[int(dice * 30) % 3]
        size = int(dice * 3000) % (5 if name == "ledger" else 13)
        kind = "statefulsets" if name == "ledger" else "deployments"
        with ApiClient(self._cluster, timeout=5) as api:
            api.merge(f"{_APPS}/{kind}/{name}", {"spec": {"replicas": size}})
        self._sizes[name] = size
        return f"{name} to {size}"

    def delete_some(self, dice: float, *, force: bool) -> str:
        """A part of the workloads' pods; says which. Raises what AWAY lists."""
        chosen = random.Random(dice)
        with ApiClient(self._cluster, timeout=5) as api:
            names = sorted(item["metadata"]["name"] for item in api.get(PODS)["items"] if _is_workload(item))
            victims = [name for name in names if chosen.random() < 0.35]
            for name in victims:
                api.delete(f"{PODS}/{name}", force=force)
        return ", ".join(victims) or "none is there"

    def evict(self, node: str) -> str:
        """The workloads' pods of a node, by the eviction API; says which. Raises what AWAY lists."""
        with ApiClient(self._cluster, timeout=5) as api:
            items = api.get(f"{PODS}?fieldSelector=spec.nodeName%3D{node}")["items"]
            names = sorted(item["metadata"]["name"] for item in items if _is_workload(item))
            for name in names:
                eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
                api.create(f"{PODS}/{name}/eviction", eviction)
        return ", ".join(names) or "none is there"

    def finish(self) -> int:
        """Ends the stream; how many pods the workloads have when all are Ready. Raises LabFailed."""
        self._stop.set()
        self._stream.join(60)
        self._cluster.wait(self._stream_is_over, 180, "no pod of the stream")
        self._settled()
        return sum(self._sizes.values())

    def remove(self) -> None:
        """Everything. Raises LabFailed."""
        for workload in self._workloads:
            workload.remove()
        self._cluster.wait(lambda: not self._pods(), 120, "no pods")

    def _pods(self) -> list[dict[str, Any]]:
        return [item for item in self._cluster.kubectl_json("get", "pods")["items"] if _is_workload(item)]

    def _settled(self) -> None:
        def settled() -> bool:
            pods = self._pods()
            return len(pods) == sum(self._sizes.values()) and all(
                is_ready(it) and "deletionTimestamp" not in it["metadata"] for it in pods
            )

        try:
            self._cluster.wait(settled, 240, "every pod Ready", interval=1.0)
        except LabFailed as problem:
            shown = self._cluster.kubectl("get", "pods", "--output=wide")
            raise LabFailed(f"{problem}; there should be {self._sizes}\n{shown}") from problem

    def _stream_is_over(self) -> bool:
        try:
            return self._sweep(forced=0.0) == 0
        except AWAY as problem:
            self._api.close()
            raise LabFailed(str(problem)) from problem

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._sweep(forced=_FORCED) < _MOST:
                    self._api.create(PODS, self._pod())
                    self.made += 1
            except AWAY:
                self._api.close()
            self._stop.wait(_PAUSE_SECONDS)

    def _pod(self) -> dict[str, Any]:
        made = pod(
            f"s-{self._random.randrange(1 << 40):x}",
            probe=False,
            labels={"kind": _STREAM},
            terminationGracePeriodSeconds=5,
        )
        made["spec"]["containers"][0].update(image=PAUSE, command=["/pause"])
        return made

    def _sweep(self, *, forced: float) -> int:
        """Delete what is Ready, and by force some of what is there; how many are there."""
        items = self._api.get(_SELECTOR)["items"]
        for item in items:
            path = f"{PODS}/{item['metadata']['name']}"
            going = "deletionTimestamp" in item["metadata"]
            if is_ready(item) and not going:
                self.ready += 1
                self._api.delete(path, force=self._random.random() < forced)
            elif forced and self._random.random() < forced / 10:
                self._api.delete(path, force=True)
        return len(items)


def _is_workload(item: dict[str, Any]) -> bool:
    labels: dict[str, str] = item["metadata"].get("labels", {})
    return labels.get("kind") != _STREAM
