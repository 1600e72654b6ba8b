"""Pods with several NICs on the real kernel: which way packets go, what fails and what that leaves."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Self

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute

from cni.coordination import CoordinationPlan
from cni.errors import InvalidConfig, KernelRefused
from cni.netlink import coordinator, nftables
from cni.netlink.nftables import FilterSocket
from cni.netlink.socket import NetlinkSocket, Request
from cni.protocol import Role
from tests.node.conftest import Segment
from tests.node.dnat import translate
from tests.node.lan import CLUSTER, NODE, PODS, WORLD, Lan, Pod, address, assign, lan_on, on_link, served
from tests.node.picture import picture

pytestmark = pytest.mark.node

FAMILIES = (4, 6)
NODE_RULES = {"rule4 1000 lookup 500"}


@pytest.fixture
def lan(segment: Segment) -> Iterator[Lan]:
    with lan_on(segment) as made:
        yield made


def through_the_node(lan: Lan, pod: Pod, to: str, *, timeout: float = 5.0) -> str:
    """Whom a pod's server sees when the world calls the node, which sends on what comes."""
    version = 6 if ":" in to else 4
    lan.node.run(lambda: translate(NODE[version], to))
    return served(pod.netns, lan.router, to, known_as=NODE[version], source=WORLD[version], timeout=timeout)


@pytest.mark.parametrize("version", FAMILIES)
@pytest.mark.parametrize("default", ["eth0", "net1"])
@pytest.mark.parametrize("called", ["a", "b"], ids=["eth0", "net1"])
def test_replies_go_back_through_the_node(lan: Lan, version: int, default: str, called: str) -> None:
    pod = lan.pod(versions=(4, 6))
    pod.add("eth0", "a")
    pod.add("net1", "b", pod_default_route_nic=default)
    assert through_the_node(lan, pod, address(called, pod.number, version)) == WORLD[version]


@pytest.mark.parametrize("default", ["eth0", "net1"])
def test_replies_would_go_astray(lan: Lan, default: str) -> None:
    """Without marks; and with the rules of NICs before the one for marked packets, as the kernel would number them."""
    pod = lan.pod()
    pod.add("eth0", "a")
    pod.add("net1", "b", pod_default_route_nic=default)
    separate = address("b" if default == "eth0" else "a", pod.number)

    def renumber(priority: int) -> None:
        with IPRoute() as route:
            (one,) = [rule for rule in route.get_rules(family=2) if rule.get_attr("FRA_SRC") == separate]
            route.rule("del", priority=one.get_attr("FRA_PRIORITY"))
            route.rule("add", priority=priority, src=separate, src_len=32, table=101)

    pod.netns.run(lambda: renumber(999))
    with pytest.raises(TimeoutError):
        through_the_node(lan, pod, separate, timeout=0.5)
    pod.netns.run(lambda: renumber(1001))
    assert through_the_node(lan, pod, separate) == WORLD[4]

    def unmark() -> None:
        with FilterSocket() as sockets:
            nftables.remove(sockets, (4,))

    pod.netns.run(unmark)
    with pytest.raises(TimeoutError):
        through_the_node(lan, pod, separate, timeout=0.5)


def test_a_packet_goes_by_the_link_that_has_its_source(lan: Lan) -> None:
    pod = lan.pod(versions=(4, 6))
    pod.add("eth0", "a")
    pod.attach("net1", "b")
    second = address("b", pod.number)
    assert pod.way_to(WORLD[4], source=second) != ("eth0", second), "main has both default routes, the later one first"
    pod.coordinate("net1")
    pod.add("net2", "c")
    for version in FAMILIES:
        for nic, network in (("eth0", "a"), ("net1", "b"), ("net2", "c")):
            own = address(network, pod.number, version)
            assert pod.way_to(WORLD[version], source=own) == (nic, own)
            assert pod.way_to(NODE[version], source=own)[0] == "veth0"
        assert pod.way_to(WORLD[version])[0] == "eth0"


