"""The container runtime asks the agent for STATUS: a node is Ready when pods can be attached to it, or says why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.lab import Cluster
from tests.cluster.lab.cluster import CORE
from tests.cluster.lab.node_files import BRIDGE_NAME
from tests.cluster.lab.pods import pod
from tests.cluster.networks import running
from tests.cluster.product import Product

pytestmark = pytest.mark.timeout(300)

SECONDS = 60
"""The kubelet asks every five."""
MISSING = f'clusterNetwork: this node has no CNI configuration of the name "{BRIDGE_NAME}"'


def _ready(cluster: Cluster) -> dict[str, tuple[str, str]]:
    """Each node's condition Ready and its reason in words."""
    found = {}
    for node in cluster.items(f"{CORE}/nodes"):
        (ready,) = (one for one in node["status"]["conditions"] if one["type"] == "Ready")
        found[node["metadata"]["name"]] = (ready["status"], ready["message"])
    return found


def _wait(cluster: Cluster, status: str, message: str = "") -> None:
    def told() -> bool:
        return all(is_ready == status and message in why for is_ready, why in _ready(cluster).values())

    cluster.wait(told, SECONDS, f"all nodes have Ready={status} {message}")


@pytest.fixture
def asked(networked: Product) -> Iterator[Product]:
    """The product whose agents are asked, and whose pods would get their first interface of an overlay; as before in
    the end."""
    networked.upgrade(values={"spiderpoolAgent": {"cni": {"clusterNetwork": BRIDGE_NAME, "status": True}}})
    networked.rolled_out()
    yield networked
    networked.upgrade()
    networked.rolled_out()
    _wait(networked.cluster, "True")


def test_a_node_is_ready_when_the_overlay_is_there(asked: Product) -> None:
    cluster = asked.cluster
    _wait(cluster, "False", MISSING)
    cluster.install_bridge()
    try:
        _wait(cluster, "True")
        with running(cluster, pod("plain", node="n1")) as made:
            assert made["plain"].addresses
    finally:
        cluster.remove_bridge()
    _wait(cluster, "False", MISSING)
    # The control: the runtime does not ask, and the same node is Ready.
    asked.upgrade(values={"spiderpoolAgent": {"cni": {"clusterNetwork": BRIDGE_NAME}}})
    asked.rolled_out()
    _wait(cluster, "True")
