"""An overlay network makes the first interface, and we the second: the overlay's for Services, ours for the LAN.

The overlay is the lab's bridge CNI: a plugin of somebody else's with an IPAM of its own, called by the agent, and
Debian's portmap behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.cluster.audit import addresses, settled
from tests.cluster.lab import Cluster, plan
from tests.cluster.lab.node import Node
from tests.cluster.lab.node_files import BRIDGE_NAME
from tests.cluster.lab.pods import pod
from tests.cluster.networks import (
    DEFAULT_NETWORK,
    DEFAULT_ROUTE,
    NETWORKS,
    LivePod,
    cluster_ips,
    running,
    served,
    service,
)
from tests.cluster.product import Product
from tests.cluster.talk import PORT, Teller, Watch, ask, silent, without_routes, without_rule

pytestmark = pytest.mark.timeout(300)

PODS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "bare-1": ("n1", {}),
    "under-1": ("n1", {DEFAULT_NETWORK: "default/lan"}),
    "over-1": ("n1", {NETWORKS: "lan"}),
    "over-2": ("n2", {NETWORKS: "lan"}),
    "directed": ("n2", {NETWORKS: "lan", DEFAULT_ROUTE: "net1"}),
}
"""Where each is, and its annotations."""
BOTH: Final = ("over-1", "over-2", "directed")
SERVICES: Final = ("bare-1", "over-2")
SERVICE_CIDRS: Final = plan.SERVICE_CIDRS.split(",")
DEFAULTS: Final = ("default", "::/0")
OVERLAYS_TABLE: Final = "100"
"""Has the default route for packets from the overlay's address once more."""
HOST_PORT: Final = 18081
HOST_LOCAL: Final = f"/var/lib/cni/networks/{BRIDGE_NAME}"


@pytest.fixture(scope="module")
def overlay(networked: Product) -> Iterator[Cluster]:
    """Nodes whose pods get their first interface of the bridge CNI; as before in the end."""
    cluster = networked.cluster
    cluster.install_bridge(host_ports=True)
    networked.upgrade(values={"spiderpoolAgent": {"cni": {"clusterNetwork": BRIDGE_NAME}}})
    networked.rolled_out()
    yield cluster
    networked.upgrade()
    networked.rolled_out()
    cluster.remove_bridge()


@pytest.fixture
def host_ports(networked: Product, overlay: Cluster) -> Cluster:
    """`overlay`, its plugins executed among the node's files, where portmap finds iptables."""
    networked.upgrade(values={"spiderpoolAgent": {"hostPID": True, "cni": {"clusterNetwork": BRIDGE_NAME}}})
    networked.rolled_out()
    return overlay


@pytest.fixture(scope="module")
def pods(overlay: Cluster) -> Iterator[dict[str, LivePod]]:
    """`PODS`, which tell who asks them, as nodes and the client beyond the router do."""
    services = [service(name) for name in SERVICES]
    manifests = [pod(name, node=node, annotations=notes) for name, (node, notes) in PODS.items()]
    with running(overlay, *services, *manifests) as made, ExitStack() as tellers:
        hosts = {name: each.host for name, each in made.items()} | overlay.nodes | {"outside": overlay.outside}
        for name, host in hosts.items():
            tellers.enter_context(Teller(host, name))
        served(overlay, made["bare-1"].host, *SERVICES)
        yield made
    settled(overlay, expect=0)
    for node in overlay.nodes.values():
        kept = node.run(["ls", HOST_LOCAL]).stdout.split()
        assert [name for name in kept if name != "lock" and not name.startswith("last_reserved")] == []


def _family(address: str, *found: str) -> str:
    return next(it for it in found if (":" in it) == (":" in address))


