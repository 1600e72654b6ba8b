"""The plugin `ifacer`: what a configuration asks for, and what is done on a node that has this and that."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cni.bond import KNOWN, BondPlan, BondState, Value, bond_options, differences
from cni.errors import CniError, InterfaceExists, InvalidConfig
from cni.parents import (
    Activate,
    DefaultRoute,
    Enslave,
    MakeBond,
    MakeVlan,
    ParentPlan,
    ParentView,
    SetUp,
    Step,
    TakeBond,
    alias,
    asker,
    parent_plan,
    steps,
)
from cni.plan import LinkState
from tests.rules.test_cni_protocol import invoke

CONF: dict[str, Any] = {"cniVersion": "1.0.0", "name": "lan", "type": "ifacer"}
WHO = "network lan, pod default/web-0"
BOTH = ("eth1", "eth2")
BOND = BondPlan(name="sp_bond0", mode=1, options=(("miimon", 100),))
BONDED = ParentPlan(interfaces=BOTH, bond=BOND)
TAGGED = ParentPlan(interfaces=("eth1",), vlan_id=100)
STATE = BondState(mode=1, options={"miimon": 100, "updelay": 0})


def wanted(**body: object) -> ParentPlan | None:
    return parent_plan(invoke({**CONF, **body}, type="ifacer").conf)


def link(ifname: str, index: int, **more: object) -> LinkState:
    return LinkState(**{"ifname": ifname, "index": index, "up": True, **more})  # type: ignore[arg-type]


def vlan(ifname: str, index: int, parent: int, **more: object) -> LinkState:
    return link(
        ifname, index, **{"kind": "vlan", "vlan_id": 100, "vlan_protocol": "802.1q", "parent_index": parent, **more}
    )


def view(*links: LinkState, vlans: tuple[LinkState, ...] = (), **more: object) -> ParentView:
    made = {"links": {one.ifname: one for one in links}, "vlans": vlans, "others": {one.index: one for one in links}}
    return ParentView(**{**made, **more})  # type: ignore[arg-type]


def todo(plan: ParentPlan, seen: ParentView) -> list[Step]:
    return steps(plan, seen, who=WHO)


def test_what_is_asked_for() -> None:
    assert wanted(interfaces=["eth1"], vlanID=100) == TAGGED
    assert wanted(interfaces=BOTH, bond={"mode": 1, "options": "miimon=100"}) == BONDED
    both = wanted(interfaces=BOTH, vlanID=7, bond={"name": "bond0", "mode": 4})
    assert both is not None
    assert (both.base, both.name, both.bond) == ("bond0", "bond0.7", BondPlan(name="bond0", mode=4))
    assert (TAGGED.base, TAGGED.name) == ("eth1", "eth1.100")
    assert parent_plan(invoke({**CONF, "interfaces": ["eth1"], "vlanID": 1}, type="ifacer").conf, vlan_id_once=False)


@pytest.mark.parametrize(
    "body",
    [
        {"interfaces": ["eth1"]},
        {"interfaces": ["eth1"], "vlanID": 0},
        {"interfaces": ["eth1"], "bond": {"mode": 1, "options": "whatever"}},
        {"interfaces": BOTH},
        {"interfaces": BOTH, "vlanID": 0, "bond": None},
    ],
)
def test_what_asks_for_nothing(body: dict[str, Any]) -> None:
    assert wanted(**body) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "interfaces: missing"),
        ({"interfaces": []}, "interfaces: missing"),
        ({"interfaces": "eth1"}, 'interfaces: "eth1" is not valid'),
        ({"interfaces": ["eth1", ""]}, r"interfaces\[1\]: \"\" is not an interface name: it is empty"),
        ({"interfaces": ["eth1", "a/b"]}, r"interfaces\[1\]: \"a/b\""),
        ({"interfaces": ["eth1", "eth1"], "bond": {}}, r"interfaces\[1\]: \"eth1\" is there twice"),
        ({"interfaces": ["eth1"], "vlanID": 4095}, "vlanID: 4095 is not valid"),
        ({"interfaces": ["eth1"], "vlanID": -1}, "vlanID: -1 is not valid"),
        ({"interfaces": BOTH, "vlanID": 100}, "vlanID: 100 needs one interface"),
        ({"interfaces": BOTH, "bond": {"mode": 7}}, "bond.mode: 7 is not valid"),
        ({"interfaces": BOTH, "bond": {"name": "a b"}}, 'bond.name: "a b"'),
        ({"interfaces": BOTH, "bond": {"name": "eth1"}}, 'bond.name: "eth1" is one of the interfaces'),
        ({"interfaces": ["enp216s0f0np0"], "vlanID": 100}, 'vlanID: 100 on enp216s0f0np0 .*"enp216s0f0np0.100".*15'),
        ({"interfaces": BOTH, "bond": {"options": "mimon=100"}}, 'bond.options: "mimon" is no option'),
        ({"interfaces": BOTH, "bond": {"options": "miimon"}}, 'bond.options: "miimon" is not KEY=VALUE'),
        ({"interfaces": BOTH, "bond": {"options": "miimon=1;miimon=2"}}, "bond.options: miimon is there twice"),
        ({"interfaces": BOTH, "bond": {"options": "updelay=1;up_delay=2"}}, "bond.options: up_delay is there twice"),
        ({"interfaces": BOTH, "bond": {"options": "miimon=-1"}}, 'bond.options: miimon: "-1" is not possible'),
        ({"interfaces": BOTH, "bond": {"options": "miimon=100;arp_interval=50"}}, "miimon: 100 .*arp_interval=50"),
        ({"interfaces": BOTH, "bond": {"options": "lacp_rate=medium"}}, 'lacp_rate: "medium".*slow, fast'),
        ({"interfaces": BOTH, "bond": {"options": "primary=eth9"}}, 'primary: "eth9" is none of.*eth1, eth2'),
        ({"interfaces": BOTH, "bond": {"options": "active_slave=eth9"}}, 'active_slave: "eth9"'),
        ({"interfaces": BOTH, "bond": {"options": "ad_actor_system=x"}}, 'ad_actor_system: "x" is not a MAC'),
        ({"interfaces": BOTH, "bond": {"options": 'arp_ip_target=["x"]'}}, "arp_ip_target"),
        ({"interfaces": BOTH, "bond": {"options": "arp_ip_target=[1]"}}, "arp_ip_target"),
        ({"interfaces": BOTH, "bond": {"options": "arp_ip_target=[]"}}, "arp_ip_target.*0 addresses"),
    ],
)
def test_what_cannot_be(body: dict[str, Any], words: str) -> None:
    with pytest.raises(CniError, match=words) as caught:
        wanted(**body)
    assert caught.value.code == 7


def test_options() -> None:
    text = (
        'miimon=0; up_delay=200;downdelay=0;;primary=eth2;active_slave=eth1;arp_ip_target=["10.0.0.1","10.0.0.2"];'
        "ad_actor_system=02:00:00:00:00:0A;xmit_hash_policy=layer3+4;lacp_rate=1;use_carrier=off;peer_notif_delay=0"
    )
    assert dict(bond_options(text, slaves=BOTH)) == {
        "miimon": 0,
        "updelay": 200,
        "downdelay": 0,
        "primary": "eth2",
        "active_slave": "eth1",
        "arp_ip_target": ("10.0.0.1", "10.0.0.2"),
        "ad_actor_system": "02:00:00:00:00:0a",
        "xmit_hash_policy": 1,
        "lacp_rate": 1,
        "use_carrier": 0,
        "peer_notif_delay": 0,
    }
    assert dict(bond_options("arp_ip_target=10.0.0.1,10.0.0.2", slaves=BOTH))["arp_ip_target"] == (
        "10.0.0.1",
        "10.0.0.2",
    )


@given(st.sampled_from(KNOWN), st.integers(0, 1 << 33) | st.sampled_from(["eth1", "any", "[", "1,2", "=", "é"]))
def test_every_option_is_read_or_refused_by_its_name(name: str, value: object) -> None:
    try:
        ((seen, _),) = bond_options(f"{name}={value}", slaves=BOTH)
    except InvalidConfig as error:
        seen = error.msg
    assert name in seen


def test_who_asks() -> None:
    assert asker(invoke({**CONF, "interfaces": ["eth1"]}, type="ifacer")) == WHO
    assert asker(invoke({**CONF, "interfaces": ["eth1"]}, type="ifacer", command="DEL", args="")) == "network lan"
    assert alias(WHO) == f"spiderpool: {WHO}"
    assert len(alias("ü" * 300).encode()) <= 254


def test_a_vlan() -> None:
    eth1 = link("eth1", 2)
    assert todo(TAGGED, view(eth1)) == [MakeVlan("eth1.100", "eth1", 100)]
    assert todo(TAGGED, view(replace(eth1, up=False))) == [SetUp("eth1"), MakeVlan("eth1.100", "eth1", 100)]
    made = vlan("eth1.100", 5, 2)
    assert todo(TAGGED, view(eth1, made, vlans=(made,))) == []
    down = replace(made, up=False)
    assert todo(TAGGED, view(replace(eth1, up=False), down, vlans=(down,))) == [SetUp("eth1"), SetUp("eth1.100")]


def test_a_bond() -> None:
    one, two = link("eth1", 2), link("eth2", 3, up=False)
    new: list[Step] = [Enslave("eth1", "sp_bond0"), Enslave("eth2", "sp_bond0"), SetUp("sp_bond0")]
    assert todo(BONDED, view(one, two)) == [MakeBond(BOND), *new]
    bond = link("sp_bond0", 9, kind="bond", alias=alias(WHO))
    whole = view(replace(one, master_index=9), replace(two, master_index=9, up=True), bond, bond=STATE, slaves=BOTH)
    assert todo(BONDED, whole) == []
    # One slave is missing, and something is down: a crash, or a hand.
    half = view(replace(one, master_index=9, up=False), two, replace(bond, up=False), bond=STATE, slaves=("eth1",))
    assert todo(BONDED, half) == [Enslave("eth2", "sp_bond0"), SetUp("eth1"), SetUp("sp_bond0")]
    # Empty, as after a crash, or as the module makes it.
    other = BondState(mode=0, options={"miimon": 0})
    assert todo(BONDED, view(one, two, bond, bond=STATE)) == new[:2]
    assert todo(BONDED, view(one, two, bond, bond=other)) == [TakeBond(BOND), *new]
    assert todo(BONDED, view(one, two, replace(bond, alias=""), bond=other)) == [TakeBond(BOND), *new]
    assert todo(BONDED, view(one, two, replace(bond, alias=""), bond=STATE)) == [TakeBond(BOND), *new]


def test_a_bond_begins_with_the_slave_that_is_named() -> None:
    bond = replace(BOND, options=(("active_slave", "eth2"), ("primary", "eth2")))
    plan = replace(BONDED, bond=bond)
    seen = view(link("eth1", 2), link("eth2", 3))
    assert todo(plan, seen)[3] == Activate("eth2", "sp_bond0")
    # Later it may have changed by itself.
    made = link("sp_bond0", 9, kind="bond")
    state = BondState(mode=1, options={"active_slave": "eth1", "primary": "eth2"})
    whole = view(link("eth1", 2, master_index=9), link("eth2", 3, master_index=9), made, bond=state, slaves=BOTH)
    assert todo(plan, whole) == []


def test_a_vlan_on_a_bond() -> None:
    plan = replace(BONDED, vlan_id=100)
    assert todo(plan, view(link("eth1", 2), link("eth2", 3)))[-2:] == [
        SetUp("sp_bond0"),
        MakeVlan("sp_bond0.100", "sp_bond0", 100),
    ]
    bond = link("sp_bond0", 9, kind="bond")
    made = vlan("sp_bond0.100", 10, 9)
    slaves = link("eth1", 2, master_index=9), link("eth2", 3, master_index=9)
    assert todo(plan, view(*slaves, bond, made, bond=STATE, slaves=BOTH, vlans=(made,))) == []


def way(index: int, version: int = 4, **more: Any) -> DefaultRoute:
    return DefaultRoute(index=index, version=version, **more)


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ((way(2),), r"interfaces\[0\]: \"eth1\" has the node's IPv4"),
        ((way(3, 6, metric=1024),), r"interfaces\[1\]: \"eth2\" has the node's IPv6"),
        # By a router, and no other link has heard of one.
        ((way(9), way(3, 6, metric=1024, advertised=True)), r"\"eth2\" has the node's IPv6"),
        ((way(9), *(way(one, 6, metric=1024, advertised=True) for one in (2, 3))), r"\"eth1\" has the node's IPv6"),
        # Another link has one, but no such a good one; or somebody wants both.
        ((way(9, metric=200), way(2, metric=100)), r"\"eth1\" has the node's IPv4"),
        ((way(9, 6, metric=1024, advertised=True), way(3, 6, metric=512)), r"\"eth2\" has the node's IPv6"),
        ((way(9), way(2)), r"\"eth1\" has the node's IPv4"),
        ((way(2, 6), way(2)), r"\"eth1\" has the node's IPv4"),
    ],
)
def test_a_link_that_the_node_s_default_route_depends_on(defaults: tuple[DefaultRoute, ...], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        todo(BONDED, view(link("eth1", 2), link("eth2", 3), defaults=defaults))


@pytest.mark.parametrize(
    "defaults",
    [
        (),
        (way(9), way(9, 6)),
        (way(9, metric=100), way(2, metric=200), way(3, metric=300)),
        # A NIC that is there for pods has heard the router, too.
        (way(9, 6, metric=1024, advertised=True), way(2, 6, metric=1024, advertised=True)),
        (way(9, 6, metric=1024), way(3, 6, metric=1024, advertised=True)),
    ],
)
def test_links_that_the_node_can_do_without(defaults: tuple[DefaultRoute, ...]) -> None:
    assert Enslave("eth1", "sp_bond0") in todo(BONDED, view(link("eth1", 2), link("eth2", 3), defaults=defaults))


def test_slaves_that_are_there_are_asked_nothing() -> None:
    slaves = link("eth1", 2, master_index=9), link("eth2", 3, master_index=9)
    bond = link("sp_bond0", 9, kind="bond")
    seen = view(*slaves, bond, bond=STATE, slaves=BOTH, defaults=(way(2),), carried={2: "eth1 has vlan x"})
    assert todo(BONDED, seen) == []


OTHERS = alias("network other, pod kube-system/x")


@pytest.mark.parametrize(
    ("plan", "seen", "words"),
    [
        (TAGGED, view(), r"interfaces\[0\]: there is no interface \"eth1\" on this node"),
        (BONDED, view(link("eth1", 2)), r"interfaces\[1\]: there is no interface \"eth2\""),
        (
            TAGGED,
            view(link("eth1", 2), link("eth1.100", 5, kind="macvlan")),
            r"eth1.100 \(not made here\) is a macvlan link; network lan, pod default/web-0 wants VLAN 100 on eth1",
        ),
        (
            TAGGED,
            view(link("eth1", 2), link("eth2", 3), vlan("eth1.100", 5, 3, alias=OTHERS)),
            r"eth1.100 \(made for network other, pod kube-system/x\) is VLAN 100 on eth2; network lan",
        ),
        (TAGGED, view(link("eth1", 2), vlan("eth1.100", 5, 2, vlan_id=7)), "is VLAN 7 on eth1"),
        (
            TAGGED,
            view(link("eth1", 2), vlan("eth1.100", 5, 2, vlan_protocol="802.1ad")),
            r"is VLAN 100 \(802.1ad\) on eth1",
        ),
        (
            TAGGED,
            view(link("eth1", 2), vlans=(vlan("storage", 5, 2),)),
            r"storage \(not made here\) is VLAN 100 on eth1; network lan, pod default/web-0 wants VLAN 100 on eth1",
        ),
        (
            TAGGED,
            view(link("eth1", 2), link("eth2", 3), vlans=(vlan("eth2.100", 5, 3, alias=OTHERS),)),
            r"eth2.100 \(made for network other.*100 on eth2.*pod default/web-0.*SPIDERPOOL_VLAN_ID_PER_PARENT=true",
        ),
        (BONDED, view(link("eth1", 2), link("eth2", 3), link("sp_bond0", 9)), r"sp_bond0 \(not made here\) is no bond"),
        (
            BONDED,
            view(
                link("eth1", 2, master_index=8),
                link("eth2", 3),
                others={8: link("bond7", 8, kind="bond", alias=OTHERS)},
            ),
            r"eth1 is a port of bond bond7 \(made for network other.*; network lan.* wants eth1 in bond sp_bond0",
        ),
        (
            BONDED,
            view(link("eth1", 2), link("eth2", 3), defaults=(way(3),)),
            r"interfaces\[1\]: \"eth2\" has the node's IPv4 default route, which it would lose as a slave of sp_bond0",
        ),
        (
            BONDED,
            view(link("eth1", 2), link("eth2", 3), carried={2: "eth1 has macvlan eth0 (bridge) in /proc/7/ns/net"}),
            (
                r"ifacer: eth1 has macvlan eth0 \(bridge\) in /proc/7/ns/net; network lan, pod default/web-0 wants eth1"
                r" in bond sp_bond0 \(interfaces\[0\]\)"
            ),
        ),
        (
            BONDED,
            view(
                link("eth1", 2, master_index=9),
                link("eth2", 3),
                link("sp_bond0", 9, kind="bond", alias=OTHERS),
                bond=BondState(mode=4, options={"miimon": 50}),
                slaves=("eth1",),
            ),
            (
                r"sp_bond0 \(made for network other.*is 802.3ad, not active-backup, its miimon is 50, not 100; network"
                r" lan.* wants sp_bond0 \(active-backup, miimon=100\)"
            ),
        ),
        (
            BONDED,
            view(
                link("eth1", 2, master_index=9),
                link("eth2", 3, master_index=9),
                link("sp_bond0", 9, kind="bond"),
                bond=STATE,
                slaves=("eth1", "eth2", "eth3"),
            ),
            r"bond sp_bond0 \(not made here\) has the slaves eth1, eth2, eth3; network lan.* wants it of eth1, eth2",
        ),
        (
            BONDED,
            view(
                link("eth1", 2),
                link("eth2", 3),
                link("sp_bond0", 9, kind="bond", alias="the operator's"),
                bond=BondState(mode=0, options={}),
            ),
            r"sp_bond0 \(the operator's\) is another",
        ),
    ],
)
def test_conflicts_name_both_sides(plan: ParentPlan, seen: ParentView, words: str) -> None:
    with pytest.raises((InvalidConfig, InterfaceExists), match=words):
        todo(plan, seen)


def test_the_same_id_on_two_parents_where_that_is_allowed() -> None:
    plan = replace(TAGGED, vlan_id_once=False)
    other = vlan("eth2.100", 5, 3)
    in_a_pod = vlan("net1", 6, 2, parent_netns=4)
    eth1, eth2 = link("eth1", 2), link("eth2", 3)
    assert todo(plan, view(eth1, eth2, vlans=(other, in_a_pod))) == [MakeVlan("eth1.100", "eth1", 100)]
    with pytest.raises(InterfaceExists, match="storage"):
        todo(plan, view(eth1, eth2, vlans=(other, vlan("storage", 7, 2))))


@pytest.mark.parametrize(
    ("value", "seen", "whole", "words"),
    [
        (100, 100, True, []),
        (0, 0, True, []),
        (0, 100, True, ["its miimon is 100, not 0"]),
        (100, None, True, []),
    ],
)
def test_what_differs_in_a_bond(value: Value, seen: Value | None, *, whole: bool, words: list[str]) -> None:
    plan = BondPlan(name="b", mode=1, options=(("miimon", value),))
    state = BondState(mode=1, options={} if seen is None else {"miimon": seen})
    assert differences(plan, state, whole=whole) == words


def test_delays_are_rounded_by_the_kernel() -> None:
    plan = BondPlan(name="b", mode=1, options=(("updelay", 250),))
    assert differences(plan, BondState(mode=1, options={"miimon": 100, "updelay": 200}), whole=True) == []
    assert differences(plan, BondState(mode=1, options={"miimon": 100, "updelay": 300}), whole=True) == [
        "its updelay is 300, not 200"
    ]
    assert differences(plan, BondState(mode=1, options={"miimon": 0, "updelay": 0}), whole=True) == [
        "its updelay is 0, not 250"
    ]


def test_a_primary_slave_that_is_not_there_yet() -> None:
    plan = BondPlan(name="b", mode=1, options=(("primary", "eth2"),))
    assert differences(plan, BondState(mode=1, options={}), whole=False) == []
    assert differences(plan, BondState(mode=1, options={}), whole=True) == ["its primary is not set, not eth2"]
