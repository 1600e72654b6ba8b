"""The actor of this node: takes CNI calls and keeps one sandbox actor per container.

Messages: `Invoke` and `Disavow` from the socket server; `Recovered`, `Forwarded`, `ForwardFailed`, `Mended`, `Audited`
from its own work; `Audit` and `Departures` from its timers; `Departed` from the watch on namespaces. State: the sandbox
actors by container id. Persists: nothing itself. Answers: what the sandbox actor answers.

It serves as soon as it has read the journal. Beside that, the sandbox actors deal with what an agent before left:
interfaces whose ADD was cut short are taken down and their addresses given back; those whose namespace is gone (a
reboot) are given back. A call for such a container waits for that, or does it itself. While the agent before still runs
and works on a container, that container waits for it.

A sandbox may also go without a DEL: force-removed, or the runtime's state wiped. A watch tells when the mount of its
namespace goes; then its interfaces are dealt with in the same way, after a moment for the kernel to take down what was
in it. Not everything is told: an agent that is being replaced may be killed over its work after the newcomer has read
the journal, and a watch may miss something. So every now and then it looks at the journal again. An interface whose
namespace is missing, or whose ADD is not over, twice in a row is dealt with too; what is owed goes to the outbox, which
ignores what it has.
"""

import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

import anyio
from msgspec import Struct

from actors.node import cluster
from actors.node.carried import still_carried
from actors.node.controllers import Controllers
from actors.node.departures import SETTLE_SECONDS
from actors.node.detection import Detection
from actors.node.disk import Journal
from actors.node.gc import stale
from actors.node.meta import Meta
from actors.node.networks import Announce, Check, Dissolve, Join, Leave, NetworksActor
from actors.node.networks import Message as NetworksMessage
from actors.node.outbox import Message as OutboxMessage
from actors.node.outbox import Owe
from actors.node.parent import Ensure, Look
from actors.node.parent import Message as ParentMessage
from actors.node.pfs import PhysicalFunctions
from actors.node.readiness import check_node
from actors.node.sandbox import Attach, Detach, Mend, Renounce, SandboxActor, Verify
from actors.node.sandbox import Message as SandboxMessage
from cni.coordination import Pair
from cni.errors import CniError, TryAgainLater
from cni.journal import NETWORKS, JournalEntry, Key, State
from cni.kernel import Kernel
from cni.protocol import Invocation, Role, Verb
from cni.result import Result
from runtime.actor import LATER, Actor, Question, Ref
from runtime.envelope import Envelope, Reply
from runtime.errors import ActorError
from runtime.supervision import Supervisor
from telemetry import metrics

_log = logging.getLogger(__name__)

_CALL_SECONDS = 60.0
"""The longest that one CNI call may take; kubelet's own limit is 2 minutes."""
_MENDING = 32
"""Containers of an earlier life that are dealt with at a time: their journal entries are synced to disk in parallel."""
_MEND_PAUSES_SECONDS = (0.25, 60.0)
"""Before an interface that could not be taken down is tried again: the first pause, and the longest."""
_AUDIT_SECONDS = 15.0
"""Between two looks at the journal and the namespaces: 50 microseconds an interface."""


class Invoke(Question["Result | None"], frozen=True, tag=True):
    """One CNI call."""

    invocation: Invocation


class Disavow(Question["Result | None"], frozen=True, tag=True):
    """Somebody else uses an address of a container; see `actors.node.sandbox.Renounce`."""

    container_id: str
    seen: str


class Recovered(Struct, frozen=True, tag=True):
    """The journal was read; `entries` are the interfaces that it knows, those of the outbox left out."""

    entries: list[JournalEntry]


class Forwarded(Struct, frozen=True, tag=True):
    """A call has ended."""

    number: int
    result: Result | None


class ForwardFailed(Struct, frozen=True, tag=True):
    """A call has failed."""

    number: int
    error: Exception


class Retired(Struct, frozen=True, tag=True):
    """The actor of a container without interfaces has ended."""

    container_id: str


class Mended(Struct, frozen=True, tag=True):
    """One interface of an earlier life is as it should be, or gone."""

    container_id: str


class Audit(Struct, frozen=True, tag=True):
    """Time to look at the journal again, and whether all namespaces are there."""


class Departed(Struct, frozen=True, tag=True):
    """The mount of a namespace went. Whether the namespace did is still to be seen."""

    netns: str


class Departures(Struct, frozen=True, tag=True):
    """Time to look at the namespaces whose mounts went."""


class Audited(Struct, frozen=True, tag=True):
    """The interfaces whose namespace is not there, or whose ADD is not over."""

    lost: tuple[JournalEntry, ...] = ()


