"""The outbox: releases that this node owes the controller, kept until they are acknowledged.

Messages: `Owe` from sandbox actors and the node actor, `Settle` and `Recall` from sandbox actors, `Connected` when a
controller can be asked again, `Done`, `Echo` and `Failed` from its own requests, `Look` from its timer.
State: the owed entries by container and interface, and which were released last. Persists: nothing itself; every entry
it holds stands in the node's journal as "releasing" before it comes here and leaves the journal when the controller has
acknowledged.
Answers: `Settle` when nothing is owed for that container any more, `Recall` at once.

An address is free only when no link carries it (the pool would hand it out while a packet can still leave with it). Our
own DEL removes the link first. Under a foreign main plugin the link goes after us, so the entry waits here until the
kernel shows that link or namespace is gone. A namespace whose mount has gone is not gone yet: no link of this node may
carry the addresses.

While one agent replaces another both may hold the same debt. An attempt claims the container and goes by the journal as
it is then: an entry that is not "releasing" any more has been dealt with, or is a new ADD of the same sandbox.

A release says which NICs of the container stay, and everything else of it goes: an ADD may have been granted addresses
for NICs that nobody ever attached. So no NIC of a container is added while a release of another one is under way, which
does not know of it. NICs that are owed and carried by no link any more go along with the one whose turn it is: a pod
with three of them costs one release and one change of its SpiderEndpoint. Those that a link still carries stay.

A copy of an ADD that was never answered may still be on its way to a pool when the release arrives there by another
replica. So a doubtful entry is released twice, the second time when that copy's writes can no longer land.

By then the pod may live in a newer sandbox, whose record such a copy takes over, since to a pool a claim that comes
later is a newer one. Which is the newer one only this node knows: so a doubtful release names the pod's living sandbox,
and what the copy took becomes that one's again. While a newer one is being added the release waits, for a record that
was passed on to an ADD that then fails would have no holder.

What a crash leaves: the journal entry. The next agent puts it back into its outbox. A release that was carried out
twice finds nothing the second time.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import assert_never

import anyio
from msgspec import Struct

from actors.node.carried import still_carried
from actors.node.controllers import Controllers
from actors.node.departures import SETTLE_SECONDS
from actors.node.disk import Journal
from api.wire import PodRef, Rejected, Release, Released
from cni.journal import JournalEntry, Key, State
from cni.kernel import Kernel
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope
from runtime.transport.port import DeadlineExceeded, TransportError
from telemetry import metrics

_log = logging.getLogger(__name__)

_REQUEST_SECONDS = 30.0
"""Nobody waits for the answer. It comes when the SpiderEndpoint is gone too, and those of other pods go before it."""
_AT_ONCE = 128
"""Releases under way: all that a node of the usual 110 pods owes when it drains, so that the pools' owners free what
they can with one write. Thousands at once would time out in the controller's queue, be sent again and queue up behind
themselves."""
_CLAIM_SECONDS = 1.0
"""How long an attempt waits for another agent of this node; the next one comes soon enough."""
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0
_SPREAD_SECONDS = 0.3
"""Over which a node's owed releases begin when a controller comes back: all nodes see that at the same moment."""
_REMEMBERED = 4096
"""Released interfaces, for `Recall`; about a megabyte."""
ECHO_SECONDS = 40.0
"""After that no write of an unanswered ADD can land any more: its own 20 s, and the store's 10 s, with a margin."""
PROVIDED_ECHO_SECONDS = 65.0
"""The same of an ADD that has 45 s, for a network provider."""


class Owe(Struct, frozen=True, tag=True):
    """Release what this entry holds, once the kernel carries it no more. The journal has it as "releasing"."""

    entry: JournalEntry


class Settle(Question[bool], frozen=True, tag=True):
    """Answered when an ADD of this interface may begin: nothing is owed for its container.

    The answer says whether a request for another sandbox of the pod may still be under way.
    """

    key: Key
    pod: PodRef


class Recall(Question[bool], frozen=True, tag=True):
    """Whether this interface was released, and that acknowledged, in this life of the agent; False if long ago.

    Asked of what the journal does not know. A runtime repeats DEL two or three times for a sandbox; with this the
    repetitions cost nothing.
    """

    key: Key


