"""The plugin `ifacer` on this kernel, which may lack VLANs and bonds: what it refuses, and that nothing stays of that.

What it makes is shown in the guest (tests/vm). The calls here are whole: from the plugin's JSON to its answer.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from actors.agent import Agent
from actors.node.disk import open_journal
from cni.bond import BondPlan
from cni.errors import CniError, InterfaceExists, InvalidConfig, KernelRefused, StateDiffers
from cni.kernel import Kernel, LinuxKernel
from cni.netlink.support import knows_link_kind
from cni.parents import ParentPlan
from cni.plan import LinkPlan
from runtime.actor import System
from tests.node.belongings import add_routes, belongings, settle
from tests.node.conftest import Segment
from tests.rules.test_cni_protocol import invoke
from tests.simulation.node import MemoryKernel

pytestmark = pytest.mark.node

CONF: dict[str, Any] = {"cniVersion": "0.3.1", "name": "lan", "type": "ifacer"}
BOND = ParentPlan(interfaces=("up0", "up1"), bond=BondPlan(name="sp_bond0", mode=1))
ROUTER = 9
EARLIER = {"interfaces": [{"name": "dummy0"}]}


@asynccontextmanager
async def agent(folder: Path, kernel: Kernel) -> AsyncIterator[Agent]:
    made = Agent(System.real(), path="agent", kernel=kernel, journal=open_journal(folder), channels=[])
    running = asyncio.create_task(made.supervisor.run())
    async with asyncio.timeout(10):
        await made.recovered.wait()
    try:
        yield made
    finally:
        await made.supervisor.stop()
        await running


async def call(node: Agent, command: str = "ADD", **conf: Any) -> dict[str, Any]:
    answer = await node.invoke(invoke({**CONF, **conf}, type="ifacer", command=command))
    return json.loads(answer) if answer else {}


async def states(*names: str) -> dict[str, str]:
    def look() -> dict[str, str]:
        with IPRoute() as route:
            found = {one.get_attr("IFLA_IFNAME"): one for one in route.get_links()}
        return {name: f"{found[name]['state']} {found[name].get_attr('IFLA_MASTER')}" for name in names}

    return await asyncio.to_thread(look)


async def change(ifname: str, **what: object) -> None:
    def work() -> None:
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=ifname)[0], **what)

    await asyncio.to_thread(work)


def remove_route(what: dict[str, Any]) -> None:
    with IPRoute() as route:
        route.route("del", **what)


async def test_a_call_from_its_json_to_its_answer(tmp_path: Path) -> None:
    async def point(_: str) -> None:
        """Nobody dies here."""

    kernel = MemoryKernel({}, point)
    wanted: dict[str, Any] = {"interfaces": ["eth1"], "vlanID": 100}
    async with agent(tmp_path, kernel) as node:
        assert await call(node, **wanted) == {"cniVersion": "0.3.1", "dns": {}}
        assert kernel.parents == {"eth1.100": "network lan, pod default/web-0"}
        # As a link of a chain, it passes on what was made before.
        passed = await call(node, **wanted, cniVersion="1.0.0", prevResult=EARLIER)
        assert passed == {"cniVersion": "1.0.0", **EARLIER, "dns": {}}
        assert await call(node, "CHECK", **wanted, cniVersion="1.0.0", prevResult=EARLIER) == {}
        assert await call(node, "DEL", **wanted) == {}
        assert list(kernel.parents) == ["eth1.100"], "parents stay"
        assert await call(node, interfaces=["eth1"]) == {"cniVersion": "0.3.1", "dns": {}}
        assert list(kernel.parents) == ["eth1.100"]
        with pytest.raises(StateDiffers, match=r"eth1\.7 is missing"):
            await call(node, "CHECK", interfaces=["eth1"], vlanID=7, cniVersion="1.0.0", prevResult={})
        with pytest.raises(InvalidConfig, match="interfaces: missing"):
            await call(node)
    assert await open_journal(tmp_path).load() == [], "nothing of it is journaled"


async def test_what_is_refused_leaves_nothing(tmp_path: Path, segment: Segment) -> None:
    await change("up0", state="down")
    before = await states("up0", "up1", "lan")
    bond = {"mode": 1, "options": "miimon=100"}
    cases: list[tuple[dict[str, Any], type[CniError], str]] = [
        ({"interfaces": ["up9"], "vlanID": 7}, InvalidConfig, r"interfaces\[0\]: there is no interface .up9. on this"),
        ({"interfaces": ["up1", "lan"], "bond": {"name": "up0"}}, InterfaceExists, "up0 .not made here. is no bond"),
        ({"interfaces": ["up1", "up0-port"], "bond": bond}, InterfaceExists, "up0-port is a port of bridge lan"),
    ]
    if not await asyncio.to_thread(knows_link_kind, "vlan"):
        words = r"make VLAN 7 on up0 as up0\.7: Unknown device type"
        cases.append(({"interfaces": ["up0"], "vlanID": 7}, KernelRefused, words))
    if not await asyncio.to_thread(knows_link_kind, "bond"):
        words = r"make bond sp_bond0 \(active-backup, miimon=100\): Unknown device type"
        cases.append(({"interfaces": ["up0", "up1"], "bond": bond}, KernelRefused, words))
    async with agent(tmp_path, LinuxKernel()) as node:
        for conf, kind, words in cases:
            with pytest.raises(kind, match=words):
                await call(node, **conf)
            assert await states("up0", "up1", "lan") == before
    assert not any(name.startswith(("up0.", "sp_")) for _, name in socket.if_nameindex())


async def test_a_slave_that_is_needed_is_refused(tmp_path: Path, segment: Segment) -> None:
    await asyncio.to_thread(settle)
    wanted: dict[str, Any] = {"interfaces": ["up0", "up1"], "bond": {"mode": 1, "options": "miimon=100"}}
    before, had = await states("up0", "up1"), await belongings()
    async with agent(tmp_path, LinuxKernel()) as node:

        async def refused(kind: type[CniError], words: str) -> None:
            with pytest.raises(kind, match=words):
                await call(node, **wanted)
            assert (await states("up0", "up1"), await belongings()) == (before, had)

        pod, kernel = segment.container(), LinuxKernel()
        await kernel.attach_link(LinkPlan(netns=str(pod.path), ifname="eth0", master="up1"))
        has = rf"up1 has macvlan eth0 \(bridge\) in {pod.path}"
        await refused(
            InterfaceExists, rf"{has}; network lan, pod default/web-0 wants up1 in bond sp_bond0 .*faces\[1\]"
        )
        # A look does not ask all namespaces of the node: a hundred pods may look at once.
        assert "bond sp_bond0" in (await kernel.parent_differences(BOND, "network lan"))[0]
        assert await kernel.detach_link(str(pod.path), "eth0")

        ways: dict[int, dict[str, Any]] = {
            4: {"dst": "default", "gateway": "10.78.0.254"},
            6: {"dst": "::/0", "gateway": "fd78::fe", "proto": ROUTER},
        }
        for version, way in ways.items():
            await asyncio.to_thread(add_routes, "up1", way)
            had = await belongings()
            await refused(InvalidConfig, rf'interfaces\[1\]: "up1" has the node\'s IPv{version} default route, which')
            await asyncio.to_thread(remove_route, way)
        had = await belongings()
        # Now it may be, if the kernel knows bonds.
        seen = await kernel.parent_differences(BOND, "network lan")
        assert seen[1:3] == ["up0 is no slave of sp_bond0", "up1 is no slave of sp_bond0"]


async def test_a_look_changes_nothing(segment: Segment) -> None:
    await change("up0", state="down")
    plan = ParentPlan(interfaces=("up0",), vlan_id=7)
    assert await LinuxKernel().parent_differences(plan, "network lan") == ["up0 is down", "VLAN up0.7 is missing"]
    assert (await states("up0"))["up0"].startswith("down")
