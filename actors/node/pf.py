"""The actor of one SR-IOV NIC of this node: lends its virtual functions to pods, one to one pod, and takes them back.

Messages: `Reserve`, `Take`, `Give`, `Limit` and `Announce` from sandbox actors (by way of `actors.node.pfs`),
`Finished`, `Unclaimed` and `Announced` from its own work. State: who holds which VF. Persists: nothing itself. What a
VF was before is part of the journal entry of the interface that it becomes, written by the sandbox actor between
`Reserve` and `Take`, before anything is changed; from these entries a new actor, or a new agent, knows the holders.
Answers: when the kernel agrees.

A VF is held until its entry's `Give`, or until somebody else wants it and its holder's namespace is gone: then it is
given back on behalf of that one first, and the later `Give` of that one does nothing. So what a VF is noted as before
it is lent is never what another pod made of it.

What a crash leaves: an entry with a VF, whatever was done to it. `Give` finds the VF by its PCI address, in the
namespace or on the node, under any name, and makes it what the entry says; it may be repeated.

While one agent replaces another both may lend VFs of one NIC. A VF is therefore claimed from the other process from
`Reserve` to `Take`, and over `Give`. In between its entry says whose it is: the journal is read when the actor starts,
and again when a VF is not what it should be by that.
"""

import logging
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Any, assert_never

import anyio
from msgspec import Struct
from msgspec.structs import replace

from actors.node.disk import Journal
from cni.errors import TryAgainLater
from cni.journal import JournalEntry, Key, State
from cni.kernel import Kernel
from cni.plan import LinkState
from cni.sriov import Returned, VfHeld, VfPlan, free_vf, is_mark, mark
from cni.vfs import Vfs
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope
from runtime.turn import Turn

_log = logging.getLogger(__name__)

_RESERVED_SECONDS = 60.0
"""After that nobody takes what was reserved: the longest that an ADD may be under way."""
_CLAIM_SECONDS = 10.0
_LOST_SECONDS = 20.0
"""How long a VF may be neither in its dead namespace nor on the node; a busy kernel needs seconds to take one down."""
_CARRIER_SECONDS = 10.0
"""How long an interface may take to get its carrier, so that its addresses can be announced. The ADD does not wait."""
_CARRIER_PAUSE_SECONDS, _CARRIER_LONGEST_PAUSE_SECONDS = 0.005, 0.2
"""Between two looks: the first, and the longest."""


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
    """Limit what a VF may send, unless it is limited more. Raises `KernelRefused`."""

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


class Unclaimed(Struct, frozen=True, tag=True):
    """A reservation is over."""


class Announced(Struct, frozen=True, tag=True):
    """The neighbours were told, or there was no carrier."""

    ifname: str
    carrier: bool


Message = Reserve | Take | Give | Limit | Announce | Finished | Unclaimed | Announced


