"""Virtual functions of an igb are lent to pods and taken back: what is seen at the PF, in the pod, and afterwards."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from actors.node.disk import DiskJournal, open_journal
from actors.node.pfs import PhysicalFunctions
from api.wire import PodRef
from cni import sriov as rules
from cni.errors import InvalidConfig, KernelRefused, TryAgainLater
from cni.journal import JournalEntry, State
from cni.kernel import LinuxKernel
from cni.netlink import sriov
from cni.netlink.pci import PciBus
from cni.plan import AddressPlan, LinkState
from cni.sriov import Returned, VfHeld, VfPlan, VfSettings, VfVlan
from cni.vfs import LinuxVfs
from runtime.actor import System
from runtime.supervision import Supervisor
from tests.netns import Netns
from tests.node.conftest import talk
from tests.vm.inside.nics import PhysicalNic, VirtualFunction, wait_until

pytestmark = pytest.mark.node

type Namespaces = Callable[[], Netns]

MAC = "02:00:00:00:77:05"
ETH_P_ARP = 0x0806
BUS = PciBus()


def borrowed(function: VirtualFunction) -> VfHeld:
    return replace(sriov.survey_vf(function.address, bus=BUS), mark=rules.mark("c1", "net1"), order=1)


def wanted(pod: Netns, function: VirtualFunction | None = None, *, mtu: int = 0, **settings: Any) -> VfPlan:
    pci, pf = (function.address, "") if function is not None else ("", "eth0")
    return VfPlan(netns=str(pod.path), ifname="net1", pci=pci, pf=pf, mtu=mtu, settings=VfSettings(**settings))


def give(pod: Netns, held: VfHeld) -> Returned:
    return sriov.give_vf(str(pod.path), held, settle=False, sure=False, bus=BUS)


def state(nic: PhysicalNic) -> list[object]:
    """Of each function: all that is recorded before it is lent."""
    return [sriov.survey_vf(one.address, bus=BUS) for one in nic.functions]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"vlan": VfVlan(id=100, qos=3), "rates": (0, 200), "spoofchk": False, "trust": True},
        {"mac": MAC, "vlan": VfVlan()},
    ],
    ids=["as it is", "settings", "mac"],
)
def test_a_function_in_a_pod_and_back(nic: PhysicalNic, namespaces: Namespaces, settings: dict[str, Any]) -> None:
    pod, function = namespaces(), nic.functions[1]
    before = state(nic)
    held = borrowed(function)
    plan = wanted(pod, function, mtu=1400, **settings)
    made = sriov.take_vf(plan, held, bus=BUS)
    assert made is not None and (made.ifname, made.mtu, made.up) == ("net1", 1400, False)
    assert made.mac == settings.get("mac", held.mac)
    assert function.ifname == "" and sriov.vf_differences(plan, held, bus=BUS) == ["it is down"]
    assert give(pod, held) is Returned.BACK
    assert state(nic) == before
    assert give(pod, held) is Returned.BACK and state(nic) == before, "again"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rates": (100, 200)}, r"min_tx_rate, max_tx_rate of VF 2 .* of eth0 to 100 to 200 Mb/s.*EINVAL"),
        ({"link_state": "enable"}, r"link_state of VF 2 .* of eth0 to enable.*NOTSUP"),
        ({"vlan": VfVlan(id=100, protocol="802.1ad")}, r"vlanProto of VF 2 .* VLAN 100, .*802\.1ad.*EPROTONOSUPPORT"),
    ],
    ids=["least rate", "link state", "802.1ad"],
)
def test_what_an_igb_refuses_is_said_and_undone(
    nic: PhysicalNic, namespaces: Namespaces, settings: dict[str, Any], words: str
) -> None:
    pod, function = namespaces(), nic.functions[2]
    before = state(nic)
    with pytest.raises(KernelRefused, match=words):
        sriov.take_vf(wanted(pod, function, **{"trust": True, **settings}), borrowed(function), bus=BUS)
    assert state(nic) == before


def test_an_mtu_above_the_nics(nic: PhysicalNic, namespaces: Namespaces) -> None:
    pod, function = namespaces(), nic.functions[2]
    with pytest.raises(InvalidConfig, match=r"mtu: 9000 is not possible: .* 1500, the MTU of eth0"):
        sriov.take_vf(wanted(pod, function, mtu=9000), borrowed(function), bus=BUS)


# -- through the actor -------------------------------------------------------------------------------------------------


class Lender:
    """What an agent has of it, and what its sandbox actors do with that."""

    def __init__(self, pfs: PhysicalFunctions, journal: DiskJournal) -> None:
        self.pfs = pfs
        self.journal = journal

    async def add(self, pod: Netns, plan: VfPlan, *addresses: str) -> tuple[JournalEntry, LinkState]:
        entry = JournalEntry(
            container_id=f"c-{pod.name}", ifname="net1", netns=str(pod.path), pod=PodRef(namespace="ns", name=pod.name)
        )
        entry = await self.pfs.reserve(entry, plan)
        await self.journal.put(entry)
        made = await self.pfs.take(entry, plan)
        assert made is not None
        if addresses:
            await LinuxKernel().configure(entry.netns, "net1", AddressPlan(addresses=addresses))
            self.pfs.announce(entry)
        entry = replace(entry, state=State.ADDED)
        await self.journal.put(entry)
        return entry, made

    async def delete(self, entry: JournalEntry) -> None:
        await self.pfs.give(entry)
        await self.journal.remove(entry.key)


class Agents:
    """One agent after another on one journal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._supervisor: Supervisor | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> Lender:
        await self.stop()
        journal = open_journal(self._folder)
        await journal.load()
        self._supervisor = Supervisor("pfs", System.real())
        self._running = asyncio.create_task(self._supervisor.run())
        return Lender(
            PhysicalFunctions(self._supervisor, vfs=LinuxVfs(), kernel=LinuxKernel(), journal=journal), journal
        )

    async def stop(self) -> None:
        if self._supervisor is not None and self._running is not None:
            await self._supervisor.stop()
            await self._running


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    made = Agents(tmp_path / "state")
    yield made
    await made.stop()


