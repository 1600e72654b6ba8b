"""The plugin `ifacer` on the node: its cases by area and id, bonds, and what it refuses."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from actors.node.disk import open_journal
from actors.node.parent import Ensure, Look, Message, ParentActor
from cni import parents
from cni.errors import CniError, InterfaceExists, InvalidConfig, KernelRefused, StateDiffers
from cni.kernel import LinuxKernel
from cni.netlink import belongings as kept
from cni.netlink import link, parent
from cni.netlink.socket import RouteSocket, route_socket
from cni.parents import MakeVlan, ParentPlan, parent_plan
from cni.plan import AddressPlan, LinkPlan
from cni.result import Result
from runtime.actor import Ref, System
from runtime.supervision import Supervisor
from tests.node.belongings import belongings, settle
from tests.node.conftest import Segment, talk
from tests.rules.test_cni_protocol import invoke

pytestmark = pytest.mark.node

POD = AddressPlan(addresses=("10.77.0.5/24",))


class Ifacer:
    """The plugin, as an agent runs it."""

    def __init__(self, actor: Ref[Message]) -> None:
        self._actor = actor

    async def add(self, *interfaces: str, network: str = "lan", **conf: Any) -> None:
        body = {"cniVersion": "1.0.0", "name": network, "type": "ifacer", "interfaces": interfaces, **conf}
        question = Ensure(invoke(body, type="ifacer"))
        assert await self._actor.ask(question, timeout=60) == Result()

    async def check(self, *interfaces: str, **conf: object) -> None:
        body = {"cniVersion": "1.0.0", "name": "lan", "type": "ifacer", "interfaces": interfaces, **conf}
        await self._actor.ask(Look(invoke({**body, "prevResult": {}}, type="ifacer", command="CHECK")), timeout=60)


@pytest.fixture
async def ifacer(tmp_path: Path, segment: Segment) -> AsyncIterator[Ifacer]:
    journal = open_journal(tmp_path)
    await journal.load()
    supervisor = Supervisor("agent", System.real())
    actor = supervisor.add_actor(
        "parents", lambda: ParentActor(kernel=LinuxKernel(), journal=journal, vlan_id_once=True)
    )
    running = asyncio.create_task(supervisor.run())
    yield Ifacer(actor)
    await supervisor.stop()
    await running
    await asyncio.to_thread(_remove_made)


async def links() -> dict[str, tuple[str, int | None, bool, str]]:
    """Kind, VLAN id, whether it is up, and master, of the node's links that matter here."""

    def look() -> dict[str, tuple[str, int | None, bool, str]]:
        with route_socket() as sockets:
            found = link.listed(sockets)
        names = {one.index: one.ifname for one in found}
        return {
            one.ifname: (one.kind, one.vlan_id, one.up, names.get(one.master_index, ""))
            for one in found
            if not one.ifname.endswith("-port") and one.ifname.startswith(("up", "sp_", "bond", "tagged"))
        }

    return await asyncio.to_thread(look)


async def change(ifname: str, **what: object) -> None:
    def work() -> None:
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=ifname)[0], **what)

    await asyncio.to_thread(work)


async def remove(ifname: str) -> None:
    def work() -> None:
        with IPRoute() as route:
            route.link("del", index=route.link_lookup(ifname=ifname)[0])

    await asyncio.to_thread(work)


async def add_vlan(ifname: str, parent_name: str, number: int) -> None:
    def work() -> None:
        with IPRoute() as route:
            base = route.link_lookup(ifname=parent_name)[0]
            route.link("add", ifname=ifname, kind="vlan", link=base, vlan_id=number)

    await asyncio.to_thread(work)


async def add_bond(ifname: str) -> None:
    """With the kernel's mode, balance-rr, and up."""

    def work() -> None:
        with IPRoute() as route:
            route.link("add", ifname=ifname, kind="bond")
            route.link("set", index=route.link_lookup(ifname=ifname)[0], state="up")

    await asyncio.to_thread(work)


