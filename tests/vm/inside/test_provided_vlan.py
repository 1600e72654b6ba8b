"""Containers on VLAN links that a network provider decides on, through everything that an agent is.

The provider is a real server on loopback. It is asked after the pool and before the link is made. Packets cross only
with its VLAN id.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.node.conftest import Segment, talk
from tests.node.picture import picture
from tests.provider import ProviderServer
from tests.vm.inside.agent import CallFailed, Container, Node

pytestmark = [pytest.mark.node, pytest.mark.blocking]

POOL: dict[str, Any] = {"subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "ips": ["10.77.0.10-10.77.0.12"]}
POOL6: dict[str, Any] = {"subnet": "fd77::/64", "gateway": "fd77::1", "ips": ["fd77::10-fd77::12"]}
AUTO: dict[str, Any] = {
    "type": "vlan", "master": "up0", "vlanMode": "auto", "ipam": {"type": "spiderpool"},
}  # fmt: skip


@pytest.fixture
def provider(segment: Segment) -> Iterator[ProviderServer]:
    """The first VLAN id that it gives is 100, in which the neighbour is."""
    with IPRoute() as route:
        route.link("set", index=1, state="up")
    segment.neighbour.run(_tag)
    with ProviderServer() as running:
        running.cloud.last_vlan = 99
        yield running


async def test_a_container_comes_and_goes(provider: ProviderServer, segment: Segment, tmp_path: Path) -> None:
    async with Node(tmp_path, POOL, POOL6, detect=True, provider=provider.url).serving() as node:
        one = Container(node, segment.container(), {**AUTO, "coordinator": {"mode": "auto"}})
        result = await one.add()
        assert sorted(one.addresses) == ["10.77.0.10/24", "fd77::10/64"]
        mac, vlan = provider.cloud.said["10.77.0.10"]
        assert vlan == 100
        assert result["interfaces"][0]["mac"] == mac
        assert one.netns.run(lambda: _link("eth0")) == {"mac": mac, "vlan": 100, "up": True}
        parent = (await asyncio.to_thread(_link, "up0"))["mac"]
        assert provider.cloud.assigned["10.77.0.10"][2] == parent
        for address, peer in ((POOL["gateway"], "10.77.0.10"), (POOL6["gateway"], "fd77::10")):
            said = await asyncio.to_thread(talk, segment.neighbour, one.netns, address, timeout=15)
            assert said.decode() == peer
        await one.check()
        one.netns.run(lambda: _set_mac("eth0", "02:00:00:00:00:99"))
        with pytest.raises(CallFailed, match=f"expected {mac}"):
            await one.check()
        # The negative control: the next address has another VLAN id, and hears nothing of the neighbour.
        two = Container(node, segment.container(), AUTO)
        await two.add()
        assert two.netns.run(lambda: _link("eth0"))["vlan"] == 101
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.to_thread(talk, segment.neighbour, two.netns, POOL["gateway"], timeout=2.0)
        await one.delete()
        await two.delete()
        for container in (one, two):
            assert await node.left(container) == []
        while provider.cloud.assigned:  # noqa: ASYNC110 - the server's
            await asyncio.sleep(0.1)
        assert provider.cloud.violations == []


@pytest.mark.parametrize("fault", ["500", "reset after", "no vlan"])
async def test_no_link_without_its_answer(
    provider: ProviderServer, segment: Segment, tmp_path: Path, fault: Any
) -> None:
    async with Node(tmp_path, POOL, provider=provider.url).serving() as node:
        one = Container(node, segment.container(), AUTO)
        provider.faults["allocate"].append(fault)
        before = await asyncio.to_thread(picture, one.netns)
        with pytest.raises(CallFailed, match="provider"):
            await one.add()
        assert await asyncio.to_thread(picture, one.netns) == before
        await one.delete()
        assert await node.left(one) == []


async def test_a_taken_vlan_id_gives_the_address_back(
    provider: ProviderServer, segment: Segment, tmp_path: Path
) -> None:
    """The link fails behind the provider's answer."""
    await asyncio.to_thread(_take_the_id)
    async with Node(tmp_path, POOL, provider=provider.url).serving() as node:
        one = Container(node, segment.container(), AUTO)
        with pytest.raises(CallFailed, match="vlanId: 100 is taken on master up0"):
            await one.add()
        assert await node.left(one) == []
        while provider.cloud.assigned:  # noqa: ASYNC110 - the server's
            await asyncio.sleep(0.1)


def _take_the_id() -> None:
    """It goes with the uplink."""
    with IPRoute() as route:
        up = route.link_lookup(ifname="up0")[0]
        route.link("add", ifname="mine", kind="vlan", link=up, vlan_id=100)


def _tag() -> None:
    """The neighbour is in the VLAN with the addresses that it has on the segment."""
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.flush_addr(index=host)
        route.link("add", ifname="tagged", kind="vlan", link=host, vlan_id=100)
        tagged = route.link_lookup(ifname="tagged")[0]
        route.link("set", index=tagged, state="up")
        route.addr("add", index=tagged, address="10.77.0.1", prefixlen=24)
        route.addr("add", index=tagged, address="fd77::1", prefixlen=64, flags=2)


def _set_mac(ifname: str, mac: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], address=mac)


def _link(ifname: str) -> dict[str, Any]:
    with IPRoute() as route:
        (found,) = route.get_links(ifname=ifname)
        data = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
        seen = {"mac": found.get_attr("IFLA_ADDRESS"), "up": bool(found["flags"] & 1)}
        return seen if data is None or ifname == "up0" else {**seen, "vlan": data.get_attr("IFLA_VLAN_ID")}
