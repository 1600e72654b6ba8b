"""The actor of one SR-IOV NIC of this node: lends its virtual functions to pods, one to one pod, and takes them back.

Messages: `Reserve`, `Take`, `Give`, `Limit` and `Announce` from sandbox actors (by way of `actors.node.pfs`),
`Finished` and `Announced` from its own work. State: who holds which VF. Persists: nothing itself. What a VF was before
is part of the journal entry of the interface that it becomes, written by the sandbox actor between `Reserve` and
`Take`, before anything is changed; from these entries a new actor, or a new agent, knows the holders. Answers: when the
kernel agrees.

A VF is held until its entry's `Give`, or until somebody else wants it and its holder's namespace is gone: then it is
given back on behalf of that one first, and the later `Give` of that one does nothing. So what a VF is noted as before
it is lent is never what another pod made of it.

What a crash leaves: an entry with a VF, whatever was done to it. `Give` finds the VF by its PCI address, in the
namespace or on the node, under any name, and makes it what the entry says; it may be repeated.

While one agent replaces another both may lend VFs of one NIC. A VF is therefore claimed from the other process from
`Reserve` to `Take`, and over `Give`; in between its entry says whose it is, and the journal is read anew when what is
known of it is some seconds old.
"""

import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, assert_never

from msgspec import Struct
from msgspec.structs import replace

from actors.node.disk import Journal
from cni.errors import TryAgainLater
from cni.journal import JournalEntry, Key, State
from cni.kernel import Kernel
from cni.plan import LinkState
from cni.sriov import Returned, VfHeld, VfPlan, free_vf
from cni.vfs import Vfs
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope

_log = logging.getLogger(__name__)

_FRESH_SECONDS = 5.0
"""So old may be what was read from the journal: the other agent of a roll-over lends, too."""
_RESERVED_SECONDS = 60.0
"""After that nobody takes what was reserved: the longest that an ADD may be under way."""
_CLAIM_SECONDS = 10.0
_LOST_SECONDS = 20.0
"""How long a VF may be neither in its dead namespace nor on the node; a busy kernel needs seconds to take one down."""
_CARRIER_SECONDS = 0.2
"""As sriov-cni waits for a carrier before it announces addresses. Here the ADD is answered meanwhile."""


class Reserve(Question[VfHeld], frozen=True, tag=True):
    """Choose a VF and keep it for this interface. The answer says what it is now: to be journalled before `Take`.

    Raises what `Vfs.survey_vf` does, and `TryAgainLater` where it is held by somebody, or none is free.
    """

    key: Key
    netns: str
    holder: str
    """For messages to others."""
    plan: VfPlan


class Take(Question["LinkState | None"], frozen=True, tag=True):
    """Bring a reserved VF into its container. Raises what `Vfs.take_vf` does; then `Give` sees to what is left."""

    key: Key
    plan: VfPlan
    held: VfHeld


class Give(Question[None], frozen=True, tag=True):
    """The interface goes, or never came: make the VF what it was, unless it is somebody else's by now.

    Raises `KernelRefused`, and `TryAgainLater` while it is on its way back to the node.
    """

    key: Key
    netns: str
    held: VfHeld


class Limit(Question[None], frozen=True, tag=True):
    """Limit what a VF may send, unless it is limited. Raises `KernelRefused`."""

    held: VfHeld
    mbps: int


class Announce(Struct, frozen=True, tag=True):
    """Tell the neighbours of an interface's addresses when it has its carrier."""

    netns: str
    ifname: str


class Finished(Struct, frozen=True, tag=True):
    """The work for one message has ended, with an answer or an error."""

    answer: VfHeld | LinkState | None = None
    error: Exception | None = None


class Announced(Struct, frozen=True, tag=True):
    """The neighbours were told, or there was no carrier."""

    ifname: str
    carrier: bool


Message = Reserve | Take | Give | Limit | Announce | Finished | Announced


class _Lent(Struct):
    """Whose a VF is."""

    key: Key
    netns: str
    holder: str
    held: VfHeld
    claim: AsyncExitStack | None = None
    """Set while it is reserved."""
    reserved_at: float = 0.0


