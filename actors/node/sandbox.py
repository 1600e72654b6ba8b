"""The actor of one pod sandbox on this node: does ADD, CHECK and DEL of that container one after the other.

Messages: `Attach`, `Verify`, `Detach`, `Renounce` and `Mend` from the node actor and the networks actor, `Finished`
from its own work. State: the container's journal entries. Persists: one journal entry an interface, as "adding" before
anything is asked or built, as "added" with the result before the runtime is answered, as "releasing" from the moment
the link is gone. Answers: when the kernel and the journal agree with the answer.

An ADD may be for several interfaces: all are there when it is answered, or none. Their links are built at the same
time, while the addresses of all are being allocated by one request (`actors.node.nic` has the steps of one interface).
A failed ADD is undone in reverse, and what the controller may still hold is given back by the outbox.

What a crash leaves: with "adding", possibly links and possibly records, which the next agent's `Mend` takes down and
gives back; with "added", a working interface; with "releasing", records that the outbox gives back.

While one agent replaces another, both may be asked about one container. A verb therefore claims the container from the
other process first, and reads the entries again, which the other one may have changed since.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, assert_never

import anyio
import msgspec
from msgspec import Struct

from actors.node.addressing import (
    HasNetworks,
    as_cni,
    cluster_settings,
    holds_nothing,
    pod_ref,
)
from actors.node.conflict import disown
from actors.node.construction import Construction
from actors.node.controllers import Controllers
from actors.node.detection import Detection
from actors.node.disk import Journal
from actors.node.nic import Nic, blank_entry, detach, intact, naming, part_of, plan_coordination
from actors.node.outbox import Message as OutboxMessage
from actors.node.outbox import Owe, Recall, Settle
from actors.node.pfs import PhysicalFunctions
from actors.node.verification import verify
from api.wire import Coordination
from cni.coordination import CoordinationPlan
from cni.errors import CniError, TryAgainLater
from cni.journal import JournalEntry, Key, State
from cni.kernel import Kernel
from cni.protocol import Invocation, Role
from cni.result import Result, with_mac
from runtime.actor import LATER, Actor, Question, Ref
from runtime.envelope import Envelope
from runtime.errors import ActorError
from runtime.together import together
from runtime.turn import Turn
from telemetry import metrics, traces

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 5.0
"""How long an ADD waits for an earlier DEL of the same interface to be over."""
_UNDO_SECONDS = 10.0
_DISOWN_SECONDS = 10.0
_LOOKUP_SECONDS = 10.0
_CLAIM_SECONDS = 30.0
"""How long a verb waits for another agent of this node that works on the container: longer than an ADD takes."""

type Results = tuple[Result, ...]


class Attach(Question[Results], frozen=True, tag=True):
    """ADD of interfaces of the container. The results are in their order.

    Raises `actors.node.addressing.HasNetworks` where `meta` is set and the pod names networks: the interface of the
    next `Attach` that wants the same link uses the one that was made; any other verb for it takes it away.
    """

    invocations: tuple[Invocation, ...]
    meta: bool = False


class Verify(Question[None], frozen=True, tag=True):
    """CHECK."""

    invocation: Invocation


class Detach(Question[None], frozen=True, tag=True):
    """DEL of interfaces of the container, in no particular order."""

    invocations: tuple[Invocation, ...]


class Renounce(Question[None], frozen=True, tag=True):
    """Somebody else uses an address of the container: what our IPAM gave other plugins' interfaces of it goes.

    Answered when nobody else can get it for a while. Raises `actors.node.conflict.KeepsAddresses`, and
    `TransportError`.
    """

    seen: str
    """Who uses it."""


class Mend(Question[None], frozen=True, tag=True):
    """Take down what an agent before left of an interface: an ADD that was cut short, a namespace that is gone."""

    key: Key


class Finished(Struct, frozen=True, tag=True):
    """The work for one message has ended, with results or an error."""

    results: Results | None = None
    error: Exception | None = None


Message = Attach | Verify | Detach | Renounce | Mend | Finished


class SandboxActor(Actor[Message]):
    """See the module."""

    capacity = 16
    """A runtime calls one verb at a time for a container; more than a few waiting are repetitions."""

    def __init__(
        self,
        container_id: str,
        *,
        kernel: Kernel,
        journal: Journal,
        controllers: Controllers,
        outbox: Ref[OutboxMessage],
        pfs: PhysicalFunctions,
        detection: Detection,
        entries: dict[Key, JournalEntry],
    ) -> None:
        """`entries` is what the journal held of this container; the actor keeps it up to date."""
        self._container_id = container_id
        self._kernel = kernel
        self._journal = journal
        self._controllers = controllers
        self._outbox = outbox
        self._pfs = pfs
        self._detection = detection
        self._entries = entries
        self._turn = Turn(self)
        self._cluster: Coordination | None = None
        """The cluster's settings as an ADD of this container got them: a chained coordinator need not ask again."""
        self._spare: Nic | None = None
        """An interface whose link stands while somebody looks up the pod's networks."""
        self._disconnecting = anyio.Lock()

    def __repr__(self) -> str:
        held = {key.ifname: entry.state for key, entry in self._entries.items()}
        return f"<SandboxActor {self._container_id[:12]} {held}{' busy' if self._turn else ''}>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Begin one verb and hold the next ones until it has ended."""
        work: Coroutine[Any, Any, Results | None]
        match message:
            case Attach((Invocation(role=Role.COORDINATOR) as invocation,)):
                work = self._alone(_keys([invocation]), lambda known: self._coordinate(invocation, known[0]))
            case Attach(invocations):
                work = self._alone(_keys(invocations), lambda known: self._attach(message, known))
            case Verify(invocation):
                work = self._alone(_keys([invocation]), lambda known: self._verify(invocation, known[0]))
            case Detach(invocations):
                work = self._alone(_keys(invocations), lambda known: self._detach(invocations, known))
            case Renounce(seen):
                work = self._renounce(seen)
            case Mend(key):
                work = self._alone([key], self._mend)
            case Finished(results, error):
                self._turn.end(results, error)
                return None
            case _:
                assert_never(message)
        self._turn.begin(envelope)
        self.pipe(work, Finished, failed=lambda error: Finished(error=error), on_behalf=envelope)
        return LATER

    async def _alone[R](self, keys: Sequence[Key], verb: Callable[[Sequence[JournalEntry | None]], Awaitable[R]]) -> R:
        """Do a verb while no other agent touches the container. It is given the entries as they are now."""
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            known = await self._journal.get(*keys)
            for key, entry in zip(keys, known, strict=True):
                if entry is None or entry.state is State.RELEASING:
                    self._forget(key)
                else:
                    self._know(entry)
            return await verb(known)

    # -- ADD -----------------------------------------------------------------------------------------------------------

    async def _attach(self, attach: Attach, known: Sequence[JournalEntry | None]) -> Results:
        invocations = attach.invocations
        spare, self._spare = self._spare, None
        standing = await self._standing(invocations, known)
        if standing is not None:
            return standing
        nics = [self._nic(invocation) for invocation in invocations]
        for nic, entry in zip(nics, known, strict=True):
            if spare is not None and entry == spare.entry and nic.plan == spare.plan:
                nic.resume(spare)
            elif entry is not None and entry.state is not State.RELEASING:
                # Left over from an ADD that could not be undone, or of a namespace that was rebuilt: that goes first.
                await self._take_down(entry)
        begun = int(self.system.clock.wall() * 1000)
        disputed = [await self._settle(invocation) for invocation in invocations]
        await together(*(partial(self._look, nic) for nic in nics))
        await self._begin(nics)
        try:
            granted = await self._construction().build(nics, begun=begun, disputed=any(disputed), meta=attach.meta)
            if granted is not None:
                self._cluster = granted.coordinator
            await self._put_all([nic.complete(changed_ns=self._wall_ns()) for nic in nics])
        except HasNetworks:
            # Nothing was granted, whoever took the request: what stands is a link and no more.
            (nic,) = nics
            nic.entry = msgspec.structs.replace(nic.entry, bare=True)
            await self._put(nic.entry)
            self._spare = nic
            raise
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_SECONDS):
                await self._undo(nics, asked=not holds_nothing(error))
            raise as_cni(error, invocations[0]) from error
        for nic in nics:
            self._pfs.announce(nic.entry)
        return tuple(nic.result for nic in nics)

    def _nic(self, invocation: Invocation) -> Nic:
        with naming(invocation):
            return Nic(invocation, changed_ns=self._wall_ns())

    async def _look(self, nic: Nic) -> None:
        with naming(nic.invocation):
            await nic.look(self._kernel)

    def _construction(self) -> Construction:
        return Construction(
            kernel=self._kernel,
            pfs=self._pfs,
            controllers=self._controllers,
            detection=self._detection,
            clock=self.system.clock,
            note=self._put,
            built=self._connections,
        )

    def _connections(self) -> list[CoordinationPlan]:
        return [entry.coordination for entry in self._entries.values() if entry.coordination is not None]

    async def _begin(self, nics: Sequence[Nic]) -> None:
        """Note what is going to be there, and of a virtual function what it is now. Nothing is built yet."""
        try:
            for nic in nics:
                with naming(nic.invocation):
                    await nic.reserve(self._pfs)
            await self._put_all([nic.entry for nic in nics])
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_SECONDS):
                for nic in nics:
                    with suppress(CniError):
                        await self._pfs.give(nic.entry)
            raise

    async def _standing(
        self, invocations: Sequence[Invocation], known: Sequence[JournalEntry | None]
    ) -> Results | None:
        """The answers that were given before, where all of what was made then stands."""
        results: list[Result] = []
        beside = await self._journal.of(self._container_id) if any(known) else []
        for invocation, entry in zip(invocations, known, strict=True):
            if entry is not None and entry.state is State.RELEASING:
                self._hand_over(entry)
            elif (
                entry is not None
                and entry.result is not None
                and entry.netns == invocation.netns
                and await intact(self._kernel, entry, beside=beside)
            ):
                results.append(entry.result)
        return tuple(results) if len(results) == len(invocations) else None

    async def _coordinate(self, invocation: Invocation, known: JournalEntry | None) -> Results:
        """The chained plugin: the way between the pod and its node for an interface that others have made."""
        if known is not None:
            if known.netns == invocation.netns and known.result is not None:
                beside = await self._journal.of(self._container_id)
                if await intact(self._kernel, known, beside=beside):
                    return (known.result,)
            await self._take_down(known)
        previous = invocation.prev_result or Result()
        cluster = self._cluster or await cluster_settings(
            self._controllers, invocation, deadline=self.system.clock.now() + _LOOKUP_SECONDS
        )
        of = self._entries.get(Key(self._container_id, invocation.ifname))
        assigned = None if of is None else of.assigned
        plan = await plan_coordination(self._kernel, invocation, cluster, built=self._connections(), assigned=assigned)
        if plan is None:
            return (previous,)
        result = with_mac(previous, invocation.ifname, plan.mac) if plan.mac else previous
        entry = msgspec.structs.replace(
            blank_entry(invocation, changed_ns=self._wall_ns()), coordination=plan, result=result
        )
        await self._put(entry)
        try:
            await self._kernel.coordinate(plan)
            await self._put(msgspec.structs.replace(entry, state=State.ADDED, changed_ns=self._wall_ns()))
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_SECONDS):
                try:
                    await self._take_down(entry)
                except (CniError, ActorError) as left:
                    _log.warning("could not undo the coordinator of %s: %s", invocation.ifname, left)
            raise as_cni(error, invocation) from error
        return (result,)

    async def _undo(self, nics: Sequence[Nic], *, asked: bool) -> None:
        """Take the links away, the last first, and see to it that the addresses go back."""
        for nic in reversed(nics):
            try:
                if nic.failure is None or nic.entry.vf is not None:
                    await detach(self._kernel, self._pfs, nic.entry, one_by_one=self._disconnecting)
                if asked and nic.wants_addresses:
                    await self._owe(nic.entry)
                else:
                    await self._remove(nic.entry.key)
            except (CniError, ActorError) as error:
                # The entry stays as "adding": a DEL or the next start of the agent goes on from here.
                _log.warning("could not undo %s of %s: %s", nic.ifname, self._container_id, error)

    async def _settle(self, invocation: Invocation) -> bool:
        """Wait until nothing is owed for this container; says whether its addresses may be asked for twice over."""
        question = Settle(Key(self._container_id, invocation.ifname), pod_ref(invocation.args))
        try:
            return await self._outbox.ask(question, timeout=_SETTLE_SECONDS)
        except ActorError as error:
            msg = f"the release of {invocation.ifname} of an earlier DEL of this container is not over"
            raise TryAgainLater(msg, str(error)) from error

    # -- CHECK ---------------------------------------------------------------------------------------------------------

    async def _verify(self, invocation: Invocation, known: JournalEntry | None) -> None:
        beside = await self._journal.of(self._container_id)
        await verify(self._kernel, self._pfs, invocation, known, beside=beside)

    # -- DEL -----------------------------------------------------------------------------------------------------------

    async def _detach(self, invocations: Sequence[Invocation], known: Sequence[JournalEntry | None]) -> None:
        self._spare = None
        entries = []
        for invocation, entry in zip(invocations, known, strict=True):
            if entry is not None or part_of(invocation) or not await self._is_over(invocation.ifname):
                # Unknown here, and not of this life: the journal may have been lost. Kernel and controller are asked.
                entries.append(entry or blank_entry(invocation, changed_ns=self._wall_ns()))
        await self._take_down(*entries)

    async def _is_over(self, ifname: str) -> bool:
        try:
            return await self._outbox.ask(Recall(Key(self._container_id, ifname)), timeout=_SETTLE_SECONDS)
        except ActorError:
            return False

    async def _renounce(self, seen: str) -> None:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            entries = await self._journal.of(self._container_id)
            given = [one for one in entries if one.role is Role.IPAM and one.state is State.ADDED]
            for entry in given:
                await disown(self._controllers, entry, seen=seen, deadline=self.system.clock.now() + _DISOWN_SECONDS)
            for entry in given:
                await self._owe(entry)

    async def _mend(self, known: Sequence[JournalEntry | None]) -> None:
        (entry,) = known
        if entry is None:
            return
        if entry.state is State.RELEASING:
            self._hand_over(entry)
        elif entry.state is State.ADDING or not await self._kernel.netns_exists(entry.netns):
            why = "its ADD was cut short" if entry.state is State.ADDING else f"{entry.netns} is gone"
            _log.warning("taking down %s of %s (pod %s): %s", entry.ifname, entry.container_id, entry.pod, why)
            await self._take_down(entry)

    async def _take_down(self, *entries: JournalEntry) -> None:
        """Links at the same time, and then what they had: by one release, once the journal says it of all.

        Raises the first failure, when all have been tried.
        """
        gone: list[JournalEntry] = []
        failures: list[CniError | ActorError] = []

        async def one(entry: JournalEntry) -> None:
            try:
                with traces.span("link.delete"):
                    await detach(self._kernel, self._pfs, entry, one_by_one=self._disconnecting)
            except (CniError, ActorError) as error:
                failures.append(error)
            else:
                gone.append(entry)

        await together(*(partial(one, entry) for entry in entries))
        for entry in gone:
            if entry.bare and entry.state is not State.RELEASING:
                await self._remove(entry.key)
        held = [entry for entry in gone if not entry.bare and entry.state is not State.RELEASING and entry.pod.name]
        owed = [self._owed(entry) for entry in held]
        await self._put_all(owed)
        for entry in (*owed, *(entry for entry in gone if entry.state is State.RELEASING)):
            self._hand_over(entry)
        if failures:
            raise failures[0]

    # -- journal -------------------------------------------------------------------------------------------------------

    async def _owe(self, entry: JournalEntry) -> None:
        """From here on the outbox sees to the release."""
        owed = self._owed(entry)
        await self._put(owed)
        self._hand_over(owed)

    def _owed(self, entry: JournalEntry) -> JournalEntry:
        return msgspec.structs.replace(entry, state=State.RELEASING, vf=None, changed_ns=self._wall_ns())

    def _hand_over(self, owed: JournalEntry) -> None:
        """The journal says "releasing". It does no harm if the outbox knows already."""
        self._forget(owed.key)
        self._outbox.tell(Owe(owed))

    async def _put_all(self, entries: Sequence[JournalEntry]) -> None:
        """Write entries that belong together; the disk is waited for once."""
        await together(*(partial(self._put, entry) for entry in entries))

    async def _put(self, entry: JournalEntry) -> None:
        await self._journal.put(entry)
        self._know(entry)

    def _know(self, entry: JournalEntry) -> None:
        if entry.key not in self._entries:
            metrics.SANDBOXES.inc()
        self._entries[entry.key] = entry

    async def _remove(self, key: Key) -> None:
        await self._journal.remove(key)
        self._forget(key)

    def _forget(self, key: Key) -> None:
        if self._entries.pop(key, None) is not None:
            metrics.SANDBOXES.dec()

    def _wall_ns(self) -> int:
        return int(self.system.clock.wall() * 1e9)


def _keys(invocations: Sequence[Invocation]) -> list[Key]:
    """What the journal files the interfaces of calls under."""
    return [Key(invocation.container_id, invocation.ifname, part_of(invocation)) for invocation in invocations]