class Inspect(Question[int], frozen=True, tag=True):
    """How many releases are owed."""


class Connected(Struct, frozen=True, tag=True):
    """A controller replica can be asked again: what waits need not wait for its pause."""


class Departed(Struct, frozen=True, tag=True):
    """The mount of a namespace went: what waits for that need not wait for its pause."""

    netns: str


class Done(Struct, frozen=True, tag=True):
    """Nothing is owed any more."""

    key: Key
    over: bool
    """The journal knows nothing of the interface; else a new ADD of the same sandbox has made it anew."""
    along: tuple[Key, ...] = ()
    """Other interfaces of the container that went by the same release."""


class Echo(Struct, frozen=True, tag=True):
    """The controller has acknowledged once; a second time is due later."""

    entry: JournalEntry
    """What was released."""


class Failed(Struct, frozen=True, tag=True):
    """Not yet: the link is still there, or the controller did not answer."""

    key: Key
    why: str


class Look(Struct, frozen=True, tag=True):
    """A pause is over."""

    key: Key


class Loaded(Struct, frozen=True, tag=True):
    """The journal was read."""

    entries: list[JournalEntry]


Message = Owe | Settle | Recall | Inspect | Connected | Departed | Done | Echo | Failed | Look | Loaded


class _Owed(Struct):
    entry: JournalEntry
    pause: float = _FIRST_PAUSE_SECONDS
    echoing: bool = False
    """Acknowledged once; only the second release is due."""
    busy: bool = False
    """A request is under way."""


class _NotYet(Exception):
    """The release has to wait; the text says for what."""


