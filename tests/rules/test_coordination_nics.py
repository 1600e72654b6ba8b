"""Pods with several NICs: what is planned for each, and where a packet goes by a model of the kernel's tables."""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from api.route import Route
from api.wire import Coordination
from cni import coordination
from cni.coordination import (
    MAIN_TABLE,
    CoordinationPlan,
    NodeLink,
    NodeView,
    PodLink,
    PodView,
    RoutePlan,
    RulePlan,
    Survey,
    coordination_plan,
    gone_from_main,
    pair_of,
    single,
    unchanged,
)
from cni.errors import InvalidConfig
from cni.protocol import Role
from tests.rules.test_cni_protocol import CONF, invoke

CID = "0123456789abcdef" * 4
HOSTS = {4: "172.100.0.2", 6: "fd00:100::2"}
CLUSTER = Coordination(service_cidr=("10.233.0.0/18", "fd00:233::/112"), hijack_cidr=())
NODE = NodeView(addresses=tuple(("ens0", one) for one in HOSTS.values()))
DEFAULTS = {4: "0.0.0.0/0", 6: "::/0"}
SERVICE = {4: "10.233.0.9", 6: "fd00:233::9"}
OUTSIDE = {4: "8.8.8.8", 6: "2001:4860:4860::8888"}


def own(number: int, version: int, last: int = 9) -> str:
    return f"172.{100 + number}.0.{last}" if version == 4 else f"fd00:{100 + number}::{last}"


def gateway(number: int, version: int) -> str:
    return f"172.{100 + number}.0.1" if version == 4 else f"fd00:{100 + number}::1"


class Pod:
    """A model of a pod's namespace: links, routes and rules, and which link a packet leaves by."""

    def __init__(self, *, overlay: bool = False, mtu: int = 1500) -> None:
        self.links: list[PodLink] = [PodLink(ifname="lo", loopback=True)]
        self.routes: list[RoutePlan] = []
        self.rules: list[RulePlan] = []
        self.plans: dict[str, CoordinationPlan] = {}
        self._overlay = overlay
        self.mtu = mtu

    def attach(
        self,
        ifname: str,
        number: int,
        *,
        versions: Sequence[int] = (4,),
        defaults: Sequence[int] = (4, 6),
        last: int = 9,
    ) -> None:
        """A NIC as a main plugin leaves it; `defaults` are the IP versions that it has a default route of."""
        index = len(self.links) + 1
        way = self._overlay and ifname == "eth0"
        addresses = tuple(f"{own(number, one, last)}/{16 if one == 4 else 64}" for one in versions)
        self.links.append(
            PodLink(
                ifname=ifname,
                index=index,
                kind="veth" if way else "macvlan",
                mac="02:00:00:00:00:01",
                mtu=self.mtu,
                addresses=addresses,
                peer_index=77 if way else 0,
            )
        )
        for version in versions:
            net = str(ip_network(f"{own(number, version)}/{16 if version == 4 else 64}", strict=False))
            self.routes.insert(0, RoutePlan(destination=net, device=ifname, protocol=2))
            if version in defaults:
                to = RoutePlan(destination=DEFAULTS[version], gateway=gateway(number, version), device=ifname)
                self.routes.insert(0, to)

    @property
    def survey(self) -> Survey:
        ends = {one.index: one for one in self.links if one.peer_index}
        peers = tuple(
            NodeLink(ifname="cali1" if self._overlay else "vethx", index=77, mac="02:00:00:00:00:77", peer_index=index)
            for index in ends
        )
        pod = PodView(links=tuple(self.links), routes=tuple(self.routes), rules=tuple(self.rules))
        return Survey(pod=pod, node=replace(NODE, peers=peers))

    def plan(self, ifname: str, *, cluster: Coordination = CLUSTER, **more: Any) -> CoordinationPlan:
        keywords = {name: more.pop(name) for name in ("ordinal", "names") if name in more}
        invocation = invoke({**CONF, "coordinator": more}, containerid=CID, ifname=ifname)
        made = coordination_plan(invocation, cluster, self.survey, **keywords)
        assert made is not None
        return made

    def coordinate(self, ifname: str, **more: Any) -> CoordinationPlan:
        """What the kernel is after that."""
        made = self.plans[ifname] = self.plan(ifname, **more)
        if made.makes_pair:
            pair = PodLink(ifname="veth0", index=99, kind="veth", mac=made.pod_mac, mtu=made.mtu, peer_index=77)
            self.links.append(pair)
        for one in made.routes:
            assert not one.gateway or self._reaches(one), f"next hop of {one}"
            if one not in self.routes:
                self.routes.append(one)
        for rule in (*made.rules, *made.mark_rules):
            self.rules.insert(0, rule)
        for one in made.withdrawn:
            self.routes.remove(one)
        return made

    def _reaches(self, route: RoutePlan) -> bool:
        hop = ip_address(route.gateway)
        return any(
            hop in ip_network(one.destination)
            for one in self.routes
            if one.device == route.device and not one.gateway and one.version == route.version
        )

    def way(self, destination: str, *, source: str = "", mark: int = 0) -> str:
        """The link that a packet leaves by, whose source address is chosen already or not yet."""
        version = ip_address(destination).version
        mine = [one for one in self.rules if one.version == version]
        matching = [
            one.table
            for one in sorted(mine, key=lambda one: one.priority or 999)
            if (not one.source or (source and ip_address(source) in ip_network(one.source))) and one.mark in (0, mark)
        ]
        for table in (*matching, MAIN_TABLE):
            found = [
                one
                for one in self.routes
                if one.table == table
                and one.version == version
                and ip_address(destination) in ip_network(one.destination)
            ]
            if found:
                return max(found, key=lambda one: ip_network(one.destination).prefixlen).device
        return ""