@pytest.mark.parametrize(("networks", "default"), [("aaa", "net2"), ("aba", "eth0"), ("abb", "net2")])
def test_nics_that_lead_to_the_same_networks(lan: Lan, networks: str, default: str) -> None:
    """Some are in one network, and a route is in the pools of all."""
    names, shared = ("eth0", "net1", "net2"), ("192.0.2.0/24", "2001:db8:2::/64")
    pod = lan.pod(versions=FAMILIES)
    pictures = []
    for ordinal, (nic, network) in enumerate(zip(names, networks, strict=True)):
        pod.attach(nic, network, number=20 + ordinal, routes=shared)
        pod.coordinate(nic, ordinal=ordinal, names=names, pod_default_route_nic=default)
        pictures.append(picture(pod.netns))
    for ordinal, (nic, network) in enumerate(zip(names, networks, strict=True)):
        for version, beyond in zip(FAMILIES, ("192.0.2.9", "2001:db8:2::9"), strict=True):
            own = address(network, 20 + ordinal, version)
            for destination in (WORLD[version], beyond, address(network, 99, version)):
                assert pod.way_to(destination, source=own) == (nic, own)
            assert pod.way_to(NODE[version], source=own)[0] == "veth0"
            assert served(pod.netns, lan.router, own, source=WORLD[version]) == WORLD[version]
    for version, beyond in zip(FAMILIES, ("192.0.2.9", "2001:db8:2::9"), strict=True):
        assert pod.way_to(beyond)[0] == pod.way_to(WORLD[version])[0] == default
    pod.delete("net2")
    assert picture(pod.netns) == pictures[1]
    pod.delete("net1")
    assert picture(pod.netns) == pictures[0]


@pytest.mark.parametrize("overlay", [False, True], ids=["underlay", "overlay"])
def test_a_default_nic_that_comes_last(lan: Lan, overlay: bool) -> None:
    """While the NICs before it are added it is not there yet, and they take care of themselves."""
    names = ("eth0", "net1", "net2")
    pod = lan.pod()
    if overlay:
        pod.overlay()
    else:
        pod.add("eth0", "a", ordinal=0, names=names, pod_default_route_nic="net2")
    for ordinal, nic in ((1, "net1"), (2, "net2")):
        assert pod.way_to(WORLD[4])[0] == "eth0"
        pod.add(nic, "abc"[ordinal], ordinal=ordinal, names=names, pod_default_route_nic="net2")
    assert pod.way_to(WORLD[4])[0] == "net2"
    first = pod.overlay_address if overlay else address("a", pod.number)
    for nic, own in (("eth0", first), ("net1", address("b", pod.number)), ("net2", address("c", pod.number))):
        assert pod.way_to(WORLD[4], source=own) == (nic, own)
        assert served(pod.netns, lan.node, own) == NODE[4]
    pod.delete("net2")
    assert pod.way_to(WORLD[4])[0] == "eth0"


def test_links_of_later_nics_are_there_already(lan: Lan) -> None:
    """As in an ADD that makes all links at once: the number of a NIC's table comes from its place, not from a count."""
    names = ("eth0", "net1", "net2")
    pod = lan.pod()
    for nic, network in zip(names, "abc", strict=True):
        pod.attach(nic, network)
    for ordinal, nic in enumerate(names):
        assert pod.coordinate(nic, ordinal=ordinal, names=names).table == (ordinal and 100 + ordinal)
    for nic, network in zip(names, "abc", strict=True):
        own = address(network, pod.number)
        assert pod.way_to(WORLD[4], source=own) == (nic, own)


def test_a_number_is_not_given_twice(lan: Lan) -> None:
    pod = lan.pod()
    pod.add("eth0", "a")
    pod.add("net1", "b")
    assert pod.add("net2", "c").table == 102
    pod.delete("net1")
    assert pod.add("net3", "b").table == 103, "two NICs are there, and the second one has 102"


def test_routes_to_services_in_the_tables_can_be_left_out(lan: Lan) -> None:
    pod = lan.pod()
    pod.add("eth0", "a")
    pod.add("net1", "b", hijack_in_policy_tables=False)
    assert {one for one in picture(pod.netns) if one.startswith("101:")} == {
        f"101: default via {address('b', 1)} dev net1",
        f"101: 172.200.0.0/16 dev net1 scope link src {address('b', 210)}",
        f"101: {NODE[4]}/32 dev veth0 scope link src {address('a', 210)}",
    }
    assert served(pod.netns, lan.node, address("b", 210)) == NODE[4]


