"""Manifests of pods that run the lab's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster.lab.images import BUSYBOX


def pod(
    name: str,
    *,
    node: str = "",
    namespace: str = "default",
    command: Sequence[str] = ("httpd", "-f", "-p", "8080", "-h", "/www"),
    probe: bool = True,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod that serves `ok` on port 8080, ready when kubelet's GET succeeds.

    Args:
        name: of the pod, and the value of its label `app`.
        node: that it is bound to by name; "" leaves it to the scheduler.
        namespace: of the pod.
        command: instead of the HTTP server.
        probe: have kubelet probe port 8080.
        labels: besides `app`.
        annotations: of the pod.
        **spec: further fields of the pod's spec.
    """
    container: dict[str, Any] = {
        "name": "main",
        "image": BUSYBOX,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
    }
    if probe:
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app": name, **(labels or {})},
            "annotations": dict(annotations or {}),
        },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            **({"nodeName": node} if node else {}),
            **spec,
        },
    }
