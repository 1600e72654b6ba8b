"""The actor of an SR-IOV NIC: one VF to one pod, and back to what it was, whatever dies in between."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import anyio
import pytest
from msgspec.structs import replace

from actors.node.nic import Nic
from actors.node.pfs import PhysicalFunctions
from api.networks import Bandwidth
from api.wire import PodRef
from cni.bandwidth import buckets
from cni.errors import CniError, InvalidConfig, KernelRefused, TryAgainLater
from cni.journal import JournalEntry, State
from cni.plan import LinkState
from cni.sriov import PfView, Returned, VfHeld, VfPlan, VfSeen, VfSettings, VfVlan
from runtime.actor import System
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from tests.rules.test_cni_protocol import invoke
from tests.simulation.node import MemoryDisk, MemoryJournal

PF = "0000:01:00.0"


class Vf:
    """What one is now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pci = f"0000:01:10.{number}"
        self.netns = ""
        self.ifname = f"vf{number}"
        self.mac = f"02:00:00:00:00:0{number}"
        self.settings = VfSettings(vlan=VfVlan(), rates=(0, 0), spoofchk=True, trust=False)
        self.driver = "igbvf"
        self.alias = ""
        self.under_way = False
        """Its namespace has died, and it is not back yet."""

    @property
    def state(self) -> tuple[object, ...]:
        return self.netns, self.ifname, self.mac, self.settings, self.under_way, self.alias


class Machine:
    """A node with one NIC. Implements `cni.vfs.Vfs` and what is needed of `cni.kernel.Kernel`; every call may fail."""

    def __init__(self, vfs: int = 2) -> None:
        self.vfs = {vf.pci: vf for vf in (Vf(number) for number in range(vfs))}
        self.namespaces: set[str] = set()
        self.refuse: Callable[[str], None] = lambda _: None
        self.calls: list[str] = []
        self.carrier = True
        self.slow = False
        """Whether a namespace that dies keeps its VF for a while."""

    async def _step(self, name: str) -> None:
        self.calls.append(name)
        await anyio.sleep(0.01)
        self.refuse(name)

    def die(self, netns: str) -> None:
        self.namespaces.discard(netns)
        for vf in self.vfs.values():
            if vf.netns == netns:
                vf.netns, vf.ifname, vf.under_way = "", f"dev{vf.number}", self.slow

    async def physical_function(self, plan: VfPlan) -> str:
        if plan.pci and plan.pci not in self.vfs:
            raise InvalidConfig(f"deviceID: there is no PCI device {plan.pci}")
        return PF

    async def view_pf(self, pf: str) -> PfView:
        await self._step("view")
        seen = tuple(
            VfSeen(
                number=vf.number,
                pci=vf.pci,
                driver=vf.driver,
                ifname="" if vf.netns or vf.under_way or vf.driver != "igbvf" else vf.ifname,
                mark=vf.alias,
            )
            for vf in self.vfs.values()
        )
        return PfView(pci=pf, ifname="eth1", vfs=seen)

    async def survey_vf(self, pci: str) -> VfHeld:
        await self._step("survey")
        vf = self.vfs[pci]
        if vf.driver == "vfio-pci":
            return VfHeld(pci=pci, pf=PF, number=vf.number, settings=vf.settings)
        if vf.netns or vf.under_way:
            raise TryAgainLater(f"deviceID: VF {vf.number} ({pci}) is in use")
        return VfHeld(
            pci=pci, pf=PF, number=vf.number, ifname=vf.ifname, mac=vf.mac, settings=vf.settings, alias=vf.alias
        )

    async def take_vf(self, plan: VfPlan, held: VfHeld) -> LinkState | None:
        vf = self.vfs[held.pci]
        await self._step("mark")
        vf.alias = held.mark
        await self._step("tell")
        vf.settings = replace(vf.settings, **plan.settings.said)
        await self._step("move")
        if vf.driver == "vfio-pci":
            return None
        assert not vf.netns and not vf.under_way, f"{vf.ifname} of {vf.netns} was taken for {plan.netns}"
        if plan.netns not in self.namespaces:
            raise KernelRefused(f"no namespace {plan.netns}")
        vf.netns, vf.ifname = plan.netns, plan.ifname
        await self._step("mac")
        vf.mac = plan.settings.mac or vf.mac
        return LinkState(ifname=vf.ifname, index=7, mac=vf.mac, mtu=1500)

    async def give_vf(self, netns: str, held: VfHeld, *, settle: bool = False, sure: bool = False) -> Returned:
        vf = self.vfs[held.pci]
        await self._step("return")
        if vf.driver == "vfio-pci":
            vf.settings = held.settings
            return Returned.BACK
        if vf.under_way or vf.netns not in {"", netns}:
            if settle:
                vf.settings = held.settings
            return Returned.LOST
        vf.netns = ""
        if vf.alias not in {"", held.mark} and not sure:
            return Returned.ANOTHERS
        await self._step("reset")
        vf.settings, vf.mac, vf.ifname, vf.alias = held.settings, held.mac, held.ifname, held.alias
        return Returned.BACK

    async def limit_vf(self, held: VfHeld, mbps: int) -> None:
        await self._step("limit")
        vf = self.vfs[held.pci]
        vf.settings = replace(vf.settings, rates=(0, mbps))

    async def vf_differences(self, plan: VfPlan, held: VfHeld) -> list[str]:
        return []

    async def pf_networks(self, pf: str) -> tuple[str, ...]:
        return ("10.0.0.1/24",)

    async def announce_vf(self, netns: str, ifname: str) -> bool:
        await self._step(f"announce {ifname}")
        return self.carrier

    async def netns_exists(self, netns: str) -> bool:
        return netns in self.namespaces

    async def vanished(self, paths: list[str]) -> frozenset[str]:
        return frozenset(path for path in paths if path not in self.namespaces)


