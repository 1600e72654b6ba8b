"""Virtual functions: from sriov-cni's keys to a plan, which one is free, messages, sysfs, and the kubelet's list."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from api.wire import PodRef
from cni import devices
from cni.errors import CniError, InvalidConfig, IoFailure, TryAgainLater
from cni.journal import JournalEntry, decode
from cni.netlink import message, vfinfo
from cni.netlink.pci import PciBus
from cni.sriov import (
    LINK_STATES,
    PfView,
    VfHeld,
    VfPlan,
    VfSeen,
    VfSettings,
    VfVlan,
    free_vf,
    settings_differences,
    vf_plan,
    with_rate,
)
from tests.rules.test_cni_netlink import INDEX, encoded, plain
from tests.rules.test_cni_protocol import CONF, invoke

SRIOV = {**{key: value for key, value in CONF.items() if key not in {"master", "mode"}}, "type": "sriov"}
PCI = "0000:01:10.2"


def plan(**keys: Any) -> VfPlan:
    return vf_plan(invoke({**SRIOV, **keys}, type="sriov"))


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_what_a_device_plugin_and_a_spidermultusconfig_say() -> None:
    assert plan(deviceID=PCI, vlan=0, min_tx_rate=0, max_tx_rate=0) == VfPlan(
        netns="/run/netns/pod", ifname="eth0", pci=PCI, settings=VfSettings(vlan=VfVlan(), rates=(0, 0))
    )


def test_everything() -> None:
    made = plan(
        deviceID="0000:AF:10.2",
        master="ignored",
        mac="02:00:00:00:00:0A",
        mtu=1400,
        vlan=100,
        vlanQoS=3,
        vlanProto="802.1AD",
        min_tx_rate=10,
        max_tx_rate=200,
        spoofchk="off",
        trust="on",
        link_state="enable",
    )
    assert (made.pci, made.pf, made.mtu) == ("0000:af:10.2", "", 1400)
    assert made.settings == VfSettings(
        vlan=VfVlan(id=100, qos=3, protocol="802.1ad"),
        mac="02:00:00:00:00:0a",
        rates=(10, 200),
        spoofchk=False,
        trust=True,
        link_state="enable",
    )


def test_only_what_is_there_is_asked_for() -> None:
    assert not plan(deviceID=PCI).settings.said


def test_the_runtime_has_the_last_word_on_the_device() -> None:
    assert plan(pciBusID="0000:01:10.6").pci == "0000:01:10.6"
    assert plan(pciBusID="0000:01:10.6", deviceID="0000:01:10.4").pci == "0000:01:10.4"
    named = plan(pciBusID="0000:01:10.6", deviceID="0000:01:10.4", runtimeConfig={"deviceID": PCI})
    assert named.pci == PCI


def test_a_free_one_of_a_pf() -> None:
    assert (plan(master="eth1").pf, plan(master="eth1").pci) == ("eth1", "")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, ("deviceID", "missing")),
        ({"deviceID": "eth1"}, ("deviceID", '"eth1"')),
        ({"deviceID": "0000:01:10.9"}, ("deviceID", '"0000:01:10.9"')),
        ({"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}, ("runtimeConfig.deviceID", '"mlx5_core.sf.4"')),
        ({"vlan": 4095}, ("vlan", "4095")),
        ({"vlan": -1}, ("vlan", "-1")),
        ({"vlan": "7"}, ("vlan", '"7"')),
        ({"vlan": 7, "vlanQoS": 8}, ("vlanQoS", "8")),
        ({"vlanQoS": 0}, ("vlanQoS", "0", "vlan is missing")),
        ({"vlanProto": "802.1q"}, ("vlanProto", '"802.1q"', "vlan is missing")),
        ({"vlan": 0, "vlanQoS": 3}, ("vlanQoS", "3", "vlan is 0")),
        ({"vlan": 0, "vlanProto": "802.1ad"}, ("vlanProto", '"802.1ad"', "vlan is 0")),
        ({"vlan": 7, "vlanProto": "qinq"}, ("vlanProto", '"qinq"', "802.1ad")),
        ({"min_tx_rate": -1}, ("min_tx_rate", "-1")),
        ({"max_tx_rate": 1 << 32}, ("max_tx_rate", str(1 << 32))),
        ({"min_tx_rate": 300, "max_tx_rate": 200}, ("min_tx_rate", "300", "200")),
        ({"spoofchk": "yes"}, ("spoofchk", '"yes"', "on, off")),
        ({"trust": True}, ("trust", "true")),
        ({"link_state": "up"}, ("link_state", '"up"', "enable")),
        ({"mac": "01:00:00:00:00:01"}, ("mac", "01:00:00:00:00:01")),
        ({"mtu": -1}, ("mtu", "-1")),
        ({"linkInContainer": True}, ("linkInContainer", "true")),
    ],
)
def test_what_cannot_be_is_said_with_key_and_value(keys: dict[str, Any], said: tuple[str, ...]) -> None:
    body = {"deviceID": PCI, **keys} if keys and "runtimeConfig" not in keys else keys
    with pytest.raises(CniError) as refused:
        plan(**body)
    assert all(word in str(refused.value) for word in said), str(refused.value)


def test_a_rate_of_the_pod_counts_where_the_configuration_has_none() -> None:
    held = VfHeld(pci=PCI, pf="0000:01:00.0", number=0, settings=VfSettings(rates=(0, 0)))
    assert with_rate(plan(deviceID=PCI), 50, held).settings.rates == (0, 50)
    assert with_rate(plan(deviceID=PCI, min_tx_rate=80), 50, held).settings.rates == (50, 50)
    assert with_rate(plan(deviceID=PCI, max_tx_rate=0), 50, held).settings.rates == (0, 50)
    assert with_rate(plan(deviceID=PCI, max_tx_rate=70), 50, held).settings.rates == (0, 70)
    assert with_rate(plan(deviceID=PCI), 0, held).settings.rates is None
    # Somebody has limited it on the node: the stricter one counts, unless the configuration says that there is none.
    held = replace(held, settings=VfSettings(rates=(10, 100)))
    assert with_rate(plan(deviceID=PCI), 50, held).settings.rates == (10, 50)
    assert with_rate(plan(deviceID=PCI), 200, held).settings.rates == (10, 100)
    assert with_rate(plan(deviceID=PCI, max_tx_rate=0), 200, held).settings.rates == (0, 200)


# -- the choice --------------------------------------------------------------------------------------------------------


def vf(number: int, **fields: Any) -> VfSeen:
    return VfSeen(number=number, pci=f"0000:01:10.{number}", **{"driver": "igbvf", "ifname": f"vf{number}", **fields})


def test_the_first_that_nobody_uses_is_chosen() -> None:
    vfs = (
        vf(0),
        vf(1, driver="vfio-pci", ifname=""),
        vf(2, ifname=""),
        vf(3, addresses=("10.0.0.1/24",)),
        vf(4, uppers=("bond0",)),
        vf(5, driver="", ifname=""),
        vf(6),
        vf(7),
    )
    view = PfView(pci="0000:01:00.0", ifname="eth1", vfs=vfs)
    assert free_vf(view, {"0000:01:10.0": "pod a/b"}).number == 6
    with pytest.raises(TryAgainLater) as full:
        free_vf(view, {one.pci: "pod a/b" for one in vfs if one.number in {0, 6, 7}})
    for reason in ("held by pod a/b", "vfio-pci", "not on the node", "10.0.0.1/24", "bond0", "no driver", '"eth1"'):
        assert reason in str(full.value)


def test_a_nic_without_virtual_functions_says_so() -> None:
    with pytest.raises(InvalidConfig, match=r"eth1.*sriov_numvfs"):
        free_vf(PfView(pci="0000:01:00.0", ifname="eth1"), {})


# -- messages ----------------------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 255)
VLANS = st.builds(
    VfVlan, id=st.integers(1, 4094), qos=st.integers(0, 7), protocol=st.sampled_from(["802.1q", "802.1ad"])
)
RATES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
MACS = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))
SETTINGS = st.builds(
    VfSettings,
    vlan=st.none() | VLANS,
    mac=st.just("") | MACS,
    rates=st.none() | RATES,
    spoofchk=st.none() | st.booleans(),
    trust=st.none() | st.booleans(),
    link_state=st.sampled_from(["", *LINK_STATES]),
)


def theirs(index: int, **attribute: Any) -> bytes:
    ((name, value),) = attribute.items()
    listed = {"attrs": [("IFLA_VF_INFO", {"attrs": [(f"IFLA_VF_{name}", value)]})]}
    return plain(encoded(ifinfmsg, {"index": index}, [("IFLA_VFINFO_LIST", listed)]), 16)


@given(index=INDEX, number=NUMBERS, mac=MACS, rates=RATES, on=st.booleans(), state=st.sampled_from(LINK_STATES))
def test_settings(*, index: int, number: int, mac: str, rates: tuple[int, int], on: bool, state: str) -> None:
    def ours(name: str, value: Any) -> bytes:
        return plain(vfinfo.body(index, number, name, value), 16)

    least, most = rates
    assert ours("mac", mac) == theirs(index, MAC={"vf": number, "mac": mac})
    assert ours("rates", rates) == theirs(index, RATE={"vf": number, "min_tx_rate": least, "max_tx_rate": most})
    assert ours("spoofchk", on) == theirs(index, SPOOFCHK={"vf": number, "spoofchk": on})
    assert ours("trust", on) == theirs(index, TRUST={"vf": number, "trust": on})
    assert ours("link_state", state) == theirs(index, LINK_STATE={"vf": number, "link_state": LINK_STATES.index(state)})


@given(index=INDEX, number=NUMBERS, vlan=VLANS)
def test_vlan(index: int, number: int, vlan: VfVlan) -> None:
    tag = {
        "vf": number,
        "vlan": vlan.id,
        "qos": vlan.qos,
        "proto": {"802.1q": 0x8100, "802.1ad": 0x88A8}[vlan.protocol],
    }
    value = {"attrs": [("IFLA_VF_VLAN_INFO", tag)]}
    made = vfinfo.body(index, number, "vlan", vlan)
    # struct ifla_vf_vlan_info has sixteen bytes, and the kernel wants all of them; pyroute2 leaves out the last two.
    same = plain(made, 16).replace(bytes.fromhex("14000100"), bytes.fromhex("12000100"))
    assert same == theirs(index, VLAN_LIST=value) and made[-20:-16] == bytes.fromhex("14000100")


@given(seen=st.dictionaries(NUMBERS, SETTINGS.filter(lambda one: one.mac), max_size=4))
def test_settings_read_back(seen: dict[int, VfSettings]) -> None:
    parts = []
    for number, settings in seen.items():
        bodies = [vfinfo.body(1, number, name, value)[16:] for name, value in settings.said.items()]
        lists = [message.attributes(memoryview(one))[22] for one in bodies]
        infos = [message.attributes(one)[1] for one in lists]
        parts.append(message.nested(1, *(bytes(one) for one in infos)))
    body = memoryview(bytes(16) + message.nested(22, *parts))
    assert vfinfo.decode(body) == seen


def test_what_a_driver_does_not_tell_is_unknown() -> None:
    fields = [
        message.attribute(1, vfinfo._MAC.pack(3, bytes(6))),
        message.attribute(4, vfinfo._NUMBER.pack(3, 0xFFFFFFFF)),
        message.attribute(2, vfinfo._VLAN.pack(3, 7, 2)),
    ]
    body = memoryview(bytes(16) + message.nested(22, message.nested(1, *fields)))
    assert vfinfo.decode(body) == {3: VfSettings(mac="00:00:00:00:00:00", vlan=VfVlan(id=7, qos=2))}


@given(wanted=SETTINGS, seen=SETTINGS)
def test_differences_are_what_would_be_sent(wanted: VfSettings, seen: VfSettings) -> None:
    missing = wanted.but(seen)
    assert len(settings_differences(wanted, seen)) == len(missing.said)
    assert all(seen.said.get(name) != value == wanted.said[name] for name, value in missing.said.items())
    assert not wanted.but(wanted).said


def test_differences_in_words() -> None:
    wanted = VfSettings(vlan=VfVlan(id=7), rates=(0, 100), trust=True, link_state="enable")
    assert settings_differences(wanted, VfSettings(vlan=VfVlan(), rates=(0, 0), trust=False)) == [
        "its vlan is no VLAN, not VLAN 7, qos 0, 802.1q",
        "its rates is 0 to any Mb/s, not 0 to 100 Mb/s",
        "its trust is off, not on",
        "its link_state is unknown, not enable",
    ]


# -- the journal -------------------------------------------------------------------------------------------------------


@given(settings=SETTINGS)
def test_what_a_vf_was_before_survives_the_journal(settings: VfSettings) -> None:
    held = VfHeld(pci=PCI, pf="0000:01:00.0", number=1, ifname="vf1", mac="02:00:00:00:00:01", settings=settings)
    entry = JournalEntry(container_id="c", ifname="net1", pod=PodRef(namespace="a", name="b"), vf=held)
    assert decode(msgspec.json.encode(entry) + b"\n") == entry


# -- sysfs -------------------------------------------------------------------------------------------------------------


class Tree:
    """A sysfs with one PF, 0000:01:00.0, and its VFs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.device("0000:01:00.0", "igb", "eth1")

    def device(self, pci: str, driver: str = "", ifname: str = "") -> Path:
        folder = self.root / "bus/pci/devices" / pci
        (folder / "net").mkdir(parents=True)
        if driver:
            (folder / "driver").symlink_to(f"../../../bus/pci/drivers/{driver}")
        if ifname:
            self.interface(pci, ifname)
        return folder

    def interface(self, pci: str, ifname: str, port: str = "") -> None:
        (self.root / "bus/pci/devices" / pci / "net" / ifname).mkdir()
        folder = self.root / "class/net" / ifname
        folder.mkdir(parents=True)
        (folder / "device").symlink_to(f"../../../{pci}")
        if port:
            (folder / "phys_port_name").write_text(f"{port}\n")

    def virtual(self, number: int, pci: str, driver: str = "igbvf", ifname: str = "") -> None:
        folder = self.device(pci, driver, ifname)
        (folder / "physfn").symlink_to("../0000:01:00.0")
        (self.root / f"bus/pci/devices/0000:01:00.0/virtfn{number}").symlink_to(f"../{pci}")


