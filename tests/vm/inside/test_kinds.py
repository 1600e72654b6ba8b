"""What the guest's kernel can do, link kind by link kind, without our code: what the other tests here build on."""

import errno
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cni.netlink.support import knows_link_kind
from tests.netns import Netns
from tests.node.conftest import Segment, talk

pytestmark = pytest.mark.node

type Namespaces = Callable[[], Netns]

IPVLAN_L2, IPVLAN_L3, IPVLAN_L3S = 0, 1, 2
MACVLAN_BRIDGE = 4
ACTIVE_BACKUP = 1


def make(netns: Netns, ifname: str, *, parent: str, **settings: Any) -> None:
    """A link in a namespace, on a parent here."""
    with IPRoute() as route, netns.path.open() as namespace:
        index = route.link_lookup(ifname=parent)[0]
        route.link("add", ifname=ifname, link=index, net_ns_fd=namespace.fileno(), **settings)


def configure(netns: Netns, ifname: str, *addresses: str) -> None:
    """Addresses, each with its prefix length, and up."""

    def inside() -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname=ifname)[0]
            for one in addresses:
                address, _, length = one.partition("/")
                route.addr("add", index=index, address=address, prefixlen=int(length), flags=2 if ":" in one else 0)
            route.link("set", index=index, state="up")

    netns.run(inside)


def silent(server: Netns, client: Netns, address: str) -> bool:
    """Whether the server, which has the address, cannot be reached."""
    try:
        talk(server, client, address, timeout=1)
    except OSError as error:
        if isinstance(error, TimeoutError) or error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}:
            return True
        raise
    return False


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "vlan", "bond", "dummy", "vrf", "veth", "bridge", "ifb"])
def test_kinds_that_there_are(kind: str) -> None:
    assert knows_link_kind(kind)


def test_a_kind_that_there_is_not() -> None:
    assert not knows_link_kind("nonsense")


@pytest.mark.parametrize("mode", [IPVLAN_L2, IPVLAN_L3, IPVLAN_L3S], ids=["l2", "l3", "l3s"])
def test_ipvlan(segment: Segment, namespaces: Namespaces, mode: int) -> None:
    one, two = namespaces(), namespaces()
    for netns, number in ((one, 5), (two, 6)):
        make(netns, "eth0", parent="up0", kind="ipvlan", mode=mode)
        configure(netns, "eth0", f"10.77.0.{number}/24", f"fd77::{number}/64")
    assert talk(one, two, "10.77.0.5") == b"10.77.0.6"
    assert talk(one, two, "fd77::5") == b"fd77::6"
    if mode == IPVLAN_L2:
        assert talk(segment.neighbour, one, "10.77.0.1") == b"10.77.0.5"
        assert talk(segment.neighbour, one, "fd77::1") == b"fd77::5"
    two.run(lambda: _delete("eth0"))
    assert silent(one, two, "10.77.0.5")


def test_a_parent_has_macvlan_or_ipvlan(segment: Segment, namespaces: Namespaces) -> None:
    one = namespaces()
    make(one, "eth0", parent="up0", kind="ipvlan", mode=IPVLAN_L2)
    with pytest.raises(NetlinkError) as refused:
        make(one, "eth1", parent="up0", kind="macvlan", mode=MACVLAN_BRIDGE)
    assert refused.value.code == errno.EBUSY


def test_vlan(segment: Segment, namespaces: Namespaces) -> None:
    one, two, other = namespaces(), namespaces(), namespaces()
    for netns, parent, number, tag in ((one, "up0", 5, 100), (two, "up1", 6, 100), (other, "up1", 7, 200)):
        make(netns, "eth0", parent=parent, kind="vlan", vlan_id=tag)
        configure(netns, "eth0", f"10.78.0.{number}/24")
    assert talk(one, two, "10.78.0.5") == b"10.78.0.6"
    assert silent(one, other, "10.78.0.5")
    with pytest.raises(NetlinkError) as refused:
        make(namespaces(), "eth0", parent="up0", kind="vlan", vlan_id=100)
    assert refused.value.code == errno.EEXIST


def test_bond(segment: Segment) -> None:
    def slave(route: IPRoute, ifname: str) -> int:
        index: int = route.link_lookup(ifname=ifname)[0]
        route.link("set", index=index, state="down")
        return index

    node = segment.container()
    with IPRoute() as route, node.path.open() as namespace:
        slaves = [slave(route, name) for name in ("up0", "up1")]
        for index in slaves:
            route.link("set", index=index, net_ns_fd=namespace.fileno())

    def bond() -> None:
        with IPRoute() as route:
            route.link("add", ifname="bond0", kind="bond", bond_mode=ACTIVE_BACKUP, bond_miimon=100)
            master = route.link_lookup(ifname="bond0")[0]
            for name in ("up0", "up1"):
                route.link("set", index=route.link_lookup(ifname=name)[0], master=master)

    node.run(bond)
    configure(node, "bond0", "10.77.0.5/24")
    assert talk(segment.neighbour, node, "10.77.0.1") == b"10.77.0.5"
    cut("up0-port")
    # The bond looks at its slaves now and then, and TCP says again what was lost before.
    assert talk(segment.neighbour, node, "10.77.0.1", timeout=15) == b"10.77.0.5"
    cut("up1-port")
    assert silent(segment.neighbour, node, "10.77.0.1")


def cut(ifname: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], state="down")


def test_port_security(segment: Segment, namespaces: Namespaces) -> None:
    """A switch that lets a node's port have one MAC and a set of addresses, as public clouds do."""
    with IPRoute() as route:
        mac = route.get_links(route.link_lookup(ifname="up0")[0])[0].get_attr("IFLA_ADDRESS")
    rules = f"""
        table bridge security {{
            chain ports {{
                type filter hook prerouting priority 0;
                iifname "up0-port" ether saddr != {mac} drop
                iifname "up0-port" arp saddr ip != {{ 10.77.0.5, 10.77.0.6 }} drop
                iifname "up0-port" ip saddr != {{ 10.77.0.5, 10.77.0.6 }} drop
            }}
        }}
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        for number, kind, mode, heard in (
            (5, "ipvlan", IPVLAN_L2, True),
            (7, "ipvlan", IPVLAN_L2, False),
            (6, "macvlan", MACVLAN_BRIDGE, False),
        ):
            pod = segment.container()
            make(pod, "eth0", parent="up0", kind=kind, mode=mode)
            configure(pod, "eth0", f"10.77.0.{number}/24")
            if heard:
                assert talk(segment.neighbour, pod, "10.77.0.1", timeout=15) == b"10.77.0.5"
            else:
                assert silent(segment.neighbour, pod, "10.77.0.1"), (kind, number)
            pod.run(lambda: _delete("eth0"))
    finally:
        subprocess.run(["nft", "delete", "table", "bridge", "security"], check=True)


def _delete(ifname: str) -> None:
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname=ifname)[0])


def test_interfaces_of_a_namespace_are_its_own(namespaces: Namespaces) -> None:
    one = namespaces()
    assert one.run(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]