@pytest.mark.parametrize("default", ["eth0", "net1"])
@pytest.mark.parametrize("overlay", [False, True], ids=["underlay", "overlay"])
def test_a_failure_puts_everything_back(lan: Lan, overlay: bool, default: str) -> None:
    pod = lan.pod()
    if overlay:
        pod.overlay()
    else:
        pod.add("eth0", "a")
    pod.attach("net1", "b")
    before = picture(pod.netns), picture(lan.node) | NODE_RULES
    plan = pod.plan("net1", pod_default_route_nic=default)
    for bad in impossible(plan):
        with pytest.raises(KernelRefused):
            build(lan, bad)
        assert (picture(pod.netns), picture(lan.node) | NODE_RULES) == before
    pod.coordinate("net1", pod_default_route_nic=default)
    assert served(pod.netns, lan.node, address("b", pod.number)) == NODE[4]


def impossible(plan: CoordinationPlan) -> Iterator[CoordinationPlan]:
    """The plan with a mistake in the pod, and with one on the node."""
    wrong = msgspec.structs.replace(plan.routes[-1], destination="192.0.2.0/24", gateway="9.9.9.9", onlink=False)
    yield msgspec.structs.replace(plan, routes=(*plan.routes, wrong))
    yield msgspec.structs.replace(plan, pod_mac="")


@pytest.mark.parametrize("default", ["eth0", "net1"])
@pytest.mark.parametrize("overlay", [False, True], ids=["underlay", "overlay"])
def test_what_died_at_any_step_is_undone_by_the_plan(lan: Lan, overlay: bool, default: str) -> None:
    """An agent that is killed leaves its journal, and that has the plan."""
    pod = lan.pod()
    if overlay:
        pod.overlay()
    else:
        pod.add("eth0", "a")
    before = picture(pod.netns), picture(lan.node) | NODE_RULES
    steps, after = 0, 0
    while after <= steps:
        pod.attach("net1", "b")
        plan = pod.plan("net1", pod_default_route_nic=default)
        steps = dies(lan, plan, after=after)
        for _ in range(2):
            leave(lan, plan)
        pod.delete("net1")
        assert (picture(pod.netns), picture(lan.node) | NODE_RULES) == before, f"after step {after}"
        after += 1
    assert steps > 10
    pod.add("net1", "b", pod_default_route_nic=default)


