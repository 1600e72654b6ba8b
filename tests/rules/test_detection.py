"""What answers on the segment mean, and what an ADD does about it."""

from collections.abc import Sequence
from typing import Any

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.node.addressing import NotAgain, as_cni, holds_nothing
from actors.node.controllers import Answer
from actors.node.detection import ROUNDS, Detection, Terms, terms_of
from actors.node.nic import Nic
from api import wire
from api.configfile import ConfigFile
from api.reasons import Explanation
from api.settings import AgentSettings
from api.wire import Address, Allocated, Disown, NicGrant, PodRef, Rejected, Released
from cni import detection
from cni.config import IpamConfig, NetConfig
from cni.detection import Findings, ProbePlan
from cni.errors import AddressInUse, GatewaySilent, KernelRefused, TryAgainLater
from cni.netlink import resolve
from cni.netlink.asking import arp_probe
from cni.plan import LinkState
from cni.protocol import IPAM_TYPE, Invocation, PodArgs, Role, Verb
from runtime.testing import VirtualClock
from runtime.transport.port import Unreachable

OWN, STRANGER, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:99", "02:00:00:00:00:fe"
CID = "0123456789ab" * 5


# -- what answers mean -------------------------------------------------------------------------------------------------

addresses = st.lists(st.sampled_from([f"10.6.0.{n}" for n in range(9)] + [f"fd00::{n}" for n in range(9)]), unique=True)
macs = st.sampled_from([OWN, STRANGER, ROUTER])


@given(
    wanted=addresses, gateways=addresses, heard=st.dictionaries(addresses.map(lambda all_: (all_ or ["::1"])[0]), macs)
)
def test_findings(wanted: list[str], gateways: list[str], heard: dict[str, str]) -> None:
    plan = ProbePlan(netns="/n", ifname="eth0", addresses=tuple(wanted), gateways=tuple(gateways))
    found = detection.findings(plan, heard, mac=OWN)
    assert {(one.address, one.mac) for one in found.conflicts} == {
        (address, mac) for address, mac in heard.items() if address in wanted and mac != OWN
    }
    assert set(found.silent) == set(gateways) - set(heard)
    assert set(detection.open_questions(plan, heard)) == (set(wanted) | set(gateways)) - set(heard)


def test_an_arp_probe_is_from_nobody() -> None:
    frame = arp_probe(OWN, "10.6.0.5").hex()
    assert frame == "ffffffffffff0200000000010806000108000604000102000000000100000000" + "00" * 6 + "0a060005"


def test_only_who_was_heard_counts_as_heard() -> None:
    link = LinkState(ifname="eth0", index=7)
    for state, heard in ((0x01, False), (0x02, True), (0x04, True), (0x20, False), (0x40, False), (0x80, False)):
        body = bytearray(resolve.ask(link, "10.6.0.5").body) + bytes.fromhex("0a000200020000000099") + bytes(2)
        body[8:10] = state.to_bytes(2, "little")
        found = resolve.heard(memoryview(bytes(body)), index=7)
        assert found == (("10.6.0.5", STRANGER) if heard else None), hex(state)
        assert resolve.heard(memoryview(bytes(body)), index=8) is None


# -- what an ADD does --------------------------------------------------------------------------------------------------


class Segment:
    """Kernel, controllers and what `again` grants, all played."""

    def __init__(self, *, holders: dict[str, str] | None = None, silent: Sequence[str] = (), reply: Any = None) -> None:
        self.holders = holders or {}
        self.silent = tuple(silent)
        self.reply = reply or Released()
        self.plans: list[list[ProbePlan]] = [[]]
        self.disowned: list[Disown] = []
        self.asked = 0
        self.recorded = False
        """Whether the grant is recorded everywhere."""
        self.next: list[Allocated | Exception] = []

    async def probe(self, plan: ProbePlan) -> Findings:
        self.plans[-1].append(plan)
        await anyio.lowlevel.checkpoint()
        heard = self.holders | {gateway: ROUTER for gateway in plan.gateways if gateway not in self.silent}
        return detection.findings(plan, heard, mac=OWN)

    async def ask(self, request: wire.Request, *, deadline: float) -> Answer:
        assert isinstance(request, Disown)
        assert self.recorded, "nothing can be given up before"
        self.disowned.append(request)
        if isinstance(self.reply, Exception):
            raise self.reply
        return Answer(self.reply, doubtful=False)

    async def settle(self, nics: Sequence[Nic], allocated: Allocated, terms: Terms) -> Allocated:
        async def again() -> Allocated:
            self.asked += 1
            self.plans.append([])
            # An undo has to search: what was granted before may be there, or not.
            assert all((nic.entry.pools, nic.entry.addresses, nic.entry.doubtful) == ((), (), True) for nic in nics)
            found = self.next.pop(0)
            if isinstance(found, Exception):
                raise found
            return take(nics, found)

        async def recorded() -> None:
            self.recorded = True

        take(nics, allocated)
        look = Detection(terms, kernel=self, controllers=self, clock=VirtualClock())  # type: ignore[arg-type]
        return await look.settle(nics, allocated, again, recorded=recorded)


