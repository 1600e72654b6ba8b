"""Objects that users write: pods, and the workloads that make them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

RESOURCES: Final = {
    "Deployment": "/apis/apps/v1",
    "StatefulSet": "/apis/apps/v1",
    "DaemonSet": "/apis/apps/v1",
    "ReplicaSet": "/apis/apps/v1",
    "CronJob": "/apis/batch/v1",
    "Job": "/apis/batch/v1",
    "Pod": "/api/v1",
}
"""Kinds and where they are, owners first."""
GRACE_SECONDS: Final = 30
"""Kubernetes' default. The played kubelet does not wait for it."""


def path_of(what: Mapping[str, Any] | str, namespace: str = "") -> str:
    """The path of a manifest's collection, or of a kind's in a namespace."""
    kind = what if isinstance(what, str) else what["kind"]
    where = namespace if isinstance(what, str) else what["metadata"]["namespace"]
    root = RESOURCES.get(kind)
    if root is None:
        assert not isinstance(what, str)
        root = f"/apis/{what['apiVersion']}"
    return f"{root}/namespaces/{where}/{kind.lower()}s"


def ippool(ipv4: Sequence[str] = (), ipv6: Sequence[str] = ()) -> dict[str, str]:
    """The annotation that names pools for whichever NIC is asked for."""
    said = {key: list(names) for key, names in (("ipv4", ipv4), ("ipv6", ipv6)) if names}
    return {"ipam.spidernet.io/ippool": json.dumps(said)}


def ippools(*nics: Mapping[str, Any]) -> dict[str, str]:
    """The annotation that names pools for every NIC."""
    return {"ipam.spidernet.io/ippools": json.dumps(list(nics))}


def routes(*pairs: tuple[str, str]) -> dict[str, str]:
    """The annotation with further routes."""
    return {"ipam.spidernet.io/routes": json.dumps([{"dst": dst, "gw": gw} for dst, gw in pairs])}


def networks(*selected: str | Mapping[str, str]) -> dict[str, str]:
    """Multus' annotation for further NICs: ``namespace/name[@interface]``, or the entries of its JSON form."""
    if all(isinstance(entry, str) for entry in selected):
        return {"k8s.v1.cni.cncf.io/networks": ",".join(str(entry) for entry in selected)}
    return {"k8s.v1.cni.cncf.io/networks": json.dumps(selected)}


def default_network(name: str) -> dict[str, str]:
    """Multus' annotation for the first NIC."""
    return {"v1.multus-cni.io/default-network": name}


def pod(
    name: str,
    notes: Mapping[str, str] | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    node: str = "",
    **spec: Any,
) -> dict[str, Any]:
    """A pod that runs until it is deleted; `notes` are its annotations."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(notes or {}), "labels": dict(labels or {})},
        "spec": _pod_spec(node, spec),
    }


def workload(
    kind: str,
    name: str,
    notes: Mapping[str, str] | None = None,
    *,
    replicas: int = 1,
    labels: Mapping[str, str] | None = None,
    node: str = "",
    template: Mapping[str, Any] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob; `notes` are its pods' annotations.

    Args:
        kind: of the workload.
        name: of the workload and of the label that it selects by.
        notes: annotations of the pods.
        replicas: or completions, all at a time.
        labels: further ones of the pods.
        node: name of the node that its pods are for.
        template: keys of the pods' spec.
        spec: keys of the workload's spec.
    """
    chosen = {"app": name}
    body: dict[str, Any] = {
        "template": {
            "metadata": {"labels": {**chosen, **(labels or {})}, "annotations": dict(notes or {})},
            "spec": _pod_spec(node, template or {}),
        },
        **({} if kind == "CronJob" else spec),
    }
    if kind in {"Job", "CronJob"}:
        body["template"]["spec"]["restartPolicy"] = "Never"
        body |= {"completions": replicas, "parallelism": replicas, "backoffLimit": body.get("backoffLimit", 0)}
    else:
        body["selector"] = {"matchLabels": chosen}
    if kind in {"Deployment", "StatefulSet", "ReplicaSet"}:
        body["replicas"] = replicas
    if kind == "StatefulSet":
        body.setdefault("serviceName", name)
    if kind == "CronJob":
        body = {"schedule": "0 3 * * *", "jobTemplate": {"spec": body}, **spec}
    version = "batch/v1" if kind in {"Job", "CronJob"} else "apps/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": body}


def _pod_spec(node: str, more: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "containers": [{"name": "c", "image": "none"}],
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        **more,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return spec