def test_the_first_interface_is_the_overlays_and_the_second_of_our_pools(
    overlay: Cluster, pods: dict[str, LivePod]
) -> None:
    assert all(ip.startswith(("10.89.10.", "fd00:89::10:")) for ip in pods["under-1"].addresses)
    for name in ("bare-1", *BOTH):
        assert all(ip.startswith(("10.244.", "fd00:10:244:")) for ip in addresses(pods[name].item))
    for name in BOTH:
        each = pods[name]
        assert set(each.nics["eth0"]) == set(addresses(each.item))
        assert all(ip.startswith(("10.89.10.", "fd00:89::10:")) for ip in each.nics["net1"])
        assert each.carries() == {nic: set(ips) for nic, ips in each.nics.items()}
    settled(overlay, expect=len(PODS) - 1)


def test_kubelet_probes_by_the_overlay(overlay: Cluster, pods: dict[str, LivePod]) -> None:
    each = pods["over-1"]
    with Watch(each.host, "eth0", "net1", match="th sport 8080", reply="th dport 8080") as watch:
        overlay.wait(lambda: watch.packets().get(("out", "eth0"), 0) > 1, 15, "a probe")
        assert watch.packets().keys() == {("in", "eth0"), ("out", "eth0")}


def test_services_are_asked_by_the_overlay_and_as_its_address(overlay: Cluster, pods: dict[str, LivePod]) -> None:
    client = pods["over-1"]
    for (address, cidr, default), udp in itertools.product(
        zip(cluster_ips(overlay, "over-2"), SERVICE_CIDRS, DEFAULTS, strict=True), (False, True)
    ):
        with Watch(client.host, "eth0", "net1", match="th dport 80", reply="th sport 80") as watch:
            told, peer = ask(client.host, address, port=80, udp=udp)
            assert watch.packets().keys() == {("in", "eth0"), ("out", "eth0")}
        own = _family(address, *client.nics["eth0"])
        assert (told, peer) == ("over-2", own)
        with without_routes(client.host, cidr, default), without_routes(client.host, default, table=OVERLAYS_TABLE):
            assert silent(client.host, address, port=80, udp=udp, source=own)


def test_pods_on_the_lan_reach_overlay_pods_by_service(overlay: Cluster, pods: dict[str, LivePod]) -> None:
    client = pods["under-1"]
    found = {name: zip(cluster_ips(overlay, name), SERVICE_CIDRS, strict=True) for name in SERVICES}
    ways = [(name, address, cidr) for name, pairs in found.items() for address, cidr in pairs]
    for (name, address, cidr), udp in itertools.product(ways, (False, True)):
        with Watch(client.host, "eth0", "veth0", match="th dport 80", reply="th sport 80") as watch:
            told, peer = ask(client.host, address, port=80, udp=udp)
            assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}
        assert told == name and peer in {
            it["local"] for link in client.node.links().values() for it in link["addr_info"]
        }
        with without_routes(client.host, cidr):
            assert silent(client.host, address, port=80, udp=udp)


def test_overlay_pods_reach_pods_on_the_lan_of_their_node(pods: dict[str, LivePod]) -> None:
    client, target = pods["bare-1"], pods["under-1"]
    for address in target.addresses:
        with Watch(target.host, "eth0", "veth0", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            assert ask(client.host, address) == ("under-1", _family(address, *addresses(client.item)))
            assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}


def test_the_lan_is_reached_by_the_second_interface(pods: dict[str, LivePod]) -> None:
    for source, target in itertools.permutations(("under-1", *BOTH), 2):
        if source == "under-1":
            continue
        client, server = pods[source], pods[target]
        for address in server.nics["net1" if target in BOTH else "eth0"]:
            with Watch(client.host, "eth0", "net1") as watch:
                assert ask(client.host, address) == (target, _family(address, *client.nics["net1"]))
                assert {link for way, link in watch.packets() if way == "out"} == {"net1"}


