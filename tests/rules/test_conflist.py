"""How a meta plugin reads network definitions, and what it makes of a pod's: pure, but for the files of a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.node.chains import Call, calls, chains, directed, invocation_of, main_of, network_status, was_not_made
from actors.node.meta import Meta
from api.wire import NetworkDefinition, Networked, PodRef
from cni.conflist import Asked, ConfList, calls_multus, find_conflist, for_plugin, read_conflist
from cni.delegate import DelegateFailed, ExecutedDelegates
from cni.errors import IncompatibleVersion, InvalidConfig, TryAgainLater
from cni.journal import Attached
from cni.protocol import Invocation, Role, Verb
from cni.result import Interface, IpConfig, Result, RouteConfig
from tests.rules.test_cni_protocol import invoke

MACVLAN = {"type": "macvlan", "master": "eth1", "ipam": {"type": "spiderpool"}}
COORDINATOR = {"type": "coordinator", "mode": "auto"}
ORIGINAL = {"cniVersion": "0.3.1", "name": "lan", "plugins": [MACVLAN, COORDINATOR]}
"""As the original's controller writes definitions."""


def head(**conf: Any) -> Invocation:
    return invoke(
        {"cniVersion": "1.0.0", "name": "spiderpool", "type": "macvlan", "ipam": {"type": "spiderpool"}, **conf}
    )


def network(config: object = ORIGINAL, **fields: Any) -> NetworkDefinition:
    text = config if isinstance(config, str) else json.dumps(config)
    return NetworkDefinition(
        **{"namespace": "kube-system", "name": "lan", "interface": "net1", "config": text, **fields}
    )


def nowhere(_: str) -> None:
    return None


def planned(
    *networks: NetworkDefinition,
    default: NetworkDefinition | None = None,
    find: Callable[[str], ConfList | None] = nowhere,
    device: Callable[[str], str] = str.upper,
    **conf: Any,
) -> tuple[Attached, ...]:
    networked = Networked(pod_uid="u", default=default, networks=networks)
    return chains(head(**conf), networked, find=find, device=device)


def test_a_list_and_a_single_plugin() -> None:
    assert read_conflist(json.dumps(ORIGINAL), where="x") == ConfList(
        name="lan", cni_version="0.3.1", plugins=(MACVLAN, COORDINATOR)
    )
    single = read_conflist(json.dumps({**MACVLAN, "cniVersion": "1.0.0"}), where="x", name="one")
    assert (single.name, single.cni_version, single.plugins[0]["master"]) == ("one", "1.0.0", "eth1")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not JSON"),
        ("[]", "array"),
        ("{}", "lists no plugin"),
        ('{"plugins": []}', "lists no plugin"),
        ('{"plugins": [{}]}', r"plugins\[0\].type: null"),
        ('{"plugins": [{"type": "../x"}]}', r"plugins\[0\].type"),
        ('{"plugins": [7]}', r"plugins\[0\].type"),
        ('{"type": "a", "name": 7}', "name: 7"),
        ('{"type": "a", "cniVersion": 1}', "cniVersion: 1"),
    ],
)
def test_what_is_no_list(text: str, named: str) -> None:
    with pytest.raises(InvalidConfig, match=f"NAD ns/x.*{named}"):
        read_conflist(text, where="NAD ns/x")


