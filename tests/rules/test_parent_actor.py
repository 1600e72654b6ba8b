"""The actor of the node's parents: looks side by side, changes one after the other, one answer for all that wait."""

import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from actors.node.parent import Ensure, Look, Message, ParentActor
from cni.errors import InvalidConfig, KernelRefused, StateDiffers
from cni.parents import ParentPlan
from cni.protocol import Invocation
from cni.result import Interface, Result
from runtime.actor import Ref, System
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from tests.rules.test_cni_protocol import CONF, invoke

IFACER: dict[str, Any] = {"cniVersion": "1.0.0", "name": "lan", "type": "ifacer", "interfaces": ["eth1"]}


def call(vlan_id: int, **more: object) -> Invocation:
    return invoke({**IFACER, "vlanID": vlan_id, **more}, type="ifacer")


class Node:
    """The kernel and the claims of a node, as the actor sees them."""

    def __init__(self) -> None:
        self.parents: set[str] = set()
        self.said: list[str] = []
        self.makes = 0
        self.looks = 0
        self.most_looks = 0
        self.most_makes = 0
        self.fails = 0
        """The VLAN id that cannot be made."""
        self.plans: list[ParentPlan] = []

    @asynccontextmanager
    async def claim(self, container_id: str, *, seconds: float) -> AsyncIterator[None]:
        self.said.append(f"claim {container_id}")
        yield
        self.said.append("drop")

    async def parent_differences(self, plan: ParentPlan, who: str) -> list[str]:
        self.looks += 1
        self.most_looks = max(self.most_looks, self.looks)
        await anyio.sleep(0.001)
        self.looks -= 1
        return [] if plan.name in self.parents else [f"VLAN {plan.name} is missing"]

    async def ensure_parent(self, plan: ParentPlan, who: str) -> None:
        self.makes += 1
        self.most_makes = max(self.most_makes, self.makes)
        self.plans.append(plan)
        self.said.append(f"make {plan.name} for {who}")
        await anyio.sleep(1.0)
        self.makes -= 1
        if plan.vlan_id == self.fails:
            raise KernelRefused("no")
        self.parents.add(plan.name)

    def run(self, work: Callable[[Ref[Message]], Coroutine[Any, Any, None]], *, vlan_id_once: bool = True) -> None:
        async def main() -> None:
            supervisor = Supervisor("n", System(clock=VirtualClock(), random=random.Random(1)))
            actor = supervisor.add_actor(
                "parents",
                lambda: ParentActor(kernel=self, journal=self, vlan_id_once=vlan_id_once),  # type: ignore[arg-type]
            )
            async with anyio.create_task_group() as group:
                group.start_soon(supervisor.run)
                await work(actor)
                await supervisor.stop()
                group.cancel_scope.cancel()

        run(main, seed=1)


def test_pods_that_start_together_share_one_change() -> None:
    node = Node()
    made = Result(interfaces=(Interface(name="x"),))
    earlier = {"prevResult": {"interfaces": [{"name": "x"}]}}

    async def work(actor: Ref[Message]) -> None:
        answers: list[Result] = []

        async def one(vlan_id: int, **more: object) -> None:
            answers.append(await actor.ask(Ensure(call(vlan_id, **more)), timeout=30))

        async with anyio.create_task_group() as group:
            for vlan_id in (100, 200, 100, 200, 100):
                group.start_soon(one, vlan_id)
        assert answers == [Result()] * 5
        assert [(plan.name, plan.vlan_id_once) for plan in node.plans] == [("eth1.100", True), ("eth1.200", True)]
        # It is there now: a look is enough. What earlier plugins made is passed on.
        assert await actor.ask(Ensure(call(100, **earlier)), timeout=30) == made
        await actor.ask(Look(call(100, **earlier)), timeout=30)

    node.run(work)
    assert (node.most_looks, node.most_makes) == (5, 1)
    who = "for network lan, pod default/web-0"
    changes = [["claim ifacer", f"make eth1.{number} {who}", "drop"] for number in (100, 200)]
    assert node.said == [*changes[0], *changes[1]]


def test_who_waits_for_a_change_that_fails_is_told_and_the_next_one_is_made() -> None:
    node = Node()
    node.fails = 100

    async def work(actor: Ref[Message]) -> None:
        told: list[str] = []

        async def one(vlan_id: int) -> None:
            try:
                await actor.ask(Ensure(call(vlan_id)), timeout=30)
            except KernelRefused as error:
                told.append(error.msg)

        async with anyio.create_task_group() as group:
            for vlan_id in (100, 100, 200):
                group.start_soon(one, vlan_id)
        assert told == ["no", "no"]

    node.run(work, vlan_id_once=False)
    assert node.parents == {"eth1.200"}
    assert not any(plan.vlan_id_once for plan in node.plans)


def test_check_looks_and_makes_nothing() -> None:
    node = Node()

    async def work(actor: Ref[Message]) -> None:
        with pytest.raises(StateDiffers, match=r"eth1\.100 is not what.*VLAN eth1.100 is missing"):
            await actor.ask(Look(call(100)), timeout=30)
        for message in (Ensure(call(0)), Look(call(0))):
            await actor.ask(message, timeout=30)
        with pytest.raises(InvalidConfig, match="interfaces: missing"):
            await actor.ask(Ensure(invoke({**CONF, "type": "ifacer"}, type="ifacer")), timeout=30)

    node.run(work)
    assert node.said == []


def test_a_look_that_fails() -> None:
    node = Node()

    async def refuse(plan: ParentPlan, who: str) -> list[str]:
        raise KernelRefused(f"{plan.name}: {who}")

    node.parent_differences = refuse  # type: ignore[method-assign]

    async def work(actor: Ref[Message]) -> None:
        with pytest.raises(KernelRefused, match=r"eth1\.100: network lan, pod default/web-0"):
            await actor.ask(Ensure(call(100)), timeout=30)

    node.run(work)
    assert node.said == []
