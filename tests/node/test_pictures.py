"""Golden pictures: what is in pod and node after each NIC, whole, and packets over it. After DEL nothing is left."""

from collections.abc import Iterator

import pytest

from tests.node.conftest import Segment
from tests.node.lan import (
    CALICO_MAC,
    HIJACKED,
    NODE,
    PODS,
    SERVICES,
    WORLD,
    Lan,
    Pod,
    address,
    lan_on,
    on_link,
    served,
)
from tests.node.picture import picture

pytestmark = pytest.mark.node

HIJACKS = (PODS, SERVICES, HIJACKED)
MARKING = {
    f"nft {family} spiderpool{chain}"
    for family in ("ip", "ip6")
    for chain in ("", " prerouting type filter", " output type route")
}
FOUR = {one for one in MARKING if "ip6" not in one}
NODE_RULES = {"rule4 1000 lookup 500"}


@pytest.fixture
def lan(segment: Segment) -> Iterator[Lan]:
    with lan_on(segment) as made:
        yield made


def links(**nics: str) -> set[str]:
    """Links and addresses of NICs, by name and address with prefix length."""
    return {f"link {name}" for name in nics} | {f"address {at} dev {name}" for name, at in nics.items() if at}


def subnet(network: str, nic: str, number: int, version: int = 4) -> str:
    if version == 6:
        return f"254: {on_link(network, 6)} dev {nic} proto kernel"
    return f"254: {on_link(network)} dev {nic} scope link src {address(network, number)} proto kernel"


def hijacks(table: int, end: str, source: str) -> set[str]:
    return {f"{table}: {one} via {NODE[4]} dev {end} src {source}" for one in HIJACKS}


def first_nic(pod: Pod, nic: str = "eth0", network: str = "a") -> set[str]:
    """Picture A without the default route."""
    own = address(network, pod.number)
    return {
        *links(**{nic: f"{own}/16", "veth0": ""}),
        "rule4 1000 fwmark 1 lookup 100",
        *hijacks(254, "veth0", own),
        subnet(network, nic, pod.number),
        f"254: {NODE[4]}/32 dev veth0 scope link src {own}",
        f"100: default via {NODE[4]} dev veth0 src {own}",
        f"neigh {NODE[4]} dev veth0 lladdr {pod.plans[nic].host_mac}",
        *FOUR,
    }


def on_node(pod: Pod, *addresses: str) -> set[str]:
    plan = next(iter(pod.plans.values()))
    routes = {f"500: {one}/32 dev {plan.host_veth} scope link" for one in addresses}
    return routes | {f"neigh {one} dev {plan.host_veth} lladdr {plan.pod_mac}" for one in addresses}


def own_table(table: int, nic: str, network: str, pod: Pod, *, end: str, source: str) -> set[str]:
    """Of a NIC that is not the one of the default route."""
    return {
        f"{table}: default via {address(network, 1)} dev {nic}",
        f"{table}: {on_link(network)} dev {nic} scope link src {address(network, pod.number)}",
        *hijacks(table, end, source),
        f"{table}: {NODE[4]}/32 dev {end} scope link src {source}",
    }


def test_a_one_nic(lan: Lan) -> None:
    before = picture(lan.node)
    pod = lan.pod()
    pod.attach("eth0", "a")
    own = address("a", 210)
    assert picture(pod.netns) == {
        *links(eth0=f"{own}/16"),
        f"254: default via {address('a', 1)} dev eth0",
        subnet("a", "eth0", 210),
    }
    pod.coordinate("eth0")
    assert picture(pod.netns) == first_nic(pod) | {f"254: default via {address('a', 1)} dev eth0"}
    assert picture(lan.node) == before | NODE_RULES | on_node(pod, own) | {f"link {pod.host_veth}"}
    both_ways(lan, pod, own)
    pod.delete("eth0")
    assert picture(lan.node) == before | NODE_RULES
    assert picture(pod.netns) == FOUR, "it does nothing without veth0, and goes with the namespace"


