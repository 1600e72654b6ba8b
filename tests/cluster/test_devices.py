"""Resources that agents advertise, on real kubelets and a real scheduler: counts bound what runs, and nodes differ.

NICs of the lab are virtual links, so rules name them. The provider of the sub-interfaces need not answer: nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.cluster.lab import Cluster
from tests.cluster.lab.cluster import CORE, PRODUCT_NAMESPACE
from tests.cluster.lab.images import PAUSE
from tests.cluster.product import AGENT, Product, is_ready
from tests.servers.process import CommandFailed

pytestmark = pytest.mark.timeout(600)

ENI: Final = "spidernet.io/sub-eni"
HERE: Final = "spidernet.io/only-here-nic"
SLOTS: Final = 2
PLUGIN: Final[dict[str, Any]] = {
    "enabled": True,
    "devicePluginAffinity": {"nodeSelector": {"matchExpressions": [{"key": "drained", "operator": "DoesNotExist"}]}},
    "resourceAdvertisement": {
        "subENI": {
            "rules": [
                {"nodeSelector": {"matchLabels": {"size": "large"}}, "defaultMaxCount": 7},
                {"defaultMaxCount": SLOTS},
            ]
        },
        "masterNIC": {"rules": [{"includeInterfaces": ["only-here"], "defaultMaxCount": 10}]},
    },
}


def _allocatable(cluster: Cluster, node: str) -> dict[str, int]:
    """Our resources of a node, those of which there is none left out."""
    found = cluster.get(f"{CORE}/nodes/{node}")["status"].get("allocatable", {})
    return {name: int(count) for name, count in found.items() if name.startswith("spidernet.io/") and count != "0"}


def _until(product: Product, node: str, expected: dict[str, int]) -> None:
    product.cluster.wait(
        lambda: _allocatable(product.cluster, node) == expected, 60, f"{node} has {expected}", interval=0.5
    )


@pytest.fixture(scope="module")
def advertised(product: Product) -> Iterator[Product]:
    """The product with the device plugin and a provider; afterwards as before."""
    cluster = product.cluster
    provider = {"serverUrl": "http://192.0.2.1:1"}  # nobody is asked: no pod has a network of its
    product.upgrade(values={"spiderpoolAgent": {"networkResourcePlugin": PLUGIN}, "iaasNetworkProvider": provider})
    product.rolled_out()
    for node in cluster.nodes:
        _until(product, node, {ENI: SLOTS})
    yield product
    for node in cluster.nodes:
        cluster.kubectl("label", "node", node, "size-", "drained-")
    product.upgrade()


def _restart_agents(product: Product) -> None:
    product.cluster.kubectl("rollout", "restart", f"daemonset/{AGENT}", f"--namespace={PRODUCT_NAMESPACE}")
    product.rolled_out()


def _asking(name: str, resource: str, *, node: str = "", count: int = 1) -> dict[str, Any]:
    """A pod that asks for devices; the scheduler has to choose the node, or finds only this one."""
    wanted = {resource: str(count)}
    container = {"name": "main", "image": PAUSE, "command": ["/pause"], "resources": {"limits": wanted}}
    selector = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"test": "devices"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **selector},
    }


@pytest.fixture
def cleaned(advertised: Product) -> Iterator[Product]:
    yield advertised
    advertised.cluster.kubectl("delete", "pod", "--selector=test=devices", "--wait=true", timeout=90)


def _pods(product: Product) -> list[dict[str, Any]]:
    return product.cluster.items(f"{CORE}/namespaces/default/pods?labelSelector=test%3Ddevices")


def _states(product: Product) -> dict[str, str]:
    """Of the pods of these tests: running, or why they are not scheduled."""
    states = {}
    for item in _pods(product):
        conditions = {it["type"]: it for it in item.get("status", {}).get("conditions", ())}
        waits = conditions.get("PodScheduled", {})
        states[item["metadata"]["name"]] = "running" if is_ready(item) else waits.get("message", "")
    return states


def _running(product: Product) -> set[str]:
    return {name for name, state in _states(product).items() if state == "running"}


def _admitted(product: Product, name: str, resource: str) -> bool:
    """Whether a pod of this name runs on n1, made if there is none, and anew where kubelet has refused it.

    That is what a ReplicaSet does. A kubelet that has just started judges pods by its checkpoint, and before its
    plugins have come back; whom it refuses then has failed for ever.
    """
    cluster = product.cluster
    phases = {it["metadata"]["name"]: it["status"].get("phase") for it in _pods(product)}
    if phases.get(name) == "Failed":
        cluster.kubectl("delete", "pod", name, "--wait=true")
    if phases.get(name) in {None, "Failed"}:
        cluster.apply(_asking(name, resource, node="n1"))
    return name in _running(product)


def test_iaas_e00031_allocatable_is_what_is_configured(advertised: Product) -> None:
    cluster = advertised.cluster
    for node in cluster.nodes:
        status = cluster.get(f"{CORE}/nodes/{node}")["status"]
        assert (status["allocatable"][ENI], status["capacity"][ENI]) == (str(SLOTS), str(SLOTS))
        assert HERE not in status["allocatable"], "the control: nobody has that interface"


def test_iaas_e00019_and_e00043_slots_bound_what_runs_and_come_back(cleaned: Product) -> None:
    cluster = cleaned.cluster
    cluster.apply(*(_asking(f"eni-{number}", ENI, node="n1") for number in range(SLOTS + 1)))
    cluster.wait(lambda: len(_running(cleaned)) == SLOTS, 90, "two of three run")
    (late,) = _states(cleaned).keys() - _running(cleaned)
    cluster.wait(lambda: f"Insufficient {ENI}" in _states(cleaned)[late], 30, "the scheduler says why")
    cluster.apply(_asking("plain", "cpu", node="n1", count=0))
    cluster.wait(lambda: "plain" in _running(cleaned), 60, "the control: a pod that asks for none runs")
    cluster.kubectl("delete", "pod", min(_running(cleaned) - {"plain"}), "--wait=true")
    cluster.wait(lambda: late in _running(cleaned), 60, "the third runs in its place")


def test_iaas_e00044_allocatable_recovers_after_agents_and_kubelets_start_anew(cleaned: Product) -> None:
    cluster = cleaned.cluster
    cluster.apply(_asking("steady", ENI, node="n1"))
    cluster.wait(lambda: "steady" in _running(cleaned), 60, "a pod runs")
    uid = cluster.kubectl_json("get", "pod", "steady")["metadata"]["uid"]
    # Kubelet may or may not write into the node's status what is over in seconds; whom it gives a device, it shows.
    cleaned.kill(cleaned.agent_on("n1"))
    cluster.wait(lambda: _admitted(cleaned, "between", ENI), 90, "a pod gets a device of the agent that comes back")
    _until(cleaned, "n1", {ENI: SLOTS})
    cluster.kubectl("delete", "pod", "between", "--wait=true")
    cluster.node("n1").restart("kubelet")
    cluster.wait(lambda: _admitted(cleaned, "after", ENI), 90, "a pod is admitted by the new kubelet")
    _restart_agents(cleaned)  # the new one comes before the old one goes
    _until(cleaned, "n1", {ENI: SLOTS})
    cluster.apply(_asking("third", ENI, node="n1"))
    cluster.wait(lambda: f"Insufficient {ENI}" in _states(cleaned).get("third", ""), 30, "it is as full as before")
    assert cluster.kubectl_json("get", "pod", "steady")["metadata"]["uid"] == uid
    assert {"steady", "after"} <= _running(cleaned)


def test_iaas_us2_pods_run_where_the_interface_is_and_counts_follow_the_node(cleaned: Product) -> None:
    cluster = cleaned.cluster
    cluster.apply(_asking("needs", HERE))
    cluster.wait(lambda: f"Insufficient {HERE}" in _states(cleaned).get("needs", ""), 30, "no node has it")
    cluster.node("n2").run(["ip", "link", "add", "only-here", "type", "bridge"])
    try:
        _until(cleaned, "n2", {ENI: SLOTS, HERE: 10})
        cluster.wait(lambda: "needs" in _running(cleaned), 90, "the pod runs")
        assert cluster.kubectl_json("get", "pod", "needs")["spec"]["nodeName"] == "n2"
        _until(cleaned, "n1", {ENI: SLOTS})
        cluster.kubectl("label", "node", "n2", "size=large")
        _until(cleaned, "n2", {ENI: 7, HERE: 10})
        cluster.kubectl("label", "node", "n2", "drained=yes")
        _until(cleaned, "n2", {})
        cluster.kubectl("label", "node", "n2", "size-", "drained-")
        _until(cleaned, "n2", {ENI: SLOTS, HERE: 10})
    finally:
        cluster.node("n2").run(["ip", "link", "delete", "only-here"])
    _until(cleaned, "n2", {ENI: SLOTS})


def test_rules_that_cannot_be_meant_are_refused_by_the_chart(product: Product) -> None:
    rule = {"nodeSelector": {"matchlabels": {"a": "b"}}}
    plugin = {"enabled": True, "resourceAdvertisement": {"masterNIC": {"rules": [rule]}}}
    with pytest.raises(CommandFailed, match="matchlabels"):
        product.upgrade(values={"spiderpoolAgent": {"networkResourcePlugin": plugin}})