NICS = st.lists(
    st.tuples(
        st.sampled_from([(4,), (6,), (4, 6)]),  # addresses
        st.sampled_from([(), (4,), (6,), (4, 6)]),  # default routes
    ),
    min_size=1,
    max_size=4,
)


@given(nics=NICS, overlay=st.booleans(), default=st.integers(0, 4), known=st.booleans())
def test_packets_leave_by_the_nic_of_their_source(
    nics: list[tuple[tuple[int, ...], tuple[int, ...]]], overlay: bool, default: int, known: bool
) -> None:
    pod = Pod(overlay=overlay)
    names = ("eth0", *(f"net{number}" for number in range(1, len(nics))))
    assume(default < len(nics))
    first = (4, 6)
    for number, name in enumerate(names):
        versions, defaults = nics[number] if number else (first, (4, 6))
        pod.attach(name, number, versions=versions, defaults=[one for one in defaults if one in versions])
        if overlay and not number:
            continue
        try:
            pod.coordinate(
                name, ordinal=number, names=names if known else (), podDefaultRouteNic=names[default], hijackCIDR=[]
            )
        except InvalidConfig:
            assert not known and default > number
            return
    has = {(0, 4), (0, 6)} | {
        (number, version)
        for number, (_, given) in enumerate(nics[1:], 1)
        for version in given
        if version in nics[number][0]
    }
    met = {version for plan in pod.plans.values() for version in plan.versions}
    end = "eth0" if overlay else "veth0"
    for number, name in enumerate(names):
        for version in first if not number else nics[number][0]:
            source = own(number, version)
            if (number, version) in has:
                assert pod.way(OUTSIDE[version], source=source) == name
            # What is on the NIC's own network is reached by it, the node by the way to it, marked packets likewise.
            assert pod.way(gateway(number, version), source=source) == name
            if not number and version not in met:
                continue
            assert pod.way(HOSTS[version], source=source) == pod.way(HOSTS[version]) == end
            assert pod.way(SERVICE[version]) == end
            if not overlay:
                assert pod.way(SERVICE[version], source=source) == end
                assert pod.way(OUTSIDE[version], source=source, mark=1) == end
    for version in first:
        left = [one.device for one in pod.routes if one.table == MAIN_TABLE and one.destination == DEFAULTS[version]]
        owner = names[default] if (default, version) in has else "eth0"
        assert left == [owner], "one default route of each family, on the NIC that is wanted where it has one"
    tables = [plan.table for plan in pod.plans.values() if plan.table]
    assert len(set(tables)) == len(tables) and not {100, 253, 254, 255} & set(tables)


