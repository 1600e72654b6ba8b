"""Services for pods on ipvlan and on virtual functions, by the rules of the real kube-proxy: which way packets go.

As `tests/cluster/test_services.py` has it for macvlan. kube-proxy and its API server ran outside, see
`tests.vm.kube_proxy`; here its rules are loaded as they are. Each way is taken away once, and nobody answers.
"""

import itertools
from collections.abc import Iterator

import pytest

from tests.cluster.talk import Watch, without_routes, without_rule
from tests.node.lan import WORLD, address
from tests.vm.beside import made
from tests.vm.inside.served import World, world
from tests.vm.services import ANY_PORT, BACKENDS, LOCAL_PORT, NODES, NUMBERS, PORT, SERVICE_CIDRS

MAKER = "tests.vm.kube_proxy"
pytestmark = [pytest.mark.node, pytest.mark.beside(MAKER)]

FAMILIES = (4, 6)
N1 = NODES["n1"]
REQUESTS = {"match": "th dport 80", "reply": "th sport 80"}
ANSWERS = {"match": f"th sport {PORT}", "reply": f"th dport {PORT}"}
"""Of a backend: what leaves are answers."""

DEFAULTS = ("default", "::/0")
OVERLAYS_TABLE = "100"
"""Of a pod of an overlay: what its first NIC's address is looked up in."""

BY_THE_PAIR = {("out", "veth0"), ("in", "veth0")}
BY_ETH0 = {("out", "eth0"), ("in", "eth0")}


@pytest.fixture(scope="module", params=["ipvlan", "sriov"])
def lan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    kind = request.param
    nic = request.getfixturevalue("_nic_with_functions") if kind == "sriov" else None
    with world(tmp_path_factory.mktemp(kind), kind, nic=nic, rules=made(MAKER)) as found:
        yield found


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cluster_ip_is_asked_by_the_pair_whoever_serves(lan: World, backend: str) -> None:
    """What comes from elsewhere than the overlay is masqueraded, unless it stays on the node itself."""
    with Watch(lan.machines["client"], "eth0", "veth0", **REQUESTS) as watch:
        for version, udp in itertools.product(FAMILIES, (False, True)):
            seen = address("a", NUMBERS["client"], version) if backend == "host" else N1[version]
            told, peer = lan.ask("client", BACKENDS[backend].cluster_ips[version], 80, udp=udp)
            assert (told, peer) == (backend, seen)
        assert watch.packets().keys() == BY_THE_PAIR


def test_without_the_way_to_services_nobody_answers(lan: World) -> None:
    with without_routes(lan.machines["client"], *SERVICE_CIDRS.values()):
        assert lan.silent("client", BACKENDS["near"].cluster_ips.values(), 80)


def test_a_node_port_of_policy_local_shows_the_clients_address_and_is_answered_by_the_pair(lan: World) -> None:
    near = lan.machines["near"]
    with Watch(near, "eth0", "veth0", **ANSWERS) as watch:
        for version, udp in itertools.product(FAMILIES, (False, True)):
            assert lan.ask("outside", N1[version], LOCAL_PORT, udp=udp) == ("near", WORLD[version])
        assert watch.packets().keys() == BY_THE_PAIR
    with without_rule(near, "fwmark", family="-4"), without_rule(near, "fwmark", family="-6"):
        assert lan.silent("outside", N1.values(), LOCAL_PORT)


def test_a_node_port_of_policy_cluster_is_served_by_another_nodes_pod(lan: World) -> None:
    """To that it is a request of the node that was asked, a neighbour on the LAN."""
    with Watch(lan.machines["far"], "eth0", "veth0", **ANSWERS) as watch:
        for version, udp in itertools.product(FAMILIES, (False, True)):
            assert lan.ask("outside", N1[version], ANY_PORT, udp=udp) == ("far", N1[version])
        assert watch.packets().keys() == BY_ETH0
    lan.load("")
    assert lan.silent("outside", N1.values(), ANY_PORT)
    lan.load("usual")


def test_pods_whose_lan_is_taken_for_the_clusters_need_all_requests_masqueraded(lan: World) -> None:
    """Else the backend answers the pod by the LAN, as somebody whom the pod has not asked."""
    services = BACKENDS["far"].cluster_ips.values()
    lan.load("lan-inside")
    assert lan.silent("client", services, 80)
    lan.load("lan-inside-all")
    assert [lan.ask("client", one, 80) for one in services] == [("far", one) for one in N1.values()]
    lan.load("usual")


def test_a_pod_of_an_overlay_asks_by_its_first_nic_and_by_its_own_address(lan: World) -> None:
    with (
        Watch(lan.machines["overlay"], "eth0", "net1", **REQUESTS) as watch,
        Watch(lan.machines["near"], "eth0", "veth0", **ANSWERS) as behind,
    ):
        for version, udp in itertools.product(FAMILIES, (False, True)):
            told, peer = lan.ask("overlay", BACKENDS["near"].cluster_ips[version], 80, udp=udp)
            assert (told, peer) == ("near", BACKENDS["overlay"].addresses[version])
        assert watch.packets().keys() == BY_ETH0
        assert behind.packets().keys() == BY_THE_PAIR
    overlay = lan.machines["overlay"]
    with (
        without_routes(overlay, *SERVICE_CIDRS.values(), *DEFAULTS),
        without_routes(overlay, *DEFAULTS, table=OVERLAYS_TABLE),
    ):
        assert lan.silent("overlay", BACKENDS["near"].cluster_ips.values(), 80)


@pytest.mark.parametrize("lan", ["ipvlan"], indirect=True)
def test_an_ipvlan_link_has_no_way_to_its_parent_but_the_pair(lan: World) -> None:
    client = lan.machines["client"]
    with Watch(client, "eth0", "veth0", match=f"th dport {PORT}", reply=f"th sport {PORT}") as watch:
        for one in N1.values():
            assert lan.ask("client", one, PORT)[0] == "host"
        assert watch.packets().keys() == BY_THE_PAIR
    with without_routes(client, *N1.values()):
        assert lan.silent("client", N1.values(), PORT)