async def nowhere(_: str) -> None:
    return None


class Agent:
    """One agent's life: its actors of NICs, and what its sandbox actors do with them."""

    def __init__(self, machine: Machine, disk: MemoryDisk) -> None:
        self.machine = machine
        self.journal = MemoryJournal(disk)
        self.system = System(clock=VirtualClock(), random=Random(1))
        self.supervisor = Supervisor("pfs", self.system)
        self.pfs = PhysicalFunctions(self.supervisor, vfs=machine, kernel=machine, journal=self.journal)  # type: ignore[arg-type]

    async def add(self, pod: str, plan: VfPlan, *, crash: str = "") -> JournalEntry:
        """ADD, as a sandbox actor does it; `crash` is the step behind which it ends without a word."""
        entry = entry_of(pod)
        self.machine.namespaces.add(entry.netns)
        async with self.journal.claim(entry.container_id, seconds=30.0):
            return await self._add(entry, plan, crash)

    async def _add(self, entry: JournalEntry, plan: VfPlan, crash: str) -> JournalEntry:
        entry = await self.pfs.reserve(entry, plan)
        if crash == "reserve":
            return entry
        await self.journal.put(entry)
        if crash == "journal":
            return entry
        try:
            await self.pfs.take(entry, plan)
        except CniError:
            await self._delete(entry)
            raise
        entry = replace(entry, state=State.ADDED)
        await self.journal.put(entry)
        self.pfs.announce(entry)
        return entry

    async def delete(self, entry: JournalEntry) -> None:
        """DEL, or what mends an entry whose namespace has died."""
        async with self.journal.claim(entry.container_id, seconds=30.0):
            (now,) = await self.journal.get(entry.key)
            if now is None or now.vf is not None:
                await self._delete(now or entry)

    async def _delete(self, entry: JournalEntry) -> None:
        await self.pfs.give(entry)
        await self.journal.put(replace(entry, state=State.RELEASING, vf=None))


