"""What is built between a pod and its node, from the call, the cluster's settings and what the node's kernel says."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.route import Route
from api.wire import Coordination
from cni import coordination
from cni.coordination import (
    CoordinationPlan,
    NodeView,
    PodLink,
    PodView,
    RoutePlan,
    Survey,
    coordination_plan,
    decision,
    host_veth,
)
from cni.errors import CniError, InvalidConfig, TryAgainLater
from tests.rules.test_cni_protocol import CONF, invoke

CID = "0123456789abcdef" * 4
DUAL = ("10.6.0.5/16", "fd06::5/64")
NODE = NodeView(
    addresses=(
        ("lo", "127.0.0.1"),
        ("eth0", "10.6.0.2"),
        ("docker0", "172.17.0.1"),
        ("eth1", "192.168.9.2"),
        ("vethabc", "10.6.9.9"),
        ("kube-ipvs0", "10.96.0.1"),
        ("eth0", "fd06::2"),
        ("lo", "::1"),
    ),
    sources=("10.6.0.2", "fd06::2"),
)


def plan(
    addresses: tuple[str, ...] = DUAL, cluster: Coordination | None = None, node: NodeView = NODE, **conf: Any
) -> CoordinationPlan:
    made = attempt(addresses, cluster, node, **conf)
    assert made is not None
    return made


def attempt(
    addresses: tuple[str, ...] = DUAL, cluster: Coordination | None = None, node: NodeView = NODE, **conf: Any
) -> CoordinationPlan | None:
    invocation = invoke({**CONF, "coordinator": conf}, containerid=CID)
    return coordination_plan(invocation, cluster or Coordination(), survey(addresses, node))


def survey(addresses: tuple[str, ...] = DUAL, node: NodeView = NODE) -> Survey:
    links = (PodLink(ifname="lo", loopback=True), PodLink(ifname="eth0", kind="macvlan", addresses=addresses))
    return Survey(pod=PodView(links=links), node=node)


def test_one_nic() -> None:
    seen = plan(("10.6.0.5/16",), Coordination(service_cidr=("10.96.0.0/16",), overlay_pod_cidr=("10.244.0.0/16",)))
    assert (seen.netns, seen.ifname, seen.container_id) == ("/run/netns/pod", "eth0", CID)
    assert seen.host_veth == "veth0123456789a"
    assert (seen.mtu, seen.rp_filter, seen.tx_queue_len, seen.host_table, seen.link_address) == (1500, 0, 0, 500, "")
    assert seen.pod_addresses == ("10.6.0.5",)
    assert seen.host_addresses == ("10.6.0.2", "192.168.9.2")
    assert seen.marked == seen.versions == (4,)

    def route(destination: str, gateway: str = "", table: int = 254) -> RoutePlan:
        return RoutePlan(destination=destination, gateway=gateway, source="10.6.0.5", table=table, device="veth0")

    assert (seen.first, seen.overlay, seen.pod_end, seen.makes_pair, seen.table) == (True, False, "veth0", True, 0)
    assert (seen.rules, seen.withdrawn, seen.known_hosts) == ((), (), ())
    assert seen.routes == (
        route("10.6.0.2/32"),
        route("192.168.9.2/32"),
        route("10.244.0.0/16", "10.6.0.2"),
        route("10.96.0.0/16", "10.6.0.2"),
        route("169.254.0.0/16", "10.6.0.2"),
        route("0.0.0.0/0", "10.6.0.2", 100),
    )
    assert seen.host_routes == (RoutePlan(destination="10.6.0.5/32", table=500),)


def test_ipv6_mirrors_it_without_a_source() -> None:
    seen = plan(cluster=Coordination(service_cidr=("10.96.0.0/16", "fd96::/112")))
    assert seen.marked == (4, 6)
    six = [one for one in seen.routes if ip_network(one.destination).version == 6]
    assert six == [
        RoutePlan(destination="fd06::2/128", device="veth0"),
        RoutePlan(destination="fd96::/112", gateway="fd06::2", device="veth0"),
        RoutePlan(destination="::/0", gateway="fd06::2", table=100, device="veth0"),
    ]
    assert seen.host_routes[1] == RoutePlan(destination="fd06::5/128", table=500)


def test_the_way_that_the_node_would_take_comes_first() -> None:
    node = NodeView(addresses=NODE.addresses, sources=("192.168.9.2", "fd06::2"))
    seen = plan(node=node)
    assert seen.host_addresses == ("192.168.9.2", "fd06::2", "10.6.0.2")
    assert ("169.254.0.0/16", "192.168.9.2") in [(one.destination, one.gateway) for one in seen.routes]


def test_a_node_without_a_way_to_the_pod_or_without_a_family() -> None:
    assert plan(node=NodeView(addresses=NODE.addresses)).host_addresses == ("10.6.0.2", "192.168.9.2", "fd06::2")
    seen = plan(node=NodeView(addresses=(("eth0", "10.6.0.2"),)))
    assert (seen.marked, seen.versions) == ((4,), (4, 6))
    assert not [one for one in seen.routes if ":" in one.destination]
    alone = plan(node=NodeView())
    assert (alone.routes, alone.marked) == ((), ())


def test_the_plugins_own_keys_win() -> None:
    cluster = Coordination(
        mode="disabled",
        service_cidr=("10.96.0.0/16",),
        hijack_cidr=("10.1.0.0/16",),
        overlay_pod_cidr=("10.2.0.0/16",),
        policy_routes=(Route(dst="10.3.0.0/16", gw="10.6.0.1"),),
        veth_mtu=1400,
        veth_link_address="169.254.1.1",
        host_rule_table=600,
        pod_rp_filter=1,
        tx_queue_len=5,
    )
    seen = plan(
        cluster=cluster,
        mode="underlay",
        serviceCIDR=["10.97.0.0/16"],
        hijackCIDR=["10.8.0.1"],
        overlayPodCIDR=["10.9.0.0/16"],
        policyRoutes=[{"dst": "10.4.0.0/16", "gw": "10.6.0.3"}, {"dst": "fd04::/64", "gw": "fd06::3"}],
        vethMTU=1300,
        vethLinkAddress="169.254.2.2",
        hostRuleTable=700,
        podRPFilter=-1,
        txQueueLen=0,
    )
    through = [one.destination for one in seen.routes if one.gateway and one.table == 254 and one.device == "veth0"]
    assert through == ["10.9.0.0/16", "10.97.0.0/16", "10.8.0.1/32"]
    assert [(one.destination, one.gateway) for one in seen.routes if one.device == "eth0" and one.table == 254] == [
        ("10.4.0.0/16", "10.6.0.3"),
        ("fd04::/64", "fd06::3"),
    ]
    assert (seen.mtu, seen.link_address, seen.host_table) == (1300, "169.254.2.2/32", 700)
    assert (seen.rp_filter, seen.tx_queue_len) == (-1, 0)
    theirs = plan(cluster=cluster, mode="auto")
    through = [one.destination for one in theirs.routes if one.gateway and one.table == 254 and one.device == "veth0"]
    assert through == ["10.2.0.0/16", "10.96.0.0/16", "10.1.0.0/16"]
    assert (theirs.mtu, theirs.link_address, theirs.host_table) == (1400, "169.254.1.1/32", 600)
    assert (theirs.rp_filter, theirs.tx_queue_len) == (1, 5)
    assert [one.gateway for one in theirs.routes if one.device == "eth0"] == ["10.6.0.1"]


def test_no_ipv4_no_link_address() -> None:
    seen = plan(("fd06::5/64",), Coordination(veth_link_address="169.254.1.1"))
    assert (seen.link_address, seen.host_addresses, seen.marked) == ("", ("fd06::2",), (6,))
    theirs = plan(("fd06::5/64",), policyRoutes=[{"dst": "10.0.0.0/8", "gw": "10.6.0.1"}])
    assert not [one for one in theirs.routes if one.device == "eth0"]


@pytest.mark.parametrize("mode", ["disable", "disabled"])
def test_switched_off_under_either_spelling(mode: str) -> None:
    assert attempt(mode=mode) is None
    assert attempt(cluster=Coordination(mode=mode)) is None
    assert not coordination.wanted(invoke({**CONF, "coordinator": {"mode": mode}}).conf)


def test_only_where_the_key_is() -> None:
    assert coordination_plan(invoke(), Coordination(), survey()) is None
    assert not coordination.wanted(invoke().conf)
    assert coordination.wanted(invoke({**CONF, "coordinator": {}}).conf)
    coordination.check(invoke())


@pytest.mark.parametrize(
    ("conf", "kind", "words"),
    [
        ({"mode": "overlay"}, InvalidConfig, 'coordinator.mode: "overlay" is not possible for eth0'),
        ({"mode": "x"}, InvalidConfig, 'coordinator.mode: "x" is no coordinator mode.*auto'),
        ({"vethMTU": 0}, InvalidConfig, "vethMTU: 0"),
    ],
)
def test_modes_that_are_refused_before_anything_is_asked_for(conf: Any, kind: type[CniError], words: str) -> None:
    invocation = invoke({**CONF, "coordinator": conf})
    with pytest.raises(kind, match=words):
        coordination.check(invocation)
    with pytest.raises(kind, match=words):
        attempt(**conf)


@pytest.mark.parametrize(
    ("conf", "cluster", "kind", "words"),
    [
        ({}, {"mode": "overlay"}, InvalidConfig, 'SpiderCoordinator spec.mode: "overlay" is not possible for eth0'),
        ({"serviceCIDR": ["10.96.0.0/33"]}, {}, InvalidConfig, 'serviceCIDR: "10.96.0.0/33"'),
        ({}, {"hijack_cidr": ("x",)}, InvalidConfig, 'hijackCIDR: "x"'),
        ({"overlayPodCIDR": [""]}, {}, InvalidConfig, 'overlayPodCIDR: ""'),
        ({"vethMTU": 67}, {}, InvalidConfig, "vethMTU: 67 is not 68 to 65535"),
        ({"vethMTU": 1 << 40}, {}, InvalidConfig, "vethMTU: 1099511627776 is not"),
        ({}, {"veth_mtu": 65536}, InvalidConfig, "vethMTU: 65536 is not"),
        ({}, {"tx_queue_len": 1 << 32}, InvalidConfig, "txQueueLen: 4294967296 is not 0 to 4294967295"),
        ({}, {"tx_queue_len": -1}, InvalidConfig, "txQueueLen: -1 is not"),
        ({"vethLinkAddress": "fe80::1"}, {}, InvalidConfig, 'vethLinkAddress: "fe80::1" is no IPv4'),
        ({"vethLinkAddress": "0.0.0.0"}, {}, InvalidConfig, 'vethLinkAddress: "0.0.0.0" is no IPv4'),
        ({}, {"veth_link_address": "255.255.255.255/32"}, InvalidConfig, 'vethLinkAddress: "255.255.255.255/32" is no'),
        ({"hostRuleTable": 254}, {}, InvalidConfig, "hostRuleTable: 254"),
        ({"hostRuleTable": -1}, {}, InvalidConfig, "hostRuleTable: -1"),
        ({"podRPFilter": 3}, {}, InvalidConfig, "podRPFilter: 3"),
        ({"podMACPrefix": "0a1b"}, {}, InvalidConfig, 'podMACPrefix: "0a1b" is not the first two bytes'),
        ({}, {"pod_mac_prefix": "0b:1b"}, InvalidConfig, 'podMACPrefix: "0b:1b" begins a multicast'),
        ({"policyRoutes": [{"dst": "x", "gw": "10.0.0.1"}]}, {}, InvalidConfig, 'policyRoutes: "x via 10.0.0.1"'),
        ({"policyRoutes": [{"dst": "::/0", "gw": "10.0.0.1"}]}, {}, InvalidConfig, "policyRoutes.*two IP families"),
    ],
)
def test_values_that_are_refused(conf: Any, cluster: Any, kind: type[CniError], words: str) -> None:
    with pytest.raises(kind, match=words):
        attempt(cluster=Coordination(**cluster), **conf)


def test_ipv6_needs_an_mtu_that_it_can_have() -> None:
    with pytest.raises(InvalidConfig, match=r"vethMTU: 1279 is below 1280, which IPv6 needs: eth0 has fd77::5"):
        plan(("10.0.0.5/24", "fd77::5/64"), Coordination(veth_mtu=1279))
    assert plan(("10.0.0.5/24", "fd77::5/64"), Coordination(veth_mtu=1280)).mtu == 1280
    assert plan(("10.0.0.5/24",), Coordination(veth_mtu=68)).mtu == 68


def test_a_value_of_a_wrong_type_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r'coordinator\.vethMTU: "1500" is not valid'):
        invoke({**CONF, "coordinator": {"vethMTU": "1500"}})
    with pytest.raises(InvalidConfig, match=r"coordinator\.txQueueLen: -1 is not valid"):
        invoke({**CONF, "coordinator": {"txQueueLen": -1}})


@given(st.text("abcdef0123456789", min_size=1, max_size=80))
def test_names_and_macs(cid: str) -> None:
    assert host_veth(cid).startswith("veth") and len(host_veth(cid)) <= 15
    ends = [decision._end_mac(cid, end) for end in ("pod", "node")]
    assert ends == [decision._end_mac(cid, end) for end in ("pod", "node")]
    assert ends[0] != ends[1]
    for mac in ends:
        first = int(mac[:2], 16)
        assert len(mac) == 17 and first & 1 == 0 and first & 2 == 2


ADDRESSES = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)


@given(
    own=st.lists(ADDRESSES, min_size=1, max_size=2, unique=True),
    named=st.lists(st.tuples(st.sampled_from(["eth0", "ens3", "lo", "cali1", "veth0a"]), ADDRESSES), max_size=6),
    sources=st.lists(ADDRESSES, max_size=2),
)
def test_every_next_hop_is_known_before_it_is_needed(
    own: list[str], named: list[tuple[str, str]], sources: list[str]
) -> None:
    cluster = Coordination(service_cidr=("10.96.0.0/16", "fd96::/112"))
    seen = plan(
        tuple(f"{one}/{24 if ':' not in one else 64}" for one in own),
        cluster,
        NodeView(addresses=tuple(named), sources=tuple(sources)),
    )
    on_link: set[str] = set()
    for route in seen.routes:
        if route.gateway:
            assert route.gateway in on_link
        else:
            on_link.add(str(ip_network(route.destination).network_address))
    assert on_link == set(seen.host_addresses)
    assert not on_link & set(own)
    assert {ip_address(one).version for one in on_link} == set(seen.marked) <= set(seen.versions)
    assert on_link <= {one for name, one in named if name in {"eth0", "ens3"}} | set(sources)


@pytest.mark.parametrize(
    ("conf", "needs"),
    [
        ({}, True),
        ({"mode": "auto", "hijackCIDR": ["10.0.0.0/8"]}, True),
        ({"serviceCIDR": ["10.96.0.0/16"]}, True),
        ({"serviceCIDR": ["10.96.0.0/16"], "overlayPodCIDR": []}, True),
        ({"serviceCIDR": ["10.96.0.0/16"], "overlayPodCIDR": ["10.244.0.0/16"]}, False),
        ({"mode": "disabled"}, False),
    ],
)
def test_what_the_cluster_does_not_know_is_waited_for_by_whoever_needs_it(conf: dict[str, Any], needs: bool) -> None:
    unknown = Coordination(unready="SpiderCoordinator default is NotReady: why")
    assert coordination.needs_cluster(invoke({**CONF, "coordinator": conf}, containerid=CID)) == needs
    if needs:
        with pytest.raises(TryAgainLater, match="default is NotReady: why") as refused:
            attempt(cluster=unknown, **conf)
        assert refused.value.code == 11
        assert attempt(cluster=Coordination(mode="disabled", unready="why"), **{**conf, "mode": ""}) is None
    else:
        # The same as where all is known.
        known = Coordination(service_cidr=("10.1.0.0/16",), overlay_pod_cidr=("10.2.0.0/16",))
        assert attempt(cluster=unknown, **conf) == attempt(cluster=known, **conf)


def test_without_the_key_nothing_of_the_cluster_is_needed() -> None:
    assert not coordination.needs_cluster(invoke(CONF, containerid=CID))
