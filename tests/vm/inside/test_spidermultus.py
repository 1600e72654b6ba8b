"""Area spidermultus, data path: what its definitions make of a pod, on kinds of links that only the guest has.

The definitions are as the controller of the original writes them from a SpiderMultusConfig; `tests/cases` has those of
the other kinds. The agent is a whole one, and its coordinator is chained.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.node.conftest import Segment, talk
from tests.vm.inside.agent import CallFailed, Container, Node
from tests.vm.inside.test_kinds import silent

pytestmark = [pytest.mark.node, pytest.mark.blocking]

COORDINATOR = {"txQueueLen": 0, "tunePodRoutes": True, "mode": "auto", "type": "coordinator"}
VERSION = "0.3.1"
POOLS = (
    {"subnet": "10.77.0.0/24", "gateway": "10.77.0.1", "ips": ["10.77.0.10-10.77.0.19"]},
    {"subnet": "10.100.0.0/24", "gateway": "10.100.0.1", "ips": ["10.100.0.10-10.100.0.19"]},
)


@pytest.fixture
async def node(segment: Segment, tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path, *POOLS).serving() as made:
        yield made


def ipam(pool: int) -> dict[str, Any]:
    return {"type": "spiderpool", "default_ipv4_ippool": [f"pool-{pool}"]}


async def test_M00034_mtu_of_ipvlan(node: Node, segment: Segment) -> None:
    def pod(mtu: int) -> Container:
        ipvlan = {"type": "ipvlan", "master": "up0", "mtu": mtu, "ipam": ipam(0)}
        return Container(node, segment.container(), ipvlan, COORDINATOR, version=VERSION)

    small, usual, large = pod(1400), pod(0), pod(9000)
    for one, mtu in ((small, 1400), (usual, 1500)):
        await one.add()
        assert one.netns.run(lambda: _of_eth0("IFLA_MTU")) == mtu
        told = await asyncio.to_thread(talk, segment.neighbour, one.netns, "10.77.0.1", timeout=15)
        assert [f"{told.decode()}/24"] == one.addresses
    with pytest.raises(CallFailed, match=r"mtu: 9000 .*1500"):
        await large.add()
    for one in (large, usual, small):
        await one.delete()
    assert await node.left(small) == []


async def test_M00038_vlan_with_an_id(node: Node, segment: Segment) -> None:
    segment.neighbour.run(_tag)

    def pod(number: int) -> Container:
        vlan = {"type": "vlan", "master": "up0", "vlanMode": "manual", "vlanId": number, "mtu": 0, "ipam": ipam(1)}
        return Container(node, segment.container(), vlan, COORDINATOR, version=VERSION)

    inside, outside, second = pod(100), pod(200), pod(100)
    for one in (inside, outside):
        await one.add()
    assert [one.netns.run(_vlan_id) for one in (inside, outside)] == [100, 200]
    told = await asyncio.to_thread(talk, segment.neighbour, inside.netns, "10.100.0.1", timeout=15)
    assert [f"{told.decode()}/24"] == inside.addresses
    assert await asyncio.to_thread(silent, segment.neighbour, outside.netns, "10.100.0.1")
    with pytest.raises(CallFailed, match=r"vlanId: 100 is taken on master up0"):
        await second.add()
    for one in (second, outside, inside):
        await one.delete()
    assert await node.left(inside) == []


def _of_eth0(name: str) -> Any:
    with IPRoute() as route:
        return route.get_links(ifname="eth0")[0].get_attr(name)


def _vlan_id() -> Any:
    return _of_eth0("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID")


def _tag() -> None:
    """The neighbour is in VLAN 100."""
    with IPRoute() as route:
        route.link("add", ifname="tagged", kind="vlan", link=route.link_lookup(ifname="host")[0], vlan_id=100)
        index = route.link_lookup(ifname="tagged")[0]
        route.addr("add", index=index, address="10.100.0.1", prefixlen=24)
        route.link("set", index=index, state="up")
