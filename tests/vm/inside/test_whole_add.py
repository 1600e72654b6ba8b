"""Containers come and go on the kinds of links that only the guest has, through everything that an agent is.

One exec each: addresses that are probed for, the link, the pair of links to the node. A stranger has the addresses that
would be given first. Packets cross, and nothing is left.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from pyroute2 import IPRoute

from tests.node.conftest import Segment, talk
from tests.node.picture import picture
from tests.vm.inside.agent import HERE, CallFailed, Container, Node
from tests.vm.inside.nics import PhysicalNic
from tests.vm.inside.test_kinds import silent

pytestmark = [pytest.mark.node, pytest.mark.blocking]

POOL: dict[str, Any] = {"subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "ips": ["10.77.0.10-10.77.0.12"]}
POOL6: dict[str, Any] = {"subnet": "fd77::/64", "gateway": "fd77::1", "ips": ["fd77::10-fd77::12"]}
NODE = ("10.77.0.2", "fd77::2")
TAKEN = ("10.77.0.10", "fd77::10")
"""By the neighbour, who does not know that they are the pools' first."""
FREE = ("10.77.0.11", "fd77::11")
SETTINGS = {"vlan": 0, "max_tx_rate": 200, "trust": "on", "mtu": 1400}
"""Of a virtual function, which it has to lose."""


class Network(Struct, frozen=True):
    """What containers are attached to.

    Attributes:
        plugin: without addresses.
        nic: whose virtual functions they get, if that is what they get.
    """

    plugin: dict[str, Any]
    nic: PhysicalNic | None = None

    @property
    def one_exec(self) -> dict[str, Any]:
        """The plugin with all that it can do."""
        return {**self.plugin, "ipam": {"type": "spiderpool"}, "coordinator": {"mode": "auto"}}

    def state(self) -> object:
        """Of the virtual functions."""
        return self.nic.state() if self.nic is not None else None


@pytest.fixture(params=["ipvlan", "vlan", "sriov"])
def network(request: pytest.FixtureRequest, segment: Segment) -> Network:
    """The segment's neighbour is its gateway, and a stranger; the node has addresses in it, too."""
    _assign("up0", *NODE)
    if request.param == "vlan":
        segment.neighbour.run(_tag)
    segment.neighbour.run(lambda: _assign("tagged" if request.param == "vlan" else "host", *TAKEN))
    match request.param:
        case "ipvlan":
            return Network({"type": "ipvlan", "master": "up0"})
        case "vlan":
            return Network({"type": "vlan", "master": "up0", "vlanId": 100})
        case _:
            nic = request.getfixturevalue("uplink")
            return Network({"type": "sriov", "deviceID": nic.functions[2].address, **SETTINGS}, nic)


async def test_a_container_comes_and_goes(network: Network, segment: Segment, tmp_path: Path) -> None:
    functions = network.state()
    async with Node(tmp_path, POOL, POOL6, detect=True).serving() as node:
        one = Container(node, segment.container(), network.one_exec)
        result = await one.add()
        withheld, mac = await node.withheld(), segment.neighbour.run(lambda: _link("host"))["mac"]
        assert withheld.keys() == {*TAKEN} and all(mac in str(why) for why in withheld.values())
        assert [address.partition("/")[0] for address in one.addresses] == [*FREE]
        assert (await node.held()).records == [*FREE]
        link = one.netns.run(lambda: _link("eth0"))
        assert link == {"mac": result["interfaces"][0]["mac"], "mtu": network.plugin.get("mtu", 1500), "up": True}
        await one.check()
        for server, client, address, peer in (
            (segment.neighbour, one.netns, POOL["gateway"], FREE[0]),
            (segment.neighbour, one.netns, POOL6["gateway"], FREE[1]),
            (one.netns, segment.neighbour, FREE[0], POOL["gateway"]),
            (HERE, one.netns, NODE[0], FREE[0]),
            (one.netns, HERE, FREE[1], NODE[1]),
        ):
            assert (await asyncio.to_thread(talk, server, client, address, timeout=15)).decode() == peer
        # There is something to be left: the pair of links, and the node's way to it.
        there = picture(HERE) - node.links
        assert any(line.startswith("link veth") for line in there) and any(FREE[0] in line for line in there)
        assert (network.state() == functions) is (network.nic is None)
        one.netns.run(_lose_an_address)
        with pytest.raises(CallFailed, match=re.escape(FREE[0])):
            await one.check()
        await one.delete()
        assert await node.left(one) == []
        assert network.state() == functions
        assert await asyncio.to_thread(silent, segment.neighbour, one.netns, POOL["gateway"])
        await one.delete()


def _assign(ifname: str, *addresses: str) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        for one in addresses:
            length, flags = (64, {"flags": 2}) if ":" in one else (24, {})
            route.addr("add", index=index, address=one, prefixlen=length, **flags)


def _tag() -> None:
    """The neighbour is in the VLAN with the addresses that it has on the segment."""
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.flush_addr(index=host)
        route.link("add", ifname="tagged", kind="vlan", link=host, vlan_id=100)
        route.link("set", index=route.link_lookup(ifname="tagged")[0], state="up")
    _assign("tagged", "10.77.0.1", "fd77::1")


def _link(ifname: str) -> dict[str, Any]:
    with IPRoute() as route:
        (found,) = route.get_links(ifname=ifname)
        mac, mtu = found.get_attr("IFLA_ADDRESS"), found.get_attr("IFLA_MTU")
        return {"mac": mac, "mtu": mtu, "up": bool(found["flags"] & 1)}


def _lose_an_address() -> None:
    with IPRoute() as route:
        route.addr("del", index=route.link_lookup(ifname="eth0")[0], address=FREE[0], prefixlen=24)
