"""Area coordinator: which way packets of a pod go, on the real kernel.

The data path only, without a control plane: plans as an agent makes them, carried out on a node that is a namespace.
What the API server refuses, and what needs kube-proxy, is proven elsewhere.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from api.route import Route
from api.wire import Coordination
from cni.errors import InvalidConfig
from tests.netns import Netns
from tests.node.conftest import Segment
from tests.node.dnat import translate
from tests.node.lan import CLUSTER, NODE, WORLD, Lan, Pod, address, lan_on, served
from tests.node.picture import picture

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

FAMILIES = (4, 6)
SERVICE = {4: "10.233.0.10", 6: "fd00:233::10"}


@pytest.fixture
def lan(segment: Segment) -> Iterator[Lan]:
    with lan_on(segment) as made:
        yield made


def underlay(lan: Lan, *networks: str, **settings: Any) -> Pod:
    """A pod with a NIC in each of the networks."""
    names = ("eth0", *(f"net{number}" for number in range(1, len(networks))))
    pod = lan.pod(versions=FAMILIES)
    for ordinal, (name, network) in enumerate(zip(names, networks, strict=True)):
        pod.add(name, network, ordinal=ordinal, names=names, **settings)
    return pod


def overlay(lan: Lan, *networks: str, **settings: Any) -> Pod:
    """A pod whose eth0 is the cluster's own network's, with further NICs."""
    pod = lan.pod(versions=FAMILIES)
    pod.overlay()
    for number, network in enumerate(networks, 1):
        pod.add(f"net{number}", network, **settings)
    return pod


def mesh(lan: Lan, pods: list[Pod], *networks: str) -> None:
    """Every address of every pod is reached by the node, by the other pods and from outside."""
    for version in FAMILIES:
        for pod in pods:
            for network in networks:
                own = address(network, pod.number, version)
                assert served(pod.netns, lan.node, own) == NODE[version]
                assert served(pod.netns, lan.router, own, source=WORLD[version]) == WORLD[version]
                for other in pods:
                    if other is not pod:
                        source = address(network, other.number, version)
                        assert served(pod.netns, other.netns, own, source=source) == source
            assert served(lan.node, pod.netns, NODE[version])


def service(lan: Lan, server: Pod, client: Pod, addresses: Mapping[int, str]) -> None:
    """One pod calls another by a Service, by both IP versions."""
    for version in FAMILIES:
        at, known_as = addresses[version], SERVICE[version]
        lan.node.run(lambda known_as=known_as, at=at: translate(known_as, at))  # type: ignore[misc]
        assert served(server.netns, client.netns, at, known_as=known_as)


def test_C00003_underlay_two_nics(lan: Lan) -> None:
    pods = [underlay(lan, "a", "b"), underlay(lan, "a", "b")]
    mesh(lan, pods, "a", "b")
    service(lan, pods[0], pods[1], {version: address("a", pods[0].number, version) for version in FAMILIES})


def test_C00004_overlay_two_nics(lan: Lan) -> None:
    pods = [overlay(lan, "a", "b"), overlay(lan, "a", "b")]
    mesh(lan, pods, "a", "b")
    for version in FAMILIES:
        at, source = (pod.overlay_addresses[version] for pod in pods)
        assert served(pods[0].netns, pods[1].netns, at) == source
    service(lan, pods[0], pods[1], pods[0].overlay_addresses)


def test_C00005_overlay_default_route_on_net1(lan: Lan) -> None:
    pod = overlay(lan, "a", pod_default_route_nic="net1")
    for version in FAMILIES:
        own = address("a", pod.number, version)
        assert pod.way_to(WORLD[version]) == ("net1", own)
        assert pod.way_to(address("a", 1, version)) == ("net1", own)
        assert pod.way_to("10.233.64.9" if version == 4 else "fd00:234::9")[0] == "eth0"
        assert pod.way_to(SERVICE[version])[0] == "eth0"
        assert served(lan.router, pod.netns, WORLD[version]) == own
    without = overlay(lan, "a")
    assert without.way_to(WORLD[4])[0] == "eth0"


def test_C00006_underlay_default_route_on_net1(lan: Lan) -> None:
    pod = underlay(lan, "a", "b", pod_default_route_nic="net1")
    for version in FAMILIES:
        assert pod.way_to(WORLD[version]) == ("net1", address("b", pod.number, version))
        assert served(lan.router, pod.netns, WORLD[version]) == address("b", pod.number, version)


def test_C00008_mac_prefix(lan: Lan) -> None:
    pod = underlay(lan, "a", "b", pod_mac_prefix="0a:1b")
    assert mac_of(pod, "eth0") == pod.plans["eth0"].mac == f"0a:1b:ac:64:00:{pod.number:02x}"
    assert mac_of(pod, "net1") == pod.plans["net1"].mac == f"0a:1b:ac:c8:00:{pod.number:02x}"
    assert served(pod.netns, lan.router, address("b", pod.number)) == address("b", 1)


def test_C00010_dirty_rules(lan: Lan) -> None:
    """Stale entries of an address: permanent neighbours on links with an address and without, and routes to them."""

    def litter() -> None:
        with IPRoute() as route:
            route.link("add", ifname="old0", kind="veth", peer={"ifname": "old1"})
            ens0, old = (route.link_lookup(ifname=name)[0] for name in ("ens0", "old0"))
            route.link("set", index=old, state="up")
            for version in FAMILIES:
                own = address("a", 210, version)
                for index in (ens0, old):
                    route.neigh("add", dst=own, lladdr="02:00:00:00:00:99", ifindex=index, state=0x80)
                for metric in (5, 7, 2048):
                    route.route("add", dst=f"{own}/{32 if version == 4 else 128}", oif=old, table=500, priority=metric)

    lan.node.run(litter)
    assert any("old0" in one and "neigh" in one for one in picture(lan.node))
    pod = underlay(lan, "a")
    assert pod.number == 210
    left = [one for one in picture(lan.node) if address("a", 210) in one or address("a", 210, 6) in one]
    assert len(left) == 4 and all(pod.host_veth in one for one in left)
    for version in FAMILIES:
        assert served(pod.netns, lan.node, address("a", 210, version)) == NODE[version]


def test_C00011_default_route_on_eth0(lan: Lan) -> None:
    pod = underlay(lan, "a", "b")
    for version in FAMILIES:
        assert pod.way_to(WORLD[version]) == ("eth0", address("a", pod.number, version))


def test_C00012_source_of_service_and_node_traffic(lan: Lan) -> None:
    pod, over = underlay(lan, "a", "b"), overlay(lan, "a", "b")
    for to in (SERVICE[4], NODE[4]):
        assert pod.way_to(to) == ("veth0", address("a", pod.number))
        assert over.way_to(to) == ("eth0", over.overlay_address)
    for to in (SERVICE[6], NODE[6]):
        assert pod.way_to(to)[0] == "veth0"
        assert over.way_to(to)[0] == "eth0"


def test_C00014_default_route_nic_does_not_exist(lan: Lan) -> None:
    for pod, nic, names in (
        (underlay(lan, "a"), "net1", ("eth0", "net1", "net2")),
        (overlay(lan), "net1", ()),
    ):
        pod.attach(nic, "b")
        before = picture(pod.netns), picture(lan.node)
        with pytest.raises(InvalidConfig, match='podDefaultRouteNic: the pod has no interface "bogus"'):
            pod.coordinate(nic, names=names, pod_default_route_nic="bogus")
        assert (picture(pod.netns), picture(lan.node)) == before


def test_C00015_random_nic_name(lan: Lan) -> None:
    pod = underlay(lan, "a")
    pod.add("lan-7f3a", "b")
    own = address("b", pod.number)
    assert pod.way_to(WORLD[4], source=own) == ("lan-7f3a", own)
    assert served(pod.netns, lan.node, own) == NODE[4]


def test_C00016_host_rule_table(lan: Lan) -> None:
    pod = underlay(lan, "a", host_rule_table=600)
    seen = picture(lan.node)
    own = address("a", pod.number)
    assert {f"600: {own}/32 dev {pod.host_veth} scope link", "rule4 1000 lookup 600"} <= seen
    assert not [one for one in seen if one.startswith("500:")]
    assert served(pod.netns, lan.node, own) == NODE[4]


def test_C00017_no_tuning(lan: Lan) -> None:
    pod = underlay(lan, "a")
    pod.attach("net1", "b")
    before = {one for one in picture(pod.netns) if one.startswith(("254:", "rule"))}
    pod.coordinate("net1", tune_pod_routes=False)
    assert {one for one in picture(pod.netns) if one.startswith(("254:", "rule"))} == before
    tuned = underlay(lan, "a", "b")
    assert [one for one in picture(tuned.netns) if one.startswith("rule4 1001")]


def test_C00021_three_nics_and_strict_filtering(lan: Lan) -> None:
    def strict() -> None:
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")

    lan.node.run(strict)
    pods = [underlay(lan, "a", "b", "c", pod_rp_filter=1) for _ in range(2)]
    assert pods[0].netns.run(lambda: Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text()).strip() == "1"
    mesh(lan, pods, "a", "b", "c")


@pytest.mark.parametrize("prefix", ["0a1b", "0a", "0a:1b:2c", "xy:zz", "01:1b", "0a-1b"])
def test_C00022_invalid_mac_prefix(lan: Lan, prefix: str) -> None:
    pod = lan.pod()
    pod.attach("eth0", "a")
    before = mac_of(pod, "eth0")
    with pytest.raises(InvalidConfig, match=f'podMACPrefix: "{prefix}"'):
        pod.coordinate("eth0", cluster(pod_mac_prefix=prefix))
    assert mac_of(pod, "eth0") == before
    pod.coordinate("eth0", cluster(pod_mac_prefix="0A:1B"))
    assert mac_of(pod, "eth0").startswith("0a:1b:")


def test_C00023_veth_mtu(lan: Lan) -> None:
    pod = lan.pod()
    pod.attach("eth0", "a")
    with pytest.raises(InvalidConfig, match="vethMTU: 0 is not 68 to 65535"):
        pod.coordinate("eth0", veth_mtu=0)
    pod.coordinate("eth0", cluster(veth_mtu=1400))
    assert mtu_of(pod.netns, "veth0") == mtu_of(lan.node, pod.host_veth) == 1400
    assert mtu_of(pod.netns, "eth0") == 1500


def test_C00023_policy_routes_in_the_main_table(lan: Lan) -> None:
    pod = lan.pod()
    pod.add("eth0", "a", cluster(policy_routes=(Route(dst="192.0.2.0/24", gw=address("a", 7)),)))
    assert f"254: 192.0.2.0/24 via {address('a', 7)} dev eth0" in picture(pod.netns)
    assert pod.way_to("192.0.2.9") == ("eth0", address("a", pod.number))


def test_C00024_policy_routes_in_the_nics_table(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    pod.add("net1", "a", cluster(policy_routes=(Route(dst="192.0.2.0/24", gw=address("a", 7)),)))
    assert f"101: 192.0.2.0/24 via {address('a', 7)} dev net1" in picture(pod.netns)
    own = address("a", pod.number)
    assert pod.way_to("192.0.2.9", source=own) == ("net1", own)
    assert pod.way_to("192.0.2.9")[0] == "eth0"


def test_pods_on_the_lan_and_in_the_overlay_reach_each_other(lan: Lan) -> None:
    """On one node, by the node, as who they are; a pod that has both is reached by either."""
    under, over, both = underlay(lan, "a"), overlay(lan), overlay(lan, "a")
    for version in FAMILIES:
        own, theirs = address("a", under.number, version), over.overlay_addresses[version]
        for there in (theirs, both.overlay_addresses[version]):
            assert under.way_to(there)[0] == "veth0"
        assert served(over.netns, under.netns, theirs) == own
        assert served(under.netns, over.netns, own) == theirs
        assert served(both.netns, under.netns, address("a", both.number, version)) == own
        assert served(both.netns, over.netns, both.overlay_addresses[version]) == theirs
    alone = underlay(lan, "a", cluster=cluster(overlay_pod_cidr=()))
    assert alone.way_to(over.overlay_addresses[4])[0] == "eth0"
    with pytest.raises(OSError):  # noqa: PT011 - the router knows no such network
        served(over.netns, alone.netns, over.overlay_addresses[4], timeout=0.5)


def test_a_node_that_has_no_way_to_a_pods_network(lan: Lan) -> None:
    """It is the pair that makes one, whichever of the node's addresses is at its end."""

    def withdraw() -> None:
        with IPRoute() as route:
            for family in (2, 10):
                route.flush_routes(family=family, dst_len=0, table=254)

    assert [one for one in picture(lan.node) if "default" in one]
    lan.node.run(withdraw)
    assert not [one for one in picture(lan.node) if "default" in one]
    pod = underlay(lan, "b")
    for version in FAMILIES:
        own = address("b", pod.number, version)
        assert served(pod.netns, lan.node, own) == NODE[version]
        assert served(lan.node, pod.netns, NODE[version]) == own


def cluster(**settings: Any) -> Coordination:
    """The cluster's settings with some changed."""
    return Coordination(**{name: getattr(CLUSTER, name) for name in CLUSTER.__struct_fields__} | settings)


def mac_of(pod: Pod, ifname: str) -> str:
    return str(pod.netns.run(lambda: _link(ifname)).get_attr("IFLA_ADDRESS"))


def mtu_of(netns: Netns, ifname: str) -> int:
    return int(netns.run(lambda: _link(ifname)).get_attr("IFLA_MTU"))


def _link(ifname: str) -> Any:
    with IPRoute() as route:
        return route.get_links(route.link_lookup(ifname=ifname)[0])[0]
