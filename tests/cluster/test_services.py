"""Services of the real kube-proxy for pods on macvlan: by which link requests and answers go, and what makes it so.

A pod's request enters its node by the pair of links, where kube-proxy rewrites it; what came in by the pair is answered
by the pair. Each way is taken away once, and nobody answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from tests.cluster.audit import settled
from tests.cluster.lab import plan
from tests.cluster.lab.pods import pod
from tests.cluster.networks import (
    LivePod,
    cluster_ips,
    running,
    served,
    service,
)
from tests.cluster.product import Product
from tests.cluster.talk import PORT, Teller, Watch, ask, silent, without_routes, without_rule

pytestmark = pytest.mark.timeout(300)

PODS: Final = {"client": "n1", "near": "n1", "far": "n2"}
SERVICE_CIDRS: Final = plan.SERVICE_CIDRS.split(",")
LOCAL_PORT: Final = 30081
ANY_PORT: Final = 30082
ANSWERS: Final = {"match": f"th sport {PORT}", "reply": f"th dport {PORT}"}
"""Of a backend: what leaves are answers."""


def _node_ports(number: int, policy: str) -> dict[str, Any]:
    made = service(f"port-{policy.lower()}", selector={"app": "far"}, type="NodePort", externalTrafficPolicy=policy)
    for port in made["spec"]["ports"]:
        port["nodePort"] = number
    return made


def _host_endpoints(name: str, address: str) -> dict[str, Any]:
    """Of a process on a node, which no pod is."""
    family = "IPv6" if ":" in address else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{family.lower()}",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address]}],
        "ports": [{"name": kind.lower(), "protocol": kind, "port": PORT} for kind in ("TCP", "UDP")],
    }


@pytest.fixture(scope="module")
def pods(product: Product) -> Iterator[dict[str, LivePod]]:
    """Pods with one interface, and a process of n1's own; they tell who asks them."""
    cluster = product.cluster
    on_host = service("n1")
    del on_host["spec"]["selector"]
    objects = [
        *(service(name) for name in ("near", "far")),
        on_host,
        *(_host_endpoints("n1", address) for address in plan.node_addresses("n1")),
        _node_ports(LOCAL_PORT, "Local"),
        _node_ports(ANY_PORT, "Cluster"),
    ]
    manifests = [pod(name, node=node) for name, node in PODS.items()]
    with running(cluster, *objects, *manifests) as made, ExitStack() as tellers:
        for name, host in ({name: each.host for name, each in made.items()} | {"n1": cluster.node("n1")}).items():
            tellers.enter_context(Teller(host, name))
        served(cluster, made["client"].host, "near", "far", "n1")
        yield made
    settled(cluster, expect=0)


@pytest.mark.parametrize("backend", ["near", "far", "n1"])
def test_a_cluster_ip_is_asked_by_the_pair_whoever_serves(
    product: Product, pods: dict[str, LivePod], backend: str
) -> None:
    client = pods["client"]
    for (address, cidr), udp in itertools.product(
        zip(cluster_ips(product.cluster, backend), SERVICE_CIDRS, strict=True), (False, True)
    ):
        with Watch(client.host, "eth0", "veth0", match="th dport 80", reply="th sport 80") as watch:
            told, peer = ask(client.host, address, port=80, udp=udp)
            assert watch.packets().keys() == {("out", "veth0"), ("in", "veth0")}
        assert told == backend
        assert peer in (*client.node.addresses, *client.addresses), peer
        with without_routes(client.host, cidr):
            assert silent(client.host, address, port=80, udp=udp)


def test_a_node_port_of_policy_local_shows_the_clients_address_and_is_answered_by_the_pair(
    product: Product, pods: dict[str, LivePod]
) -> None:
    outside, backend = product.cluster.outside, pods["far"]
    for (address, client), udp in itertools.product(
        zip(backend.node.addresses, plan.OUTSIDE, strict=True), (False, True)
    ):
        with Watch(backend.host, "eth0", "veth0", **ANSWERS) as watch:
            assert ask(outside, address, port=LOCAL_PORT, udp=udp) == ("far", client)
            assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}
        with without_rule(backend.host, "fwmark", family="-6" if ":" in address else "-4"):
            assert silent(outside, address, port=LOCAL_PORT, udp=udp)
        (elsewhere,) = (it for it in plan.node_addresses("n1") if (":" in it) == (":" in address))
        assert silent(outside, elsewhere, port=LOCAL_PORT, udp=udp)


def test_a_node_port_of_policy_cluster_is_served_by_whichever_node_is_asked(
    product: Product, pods: dict[str, LivePod]
) -> None:
    """By another node the request is the node's own, and a neighbour's; by the pod's it comes by the pair."""
    outside, backend = product.cluster.outside, pods["far"]
    for node, link in (("n1", "eth0"), ("n2", "veth0")):
        for address, udp in itertools.product(plan.node_addresses(node), (False, True)):
            with Watch(backend.host, "eth0", "veth0", **ANSWERS) as watch:
                told, peer = ask(outside, address, port=ANY_PORT, udp=udp)
                assert (told, peer) == ("far", address)
                assert watch.packets().keys() == {("in", link), ("out", link)}
    for address in backend.addresses:
        (entry,) = (it for it in backend.node.addresses if (":" in it) == (":" in address))
        with without_routes(backend.node, address, table="500"):
            assert silent(outside, entry, port=ANY_PORT)


def test_pods_whose_lan_is_taken_for_the_clusters_need_all_requests_masqueraded(
    product: Product, pods: dict[str, LivePod]
) -> None:
    """Else the backend answers the pod by the LAN, as somebody whom the pod has not asked."""
    cluster, client = product.cluster, pods["client"]
    services = cluster_ips(cluster, "far")
    inside = {"clusterCIDR": "10.89.0.0/16,fd00:89::/64"}
    settings = {"syncPeriod": "30s", "minSyncPeriod": "1s"}

    def all_silent() -> bool:
        return all(silent(client.host, address, port=80) for address in services)

    def all_answer() -> bool:
        return all(ask(client.host, address, port=80)[0] == "far" for address in services)

    assert all_answer()
    try:
        client.node.configure_kube_proxy(**inside)
        cluster.wait(all_silent, 30, "no answer")
        client.node.configure_kube_proxy(**inside, nftables={**settings, "masqueradeAll": True})
        cluster.wait(all_answer, 30, "an answer")
    finally:
        client.node.configure_kube_proxy()
    assert all_answer()