async def test_pods_on_functions_talk(nic: PhysicalNic, namespaces: Namespaces, agents: Agents, wire: str) -> None:
    one, two = namespaces(), namespaces()
    before = state(nic)
    lender = await agents.start()
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
    listening.bind((wire, 0))
    first, _ = await lender.add(one, wanted(one), "10.79.0.5/24", "fd79::5/64")
    second, _ = await lender.add(two, wanted(two, mac=MAC), "10.79.0.6/24", "fd79::6/64")
    assert first.vf is not None and second.vf is not None and (first.vf.number, second.vf.number) == (0, 1)
    for pod in (one, two):
        await asyncio.to_thread(wait_until, lambda pod=pod: runs(pod, "net1"), 30)
    with listening:
        assert await asyncio.to_thread(announced, listening, "10.79.0.6") == MAC
    assert await asyncio.to_thread(talk, one, two, "10.79.0.5", timeout=10) == b"10.79.0.6"
    assert await asyncio.to_thread(talk, two, one, "fd79::6", timeout=10) == b"fd79::5"
    await lender.delete(first)
    await lender.delete(second)
    assert state(nic) == before


async def test_a_function_is_lent_once_and_comes_home_from_a_dead_namespace(
    nic: PhysicalNic, namespaces: Namespaces, agents: Agents
) -> None:
    one, two = namespaces(), namespaces()
    function, before = nic.functions[3], state(nic)
    lender = await agents.start()
    entry, _ = await lender.add(one, wanted(one, function, trust=True, vlan=VfVlan(id=7)))
    with pytest.raises(TryAgainLater, match=rf"VF 3 .* is already allocated: it is net1 of pod ns/{one.name}"):
        await lender.add(two, wanted(two, function))
    lender = await agents.start()
    with pytest.raises(TryAgainLater, match=rf"is already allocated: it is net1 of pod ns/{one.name}"):
        await lender.add(two, wanted(two, function))
    one.__exit__(None, None, None)
    await asyncio.to_thread(wait_until, lambda: function.ifname != "", 30)
    # The next pod gets it as it was, and the late end of the first one does not touch it.
    again, _ = await lender.add(two, wanted(two, function))
    assert again.vf is not None and replace(again.vf, mark="", order=0) == before[3]
    await lender.delete(entry)
    assert function.ifname == ""
    await lender.delete(again)
    assert state(nic) == before


async def test_no_free_function(nic: PhysicalNic, namespaces: Namespaces, agents: Agents, wire: str) -> None:
    lender = await agents.start()
    pod = namespaces()
    with pytest.raises(InvalidConfig, match=rf'"{wire}" has no virtual functions'):
        await lender.add(pod, replace(wanted(pod), pf=wire))

    def use(*, used: bool) -> None:
        with IPRoute() as route:
            for one in nic.functions:
                index = route.link_lookup(ifname=one.ifname)[0]
                route.addr("add" if used else "del", index=index, address="10.79.9.1", prefixlen=32)

    await asyncio.to_thread(use, used=True)
    with pytest.raises(TryAgainLater, match=r'of "eth0" is free: VF 0 .* has address 10\.79\.9\.1/32'):
        await lender.add(pod, wanted(pod))
    await asyncio.to_thread(use, used=False)


async def test_what_the_pod_sends_is_limited_by_the_nic(
    nic: PhysicalNic, namespaces: Namespaces, agents: Agents
) -> None:
    pod, before = namespaces(), state(nic)
    lender = await agents.start()
    entry, _ = await lender.add(pod, wanted(pod))
    await lender.pfs.limit(entry, 50)
    assert entry.vf is not None
    seen = await asyncio.to_thread(nic.settings, nic.functions[entry.vf.number])
    assert seen["max_tx_rate"] == 50
    await lender.delete(entry)
    assert state(nic) == before


def announced(listening: socket.socket, address: str) -> str:
    """Who says on the wire that an address is his, without being asked."""
    listening.settimeout(20)
    own = socket.inet_aton(address)
    while True:
        frame = listening.recv(100)
        if frame[28:32] == frame[38:42] == own:
            return frame[22:28].hex(":")


def runs(pod: Netns, ifname: str) -> bool:
    def look() -> bool:
        with IPRoute() as route:
            (found,) = route.get_links(ifname=ifname)
        return bool(found["flags"] & 0x40)

    return pod.run(look)