def test_what_a_plugin_is_told() -> None:
    able = {"type": "bridge", "capabilities": {"mac": True, "ips": False}, "args": {"cni": {"a": 1}, "b": 2}}
    conflist = ConfList(name="n", plugins=(able,))
    asked = Asked(ips=("10.0.0.9",), mac="02:00:00:00:00:01", device_id="0000:01:10.0", cni_args={"c": 3})
    assert for_plugin(conflist, 0, asked, version="0.4.0", ours=False) == {
        "type": "bridge",
        "name": "n",
        "cniVersion": "0.4.0",
        "args": {"cni": {"a": 1, "c": 3}, "b": 2},
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "deviceID": "0000:01:10.0",
        "pciBusID": "0000:01:10.0",
    }
    told = for_plugin(conflist, 0, asked, version="0.4.0", ours=True)["runtimeConfig"]
    assert told == {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.9"], "deviceID": "0000:01:10.0"}
    assert "runtimeConfig" not in for_plugin(conflist, 0, Asked(), version="0.4.0", ours=True)


def test_files_of_the_node(tmp_path: Path) -> None:
    (tmp_path / "10-a.conf").write_text("no JSON")
    (tmp_path / "15-a.conf").symlink_to("nowhere")
    (tmp_path / "20-b.conflist").write_text(json.dumps({**ORIGINAL, "name": "b"}))
    (tmp_path / "30-b.conflist").write_text(json.dumps({**ORIGINAL, "name": "b", "cniVersion": "1.0.0"}))
    found = find_conflist(tmp_path, "b")
    assert found is not None
    assert found.cni_version == "0.3.1"
    assert find_conflist(tmp_path, "c") is None
    with pytest.raises(InvalidConfig, match="missing"):
        find_conflist(tmp_path / "missing", "b")


def test_below_a_multus(tmp_path: Path) -> None:
    ours = tmp_path / "00-spiderpool.conflist"
    ours.write_text(json.dumps({**ORIGINAL, "name": "spiderpool"}))
    assert not calls_multus(tmp_path)
    first = tmp_path / "00-multus.conf"
    first.write_text(json.dumps({"type": "multus-shim", "name": "m"}))
    assert calls_multus(tmp_path)
    first.rename(tmp_path / "99-multus.conf")
    assert not calls_multus(tmp_path)
    assert not calls_multus(tmp_path / "missing")


def test_the_first_interface_stays_as_it_was_called() -> None:
    (first, net1) = planned(network(), networks=True, mtu=1400, coordinator={"mode": "underlay"})
    (call,) = calls(first)
    again = invocation_of(head(), Verb.ADD, first, call)
    # Kept by an agent that took what this one refuses: it has to be able to go.
    odd = Call({**call.conf, "mtu": -1, "ipam": {"type": "host-local"}})
    with pytest.raises(InvalidConfig):
        invocation_of(head(), Verb.ADD, first, odd)
    assert invocation_of(head(), Verb.DEL, first, odd).link_kind == again.link_kind
    before = head(mtu=1400, coordinator={"mode": "underlay"})
    assert again.conf == before.conf
    assert (again.role, again.head, again.multus) == (Role.MAIN, "", "")
    assert net1.network == "kube-system/lan"
    main = main_of(net1)
    assert main is not None
    made = invocation_of(head(), Verb.ADD, net1, main)
    assert (made.ifname, made.head, made.multus, made.conf.name) == ("net1", "eth0", "kube-system/lan", "lan")
    assert made.conf.cni_version == "0.3.1"
    (_, chained) = calls(net1)
    assert invocation_of(head(), Verb.ADD, net1, chained, previous=Result()).role is Role.COORDINATOR


def test_whose_plugins_they_are() -> None:
    assert Call(dict(MACVLAN)).ours
    assert Call({"type": "vlan"}).ours
    assert not Call({"type": "bridge", "ipam": {"type": "spiderpool"}}).ours
    assert not Call({"type": "macvlan", "ipam": {"type": "host-local"}}).ours
    bridge, own = planned(network({"type": "bridge", "name": "b"}), network(interface="net2"))[1:]
    assert main_of(bridge) is None
    assert main_of(own) is not None


def test_a_default_network_takes_the_first_interface() -> None:
    (first, _) = planned(network(), default=network({"type": "ptp", "cniVersion": "1.0.0"}, name="other"))
    assert (first.ifname, first.network, first.name) == ("eth0", "kube-system/other", "other")
    (clustered,) = planned(clusterNetwork="b", find=lambda name: read_conflist(json.dumps(ORIGINAL), where=name))
    assert (clustered.ifname, clustered.network, clustered.name) == ("eth0", "", "lan")
    with pytest.raises(InvalidConfig, match=r'clusterNetwork: .*"b"'):
        planned(clusterNetwork="b")


def test_a_definition_without_a_configuration_is_a_file_of_the_node() -> None:
    (_, found) = planned(network(""), find=lambda name: ConfList(name=name, plugins=(MACVLAN,)))
    assert found.name == "lan"
    with pytest.raises(InvalidConfig, match=r"kube-system/lan: it has no spec\.config"):
        planned(network(""))


def test_devices_go_to_those_who_name_their_resource() -> None:
    sriov = {"type": "sriov", "ipam": {"type": "spiderpool"}}
    (_, one, two) = planned(
        network(sriov, resource="intel.com/vf"), network(sriov, interface="net2", device_id="0000:02:00.0")
    )
    assert [calls(one)[0].conf["deviceID"], calls(two)[0].conf["deviceID"]] == ["INTEL.COM/VF", "0000:02:00.0"]


def test_devices_are_those_that_the_kubelet_has_noted(tmp_path: Path) -> None:
    """From the file on: each network of a resource gets one, and one of which the pod has no more gets none."""
    held = {"PodUID": "u", "ContainerName": "app", "ResourceName": "intel.com/vf", "DeviceIDs": {"0": ["vf1", "vf2"]}}
    (tmp_path / "list").write_text(json.dumps({"Data": {"PodDeviceEntries": [held]}, "Checksum": 1}))
    plugins = {"name": "b", "plugins": [{"type": "ovs"}, {"type": "more", "capabilities": {"deviceID": True}}]}
    named = [network(plugins, interface=f"net{number}", resource="intel.com/vf") for number in (1, 2, 3)]

    def handed(uid: str) -> list[list[object]]:
        meta = Meta(delegates=ExecutedDelegates(), checkpoint=tmp_path / "list")
        (_, *found) = planned(*named, device=meta.devices(PodRef("ns", "pod", uid)))
        return [[one.conf.get("deviceID") for one in calls(attached)] for attached in found]

    assert handed("u") == [["vf1", "vf1"], ["vf2", "vf2"], [None, None]]
    assert handed("other") == [[None, None]] * 3


def test_a_default_route_that_is_asked_for_takes_everybody_elses() -> None:
    assert [one.gateways for one in planned(network())] == [None, None]
    wish = ("10.0.0.1",)
    asked = planned(network(), network(interface="net2", default_route=wish))
    assert [one.gateways for one in asked] == [(), (), wish]
    first = network(interface="eth0", default_route=wish)
    assert [one.gateways for one in planned(network(), default=first)] == [wish, ()]
    both = planned(network(default_route=("fd00::1",)), default=first)
    assert [one.gateways for one in both] == [wish, ("fd00::1",)]
    with pytest.raises(InvalidConfig, match=r"10\.0\.0\.1 \(kube-system/lan\) and 10\.0\.0\.2 .*one IPv4"):
        planned(network(default_route=("10.0.0.2",)), default=first)


def test_default_routes_of_what_somebody_else_has_made() -> None:
    kept = RouteConfig(dst="10.9.0.0/16", gw="10.0.0.3")
    made = Result(
        ips=(IpConfig(address="10.0.0.2/24", gateway="10.0.0.1"),),
        routes=(RouteConfig(dst="0.0.0.0/0", gw="10.0.0.1"), kept, RouteConfig(dst="::/0", gw="fd00::1")),
    )
    assert directed(made, ()) == (msgspec.structs.replace(made, routes=(kept,)), ())
    result, able = directed(made, ("fd00::9", "10.0.0.9"))
    assert able == ("10.0.0.9",), "it has no IPv6 address"
    assert result.routes == (kept, RouteConfig(dst="0.0.0.0/0", gw="10.0.0.9"))


def test_what_the_runtime_wants_is_for_the_first_interface() -> None:
    plugin = {"type": "ptp", "capabilities": {"portMappings": True, "bandwidth": True, "ips": True}}
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    runtime = {"portMappings": ports, "bandwidth": {"ingressRate": 1000000}, "ips": ["10.0.0.9"], "mac": "02::1"}
    given = {"portMappings": ports, "bandwidth": {"ingressRate": 1000000}, "ips": ["10.0.0.9"]}
    (clustered, further) = planned(
        network(plugin),
        clusterNetwork="b",
        runtimeConfig=runtime,
        find=lambda name: ConfList(name=name, plugins=(plugin,)),
    )
    assert calls(clustered)[0].conf["runtimeConfig"] == given
    assert "runtimeConfig" not in calls(further)[0].conf
    (asked,) = planned(default=network(plugin, ips=("10.0.0.7",)), runtimeConfig=runtime)
    assert calls(asked)[0].conf["runtimeConfig"] == {**given, "ips": ["10.0.0.7"]}, "the pod's wish comes first"


def test_versions_of_a_list() -> None:
    def version(**more: Any) -> str:
        return read_conflist(json.dumps({"name": "a", "plugins": [MACVLAN], **more}), where="x").cni_version

    assert version(cniVersion="0.4.0", cniVersions=["0.3.1", "1.0.0", "9.0.0"]) == "1.0.0"
    assert version(cniVersions=["1.0.0", "0.4.0"]) == "1.0.0"
    assert version(cniVersion="1.1.0", cniVersions=["1.0.0"]) == "1.1.0"
    assert version(cniVersion="0.2.0", cniVersions=[]) == "0.2.0"
    with pytest.raises(InvalidConfig, match=r'x: cniVersions: "1\.0\.0" is not valid'):
        version(cniVersions="1.0.0")


@pytest.mark.parametrize(("said", "off"), [(True, True), ("Yes", True), ("0", False), (None, False), (False, False)])
def test_lists_that_cannot_be_checked(said: object, off: bool) -> None:
    (_, one) = planned(network({**ORIGINAL, "disableCheck": said}))
    assert one.unchecked is off


@pytest.mark.parametrize("field", ["disableCheck", "disableGC"])
def test_a_word_that_is_neither_on_nor_off(field: str) -> None:
    with pytest.raises(InvalidConfig, match=rf'kube-system/lan: spec\.config: {field}: "maybe"'):
        planned(network({**ORIGINAL, field: "maybe"}))


@pytest.mark.parametrize(
    ("code", "made", "over"),
    [
        (1, None, True),  # it will never take this version, and so it never has
        (999, None, False),  # nobody knows
        (999, {("net1", "a")}, False),
        (999, {("net2", "a")}, True),
        (1, {("net1", "a")}, False),
    ],
)
def test_whose_del_has_to_succeed_behind_an_add_that_did_not(
    code: int, made: set[tuple[str, str]] | None, over: bool
) -> None:
    assert was_not_made(DelegateFailed(code, "no"), ("net1", "a"), made) is over
    assert was_not_made(InvalidConfig("there is no such plugin"), ("net1", "a"), made)
    assert not was_not_made(TryAgainLater("it did not end"), ("net1", "a"), set())


def test_what_cannot_be_is_said_before_anything_is_done() -> None:
    with pytest.raises(InvalidConfig, match="interface eth0 is another network's"):
        planned(network(interface="eth0"))
    with pytest.raises(InvalidConfig, match='NetworkAttachmentDefinition kube-system/lan: mtu: "x"'):
        planned(network({**MACVLAN, "mtu": "x"}))
    with pytest.raises(IncompatibleVersion, match=r'kube-system/lan: cniVersion: "7\.7\.7" is not supported'):
        planned(network({**MACVLAN, "cniVersion": "7.7.7"}))


def test_network_status() -> None:
    result = Result(
        interfaces=(Interface(name="eth0", mac="02:00:00:00:00:01", mtu=1500, sandbox="/run/netns/x"),),
        ips=(IpConfig(address="10.0.0.2/24", interface=0), IpConfig(address="fd00::2/64", interface=0)),
        routes=(RouteConfig(dst="0.0.0.0/0", gw="10.0.0.1"), RouteConfig(dst="10.9.0.0/16", gw="10.0.0.3")),
    )
    text = network_status(
        [
            Attached(ifname="eth0", name="spiderpool", plugins=("{}",), result=result),
            Attached(ifname="net1", network="ns/lan", name="lan", plugins=("{}",)),
        ]
    )
    assert json.loads(text) == [
        {
            "name": "spiderpool",
            "interface": "eth0",
            "ips": ["10.0.0.2", "fd00::2"],
            "mac": "02:00:00:00:00:01",
            "mtu": 1500,
            "default": True,
            "dns": {},
            "gateway": ["10.0.0.1"],
        },
        {"name": "ns/lan", "interface": "net1", "ips": [], "dns": {}},
    ]
