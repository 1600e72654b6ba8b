"""What goes wrong under pods that come and go: nothing leaks, nothing hangs, no node turns NotReady."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.audit import settled
from tests.cluster.lab.cluster import CORE, PRODUCT_NAMESPACE
from tests.cluster.lab.pods import pod
from tests.cluster.product import AGENT, CONTROLLER, Product, is_ready, pools
from tests.cluster.workload import Deployment, sandbox_failures

SCALE = int(os.environ.get("SPIDERPOOL_TEST_WAVE", "16"))
"""Pods of a wave: a quarter of them is Ready when something happens, the rest is under way."""
MIRROR = f"{CORE}/namespaces/default/pods?fieldSelector=metadata.name%3Dmirror-n1"

pytestmark = pytest.mark.timeout(400 + 10 * SCALE)


@pytest.fixture(autouse=True)
def _ends_clean(product: Product) -> Iterator[None]:
    """Every test ends with nothing left over."""
    yield
    settled(product.cluster, expect=0)


@pytest.fixture
def wave(product: Product) -> Iterator[Deployment]:
    deployment = Deployment(product.cluster, "wave")
    yield deployment
    deployment.remove()


def _kill_agent(product: Product) -> None:
    node = product.cluster.node("n1")
    product.kill(product.agent_on("n1"))
    assert node.is_on


def _kill_controller(product: Product) -> None:
    (first, *_) = product.pods(CONTROLLER)
    product.kill(first["metadata"]["name"])


def _restart_kubelet(product: Product) -> None:
    product.cluster.node("n1").restart("kubelet", signal.SIGTERM)


def _restart_containerd(product: Product) -> None:
    product.cluster.node("n2").restart("containerd", signal.SIGTERM)


@pytest.mark.parametrize("fault", [_kill_agent, _kill_controller, _restart_kubelet, _restart_containerd])
def test_a_wave_survives(product: Product, wave: Deployment, fault: Callable[[Product], None]) -> None:
    wave.scale(SCALE, wait=False)
    product.cluster.wait(lambda: sum(map(is_ready, wave.pods())) >= SCALE // 4, 120, "the first pods Ready")
    fault(product)
    wave.settle(SCALE)
    settled(product.cluster, expect=SCALE)
    product.rolled_out()  # kubelet may still be pausing before it starts again what the first fault ended
    wave.scale(0, wait=False)
    fault(product)
    wave.settle(0)
    product.rolled_out()


def test_pods_deleted_by_force_give_back_what_they_had(product: Product, wave: Deployment) -> None:
    wave.scale(10)
    product.cluster.kubectl("scale", "deployment/wave", "--replicas=0")
    product.cluster.kubectl("delete", "pod", "--selector=app=wave", "--force", "--grace-period=0")
    settled(product.cluster, expect=0)


@pytest.mark.usefixtures("steady_nodes")
def test_without_any_controller_pods_wait_and_deleted_ones_are_freed_when_one_is_back(
    product: Product, wave: Deployment
) -> None:
    wave.scale(6)
    cluster, restarts = product.cluster, _restarts(product)
    scale = ("scale", f"deployment/{CONTROLLER}", f"--namespace={PRODUCT_NAMESPACE}")
    cluster.kubectl(*scale, "--replicas=0")
    cluster.wait(lambda: not product.pods(CONTROLLER), 60, "no controller")
    try:
        cluster.kubectl("scale", "deployment/wave", "--replicas=2")
        wave.settle(2)
        cluster.apply(pod("waiting", node="n1"))

        def told() -> bool:
            return any(message.startswith("waiting:") for message in sandbox_failures(cluster))

        cluster.wait(told, 90, "an event on the pod")
        assert _restarts(product) == restarts
    finally:
        cluster.kubectl(*scale, "--replicas=2")
        product.rolled_out()
    try:
        cluster.wait_for_pods("waiting", timeout=120)
        settled(cluster, expect=3)
    finally:
        cluster.kubectl("delete", "pod", "waiting", "--timeout=60s", timeout=70)


def _restarts(product: Product) -> list[int]:
    return sorted(item["status"]["containerStatuses"][0]["restartCount"] for item in product.pods(AGENT))


@pytest.mark.usefixtures("steady_nodes")
def test_a_full_pool_says_so_on_the_pod_and_one_freed_address_starts_it(product: Product) -> None:
    cluster = product.cluster
    small = pools(name="small", first=251, last=251, default=False)
    cluster.apply(*small)
    annotation = {"ipam.spidernet.io/ippool": '{"ipv4":["small-v4"],"ipv6":["small-v6"]}'}
    first, second = (pod(name, annotations=annotation) for name in ("holder", "waiter"))
    try:
        cluster.apply(first)
        cluster.wait_for_pods("holder")
        cluster.apply(second)

        def told() -> str:
            return next((m for m in sandbox_failures(cluster) if m.startswith("waiter:") and "small-v" in m), "")

        message = cluster.wait(told, 60, "an event on the waiting pod")
        assert "full" in message, message
        settled(cluster, expect=1)  # what waits has nothing, on no node
        cluster.delete(first)
        cluster.wait_for_pods("waiter", timeout=120)
        settled(cluster, expect=1)
        assert cluster.pod_ips("waiter") == ["10.89.10.251", "fd00:89::10:fb"]
    finally:
        cluster.delete(first, second)
        settled(cluster, expect=0)
        cluster.delete(*small)


def test_a_static_pod_works_like_any_other(product: Product) -> None:
    cluster, node = product.cluster, product.cluster.node("n1")
    manifest = json.dumps(pod("mirror"))
    write = "mkdir -p /etc/kubernetes/manifests && cat > /etc/kubernetes/manifests/mirror.json"
    node.run(["sh", "-c", write], input=manifest)
    try:
        cluster.wait_for_pods("mirror-n1", timeout=120)
        assert len(cluster.pod_ips("mirror-n1")) == 2
        settled(cluster, expect=1)
    finally:
        node.run(["rm", "/etc/kubernetes/manifests/mirror.json"])
        cluster.wait(lambda: not cluster.items(MIRROR), 60, "no mirror pod")


def test_a_node_that_loses_power_comes_back_with_a_clean_journal(product: Product, wave: Deployment) -> None:
    """Its kernel has forgotten everything, its journal has not."""
    cluster, node = product.cluster, product.cluster.node("n2")
    wave.scale(8)
    assert any(item["spec"]["nodeName"] == "n2" for item in wave.pods())
    cluster.kubectl("cordon", "n2")
    node.power_off()
    node.power_on()
    cluster.kubectl("uncordon", "n2")
    product.rolled_out(timeout=180)
    wave.settle(8, timeout=240)
    settled(cluster, expect=8, timeout=120)


def test_a_drained_node_gives_everything_back(product: Product, wave: Deployment) -> None:
    cluster = product.cluster
    wave.scale(8)
    try:
        cluster.kubectl("drain", "n2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s", timeout=120)
        wave.settle(8)
        assert {item["spec"]["nodeName"] for item in wave.pods()} == {"n1"}
        settled(cluster, expect=8)
    finally:
        cluster.kubectl("uncordon", "n2")
    product.rolled_out()
