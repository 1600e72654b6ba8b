"""Pods with several interfaces by their annotations, on real kubelets: addresses, routes, traffic and probes by each.

No Multus is there. Every pod is in the first LAN; in the second one only the nodes' uplinks are. The router joins both.
What carried a packet is counted on the links, and what makes it so is taken away once to see that it does.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.cluster.audit import STATUS, settled
from tests.cluster.lab import plan
from tests.cluster.lab.node import Node
from tests.cluster.lab.pods import pod
from tests.cluster.networks import (
    DEFAULT_ROUTE,
    NETWORKS,
    LivePod,
    cluster_ips,
    running,
    served,
    service,
)
from tests.cluster.product import Product, is_ready
from tests.cluster.talk import PORT, Teller, Watch, ask, silent, without_routes, without_rule
from tests.cluster.workload import Deployment

pytestmark = pytest.mark.timeout(300)

SCALE: Final = 50
PODS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "plain": ("n2", {}),
    "two-1": ("n1", {NETWORKS: "storage"}),
    "two-2": ("n2", {NETWORKS: "default/storage"}),
    "three-1": ("n1", {NETWORKS: "storage,lan"}),
    "three-2": ("n2", {NETWORKS: json.dumps([{"name": "storage"}, {"name": "backup", "interface": "data"}])}),
    "directed": ("n1", {NETWORKS: "storage", DEFAULT_ROUTE: "net1"}),
}
"""Where each is, and its annotations."""

POOLS: Final[dict[str, dict[str, str]]] = {
    "plain": {"eth0": "89.10"},
    "two-1": {"eth0": "89.10", "net1": "91.10"},
    "two-2": {"eth0": "89.10", "net1": "91.10"},
    "three-1": {"eth0": "89.10", "net1": "91.10", "net2": "89.10"},
    "three-2": {"eth0": "89.10", "net1": "91.10", "data": "91.20"},
    "directed": {"eth0": "89.10", "net1": "91.10"},
}
"""Where the addresses of each interface are, by the middle octets of the pool."""

SERVICE: Final = service("several", selector={"serves": "several"})
BACKENDS: Final = ("two-1", "two-2")
SERVICE_CIDRS: Final = plan.SERVICE_CIDRS.split(",")


# ------------------------------------------------------------------ they come and go


def _picture(node: Node) -> dict[str, set[str]]:
    """What a node's kernel has that pods could leave there."""
    words = {
        "links": ["ip", "-brief", "link"],
        "rules": ["sh", "-c", "ip -4 rule; ip -6 rule"],
        "routes": ["sh", "-c", "ip -4 route show table all; ip -6 route show table all"],
        "neighbours": ["ip", "neighbour", "show", "nud", "permanent"],
        "firewall": ["nft", "list", "tables"],
    }
    shown = {what: node.run(argv).stdout.splitlines() for what, argv in words.items()}
    shown["links"] = [line.split()[0] for line in shown["links"]]
    shown["rules"] = [line for line in shown["rules"] if "lookup 500" not in line]  # stays with the node
    return {what: set(lines) for what, lines in shown.items()}