async def reach(segment: Segment, master: str, address: str) -> bytes:
    """What the neighbour answers a pod that stands on a parent."""
    pod, kernel = segment.container(), LinuxKernel()
    plan = LinkPlan(netns=str(pod.path), ifname="eth0", master=master)
    await kernel.attach_link(plan)
    await kernel.configure(plan.netns, "eth0", POD if address.startswith("10.77") else _moved(address))
    try:
        return await asyncio.to_thread(talk, segment.neighbour, pod, address)
    finally:
        assert await kernel.detach_link(plan.netns, "eth0")


async def test_N00001_create_a_vlan_sub_interface(ifacer: Ifacer, segment: Segment) -> None:
    segment.neighbour.run(_tagged_neighbour)
    await ifacer.add("up0", vlanID=100)
    assert (await links())["up0.100"] == ("vlan", 100, True, "")
    assert await reach(segment, "up0.100", "10.100.0.1") == b"10.100.0.5"
    # Another id hears nothing.
    await ifacer.add("up0", vlanID=200)
    with pytest.raises(OSError):  # noqa: PT011
        await reach(segment, "up0.200", "10.100.0.1")


async def test_N00002_the_vlan_exists(ifacer: Ifacer) -> None:
    await ifacer.add("up0", vlanID=100)
    made, index = await links(), socket.if_nametoindex("up0.100")
    await ifacer.add("up0", vlanID=100)
    assert (await links(), socket.if_nametoindex("up0.100")) == (made, index)
    await ifacer.check("up0", vlanID=100)


async def test_N00003_the_vlan_exists_and_is_down(ifacer: Ifacer) -> None:
    await ifacer.add("up0", vlanID=100)
    made, index = await links(), socket.if_nametoindex("up0.100")
    await change("up0.100", state="down")
    with pytest.raises(StateDiffers, match=r"up0\.100 is down"):
        await ifacer.check("up0", vlanID=100)
    await ifacer.add("up0", vlanID=100)
    assert (await links(), socket.if_nametoindex("up0.100")) == (made, index)


async def test_N00004_the_same_vlan_id_under_another_name(ifacer: Ifacer, segment: Segment) -> None:
    await add_vlan("tagged", "up0", 100)
    before = await links()
    with pytest.raises(InterfaceExists, match=r"tagged \(not made here\) is VLAN 100 on up0; network lan, pod default"):
        await ifacer.add("up0", vlanID=100)
    # Nor on another parent, unless the operator says so.
    with pytest.raises(InterfaceExists, match=r"tagged .* on up0; .* on up1.*SPIDERPOOL_VLAN_ID_PER_PARENT"):
        await ifacer.add("up1", vlanID=100)
    assert await links() == before
    kernel = LinuxKernel()
    await kernel.ensure_parent(ParentPlan(interfaces=("up1",), vlan_id=100, vlan_id_once=False), "network other")
    await remove("tagged")
    with pytest.raises(InterfaceExists, match=r"up1\.100 \(made for network other\)"):
        await ifacer.add("up0", vlanID=100)
    # A pod has it.
    pod = segment.container()
    plan = LinkPlan(netns=str(pod.path), ifname="eth0", master="up0", kind="vlan", mode="", vlan_id=300)
    await kernel.attach_link(plan)
    await change("up0", state="down")
    words = rf"VLAN 300 is taken on up0; network lan.*up0 has vlan eth0 \(VLAN 300\) in {pod.path}"
    with pytest.raises(InterfaceExists, match=words):
        await ifacer.add("up0", vlanID=300)
    assert not (await links())["up0"][2], "set up for nothing, and left so"


async def test_N00005_the_master_is_down(ifacer: Ifacer) -> None:
    await change("up0", state="down")
    await ifacer.add("up0", vlanID=100)
    made = await links()
    assert (made["up0"], made["up0.100"]) == (("veth", None, True, ""), ("vlan", 100, True, ""))


