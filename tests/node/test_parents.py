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
from cni.errors import CniError, InterfaceExists, InvalidConfig, KernelRefused, StateDiffers
from cni.kernel import Kernel, LinuxKernel
from cni.netlink.support import knows_link_kind
from cni.parents import ParentPlan
from runtime.actor import System
from tests.node.conftest import Segment
from tests.rules.test_cni_protocol import invoke
from tests.simulation.node import MemoryKernel

pytestmark = pytest.mark.node

CONF: dict[str, Any] = {"cniVersion": "0.3.1", "name": "lan", "type": "ifacer"}
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


async def test_a_look_changes_nothing(segment: Segment) -> None:
    await change("up0", state="down")
    plan = ParentPlan(interfaces=("up0",), vlan_id=7)
    assert await LinuxKernel().parent_differences(plan, "network lan") == ["up0 is down", "VLAN up0.7 is missing"]
    assert (await states("up0"))["up0"].startswith("down")