class _Claim:
    """A VF is kept from other agents until `over` is set, or the actor stops."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.over = anyio.Event()
        self.refused: TryAgainLater | None = None


class _Lent(Struct):
    """Whose a VF is."""

    key: Key
    netns: str
    holder: str
    held: VfHeld
    claim: _Claim | None = None
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
        self._read = False
        """Whether the journal has been."""
        self._turn = Turn(self)

    def __repr__(self) -> str:
        lent = {pci: f"{one.key.container_id[:12]}/{one.key.ifname}" for pci, one in self._lent.items()}
        return f"<PfActor {self._pf} {lent}{' busy' if self._turn else ''}>"

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
                    self._announce(netns, ifname),
                    lambda carrier: Announced(ifname, carrier),
                    failed=lambda _: Announced(ifname, carrier=False),
                )
                return None
            case Announced(ifname, carrier):
                if not carrier:
                    _log.info("%s has no carrier yet: its neighbours learn of its addresses when it speaks", ifname)
                return None
            case Unclaimed():
                return None
            case Finished(answer, error):
                self._turn.end(answer, error)
                return None
            case _:
                assert_never(message)
        self._turn.begin(envelope)
        self.pipe(work, Finished, failed=lambda error: Finished(error=error), on_behalf=envelope)
        return LATER

    # -- lending -------------------------------------------------------------------------------------------------------

    async def _reserve(self, wanted: Reserve) -> VfHeld:
        await self._read_journal()
        self._end_reservations(wanted.key)
        with ExitStack() as failed:
            held, claim = await (self._named(wanted, failed) if wanted.plan.pci else self._chosen(failed))
            failed.pop_all()
        self._order = max(self._order + 1, int(self.system.clock.wall() * 1e9))
        made = mark(wanted.key.container_id, wanted.key.ifname)
        held = replace(held, alias="" if is_mark(held.alias) else held.alias, mark=made, order=self._order)
        now = self.system.clock.now()
        self._lent[held.pci] = _Lent(wanted.key, wanted.netns, wanted.holder, held, claim, now)
        return held

    async def _named(self, wanted: Reserve, failed: ExitStack) -> tuple[VfHeld, _Claim]:
        """The one that the plan names, claimed, as it is once everybody has given it back."""
        pci = wanted.plan.pci
        claim = await self._claim(pci, seconds=_CLAIM_SECONDS)
        failed.callback(claim.over.set)
        await self._reclaim(pci, wanted.key)
        try:
            held = await self._vfs.survey_vf(pci)
        except TryAgainLater:
            await self._read_journal(anew=True)
            self._refuse(pci)
            raise
        if not held.ifname or is_mark(held.alias):
            # It shows nothing, or that it was lent, and not by us.
            await self._read_journal(anew=True)
            await self._reclaim(pci, wanted.key)
            held = await self._vfs.survey_vf(pci)
        return held, claim

    async def _chosen(self, failed: ExitStack) -> tuple[VfHeld, _Claim]:
        """A free one of all, claimed."""
        others: dict[str, str] = {}
        fresh = False
        while True:
            view = await self._vfs.view_pf(self._pf)
            if not fresh and any(vf.mark and vf.pci not in self._lent for vf in view.vfs):
                await self._read_journal(anew=True)
                fresh = True
            try:
                pci = free_vf(view, {pci: one.holder for pci, one in self._lent.items()} | others).pci
            except TryAgainLater:
                if fresh and not await self._reclaim_one():
                    raise
                await self._read_journal(anew=not fresh)
                fresh = True
                continue
            try:
                claim = await self._claim(pci, seconds=0.0)
                failed.callback(claim.over.set)
                held = await self._vfs.survey_vf(pci)
            except TryAgainLater:
                others[pci] = "another agent of this node, at this moment"
                failed.close()
                continue
            if not is_mark(held.alias) or fresh:
                return held, claim
            failed.close()  # lent and returned since it was looked at

    async def _reclaim_one(self) -> bool:
        """Take a VF back from a holder whose namespace is gone; False when there is none."""
        lent = {pci: one for pci, one in self._lent.items() if one.claim is None}
        gone = await self._kernel.vanished([one.netns for one in lent.values()])
        pci = next((pci for pci, one in lent.items() if one.netns in gone), None)
        if pci is None:
            return False
        async with self._claimed(pci, seconds=_CLAIM_SECONDS):
            await self._reclaim(pci, None)
        return True

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
            _unclaim(lent)
            return await self._vfs.take_vf(wanted.plan, wanted.held)

    async def _announce(self, netns: str, ifname: str) -> bool:
        end, pause = self.system.clock.now() + _CARRIER_SECONDS, _CARRIER_PAUSE_SECONDS
        while not await self._vfs.announce_vf(netns, ifname):
            if self.system.clock.now() > end:
                return False
            await anyio.sleep(pause)
            pause = min(2 * pause, _CARRIER_LONGEST_PAUSE_SECONDS)
        return True

    async def _limit(self, held: VfHeld, mbps: int) -> None:
        await self._vfs.limit_vf(held, mbps)

    # -- taking back ---------------------------------------------------------------------------------------------------

    async def _give(self, given: Give) -> None:
        await self._read_journal()
        async with self._claimed(given.held.pci, seconds=_CLAIM_SECONDS):
            if self._given.get(given.key) != given.held.order:
                await self._put_back(given.key, given.netns, given.held)

    async def _put_back(self, key: Key, netns: str, held: VfHeld) -> None:
        """In the claim of the VF."""
        lent = self._lent.get(held.pci)
        if lent is not None and lent.key == key:
            _unclaim(lent)
        now = self.system.clock.now()
        patient = now - self._missed.get(key, now) < _LOST_SECONDS
        returned = Returned.ANOTHERS
        if not self._is_anothers(key, held):
            returned = await self._vfs.give_vf(netns, held)
        if returned in {Returned.LOST, Returned.ANOTHERS}:
            await self._read_journal(anew=True)
            if self._is_anothers(key, held):
                _log.info("%s, which was %s in %s, is another's by now", held.label, key.ifname, netns)
                returned = Returned.BACK
            elif returned is Returned.ANOTHERS or not patient:
                returned = await self._vfs.give_vf(netns, held, settle=not patient, sure=True)
        if returned in {Returned.LOST, Returned.MISNAMED}:
            self._missed.setdefault(key, now)
            problem = "is not back on the node" if returned is Returned.LOST else f"cannot be named {held.ifname} again"
            if patient:
                raise TryAgainLater(f"{held.label} {problem} yet", f"it was {key.ifname} in {netns}")
            _log.error("%s, which was %s in %s, %s", held.label, key.ifname, netns, problem)
        self._missed.pop(key, None)
        self._given[key] = held.order
        lent = self._lent.get(held.pci)
        if lent is not None and lent.key == key:
            del self._lent[held.pci]

    def _is_anothers(self, key: Key, held: VfHeld) -> bool:
        lent = self._lent.get(held.pci)
        return lent is not None and lent.key != key and lent.held.order > held.order

    # -- what the journal knows ----------------------------------------------------------------------------------------

    async def _read_journal(self, *, anew: bool = False) -> None:
        """Who holds what, from the entries; what is reserved is not in there yet."""
        if self._read and not anew:
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
        self._lent, self._given, self._read = lent, pending, True

    def _end_reservations(self, key: Key) -> None:
        """Those of the asker, who begins anew, and those that were forgotten."""
        now = self.system.clock.now()
        for pci, lent in list(self._lent.items()):
            if lent.claim is not None and (lent.key == key or now - lent.reserved_at > _RESERVED_SECONDS):
                _unclaim(lent)
                del self._lent[pci]

    async def _claim(self, pci: str, *, seconds: float) -> _Claim:
        """Keep a VF from other agents. Raises `TryAgainLater`."""
        claim = _Claim()

        async def keep() -> None:
            try:
                async with self._claimed(pci, seconds=seconds):
                    claim.answered.set()
                    await claim.over.wait()
            except TryAgainLater as error:
                claim.refused = error
                claim.answered.set()

        self.pipe(keep(), lambda _: Unclaimed())
        await claim.answered.wait()
        if claim.refused is not None:
            raise TryAgainLater(f"deviceID: another agent of this node is lending {pci}", str(claim.refused))
        return claim

    def _claimed(self, pci: str, *, seconds: float) -> AbstractAsyncContextManager[None]:
        return self._journal.claim(f"vf/{pci}", seconds=seconds)


def _unclaim(lent: _Lent) -> None:
    if lent.claim is not None:
        lent.claim.over.set()
        lent.claim = None


def holder(entry: JournalEntry) -> str:
    """Who has an interface, for messages."""
    pod = f"pod {entry.pod.namespace}/{entry.pod.name}, " if entry.pod.name else ""
    return f"{pod}container {entry.container_id[:12]}"
