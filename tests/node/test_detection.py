"""Probing on the real kernel: who answers, what is on the wire, and that nothing is left."""

import asyncio
import socket
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import anyio
import pytest
from pyroute2 import IPRoute

from cni.detection import Conflict, Findings, ProbePlan
from cni.errors import InvalidNetns
from cni.kernel import LinuxKernel
from cni.netlink import address
from cni.plan import AddressPlan, LinkPlan
from tests.netns import Netns
from tests.node.conftest import Segment, talk
from tests.node.descriptors import descriptors, until_closed

pytestmark = pytest.mark.node

MAC = "02:00:00:00:77:05"
BOTH = ("10.77.0.1", "fd77::1")
"""What the segment's neighbour has."""
FREE = ("10.77.0.5", "fd77::5")
LONG = 5.0
"""Seconds; nobody waits for so long, for all is answered before."""


@pytest.fixture
def kernel() -> LinuxKernel:
    return LinuxKernel()


async def pod(kernel: LinuxKernel, segment: Segment, *, mac: str = "", **changes: object) -> ProbePlan:
    container = segment.container()
    plan = LinkPlan(netns=str(container.path), ifname="eth0", master="up0", mac=mac)
    await kernel.attach_link(plan)
    return ProbePlan(**{"netns": plan.netns, "ifname": "eth0", **changes})  # type: ignore[arg-type]


async def test_a_stranger_is_found_with_its_mac(kernel: LinuxKernel, segment: Segment) -> None:
    seen = await kernel.probe(await pod(kernel, segment, addresses=BOTH, budget=LONG))
    mac = segment.neighbour.run(_mac)
    assert seen.conflicts == (Conflict("10.77.0.1", mac), Conflict("fd77::1", mac))
    assert (seen.silent, seen.skipped, seen.carrier) == ((), "", True)


async def test_nobody_is_nothing(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE)
    assert await kernel.probe(plan) == Findings(ifname="eth0")


async def test_each_family_alone(kernel: LinuxKernel, segment: Segment) -> None:
    for one in BOTH:
        seen = await kernel.probe(await pod(kernel, segment, addresses=(one,), budget=LONG))
        assert [conflict.address for conflict in seen.conflicts] == [one]


async def test_gateways(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, gateways=BOTH)
    assert await kernel.probe(plan) == Findings(ifname="eth0")
    segment.neighbour.run(lambda: _link("host", state="down"))
    silent = await pod(kernel, segment, addresses=FREE, gateways=BOTH)
    assert (await kernel.probe(silent)).silent == BOTH
    # A gateway that was heard once does not count as heard for ever.
    assert (await kernel.probe(plan)).silent == BOTH


async def test_who_has_all_answers_ends_the_wait(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, gateways=BOTH, budget=60.0)
    with anyio.fail_after(30.0):
        assert await kernel.probe(plan) == Findings(ifname="eth0")


async def test_a_probe_is_from_nobody(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, mac=MAC, addresses=FREE, gateways=BOTH)
    frames = await _heard(segment.neighbour, lambda: kernel.probe(plan))
    assert sorted(_arp_requests(frames)) == sorted((MAC, "0.0.0.0", wanted) for wanted in ("10.77.0.1", "10.77.0.5"))
    solicited = [
        (IPv6Address(frame[62:78]).compressed, IPv6Address(frame[22:38]).is_link_local, frame[78:86])
        for frame in _icmp6(frames, 135)
        if frame[22:38] != bytes(16)  # the kernel's own link-local address is looked for by itself
    ]
    option = b"\x01\x01" + bytes.fromhex(MAC.replace(":", ""))
    assert sorted(solicited) == [("fd77::1", True, option), ("fd77::5", True, option)]