def grant(address: str) -> NicGrant:
    six = f"fd00::{address.rpartition('.')[2]}"
    found = (
        Address(4, f"{address}/16", "v4", gateway="10.6.0.1"),
        Address(6, f"{six}/64", "v6", gateway="fd00::1"),
    )
    return NicGrant("", found)


def allocated(*addresses: str, **changes: Any) -> Allocated:
    first, *more = (grant(address) for address in addresses)
    others = tuple(NicGrant(f"net{at}", one.addresses) for at, one in enumerate(more, start=1))
    return Allocated(first.addresses, (), Explanation(), "uid", others=others, **changes)


def take(nics: Sequence[Nic], given: Allocated) -> Allocated:
    together = frozenset(nic.ifname for nic in nics)
    for nic in nics:
        nic.take(given, first=nic is nics[0], together=together)
    return given


def nics(count: int = 1, *, role: Role = Role.MAIN) -> list[Nic]:
    made = []
    for name in ["eth0", "net1", "net2"][:count]:
        invocation = Invocation(
            verb=Verb.ADD,
            type="macvlan",
            role=role,
            container_id=CID,
            netns=f"/run/netns/{CID[:12]}",
            ifname=name,
            args=PodArgs(namespace="default", name="p"),
            conf=NetConfig(name="lan", type="macvlan", ipam=IpamConfig(type=IPAM_TYPE)),
        )
        nic = Nic(invocation, changed_ns=0)
        if role is Role.MAIN:
            nic.link = LinkState(ifname=name, index=3, mac=OWN)
        made.append(nic)
    return made


BOTH = Terms(conflicts=True, gateways=True, probes=2, budget=0.03)


async def test_nothing_is_asked_where_nothing_is_wanted() -> None:
    segment, given = Segment(holders={"10.6.0.5": STRANGER}), allocated("10.6.0.5")
    assert await segment.settle(nics(), given, Terms()) is given
    assert (segment.plans, segment.disowned) == ([[]], [])


async def test_what_is_asked() -> None:
    segment, given = Segment(), allocated("10.6.0.5", "10.6.0.6")
    assert await segment.settle(nics(2), given, BOTH) is given
    expected = ProbePlan(
        netns=f"/run/netns/{CID[:12]}",
        ifname="eth0",
        addresses=("10.6.0.5", "fd00::5"),
        gateways=("10.6.0.1", "fd00::1"),
        probes=2,
        budget=0.03,
    )
    assert segment.plans[0][0] == expected
    assert [plan.ifname for plan in segment.plans[0]] == ["eth0", "net1"]
    await segment.settle(nics(role=Role.IPAM), allocated("10.6.0.5"), BOTH)
    assert segment.plans[0][-1].restore


@pytest.mark.parametrize("switch", ["conflicts", "gateways"])
async def test_each_switch_is_for_its_own(switch: str) -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER}, silent=["10.6.0.1"])
    segment.next = [allocated("10.6.0.6")]
    terms = Terms(conflicts=switch == "conflicts", gateways=switch == "gateways")
    if switch == "conflicts":
        assert await segment.settle(nics(), allocated("10.6.0.5"), terms) == allocated("10.6.0.6")
        assert segment.plans[0][0].gateways == ()
    else:
        with pytest.raises(GatewaySilent, match=r"pod default/p: eth0: gateway 10\.6\.0\.1 does not answer"):
            await segment.settle(nics(), allocated("10.6.0.5"), terms)
        assert segment.plans[0][0].addresses == ()
        assert not segment.disowned


async def test_what_somebody_has_is_put_aside_and_another_one_found_in_its_place() -> None:
    segment, pod = Segment(holders={"10.6.0.6": STRANGER}), nics(2)
    after = allocated("10.6.0.5", "10.6.0.7")
    segment.next = [after]
    assert await segment.settle(pod, allocated("10.6.0.5", "10.6.0.6"), BOTH) is after
    (disown,) = segment.disowned
    assert disown == Disown(
        pod=PodRef("default", "p", "uid"),
        nic="net1",
        container_id=CID,
        addresses=("10.6.0.6",),
        pools=("v4",),
        seen=STRANGER,
    )
    # What was found free and stayed is not asked for again.
    assert [[plan.ifname for plan in plans] for plans in segment.plans] == [["eth0", "net1"], ["net1"]]
    assert pod[1].entry.addresses == ("10.6.0.7/16", "fd00::7/64")