@given(default=st.integers(0, 3), same=st.lists(st.booleans(), min_size=3, max_size=3), version=st.sampled_from([4, 6]))
def test_what_several_nics_have_a_route_to(default: int, same: list[bool], version: int) -> None:
    """NICs in one network, and a route that the pools of all have: packets leave by the NIC of their source."""
    pod = Pod()
    names = ("eth0", "net1", "net2", "net3")
    shared = {4: "192.0.2.0/24", 6: "2001:db8::/32"}[version]
    networks = [0, *(0 if one else number for number, one in enumerate(same, 1))]
    for number, name in enumerate(names):
        pod.attach(name, networks[number], versions=(version,), last=20 + number)
        route = RoutePlan(destination=shared, gateway=gateway(networks[number], version), device=name)
        pod.routes.insert(0, route)
        pod.coordinate(name, ordinal=number, names=names, podDefaultRouteNic=names[default], hijackCIDR=[])
    for number, name in enumerate(names):
        source = own(networks[number], version, 20 + number)
        for destination in (
            OUTSIDE[version],
            next(map(str, ip_network(shared).hosts())),
            own(networks[number], version),
        ):
            assert pod.way(destination, source=source) == name
    main = [one.destination for one in pod.routes if one.table == MAIN_TABLE and one.device == names[default]]
    assert {DEFAULTS[version], shared} <= set(main)
    before = pod.survey.pod.main(version)
    assert len({one.destination for one in before if one.device == names[default]}) == len(main)


def test_what_a_later_nic_took_is_not_missed_of_the_earlier_one() -> None:
    pod = Pod()
    pod.attach("eth0", 0, defaults=())
    first = pod.coordinate("eth0", policyRoutes=[{"dst": "0.0.0.0/0", "gw": "172.100.0.7"}], hijackCIDR=[])
    pod.attach("net1", 1)
    second = pod.coordinate("net1", podDefaultRouteNic="net1")
    (gone,) = set(first.routes) - set(unchanged(first, [first, second]).routes)
    assert (gone.destination, gone.table) == ("0.0.0.0/0", MAIN_TABLE)
    assert (gone.device, gone.destination) in {(one.device, one.destination) for one in second.withdrawn}
    assert unchanged(first, [first]) == first
    strict = replace(second, rp_filter=1)
    assert unchanged(first, [first, strict]).rp_filter == unchanged(strict, [first, strict]).rp_filter == -1
    assert unchanged(first, [first, replace(second, rp_filter=-1)]).rp_filter == first.rp_filter == 0


def test_a_table_for_each() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    assert pod.coordinate("eth0").table == 0
    pod.attach("net1", 1)
    seen = pod.coordinate("net1")
    assert (seen.table, seen.first, seen.makes_pair, seen.host_veth, seen.host_index) == (
        101,
        False,
        False,
        "vethx",
        77,
    )
    assert seen.rules == (RulePlan(version=4, table=101, source="172.101.0.9/32", priority=1001),)
    assert [(one.destination, one.gateway, one.device, one.table) for one in seen.routes] == [
        ("172.100.0.2/32", "", "veth0", 101),
        ("172.101.0.0/16", "", "net1", 101),
        ("10.233.0.0/18", "172.100.0.2", "veth0", 101),
        ("0.0.0.0/0", "172.101.0.1", "net1", 101),
    ]
    assert [(one.device, one.destination) for one in seen.withdrawn] == [("net1", "0.0.0.0/0")]
    assert gone_from_main(pod.plans.values(), "net1") == {("0.0.0.0/0", "172.101.0.1")}
    assert gone_from_main(pod.plans.values(), "eth0") == frozenset()
    assert (seen.known_hosts, seen.new_hosts, seen.marked, seen.mtu) == (("172.100.0.2",), (), (), 0)


