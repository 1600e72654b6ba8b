"""From a call and a result to what is done in the kernel."""

from typing import Any

import pytest
from msgspec.structs import replace

from cni.config import shown
from cni.errors import CniError, InvalidConfig, InvalidEnvironment, UnsupportedField
from cni.plan import (
    IPVLAN_MODES,
    AddressPlan,
    Assigned,
    LinkPlan,
    LinkState,
    address_plan,
    assigned_plan,
    link_differences,
    link_plan,
)
from cni.result import IpConfig, Result, RouteConfig
from tests.rules.test_cni_protocol import CONF, HEADERS, invoke

POD = HEADERS["cni-args"]


def test_defaults() -> None:
    assert link_plan(invoke()) == LinkPlan(
        netns="/run/netns/pod", ifname="eth0", master="eth1", container_id="0a1b2c3d"
    )


def test_everything() -> None:
    body = {**CONF, "mode": "vepa", "mtu": 1400, "mac": "02:00:00:00:00:0A", "bcqueuelen": 5, "linkInContainer": True}
    plan = link_plan(invoke(body))
    assert (plan.mode, plan.mtu, plan.mac) == ("vepa", 1400, "02:00:00:00:00:0a")
    assert (plan.broadcast_queue_length, plan.link_in_container) == (5, True)


def test_the_runtime_has_the_last_word_on_the_mac_address() -> None:
    body = {**CONF, "mac": "02:00:00:00:00:04"}
    assert link_plan(invoke(body)).mac == "02:00:00:00:00:04"
    body["args"] = {"cni": {"mac": "02:00:00:00:00:03"}}
    assert link_plan(invoke(body)).mac == "02:00:00:00:00:03"
    named = f"{POD}%3BMAC%3D02:00:00:00:00:02"
    assert link_plan(invoke(body, args=named)).mac == "02:00:00:00:00:02"
    body["runtimeConfig"] = {"mac": "02:00:00:00:00:01"}
    assert link_plan(invoke(body, args=named)).mac == "02:00:00:00:00:01"


@pytest.mark.parametrize("mac", ["02:00:0A:00:00:01", "02-00-0a-00-00-01", "0200.0a00.0001"])
def test_a_mac_address_in_each_of_the_ways_to_write_it(mac: str) -> None:
    assert link_plan(invoke({**CONF, "mac": mac})).mac == "02:00:0a:00:00:01"


@pytest.mark.parametrize(
    "mac",
    [
        "x",
        "02:00:00:00:00",
        "02-00:00-00-00-01",
        "0200.0000",
        "02000000.0001",
        "02:00:00:00:00:01\n",
        "020000000001",
        "2:0:0:0:0:1",
        "01:00:00:00:00:01",
        "00:00:00:00:00:00",
    ],
)
def test_bad_mac(mac: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        link_plan(invoke({**CONF, "mac": mac}))
    assert shown(mac) in caught.value.msg
    with pytest.raises(InvalidEnvironment, match="CNI_ARGS MAC"):
        link_plan(invoke(args=f"{POD}%3BMAC%3D{mac}"))


def test_bad_mode() -> None:
    with pytest.raises(CniError) as caught:
        link_plan(invoke({**CONF, "mode": "source"}))
    assert caught.value.code == 7
    assert 'mode: "source"' in caught.value.msg


IPVLAN = {**CONF, "type": "ipvlan"}
VLAN = {**CONF, "type": "vlan", "vlanId": 100}


def plan(body: dict[str, Any], **headers: str) -> LinkPlan:
    return link_plan(invoke(body, type=body["type"], **headers))


def test_ipvlan() -> None:
    seen = plan({**IPVLAN, "mtu": 1400, "bcqueuelen": 5})
    assert (seen.kind, seen.mode, seen.mtu, seen.broadcast_queue_length) == ("ipvlan", "l2", 1400, 0)
    assert [plan({**IPVLAN, "mode": mode}).mode for mode in IPVLAN_MODES] == ["l2", "l3", "l3s"]
    with pytest.raises(InvalidConfig, match='mode: "bridge" is no ipvlan mode: modes: l2, l3, l3s'):
        plan({**IPVLAN, "mode": "bridge"})


def test_ipvlan_on_what_a_plugin_before_it_has_made() -> None:
    made = {"interfaces": [{"name": "bond0"}]}
    body = {**IPVLAN, "master": "", "prevResult": made}
    assert plan(body).master == "bond0"
    assert plan({**body, "master": "eth1"}).master == "eth1"
    assert plan({**body, "prevResult": {"interfaces": [*made["interfaces"], {"name": "eth7"}]}}).master == ""
    # Of CHECK it is the link itself.
    assert plan(body, command="CHECK").master == ""
    assert plan({**body, "type": "macvlan"}).master == ""


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mac": "02:00:00:00:00:04"}, "mac"),
        ({"runtimeConfig": {"mac": "02:00:00:00:00:04"}}, "runtimeConfig.mac"),
        ({"args": {"cni": {"mac": "02:00:00:00:00:04"}}}, "args.cni.mac"),
        ({"coordinator": {"podMACPrefix": "02:00"}}, "coordinator.podMACPrefix"),
    ],
)
def test_ipvlan_has_no_mac_address_of_its_own(body: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedField, match=f'^{field}: "02:00.*master') as caught:
        plan({**IPVLAN, **body})
    assert caught.value.code == 2
    assert plan({**CONF, **body}).kind == "macvlan"