def test_fifty_pods_of_three_interfaces_come_and_go_while_agents_are_killed(networked: Product) -> None:
    cluster = networked.cluster
    settled(cluster, expect=0)
    before = {node.name: _picture(node) for node in cluster.nodes.values()}
    wide = Deployment(cluster, "wide", grace=0, bare=True, annotations={NETWORKS: "storage,lan"})

    def kill_agents() -> None:
        for node in cluster.nodes:
            networked.kill(networked.agent_on(node))

    try:
        wide.scale(SCALE, wait=False)
        cluster.wait(lambda: sum(map(is_ready, wide.pods())) >= SCALE // 5, 120, "the first pods Ready")
        kill_agents()
        wide.settle(SCALE)
        settled(cluster, expect=SCALE)
        networked.rolled_out()
        wide.scale(0, wait=False)
        cluster.wait(lambda: len(wide.pods()) <= SCALE - SCALE // 5, 60, "the first pods gone")
        kill_agents()
        wide.settle(0)
        networked.rolled_out()
    finally:
        wide.remove()
    settled(cluster, expect=0)
    assert {node.name: _picture(node) for node in cluster.nodes.values()} == before


# ------------------------------------------------------------------ they live


@pytest.fixture(scope="module")
def pods(networked: Product) -> Iterator[dict[str, LivePod]]:
    """`PODS`, each of which tells who asks it; Ready by kubelet's probes."""
    cluster = networked.cluster
    manifests = [
        pod(name, node=node, annotations=notes, labels={"serves": "several"} if name in BACKENDS else None)
        for name, (node, notes) in PODS.items()
    ]
    with running(cluster, SERVICE, *manifests) as made, ExitStack() as tellers:
        for name, each in made.items():
            tellers.enter_context(Teller(each.host, name))
        served(cluster, made["plain"].host, "several")
        yield made
    settled(cluster, expect=0)


@pytest.fixture(scope="module")
def others(networked: Product) -> Iterator[None]:
    """Nodes and the client beyond the router tell who asks them, too."""
    cluster = networked.cluster
    with ExitStack() as tellers:
        for host in (*cluster.nodes.values(), cluster.outside):
            tellers.enter_context(Teller(host, host.name))
        yield


def _in(address: str, octets: str) -> bool:
    lan, block = octets.split(".")
    return ipaddress.ip_address(address) in ipaddress.ip_network(
        f"fd00:{lan}::{block}:0/112" if ":" in address else f"10.{lan}.{block}.0/24"
    )


def _segment(address: str) -> str:
    return address.split(".")[1] if "." in address else address.split(":")[1]


def test_every_interface_has_an_address_of_each_family_of_its_pools(
    networked: Product, pods: dict[str, LivePod]
) -> None:
    for name, each in pods.items():
        assert {nic: [":" in ip for ip in ips] for nic, ips in each.nics.items()} == {
            nic: [False, True] for nic in POOLS[name]
        }
        assert all(_in(ip, POOLS[name][nic]) for nic, ips in each.nics.items() for ip in ips), each.nics
        carried = {nic: ips for nic, ips in each.carries().items() if nic != "veth0"}
        assert carried == {nic: set(ips) for nic, ips in each.nics.items()}
    settled(networked.cluster, expect=len(PODS))


def test_the_status_names_every_network_as_people_know_it_from_multus(pods: dict[str, LivePod]) -> None:
    notes = {name: each.item["metadata"].get("annotations", {}) for name, each in pods.items()}
    assert STATUS not in notes["plain"]
    status = json.loads(notes["three-2"][STATUS])
    assert [(one["name"], one["interface"], one.get("default", False)) for one in status] == [
        ("spiderpool", "eth0", True),
        ("default/storage", "net1", False),
        ("default/backup", "data", False),
    ]
    macs = {link["ifname"]: link["address"] for link in pods["three-2"].host.links().values()}
    assert {one["interface"]: one["mac"] for one in status}.items() <= macs.items()


def test_kubelet_probes_by_the_pair_and_not_by_the_lan(networked: Product, pods: dict[str, LivePod]) -> None:
    each = pods["three-1"]
    with Watch(each.host, *each.nics, "veth0", match="th sport 8080", reply="th dport 8080") as watch:
        networked.cluster.wait(lambda: watch.packets().get(("out", "veth0"), 0) > 1, 15, "a probe")
        assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(("name", "nic"), [("two-1", "eth0"), ("three-2", "eth0"), ("directed", "net1")])
def test_the_default_route_goes_by_the_first_interface_or_by_the_one_that_is_asked_for(
    pods: dict[str, LivePod], name: str, nic: str
) -> None:
    each = pods[name]
    with Watch(each.host, *each.nics, "veth0", reply=f"th sport {PORT}") as watch:
        for address in plan.OUTSIDE:
            told, peer = ask(each.host, address)
            assert told == "outside" and peer in each.nics[nic]
        assert watch.packets().keys() == {("out", nic), ("in", nic)}
    for address, own, default in zip(plan.OUTSIDE, each.nics[nic], ("default", "::/0"), strict=True):
        with without_routes(each.host, default):
            assert silent(each.host, address, source=own)


def test_pods_reach_every_interface_of_each_other_by_their_own_in_its_segment(pods: dict[str, LivePod]) -> None:
    for source, target in itertools.permutations(pods.values(), 2):
        for address in target.addresses:
            told, peer = ask(source.host, address)
            assert told == target.name
            near = [
                ip for ip in source.addresses if _segment(ip) == _segment(address) and (":" in ip) == (":" in address)
            ]
            assert peer in (near or source.nics["eth0"]), f"{source.name} to {address} as {peer}"


def test_from_the_address_of_each_interface_its_segment_is_reached_by_it(pods: dict[str, LivePod]) -> None:
    for source, target in (("three-1", "three-2"), ("three-2", "three-1"), ("directed", "two-2")):
        client = pods[source]
        for own, address in itertools.product(client.addresses, pods[target].addresses):
            if _segment(own) == _segment(address) and (":" in own) == (":" in address):
                with Watch(client.host, *client.nics, "veth0") as watch:
                    assert ask(client.host, address, source=own) == (target, own)
                    assert {link for way, link in watch.packets() if way == "out"} == {client.nic_of(own)}


def test_who_comes_from_afar_is_answered_by_the_interface_that_was_asked(
    networked: Product, pods: dict[str, LivePod]
) -> None:
    outside = networked.cluster.outside
    for name in ("two-1", "three-1", "three-2", "directed"):
        each = pods[name]
        for address in each.addresses:
            with Watch(each.host, *each.nics, "veth0", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
                assert ask(outside, address) == (name, plan.OUTSIDE[":" in address])
                assert {link for way, link in watch.packets() if way == "out"} == {each.nic_of(address)}


def test_without_its_rule_an_interface_is_answered_for_by_another(networked: Product, pods: dict[str, LivePod]) -> None:
    each = pods["two-2"]
    for address in each.nics["net1"]:
        rule = without_rule(each.host, f"from {address} ", family="-6" if ":" in address else "-4")
        with rule, Watch(each.host, *each.nics, match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            ask(networked.cluster.outside, address)
            assert {link for way, link in watch.packets() if way == "out"} == {"eth0"}


def test_nodes_reach_every_interface_of_their_pods_by_the_pair(pods: dict[str, LivePod]) -> None:
    for each in pods.values():
        with Watch(each.host, *each.nics, "veth0", match=f"th sport {PORT}", reply=f"th dport {PORT}") as watch:
            for address in each.addresses:
                told, peer = ask(each.node, address)
                assert told == each.name and peer in each.node.addresses
            assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}
    each = pods["three-1"]
    for address in each.nics["eth0"]:
        with without_routes(each.node, address, table="500"):
            assert silent(each.node, address)


@pytest.mark.usefixtures("others")
def test_pods_reach_their_node_by_the_pair(pods: dict[str, LivePod]) -> None:
    for each in pods.values():
        with Watch(each.host, *each.nics, "veth0", reply=f"th sport {PORT}") as watch:
            for address in each.node.addresses:
                told, peer = ask(each.host, address)
                assert told == each.node.name and peer in each.addresses
            assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}
    each = pods["three-1"]
    for address in each.node.addresses:
        with without_routes(each.host, address):
            assert silent(each.host, address)


def test_services_are_reached_by_the_pair_from_every_interface(networked: Product, pods: dict[str, LivePod]) -> None:
    services = cluster_ips(networked.cluster, "several")
    for name in ("two-1", "three-1", "three-2", "directed"):
        each = pods[name]
        for address, cidr in zip(services, SERVICE_CIDRS, strict=True):
            with Watch(each.host, *each.nics, "veth0", match="th dport 80", reply="th sport 80") as watch:
                told = {ask(each.host, address, port=80)[0] for _ in range(12)}
                assert told == set(BACKENDS)
                for own in each.addresses:
                    if (":" in own) == (":" in address):
                        assert ask(each.host, address, port=80, source=own)[0] in BACKENDS
                assert watch.packets().keys() == {("in", "veth0"), ("out", "veth0")}
            with without_routes(each.host, cidr):
                assert silent(each.host, address, port=80)