def test_a_family_that_a_later_nic_brings() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    pod.coordinate("eth0")
    pod.attach("net1", 1, versions=(4, 6))
    seen = pod.coordinate("net1")
    assert (seen.new_hosts, seen.marked) == (("fd00:100::2",), (6,))
    assert RoutePlan(destination="::/0", gateway="fd00:100::2", table=100, device="veth0") in seen.routes
    assert seen.notes == ("no other interface of the pod has an IPv6 default route: routes stay as they are",)


def test_ipv6_that_a_later_nic_brings_needs_a_way_that_can_have_it() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    pod.coordinate("eth0", vethMTU=1279)
    pod.attach("net1", 1)
    pod.plan("net1")  # the control: IPv4 alone
    pod.attach("net2", 2, versions=(4, 6))
    with pytest.raises(InvalidConfig, match="vethMTU: 1279 is below 1280, which IPv6 needs: net2 has fd00:102::9"):
        pod.plan("net2", vethMTU=1500)
    overlay = Pod(overlay=True, mtu=1000)
    overlay.attach("eth0", 0)
    overlay.attach("net1", 1, versions=(6,))
    with pytest.raises(InvalidConfig, match="MTU of eth0, the pod's way to its node: 1000 is below 1280"):
        overlay.plan("net1")


def test_nothing_is_tuned_where_nobody_wants_it() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    pod.coordinate("eth0")
    pod.attach("net1", 1)
    for more in ({"tunePodRoutes": False}, {"cluster": replace(CLUSTER, tune_pod_routes=False)}):
        seen = pod.plan("net1", **more)
        assert (seen.rules, seen.withdrawn) == ((), ())
        assert {one.device for one in seen.routes} == {"veth0"}
    assert pod.plan("net1", cluster=replace(CLUSTER, tune_pod_routes=False), tunePodRoutes=True).rules


@pytest.mark.parametrize(
    ("overlay", "more", "table"),
    [
        (False, {}, 101),
        (False, {"podDefaultRouteNic": "net1"}, 254),
        (False, {"tunePodRoutes": False}, 254),
        (True, {}, 101),
    ],
)
def test_chosen_routes_stand_where_they_are_looked_up(overlay: bool, more: dict[str, Any], table: int) -> None:
    pod = Pod(overlay=overlay)
    pod.attach("eth0", 0)
    routes: dict[str, Any] = {"policyRoutes": [{"dst": "192.0.2.0/24", "gw": "172.101.0.7"}]}
    if not overlay:
        (one,) = [one for one in pod.plan("eth0", **routes).routes if one.device == "eth0"]
        assert one.table == MAIN_TABLE
        pod.coordinate("eth0")
    pod.attach("net1", 1)
    seen = pod.coordinate("net1", **routes, **more)
    assert [one.table for one in seen.routes if one.destination == "192.0.2.0/24"] == [table]
    assert pod.way("192.0.2.9", source=own(1, 4)) == "net1"
    theirs = replace(CLUSTER, policy_routes=(Route(dst="192.0.3.0/24", gw="172.101.0.7"),))
    assert "192.0.3.0/24" in {one.destination for one in Pod.plan(pod, "net1", cluster=theirs).routes}


def test_the_default_nic_has_to_be_one_of_the_pods() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    pod.coordinate("eth0", podDefaultRouteNic="net7")  # a cluster's setting that single pods have nothing to do with
    pod.attach("net1", 1)
    with pytest.raises(
        InvalidConfig, match=r'coordinator.podDefaultRouteNic: the pod has no interface "net7".*eth0, net1'
    ):
        pod.plan("net1", podDefaultRouteNic="net7")
    with pytest.raises(InvalidConfig, match=r'default-route-nic of the pod, .*: the pod has no interface "net7"'):
        pod.plan("net1", cluster=replace(CLUSTER, pod_default_route_nic="net7"), names=("eth0", "net1", "net2"))
    with pytest.raises(InvalidConfig, match='"veth0"'):
        pod.plan("net1", podDefaultRouteNic="veth0")
    assert (
        pod.plan("net1", podDefaultRouteNic="net7", names=("eth0", "net1", "net7")).rules[0].source == "172.101.0.9/32"
    )


