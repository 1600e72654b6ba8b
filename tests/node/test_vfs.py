"""Virtual functions are lent and given back on this kernel (`tests.node.played`).

The guest has real ones: tests/vm/inside/test_lending.py.
"""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni import sriov as rules
from cni.errors import InterfaceExists, InvalidConfig, InvalidNetns, KernelRefused, TryAgainLater
from cni.netlink import sriov, vfinfo
from cni.sriov import Returned, VfHeld, VfPlan, VfSettings, VfVlan
from tests.netns import Netns
from tests.node.played import PF, PLAIN, PlayedNic

pytestmark = pytest.mark.node


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedNic]:
    made = PlayedNic(tmp_path)
    made.play(monkeypatch.setattr)
    with IPRoute() as route:
        route.link("add", ifname="pf", kind="veth", peer={"ifname": "pf-x"})
    yield made
    with IPRoute() as route:
        for link in route.get_links():
            if link.get_attr("IFLA_IFNAME").endswith("-x") and route.link_lookup(index=link["index"]):
                with suppress(NetlinkError):
                    route.link("del", index=link["index"])


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Netns]:
    with ExitStack() as stack:
        yield stack.enter_context(Netns(tmp_path))


def held(machine: PlayedNic, pci: str) -> VfHeld:
    return replace(sriov.survey_vf(pci, bus=machine), mark=rules.mark("c1", "net1"), order=1)


def give(machine: PlayedNic, pod: Netns, one: VfHeld, *, settle: bool = False, sure: bool = False) -> Returned:
    return sriov.give_vf(str(pod.path), one, settle=settle, sure=sure, bus=machine)


def wanted(pod: Netns, pci: str, *, mtu: int = 1400, ifname: str = "net1", **settings: object) -> VfPlan:
    said = replace(VfSettings(vlan=VfVlan(id=100, qos=3), trust=True), **settings)
    return VfPlan(netns=str(pod.path), ifname=ifname, pci=pci, mtu=mtu, settings=said)


def state(machine: PlayedNic) -> object:
    with IPRoute() as route:
        links = {
            one.get_attr("IFLA_IFNAME"): (
                one.get_attr("IFLA_ADDRESS"),
                one.get_attr("IFLA_MTU"),
                one["flags"] & 0x301,  # up, promisc, allmulti
                one.get_attr("IFLA_IFALIAS"),
                one.get_attr("IFLA_TXQLEN"),
            )
            for one in route.get_links()
            if one.get_attr("IFLA_IFNAME") != "lo"
        }
    return links, machine.settings


def change(name: str, **what: object) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], **what)


def names(pod: Netns) -> list[str]:
    def look() -> list[str]:
        with IPRoute() as route:
            return sorted(one.get_attr("IFLA_IFNAME") for one in route.get_links())

    return pod.run(look)


@pytest.mark.parametrize("up", [False, True])
def test_there_and_back(machine: PlayedNic, pod: Netns, up: bool) -> None:
    pci = machine.plug("vf0")
    change("vf0", mtu=1450, ifalias="mine")
    if up:
        change("vf0", state="up")
    before = state(machine)
    one = held(machine, pci)
    plan = wanted(pod, pci)
    made = sriov.take_vf(plan, one, bus=machine)
    assert made is not None and (made.ifname, made.mtu, made.up) == ("net1", 1400, False)
    assert made.mac == one.mac and made.alias == one.mark
    assert machine.settings[0] == replace(PLAIN, vlan=VfVlan(id=100, qos=3), trust=True)
    assert "vf0" not in state(machine)[0]  # type: ignore[index]
    assert names(pod) == ["lo", "net1"]
    assert sriov.vf_differences(plan, one, bus=machine) == ["it is down"]
    # As the coordinator does, and as pods may that listen to others.
    pod.run(lambda: change("net1", txqlen=77, flags=0x300, change=0x300))
    assert give(machine, pod, one) is Returned.BACK
    assert state(machine) == before
    assert names(pod) == ["lo"]
    assert give(machine, pod, one) is Returned.BACK and state(machine) == before, "again"