def entry_of(pod: str) -> JournalEntry:
    netns = f"/run/netns/{pod}"
    return JournalEntry(container_id=f"c-{pod}", ifname="net1", netns=netns, pod=PodRef(namespace="ns", name=pod))


def wanted(pod: str, pci: str = "", **settings: object) -> VfPlan:
    made = replace(VfSettings(vlan=VfVlan(id=7)), **settings)
    return VfPlan(netns=f"/run/netns/{pod}", ifname="net1", pci=pci, pf="" if pci else "eth1", settings=made)


def live(story: Callable[[Agent], Awaitable[None]], *, machine: Machine | None = None) -> Machine:
    """A story of one agent on a virtual clock."""
    machine = machine or Machine()

    async def main() -> None:
        async with agent_on(machine, MemoryDisk(nowhere)) as agent:
            await story(agent)

    run(main, seed=1)
    return machine


class agent_on:  # noqa: N801 - a context manager
    def __init__(self, machine: Machine, disk: MemoryDisk) -> None:
        self.agent = Agent(machine, disk)

    async def __aenter__(self) -> Agent:
        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.group.start_soon(self.agent.supervisor.run)
        return self.agent

    async def __aexit__(self, *_: object) -> None:
        self.agent.journal.died()
        self.group.cancel_scope.cancel()
        await self.group.__aexit__(None, None, None)


def test_a_vf_comes_and_goes() -> None:
    async def story(agent: Agent) -> None:
        (vf, other) = agent.machine.vfs.values()
        before = vf.state, other.state
        entry = await agent.add("a", wanted("a", mac="02:00:00:00:00:aa"))
        assert (vf.netns, vf.ifname, vf.mac) == ("/run/netns/a", "net1", "02:00:00:00:00:aa")
        assert vf.settings.vlan == VfVlan(id=7)
        assert entry.vf is not None and entry.vf.ifname == "vf0" and entry.vf.settings.vlan == VfVlan()
        await anyio.sleep(0.1)
        assert "announce net1" in agent.machine.calls
        await agent.delete(entry)
        assert (vf.state, other.state) == before

    live(story)


def test_an_announcement_waits_for_the_carrier_and_nobody_waits_for_it() -> None:
    async def story(agent: Agent) -> None:
        agent.machine.carrier = False
        await agent.add("a", wanted("a"))
        await agent.add("b", wanted("b"))
        await anyio.sleep(1)
        tried = agent.machine.calls.count("announce net1")
        assert 5 < tried < 50
        agent.machine.carrier = True
        await anyio.sleep(1)
        told = agent.machine.calls.count("announce net1")
        await anyio.sleep(30)
        assert tried < told == agent.machine.calls.count("announce net1")

    live(story)


def test_two_at_once_get_two() -> None:
    async def story(agent: Agent) -> None:
        async with anyio.create_task_group() as group:
            for pod in "ab":
                group.start_soon(agent.add, pod, wanted(pod))
        assert {vf.netns for vf in agent.machine.vfs.values()} == {"/run/netns/a", "/run/netns/b"}
        with pytest.raises(TryAgainLater, match=r"no virtual function of \"eth1\" is free.*pod ns/a.*pod ns/b"):
            await agent.add("c", wanted("c"))

    live(story)


def test_one_that_is_in_use_is_refused_and_both_are_named() -> None:
    async def story(agent: Agent) -> None:
        pci = "0000:01:10.1"
        await agent.add("a", wanted("a", pci))
        with pytest.raises(TryAgainLater, match=r"VF 1 .0000:01:10.1. is already allocated.*net1 of pod ns/a"):
            await agent.add("b", wanted("b", pci))

    live(story)