def test_sysfs(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for number in (10, 2, 0):
        tree.virtual(number, f"0000:01:1{number // 8}.{number % 8}", ifname=f"vf{number}" if number else "")
    (tmp_path / "class/net/vf2/upper_br0").symlink_to("x")
    (tmp_path / "class/net/vf2/lower_vf9").symlink_to("x")
    bus = PciBus(tmp_path)
    assert list(bus.virtual_functions("0000:01:00.0")) == [0, 2, 10]
    assert bus.virtual_functions("0000:01:00.0")[10] == "0000:01:11.2"
    assert bus.physical_function("0000:01:10.2") == "0000:01:00.0"
    assert (bus.interface("0000:01:10.2"), bus.interface("0000:01:10.0")) == ("vf2", "")
    assert (bus.device("vf2"), bus.device("eth1"), bus.device("lo")) == ("0000:01:10.2", "0000:01:00.0", "")
    assert bus.driver("0000:01:10.2") == "igbvf"
    assert bus.uppers("vf2") == ("br0",)
    assert bus.has("0000:01:10.2") and not bus.has("0000:02:10.2") and not bus.has("")


def test_sysfs_of_what_is_not_there(tmp_path: Path) -> None:
    bus = PciBus(tmp_path)
    assert (bus.physical_function("x"), bus.driver("x"), bus.interface("x"), bus.device("x")) == ("", "", "", "")
    assert (bus.virtual_functions("x"), bus.uppers("x")) == ({}, ())


def test_a_pf_in_switchdev_mode_is_not_taken_for_one_of_its_representors(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.device("0000:02:00.0", "mlx5_core")
    for ifname, port in (("enp2s0_0", "pf0vf0"), ("enp2s0_1", "c1pf0vf1"), ("enp2s0np0", "p0")):
        tree.interface("0000:02:00.0", ifname, port)
    assert PciBus(tmp_path).interface("0000:02:00.0") == "enp2s0np0"


# -- the kubelet's list of devices -------------------------------------------------------------------------------------


def checkpoint(*entries: tuple[str, str, str, Any]) -> bytes:
    listed = [
        {"PodUID": uid, "ContainerName": name, "ResourceName": resource, "DeviceIDs": ids, "AllocResp": "CgIKAA=="}
        for uid, name, resource, ids in entries
    ]
    data = {"PodDeviceEntries": listed or None, "RegisteredDevices": {"intel.com/vf": ["0000:01:10.0"]}}
    return msgspec.json.encode({"Data": data, "Checksum": 3412345678})


def test_the_devices_of_a_pod() -> None:
    text = checkpoint(
        ("uid-1", "app", "intel.com/vf", {"1": ["0000:81:10.0"], "-1": ["0000:01:10.2"], "0": ["0000:03:02.1"]}),
        ("uid-2", "app", "intel.com/vf", {"-1": ["0000:01:10.4"]}),
        ("uid-1", "app", "nvidia.com/gpu", {"0": ["GPU-1"]}),
        ("uid-1", "side", "intel.com/vf", {"0": ["0000:03:02.3"], "1": None}),
    )
    assert devices.decode(text, "uid-1") == {
        "intel.com/vf": ("0000:01:10.2", "0000:03:02.1", "0000:81:10.0", "0000:03:02.3"),
        "nvidia.com/gpu": ("GPU-1",),
    }
    assert devices.decode(text, "uid-3") == {}


def test_a_device_that_an_init_container_had_before_is_one() -> None:
    text = checkpoint(
        ("uid-1", "init", "intel.com/vf", {"0": ["0000:01:10.2"]}),
        ("uid-1", "app", "intel.com/vf", {"0": ["0000:01:10.2", "0000:01:10.4"]}),
    )
    assert devices.decode(text, "uid-1") == {"intel.com/vf": ("0000:01:10.2", "0000:01:10.4")}


def test_an_old_kubelet_lists_them_without_numa_nodes() -> None:
    text = checkpoint(("uid-1", "app", "intel.com/vf", ["0000:01:10.2", "0000:01:10.4"]))
    assert devices.decode(text, "uid-1") == {"intel.com/vf": ("0000:01:10.2", "0000:01:10.4")}


def test_a_node_without_device_plugins(tmp_path: Path) -> None:
    assert devices.decode(checkpoint(), "uid-1") == {}
    assert devices.read("uid-1", path=tmp_path / "none") == {}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"Data": 5}', b"\xff", checkpoint()[:-9]])
def test_a_list_that_is_none(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(text)
    with pytest.raises(IoFailure, match="devices"):
        devices.read("uid-1", path=tmp_path / "list")


def test_the_nth_network_gets_the_nth_device() -> None:
    held = devices.Devices({"intel.com/a": ("a1", "a2"), "intel.com/b": ("b1",)})
    wanted = ["intel.com/a", "intel.com/b", "intel.com/a", "intel.com/a", "intel.com/c"]
    assert [held.take(resource) for resource in wanted] == ["a1", "b1", "a2", "", ""]