def test_the_namespace_is_gone_and_the_overlays_link_is_not(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    before = picture(lan.node)
    plan = pod.add("net1", "a")
    assert picture(lan.node) != before | NODE_RULES
    gone = msgspec.structs.replace(plan, netns="/nowhere")
    lan.node.run(lambda: coordinator.uncoordinate(gone))
    assert picture(lan.node) == before | NODE_RULES


def test_routes_that_are_there_are_somebody_elses_and_stay(lan: Lan) -> None:
    """Overlays have routes to their own network, and to the next hop of their default route, which may be the node."""
    pod = lan.pod(versions=FAMILIES)
    pod.overlay()

    def fill() -> None:
        with IPRoute() as route:
            eth0 = route.link_lookup(ifname="eth0")[0]
            route.route("add", dst=PODS, gateway="169.254.1.1", oif=eth0)
            route.route("add", dst=f"{NODE[4]}/32", oif=eth0, scope=253, proto=3)
            route.route("add", dst=f"{NODE[6]}/128", oif=eth0, proto=3)
            route.route("add", dst="default", gateway=NODE[6], oif=eth0, family=10, priority=512)

    pod.netns.run(fill)
    before = picture(pod.netns)
    for order in (("net1", "net2"), ("net2", "net1")):
        pod.add("net1", "a")
        pod.add("net2", "b")
        assert pod.way_to("10.233.64.9")[0] == "eth0"
        for nic in order:
            pod.delete(nic)
            assert pod.differences() == []
        assert picture(pod.netns) == before


def test_a_lan_that_is_the_clusters_network_as_well(lan: Lan) -> None:
    """Its pods are reached directly, as the route says that is there; nothing is missed later."""
    own = (on_link("a"), on_link("b"), on_link("a", 6), on_link("b", 6))
    cluster = msgspec.structs.replace(CLUSTER, overlay_pod_cidr=own)
    pod = lan.pod(versions=FAMILIES)
    pod.add("eth0", "a", cluster)
    pod.add("net1", "b", cluster)
    for version in FAMILIES:
        for nic, network in (("eth0", "a"), ("net1", "b")):
            source = address(network, pod.number, version)
            assert pod.way_to(address(network, 77, version), source=source)[0] == nic
            assert served(pod.netns, lan.node, source) == NODE[version]


def test_a_link_that_is_another_one_by_now_is_left_alone(lan: Lan) -> None:
    """An overlay names its links after pods: the next sandbox of a pod has the same."""
    pod = lan.pod()
    pod.overlay()
    plan = pod.add("net1", "a")
    stale = msgspec.structs.replace(plan, host_index=plan.host_index + 1)
    before = picture(lan.node)
    lan.node.run(lambda: coordinator.uncoordinate(msgspec.structs.replace(stale, netns="/nowhere")))
    assert picture(lan.node) == before
    with pytest.raises(KernelRefused, match=f"{pod.cali}, the node's end of the pod's eth0, is gone"):
        lan.node.run(lambda: coordinator.coordinate(stale))
    assert picture(lan.node) == before


def test_a_nic_of_somebody_elses_gets_back_what_it_had(lan: Lan) -> None:
    pod = lan.pod()
    pod.overlay()
    pod.attach("net1", "a")
    before = nic(pod)
    pod.coordinate("net1", role=Role.COORDINATOR, pod_mac_prefix="0a:1b", tx_queue_len=77)
    assert nic(pod) == ("0a:1b:ac:64:00:d2", 77) != before
    plan = pod.plans["net1"]
    lan.node.run(lambda: coordinator.uncoordinate(plan))
    assert nic(pod) == before


@pytest.mark.parametrize("version", FAMILIES)
def test_the_segment_hears_of_a_new_mac_address(lan: Lan, version: int) -> None:
    pod = lan.pod(versions=(version,))
    pod.attach("eth0", "a")
    own = address("a", pod.number, version)
    served(pod.netns, lan.router, own)
    former = neighbour(lan, own)
    plan = pod.coordinate("eth0", pod_mac_prefix="0a:1b")
    assert plan.mac == ("0a:1b:ac:64:00:d2" if version == 4 else "0a:1b:00:00:00:d2")
    assert neighbour(lan, own) == plan.mac != former
    assert served(pod.netns, lan.router, own) == address("a", 1, version)
    assert served(pod.netns, lan.node, own) == NODE[version]


@pytest.mark.parametrize("role", [Role.MAIN, Role.COORDINATOR])
def test_addresses_that_nobody_gave_out_count(lan: Lan, role: Role) -> None:
    """Of a router's advertisements, say: what the NIC has in the pod is what counts."""
    pod = lan.pod()
    pod.attach("eth0", "a")
    assign(pod.netns, "eth0", "fd00:100::5:1/64")
    plan = pod.coordinate("eth0", role=role)
    assert plan.pod_addresses == (address("a", pod.number), "fd00:100::5:1")
    assert served(pod.netns, lan.node, "fd00:100::5:1") == NODE[6]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["eth0", "net1"])), min_size=4, max_size=8))
def test_pods_come_and_go_in_any_order(lan: Lan, steps: list[tuple[int, str]]) -> None:
    """What is on the node says only which NICs there are; an address has one way."""
    pods = [lan.pod() for _ in range(3)]
    empty = picture(lan.node) | NODE_RULES
    for which, ifname in steps:
        pod = pods[which]
        if ifname in pod.plans:
            for one in ("net1", ifname) if ifname == "eth0" else (ifname,):
                pod.delete(one)
        elif ifname == "eth0" or "eth0" in pod.plans:
            pod.add(ifname, "a" if ifname == "eth0" else "b")
        expected = set(empty)
        for pod in pods:
            if pod.plans:
                expected.add(f"link {pod.host_veth}")
            for nic in pod.plans:
                own = address("a" if nic == "eth0" else "b", pod.number)
                expected.add(f"500: {own}/32 dev {pod.host_veth} scope link")
                expected.add(f"neigh {own} dev {pod.host_veth} lladdr {pod.plans['eth0'].pod_mac}")
        assert picture(lan.node) | NODE_RULES == expected
        assert [pod.differences() for pod in pods] == [[], [], []]
    for pod in pods:
        for ifname in ("net1", "eth0"):
            pod.delete(ifname)
    assert picture(lan.node) | NODE_RULES == empty


def test_an_address_that_another_pod_has_still(lan: Lan) -> None:
    """The last one has it, and what the other one takes away later is its own."""
    old, new = lan.pod(), lan.pod()
    old.add("eth0", "a")
    own = address("a", old.number)
    new.number = old.number
    new.add("eth0", "a")
    ways = {one for one in picture(lan.node) if own in one}
    assert ways == {
        f"500: {own}/32 dev {new.host_veth} scope link",
        f"neigh {own} dev {new.host_veth} lladdr {new.plans['eth0'].pod_mac}",
    }
    old.delete("eth0")
    assert {one for one in picture(lan.node) if own in one} == ways
    assert served(new.netns, lan.node, own) == NODE[4]


