"""The actor that sees to the node's parents: VLANs and bonds that links of pods stand on (the plugin `ifacer`).

Messages: `Ensure` and `Look` from whoever does a CNI call; `Looked`, `Unseen`, `Made` and `Refused` from its own work.
State: which parents are being made or wait for it, and who waits. Persists: nothing, parents are the kernel's to
remember: after a reboot the next ADD makes them again. Answers: when the kernel has the parent, or says why not.

A parent is shared by many pods, so nearly always it is there, and one look is enough: looks go on side by side.
Changes that have something in common (`cni.parents.ParentPlan.shared`) go one after the other, in the order in which
they came, for so are the rules: a link is the slave of one bond, a VLAN id is there once. Others go on side by side: a
bond whose NICs take seconds to come up holds up nobody who wants a VLAN elsewhere. That is why it is one actor for all
parents and not one for each: what two of them have in common is no parent. While one agent replaces another, a change
claims the parents from the other one. Pods that wait for the same parent are answered together.

What a crash leaves: a bond without some of its slaves, which the next ADD completes.
"""

from collections.abc import Callable
from typing import assert_never

from msgspec import Struct

from actors.node.disk import Journal
from cni.errors import StateDiffers
from cni.kernel import Kernel
from cni.parents import ParentPlan, asker, parent_plan
from cni.protocol import Invocation
from cni.result import Result
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope
from telemetry import traces

_CLAIM = "ifacer"
_CLAIM_SECONDS = 30.0
"""How long a change waits for another agent of this node: a NIC may take some seconds to come up."""


class Ensure(Question[Result], frozen=True, tag=True):
    """ADD of `ifacer`. The answer is what the plugins before it made, or empty."""

    invocation: Invocation


class Look(Question[None], frozen=True, tag=True):
    """CHECK of `ifacer`."""

    invocation: Invocation


class Looked(Struct, frozen=True, tag=True):
    """What of the parent that a call wants is not as planned."""

    number: int
    differences: tuple[str, ...]


class Unseen(Struct, frozen=True, tag=True):
    """The look for a call has failed."""

    number: int
    error: Exception


class Made(Struct, frozen=True, tag=True):
    """A parent that was being made is there."""

    plan: ParentPlan


class Refused(Struct, frozen=True, tag=True):
    """A parent that was being made cannot be."""

    plan: ParentPlan
    error: Exception


Message = Ensure | Look | Looked | Unseen | Made | Refused


class _Call(Struct):
    """A call that is not answered yet."""

    envelope: Envelope
    plan: ParentPlan
    invocation: Invocation
    makes: bool


class ParentActor(Actor[Message]):
    """See the module."""

    capacity = 4096

    def __init__(self, *, kernel: Kernel, journal: Journal, vlan_id_once: bool) -> None:
        """`journal` is there for its claims. See `cni.parents.ParentPlan` for `vlan_id_once`."""
        self._kernel = kernel
        self._journal = journal
        self._vlan_id_once = vlan_id_once
        self._looking: dict[int, _Call] = {}
        self._waiting: dict[ParentPlan, list[_Call]] = {}
        """In the order in which they came."""
        self._making: dict[ParentPlan, list[_Call]] = {}
        """Who gets the answer to each change that is under way."""
        self._number = 0

    def __repr__(self) -> str:
        making = ", ".join(plan.name for plan in self._making) or "nothing"
        return f"<ParentActor makes {making}, {len(self._waiting)} wait>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Look first; what is not as it should be waits for its turn."""
        match message:
            case Ensure(invocation):
                plan = parent_plan(invocation.conf, vlan_id_once=self._vlan_id_once)
                if plan is None:
                    return invocation.prev_result or Result()
                return self._look(_Call(envelope, plan, invocation, makes=True))
            case Look(invocation):
                plan = parent_plan(invocation.conf, vlan_id_once=self._vlan_id_once)
                return None if plan is None else self._look(_Call(envelope, plan, invocation, makes=False))
            case Looked(number, differences):
                self._judge(self._looking.pop(number), differences)
            case Unseen(number, error):
                _fail(self._looking.pop(number), error)
            case Made(plan):
                self._finish(plan, _answer)
            case Refused(plan, error):
                self._finish(plan, lambda call: _fail(call, error))
            case _:
                assert_never(message)
        return None

    def _look(self, call: _Call) -> object:
        self._number += 1
        number = self._number
        self._looking[number] = call
        self.pipe(
            self._kernel.parent_differences(call.plan, asker(call.invocation)),
            lambda differences: Looked(number, tuple(differences)),
            failed=lambda error: Unseen(number, error),
            on_behalf=call.envelope,
        )
        return LATER

    def _judge(self, call: _Call, differences: tuple[str, ...]) -> None:
        if not differences:
            _answer(call)
        elif not call.makes:
            msg = f"the parent {call.plan.name} is not what ADD found or made: {', '.join(differences)}"
            _fail(call, StateDiffers(msg, f"interfaces: {', '.join(call.plan.interfaces)}"))
        elif call.plan in self._making:
            self._making[call.plan].append(call)
        else:
            self._waiting.setdefault(call.plan, []).append(call)
            self._next()

    def _next(self) -> None:
        """Begin what has nothing in common with what is under way, nor with what waits for longer."""
        taken = {one for plan in self._making for one in plan.shared}
        for plan in [*self._waiting]:
            if taken.isdisjoint(plan.shared):
                self._begin(plan, self._waiting.pop(plan))
            taken |= plan.shared

    def _begin(self, plan: ParentPlan, calls: list[_Call]) -> None:
        self._making[plan] = calls
        self.pipe(
            self._make(plan, asker(calls[0].invocation)),
            lambda _: Made(plan),
            failed=lambda error: Refused(plan, error),
            on_behalf=calls[0].envelope,
        )

    async def _make(self, plan: ParentPlan, who: str) -> None:
        async with self._journal.claim(_CLAIM, seconds=_CLAIM_SECONDS):
            with traces.span("parent.make"):
                await self._kernel.ensure_parent(plan, who)

    def _finish(self, plan: ParentPlan, end: Callable[[_Call], None]) -> None:
        for call in self._making.pop(plan):
            end(call)
        self._next()


def _answer(call: _Call) -> None:
    assert call.envelope.reply is not None
    call.envelope.reply.resolve((call.invocation.prev_result or Result()) if call.makes else None)


def _fail(call: _Call, error: Exception) -> None:
    assert call.envelope.reply is not None
    call.envelope.reply.fail(error)