async def test_N00006_a_reboot_loses_vlan_and_bond(ifacer: Ifacer, segment: Segment) -> None:
    bond = {"mode": 1, "options": "miimon=100"}
    segment.neighbour.run(_tagged_neighbour)
    await ifacer.add("up0", "up1", bond=bond, vlanID=100)
    made = await links()
    await remove("sp_bond0")
    for name in ("up0", "up1"):
        await change(name, state="up")
    with pytest.raises(StateDiffers, match=r"bond sp_bond0 is missing, .*VLAN sp_bond0\.100 is missing"):
        await ifacer.check("up0", "up1", bond=bond, vlanID=100)
    await ifacer.add("up0", "up1", bond=bond, vlanID=100)
    assert await links() == made
    assert await reach(segment, "sp_bond0.100", "10.100.0.1") == b"10.100.0.5"


async def test_a_bond_and_a_vlan_on_it(ifacer: Ifacer, segment: Segment) -> None:
    options = "miimon=0;arp_interval=0;updelay=0;primary=up1;active_slave=up1;fail_over_mac=active;num_peer_notif=2"
    bond = {"mode": 1, "options": options}
    await ifacer.add("up0", "up1", bond=bond)
    made = await links()
    assert made == {
        "up0": ("veth", None, True, "sp_bond0"),
        "up1": ("veth", None, True, "sp_bond0"),
        "sp_bond0": ("bond", None, True, ""),
    }
    assert await reach(segment, "sp_bond0", "10.77.0.1") == b"10.77.0.5"
    await ifacer.add("up0", "up1", bond=bond, vlanID=100)
    assert (await links())["sp_bond0.100"] == ("vlan", 100, True, "")
    segment.neighbour.run(_tagged_neighbour)
    assert await reach(segment, "sp_bond0.100", "10.100.0.1") == b"10.100.0.5"
    await ifacer.check("up0", "up1", bond=bond, vlanID=100)
    # Others want another: both sides are named, and nothing changes.
    before = await links()
    refused: list[tuple[dict[str, Any], str]] = [
        ({"bond": {"mode": 4}}, "its mode is active-backup, not 802.3ad"),
        ({"bond": {"mode": 1, "options": "miimon=100"}}, "its miimon is 0, not 100"),
        ({"bond": {"mode": 1, "options": "primary=up0"}}, "its primary is up1, not up0"),
        ({"bond": {"name": "bond7", "mode": 1}}, "up0 is a port of bond sp_bond0"),
    ]
    for conf, words in refused:
        with pytest.raises(InterfaceExists, match=r"made for network lan, pod default/web-0\).*network other") as seen:
            await ifacer.add("up0", "up1", network="other", **conf)
        assert words in seen.value.msg
    with pytest.raises(InterfaceExists, match=r"sp_bond0 .* has the slaves up0, up1; .* wants it of up0, lan"):
        await ifacer.add("up0", "lan", bond={"mode": 1})
    assert await links() == before


async def test_slaves_by_another_of_their_names(ifacer: Ifacer) -> None:
    """As udev gives them."""
    bond = {"mode": 1, "options": "miimon=100;primary=enp9s0"}
    await asyncio.to_thread(_call, "up0", "enp9s0")
    await ifacer.add("enp9s0", "up1", bond=bond)
    assert {(await links())[name][3] for name in ("up0", "up1")} == {"sp_bond0"}
    await ifacer.add("enp9s0", "up1", bond=bond)
    await ifacer.check("up0", "up1", bond={**bond, "options": "primary=up0"})
    with pytest.raises(InterfaceExists, match="its primary is enp9s0, not up1"):
        await ifacer.add("enp9s0", "up1", bond={**bond, "options": "primary=up1"})


async def test_a_bond_that_is_half_made(ifacer: Ifacer, segment: Segment) -> None:
    bond = {"name": "bond0", "mode": 1, "options": "miimon=100"}
    # As the module makes it, or a crash leaves it: nobody has it.
    await add_bond("bond0")
    assert (await links())["bond0"] == ("bond", None, True, "")
    await ifacer.add("up0", "up1", bond=bond)
    assert (await links())["bond0"] == ("bond", None, True, "")
    # A slave was not taken yet, another is down: as after a crash.
    await change("up1", master=0)
    await change("up0", state="down")
    with pytest.raises(StateDiffers, match="up1 is no slave of bond0, up0 is down"):
        await ifacer.check("up0", "up1", bond=bond)
    await ifacer.add("up0", "up1", bond=bond)
    await ifacer.check("up0", "up1", bond=bond)
    assert await reach(segment, "bond0", "10.77.0.1") == b"10.77.0.5"