def test_one_that_is_reserved_is_refused_and_lapses() -> None:
    async def story(agent: Agent) -> None:
        pci = "0000:01:10.1"
        await agent.add("a", wanted("a", pci), crash="reserve")
        with pytest.raises(TryAgainLater, match="already allocated"):
            await agent.add("b", wanted("b", pci))
        again = await agent.add("a", wanted("a", pci), crash="reserve")
        assert again.vf is not None and again.vf.pci == pci
        await anyio.sleep(61)
        await agent.add("b", wanted("b", pci))

    live(story)


def test_what_was_reserved_and_given_back_is_free() -> None:
    async def story(agent: Agent) -> None:
        entry = await agent.add("a", wanted("a"), crash="reserve")
        await agent.pfs.give(entry)
        again = await agent.add("b", wanted("b"))
        assert again.vf is not None and entry.vf is not None and again.vf.pci == entry.vf.pci

    live(story)


def test_a_late_del_does_not_touch_the_next_pod() -> None:
    async def story(agent: Agent) -> None:
        (vf, _) = agent.machine.vfs.values()
        before = vf.state
        first = await agent.add("a", wanted("a", vf.pci, trust=True))
        agent.machine.die(first.netns)
        second = await agent.add("b", wanted("b", vf.pci))
        assert second.vf is not None and second.vf.settings == before[3], "what the first one had is not 'before'"
        there = vf.state
        await agent.delete(first)
        assert vf.state == there
        await agent.delete(second)
        assert vf.state == before

    live(story)


def test_the_last_free_one_may_be_of_a_namespace_that_died() -> None:
    async def story(agent: Agent) -> None:
        entries = [await agent.add(pod, wanted(pod)) for pod in "ab"]
        agent.machine.die(entries[0].netns)
        again = await agent.add("c", wanted("c"))
        assert again.vf is not None and again.vf.ifname == "vf0"

    live(story)


def test_one_that_is_on_its_way_back_is_waited_for() -> None:
    async def story(agent: Agent) -> None:
        (vf, _) = agent.machine.vfs.values()
        before = vf.state
        entry = await agent.add("a", wanted("a", vf.pci))
        agent.machine.slow = True
        agent.machine.die(entry.netns)
        with pytest.raises(TryAgainLater, match="not back on the node"):
            await agent.delete(entry)
        with pytest.raises(TryAgainLater, match="not back on the node"):
            await agent.add("b", wanted("b", vf.pci))
        vf.under_way = False
        await agent.delete(entry)
        assert vf.state == before

    live(story)


def test_one_that_never_comes_back_is_given_up() -> None:
    async def story(agent: Agent) -> None:
        (vf, _) = agent.machine.vfs.values()
        entry = await agent.add("a", wanted("a", vf.pci))
        agent.machine.slow = True
        agent.machine.die(entry.netns)
        with pytest.raises(TryAgainLater):
            await agent.delete(entry)
        await anyio.sleep(21)
        await agent.delete(entry)
        assert vf.settings.vlan == VfVlan()

    live(story)


def test_one_without_an_interface_is_held_as_the_journal_says() -> None:
    machine = Machine()
    machine.vfs["0000:01:10.0"].driver = "vfio-pci"

    async def story(agent: Agent) -> None:
        entry = await agent.add("a", wanted("a", "0000:01:10.0"))
        with pytest.raises(TryAgainLater, match=r"already allocated.*ns/a"):
            await agent.add("b", wanted("b", "0000:01:10.0"))
        await agent.delete(entry)
        assert machine.vfs["0000:01:10.0"].settings.vlan == VfVlan()

    live(story, machine=machine)


