"""Links on the real kernel: every test sends packets or reads the kernel, and shows that nothing is left."""

import asyncio
import errno
import os
import socket
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from cni.errors import CniError, InterfaceExists, InvalidConfig, InvalidNetns, KernelRefused
from cni.kernel import LinuxKernel
from cni.netlink import attachment, link, message
from cni.netlink.socket import Netns as SeenNetns
from cni.netlink.socket import route_socket
from cni.netlink.support import knows_link_kind
from cni.plan import AddressPlan, LinkPlan
from tests.netns import Netns
from tests.node.conftest import Segment, talk
from tests.node.descriptors import descriptors, until_closed

pytestmark = pytest.mark.node

FIRST = AddressPlan(
    addresses=("10.77.0.5/24", "fd77::5/64"),
    gateways=("10.77.0.1", "fd77::1"),
    routes=(("0.0.0.0/0", "10.77.0.1"), ("::/0", "")),
)
SECOND = AddressPlan(addresses=("10.77.0.6/24", "fd77::6/64"))
MAC = "02:00:00:00:77:05"


@pytest.fixture
def kernel() -> LinuxKernel:
    return LinuxKernel()


async def attach(kernel: LinuxKernel, container: Netns, addresses: AddressPlan, *, master: str = "up0") -> None:
    await kernel.attach_link(LinkPlan(netns=str(container.path), ifname="eth0", master=master))
    await kernel.configure(str(container.path), "eth0", addresses)


def names(container: Netns) -> list[str]:
    return container.run(lambda: [name for _, name in socket.if_nameindex()])


@pytest.mark.parametrize("masters", [("up0", "up1"), ("up0", "up0")], ids=["two parents", "one parent"])
async def test_traffic(kernel: LinuxKernel, segment: Segment, masters: tuple[str, str]) -> None:
    one, two = segment.container(), segment.container()
    await attach(kernel, one, FIRST, master=masters[0])
    await attach(kernel, two, SECOND, master=masters[1])
    # At once: no wait for duplicate address detection.
    assert talk(one, two, "fd77::5") == b"fd77::6"
    assert talk(two, one, "fd77::6") == b"fd77::5"
    assert talk(one, two, "10.77.0.5") == b"10.77.0.6"
    assert talk(two, one, "10.77.0.6") == b"10.77.0.5"
    assert talk(segment.neighbour, one, "10.77.0.1") == b"10.77.0.5"
    assert talk(segment.neighbour, one, "fd77::1") == b"fd77::5"


async def test_no_traffic_without_the_link(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await attach(kernel, one, FIRST)
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the family
        talk(two, one, "10.77.0.6", timeout=0.3)
    await attach(kernel, two, SECOND)
    assert talk(two, one, "10.77.0.6") == b"10.77.0.5"
    assert await kernel.detach_link(str(two.path), "eth0")
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        talk(two, one, "10.77.0.6", timeout=0.3)


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru"])
async def test_a_link_is_as_planned(kernel: LinuxKernel, segment: Segment, mode: str) -> None:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="net1", master="up0", mode=mode, mtu=1400)
    if mode != "passthru":  # which takes its parent's
        plan = LinkPlan(netns=str(container.path), ifname="net1", master="up0", mode=mode, mtu=1400, mac=MAC)
    made = await kernel.attach_link(plan)
    assert (made.ifname, made.kind, made.mode, made.mtu, made.up) == ("net1", "macvlan", mode, 1400, False)
    assert made.parent_index == socket.if_nametoindex("up0")
    assert made.mac == plan.mac or mode == "passthru"
    seen = await kernel.inspect(plan.netns, "net1")
    assert seen is not None
    assert seen.link == made
    assert (seen.addresses, seen.routes) == ((), ())


async def test_parent_in_the_container(kernel: LinuxKernel, segment: Segment) -> None:
    plan = LinkPlan(netns=str(segment.neighbour.path), ifname="net1", master="host", link_in_container=True)
    assert (await kernel.attach_link(plan)).kind == "macvlan"
    assert "net1" in names(segment.neighbour)
    with pytest.raises(InvalidConfig, match="up0"):
        await kernel.attach_link(LinkPlan(netns=plan.netns, ifname="net2", master="up0", link_in_container=True))