def test_vlan() -> None:
    seen = plan({**VLAN, "mode": "of no meaning", "mtu": 1400, "mac": "02:00:00:00:00:04"})
    assert (seen.kind, seen.mode, seen.vlan_id, seen.vlan_protocol) == ("vlan", "", 100, "802.1q")
    assert (seen.mtu, seen.mac) == (1400, "02:00:00:00:00:04")
    assert plan({**VLAN, "vlanMode": "manual", "vlanId": 0}).vlan_id == 0
    assert plan({**VLAN, "vlanMode": "auto"}).vlan_id == 100
    other = {key: value for key, value in VLAN.items() if key != "vlanId"}
    assert plan({**other, "vlanID": 7, "vlanProto": "802.1AD"}) == LinkPlan(
        netns="/run/netns/pod", ifname="eth0", master="eth1", container_id="0a1b2c3d",
        kind="vlan", mode="", vlan_id=7, vlan_protocol="802.1ad",
    )  # fmt: skip


def test_a_vlan_that_comes_with_the_address() -> None:
    waiting = plan({**VLAN, "vlanId": None, "vlanMode": "auto", "ipam": {"type": "spiderpool"}})
    assert waiting.is_assigned
    assert (waiting.vlan_id, waiting.mac) == (None, "")
    ready = assigned_plan(waiting, Assigned(7, "fa:16:3e:00:00:01"))
    assert not ready.is_assigned
    assert (ready.vlan_id, ready.mac) == (7, "fa:16:3e:00:00:01")
    other = plan(CONF)
    assert assigned_plan(other, Assigned(7, "fa:16:3e:00:00:01")) is other


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"vlanId": 4095}, 7, "vlanId: 4095 is not valid"),
        ({"vlanId": -1}, 7, "vlanId: -1 is not valid"),
        ({"vlanId": "7"}, 7, 'vlanId: "7" is not valid'),
        ({"vlanId": None}, 7, "vlanId: missing"),
        ({"vlanId": None, "vlanMode": "manual"}, 7, "vlanId: missing"),
        ({"vlanId": None, "vlanMode": "auto", "master": ""}, 7, 'master: "": vlanMode: "auto"'),
        ({"vlanId": None, "vlanMode": "auto", "linkInContainer": True}, 7, 'vlanMode: "auto"'),
        ({"vlanId": None, "vlanMode": "auto", "ipam": {}}, 7, 'ipam.type: "": vlanMode'),
        ({"vlanId": None, "vlanMode": "auto", "mac": "02:00:00:00:00:01"}, 2, 'mac: "02:00:00:00:00:01" is not'),
        ({"vlanId": None, "vlanMode": "auto", "coordinator": {"podMACPrefix": "0a:1b"}}, 2, "coordinator.podMACPrefix"),
        ({"vlanMode": "trunk"}, 7, 'vlanMode: "trunk" is unknown'),
        ({"vlanProto": "802.1x"}, 7, 'vlanProto: "802.1x" is unknown'),
    ],
)
def test_bad_vlan(body: dict[str, Any], code: int, words: str) -> None:
    with pytest.raises(CniError, match=words) as caught:
        plan({**VLAN, **body})
    assert caught.value.code == code


def test_what_differs_from_a_plan() -> None:
    wanted = LinkPlan(netns="/n", ifname="eth0", master="eth1", kind="ipvlan", mode="l2", mtu=1400)
    parent = LinkState(ifname="eth1", index=3)
    seen = LinkState(ifname="eth0", index=9, kind="ipvlan", mode="l2", mtu=1400, up=True, parent_index=3)
    assert link_differences(wanted, seen, parent) == []
    assert link_differences(replace(wanted, master="", mtu=0), replace(seen, mtu=9000), None) == []
    changed = replace(seen, mode="l3", mtu=1500, up=False, parent_index=4)
    assert link_differences(wanted, changed, parent) == [
        "its mode is l3, not l2",
        "its MTU is 1500, not 1400",
        "it is down",
        "it is not on eth1",
    ]
    assert link_differences(wanted, seen, None) == ["there is no interface eth1 for it any more"]
    assert link_differences(wanted, replace(seen, kind=""), parent) == ["it is a physical link, not ipvlan"]
    tagged = replace(wanted, kind="vlan", mode="", vlan_id=7, vlan_protocol="802.1q")
    other = replace(seen, kind="vlan", mode="", vlan_id=8, vlan_protocol="802.1ad")
    assert link_differences(tagged, other, parent) == ["its VLAN id is 8, not 7", "its protocol is 802.1ad, not 802.1q"]


def test_addresses() -> None:
    result = Result(
        ips=(
            IpConfig(address="10.0.0.5/16", gateway="10.0.0.1"),
            IpConfig(address="10.0.0.6/16", gateway="10.0.0.2"),
            IpConfig(address="fd00::5/64"),
        ),
        routes=(RouteConfig(dst="0.0.0.0/0", gw="10.0.0.1"), RouteConfig(dst="fd01::/64")),
    )
    assert address_plan(result) == AddressPlan(
        addresses=("10.0.0.5/16", "10.0.0.6/16", "fd00::5/64"),
        gateways=("10.0.0.1",),
        routes=(("0.0.0.0/0", "10.0.0.1"), ("fd01::/64", "")),
    )
