"""Links of the kinds ipvlan and vlan: each with a packet that crosses, and one that must not."""

import asyncio
import socket

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from cni.errors import InterfaceExists, InvalidConfig, KernelRefused
from cni.kernel import LinuxKernel
from cni.plan import AddressPlan, LinkPlan
from tests.netns import Netns
from tests.node.conftest import Segment, talk

pytestmark = pytest.mark.node

FIRST = AddressPlan(addresses=("10.77.0.5/24", "fd77::5/64"))
SECOND = AddressPlan(addresses=("10.77.0.6/24", "fd77::6/64"))
TAGGED = AddressPlan(addresses=("10.100.0.5/24", "fd64::5/64"))


@pytest.fixture
def kernel() -> LinuxKernel:
    return LinuxKernel()


def ipvlan(container: Netns, mode: str = "l2", ifname: str = "eth0", master: str = "up0") -> LinkPlan:
    return LinkPlan(netns=str(container.path), ifname=ifname, master=master, kind="ipvlan", mode=mode)


def vlan(container: Netns, number: int, ifname: str = "eth0", master: str = "up0") -> LinkPlan:
    return LinkPlan(
        netns=str(container.path), ifname=ifname, master=master,
        kind="vlan", mode="", vlan_id=number, vlan_protocol="802.1q",
    )  # fmt: skip


async def attach(kernel: LinuxKernel, plan: LinkPlan, addresses: AddressPlan) -> None:
    made = await kernel.attach_link(plan)
    assert (made.kind, made.mode, made.vlan_id, made.up) == (plan.kind, plan.mode, plan.vlan_id, False)
    assert made.parent_index == socket.if_nametoindex(plan.master)
    await kernel.configure(plan.netns, plan.ifname, addresses)
    assert await kernel.link_differences(plan) == []