async def test_strangers_in_both_families_are_told_apart() -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER, "fd00::5": ROUTER})
    segment.next = [allocated("10.6.0.6")]
    await segment.settle(nics(), allocated("10.6.0.5"), BOTH)
    assert [(one.addresses, one.pools, one.seen) for one in segment.disowned] == [
        (("10.6.0.5",), ("v4",), STRANGER),
        (("fd00::5",), ("v6",), ROUTER),
    ]


async def test_in_the_end_the_runtime_is_told_to_try_later() -> None:
    segment = Segment(holders={f"10.6.0.{n}": STRANGER for n in range(9)})
    segment.next = [allocated(f"10.6.0.{n}") for n in range(1, 9)]
    with pytest.raises(TryAgainLater) as caught:
        await segment.settle(nics(), allocated("10.6.0.0"), BOTH)
    assert caught.value.msg == f"pod default/p: eth0: 10.6.0.{ROUNDS - 1} is used by {STRANGER} on the network"
    assert len(segment.disowned) == ROUNDS
    assert segment.asked == ROUNDS - 1


@pytest.mark.parametrize("cause", ["stateful", "forbidden"])
async def test_what_stays_with_the_pod_stays(cause: str) -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER}, reply=Rejected("its addresses belong to web", cause=cause))
    pod = nics()
    with pytest.raises(AddressInUse) as caught:
        await segment.settle(pod, allocated("10.6.0.5"), BOTH)
    assert caught.value.msg == f"pod default/p: eth0: 10.6.0.5 is used by {STRANGER} on the network"
    assert (caught.value.code, caught.value.details) == (104, "its addresses belong to web")
    assert segment.asked == 0
    assert pod[0].entry.pools == ("v4", "v6")


async def test_no_controller_takes_it_back() -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER}, reply=Unreachable("none"))
    with pytest.raises(TryAgainLater, match=r"10\.6\.0\.5 is used by 02:00:00:00:00:99 .*could not be given up: none"):
        await segment.settle(nics(), allocated("10.6.0.5"), BOTH)


async def test_a_second_request_that_fails_does_not_mean_that_nothing_is_held() -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER})
    segment.next = [Unreachable("none")]
    with pytest.raises(NotAgain) as caught:
        await segment.settle(nics(), allocated("10.6.0.5"), BOTH)
    assert holds_nothing(Unreachable("none"))
    assert not holds_nothing(caught.value)
    told = as_cni(caught.value, nics()[0].invocation)
    assert isinstance(told, TryAgainLater)
    assert "no controller could be asked for addresses" in told.msg


async def test_a_conflict_is_given_up_before_a_silent_gateway_ends_it() -> None:
    segment = Segment(holders={"10.6.0.5": STRANGER}, silent=["fd00::1"])
    with pytest.raises(GatewaySilent) as caught:
        await segment.settle(nics(), allocated("10.6.0.5"), BOTH)
    assert [one.addresses for one in segment.disowned] == [("10.6.0.5",)]
    assert (caught.value.code, caught.value.details) == (105, "asked 2 times within 30 ms")
    assert segment.asked == 0


async def test_a_live_migration_is_no_conflict() -> None:
    for moving in (True, False):
        segment = Segment(holders={"10.6.0.5": STRANGER}, reply=Rejected("fixed", cause="stateful"))
        given = allocated("10.6.0.5", moving=moving)
        if moving:
            assert await segment.settle(nics(), given, BOTH) is given
            assert (segment.plans[0][0].addresses, segment.plans[0][0].gateways) == ((), ("10.6.0.1", "fd00::1"))
        else:
            with pytest.raises(AddressInUse):
                await segment.settle(nics(), given, BOTH)


async def test_what_has_no_interface_is_not_asked_for() -> None:
    segment, pod = Segment(holders={"10.6.0.5": STRANGER}), nics()
    pod[0].link = None
    given = allocated("10.6.0.5")
    assert await segment.settle(pod, given, BOTH) is given
    assert segment.plans == [[]]


async def test_a_kernel_that_does_not_ask_ends_it() -> None:
    class Mute(Segment):
        async def probe(self, plan: ProbePlan) -> Findings:
            raise KernelRefused("no")

    with pytest.raises(KernelRefused):
        await Mute().settle(nics(2), allocated("10.6.0.5", "10.6.0.6"), BOTH)


def test_the_settings() -> None:
    config = ConfigFile(enable_ip_conflict_detection=True)
    common: dict[str, Any] = {"pod_namespace": "s", "pod_name": "a", "node_name": "n", "config": config}
    assert terms_of(AgentSettings(**common)) == Terms(conflicts=True, probes=1, budget=0.015)
    assert terms_of(AgentSettings(**common, detection_probes=3, detection_timeout=1.0)) == Terms(
        conflicts=True, probes=3, budget=1.0
    )