class PfActor(Actor[Message]):
    """See the module. One at a time: a driver serves its VFs one after the other anyway."""

    capacity = 512

    def __init__(self, pf: str, *, vfs: Vfs, kernel: Kernel, journal: Journal) -> None:
        """`pf` is its PCI address."""
        self._pf = pf
        self._vfs = vfs
        self._kernel = kernel
        self._journal = journal
        self._lent: dict[str, _Lent] = {}
        """By PCI address."""
        self._given: dict[Key, int] = {}
        """What was given back, by the order of its taking, and the journal may not say so yet."""
        self._missed: dict[Key, float] = {}
        """Since when a VF is neither here nor there."""
        self._order = 0
        self._read_at: float | None = None
        self._asker: Envelope | None = None

    def __repr__(self) -> str:
        lent = {pci: f"{one.key.container_id[:12]}/{one.key.ifname}" for pci, one in self._lent.items()}
        return f"<PfActor {self._pf} {lent}{' busy' if self._asker else ''}>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Begin one change and hold the next ones until it has ended. Announcements go on beside it."""
        work: Coroutine[Any, Any, VfHeld | LinkState | None]
        match message:
            case Reserve():
                work = self._reserve(message)
            case Take():
                work = self._take(message)
            case Give():
                work = self._give(message)
            case Limit(held, mbps):
                work = self._limit(held, mbps)
            case Announce(netns, ifname):
                self.pipe(
                    self._vfs.announce_vf(netns, ifname, seconds=_CARRIER_SECONDS),
                    lambda carrier: Announced(ifname, carrier),
                    failed=lambda _: Announced(ifname, carrier=False),
                )
                return None
            case Announced(ifname, carrier):
                if not carrier:
                    _log.info("%s has no carrier yet: its neighbours learn of its addresses when it speaks", ifname)
                return None
            case Finished(answer, error):
                asker, self._asker = self._asker, None
                self.release()
                if asker is not None and asker.reply is not None:
                    if error is None:
                        asker.reply.resolve(answer)
                    else:
                        asker.reply.fail(error)
                return None
            case _:
                assert_never(message)
        self._asker = envelope
        self.hold()
        self.pipe(work, Finished, failed=lambda error: Finished(error=error), on_behalf=envelope)
        return LATER

    # -- lending -------------------------------------------------------------------------------------------------------

    async def _reserve(self, wanted: Reserve) -> VfHeld:
        await self._end_reservations(wanted.key)
        async with AsyncExitStack() as claim:
            if wanted.plan.pci:
                await claim.enter_async_context(self._claimed(wanted.plan.pci, seconds=_CLAIM_SECONDS))
                await self._read_journal()
                await self._reclaim(wanted.plan.pci, wanted.key)
                held = await self._survey(wanted.plan.pci)
            else:
                held = await self._choose(claim)
            self._order = max(self._order + 1, int(self.system.clock.wall() * 1e9))
            held = replace(held, order=self._order)
            self._lent[held.pci] = _Lent(
                wanted.key, wanted.netns, wanted.holder, held, claim.pop_all(), self.system.clock.now()
            )
        return held

    async def _choose(self, claim: AsyncExitStack) -> VfHeld:
        """A free one of all, claimed."""
        await self._read_journal()
        others: dict[str, str] = {}
        while True:
            view = await self._vfs.view_pf(self._pf)
            mine = {vf.pci for vf in view.vfs} & self._lent.keys()
            gone = await self._kernel.vanished([self._lent[pci].netns for pci in mine])
            left = [pci for pci in mine if self._lent[pci].netns in gone and not self._lent[pci].claim]
            held = {pci: one.holder for pci, one in self._lent.items()} | others
            try:
                chosen = free_vf(view, held).pci
            except TryAgainLater:
                if not left:
                    raise
                await self._reclaim(left[0], None)
                continue
            try:
                await claim.enter_async_context(self._claimed(chosen, seconds=0.0))
            except TryAgainLater:
                others[chosen] = "another agent of this node, at this moment"
                continue
            await self._read_journal(anew=True)
            if chosen not in self._lent:
                return await self._vfs.survey_vf(chosen)
            await claim.aclose()

    async def _survey(self, pci: str) -> VfHeld:
        """What a VF is now. Where its interface is not on the node, the error says who has it, if anybody knows."""
        try:
            held = await self._vfs.survey_vf(pci)
        except TryAgainLater:
            await self._read_journal(anew=True)
            self._refuse(pci)
            raise
        if not held.ifname:  # nothing on the node shows whether it is in use
            await self._read_journal(anew=True)
            self._refuse(pci)
        return held

    async def _reclaim(self, pci: str, key: Key | None) -> None:
        """Take a VF back from a holder whose namespace is gone, and from the one who asks for it anew."""
        lent = self._lent.get(pci)
        if lent is None:
            return
        if lent.key != key and (lent.claim is not None or await self._kernel.netns_exists(lent.netns)):
            self._refuse(pci)
        _log.warning("taking %s back from %s", lent.held.label, lent.holder)
        await self._put_back(lent.key, lent.netns, lent.held)

    def _refuse(self, pci: str) -> None:
        lent = self._lent.get(pci)
        if lent is not None:
            msg = f"deviceID: {lent.held.label} is already allocated"
            raise TryAgainLater(msg, f"it is {lent.key.ifname} of {lent.holder}")

    async def _take(self, wanted: Take) -> LinkState | None:
        lent = self._lent.get(wanted.held.pci)
        if lent is None or lent.key != wanted.key or lent.held.order != wanted.held.order:
            await self._read_journal(anew=True)  # a life of this actor ago
            lent = self._lent.get(wanted.held.pci)
        if lent is None or lent.key != wanted.key or lent.held.order != wanted.held.order:
            msg = f"deviceID: {wanted.held.label} is not reserved any more"
            raise TryAgainLater(msg, "" if lent is None else f"it is {lent.key.ifname} of {lent.holder}")
        async with self._claimed(wanted.held.pci, seconds=_CLAIM_SECONDS):
            await self._unclaim(lent)
            return await self._vfs.take_vf(wanted.plan, wanted.held)

    async def _limit(self, held: VfHeld, mbps: int) -> None:
        await self._vfs.limit_vf(held, mbps)

    # -- taking back ---------------------------------------------------------------------------------------------------

    async def _give(self, given: Give) -> None:
        pci = given.held.pci
        async with self._claimed(pci, seconds=_CLAIM_SECONDS):
            await self._read_journal()
            lent = self._lent.get(pci)
            if self._given.get(given.key) == given.held.order:
                return
            if lent is not None and lent.key != given.key and lent.held.order > given.held.order:
                _log.info("%s is %s of %s by now", given.held.label, lent.key.ifname, lent.holder)
                return
            await self._put_back(given.key, given.netns, given.held)

    async def _put_back(self, key: Key, netns: str, held: VfHeld) -> None:
        """In the claim of the VF."""
        lent = self._lent.get(held.pci)
        if lent is not None and lent.key == key:
            await self._unclaim(lent)
        now = self.system.clock.now()
        patient = now - self._missed.get(key, now) < _LOST_SECONDS
        returned = await self._vfs.give_vf(netns, held, settle=not patient)
        if returned in {Returned.LOST, Returned.MISNAMED}:
            self._missed.setdefault(key, now)
            problem = "is not back on the node" if returned is Returned.LOST else f"cannot be named {held.ifname} again"
            if patient:
                raise TryAgainLater(f"{held.label} {problem} yet", f"it was {key.ifname} in {netns}")
            _log.error("%s, which was %s in %s, %s", held.label, key.ifname, netns, problem)
        self._missed.pop(key, None)
        self._given[key] = held.order
        if lent is not None and lent.key == key:
            del self._lent[held.pci]

    # -- what the journal knows ----------------------------------------------------------------------------------------

    async def _read_journal(self, *, anew: bool = False) -> None:
        """Who holds what, from the entries; what is reserved is not in there yet."""
        now = self.system.clock.now()
        if self._read_at is not None and now - self._read_at < _FRESH_SECONDS and not anew:
            return
        lent = {pci: one for pci, one in self._lent.items() if one.claim is not None}
        pending: dict[Key, int] = {}
        for entry in await self._journal.load():
            held = entry.vf
            if held is None or held.pf != self._pf or entry.state is State.RELEASING:
                continue
            self._order = max(self._order, held.order)
            if self._given.get(entry.key) == held.order:
                pending[entry.key] = held.order
                continue
            other = lent.get(held.pci)
            if other is None or other.held.order < held.order:
                lent[held.pci] = _Lent(entry.key, entry.netns, holder(entry), held)
        self._lent, self._given, self._read_at = lent, pending, now

    async def _end_reservations(self, key: Key) -> None:
        """Those of the asker, who begins anew, and those that were forgotten."""
        now = self.system.clock.now()
        for pci, lent in list(self._lent.items()):
            if lent.claim is not None and (lent.key == key or now - lent.reserved_at > _RESERVED_SECONDS):
                await self._unclaim(lent)
                del self._lent[pci]

    def _claimed(self, pci: str, *, seconds: float) -> AbstractAsyncContextManager[None]:
        return self._journal.claim(f"vf/{pci}", seconds=seconds)

    async def _unclaim(self, lent: _Lent) -> None:
        claim, lent.claim = lent.claim, None
        if claim is not None:
            await claim.aclose()


def holder(entry: JournalEntry) -> str:
    """Who has an interface, for messages."""
    pod = f"pod {entry.pod.namespace}/{entry.pod.name}, " if entry.pod.name else ""
    return f"{pod}container {entry.container_id[:12]}"