async def test_ipvlan_l2(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await attach(kernel, ipvlan(one), FIRST)
    await attach(kernel, ipvlan(two), SECOND)
    for address in ("10.77.0.5", "fd77::5"):
        assert talk(one, two, address) == address.replace("5", "6").encode()
    assert talk(segment.neighbour, one, "10.77.0.1") == b"10.77.0.5"
    assert talk(segment.neighbour, one, "fd77::1") == b"fd77::5"
    # Its address is the parent's MAC address, and the parent is out of reach.
    seen = await kernel.inspect(str(one.path), "eth0")
    assert seen is not None
    assert seen.link.mac == await asyncio.to_thread(_give_address, "up0", "10.77.0.9")
    with pytest.raises(OSError):  # noqa: PT011 - a timeout or EHOSTUNREACH
        await asyncio.to_thread(_talk_to_the_node, one, "10.77.0.9")
    assert await kernel.detach_link(str(one.path), "eth0", kind="ipvlan")
    assert await kernel.inspect(str(one.path), "eth0") is None


async def test_one_parent_has_one_mode(kernel: LinuxKernel, segment: Segment) -> None:
    one, two, three = segment.container(), segment.container(), segment.container()
    await attach(kernel, ipvlan(one, "l3"), FIRST)
    await attach(kernel, ipvlan(two, "l3"), SECOND)
    assert talk(one, two, "10.77.0.5") == b"10.77.0.6"
    words = r"mode: l2 is not possible, the ipvlan links of master up0 have mode l3: .*ipvlan eth0 \(l3\) in {}"
    with pytest.raises(InvalidConfig, match=words.format(two.path)):
        await kernel.attach_link(ipvlan(three))
    # The one that was made last has gone, and another agent has made none: the others are looked for.
    assert await kernel.detach_link(str(two.path), "eth0")
    for agent in (kernel, LinuxKernel()):
        with pytest.raises(InvalidConfig, match=words.format(one.path)):
            await agent.attach_link(ipvlan(three))
    assert await kernel.inspect(str(three.path), "eth0") is None
    await kernel.attach_link(ipvlan(three, master="up1"))
    # A hand has changed the mode of all.
    three.run(lambda: _set_mode("eth0", 1))
    assert await kernel.link_differences(ipvlan(three, master="up1")) == ["its mode is l3, not l2", "it is down"]
    assert await kernel.detach_link(str(one.path), "eth0")
    await attach(kernel, ipvlan(one, "l3s"), FIRST)


async def test_macvlan_and_ipvlan_on_one_parent(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    macvlan = LinkPlan(netns=str(one.path), ifname="eth0", master="up0")
    await kernel.attach_link(macvlan)
    with pytest.raises(KernelRefused, match=rf"ipvlan net1 in {two.path} on master up0.*EBUSY.*macvlan eth0 .bridge."):
        await kernel.attach_link(ipvlan(two, ifname="net1"))
    assert await kernel.detach_link(macvlan.netns, "eth0")
    await kernel.attach_link(ipvlan(two, ifname="net1"))
    with pytest.raises(KernelRefused, match=rf"macvlan eth0 in {one.path}.*EBUSY.*ipvlan net1 .l2. in {two.path}"):
        await kernel.attach_link(macvlan)
    assert await kernel.inspect(macvlan.netns, "eth0") is None


async def test_vlan(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    segment.neighbour.run(_tagged_neighbour)
    await attach(kernel, replace(vlan(one, 100), mtu=1400, mac="02:00:00:00:00:05"), TAGGED)
    assert talk(segment.neighbour, one, "10.100.0.1") == b"10.100.0.5"
    assert talk(segment.neighbour, one, "fd64::1") == b"fd64::5"
    seen = await kernel.inspect(str(one.path), "eth0")
    assert seen is not None
    assert (seen.link.mtu, seen.link.mac, seen.link.vlan_protocol) == (1400, "02:00:00:00:00:05", "802.1q")
    # Another id hears nothing, whatever its addresses.
    await attach(kernel, vlan(two, 200), AddressPlan(addresses=("10.100.0.6/24",)))
    with pytest.raises(OSError):  # noqa: PT011
        await asyncio.to_thread(talk, segment.neighbour, two, "10.100.0.1", timeout=2.0)
    with pytest.raises(OSError):  # noqa: PT011
        await asyncio.to_thread(talk, one, two, "10.100.0.5", timeout=2.0)
    assert await kernel.detach_link(str(one.path), "eth0", kind="vlan")
    assert await kernel.inspect(str(one.path), "eth0") is None


async def test_an_id_is_there_once_on_a_parent(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await kernel.attach_link(vlan(one, 100))
    taken = rf"vlanId: 100 is taken on master up0: .*EEXIST.*up0 has vlan eth0 \(VLAN 100\) in {one.path}"
    with pytest.raises(InterfaceExists, match=taken):
        await kernel.attach_link(vlan(two, 100))
    with pytest.raises(InterfaceExists, match=f"CNI_IFNAME: eth0 exists already in {one.path}"):
        await kernel.attach_link(vlan(one, 101))
    await kernel.attach_link(vlan(two, 100, master="up1"))
    await kernel.attach_link(replace(vlan(two, 100, ifname="net1"), vlan_protocol="802.1ad"))
    with pytest.raises(InvalidConfig, match=r"mtu: 1501.*1500, the MTU of master up0"):
        await kernel.attach_link(replace(vlan(two, 102, ifname="net2"), mtu=1501))
    assert two.run(lambda: [name for _, name in socket.if_nameindex()]) == ["lo", "eth0", "net1"]
    assert await kernel.detach_link(str(one.path), "eth0")
    await kernel.attach_link(vlan(two, 100, ifname="net2"))


async def test_names_that_the_node_has_too(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    for plan in (ipvlan(container, ifname="up1"), vlan(container, 100, ifname="up0-port", master="up1")):
        await kernel.attach_link(plan)
    assert container.run(lambda: [name for _, name in socket.if_nameindex()]) == ["lo", "up1", "up0-port"]


def _give_address(ifname: str, address: str) -> str:
    """Returns the link's MAC address."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        route.addr("add", index=index, address=address, prefixlen=24)
        return str(route.get_links(index)[0].get_attr("IFLA_ADDRESS"))


def _talk_to_the_node(client: Netns, address: str) -> None:
    with socket.create_server((address, 8080)), client.run(socket.socket) as caller:
        caller.settimeout(2.0)
        caller.connect((address, 8080))


def _set_mode(ifname: str, mode: int) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], kind="ipvlan", ipvlan_mode=mode)


def _tagged_neighbour() -> None:
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.link("add", ifname="host.100", kind="vlan", link=host, vlan_id=100)
        index = route.link_lookup(ifname="host.100")[0]
        route.addr("add", index=index, address="10.100.0.1", prefixlen=24)
        route.addr("add", index=index, address="fd64::1", prefixlen=64, flags=2)
        route.link("set", index=index, state="up")
