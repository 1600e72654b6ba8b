"""Real virtual functions: igb, as QEMU plays it. What it cannot do is what the errors are tested with."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tests.netns import Netns
from tests.node.conftest import talk
from tests.vm.inside.nics import DEVICES, PhysicalNic, VirtualFunction, wait_until
from tests.vm.inside.test_kinds import configure, silent

pytestmark = pytest.mark.node

type Namespaces = Callable[[], Netns]

MAC = "02:00:00:00:77:05"


def test_seven_functions(nic: PhysicalNic) -> None:
    assert [one.index for one in nic.functions] == list(range(7))
    assert len({one.ifname for one in nic.functions}) == 7
    for one in nic.functions:
        assert (DEVICES / one.address / "physfn").resolve().name == nic.address
        assert (DEVICES / one.address / "driver").resolve().name == "igbvf"


def test_traffic_between_functions(nic: PhysicalNic, namespaces: Namespaces) -> None:
    one, two = namespaces(), namespaces()
    lend(nic.functions[0], one, 5)
    lend(nic.functions[1], two, 6)
    assert talk(one, two, "10.79.0.5") == b"10.79.0.6"
    assert talk(one, two, "fd79::5") == b"fd79::6"


@pytest.mark.parametrize("second", [100, 200], ids=["one VLAN", "two VLANs"])
def test_vlans_of_functions(nic: PhysicalNic, namespaces: Namespaces, second: int) -> None:
    one, two = namespaces(), namespaces()
    for number, netns, vlan in ((5, one, 100), (6, two, second)):
        function = nic.functions[number]
        nic.set(function, vlan={"vlan": vlan, "qos": 0})
        lend(function, netns, number)
    if second == 100:
        assert talk(one, two, "10.79.0.5") == b"10.79.0.6"
    else:
        assert silent(one, two, "10.79.0.5")


def test_a_mac_that_the_function_takes_before_the_nic_insists(nic: PhysicalNic, namespaces: Namespaces) -> None:
    """The other way round it keeps its own, the NIC listens for the new one, and nobody hears a word."""
    one, two, function = namespaces(), namespaces(), nic.functions[0]
    set_mac(function, MAC)
    nic.set(function, mac=MAC)
    lend(function, one, 5)
    lend(nic.functions[1], two, 6)
    assert talk(one, two, "10.79.0.5") == b"10.79.0.6"
    nic.set(nic.functions[2], mac=MAC)
    with pytest.raises(NetlinkError) as refused:
        set_mac(nic.functions[2], MAC)
    assert refused.value.code == errno.EADDRNOTAVAIL


def set_mac(function: VirtualFunction, mac: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=function.ifname)[0], address=mac)


def test_traffic_to_another_machine(nic: PhysicalNic, wire: str, namespaces: Namespaces) -> None:
    one, other = namespaces(), namespaces()
    lend(nic.functions[0], one, 5)
    with IPRoute() as route, other.path.open() as namespace:
        route.link("set", index=route.link_lookup(ifname=wire)[0], net_ns_fd=namespace.fileno())
    configure(other, wire, "10.79.0.9/24")
    wait_until(lambda: has_carrier(other, wire), 30)
    assert talk(one, other, "10.79.0.5") == b"10.79.0.9"
    assert talk(other, one, "10.79.0.9") == b"10.79.0.5"


def lend(function: VirtualFunction, netns: Netns, number: int) -> None:
    function.move(netns, "eth0")
    assert function.ifname == ""
    configure(netns, "eth0", f"10.79.0.{number}/24", f"fd79::{number}/64")
    wait_until(lambda: has_carrier(netns, "eth0"), 30)


def has_carrier(netns: Netns, ifname: str) -> bool:
    def inside() -> bool:
        with IPRoute() as route:
            (link,) = route.get_links(route.link_lookup(ifname=ifname)[0])
            return bool(link.get_attr("IFLA_CARRIER"))

    return netns.run(inside)


def test_settings_on_the_nic(nic: PhysicalNic) -> None:
    function = nic.functions[2]
    nic.set(function, mac=MAC)
    nic.set(function, vlan={"vlan": 100, "qos": 3})
    nic.set(function, rate={"max_tx_rate": 200, "min_tx_rate": 0})
    nic.set(function, spoofchk=0)
    nic.set(function, trust=1)
    assert nic.settings(function) == {
        "mac": MAC,
        "vlan": 100,
        "qos": 3,
        "max_tx_rate": 200,
        "min_tx_rate": 0,
        "spoofchk": 0,
        "trust": 1,
    }


def test_a_function_comes_home_when_its_namespace_dies(nic: PhysicalNic, namespaces: Namespaces) -> None:
    one = namespaces()
    function = nic.functions[3]
    function.move(one, "eth0")
    assert function.ifname == ""
    one.__exit__(None, None, None)
    wait_until(lambda: function.ifname != "", 30)
    # The name that it had there is the physical NIC's here.
    assert function.ifname.startswith("dev")


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"rate": {"min_tx_rate": 100, "max_tx_rate": 200}}, errno.EINVAL),
        ({"link_state": 1}, errno.EOPNOTSUPP),
    ],
    ids=["least rate", "link state"],
)
def test_what_an_igb_refuses(nic: PhysicalNic, settings: dict[str, object], number: int) -> None:
    with pytest.raises(NetlinkError) as refused:
        nic.set(nic.functions[0], **settings)
    assert refused.value.code == number


def test_more_functions_than_it_has(nic: PhysicalNic) -> None:
    assert Path(DEVICES, nic.address, "sriov_totalvfs").read_text().strip() == "7"