class OutboxActor(Actor[Message]):
    """See the module."""

    capacity = 65536

    def __init__(self, *, kernel: Kernel, journal: Journal, controllers: Controllers) -> None:
        """All three are ports; the actor itself touches nothing."""
        self._kernel = kernel
        self._journal = journal
        self._controllers = controllers
        self._owed: dict[Key, _Owed] = {}
        self._at_work: dict[str, dict[Key, Envelope | None]] = {}
        """Containers of which a release is under way, and their interfaces whose turn comes then."""
        self._waiting: list[tuple[Settle, Envelope]] = []
        self._began = 0.0
        self._heir = True
        """Whether there was an agent on this node before."""
        self._released: OrderedDict[Key, None] = OrderedDict()
        self._limit = anyio.CapacityLimiter(_AT_ONCE)

    def __repr__(self) -> str:
        return f"<OutboxActor {len(self._owed)} owed>"

    def started(self) -> None:
        """A new life begins with what the journal says is owed; before that nobody is told that nothing is."""
        self._began = self.system.clock.now()
        self.hold()
        self.pipe(self._journal.load(), Loaded)

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Try at once, then again after growing pauses."""
        match message:
            case Loaded(entries):
                self._heir = bool(entries)
                for entry in entries:
                    if entry.state is State.RELEASING:
                        self._take(entry, envelope)
                self.release()
            case Owe(entry):
                self._take(entry, envelope)
            case Settle() | Recall() | Inspect():
                return self._answer(message, envelope)
            case Connected() | Departed():
                self._hurry(message)
            case Done(key, over, along):
                self._done((key, *along), over=over)
            case Echo(entry):
                self._acknowledged(entry)
            case Failed(key, why):
                self._put_off(key, why)
            case Look(key):
                self._try(key, None)
            case _:
                assert_never(message)
        return None

    def _answer(self, question: Settle | Recall | Inspect, envelope: Envelope) -> object:
        match question:
            case Settle():
                return self._settle(question, envelope)
            case Recall(key):
                # What is owed still, and in the journal no more, was released this moment.
                return key in self._released or key in self._owed
            case Inspect():
                return len(self._owed)
            case _:
                assert_never(question)

    def _done(self, keys: Sequence[Key], *, over: bool) -> None:
        for key in keys:
            self._owed.pop(key, None)
            if over:
                self._released[key] = None
                if len(self._released) > _REMEMBERED:
                    self._released.popitem(last=False)
        self._next_of(keys[0].container_id)
        self._wake()

    def _settle(self, question: Settle, envelope: Envelope) -> object:
        self._released.pop(question.key, None)  # an ADD asks
        if self._settled(question.key):
            return self._disputed(question.pod)
        self._waiting.append((question, envelope))
        return LATER

    def _disputed(self, pod: PodRef) -> bool:
        """A young agent does not know all that the one before it owes still."""
        if self._heir and self.system.clock.now() - self._began < PROVIDED_ECHO_SECONDS:
            return True
        owed = (it.entry for it in self._owed.values() if it.entry.doubtful)
        return any((entry.pod.namespace, entry.pod.name) == (pod.namespace, pod.name) for entry in owed)

    def _settled(self, key: Key) -> bool:
        owed = self._owed.get(key)
        if owed is not None and owed.echoing and not owed.busy:
            # A new ADD of the very same sandbox: what may still land is what it will ask for.
            self.timers.cancel(str(key))
            del self._owed[key]
        return all(
            owed.echoing and not owed.busy
            for other, owed in self._owed.items()
            if other.container_id == key.container_id
        )

    def _wake(self) -> None:
        """Let those go on whose container is settled."""
        waiting, self._waiting = self._waiting, []
        for question, envelope in waiting:
            if not self._settled(question.key):
                self._waiting.append((question, envelope))
            elif envelope.reply is not None:
                envelope.reply.resolve(self._disputed(question.pod))

    def _acknowledged(self, entry: JournalEntry) -> None:
        owed = self._owed.get(entry.key)
        if owed is not None:
            owed.entry, owed.echoing, owed.busy = entry, True, False
            seconds = PROVIDED_ECHO_SECONDS if entry.provided else ECHO_SECONDS
            self.timers.start(str(entry.key), seconds, Look(entry.key))
        self._next_of(entry.container_id)
        self._wake()

    def _hurry(self, message: Connected | Departed) -> None:
        for key, owed in self._owed.items():
            if isinstance(message, Connected):
                delay = self.system.random.uniform(0, _SPREAD_SECONDS)
            elif owed.entry.netns == message.netns:
                delay = SETTLE_SECONDS
            else:
                continue
            owed.pause = _FIRST_PAUSE_SECONDS
            if not owed.busy and not owed.echoing:
                self.timers.start(str(key), delay, Look(key))

    def _put_off(self, key: Key, why: str) -> None:
        owed = self._owed.get(key)
        if owed is not None:
            owed.busy = False
            _log.info("release of %s %s waits: %s", key.container_id, key.ifname, why)
            self.timers.start(str(key), owed.pause, Look(key))
            owed.pause = min(owed.pause * 2, _LONGEST_PAUSE_SECONDS)
        self._next_of(key.container_id)

    def _take(self, entry: JournalEntry, envelope: Envelope) -> None:
        key = entry.key
        if key not in self._owed:
            self._owed[key] = _Owed(entry)
            self._try(key, envelope)

    def _try(self, key: Key, envelope: Envelope | None) -> None:
        owed = self._owed.get(key)
        if owed is None or owed.busy:
            return
        waiting = self._at_work.get(key.container_id)
        if waiting is not None:
            waiting.setdefault(key, envelope)
            return
        self._at_work[key.container_id] = {}
        owed.busy = True
        self.pipe(
            self._attempt(key, acknowledged=owed.entry if owed.echoing else None),
            lambda ended: ended,
            failed=lambda error: Failed(key, why=str(error)),
            on_behalf=envelope,
        )

    def _next_of(self, container_id: str) -> None:
        """The turn of those that have waited for another interface of their container."""
        for key, envelope in self._at_work.pop(container_id, {}).items():
            self._try(key, envelope)

    async def _attempt(self, key: Key, *, acknowledged: JournalEntry | None) -> Done | Echo:
        """Release once, by what the journal says now."""
        async with self._limit, self._journal.claim(key.container_id, seconds=_CLAIM_SECONDS):
            entries = [one for one in await self._journal.of(key.container_id) if not (one.part or one.bare)]
            entry = next((one for one in entries if one.key == key), None)
            if entry is None or entry.state is not State.RELEASING:
                return Done(key, over=entry is None)
            why = await self._carried(entry)
            if why:
                raise _NotYet(why)
            along: list[JournalEntry] = []
            for one in entries:
                owed = one.key != key and one.state is State.RELEASING
                if owed and not (one.doubtful or entry.doubtful or await self._carried(one)):
                    along.append(one)
            going = {entry.ifname, *(one.ifname for one in along)}
            await self._release((entry, *along), keep=tuple(sorted({one.ifname for one in entries} - going)))
            if entry.doubtful and entry != acknowledged:
                return Echo(entry)
            for one in (*along, entry):
                await self._journal.remove(one.key)
            return Done(key, over=True, along=tuple(one.key for one in along))

    async def _carried(self, entry: JournalEntry) -> str:
        """Which link has the addresses of an entry still, in words; empty where none has."""
        if entry.netns and await self._kernel.carries(entry.netns, entry.ifname, entry.addresses):
            return f"a link in {entry.netns} still carries {', '.join(entry.addresses) or entry.ifname}"
        if entry.netns and await self._kernel.vanished((entry.netns,)):
            carried = await still_carried(entry, kernel=self._kernel, journal=self._journal)
            if carried:
                return f"{entry.netns} is gone, and a link still carries {', '.join(sorted(carried))}"
        return ""

    async def _release(self, entries: Sequence[JournalEntry], *, keep: tuple[str, ...]) -> None:
        """`entries` are of one container, `keep` are the NICs that it has left."""
        entry = entries[0]
        successor = await self._successor(entry) if entry.doubtful else ""
        begun = self.system.clock.now()
        metrics.IPAM_RELEASE_COUNTS.inc()
        try:
            await release(self._controllers, entries, keep=keep, successor=successor, deadline=begun + _REQUEST_SECONDS)
        except DeadlineExceeded:
            metrics.IPAM_RELEASE_ERR_RETRIES_EXHAUSTED_COUNTS.inc()
            metrics.IPAM_RELEASE_FAILURE_COUNTS.inc()
            raise
        except TransportError:
            metrics.IPAM_RELEASE_ERR_INTERNAL_COUNTS.inc()
            metrics.IPAM_RELEASE_FAILURE_COUNTS.inc()
            raise
        metrics.IPAM_RELEASE_DURATION.observe(self.system.clock.now() - begun)

    async def _successor(self, entry: JournalEntry) -> str:
        """The container that the entry's pod lives in now; empty where it lives in none. Raises `_NotYet`."""
        others = [
            other
            for other in await self._journal.load()
            if not other.part
            and _same_pod(other.pod, entry.pod)
            and other.ifname == entry.ifname
            and other.container_id != entry.container_id
        ]
        if any(other.state is State.ADDING for other in others):
            msg = f"a newer sandbox of pod {entry.pod} is being added"
            raise _NotYet(msg)
        living = [other for other in others if other.state is State.ADDED]
        return max(living, key=lambda other: other.changed_ns).container_id if living else ""