@pytest.mark.parametrize(("mbps", "then"), [(50, 50), (200, 100)])
def test_a_limit_of_the_pod_beside_one_of_the_node(machine: PlayedNic, pod: Netns, mbps: int, then: int) -> None:
    pci = machine.plug("vf0")
    machine.set(0, rates=(0, 100))
    before = state(machine)
    one, plan = held(machine, pci), wanted(pod, pci)
    assert sriov.take_vf(plan, one, bus=machine) is not None
    sriov.limit_vf(one, mbps, bus=machine)
    assert machine.settings[0].rates == (0, then)
    assert sriov.vf_differences(rules.with_rate(plan, mbps, one), one, bus=machine) == ["it is down"]
    assert give(machine, pod, one) is Returned.BACK
    assert state(machine) == before


def test_what_is_so_already_is_not_sent(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    machine.refused = {"rates", "vlan", "spoofchk", "link_state"}
    plan = wanted(pod, pci, vlan=VfVlan(), rates=(0, 0), spoofchk=True)
    one = held(machine, pci)
    assert sriov.take_vf(plan, one, bus=machine) is not None
    assert machine.told == ["trust"]
    assert give(machine, pod, one) is Returned.BACK


@pytest.mark.parametrize("name", ["vlan", "rates", "spoofchk", "trust", "link_state"])
def test_what_the_driver_refuses_leaves_nothing(machine: PlayedNic, pod: Netns, name: str) -> None:
    pci = machine.plug("vf0")
    before = state(machine)
    machine.refused = {name}
    plan = wanted(pod, pci, rates=(0, 200), spoofchk=False, link_state="enable")
    with pytest.raises(KernelRefused, match=rf"{name} of VF 0 .* in its own words"):
        sriov.take_vf(plan, held(machine, pci), bus=machine)
    assert state(machine) == before
    assert names(pod) == ["lo"]


def test_what_cannot_be(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    before = state(machine)
    one = held(machine, pci)
    with pytest.raises(InvalidConfig, match=r"mtu: 9000 .* 1500, the MTU of pf"):
        sriov.take_vf(wanted(pod, pci, mtu=9000), one, bus=machine)
    with pytest.raises(InterfaceExists, match="CNI_IFNAME: lo"):
        sriov.take_vf(wanted(pod, pci, ifname="lo"), one, bus=machine)
    with pytest.raises(InvalidNetns, match="/none"):
        sriov.take_vf(replace(wanted(pod, pci), netns=f"{pod.path}/none"), one, bus=machine)
    with pytest.raises(InvalidNetns, match="own network namespace"):
        sriov.take_vf(replace(wanted(pod, pci), netns="/proc/thread-self/ns/net"), one, bus=machine)
    assert state(machine) == before


def test_names_that_both_ends_have(machine: PlayedNic, pod: Netns) -> None:
    """The node has an interface of the pod's name, the pod one of the node's."""
    pci, other = machine.plug("vf0"), machine.plug("net1")
    pod.run(lambda: _dummy("vf0"))
    before = state(machine)
    one = held(machine, pci)
    made = sriov.take_vf(wanted(pod, pci), one, bus=machine)
    assert made is not None and names(pod) == ["lo", "net1", "vf0", "vf0-other-x"]
    assert give(machine, pod, one) is Returned.BACK
    assert state(machine) == before
    assert machine.interface(other) == "net1"


def test_a_name_that_was_taken_meanwhile(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    one = held(machine, pci)
    assert sriov.take_vf(wanted(pod, pci), one, bus=machine) is not None
    _dummy("vf0")
    assert give(machine, pod, one) is Returned.MISNAMED
    assert machine.interface(pci) == "net1" and machine.settings[0] == PLAIN
    change("vf0", ifname="vf9")
    assert give(machine, pod, one) is Returned.BACK
    assert machine.interface(pci) == "vf0"


def test_found_on_the_node_under_any_name(machine: PlayedNic, pod: Netns) -> None:
    """As the kernel leaves it when the namespace dies; a real one comes back by itself."""
    pci = machine.plug("vf0")
    before = state(machine)
    one = held(machine, pci)
    machine.set(0, trust=True)
    change("vf0", ifname="dev7", ifalias=one.mark, mtu=1300)
    change("dev7", state="up")
    assert give(machine, pod, one) is Returned.BACK
    assert state(machine) == before


def test_its_own_name_as_an_alternative_one(machine: PlayedNic, pod: Netns) -> None:
    """As udev leaves it."""
    pci = machine.plug("vf0")
    one = held(machine, pci)
    change("vf0", ifname="dev7")
    with IPRoute() as route:
        route.link("property_add", index=route.link_lookup(ifname="dev7")[0], altname="vf0")
    assert give(machine, pod, one) is Returned.BACK
    assert machine.interface(pci) == "vf0"


def test_neither_here_nor_there(machine: PlayedNic, pod: Netns, tmp_path: Path) -> None:
    pci = machine.plug("vf0")
    one = held(machine, pci)
    machine.set(0, trust=True)
    with Netns(tmp_path) as elsewhere, elsewhere.path.open() as namespace:
        change("vf0", net_ns_fd=namespace.fileno())
        assert give(machine, pod, one) is Returned.LOST
        assert machine.settings[0].trust is True
        with pytest.raises(TryAgainLater, match="not on the node"):
            sriov.survey_vf(pci, bus=machine)
        assert give(machine, pod, one, settle=True) is Returned.LOST
        assert machine.settings[0] == PLAIN


def test_anothers_mark_is_a_reason_to_ask(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    before = state(machine)
    one = held(machine, pci)
    change("vf0", ifalias=rules.mark("c2", "net1"))
    machine.set(0, trust=True)
    assert give(machine, pod, one) is Returned.ANOTHERS
    assert machine.settings[0].trust is True
    assert give(machine, pod, one, sure=True) is Returned.BACK
    assert state(machine) == before


def test_a_nic_that_has_fewer_by_now(machine: PlayedNic, pod: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    pci = machine.plug("vf0")
    one = held(machine, pci)
    assert sriov.take_vf(wanted(pod, pci), one, bus=machine) is not None
    monkeypatch.setattr(vfinfo, "read", lambda *_: {})
    assert give(machine, pod, one) is Returned.BACK
    assert machine.interface(pci) == "vf0"


def test_what_is_no_more(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    one = held(machine, pci)
    machine.set(0, trust=True)
    assert give(machine, pod, replace(one, boot="another")) is Returned.GONE
    machine.forget()
    assert give(machine, pod, one) is Returned.GONE
    assert machine.settings[0].trust is True


def test_a_mac_address_that_the_pod_has_changed(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    before = state(machine)
    one = held(machine, pci)
    assert sriov.take_vf(wanted(pod, pci, mac="02:00:00:00:00:05"), one, bus=machine) is not None
    assert names(pod) == ["lo", "net1"]
    machine.know("02:00:00:00:00:05", pci)
    assert machine.settings[0].mac == "02:00:00:00:00:05"
    assert give(machine, pod, one) is Returned.BACK
    assert state(machine) == before


def test_which_one_is_meant(machine: PlayedNic) -> None:
    pci = machine.plug("vf0")
    for plan, words in (
        (VfPlan(netns="", ifname="", pci="0000:09:00.0"), r"deviceID: .* \"0000:09:00.0\""),
        (VfPlan(netns="", ifname="", pf="vf0"), r"master: \"vf0\" is no PCI device"),
        (VfPlan(netns="", ifname="", pf="none"), r"master: \"none\" is not on this node"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            sriov.physical_function(plan, bus=machine)
    assert sriov.physical_function(VfPlan(netns="", ifname="", pf="pf"), bus=machine) == PF
    assert sriov.physical_function(VfPlan(netns="", ifname="", pci=pci), bus=machine) == PF
    (seen,) = sriov.view_pf(PF, bus=machine).vfs
    assert (seen.pci, seen.ifname, seen.mark) == (pci, "vf0", "")


def test_an_announcement_waits_for_the_carrier(machine: PlayedNic, pod: Netns) -> None:
    pci = machine.plug("vf0")
    assert sriov.take_vf(wanted(pod, pci), held(machine, pci), bus=machine) is not None
    assert sriov.announce_vf(str(pod.path), "net1"), "it is down"
    pod.run(lambda: change("net1", state="up"))
    assert not sriov.announce_vf(str(pod.path), "net1"), "its peer is down"
    change("vf0-x", state="up")
    assert sriov.announce_vf(str(pod.path), "net1")
    assert sriov.announce_vf(f"{pod.path}/none", "net1")


def _dummy(ifname: str) -> None:
    with IPRoute() as route:
        route.link("add", ifname=ifname, kind="veth", peer={"ifname": f"{ifname}-other-x"})