Message = (
    Invoke
    | Disavow
    | Recovered
    | Forwarded
    | ForwardFailed
    | Mended
    | Retired
    | Audit
    | Audited
    | Departed
    | Departures
)


class NodeActor(Actor[Message]):
    """See the module."""

    capacity = 4096

    def __init__(
        self,
        *,
        sandboxes: Supervisor,
        kernel: Kernel,
        journal: Journal,
        controllers: Controllers,
        outbox: Ref[OutboxMessage],
        pfs: PhysicalFunctions,
        parents: Ref[ParentMessage],
        meta: Meta,
        detection: Detection,
        ready: Callable[[], None],
        cover: Callable[[str], None],
    ) -> None:
        """Nothing is served yet.

        Args:
            sandboxes: gets a child for every container.
            kernel: a port.
            journal: a port.
            controllers: whom to ask whether they would serve.
            outbox: gets what is owed.
            pfs: lends virtual functions.
            parents: sees to the node's parents.
            detection: looks whether addresses are free on the network.
            meta: what it takes to attach pods to several networks.
            ready: called when the journal has been read.
            cover: called with the path of every namespace of a sandbox: its going is to be told.
        """
        self._sandboxes = sandboxes
        self._kernel = kernel
        self._journal = journal
        self._controllers = controllers
        self._outbox = outbox
        self._pfs = pfs
        self._parents = parents
        self._detection = detection
        self._meta = meta
        self._ready = ready
        self._cover = cover
        self._departed: set[str] = set()
        """Namespaces whose mounts went a moment ago."""
        self._refs: dict[str, Ref[SandboxMessage]] = {}
        self._networks: dict[str, Ref[NetworksMessage]] = {}
        """Of containers of which a meta plugin was asked."""
        self._entries: dict[str, dict[Key, JournalEntry]] = {}
        self._calls: dict[int, tuple[Envelope, str]] = {}
        self._mending: Counter[str] = Counter()
        """Interfaces of an earlier life that are not dealt with yet, by container."""
        self._lost: set[Key] = set()
        """Interfaces that were as good as gone at the last look."""
        self._limit = anyio.CapacityLimiter(_MENDING)
        self._number = 0
        self._names: dict[str, list[str]] = {}
        """Of the children, by container."""
        self._children = 0

    def __repr__(self) -> str:
        return f"<NodeActor {len(self._refs)} sandboxes, {len(self._calls)} calls>"

    def started(self) -> None:
        """Nothing is served before the journal has been read."""
        self.hold()
        self.pipe(self._recover(), Recovered)

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Forward a call to its container's actor, and its answer to the caller."""
        match message:
            case Invoke(invocation):
                self._cover(invocation.netns)
                self._forward(invocation.container_id, self._serve(invocation), envelope)
                return LATER
            case Disavow(container_id, seen):
                self._forward(container_id, self._renounce(container_id, seen), envelope)
                return LATER
            case Recovered(entries):
                metrics.SANDBOXES.set(len(entries))
                for entry in entries:
                    self._cover(entry.netns)
                    self._entries.setdefault(entry.container_id, {})[entry.key] = entry
                self._mend_all(entries)
                self._ready()
                self.release()
                self.timers.start("audit", _AUDIT_SECONDS, Audit())
            case Forwarded(number, result):
                self._end(number).resolve(result)
            case ForwardFailed(number, error):
                self._end(number).fail(error)
            case Mended(container_id):
                self._mending[container_id] -= 1
                self._retire(container_id)
            case Retired():
                pass
            case Departed() | Departures() | Audit() | Audited():
                self._look(message)
            case _:
                assert_never(message)
        return None

    def _forward(self, container_id: str, work: Coroutine[Any, Any, Result | None], envelope: Envelope) -> None:
        self._number += 1
        number = self._number
        self._calls[number] = (envelope, container_id)
        self.pipe(
            work,
            lambda result: Forwarded(number, result),
            failed=lambda error: ForwardFailed(number, error),
            on_behalf=envelope,
        )

    def _look(self, message: Departed | Departures | Audit | Audited) -> None:
        match message:
            case Departed(netns):
                self._departed.add(netns)
                if not self.timers.running("departures"):
                    self.timers.start("departures", SETTLE_SECONDS, Departures())
            case Departures():
                departed, self._departed = self._departed, set()
                known = [entry for held in self._entries.values() for entry in held.values()]
                # A call that is under way for the container goes first; what it leaves is looked at anew.
                self._mend_all([entry for entry in known if entry.netns in departed])
            case Audit():
                self.pipe(self._audit(), Audited, failed=self._not_audited)
            case Audited(lost):
                self._audited(lost)
                self.timers.start("audit", _AUDIT_SECONDS, Audit())
            case _:
                assert_never(message)

    def _end(self, number: int) -> Reply:
        """The caller's end of a call that is over. A container without interfaces and calls needs no actor."""
        envelope, container_id = self._calls.pop(number)
        self._retire(container_id)
        assert envelope.reply is not None
        return envelope.reply

    def _retire(self, container_id: str) -> None:
        busy = self._mending[container_id] > 0 or any(other == container_id for _, other in self._calls.values())
        if not busy:
            del self._mending[container_id]
            if not self._entries.get(container_id) and container_id in self._names:
                self._refs.pop(container_id, None)
                self._networks.pop(container_id, None)
                self._entries.pop(container_id, None)
                for name in self._names.pop(container_id):
                    self.pipe(self._sandboxes.remove(name), lambda _: Retired(container_id))

    async def _serve(self, invocation: Invocation) -> Result | None:
        match invocation.verb:
            case Verb.ADD | Verb.CHECK | Verb.DEL:
                if invocation.role is Role.IFACER:
                    return await self._serve_parents(invocation)
                if self._is_meta(invocation):
                    return await self._serve_networks(invocation)
                return await self._serve_interface(invocation)
            case Verb.GC:
                await self._collect(invocation)
                return None
            case Verb.STATUS:
                await check_node(self._kernel, self._journal, self._meta, invocation)
                return None
            case Verb.VERSION:
                return None  # the shim answers this one by itself
            case _:
                assert_never(invocation.verb)

    def _is_meta(self, invocation: Invocation) -> bool:
        """Whether the call may be about other interfaces of the pod, too."""
        key = Key(invocation.container_id, invocation.ifname, NETWORKS)
        return invocation.role is Role.MAIN and (
            invocation.conf.networks or key in self._entries.get(invocation.container_id, {})
        )

    async def _serve_interface(self, invocation: Invocation) -> Result | None:
        sandbox = self._sandbox(invocation.container_id)
        match invocation.verb:
            case Verb.ADD:
                (result,) = await sandbox.ask(Attach((invocation,)), timeout=_CALL_SECONDS)
                return result
            case Verb.CHECK:
                await sandbox.ask(Verify(invocation), timeout=_CALL_SECONDS)
            case _:
                await sandbox.ask(Detach((invocation,)), timeout=_CALL_SECONDS)
        return None

    async def _serve_networks(self, invocation: Invocation) -> Result | None:
        networks = self._networks_of(invocation.container_id)
        match invocation.verb:
            case Verb.ADD:
                return await networks.ask(Join(invocation), timeout=_CALL_SECONDS)
            case Verb.CHECK:
                await networks.ask(Check(invocation), timeout=_CALL_SECONDS)
            case _:
                await networks.ask(Leave(invocation), timeout=_CALL_SECONDS)
        return None

    async def _serve_parents(self, invocation: Invocation) -> Result | None:
        """Parents are the node's, and nobody's in particular: they come by ADD and stay."""
        match invocation.verb:
            case Verb.ADD:
                return await self._parents.ask(Ensure(invocation), timeout=_CALL_SECONDS)
            case Verb.CHECK:
                await self._parents.ask(Look(invocation), timeout=_CALL_SECONDS)
        return None

    async def _provide(self, invocation: Invocation) -> None:
        await self._parents.ask(Ensure(invocation), timeout=_CALL_SECONDS)

    async def _renounce(self, container_id: str, seen: str) -> None:
        await self._sandbox(container_id).ask(Renounce(seen), timeout=_CALL_SECONDS)

    def _sandbox(self, container_id: str) -> Ref[SandboxMessage]:
        ref = self._refs.get(container_id)
        if ref is None:
            entries = self._entries.setdefault(container_id, {})
            ref = self._refs[container_id] = self._sandboxes.add_actor(
                self._child(container_id),
                lambda: SandboxActor(
                    container_id,
                    kernel=self._kernel,
                    journal=self._journal,
                    controllers=self._controllers,
                    outbox=self._outbox,
                    pfs=self._pfs,
                    detection=self._detection,
                    entries=entries,
                ),
                capacity=SandboxActor.capacity,
            )
        return ref

    def _networks_of(self, container_id: str) -> Ref[NetworksMessage]:
        ref = self._networks.get(container_id)
        if ref is None:
            entries = self._entries.setdefault(container_id, {})
            ref = self._networks[container_id] = self._sandboxes.add_actor(
                self._child(container_id),
                lambda: NetworksActor(
                    container_id,
                    journal=self._journal,
                    controllers=self._controllers,
                    kernel=self._kernel,
                    meta=self._meta,
                    sandbox=lambda: self._sandbox(container_id),
                    provide=self._provide,
                    entries=entries,
                ),
                capacity=NetworksActor.capacity,
            )
        return ref

    def _child(self, container_id: str) -> str:
        self._children += 1
        name = f"{container_id[:12]}-{self._children}"
        self._names.setdefault(container_id, []).append(name)
        return name

    async def _collect(self, invocation: Invocation) -> None:
        """GC: take down every interface of this network that the runtime does not list; have the overlay's do so."""
        failures: list[str] = []
        for entry, gone in stale(await self._journal.load(), invocation):
            try:
                if entry.part == NETWORKS:
                    await self._networks_of(entry.container_id).ask(Leave(gone), timeout=_CALL_SECONDS)
                else:
                    await self._sandbox(entry.container_id).ask(Detach((gone,)), timeout=_CALL_SECONDS)
            except (CniError, ActorError) as error:
                failures.append(f"{entry.container_id} {entry.ifname}: {error}")
        failures += await cluster.collect(self._meta, invocation)
        if failures:
            msg = f"GC of network {invocation.conf.name} failed {len(failures)} times"
            raise TryAgainLater(msg, "; ".join(failures))

    async def _recover(self) -> list[JournalEntry]:
        """What the journal knows; the outbox reads its own entries itself."""
        return [entry for entry in await self._journal.load() if entry.state is not State.RELEASING]

    async def _audit(self) -> tuple[JournalEntry, ...]:
        """Look at the journal again: hand what is owed to the outbox; returns what nobody may be at work on."""
        entries = await self._journal.load()
        standing = [entry.netns for entry in entries if entry.state is State.ADDED and entry.netns]
        missing = await self._kernel.vanished(standing)
        for entry in entries:
            if entry.state is State.RELEASING:
                self._outbox.tell(Owe(entry))
        return tuple(
            entry
            for entry in entries
            if entry.state is State.ADDING or (entry.state is State.ADDED and entry.netns in missing)
        )

    def _not_audited(self, error: Exception) -> Audited:
        _log.warning("could not look at the journal again: %s: %s", type(error).__name__, error)
        return Audited()

    def _audited(self, lost: tuple[JournalEntry, ...]) -> None:
        calling = {container_id for _, container_id in self._calls.values()}
        busy = {entry.container_id for entry in lost if self._mending[entry.container_id] > 0} | calling
        self._mend_all([entry for entry in lost if entry.key in self._lost and entry.container_id not in busy])
        self._lost = {entry.key for entry in lost}

    def _mend_all(self, entries: list[JournalEntry]) -> None:
        for entry in entries:
            self._mending[entry.container_id] += 1
        for entry in entries:
            self.pipe(self._mend(entry), Mended)

    async def _mend(self, entry: JournalEntry) -> str:
        """Deal with an interface of an earlier life, however long that takes; returns the container's id."""
        pause, longest = _MEND_PAUSES_SECONDS
        while True:
            async with self._limit:
                try:
                    if entry.state is State.ADDED and await self._stands(entry):
                        if entry.part == NETWORKS:
                            await self._networks_of(entry.container_id).ask(Announce(entry), timeout=_CALL_SECONDS)
                        return entry.container_id
                    if entry.part == NETWORKS:
                        await self._networks_of(entry.container_id).ask(Dissolve(entry), timeout=_CALL_SECONDS)
                    else:
                        await self._sandbox(entry.container_id).ask(Mend(entry.key), timeout=_CALL_SECONDS)
                except (CniError, ActorError) as error:
                    _log.error("could not take down %s of %s yet: %s", entry.ifname, entry.container_id, error)
                else:
                    return entry.container_id
            await anyio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _stands(self, entry: JournalEntry) -> bool:
        """Whether the namespace is there. Raises `TryAgainLater` where only its mount has gone."""
        if await self._kernel.netns_exists(entry.netns):
            return True
        if entry.host_veth and await self._kernel.paired(Pair(entry.host_veth, entry.container_id)):
            msg = f"{entry.netns} is gone, and {entry.host_veth} still leads into the namespace"
            raise TryAgainLater(msg)
        carried = await still_carried(entry, kernel=self._kernel, journal=self._journal)
        if carried:
            msg = f"{entry.netns} is gone, and a link still carries {', '.join(sorted(carried))}"
            raise TryAgainLater(msg)
        return False
