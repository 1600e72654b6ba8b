"""Real virtual functions: igb, as QEMU plays it. What it cannot do is what the errors are tested with."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tests.netns import Netns
from tests.node.conftest import talk
from tests.vm.inside.nics import DEVICES, PhysicalNic, wait_until
from tests.vm.inside.test_kinds import configure, silent

pytestmark = pytest.mark.node

type Namespaces = Callable[[], Netns]

MAC = "02:00:00:00:77:05"
INTEL_FUNCTION = "0x1520"


def test_seven_functions(nic: PhysicalNic) -> None:
    assert [one.index for one in nic.functions] == list(range(7))
    assert len({one.ifname for one in nic.functions}) == 7
    for one in nic.functions:
        assert (DEVICES / one.address / "physfn").resolve().name == nic.address
        assert (DEVICES / one.address / "driver").resolve().name == "igbvf"


def test_traffic_between_functions(nic: PhysicalNic, namespaces: Namespaces) -> None:
    one, two = namespaces(), namespaces()
    for netns, function, number in ((one, nic.functions[0], 5), (two, nic.functions[1], 6)):
        function.move(netns, "eth0")
        assert function.ifname == ""
        configure(netns, "eth0", f"10.79.0.{number}/24", f"fd79::{number}/64")
        wait_until(lambda netns=netns: has_carrier(netns, "eth0"), 30)
    assert talk(one, two, "10.79.0.5") == b"10.79.0.6"
    assert talk(one, two, "fd79::5") == b"fd79::6"
    nic.set(nic.functions[0], vlan={"vlan": 100, "qos": 0})
    assert silent(one, two, "10.79.0.5")


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