async def test_another_interface_is_not_given_as_the_sender(
    kernel: LinuxKernel, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod may have an interface that an overlay made: whoever knows it must not look for it behind this one."""
    for crowded in (True, False):
        plan = await pod(kernel, segment, mac=MAC, addresses=("10.77.0.1",), budget=LONG)
        container = _container(segment, plan)
        container.run(_overlay)
        with monkeypatch.context() as patch:
            if not crowded:  # the control
                patch.setattr(address, "listed", lambda _: [])
            frames = await _heard(segment.neighbour, partial(kernel.probe, plan))
        sender = "0.0.0.0" if crowded else "192.168.3.3"
        assert _arp_requests(frames) == [(MAC, sender, "10.77.0.1")]
        assert segment.neighbour.run(lambda: _knows("192.168.3.3")) is not crowded
        mac = segment.neighbour.run(_mac)
        assert (await kernel.probe(plan)).conflicts == (Conflict("10.77.0.1", mac),)
        await kernel.detach_link(plan.netns, "eth0")


async def test_an_interface_that_shares_the_mac_is_no_conflict(kernel: LinuxKernel, segment: Segment) -> None:
    """As siblings on ipvlan do."""
    plan = await pod(kernel, segment, mac=MAC, addresses=BOTH, budget=LONG)
    segment.neighbour.run(lambda: _link("host", address=MAC))
    assert await kernel.probe(plan) == Findings(ifname="eth0")


async def test_who_has_not_answered_is_asked_again(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, gateways=BOTH, probes=3, budget=0.09)
    frames = await _heard(segment.neighbour, lambda: kernel.probe(plan))
    asked = [wanted for _, _, wanted in _arp_requests(frames)]
    assert (asked.count("10.77.0.5"), asked.count("10.77.0.1")) == (3, 1)
    solicited = [frame[62:78] for frame in _icmp6(frames, 135)]
    five, one = IPv6Address("fd77::5").packed, IPv6Address("fd77::1").packed
    assert (solicited.count(five), solicited.count(one)) == (3, 1)


async def test_a_late_host_is_found_by_a_later_probe(kernel: LinuxKernel, segment: Segment) -> None:
    segment.neighbour.run(lambda: _link("host", state="down"))
    plan = await pod(kernel, segment, addresses=("10.77.0.1",), probes=20, budget=10.0)
    async with anyio.create_task_group() as group:

        async def wake() -> None:
            await asyncio.sleep(0.2)
            await asyncio.to_thread(segment.neighbour.run, lambda: _link("host", state="up"))

        group.start_soon(wake)
        seen = await kernel.probe(plan)
    assert [conflict.address for conflict in seen.conflicts] == ["10.77.0.1"]


async def test_a_gateway_that_answered_is_known_from_then_on(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, gateways=BOTH)
    await kernel.probe(plan)
    await kernel.configure(plan.netns, "eth0", AddressPlan(addresses=("10.77.0.5/24", "fd77::5/64"), gateways=BOTH))
    container = _container(segment, plan)
    assert {where for where, _ in container.run(_neighbours)} == {*BOTH}
    frames = await _heard(segment.neighbour, lambda: asyncio.to_thread(talk, segment.neighbour, container, "10.77.0.1"))
    assert ("10.77.0.5", "10.77.0.1") not in {(source, wanted) for _, source, wanted in _arp_requests(frames)}


async def test_nothing_is_left(kernel: LinuxKernel, segment: Segment) -> None:
    for crowded in (False, True):
        plan = await pod(
            kernel, segment, addresses=(*FREE, "10.77.0.1"), gateways=("10.77.0.9", "fd77::9"), budget=0.05
        )
        container = _container(segment, plan)
        if crowded:
            container.run(_overlay)
        before = container.run(_dump), descriptors()
        seen = await kernel.probe(plan)
        assert [conflict.address for conflict in seen.conflicts] == ["10.77.0.1"]
        assert container.run(_neighbours) == set()
        after = container.run(_dump), descriptors()
        assert [after[0][1:], after[1]] == [before[0][1:], before[1]]
        # The link is up, with the link-local address that the kernel gave it, and no other.
        assert after[0][0] - before[0][0] == {("eth0", True)}
        assert container.run(_link_local) == 1
        await kernel.detach_link(plan.netns, "eth0")
        await until_closed(before[1])


async def test_what_was_down_goes_down_again(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, gateways=BOTH, restore=True)
    container = _container(segment, plan)
    before = container.run(_dump)
    assert await kernel.probe(plan) == Findings(ifname="eth0")
    assert (container.run(_dump), container.run(_link_local), container.run(_neighbours)) == (before, 0, set())
    container.run(lambda: _link("eth0", state="up"))
    await kernel.probe(plan)
    assert ("eth0", True) in container.run(_dump)[0]


async def test_a_cancelled_one_leaves_nothing(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, budget=60.0)
    container = _container(segment, plan)
    before = container.run(_dump), descriptors()
    with anyio.move_on_after(0.1) as scope:
        await kernel.probe(plan)
    assert scope.cancelled_caught
    after = container.run(_dump), descriptors()
    assert (after[0][1:], after[1]) == (before[0][1:], before[1])
    assert container.run(_neighbours) == set()


async def test_what_cannot_be_asked(kernel: LinuxKernel, segment: Segment) -> None:
    plan = await pod(kernel, segment, addresses=FREE, gateways=BOTH)
    container = _container(segment, plan)
    missing = ProbePlan(netns=plan.netns, ifname="eth9", addresses=FREE, gateways=BOTH)
    assert (await kernel.probe(missing)).skipped == "there is no interface eth9 yet"
    # As ipvlan in l3 mode has it.
    container.run(lambda: _link("eth0", flags=0x80, mask=0x80))
    assert (await kernel.probe(plan)).skipped == "eth0 does not resolve addresses"
    container.run(lambda: _link("eth0", flags=0, mask=0x80))
    assert (await kernel.probe(plan)).skipped == ""
    with pytest.raises(InvalidNetns):
        await kernel.probe(ProbePlan(netns="/nonexistent", ifname="eth0", addresses=FREE))


@pytest.mark.parametrize("cut", ["up0", "up0-port"])
async def test_no_carrier_is_said(kernel: LinuxKernel, segment: Segment, cut: str) -> None:
    plan = await pod(kernel, segment, gateways=BOTH)
    await asyncio.to_thread(_link, cut, state="down")
    seen = await kernel.probe(plan)
    for _ in range(200):  # the kernel tells links above of it in its own time
        if not seen.carrier:
            break
        await asyncio.sleep(0.05)
        seen = await kernel.probe(plan)
    assert (seen.carrier, seen.silent) == (False, BOTH)


async def test_many_at_once_wait_together(kernel: LinuxKernel, segment: Segment) -> None:
    """A wait takes no thread: twenty take about as long as one does, and not as eight and eight and four."""
    plans = []
    for _ in range(20):
        container = segment.container()
        await kernel.attach_link(LinkPlan(netns=str(container.path), ifname="eth0", master="up0"))
        plans.append(ProbePlan(netns=str(container.path), ifname="eth0", addresses=FREE, budget=1.0))
    begun = time.monotonic()
    await kernel.probe(plans[0])
    alone = time.monotonic() - begun
    begun = time.monotonic()
    async with anyio.create_task_group() as group:
        for plan in plans:
            group.start_soon(kernel.probe, plan)
    assert time.monotonic() - begun < 2 * alone


async def test_the_segment_is_told_after_probing(kernel: LinuxKernel, segment: Segment) -> None:
    """The kernel does not announce what a link gets that is up."""
    plan = await pod(kernel, segment, mac=MAC, addresses=FREE, gateways=BOTH)
    await kernel.probe(plan)
    addresses = AddressPlan(addresses=("10.77.0.5/24", "fd77::5/64"))
    frames = await _heard(segment.neighbour, lambda: kernel.configure(plan.netns, "eth0", addresses))
    assert (MAC, "10.77.0.5", "10.77.0.5") in _arp_requests(frames)
    announced = [
        frame
        for frame in _icmp6(frames, 136)
        if (frame[21], frame[58], frame[62:78]) == (255, 0x20, IPv6Address("fd77::5").packed)
    ]
    assert announced
    assert {where for where, _ in _container(segment, plan).run(_neighbours)} == {*BOTH}


async def test_a_neighbour_forgets_the_former_holder_after_probing(kernel: LinuxKernel, segment: Segment) -> None:
    for announces in (True, False):
        segment.neighbour.run(lambda: _remember("10.77.0.5", "02:00:00:00:00:99"))
        plan = await pod(kernel, segment, mac=MAC, addresses=("10.77.0.5",))
        if announces:
            await kernel.probe(plan)
        else:  # the control: up, and nothing says so
            _container(segment, plan).run(lambda: _link("eth0", state="up"))
            _container(segment, plan).run(lambda: _address("eth0", "10.77.0.5"))
        if announces:
            await kernel.configure(plan.netns, "eth0", AddressPlan(addresses=("10.77.0.5/24",)))
        found = dict(segment.neighbour.run(_neighbours))
        assert found["10.77.0.5"] == (MAC if announces else "02:00:00:00:00:99")
        await kernel.detach_link(plan.netns, "eth0")


# -- what is on the wire -----------------------------------------------------------------------------------------------


async def _heard(where: Netns, work: Callable[[], object]) -> list[bytes]:
    with where.run(_listen) as ear:
        await work()  # type: ignore[misc]
        return await asyncio.to_thread(_frames, ear)


def _listen() -> socket.socket:
    ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    ear.settimeout(0.3)
    return ear


def _frames(ear: socket.socket) -> list[bytes]:
    found: list[bytes] = []
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        try:
            frame, sender = ear.recvfrom(2048)
        except TimeoutError:
            break
        if sender[2] != 4:  # what this host sends itself
            found.append(frame)
    return found


def _arp_requests(frames: list[bytes]) -> list[tuple[str, str, str]]:
    """Sender's MAC, sender's address, and what is asked for."""
    return [
        (frame[22:28].hex(":"), str(IPv4Address(frame[28:32])), str(IPv4Address(frame[38:42])))
        for frame in frames
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x01"
    ]


def _icmp6(frames: list[bytes], kind: int) -> list[bytes]:
    return [frame for frame in frames if frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == kind]


# -- inside a namespace ------------------------------------------------------------------------------------------------


def _container(segment: Segment, plan: ProbePlan) -> Netns:
    path = Path(plan.netns)
    return Netns(path.parent, path.name)


def _mac() -> str:
    with IPRoute() as route:
        return str(route.link("get", ifname="host")[0].get_attr("IFLA_ADDRESS"))


def _link(ifname: str, **changes: object) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(ifname), **changes)


def _address(ifname: str, address: str) -> None:
    with IPRoute() as route:
        route.addr("add", index=socket.if_nametoindex(ifname), address=address, prefixlen=24)


def _overlay() -> None:
    with IPRoute() as route:
        route.link("add", ifname="over0", kind="veth", peer={"ifname": "over1"})
    for name in ("over0", "over1"):
        _link(name, state="up")
    _address("over0", "192.168.3.3")


def _remember(address: str, mac: str) -> None:
    with IPRoute() as route:
        route.neigh("replace", dst=address, lladdr=mac, ifindex=socket.if_nametoindex("host"), state=4)


def _neighbours() -> set[tuple[str, str]]:
    """Addresses and MAC addresses that are known; multicast and the like left out."""
    with IPRoute() as route:
        return {
            (entry.get_attr("NDA_DST"), entry.get_attr("NDA_LLADDR", ""))
            for family in (socket.AF_INET, socket.AF_INET6)
            for entry in route.get_neighbours(family)
            if not entry["state"] & 0x40
        }


def _knows(address: str) -> bool:
    return address in dict(_neighbours())


def _link_local() -> int:
    with IPRoute() as route:
        return sum(
            one.get_attr("IFA_ADDRESS").startswith("fe80")
            for one in route.get_addr(socket.AF_INET6, index=socket.if_nametoindex("eth0"))
        )


def _dump() -> tuple[set[tuple[str, bool]], set[tuple[str, str]], set[str]]:
    """Links and whether they are up, addresses but link-local ones, IPv4 routes."""
    with IPRoute() as route:
        return (
            {(one.get_attr("IFLA_IFNAME"), bool(one["flags"] & 1)) for one in route.get_links()},
            {
                (one.get_attr("IFA_LABEL", ""), one.get_attr("IFA_ADDRESS"))
                for one in route.get_addr()
                if not one.get_attr("IFA_ADDRESS").startswith("fe80")
            },
            {str(one.get_attr("RTA_DST")) for one in route.get_routes(socket.AF_INET)},
        )
