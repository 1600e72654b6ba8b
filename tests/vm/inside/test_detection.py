"""Probing where only the guest can: ipvlan, whose siblings share a MAC address, vlan, and virtual functions."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from cni.detection import Conflict, Findings, ProbePlan
from cni.kernel import LinuxKernel
from cni.plan import AddressPlan, LinkPlan
from cni.sriov import VfPlan, mark
from cni.vfs import LinuxVfs
from tests.netns import Netns
from tests.node.conftest import Segment, segment
from tests.vm.inside.nics import PhysicalNic, VirtualFunction

__all__ = ("segment",)
pytestmark = pytest.mark.node

BOTH = ("10.77.0.1", "fd77::1")
FREE = ("10.77.0.5", "fd77::5")
_REACHABLE, _STALE = 2, 4
LONG = 5.0
"""Seconds; nobody waits for so long, for all is answered before."""


@pytest.fixture
def kernel() -> LinuxKernel:
    return LinuxKernel()


def ipvlan(container: Netns, mode: str = "l2") -> LinkPlan:
    return LinkPlan(netns=str(container.path), ifname="eth0", master="up0", kind="ipvlan", mode=mode)


def plan(container: Netns, *addresses: str, gateways: tuple[str, ...] = (), budget: float = LONG) -> ProbePlan:
    return ProbePlan(netns=str(container.path), ifname="eth0", addresses=addresses, gateways=gateways, budget=budget)


async def test_a_stranger_behind_an_ipvlan_link(kernel: LinuxKernel, segment: Segment) -> None:
    one = segment.container()
    await kernel.attach_link(ipvlan(one))
    mac = segment.neighbour.run(lambda: _mac("host"))
    assert (await kernel.probe(plan(one, *BOTH))).conflicts == tuple(Conflict(address, mac) for address in BOTH)
    assert await kernel.probe(plan(one, *FREE, gateways=BOTH, budget=0.05)) == Findings(ifname="eth0")


async def test_siblings_and_the_parent_share_the_mac(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await kernel.attach_link(ipvlan(one))
    await kernel.attach_link(ipvlan(two))
    await kernel.configure(str(two.path), "eth0", AddressPlan(addresses=("10.77.0.5/24", "fd77::5/64")))
    # Both can send at the same time: their link-local addresses differ though their MAC addresses do not.
    assert await kernel.probe(plan(one, *FREE, gateways=BOTH, budget=0.5)) == Findings(ifname="eth0")
    three = segment.container()
    await kernel.attach_link(LinkPlan(netns=str(three.path), ifname="eth0", master="up1"))
    mac = two.run(lambda: _mac("eth0"))
    # The control: from elsewhere the sibling is somebody.
    assert (await kernel.probe(plan(three, *FREE))).conflicts == tuple(Conflict(address, mac) for address in FREE)


async def test_what_the_node_knows_of_its_gateway_stays(kernel: LinuxKernel, segment: Segment) -> None:
    """The answers of an ipvlan link's segment are heard by the parent, which has neighbours of its own."""
    one, gateway = segment.container(), BOTH[0]
    await kernel.attach_link(ipvlan(one))
    mac = segment.neighbour.run(lambda: _mac("host"))
    for state in (_REACHABLE, _STALE):
        await asyncio.to_thread(_remember, gateway, mac, ifname="up0", state=state)
        assert await kernel.probe(plan(one, *FREE[:1], gateways=(gateway,), budget=0.05)) == Findings(ifname="eth0")
        assert await asyncio.to_thread(_known) == {gateway: mac}
    segment.neighbour.run(lambda: _set_down("host"))
    await asyncio.to_thread(_remember, gateway, mac, ifname="up0", state=_STALE)
    assert (await kernel.probe(plan(one, *FREE[:1], gateways=(gateway,), budget=0.05))).silent == (gateway,)
    assert await asyncio.to_thread(_known) == {gateway: mac}


@pytest.mark.parametrize("mode", ["l3", "l3s"])
async def test_routing_ipvlan_links_are_not_asked(kernel: LinuxKernel, segment: Segment, mode: str) -> None:
    one = segment.container()
    await kernel.attach_link(ipvlan(one, mode))
    found = await kernel.probe(plan(one, *BOTH, gateways=BOTH))
    assert found == Findings(ifname="eth0", skipped="eth0 does not resolve addresses")


