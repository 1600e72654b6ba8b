"""The actor of the node's parents: what has something in common is made in turn, one answer for all that wait."""

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
        self.making: set[str] = set()
        self.overlaps: set[frozenset[str]] = set()
        """Names of parents that were made at the same time."""
        self.fails = -1
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
        self.overlaps |= {frozenset({plan.name, other}) for other in self.making}
        self.making.add(plan.name)
        self.said.append(f"make {plan.name} for {who}")
        await anyio.sleep(1.0)
        self.makes -= 1
        self.making.discard(plan.name)
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


def wanted(*interfaces: str, vlan_id: int = 0, bond: str = "") -> dict[str, Any]:
    return {"interfaces": interfaces, "vlanID": vlan_id, "bond": {"name": bond} if bond else None}


def made_together(*wishes: dict[str, Any], vlan_id_once: bool = True) -> Node:
    """A node on which these are asked for at once, in this order."""
    node = Node()

    async def work(actor: Ref[Message]) -> None:
        async def ask(question: Ensure) -> None:
            await actor.ask(question, timeout=30)

        async with anyio.create_task_group() as group:
            for wish in wishes:
                group.start_soon(ask, Ensure(invoke({**IFACER, **wish}, type="ifacer")))
                await anyio.sleep(0.01)

    node.run(work, vlan_id_once=vlan_id_once)
    assert len(node.plans) == len(node.parents) == len(wishes)
    return node


SLOW = wanted("eth1", "eth2", bond="bond0")


def test_a_slow_bond_holds_up_nobody_who_wants_another_parent() -> None:
    node = made_together(SLOW, wanted("eth3", vlan_id=100), wanted("eth4", vlan_id=200))
    assert node.overlaps == {
        frozenset({"bond0", "eth3.100"}),
        frozenset({"bond0", "eth4.200"}),
        frozenset({"eth3.100", "eth4.200"}),
    }


SHARING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (SLOW, wanted("eth2", vlan_id=100)),  # a slave
    (SLOW, wanted("eth1", "eth2", bond="bond0", vlan_id=100)),  # the bond
    (SLOW, wanted("bond0", vlan_id=100)),  # the bond, which is another's interface
    (SLOW, wanted("eth3", "eth4", bond="bond1")),  # the default route: each takes links that the other counts on
    (wanted("eth1", vlan_id=100), wanted("eth1", vlan_id=200)),
    (wanted("eth1", vlan_id=100), wanted("eth2", vlan_id=100)),  # the VLAN's id, which the node has once
]


@pytest.mark.parametrize(("one", "other"), SHARING)
def test_what_has_something_in_common_is_made_in_turn(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert made_together(one, other).overlaps == set()


def test_the_ids_of_vlans_are_no_matter_where_each_parent_has_its_own() -> None:
    node = made_together(wanted("eth1", vlan_id=100), wanted("eth2", vlan_id=100), vlan_id_once=False)
    assert node.overlaps == {frozenset({"eth1.100", "eth2.100"})}


@pytest.mark.parametrize(("one", "other"), SHARING)
def test_the_played_node_sees_those_that_are_not_made_in_turn(
    one: dict[str, Any], other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the test above proves nothing."""
    monkeypatch.setattr(ParentPlan, "shared", frozenset())
    assert made_together(one, other).overlaps


def test_who_waits_is_not_overtaken_by_those_that_come_later() -> None:
    # The second one waits for the first, the third for the second: it must not take eth3 away from under it.
    second = wanted("eth2", "eth3", bond="bond1")
    node = made_together(SLOW, second, wanted("eth3", vlan_id=100), wanted("eth4", vlan_id=200))
    assert [plan.name for plan in node.plans] == ["bond0", "eth4.200", "bond1", "eth3.100"]


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