@pytest.mark.parametrize(("driver", "mac"), [("vfio-pci", "02:00:00:00:00:77"), ("vfio-pci", "00:00:00:00:00:00")])
def test_what_a_program_sends_by_one_without_an_interface_is_limited_as_well(driver: str, mac: str) -> None:
    machine = Machine()
    vf = machine.vfs["0000:01:10.0"]
    vf.driver, vf.settings = driver, replace(vf.settings, mac=mac)

    async def story(agent: Agent) -> None:
        body = {"cniVersion": "1.0.0", "name": "fast", "type": "sriov", "deviceID": vf.pci}
        nic = Nic(invoke(body, type="sriov", ifname="net1"), changed_ns=1)
        await nic.reserve(agent.pfs)
        await agent.journal.put(nic.entry)
        await nic.make(machine, agent.pfs)  # type: ignore[arg-type]
        await nic.limit(machine, agent.pfs, Bandwidth(ingress_rate=10**6))  # type: ignore[arg-type]
        assert (nic.failure, vf.settings.rates, nic.entry.limits) == (None, (0, 0), None)
        await nic.limit(machine, agent.pfs, Bandwidth(ingress_rate=10**6, egress_rate=5 * 10**6))  # type: ignore[arg-type]
        assert vf.settings.rates == (0, 5)
        # CHECK asks for nothing of the kernel, and for this rate of the PF.
        assert nic.entry.limits is not None and (*buckets(nic.entry.limits),) == ()
        assert (nic.entry.limits.vf_rate, nic.entry.limits.ingress) == (5, None)
        assert nic.entry.mac == ("" if mac.startswith("00") else mac), "a program may want to know"
        await agent.pfs.give(nic.entry)
        assert vf.settings.rates == (0, 0)

    live(story, machine=machine)


def test_a_limit_of_the_configuration_wins() -> None:
    async def story(agent: Agent) -> None:
        (vf, _) = agent.machine.vfs.values()
        for said, then in (({"max_tx_rate": 70}, (0, 70)), ({"max_tx_rate": 0}, (0, 5)), ({}, (0, 5))):
            body = {"cniVersion": "1.0.0", "name": "fast", "type": "sriov", "deviceID": vf.pci, **said}
            nic = Nic(invoke(body, type="sriov", ifname="net1"), changed_ns=1)
            vf.driver = "vfio-pci"
            await nic.reserve(agent.pfs)
            await agent.journal.put(nic.entry)
            await nic.make(agent.machine, agent.pfs)  # type: ignore[arg-type]
            await nic.limit(agent.machine, agent.pfs, Bandwidth(egress_rate=5 * 10**6))  # type: ignore[arg-type]
            assert vf.settings.rates == then
            await agent.pfs.give(nic.entry)

    live(story)


def test_a_limit_of_the_pod_goes_with_it() -> None:
    async def story(agent: Agent) -> None:
        (vf, _) = agent.machine.vfs.values()
        entry = await agent.add("a", wanted("a", vf.pci))
        await agent.pfs.limit(entry, 50)
        assert vf.settings.rates == (0, 50)
        await agent.delete(entry)
        assert vf.settings.rates == (0, 0)

    live(story)


def test_the_next_agent_knows_the_holders() -> None:
    machine, disk = Machine(), MemoryDisk(nowhere)

    async def main() -> None:
        before = [vf.state for vf in machine.vfs.values()]
        async with agent_on(machine, disk) as agent:
            kept = await agent.add("a", wanted("a"))
            cut = await agent.add("b", wanted("b"), crash="journal")
        async with agent_on(machine, disk) as agent:
            with pytest.raises(TryAgainLater, match=r"pod ns/a.*pod ns/b"):
                await agent.add("c", wanted("c"))
            await agent.delete(cut)
            await agent.delete(kept)
        assert [vf.state for vf in machine.vfs.values()] == before

    run(main, seed=1)


@pytest.mark.parametrize("step", ["mark", "tell", "move", "mac"])
def test_a_failed_add_leaves_nothing(step: str) -> None:
    async def story(agent: Agent) -> None:
        before = [vf.state for vf in agent.machine.vfs.values()]

        def refuse(name: str) -> None:
            if name == step:
                raise KernelRefused("the kernel refused", "in its own words")

        agent.machine.refuse = refuse
        with pytest.raises(KernelRefused, match="own words"):
            await agent.add("a", wanted("a"))
        assert [vf.state for vf in agent.machine.vfs.values()] == before

    live(story)