def test_the_nodes_rules_go_with_the_last_routes_to_pods(lan: Lan) -> None:
    pod = lan.pod(versions=(4, 6))
    pod.add("eth0", "a")
    other = lan.pod()
    other.add("eth0", "a", host_rule_table=600)

    def foreign() -> None:
        with IPRoute() as route:
            route.rule("add", priority=1000, table=700)
            route.rule("add", priority=1000, table=500, fwmark=9)

    lan.node.run(foreign)
    rules = {one for one in picture(lan.node) if one.startswith("rule")}
    assert lan.node.run(coordinator.remove_rules) == (
        [],
        [f"IPv{version} rule 1000 lookup {table}" for version, table in ((4, 500), (4, 600), (6, 500))],
    )
    pod.delete("eth0")
    removed, left = lan.node.run(coordinator.remove_rules)
    assert (removed, left) == (
        ["IPv4 rule 1000 lookup 500", "IPv6 rule 1000 lookup 500"],
        ["IPv4 rule 1000 lookup 600"],
    )
    assert {one for one in picture(lan.node) if one.startswith("rule")} == rules - {
        "rule4 1000 lookup 500",
        "rule6 1000 lookup 500",
    }
    assert served(other.netns, lan.node, address("a", other.number)) == NODE[4]


def test_an_error_names_what_is_missing(lan: Lan) -> None:
    pod = lan.pod()
    pod.attach("net1", "b")
    with pytest.raises(InvalidConfig, match='"auto" needs the pod\'s first interface eth0, and there is none'):
        pod.plan("net1")
    pod.attach("eth0", "a")
    with pytest.raises(InvalidConfig, match=r'"auto" needs a way to the node.*eth0: it is a macvlan link'):
        pod.plan("net1")
    with pytest.raises(InvalidConfig, match='"underlay" is not possible for net1: the pod has no veth0: eth0 has to'):
        pod.plan("net1", mode="underlay")
    pod.coordinate("eth0")
    with pytest.raises(InvalidConfig, match='"overlay" is not possible for net1: the pod has a veth0'):
        pod.plan("net1", mode="overlay")
    with pytest.raises(InvalidConfig, match='podDefaultRouteNic: the pod has no interface "bogus": it has net1, eth0'):
        pod.plan("net1", pod_default_route_nic="bogus")


def build(lan: Lan, plan: CoordinationPlan) -> None:
    lan.node.run(lambda: coordinator.coordinate(plan))


def leave(lan: Lan, plan: CoordinationPlan) -> None:
    lan.node.run(lambda: coordinator.uncoordinate(plan))


class Killed(BaseException):
    """The agent."""


class Death:
    """After so many netlink requests nothing more is sent."""

    def __init__(self, *, after: int) -> None:
        self.steps = 0
        self._after = after
        self._pipeline = NetlinkSocket.pipeline
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        def pipeline(sockets: NetlinkSocket, requests: Sequence[Request]) -> None:
            left = self._after - self.steps
            self.steps += len(requests)
            self._pipeline(sockets, requests[: max(left, 0)])
            if left < len(requests):
                raise Killed

        self._patch.setattr(NetlinkSocket, "pipeline", pipeline)
        for undo in ("_leave_node", "_leave_pod"):
            self._patch.setattr(coordinator, undo, lambda *_, **__: None)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def dies(lan: Lan, plan: CoordinationPlan, *, after: int) -> int:
    """Die at a step; how many there are, as far as it has come."""
    with Death(after=after) as death, suppress(Killed):
        build(lan, plan)
    return death.steps


def nic(pod: Pod) -> tuple[str, int]:
    """MAC address and queue of net1."""

    def look() -> tuple[str, int]:
        with IPRoute() as route:
            one = route.get_links(route.link_lookup(ifname="net1")[0])[0]
            return one.get_attr("IFLA_ADDRESS"), one.get_attr("IFLA_TXQLEN")

    return pod.netns.run(look)


def neighbour(lan: Lan, own: str) -> str:
    """The MAC address that the router knows."""

    def look() -> str:
        with IPRoute() as route:
            (found,) = route.get_neighbours(dst=own, family=10 if ":" in own else 2)
            return str(found.get_attr("NDA_LLADDR"))

    return lan.router.run(look)
