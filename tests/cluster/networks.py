"""Further networks for the pods of a cluster: the second LAN, definitions, pods with several interfaces as they run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import msgspec

from tests.cluster.audit import interfaces
from tests.cluster.lab import Cluster, Host, plan
from tests.cluster.lab.client import ApiClient
from tests.cluster.lab.node import Node
from tests.cluster.product import POOL_V4, POOL_V6, is_ready, pools
from tests.cluster.talk import PORT, ask

NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
DEFAULT_NETWORK: Final = "v1.multus-cni.io/default-network"
DEFAULT_ROUTE: Final = "ipam.spidernet.io/default-route-nic"
_GROUP: Final = "k8s.cni.cncf.io"
_CONFIG: Final = {"type": "object", "properties": {"config": {"type": "string"}}}
KIND: Final[dict[str, Any]] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"network-attachment-definitions.{_GROUP}"},
    "spec": {
        "group": _GROUP,
        "scope": "Namespaced",
        "names": {
            "kind": "NetworkAttachmentDefinition",
            "plural": "network-attachment-definitions",
            "singular": "network-attachment-definition",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _CONFIG}}},
            }
        ],
    },
}
"""The Plumbing Working Group's."""


def definition(name: str, parent: str, v4: str, v6: str) -> dict[str, Any]:
    """A NetworkAttachmentDefinition as people have it: macvlan with addresses of ours, the coordinator behind it."""
    ipam = {"type": "spiderpool", "default_ipv4_ippool": [v4], "default_ipv6_ippool": [v6]}
    macvlan = {"type": "macvlan", "master": parent, "mode": "bridge", "ipam": ipam}
    config = {"cniVersion": "1.0.0", "name": name, "plugins": [macvlan, {"type": "coordinator"}]}
    return {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"config": json.dumps(config)},
    }


def lay_networks(cluster: Cluster) -> None:
    """The second LAN with the router in it, the nodes' uplinks to it, and the definitions lan, storage and backup.

    `lan` is the first LAN, the others are the second, each with pools of its own.
    """
    gateways = [f"{it}/{prefix}" for it, prefix in zip(plan.STORAGE_GATEWAY, plan.LAN_PREFIX, strict=True)]
    cluster.add_segment(plan.STORAGE_SEGMENT, gateways=gateways)
    for node in cluster.nodes:
        cluster.add_nic(node, plan.UPLINK, segment=plan.STORAGE_SEGMENT)
    for found in cluster.nodes.values():
        # Until then its routes are still coming, and who compares pictures would see them come.
        argv = ["ip", "-6", "-oneline", "address", "show", "dev", plan.UPLINK, "scope", "link"]
        cluster.wait(partial(_is_settled, found, argv), 20, f"{plan.UPLINK} of {found.name} has its own address")
    cluster.apply(KIND)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{KIND['metadata']['name']}")
    second = [
        pool
        for name, block in (("storage", 10), ("backup", 20))
        for pool in pools(name=name, block=block, default=False, lan=91, gateways=plan.STORAGE_GATEWAY)
    ]
    cluster.apply(
        *second,
        definition("lan", "eth0", POOL_V4, POOL_V6),
        definition("storage", plan.UPLINK, "storage-v4", "storage-v6"),
        definition("backup", plan.UPLINK, "backup-v4", "backup-v6"),
    )


def _is_settled(node: Node, argv: list[str]) -> bool:
    shown = node.run(argv).stdout
    return "fe80:" in shown and "tentative" not in shown


class LivePod(msgspec.Struct, frozen=True):
    """A pod that runs.

    Attributes:
        name: of it.
        uid: of it.
        node: where it is.
        host: its network namespace; commands are this machine's.
        item: the object, as it was when it was Ready.
    """

    name: str
    uid: str
    node: Node
    host: Host
    item: dict[str, Any]

    @property
    def nics(self) -> dict[str, list[str]]:
        """Addresses by interface, as its status and network-status say."""
        return interfaces(self.item)

    @property
    def addresses(self) -> list[str]:
        """Those of all interfaces."""
        return [address for found in self.nics.values() for address in found]

    def nic_of(self, address: str) -> str:
        """The interface of one of its addresses. Raises LookupError."""
        return next((nic for nic, found in self.nics.items() if address in found), "") or _unknown(self.name, address)

    def carries(self) -> dict[str, set[str]]:
        """Addresses by interface, as its kernel says."""
        links = self.host.links()
        return {
            name: {it["local"] for it in link["addr_info"] if it["scope"] == "global"}
            for name, link in links.items()
            if name != "lo"
        }


def _unknown(name: str, address: str) -> str:
    msg = f"no interface of {name} has {address}"
    raise LookupError(msg)


def service(name: str, *, selector: Mapping[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Service of both families, TCP and UDP, port 80 for tellers at their pods' `PORT`; for `name` unless told."""
    ports = [{"name": kind.lower(), "protocol": kind, "port": 80, "targetPort": PORT} for kind in ("TCP", "UDP")]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"app": name} if selector is None else dict(selector),
            "ipFamilyPolicy": "RequireDualStack",
            "ports": ports,
            **spec,
        },
    }


def cluster_ips(cluster: Cluster, name: str) -> list[str]:
    """A Service's addresses, IPv4 first."""
    return list(cluster.kubectl_json("get", "service", name)["spec"]["clusterIPs"])


def served(cluster: Cluster, client: Host, *names: str) -> None:
    """Wait until a client is answered by Services: kube-proxy has heard of their pods. Raises LabFailed."""
    for name in names:
        for address in cluster_ips(cluster, name):
            cluster.wait(partial(ask, client, address, port=80), 20, f"an answer by Service {name} at {address}")


@contextmanager
def running(cluster: Cluster, *manifests: Mapping[str, Any]) -> Iterator[dict[str, LivePod]]:
    """Pods of the namespace default by name, Ready by their probes, and other objects; gone behind the block.

    Raises LabFailed.
    """
    try:
        yield _started(cluster, *manifests)
    finally:
        cluster.delete(*manifests, timeout=120)


def _started(cluster: Cluster, *manifests: Mapping[str, Any], timeout: float = 90.0) -> dict[str, LivePod]:
    names = [str(manifest["metadata"]["name"]) for manifest in manifests if manifest["kind"] == "Pod"]
    cluster.apply(*manifests)
    with ApiClient(cluster) as api:

        def ready() -> list[dict[str, Any]]:
            items = {it["metadata"]["name"]: it for it in api.get("/api/v1/namespaces/default/pods")["items"]}
            found = [items[name] for name in names if name in items]
            late = [name for name in names if name not in items or not is_ready(items[name])]
            if late:
                raise LookupError(f"not Ready: {', '.join(late)}")
            return found

        try:
            items = cluster.wait(ready, timeout, f"{len(names)} Ready pods")
        except AssertionError as problem:
            events = cluster.kubectl("get", "events", "--sort-by=.lastTimestamp")
            problem.add_note(events[-3000:])
            raise
    return {item["metadata"]["name"]: live(cluster, item) for item in items}


def live(cluster: Cluster, item: dict[str, Any]) -> LivePod:
    """A pod by its object."""
    name, uid = item["metadata"]["name"], item["metadata"]["uid"]
    node = cluster.node(item["spec"]["nodeName"])
    # Nothing of it starts anew while a test looks at it.
    pid = node.processes_below(f"kubepods/*/pod{uid}")[0].pid
    return LivePod(name=name, uid=uid, node=node, host=Host(f"pod {name}", lambda: pid), item=item)