def _same_pod(one: PodRef, other: PodRef) -> bool:
    """Older runtimes do not say the uid; whoever has been given addresses has it."""
    named = (one.namespace, one.name) == (other.namespace, other.name)
    return named and (one.uid == other.uid or not (one.uid and other.uid))


async def release(
    controllers: Controllers,
    entries: Sequence[JournalEntry],
    *,
    keep: tuple[str, ...],
    deadline: float,
    successor: str = "",
) -> Released:
    """Have the controller free what the container of entries holds, but for the NICs in `keep`, or pass it on.

    Raises `TransportError` when that has to be tried again.
    """
    entry, pools = entries[0], dict[str, None]()
    for one in entries:
        pools |= dict.fromkeys((*one.pools, *(address.pool for grant in one.others for address in grant.addresses)))
    remembered = all(one.pools for one in entries)
    answered = await controllers.ask(
        Release(
            pod=entry.pod,
            nic=entry.ifname,
            container_id=entry.container_id,
            pools=tuple(pools) if remembered else (),
            keep=keep,
            fixed=entry.fixed if remembered else None,
            successor=successor,
        ),
        deadline=deadline,
    )
    match answered.response:
        case Released() as released:
            return released
        case Rejected(message, retry):
            if retry:
                raise TransportError(message)
            # Not ours to free, says the controller; its audit log has it. Asking again would change nothing.
            nics = ", ".join(one.ifname for one in entries)
            _log.error("release of %s for pod %s was refused: %s", nics, entry.pod, message)
            return Released()
        case _:
            msg = f"a controller answered a release with {type(answered.response).__name__}"
            raise TransportError(msg)