def test_a_mac_address_from_the_address() -> None:
    pod = Pod()
    pod.attach("eth0", 0, versions=(4, 6))
    assert pod.plan("eth0", podMACPrefix="0A:1b").mac == "0a:1b:ac:64:00:09"
    assert pod.plan("eth0").mac == ""
    six = Pod()
    six.attach("eth0", 0, versions=(6,))
    assert six.plan("eth0", cluster=replace(CLUSTER, pod_mac_prefix="0a:1b")).mac == "0a:1b:00:00:00:09"
    pod.links[-1] = replace(pod.links[-1], kind="ipvlan")
    with pytest.raises(InvalidConfig, match=r'podMACPrefix: "0a:1b" is not possible on eth0.*ipvlan'):
        pod.plan("eth0", podMACPrefix="0a:1b")
    conf = {**CONF, "type": "ipvlan", "coordinator": {"podMACPrefix": "0a:1b"}}
    with pytest.raises(InvalidConfig, match='podMACPrefix: "0a:1b" is not possible on eth0'):
        coordination.check(invoke(conf, type="ipvlan"))


def test_the_first_nic_may_have_another_name() -> None:
    pod = Pod()
    pod.attach("lan0", 0)
    seen = pod.coordinate("lan0", podDefaultCniNic="lan0", mode="underlay")
    assert seen.makes_pair
    pod.attach("eth0", 1)
    assert pod.plan("eth0", podDefaultCniNic="lan0").routes[0].source == own(0, 4)
    conf = {**CONF, "coordinator": {"podDefaultCniNic": "lan0"}}
    assert pair_of(invoke(conf, containerid=CID)) == ""
    assert pair_of(invoke(conf, containerid=CID, ifname="lan0")) == "veth0123456789a"
    assert pair_of(invoke({**CONF, "coordinator": {"mode": "overlay"}}, containerid=CID)) == ""
    assert pair_of(invoke(containerid=CID)) == ""


def test_keys_of_the_chained_plugin_are_named_without_the_block() -> None:
    pod = Pod()
    pod.attach("eth0", 0)
    invocation = msgspec.structs.replace(
        invoke({**CONF, "coordinator": {"mode": "overlay"}}, containerid=CID), role=Role.COORDINATOR
    )
    with pytest.raises(InvalidConfig, match=r'^mode: "overlay" is not possible for eth0'):
        coordination_plan(invocation, CLUSTER, pod.survey)
    bare = replace(pod.survey, pod=PodView(links=(PodLink(ifname="eth0"),)))
    with pytest.raises(InvalidConfig, match='has no address on "eth0"'):
        coordination_plan(invoke({**CONF, "coordinator": {}}, containerid=CID), CLUSTER, bare)


def test_plans_of_earlier_agents_are_read() -> None:
    """A journal outlives the agent that wrote it."""
    text = (
        b'{"netns":"/n","ifname":"eth0","container_id":"c","host_veth":"vethc","pod_mac":"02:00:00:00:00:01",'
        b'"host_mac":"02:00:00:00:00:02","mtu":1500,"link_address":"","pod_addresses":["10.6.0.5"],'
        b'"host_addresses":["10.6.0.2"],"routes":[{"destination":"10.6.0.2/32","gateway":"","source":"10.6.0.5",'
        b'"table":254}],"lan_routes":[],"marked":[4],"host_table":500,"rp_filter":0,"tx_queue_len":0}'
    )
    seen = msgspec.json.decode(text, type=CoordinationPlan)
    assert (seen.makes_pair, seen.first, seen.overlay, seen.pod_end) == (True, True, False, "veth0")
    assert seen.new_hosts == ("10.6.0.2",) and seen.host_routes[0].destination == single("10.6.0.5")
    assert msgspec.json.decode(msgspec.json.encode(seen), type=CoordinationPlan) == seen