def test_who_comes_from_afar_is_answered_by_the_second_interface(overlay: Cluster, pods: dict[str, LivePod]) -> None:
    each = pods["over-1"]
    for address in each.nics["net1"]:
        with Watch(each.host, "eth0", "net1", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            assert ask(overlay.outside, address) == ("over-1", _family(address, *plan.OUTSIDE))
            assert {link for way, link in watch.packets() if way == "out"} == {"net1"}
        rule = without_rule(each.host, f"from {address} ", family="-6" if ":" in address else "-4")
        with rule, Watch(each.host, "eth0", "net1", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            silent(overlay.outside, address)
            assert {link for way, link in watch.packets() if way == "out"} == {"eth0"}


@pytest.mark.parametrize(("name", "nic"), [("over-1", "eth0"), ("directed", "net1")])
def test_the_default_route_is_the_overlays_unless_the_other_is_asked_for(
    pods: dict[str, LivePod], name: str, nic: str
) -> None:
    each = pods[name]
    for address, default, own in zip(plan.OUTSIDE, DEFAULTS, each.nics[nic], strict=True):
        with Watch(each.host, "eth0", "net1", reply=f"th sport {PORT}") as watch:
            assert ask(each.host, address) == ("outside", own)
            assert watch.packets().keys() == {("in", nic), ("out", nic)}
        with ExitStack() as taken:
            taken.enter_context(without_routes(each.host, default))
            if nic == "eth0":
                taken.enter_context(without_routes(each.host, default, table=OVERLAYS_TABLE))
            assert silent(each.host, address, source=own)


def test_nodes_and_their_pods_reach_each_other_by_the_overlays_pair(pods: dict[str, LivePod]) -> None:
    for each in (pods[name] for name in BOTH):
        with Watch(each.host, "eth0", "net1", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            for address in each.addresses:
                assert ask(each.node, address)[0] == each.name
            assert watch.packets().keys() == {("in", "eth0"), ("out", "eth0")}
        for address in each.nics["net1"]:
            with without_routes(each.node, address, table="500"):
                assert silent(each.node, address)
        with Watch(each.host, "eth0", "net1", reply=f"th sport {PORT}") as watch:
            for address in each.node.addresses:
                assert ask(each.host, address)[0] == each.node.name
            assert watch.packets().keys() == {("in", "eth0"), ("out", "eth0")}


@pytest.mark.usefixtures("pods")
def test_a_host_port_leads_to_the_overlays_interface_until_the_pod_goes(host_ports: Cluster) -> None:
    cluster, outside = host_ports, host_ports.outside
    node, other = cluster.node("n1"), cluster.node("n2")
    ported = pod("ported", node=node.name, annotations={NETWORKS: "lan"})
    ported["spec"]["containers"][0]["ports"] = [
        {"containerPort": PORT, "hostPort": HOST_PORT, "protocol": kind} for kind in ("TCP", "UDP")
    ]
    ways = [*itertools.product(zip(node.addresses, other.addresses, plan.OUTSIDE, strict=True), (False, True))]
    assert _host_port_rules(node) == []
    with running(cluster, ported) as made, Teller(made["ported"].host, "ported"):
        each = made["ported"]
        assert set(each.nics) == {"eth0", "net1"}
        for (address, elsewhere, client), udp in ways:
            with Watch(each.host, "eth0", "net1", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
                assert ask(outside, address, port=HOST_PORT, udp=udp) == ("ported", client)
                assert watch.packets().keys() == {("in", "eth0"), ("out", "eth0")}
            for refusing, port in ((address, HOST_PORT + 1), (elsewhere, HOST_PORT)):
                with pytest.raises(ConnectionRefusedError):
                    ask(outside, refusing, port=port, udp=udp)
        assert _host_port_rules(node) != []
    # A pod without a grace period is gone before its sandbox is.
    cluster.wait(lambda: not _host_port_rules(node), 30, "a node without rules of the pod")
    for (address, _, _), udp in ways:
        with pytest.raises(ConnectionRefusedError):
            ask(outside, address, port=HOST_PORT, udp=udp)


def _host_port_rules(node: Node) -> list[str]:
    """The rules of the node's firewall that name the port, and the chains that portmap makes for one pod."""
    rules = node.run(["nft", "list", "ruleset"]).stdout.splitlines()
    return [line.strip() for line in rules if str(HOST_PORT) in line or "CNI-DN-" in line]