async def test_the_segment_is_told_after_probing(kernel: LinuxKernel, segment: Segment) -> None:
    one = segment.container()
    await kernel.attach_link(ipvlan(one))
    segment.neighbour.run(lambda: _remember("10.77.0.5", "02:00:00:00:00:99", ifname="host", state=_STALE))
    await kernel.probe(plan(one, *FREE, budget=0.05))
    await kernel.configure(str(one.path), "eth0", AddressPlan(addresses=("10.77.0.5/24",)))
    assert segment.neighbour.run(_known)["10.77.0.5"] == one.run(lambda: _mac("eth0"))


async def test_a_vlan_is_a_segment_of_its_own(kernel: LinuxKernel, segment: Segment) -> None:
    segment.neighbour.run(_tagged)
    one = segment.container()
    link = LinkPlan(
        netns=str(one.path), ifname="eth0", master="up0", kind="vlan", mode="", vlan_id=100, vlan_protocol="802.1q"
    )
    await kernel.attach_link(link)
    mac = segment.neighbour.run(lambda: _mac("tagged"))
    assert (await kernel.probe(plan(one, "10.100.0.1"))).conflicts == (Conflict("10.100.0.1", mac),)
    # The same host has this one outside the VLAN, and does not tell in there.
    segment.neighbour.run(lambda: Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1"))
    assert await kernel.probe(plan(one, "10.77.0.1", budget=0.3)) == Findings(ifname="eth0")


@asynccontextmanager
async def lent(function: VirtualFunction, container: Netns) -> AsyncIterator[None]:
    """A container has it as eth0, down, as an ADD has it before probing."""
    vfs, plan = LinuxVfs(), VfPlan(netns=str(container.path), ifname="eth0", pci=function.address)
    held = replace(await vfs.survey_vf(function.address), mark=mark(container.name, "eth0"), order=1)
    made = await vfs.take_vf(plan, held)
    assert made is not None and not made.up
    try:
        yield
    finally:
        await vfs.give_vf(plan.netns, held)


async def test_who_is_there_for_a_virtual_function(kernel: LinuxKernel, uplink: PhysicalNic, segment: Segment) -> None:
    """Strangers are another function, which the NIC itself connects, and a host beyond its wire, the gateway too."""
    one, two = segment.container(), segment.container()
    there = ("10.77.0.9", "fd77::9")
    async with lent(uplink.functions[0], one):
        async with lent(uplink.functions[1], two):
            await kernel.configure(str(two.path), "eth0", AddressPlan(addresses=("10.77.0.9/24", "fd77::9/64")))
            # It sets the link up itself.
            found = await kernel.probe(plan(one, *there, *BOTH))
            far, near = segment.neighbour.run(lambda: _mac("host")), two.run(lambda: _mac("eth0"))
            assert found == Findings(
                ifname="eth0",
                conflicts=(*(Conflict(address, near) for address in there), *(Conflict(one, far) for one in BOTH)),
            )
            assert await kernel.probe(plan(one, *FREE, gateways=BOTH, budget=0.3)) == Findings(ifname="eth0")
        # Nobody has them any more; the gateway answers still, and then does not.
        assert await kernel.probe(plan(one, *there, gateways=BOTH, budget=0.3)) == Findings(ifname="eth0")
        segment.neighbour.run(lambda: _set_down("host"))
        assert await kernel.probe(plan(one, gateways=BOTH, budget=0.3)) == Findings(ifname="eth0", silent=BOTH)
        assert await kernel.probe(plan(one, *BOTH, budget=0.3)) == Findings(ifname="eth0")


def _mac(ifname: str) -> str:
    with IPRoute() as route:
        return str(route.link("get", ifname=ifname)[0].get_attr("IFLA_ADDRESS"))


def _tagged() -> None:
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.link("add", ifname="tagged", kind="vlan", link=host, vlan_id=100)
        index = route.link_lookup(ifname="tagged")[0]
        route.addr("add", index=index, address="10.100.0.1", prefixlen=24)
        route.link("set", index=index, state="up")


def _remember(address: str, mac: str, *, ifname: str, state: int) -> None:
    with IPRoute() as route:
        route.neigh("replace", dst=address, lladdr=mac, ifindex=socket.if_nametoindex(ifname), state=state)


def _known() -> dict[str, str]:
    """IPv4 neighbours on the segment's links."""
    with IPRoute() as route:
        return {
            one.get_attr("NDA_DST"): one.get_attr("NDA_LLADDR")
            for one in route.get_neighbours(socket.AF_INET)
            if one.get_attr("NDA_DST").startswith("10.77.")
        }


def _set_down(ifname: str) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(ifname), state="down")