async def test_a_failure_puts_the_slaves_back(
    ifacer: Ifacer, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bond = {"mode": 1, "options": "miimon=100"}
    await asyncio.to_thread(settle)
    before, had = await links(), await belongings()
    pod, kernel = segment.container(), LinuxKernel()
    await kernel.attach_link(LinkPlan(netns=str(pod.path), ifname="eth0", master="up1"))
    words = rf"up1 has macvlan eth0 \(bridge\) in {pod.path}; network lan, pod default/web-0 wants up1 in bond sp_bond0"
    with pytest.raises(InterfaceExists, match=words):
        await ifacer.add("up0", "up1", bond=bond)
    # It may come a moment later: up0 is a slave then, and gets back what it had.
    with monkeypatch.context() as patch:
        patch.setattr(parent, "_carried", lambda _: {})
        with pytest.raises(KernelRefused, match=rf"make up1 a slave of sp_bond0.*up1 has macvlan eth0.* in {pod.path}"):
            await ifacer.add("up0", "up1", bond=bond)
    assert (await links(), await belongings()) == (before, had)
    assert await kernel.detach_link(str(pod.path), "eth0")
    cases: list[tuple[tuple[str, ...], dict[str, Any], type[CniError], str]] = [
        (("up0", "up9"), {"bond": bond}, InvalidConfig, r"interfaces\[1\]: there is no interface .up9."),
        (
            ("up0", "up1"),
            {"bond": {"mode": 0, "options": "primary=up0"}},
            KernelRefused,
            "set primary=up0 of bond sp_bond0: option not supported in mode",
        ),
        (("up0", "up1"), {"bond": {**bond, "name": "lan"}}, InterfaceExists, "lan .not made here. is no bond"),
        (("up0", "up1-port"), {"bond": bond}, InterfaceExists, "up1-port is a port of bridge lan"),
        # The VLAN's name is taken: the bond is not made either.
        (("up0", "up1"), {"bond": {**bond, "name": "up"}, "vlanID": 7}, InterfaceExists, r"up\.7 .* is VLAN 8 on lan"),
    ]
    await add_vlan("up.7", "lan", 8)
    before = await links()
    for interfaces, conf, kind, words in cases:
        with pytest.raises(kind, match=words):
            await ifacer.add(*interfaces, **conf)
        assert (await links(), await belongings()) == (before, had)
    await remove("up.7")
    # A VLAN of the node would lose the same as its parent, and nobody knows what it is for.
    await add_vlan("up.7", "up0", 8)
    with pytest.raises(InterfaceExists, match=r"up0 has vlan up\.7 \(VLAN 8\); network lan.*\(interfaces\[0\]\)"):
        await ifacer.add("up0", "up1", bond=bond)
    assert await belongings() == had


class Killed(BaseException):
    """The process has died: whatever it still asks for is not done."""


class Cut:
    """Fails the change of number `at`, or dies over it."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, dies: bool) -> None:
        self.happened = False
        self._left = at
        self._dies = dies
        for name in ("request", "pipeline"):
            patch.setattr(RouteSocket, name, self._instead(getattr(RouteSocket, name)))

    def _instead(self, original: Callable[..., None]) -> Callable[..., None]:
        def send(sockets: RouteSocket, *args: object) -> None:
            self._left -= 1
            if self._left < 0 and (self._dies or not self.happened):
                self.happened = True
                raise Killed if self._dies else KernelRefused("no", errno=1)
            original(sockets, *args)

        return send


async def test_a_failure_of_any_step_is_taken_back_and_after_a_crash_at_any_the_next_add_goes_on(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan("up0", "up1", bond={"mode": 1, "options": "miimon=100;active_slave=up1"}, vlanID=100)
    monkeypatch.setattr(parent, "_carried", lambda _: {})  # it asks, changes nothing, and half of the time is its
    await asyncio.to_thread(settle)
    before, had = await links(), await belongings()
    kernel, happened = LinuxKernel(), True
    for at in itertools.count():
        for dies in (False, True):
            with monkeypatch.context() as patch:
                cut = Cut(patch, at, dies=dies)
                with suppress(KernelRefused, Killed):
                    await kernel.ensure_parent(plan, "network lan")
            happened = cut.happened
            if not dies and await kernel.parent_differences(plan, "network lan"):
                assert (await links(), await belongings()) == (before, had), at
                continue
            await kernel.ensure_parent(plan, "network lan")
            assert await kernel.parent_differences(plan, "network lan") == [], at
            await asyncio.to_thread(_remove_made)
            for name in ("up0", "up1"):
                await change(name, state="up")
            await asyncio.to_thread(settle)
            assert (await links(), await belongings()) == (before, had)
        if not happened:
            break
    assert at > 7


async def test_without_the_way_back_the_slaves_would_have_lost_it(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above prove nothing."""
    await asyncio.to_thread(settle)
    had = await belongings()
    monkeypatch.setattr(kept, "requests", lambda _: [])
    with monkeypatch.context() as patch, suppress(KernelRefused):
        Cut(patch, 7, dies=False)
        await LinuxKernel().ensure_parent(_plan("up0", "up1", bond={"mode": 1}, vlanID=100), "network lan")
    now = await belongings()
    assert {one[:2] for one in had - now} >= {("address", "up0"), ("neighbour", "up0"), ("route", "up0")}


async def test_two_agents_at_once(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan("up0", "up1", bond={"mode": 1, "options": "miimon=100"}, vlanID=100)
    assert plan is not None
    seen: list[int] = []

    def steps(*args: object, **more: object) -> object:
        # The other one is quicker, whatever this one is about to do.
        todo = parents.steps(*args, **more)  # type: ignore[arg-type]
        if not seen and any(isinstance(one, MakeVlan) for one in todo):
            seen.append(1)
            parent.ensure_parent(plan, "network other")
        return todo

    monkeypatch.setattr(parent, "steps", steps)
    await LinuxKernel().ensure_parent(plan, "network lan")
    assert seen
    found = await links()
    assert {name: found[name][0] for name in ("sp_bond0", "sp_bond0.100")} == {
        "sp_bond0": "bond",
        "sp_bond0.100": "vlan",
    }
    assert await LinuxKernel().parent_differences(plan, "network lan") == []
    await asyncio.to_thread(_remove_made)


def _plan(*interfaces: str, **conf: object) -> ParentPlan:
    body = {"cniVersion": "1.0.0", "name": "lan", "type": "ifacer", "interfaces": interfaces, **conf}
    plan = parent_plan(invoke(body, type="ifacer").conf)
    assert plan is not None
    return plan


def _moved(address: str) -> AddressPlan:
    return AddressPlan(addresses=(f"{address.rpartition('.')[0]}.5/24",))


def _call(ifname: str, name: str) -> None:
    with IPRoute() as route:
        route.link("property_add", index=route.link_lookup(ifname=ifname)[0], altname=name)


def _tagged_neighbour() -> None:
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.link("add", ifname="host.100", kind="vlan", link=host, vlan_id=100)
        index = route.link_lookup(ifname="host.100")[0]
        route.addr("add", index=index, address="10.100.0.1", prefixlen=24)
        route.link("set", index=index, state="up")


def _remove_made() -> None:
    """Parents stay, and the next test has the same names."""
    with IPRoute() as route:
        for one in list(route.get_links()):
            name = one.get_attr("IFLA_IFNAME")
            if name.startswith(("sp_", "bond", "up0.", "up1.", "up.", "tagged")):
                for index in route.link_lookup(ifname=name):
                    route.link("del", index=index)
