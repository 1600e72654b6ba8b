"""Two subjects on one cluster: ours, and the reference chain whose configuration comes first while it is its turn."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

from tests.cluster.lab import Cluster, LabFailed, pod
from tests.cluster.lab.client import ApiClient
from tests.cluster.lab.images import PAUSE
from tests.cluster.lab.node_files import reference_cni
from tests.cluster.product import AGENT, CONTROLLER, POOL_V4, Product
from tests.cluster.watched import PodWatch

type Subject = Literal["ours", "REF"]
SUBJECTS: Final[tuple[Subject, ...]] = ("REF", "ours")

PODS: Final = "/api/v1/namespaces/default/pods"
LABEL: Final = "bench"
_FIRST: Final = "00-a-reference.conflist"
"""Comes before 00-spiderpool.conflist."""

_OURS: Final = "10.89.10."
_IPV4_ONLY: Final = {"ipam.spidernet.io/ippool": json.dumps({"ipv4": [POOL_V4]})}
_EMPTY_SECONDS: Final = 120.0
_SWITCH_SECONDS: Final = 30.0


class Contest:
    """Whose turn it is, and pods that fit it.

    Attributes:
        cluster: with the product installed, and no pods of a network of their own.
        product: ours.
        api: for the calling thread.
        subject: whose turn it is.
        dual: whether pods have addresses of both families.
    """

    def __init__(self, product: Product) -> None:
        self.product = product
        self.cluster: Cluster = product.cluster
        self.api = ApiClient(self.cluster)
        self.subject: Subject = "ours"
        self.dual = False

    def turn(self, subject: Subject, *, dual: bool = False) -> None:
        """Let `subject` make the networks of the pods to come; waits until the last one's are gone.

        Raises LabFailed.
        """
        self.empty()
        for node in self.cluster.nodes.values():
            if subject == "REF":
                node.install_cni(_chain(node.name, dual=dual), _FIRST)
            else:
                node.run(["rm", "-f", f"/etc/cni/net.d/{_FIRST}"])
        self.subject, self.dual = subject, dual
        # containerd has read its folder anew within milliseconds; a pod of a network that another chain is to remove
        # would never be removed, so it gets a second.
        time.sleep(1.0)
        deadline = time.monotonic() + _SWITCH_SECONDS
        while not self._serves():
            if time.monotonic() > deadline:
                raise LabFailed(f"pods do not get their network from {subject}")
        self.empty()

    def _serves(self) -> bool:
        """Whether a pod on every node has the addresses that it should; the first is dearer than those that follow."""
        names = list(self.cluster.nodes)
        with PodWatch(self.cluster, f"{LABEL}=warm") as watch:
            for name in names:
                self.api.create(PODS, self.pod(f"warm-{name}", kind="warm", node=name))
            pods = watch.wait(lambda seen: sum(it.ready is not None for it in seen) == len(names), 60, "pods that warm")
            for name in names:
                self.api.delete(f"{PODS}/warm-{name}")
            watch.wait(lambda seen: all(it.gone is not None for it in seen), 60, "no pod that warms")
        self.empty()
        return all(
            it.ips[0].startswith(_OURS) == (self.subject == "ours") and len(it.ips) == 1 + self.dual for it in pods
        )

    def pod(self, name: str, *, kind: str, node: str = "") -> dict[str, Any]:
        """A pod that is Ready when it runs and goes when it is asked to."""
        made = pod(
            name,
            node=node,
            probe=False,
            labels={LABEL: kind},
            annotations=self._annotations,
            terminationGracePeriodSeconds=10,
        )
        (container,) = made["spec"]["containers"]
        container.update(image=PAUSE, command=["/pause"])
        return made

    @property
    def _annotations(self) -> dict[str, str]:
        return {} if self.dual or self.subject == "REF" else dict(_IPV4_ONLY)

    def deployment(self, name: str, *, kind: str) -> dict[str, Any]:
        """Of such pods, none yet; the scheduler spreads them."""
        template = self.pod(name, kind=kind)
        labels = template["metadata"]["labels"]
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": template["metadata"]["annotations"]},
                    "spec": template["spec"],
                },
            },
        }

    # ---------------------------------------------------------------- counting

    def namespaces(self) -> int:
        """Network namespaces of pods on all nodes."""
        return sum(
            sum(1 for _ in (node.root / "run" / "netns").glob("*"))
            for node in self.cluster.nodes.values()
            if node.is_on
        )

    def empty(self) -> None:
        """Wait until no pod has a network, and no pool a record. Raises LabFailed."""
        self.cluster.wait(lambda: not self.namespaces() and not self.held(), _EMPTY_SECONDS, "no pod has a network")

    def held(self) -> int:
        """Addresses that the pools say are in use, of one family when there is one."""
        items = self.api.get("/apis/spiderpool.spidernet.io/v2beta1/spiderippools")["items"]
        return sum(item.get("status", {}).get("allocatedIPCount") or 0 for item in items)

    def failures(self) -> int:
        """Sandboxes that could not be made or removed so far, as kubelet's events say."""
        count = 0
        for reason in ("FailedCreatePodSandBox", "FailedKillPod"):
            for event in self.api.get(f"/api/v1/events?fieldSelector=reason={reason}")["items"]:
                count += max(event.get("count") or 1, (event.get("series") or {}).get("count", 1))
        return count

    def cpu(self) -> float:
        """CPU seconds of the whole cluster so far, control plane included; in REF's turn without our programs'."""
        spent = self.cluster.plane.cgroup_cpu_seconds()
        spent += sum(node.cgroup_cpu_seconds() for node in self.cluster.nodes.values())
        if self.subject == "REF":
            spent -= sum(self.product_cpu().values())
        return spent

    def product_cpu(self) -> dict[str, float]:
        """CPU seconds of our pods so far, their probes included."""
        return {
            name: self.cluster.node(node).cgroup_cpu_seconds(f"kubepods/*/pod{uid}")
            for name, (node, uid) in self.product_pods(AGENT, CONTROLLER).items()
        }

    def product_pods(self, *components: str) -> dict[str, tuple[str, str]]:
        """Node and uid of our pods by name."""
        return {
            item["metadata"]["name"]: (item["spec"]["nodeName"], item["metadata"]["uid"])
            for component in components
            for item in self.product.pods(component)
        }


def _chain(node: str, *, dual: bool) -> str:
    """The reference's configuration of one node."""
    configuration = json.loads(reference_cni(node))
    if not dual:
        (macvlan,) = configuration["plugins"]
        macvlan["ipam"]["ranges"] = [it for it in macvlan["ipam"]["ranges"] if "." in it[0]["subnet"]]
        macvlan["ipam"]["routes"] = [it for it in macvlan["ipam"]["routes"] if "." in it["dst"]]
    return json.dumps(configuration)


def without_own_configuration(cluster: Cluster, names: Sequence[str] = ("10-lab.conflist",)) -> None:
    """Take the lab's configuration away: the nodes are as a cluster's before it has any network."""
    for node in cluster.nodes.values():
        node.run(["rm", "-f", *(f"/etc/cni/net.d/{name}" for name in names)])

    def waits() -> bool:
        nodes = cluster.kubectl_json("get", "nodes")["items"]
        return all(
            any(it["type"] == "Ready" and it["status"] != "True" for it in node["status"]["conditions"])
            for node in nodes
        )

    cluster.wait(waits, 60, "nodes without a network")
