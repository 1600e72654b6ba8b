"""A cluster that has a CNI already, and nodes that are not as one wishes: the network that is there keeps working."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cluster.lab import Cluster, LabFailed
from tests.cluster.lab.cluster import CORE, PRODUCT_NAMESPACE
from tests.cluster.lab.pods import pod
from tests.cluster.product import Product, image, is_ready, pools
from tests.servers.process import CommandFailed

pytestmark = pytest.mark.timeout(400)

FOREIGN = "/etc/cni/net.d/00-first.conflist"


@pytest.fixture(scope="module")
def existing(bridge_cluster: Cluster) -> Product:
    """A bridge CNI with a pod on it; our image is there, nothing is installed. One test builds on the other."""
    bridge_cluster.apply(pod("old", node="n1"))
    bridge_cluster.wait_for_pods("old")
    return Product(bridge_cluster, image()).load()


def _events(cluster: Cluster, reason: str) -> list[str]:
    items = cluster.items(f"{CORE}/namespaces/{PRODUCT_NAMESPACE}/events?fieldSelector=reason%3D{reason}")
    return [str(item["message"]) for item in items]


def _uses_lan(cluster: Cluster, name: str) -> bool:
    return all(ip.startswith(("10.89.", "fd00:89:")) for ip in cluster.pod_ips(name))


def test_a_node_where_nothing_can_be_installed_says_so_and_keeps_its_network(existing: Product) -> None:
    """n1: a foreign configuration sorts before ours; n2: the folder of the plugins is read-only."""
    cluster = existing.cluster
    n1, n2 = cluster.nodes.values()
    n1.run(["sh", "-c", f'sed \'s/"name": *"[^"]*"/"name":"first"/\' /etc/cni/net.d/10-*.conflist > {FOREIGN}'])
    n2.make_read_only("/opt/cni/bin")
    with ThreadPoolExecutor(1) as administrator:
        installation = administrator.submit(existing.install, timeout=15)
        shadowed = cluster.wait(lambda: _events(cluster, "CNIShadowed"), 60, "an event about the foreign file")
        assert "00-first.conflist" in shadowed[0]
        failed = cluster.wait(lambda: _events(cluster, "CNIInstallFailed"), 60, "an event about the read-only folder")
        assert "/opt/cni/bin" in failed[0]
        for node in cluster.items(f"{CORE}/nodes"):
            assert is_ready(node)
        cluster.apply(pod("still-1", node="n1"), pod("still-2", node="n2"))
        cluster.wait_for_pods("still-1", "still-2")
        assert not _uses_lan(cluster, "still-1") and not _uses_lan(cluster, "still-2")
        cluster.kubectl("delete", "pod", "still-1", "still-2")
        with pytest.raises(CommandFailed):
            installation.result()


def test_mended_nodes_are_taken_over(existing: Product) -> None:
    cluster = existing.cluster
    n1, n2 = cluster.nodes.values()
    n1.run(["rm", FOREIGN])
    n2.make_writable("/opt/cni/bin")
    existing.upgrade()
    existing.rolled_out(timeout=120)
    cluster.apply(*pools())
    cluster.apply(pod("new-1", node="n1"), pod("new-2", node="n2"))
    cluster.wait_for_pods("new-1", "new-2")
    assert _uses_lan(cluster, "new-1") and _uses_lan(cluster, "new-2")
    cluster.exec("new-1", "ping", "-c", "1", "-W", "3", cluster.pod_ips("new-2")[0])


def test_pods_of_before_keep_their_network(existing: Product) -> None:
    cluster = existing.cluster
    assert is_ready(cluster.get(f"{CORE}/namespaces/default/pods/old"))
    cluster.kubectl("delete", "pod", "old", "--timeout=60s", timeout=70)


def test_uninstalling_returns_to_the_network_of_before(existing: Product) -> None:
    cluster = existing.cluster
    existing.uninstall()
    for node in cluster.nodes.values():
        assert "spiderpool" not in node.run(["ls", "/etc/cni/net.d", "/opt/cni/bin"]).stdout
    cluster.exec("new-1", "ping", "-c", "1", "-W", "3", cluster.pod_ips("new-2")[0])
    cluster.apply(pod("back", node="n1"))
    cluster.wait_for_pods("back")
    assert not _uses_lan(cluster, "back")
    cluster.kubectl("delete", "pod", "new-1", "new-2", "back", "--timeout=60s", timeout=70)


def test_wrong_values_are_refused_with_the_key(existing: Product) -> None:
    for values, key in (
        ({"spiderpoolAgnet": {}}, "spiderpoolAgnet"),
        ({"ipam": {"enableIpv4": True}}, "enableIpv4"),
        ({"spiderpoolController": {"replicas": "two"}}, "replicas"),
    ):
        with pytest.raises(CommandFailed, match=key):
            existing.install(values=values)


def test_a_crd_of_another_shape_is_refused_by_name(existing: Product) -> None:
    cluster, name = existing.cluster, "spiderippools.spiderpool.spidernet.io"
    cluster.kubectl("delete", "crd", name, "--ignore-not-found", timeout=90)
    cluster.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": "spiderpool.spidernet.io",
                "scope": "Namespaced",
                "names": {"kind": "SpiderIPPool", "plural": "spiderippools", "singular": "spiderippool"},
                "versions": [
                    {
                        "name": "v2beta1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                ],
            },
        }
    )
    with pytest.raises((CommandFailed, LabFailed)):
        existing.install(timeout=20)
    pods = cluster.kubectl("get", "pods", f"--namespace={PRODUCT_NAMESPACE}", "--output=name").split()
    logs = "".join(cluster.kubectl("logs", f"--namespace={PRODUCT_NAMESPACE}", name) for name in pods)
    assert name in logs and "Namespaced" in logs, logs