async def test_parent_of_the_default_route(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0")
    with pytest.raises(InvalidConfig, match="master: missing"):
        await kernel.attach_link(plan)
    await asyncio.to_thread(_default_route, "up1")
    assert (await kernel.attach_link(plan)).parent_index == socket.if_nametoindex("up1")


async def test_parent_of_a_default_route_by_several_routers(kernel: LinuxKernel, segment: Segment) -> None:
    await asyncio.to_thread(_default_routes, "up1")
    made = await kernel.attach_link(LinkPlan(netns=str(segment.container().path), ifname="eth0"))
    assert made.parent_index == socket.if_nametoindex("up1")


async def test_a_mac_address_in_passthru_mode(
    kernel: LinuxKernel, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel does not take it when it makes the link. The parent has it for as long as that is there."""
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mode="passthru", mac=MAC)
    before = await asyncio.to_thread(_mac_of, "up0")
    made = await kernel.attach_link(plan)
    assert (made.mac, container.run(lambda: _mac_of("eth0")), await asyncio.to_thread(_mac_of, "up0")) == (MAC,) * 3
    await kernel.configure(plan.netns, "eth0", FIRST)
    assert await asyncio.to_thread(talk, segment.neighbour, container, "10.77.0.1") == b"10.77.0.5"
    assert await kernel.detach_link(plan.netns, "eth0")
    assert await asyncio.to_thread(_mac_of, "up0") == before
    # The parent's driver does not take it.
    original = link.settings_body
    monkeypatch.setattr(link, "settings_body", lambda index, *, mac: original(index, mac="01" + mac[2:]))
    with pytest.raises(KernelRefused, match=rf"set the MAC address of eth0 in {plan.netns} to {MAC}"):
        await kernel.attach_link(plan)
    assert names(container) == ["lo"]
    assert await asyncio.to_thread(_mac_of, "up0") == before


async def test_a_mac_address_that_is_taken(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    for container in (one, two):
        await kernel.attach_link(LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mac=MAC))
    await kernel.configure(str(one.path), "eth0", FIRST)
    with pytest.raises(KernelRefused, match=f"set eth0 up: another link .* has the MAC address {MAC}"):
        await kernel.configure(str(two.path), "eth0", SECOND)


async def test_parent_by_another_of_its_names(kernel: LinuxKernel, segment: Segment) -> None:
    """As udev gives them; longer than a link's own name can be."""
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="enp129s0f0np0-of-udev")
    with pytest.raises(InvalidConfig, match='there is no interface "enp129s0f0np0-of-udev" on this node'):
        await kernel.attach_link(plan)
    await asyncio.to_thread(_call, "up0", plan.master)
    made = await kernel.attach_link(plan)
    assert made.parent_index == socket.if_nametoindex("up0")
    assert await kernel.link_differences(plan) == ["it is down"]


async def test_what_is_configured_is_shown(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    await attach(kernel, container, FIRST)
    seen = await kernel.inspect(str(container.path), "eth0")
    assert seen is not None
    assert seen.link.up
    assert sorted(seen.addresses) == ["10.77.0.5/24", "fd77::5/64"]
    assert sorted(seen.routes) == [("0.0.0.0/0", "10.77.0.1"), ("::/0", "fd77::1")]
    settings = ("ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify", "ipv6/conf/eth0/disable_ipv6")
    values = container.run(lambda: [Path(f"/proc/sys/net/{name}").read_text().strip() for name in settings])
    assert values == ["1", "1", "0"]


async def test_a_route_that_another_interface_has_as_well_is_shown_of_both(
    kernel: LinuxKernel, segment: Segment
) -> None:
    """IPv6 makes one route with two next hops of them."""
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="net1", master="up1")
    await attach(kernel, container, FIRST)
    await kernel.attach_link(plan)
    second = AddressPlan(
        addresses=("10.77.0.6/24", "fd77::6/64"), routes=(("0.0.0.0/0", "10.77.0.1"), ("::/0", "fd77::2"))
    )
    await kernel.configure(plan.netns, "net1", second)
    for ifname, gateway in (("eth0", "fd77::1"), ("net1", "fd77::2")):
        seen = await kernel.inspect(plan.netns, ifname)
        assert seen is not None
        assert sorted(seen.routes) == [("0.0.0.0/0", "10.77.0.1"), ("::/0", gateway)]


async def test_ipv6_comes_back_where_the_runtime_switched_it_off(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    container.run(lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1"))
    container.run(lambda: Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1"))
    await attach(kernel, container, FIRST)
    assert talk(segment.neighbour, container, "fd77::1") == b"fd77::5"


async def test_the_segment_is_told(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    with segment.neighbour.run(_listen) as ear:
        plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mac=MAC)
        await kernel.attach_link(plan)
        await kernel.configure(plan.netns, "eth0", FIRST)
        frames = await asyncio.to_thread(_hear, ear)
    mac = bytes.fromhex(MAC.replace(":", ""))
    four, six = IPv4Address("10.77.0.5").packed, IPv6Address("fd77::5").packed
    arp = b"\xff" * 6 + mac + bytes.fromhex("08060001080006040001") + mac + four
    assert any(frame.startswith(arp) and frame[38:42] == four for frame in frames)
    to_all_nodes = bytes.fromhex("333300000001") + mac + bytes.fromhex("86dd")
    advertisements = [frame for frame in frames if frame.startswith(to_all_nodes) and frame[54] == 136]
    assert any(
        (frame[21], frame[22:38], frame[58], frame[62:78], frame[78:86]) == (255, six, 0x20, six, b"\x02\x01" + mac)
        for frame in advertisements
    )


async def test_the_segment_is_told_where_the_kernel_keeps_silent(
    kernel: LinuxKernel, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As under a read-only /proc/sys, which keeps ndisc_notify off. The first round is the control.
    monkeypatch.setattr(attachment, "prepare_ipv6", lambda _: None)
    container = segment.container()
    heard = []
    for advertises in (False, True):
        with monkeypatch.context() as patch, segment.neighbour.run(_listen) as ear:
            if not advertises:
                patch.setattr(attachment, "_advertise", lambda *_: None)
            await attach(kernel, container, FIRST)
            frames = await asyncio.to_thread(_hear, ear)
            await kernel.detach_link(str(container.path), "eth0")
        six = IPv6Address("fd77::5").packed
        heard.append([f for f in frames if f[12:14] == b"\x86\xdd" and f[54] == 136 and f[62:78] == six])
    assert [len(one) for one in heard] == [0, 1]


async def test_a_neighbour_forgets_the_former_holder(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await attach(kernel, one, FIRST)
    assert talk(one, segment.neighbour, "10.77.0.5")
    assert talk(one, segment.neighbour, "fd77::5")
    await kernel.detach_link(str(one.path), "eth0")
    await attach(kernel, two, FIRST)
    seen = await kernel.inspect(str(two.path), "eth0")
    assert seen is not None
    assert segment.neighbour.run(_neighbours) == {"10.77.0.5": seen.link.mac, "fd77::5": seen.link.mac}


async def test_nothing_is_left(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    before, opened = (container.run(_dump), await asyncio.to_thread(_dump)), descriptors()
    await attach(kernel, container, FIRST)
    assert container.run(_dump) != before[0]
    assert await kernel.detach_link(str(container.path), "eth0")
    assert not await kernel.detach_link(str(container.path), "eth0")
    assert (container.run(_dump), await asyncio.to_thread(_dump)) == before
    await until_closed(opened)


async def test_deleting_what_is_not_there_is_fine(kernel: LinuxKernel, segment: Segment, tmp_path: Path) -> None:
    container = segment.container()
    (tmp_path / "file").touch()
    for path in (container.path, tmp_path / "missing", tmp_path / "file", tmp_path, Path("/proc/self/ns/mnt")):
        assert not await kernel.detach_link(str(path), "eth0")
        assert await kernel.inspect(str(path), "eth0") is None
        assert not await kernel.carries(str(path), "eth0")
        assert await kernel.netns_exists(str(path)) is (path == container.path)


async def test_somebody_elses_link_stays(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    await attach(kernel, container, FIRST)
    path = str(container.path)
    assert not await kernel.detach_link(path, "eth0", kind="veth")
    assert not await kernel.detach_link(path, "eth0", mac=MAC)
    assert "eth0" in names(container)
    seen = await kernel.inspect(path, "eth0")
    assert seen is not None
    assert await kernel.detach_link(path, "eth0", kind="macvlan", mac=seen.link.mac)


async def test_carries(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    await attach(kernel, container, FIRST)
    path = str(container.path)
    assert await kernel.carries(path, "eth0")
    assert not await kernel.carries(path, "eth1")
    assert await kernel.carries(path, "renamed", ["10.99.0.1", "fd77::5/64"])
    assert not await kernel.carries(path, "eth0", ["10.77.0.6", "fd77::6"])
    await kernel.detach_link(path, "eth0")
    assert not await kernel.carries(path, "eth0", FIRST.addresses)


async def test_a_namespace_dies_with_its_container(kernel: LinuxKernel, segment: Segment) -> None:
    container, other = segment.container(), segment.container()
    await attach(kernel, container, FIRST)
    await attach(kernel, other, SECOND)
    assert talk(container, other, "10.77.0.5") == b"10.77.0.6"
    container.__exit__(None, None, None)
    deadline = time.monotonic() + 5
    while True:  # the kernel takes namespaces down in its own time
        try:
            other.run(_reach)
        except TimeoutError:
            break
        assert time.monotonic() < deadline, "10.77.0.5 still answers"
        await asyncio.sleep(0.05)
    assert not await kernel.carries(str(container.path), "eth0")


async def test_the_kernels_own_words(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    path = str(container.path)
    await attach(kernel, container, FIRST)

    def plan(**changes: object) -> LinkPlan:
        return LinkPlan(**{"netns": path, "ifname": "net1", "master": "up0", **changes})  # type: ignore[arg-type]

    links: list[tuple[LinkPlan, type[CniError], str]] = [
        (plan(ifname="eth0"), InterfaceExists, "eth0"),
        (plan(master="nope"), InvalidConfig, 'master: there is no interface "nope" on this node'),
        (plan(mtu=9000), InvalidConfig, "mtu: 9000.*1500.*up0"),
        (plan(mtu=10), KernelRefused, "net1.*up0.*mtu less than device minimum"),
        (plan(ifname="a" * 16), KernelRefused, "EINVAL|ERANGE"),
        (plan(master="lo"), KernelRefused, "lo"),
        (plan(mode="passthru"), KernelRefused, "up0"),
        (plan(netns=f"{path}-gone"), InvalidNetns, "gone"),
        (plan(netns="/etc/hostname"), InvalidNetns, "/etc/hostname.*not a network namespace"),
        (plan(netns="/proc/self/ns/net"), InvalidNetns, "node's own"),
        (plan(netns="a\0b"), InvalidNetns, "a.*b"),
    ]
    for wanted, kind, words in links:
        with pytest.raises(kind, match=words):
            await kernel.attach_link(wanted)
    addresses: list[tuple[str, AddressPlan, str]] = [
        ("eth0", FIRST, "10.77.0.5/24 to eth0.*already assigned"),
        ("net9", FIRST, "net9"),
        (
            "eth0",
            AddressPlan(addresses=(), routes=(("1.0.0.0/8", "9.9.9.9"),)),
            "1.0.0.0/8 via 9.9.9.9.*invalid gateway",
        ),
        ("eth0", AddressPlan(addresses=("224.0.0.1/24", "ff02::5/64")), "ff02::5/64 to eth0.*[Mm]ulticast|Invalid"),
    ]
    for ifname, addressing, words in addresses:
        with pytest.raises(KernelRefused, match=words):
            await kernel.configure(path, ifname, addressing)
    assert names(container) == ["lo", "eth0"]


async def test_a_parent_that_is_down(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0")
    await asyncio.to_thread(_set, "up0", state="down")
    with pytest.raises(InvalidConfig, match='master: interface "up0" on this node is down'):
        await kernel.attach_link(plan)
    assert names(container) == ["lo"]
    with pytest.raises(InvalidConfig, match="wlan9"):
        await kernel.attach_link(LinkPlan(netns=plan.netns, ifname="eth0", master="wlan9"))
    await asyncio.to_thread(_set, "up0", state="up")
    await kernel.attach_link(plan)
    # In the container it may come up later.
    down = LinkPlan(netns=plan.netns, ifname="net1", master="eth0", link_in_container=True)
    assert not (await kernel.attach_link(down)).up


async def test_who_has_the_parent(kernel: LinuxKernel, segment: Segment) -> None:
    one, two = segment.container(), segment.container()
    await kernel.attach_link(LinkPlan(netns=str(one.path), ifname="eth0", master="up0", mode="passthru"))
    with pytest.raises(
        KernelRefused, match=rf"net1 in {two.path} on master up0.*up0 has macvlan eth0 \(passthru\) in "
    ):
        await kernel.attach_link(LinkPlan(netns=str(two.path), ifname="net1", master="up0"))
    with pytest.raises(KernelRefused, match=r"EBUSY.*up0-port has bridge lan, whose port it is"):
        await kernel.attach_link(LinkPlan(netns=str(two.path), ifname="net1", master="up0-port"))
    assert names(two) == ["lo"]
    # The control: nobody is named where nobody is.
    plan = LinkPlan(netns=str(two.path), ifname="net1", master="up1", mode="passthru")
    await kernel.attach_link(plan)
    assert await kernel.detach_link(plan.netns, "net1")
    with pytest.raises(KernelRefused) as caught:
        await kernel.attach_link(LinkPlan(netns=str(two.path), ifname="net1", master="lo"))
    assert "has" not in caught.value.details.split()


async def test_a_name_that_the_node_has_too(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    path = str(container.path)
    await kernel.attach_link(LinkPlan(netns=path, ifname="up1", master="up0"))
    assert names(container) == ["lo", "up1"]
    with pytest.raises(InterfaceExists, match="up1 exists already"):
        await kernel.attach_link(LinkPlan(netns=path, ifname="up1", master="up0"))


async def test_a_kernel_that_wants_the_name_to_be_free_on_the_node(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mac=MAC)
    for leave in (False, True):
        await asyncio.to_thread(_create_as_before_6_15, plan, leave=leave)
        assert names(container) == ["lo", link.temporary_name("eth0") if leave else "eth0"]
        # Also where the process died before the link got its name.
        assert await kernel.detach_link(plan.netns, "eth0", kind="macvlan")
        assert names(container) == ["lo"]
    await asyncio.to_thread(_create_as_before_6_15, plan, leave=True)
    await asyncio.to_thread(_create_as_before_6_15, plan)
    seen = await kernel.inspect(plan.netns, "eth0")
    assert seen is not None
    assert (seen.link.mac, names(container)) == (MAC, ["lo", "eth0"])


async def test_what_differs_from_the_plan(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mode="vepa", mtu=1400)
    assert await kernel.link_differences(plan) == [f"it is gone from {container.path}"]
    await kernel.attach_link(plan)
    assert await kernel.link_differences(plan) == ["it is down"]
    await kernel.configure(plan.netns, "eth0", FIRST)
    assert await kernel.link_differences(plan) == []
    container.run(lambda: _set("eth0", mtu=1300))
    await asyncio.to_thread(_delete, "up1-port")
    assert await kernel.link_differences(replace(plan, mode="bridge", master="up1")) == [
        "its mode is vepa, not bridge",
        "its MTU is 1300, not 1400",
        "there is no interface up1 for it any more",
    ]
    assert await kernel.link_differences(replace(plan, mtu=0, master="up0-port")) == ["it is not on up0-port"]
    assert await kernel.link_differences(replace(plan, netns="/nowhere")) == ["it is gone from /nowhere"]


@pytest.mark.parametrize(("kind", "mode"), [("ipvlan", "l2"), ("vlan", "")])
async def test_a_kind_that_the_kernel_lacks(kernel: LinuxKernel, segment: Segment, kind: str, mode: str) -> None:
    if await asyncio.to_thread(knows_link_kind, kind):
        pytest.skip(f"this kernel has {kind}")
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", kind=kind, mode=mode, vlan_id=7)
    with pytest.raises(KernelRefused, match=f"make {kind} eth0 in .* on master up0.*Unknown device type"):
        await kernel.attach_link(plan)
    assert names(container) == ["lo"]


async def test_many_at_once_each_in_its_own_namespace(kernel: LinuxKernel, segment: Segment) -> None:
    containers = [segment.container() for _ in range(16)]
    before = descriptors()
    await asyncio.gather(
        *(
            attach(kernel, container, AddressPlan(addresses=(f"10.77.0.{n + 10}/24", f"fd77::{n + 10}/64")))
            for n, container in enumerate(containers)
        )
    )
    for n, container in enumerate(containers):
        seen = await kernel.inspect(str(container.path), "eth0")
        assert seen is not None
        assert sorted(seen.addresses) == [f"10.77.0.{n + 10}/24", f"fd77::{n + 10}/64"]
    assert talk(containers[3], containers[9], "fd77::13") == b"fd77::19"
    assert all(await asyncio.gather(*(kernel.detach_link(str(one.path), "eth0") for one in containers)))
    await until_closed(before)


async def test_a_cancelled_caller_is_released_when_the_kernel_is_done(kernel: LinuxKernel) -> None:
    done = []

    def slow() -> None:
        time.sleep(0.2)
        done.append(True)

    call = asyncio.create_task(kernel._run(slow))
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert done


def _create_as_before_6_15(plan: LinkPlan, *, leave: bool = False) -> None:
    """As `link.create` goes on when the kernel says that the name exists; with `leave` not to the end."""
    with SeenNetns.open(plan.netns) as netns, route_socket() as node, route_socket(netns) as inside:
        parent = link.find_parent(node, plan)
        if leave:
            temporary = replace(plan, ifname=link.temporary_name(plan.ifname))
            body = link.create_body(temporary, parent_index=parent.index, descriptor=netns.descriptor)
            node.request(link.RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
        else:
            link._create_elsewhere_named(node, plan, parent=parent, netns=netns, inside=inside, doing="make it")


def _mac_of(ifname: str) -> str:
    with IPRoute() as route:
        (found,) = route.get_links(ifname=ifname)
    return str(found.get_attr("IFLA_ADDRESS"))


def _call(ifname: str, name: str) -> None:
    with IPRoute() as route:
        route.link("property_add", index=route.link_lookup(ifname=ifname)[0], altname=name)


def _set(ifname: str, **changes: object) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], **changes)


def _delete(ifname: str) -> None:
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname=ifname)[0])


def _default_route(ifname: str) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        route.addr("add", index=index, address="10.78.0.1", prefixlen=24)
        route.route("add", dst="default", gateway="10.78.0.254")


def _default_routes(ifname: str) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        route.addr("add", index=index, address="10.78.0.1", prefixlen=24)
        hops = [{"gateway": f"10.78.0.{last}"} for last in (253, 254)]
        route.route("add", dst="default", family=socket.AF_INET, multipath=hops)


def _listen() -> socket.socket:
    ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    ear.bind(("host", 3))
    ear.settimeout(0.3)
    return ear


def _hear(ear: socket.socket) -> list[bytes]:
    frames = []
    with suppress(TimeoutError):
        while True:
            frames.append(ear.recv(2000))
    return frames


def _reach() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as caller:
        caller.settimeout(0.3)
        with suppress(ConnectionRefusedError):
            caller.connect(("10.77.0.5", 9))


def _neighbours() -> dict[str, str]:
    with IPRoute() as route:
        found = route.get_neighbours(match=lambda one: bool(one.get_attr("NDA_LLADDR")))
        listed = {one.get_attr("NDA_DST"): one.get_attr("NDA_LLADDR") for one in found}
    return {address: mac for address, mac in listed.items() if address in {"10.77.0.5", "fd77::5"}}


def _dump() -> list[str]:
    with IPRoute() as route:
        links = [one.get_attr("IFLA_IFNAME") for one in route.get_links()]
        addresses = [one.get_attr("IFA_ADDRESS") for one in route.get_addr() if one["scope"] != 253]
        # Link-local ones come when duplicates have been looked for, some time after their link.
        routes = [f"{one.get_attr('RTA_DST')} {one['table']}" for one in route.get_routes()]
        routes = [one for one in routes if not one.startswith("fe80:")]
        rules = [str(one["table"]) for one in route.get_rules()]
    return sorted(filter(None, links + addresses + routes + rules))


async def test_a_deleted_link_is_gone_before_the_kernel_acknowledges_it(kernel: LinuxKernel, segment: Segment) -> None:
    container = segment.container()
    path = str(container.path)
    before = descriptors()
    for _ in range(100):
        await attach(kernel, container, FIRST)  # its name and its addresses can be used at once
        assert await kernel.detach_link(path, "eth0")
        unacknowledged = descriptors() != before  # who asked for it still waits
        assert names(container) == ["lo"]
        if unacknowledged:  # a busy machine may come here only after the acknowledgement, but not every time
            break
        await until_closed(before)
    else:
        pytest.fail("a removal was answered only when it had been acknowledged, a hundred times")
    await until_closed(before)


def test_what_the_kernel_does_not_delete_is_told(segment: Segment) -> None:
    with SeenNetns.open(str(segment.container().path)) as netns, route_socket(netns) as sockets:
        loopback = link.get(sockets, "lo")
        assert loopback is not None
        with pytest.raises(KernelRefused, match="delete"):
            link.delete(sockets, loopback)
        assert not link.delete(sockets, replace(loopback, index=4711)), "what is not there is no error"
        assert link.get(sockets, "lo") == loopback, "the socket is as before"