def test_b_two_nics_and_a_third(lan: Lan) -> None:
    before = picture(lan.node)
    pod = lan.pod()
    pod.add("eth0", "a")
    alone = picture(pod.netns), picture(lan.node)
    pod.add("net1", "b")
    own, second, third = (address(network, 210) for network in "abc")
    default = f"254: default via {address('a', 1)} dev eth0"
    # Behind the rule for marked packets: see `NIC_RULE_PRIORITY`.
    rule = f"rule4 1001 from {second} lookup 101"
    two = {
        *first_nic(pod),
        default,
        *links(net1=f"{second}/16"),
        rule,
        subnet("b", "net1", 210),
        *own_table(101, "net1", "b", pod, end="veth0", source=own),
    }
    assert picture(pod.netns) == two
    assert picture(lan.node) == before | NODE_RULES | on_node(pod, own, second) | {f"link {pod.host_veth}"}
    pod.add("net2", "c")
    assert picture(pod.netns) == two | {
        *links(net2=f"{third}/16"),
        f"rule4 1001 from {third} lookup 102",
        subnet("c", "net2", 210),
        *own_table(102, "net2", "c", pod, end="veth0", source=own),
    }
    for one in (own, second, third):
        both_ways(lan, pod, one)
    # One NIC goes: the others stay as they were.
    pod.delete("net2")
    assert picture(pod.netns) == two
    both_ways(lan, pod, second)
    pod.delete("net1")
    assert (picture(pod.netns), picture(lan.node)) == alone
    both_ways(lan, pod, own)
    pod.delete("eth0")
    assert picture(lan.node) == before | NODE_RULES
    assert picture(pod.netns) == FOUR, "it does nothing without veth0, and goes with the namespace"


def test_c_two_nics_and_the_default_route_by_the_second(lan: Lan) -> None:
    pod = lan.pod()
    pod.add("eth0", "a")
    alone = picture(pod.netns)
    pod.add("net1", "b", pod_default_route_nic="net1")
    own, second = address("a", 210), address("b", 210)
    assert picture(pod.netns) == {
        *first_nic(pod),
        *links(net1=f"{second}/16"),
        f"254: default via {address('b', 1)} dev net1",
        f"rule4 1001 from {own} lookup 101",
        subnet("b", "net1", 210),
        *own_table(101, "eth0", "a", pod, end="veth0", source=own),
    }
    assert pod.way_to(WORLD[4]) == ("net1", second)
    assert pod.way_to(WORLD[4], source=own) == ("eth0", own)
    for one in (own, second):
        both_ways(lan, pod, one)
    pod.delete("net1")
    assert picture(pod.netns) == alone, "the default route is back where it was"
    both_ways(lan, pod, own)