def test_one_that_another_agent_is_lending_is_left_out() -> None:
    machine, disk = Machine(), MemoryDisk(nowhere)

    async def main() -> None:
        async with agent_on(machine, disk) as old, agent_on(machine, disk) as new:
            first = await old.add("a", wanted("a"), crash="reserve")
            second = await new.add("b", wanted("b"))
            assert first.vf is not None and second.vf is not None and first.vf.pci != second.vf.pci
            with pytest.raises(TryAgainLater, match=r"another agent of this node.*pod ns/b|pod ns/b.*another agent"):
                await new.add("c", wanted("c"))

    run(main, seed=1)


class Disorder:
    """Pods come and go, ADDs are cut short, namespaces die slowly, drivers refuse, agents are killed or overlap."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.machine, self.disk = Machine(3), MemoryDisk(nowhere)
        self.machine.slow = self.random.random() < 0.5
        self.pods = 0

    def refuse(self, name: str) -> None:
        if self.random.random() < 0.05 and name in {"mark", "tell", "move", "mac", "return", "reset"}:
            raise KernelRefused(f"{name} refused")

    def held(self) -> list[JournalEntry]:
        return [entry for entry in self.disk.entries.values() if entry.vf is not None]

    async def act(self, agent: Agent) -> None:
        self.pods += 1
        pod = f"p{self.pods}"
        choice = self.random.random()
        with suppress(CniError):
            if choice < 0.5:
                pci = self.random.choice(["", *self.machine.vfs])
                crash = self.random.choice(["", "", "", "journal"])
                await agent.add(pod, wanted(pod, pci, trust=True), crash=crash)
            elif self.held() and choice < 0.75:
                await agent.delete(self.random.choice(self.held()))
            elif self.held() and choice < 0.9:
                self.machine.die(self.random.choice(self.held()).netns)

    async def reign(self) -> None:
        self.machine.refuse = self.refuse
        for _ in range(3):
            async with agent_on(self.machine, self.disk) as old, agent_on(self.machine, self.disk) as new:
                for _ in range(8):
                    async with anyio.create_task_group() as group:
                        for agent in self.random.choices([old, new], k=3):
                            group.start_soon(self.act, agent)
                    for vf in self.machine.vfs.values():
                        vf.under_way = vf.under_way and self.random.random() < 0.3

    async def clear(self) -> None:
        self.machine.refuse = lambda _: None
        for vf in self.machine.vfs.values():
            vf.under_way = False
        async with agent_on(self.machine, self.disk) as agent:
            for entry in self.held():
                await agent.delete(entry)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_no_vf_is_lost_and_none_has_two_pods(seed: int) -> None:
    disorder = Disorder(seed)
    before = {pci: vf.state for pci, vf in disorder.machine.vfs.items()}

    async def main() -> None:
        await disorder.reign()
        await disorder.clear()

    run(main, seed=seed)
    assert {pci: vf.state for pci, vf in disorder.machine.vfs.items()} == before


def test_an_agent_that_does_not_look_at_marks_takes_a_pods_settings_for_those_of_before() -> None:
    """The negative control of that."""

    async def story(*, marks: bool) -> VfSettings:
        machine, disk = Machine(1), MemoryDisk(nowhere)
        (vf,) = machine.vfs.values()
        async with agent_on(machine, disk) as old, agent_on(machine, disk) as new:
            await old.delete(await old.add("first", wanted("first")))
            entry = await new.add("second", wanted("second", trust=True))
            machine.die(entry.netns)
            vf.alias = vf.alias if marks else ""
            after = await old.add("third", wanted("third", vf.pci))
            assert after.vf is not None
            await old.delete(after)
            return after.vf.settings

    async def main() -> None:
        assert (await story(marks=True)).trust is False
        assert (await story(marks=False)).trust is True

    run(main, seed=1)
