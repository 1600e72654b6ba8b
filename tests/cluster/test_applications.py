"""What an application's people write, on real kubelets: one annotation for its own addresses, and networks in fields.

The subnets are no LAN of the lab's: kubelet's probes reach the pods over their pairs of links to the node.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from ipam.ranges import parse_ranges
from tests.cluster.audit import addresses, settled
from tests.cluster.lab import plan
from tests.cluster.lab.cluster import PRODUCT
from tests.cluster.lab.pods import pod
from tests.cluster.networks import NETWORKS, running
from tests.cluster.product import Product
from tests.cluster.workload import Deployment, sandbox_failures
from tests.servers.process import CommandFailed

pytestmark = pytest.mark.timeout(300)

_API: Final = {"apiVersion": "spiderpool.spidernet.io/v2beta1"}
SUBNETS: Final[list[dict[str, Any]]] = [
    {
        **_API,
        "kind": "SpiderSubnet",
        "metadata": {"name": "own-v4"},
        "spec": {"subnet": "10.88.0.0/24", "ips": ["10.88.0.10-10.88.0.60"], "gateway": "10.88.0.1"},
    },
    {
        **_API,
        "kind": "SpiderSubnet",
        "metadata": {"name": "own-v6"},
        "spec": {"subnet": "fd00:88::/64", "ips": ["fd00:88::10-fd00:88::40"], "gateway": "fd00:88::1"},
    },
]
MADE: Final[dict[str, Any]] = {
    **_API,
    "kind": "SpiderMultusConfig",
    "metadata": {"name": "fields", "namespace": "default"},
    "spec": {
        "cniType": "macvlan",
        "macvlan": {"master": [plan.UPLINK], "ippools": {"ipv4": ["storage-v4"], "ipv6": ["storage-v6"]}},
    },
}


@pytest.fixture
def subnets(product: Product) -> Iterator[None]:
    """`SUBNETS`. They go when no application has a pool of them any more."""
    product.cluster.apply(*SUBNETS)
    yield
    product.cluster.delete(*SUBNETS)


def _pools(product: Product) -> dict[int, dict[str, Any]]:
    """The automatic pools by family."""
    found = product.cluster.items(f"{PRODUCT}/spiderippools")
    return {one["spec"]["ipVersion"]: one for one in found if one["metadata"]["name"].startswith("auto")}


def _sizes(product: Product) -> dict[int, int]:
    return {version: parse_ranges(one["spec"]["ips"], version).size for version, one in _pools(product).items()}


def _given(product: Product) -> dict[str, int]:
    """How many addresses of each subnet pools have."""
    counts = {}
    for one in SUBNETS:
        name = one["metadata"]["name"]
        found = product.cluster.get(f"{PRODUCT}/spidersubnets/{name}")
        counts[name] = found.get("status", {}).get("allocatedIPCount", 0)
    return counts


@pytest.mark.usefixtures("subnets")
def test_an_application_with_a_pool_of_its_own_is_scaled_and_goes(product: Product) -> None:
    cluster = product.cluster
    named = json.dumps({"interface": "eth0", "ipv4": ["own-v4"], "ipv6": ["own-v6"]})
    notes = {"ipam.spidernet.io/subnet": named, "ipam.spidernet.io/ippool-ip-number": "+1"}
    own = Deployment(cluster, "own", grace=0, annotations=notes)
    before, size = sandbox_failures(cluster), 0
    try:
        for replicas in (2, 20, 2):
            if replicas == 20:
                # The chart is upgraded in between: replicas of the controller go and come.
                product.upgrade(values={"spiderpoolController": {"debug": {"logLevel": "debug"}}})
                assert _given(product) == {"own-v4": size, "own-v6": size}
            own.scale(replicas)
            size = replicas + 1
            cluster.wait(lambda size=size: _sizes(product) == {4: size, 6: size}, 30, f"pools of {size}")  # type: ignore[misc]
            pools = _pools(product)
            of = {version: parse_ranges(one["spec"]["ips"], version) for version, one in pools.items()}
            for one in own.pods():
                held = addresses(one)
                assert len(held) == 2
                for address in held:
                    version = 6 if ":" in address else 4
                    assert parse_ranges([address], version).difference(of[version]).size == 0
            assert _given(product) == {"own-v4": size, "own-v6": size}
    finally:
        own.remove()
    cluster.wait(lambda: not _pools(product), 60, "no automatic pool is left")
    cluster.wait(lambda: _given(product) == {"own-v4": 0, "own-v6": 0}, 30, "the subnets have everything back")
    # No ADD came before its pool: it waited for the owner's answer.
    after = sandbox_failures(cluster).items()
    assert [text for text, count in after if text.startswith("own-") and count > before.get(text, 0)] == []
    settled(cluster, expect=0)


def test_what_may_not_be_written_is_refused_in_words(product: Product) -> None:
    outside = {**SUBNETS[0], "spec": {**SUBNETS[0]["spec"], "ips": ["10.99.0.1"], "gateway": "10.98.0.1"}}
    with pytest.raises(CommandFailed) as refused:
        product.cluster.apply(outside)
    said = refused.value.stderr
    assert 'spec.ips[0]: Invalid value: "10.99.0.1": outside of spec.subnet 10.88.0.0/24' in said
    assert 'spec.gateway: Invalid value: "10.98.0.1": outside of spec.subnet 10.88.0.0/24' in said


def test_a_network_that_is_written_in_fields(networked: Product) -> None:
    cluster = networked.cluster
    cluster.apply(MADE)
    try:
        with running(cluster, pod("fielded", node="n1", annotations={NETWORKS: "fields"})) as made:
            nics = made["fielded"].nics
            assert set(nics) == {"eth0", "net1"}
            assert all(address.startswith(("10.91.10.", "fd00:91::10:")) for address in nics["net1"])
            assert made["fielded"].carries()["net1"] == set(nics["net1"])
    finally:
        cluster.delete(MADE)
    path = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions"
    cluster.wait(
        lambda: "fields" not in {one["metadata"]["name"] for one in cluster.items(path)}, 30, "the definition is gone"
    )
    settled(cluster, expect=0)