def test_d_overlay_and_one_nic(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    before = picture(lan.node), picture(pod.netns)
    over, own, third = pod.overlay_address, address("a", 210), address("c", 210)
    pod.add("net1", "a")
    (end,) = {plan.pod_mac for plan in pod.plans.values()}
    one_nic = {
        *links(eth0=f"{over}/32", net1=f"{own}/16"),
        f"rule4 32764 from {over} lookup 100",
        f"rule4 32765 from {own} lookup 101",
        "254: default via 169.254.1.1 dev eth0",
        *hijacks(254, "eth0", over),
        "254: 169.254.1.1/32 dev eth0 scope link",
        subnet("a", "net1", 210),
        f"254: {NODE[4]}/32 dev eth0 scope link src {over}",
        "100: default via 169.254.1.1 dev eth0",
        *own_table(101, "net1", "a", pod, end="eth0", source=over) - hijacks(101, "eth0", over),
        f"neigh {NODE[4]} dev eth0 lladdr {CALICO_MAC}",
    }
    assert picture(pod.netns) == one_nic
    host = {f"500: {own}/32 dev {pod.cali} scope link", f"neigh {own} dev {pod.cali} lladdr {end}"}
    assert picture(lan.node) == before[0] | NODE_RULES | host
    pod.add("net2", "c")
    assert picture(pod.netns) == one_nic | {
        *links(net2=f"{third}/16"),
        f"rule4 32763 from {third} lookup 102",
        subnet("c", "net2", 210),
        *own_table(102, "net2", "c", pod, end="eth0", source=over),
    }
    for one in (over, own, third):
        both_ways(lan, pod, one)
    # What both use goes with the last of them, whichever that is.
    pod.delete("net1")
    assert {f"254: {one} via {NODE[4]} dev eth0 src {over}" for one in HIJACKS} <= picture(pod.netns)
    both_ways(lan, pod, third)
    pod.delete("net2")
    assert picture(lan.node) == before[0] | NODE_RULES


def test_d_nothing_of_a_single_nic_is_left(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    before = picture(lan.node), picture(pod.netns)
    pod.add("net1", "a")
    pod.delete("net1")
    assert (picture(lan.node), picture(pod.netns)) == (before[0] | NODE_RULES, before[1])


def test_e_overlay_and_the_default_route_by_our_nic(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    before = picture(pod.netns)
    over, own = pod.overlay_address, address("a", 210)
    pod.add("net1", "a", pod_default_route_nic="net1")
    assert picture(pod.netns) == {
        *links(eth0=f"{over}/32", net1=f"{own}/16"),
        f"rule4 32765 from {over} lookup 101",
        f"254: default via {address('a', 1)} dev net1",
        *hijacks(254, "eth0", over),
        "254: 169.254.1.1/32 dev eth0 scope link",
        subnet("a", "net1", 210),
        f"254: {NODE[4]}/32 dev eth0 scope link src {over}",
        "101: default via 169.254.1.1 dev eth0",
        *hijacks(101, "eth0", over),
        "101: 169.254.1.1/32 dev eth0 scope link",
        f"101: {NODE[4]}/32 dev eth0 scope link src {over}",
        f"neigh {NODE[4]} dev eth0 lladdr {CALICO_MAC}",
    }
    for one in (over, own):
        both_ways(lan, pod, one)
    pod.delete("net1")
    assert picture(pod.netns) == before


def test_f_both_families(lan: Lan) -> None:
    pod = lan.pod(versions=(4, 6))
    pod.add("eth0", "a")
    own, six = address("a", 210), address("a", 210, 6)
    seen = {one for one in picture(pod.netns) if ":" in one.partition(" ")[2] or "6" in one.partition(" ")[0]}
    plan = pod.plans["eth0"]
    one_nic = {
        f"address {six}/64 dev eth0",
        "rule6 1000 fwmark 1 lookup 100",
        f"254: default6 via {address('a', 1, 6)} dev eth0",
        subnet("a", "eth0", 210, 6),
        f"254: fd00:233::/112 via {NODE[6]} dev veth0",
        f"254: fd00:234::/64 via {NODE[6]} dev veth0",
        f"254: {NODE[6]}/128 dev veth0",
        f"100: default6 via {NODE[6]} dev veth0",
        f"neigh {NODE[6]} dev veth0 lladdr {plan.host_mac}",
        f"neigh {NODE[4]} dev veth0 lladdr {plan.host_mac}",
    }
    assert seen == one_nic
    assert picture(pod.netns) >= MARKING
    pod.attach("net1", "b")
    two = picture(pod.netns)
    assert {
        f"254: default6 via {address(network, 1, 6)} dev {nic}" for nic, network in (("eth0", "a"), ("net1", "b"))
    } < two
    pod.coordinate("net1")
    second = address("b", 210, 6)
    seen = {one for one in picture(pod.netns) if ":" in one.partition(" ")[2] or "6" in one.partition(" ")[0]}
    assert seen == one_nic | {
        f"address {second}/64 dev net1",
        f"rule6 1001 from {second} lookup 101",
        subnet("b", "net1", 210, 6),
        f"101: default6 via {address('b', 1, 6)} dev net1",
        f"101: {on_link('b', 6)} dev net1",
        f"101: fd00:233::/112 via {NODE[6]} dev veth0",
        f"101: fd00:234::/64 via {NODE[6]} dev veth0",
        f"101: {NODE[6]}/128 dev veth0",
    }
    for network in "ab":
        for version in (4, 6):
            both_ways(lan, pod, address(network, 210, version))
    pod.delete("net1")
    pod.delete("eth0")
    assert picture(pod.netns) == MARKING
    assert own not in "".join(picture(lan.node))


def both_ways(lan: Lan, pod: Pod, own: str) -> None:
    """Pod and node reach each other at that address, and so do pod and world."""
    version = 6 if ":" in own else 4
    assert served(pod.netns, lan.node, own) == NODE[version]
    assert served(lan.node, pod.netns, NODE[version], source=own) == own
    if own != pod.overlay_address:
        assert served(lan.router, pod.netns, WORLD[version], source=own) == own
        assert served(pod.netns, lan.router, own, source=WORLD[version]) == WORLD[version]
