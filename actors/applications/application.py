"""The actor of one application: that it has the pools that it asks for, as big as it asks for, as long as it is there.

Messages: `Prepare` from an allocator that has a pod of it; `Seen`, `Missing` and `Room` from its replica's watches;
`Settled`, `Failed`, `Again` and `Impatient` from its own work and timers. State: the application as last seen, how the
last attempt ended, ADDs that wait. Persists: nothing itself; pools say by their labels whose they are, and the owners
of subnets write them. Answers: an ADD when all pools of its pod are there; where one cannot be had, at once if that
lasts, else when it has waited long enough.

Each attempt is one coroutine beside the actor (`actors.applications.settlement`, which says what a crash leaves); what
comes up meanwhile is for the next one. An attempt that failed is repeated with growing pauses, and at once when a
subnet of it has more room or a pool of it has been given addresses back.
"""

import logging
from collections.abc import Mapping
from typing import Final, assert_never

from msgspec import Struct

from actors.applications.messages import Prepare, Prepared, Unprepared
from actors.applications.settlement import Place, Settled, Settlement, Terms
from api.annotations import AnnotationError
from ipam import autopool
from ipam.autopool import Application
from ipam.identity import Workload
from runtime.actor import LATER, Actor
from runtime.envelope import Envelope
from runtime.errors import ActorError
from runtime.store.port import StoreError

_log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts that fail; each pause is twice the last one."""
_SAID_AFTER: Final = 20.0
"""Seconds for which addresses may be in use that are not wanted any more, before that is worth an event."""

POOL_FAILED: Final = "AutomaticPoolFailed"
SUBNET_CHANGED: Final = "ApplicationSubnetChanged"
"""Reasons of events; the second is the original's."""


class Seen(Struct, frozen=True, tag=True):
    """The application as a watch shows it."""

    application: Application


class Missing(Struct, frozen=True, tag=True):
    """No watch shows it, or none that asks for anything."""


class Room(Struct, frozen=True, tag=True):
    """Addresses have come free that it may have waited for."""


class Failed(Struct, frozen=True, tag=True):
    """An attempt could not find out what is wanted."""

    error: Exception


class Again(Struct, frozen=True, tag=True):
    """The pause after an attempt is over."""


class Impatient(Struct, frozen=True, tag=True):
    """Somebody has waited long enough."""


Message = Prepare | Seen | Missing | Room | Settled | Failed | Again | Impatient


class _Waiter(Struct):
    """An ADD."""

    asked: Prepare
    envelope: Envelope
    until: float
    """When it is told what is wrong (clock port)."""


class ApplicationActor(Actor[Message]):
    """See the module."""

    def __init__(self, workload: Workload, terms: Terms) -> None:
        """`workload` is any of that name: the uid changes when it is made anew."""
        self._workload = workload
        self._terms = terms
        self._seen: Application | None = None
        self._look = False
        """Whether the watches are not to be believed the next time."""
        self._notes: Mapping[str, str] = {}
        """Of the latest pod."""
        self._settled: Settled | None = None
        self._sizes: Mapping[Place, int] = {}
        self._busy = False
        self._more = False
        self._pause = 0.0
        self._troubled_since: float | None = None
        self._waiters: list[_Waiter] = []
        self._served: list[_Waiter] = []
        """Those whom the attempt under way is for."""

    def __repr__(self) -> str:
        return f"<ApplicationActor {self._workload}, {len(self._waiters)} wait{', at work' if self._busy else ''}>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """See the module."""
        match message:
            case Prepare():
                return self._prepare(message, envelope)
            case Seen(application):
                self._seen = application
                self._attempt()
            case Missing():
                self._seen = None
                self._attempt()
            case Room():
                if self._settled is None or self._settled.troubles:
                    self._attempt()
            case Again():
                self._attempt()
            case Settled():
                self._ended(message)
            case Failed(error):
                self._failed(error)
            case Impatient():
                self._hurry()
            case _:
                assert_never(message)
        return None

    # -- ADDs ----------------------------------------------------------------------------------------------------------

    def _prepare(self, asked: Prepare, envelope: Envelope) -> object:
        self._workload, self._notes = asked.workload, asked.annotations
        now = self.system.clock.now()
        if not self._busy and self._settled is not None:
            answer = self._answer(asked, self._settled)
            if isinstance(answer, Prepared) and self._roomy(answer):
                return answer
        self._waiters.append(_Waiter(asked, envelope, now + self._terms.patience))
        self._look = True
        self._attempt()
        return LATER

    def _roomy(self, answer: Prepared) -> bool:
        """Whether its pools have addresses to give, as far as seen: then nobody has to look closer."""
        for name in answer.pools:
            pool = self._terms.named(name)
            if pool is None or pool.metadata.deletion_timestamp is not None:
                return False
            version = autopool.serves(pool)[1]
            if autopool.size(pool, self._terms.reserved(version)) <= (pool.status.allocated_ip_count or 0):
                return False
        return True

    def _answer(self, asked: Prepare, settled: Settled) -> Prepared | Unprepared:
        who = asked.workload
        if settled.problem:
            return Unprepared(f"{who}: {settled.problem}", lasting=True)
        if settled.application is None:
            return Unprepared(f"{who} is gone, or asks for no automatic pools any more", lasting=True)
        if settled.application.workload.uid != who.uid:
            text = f"{who} with uid {who.uid} has been replaced by {settled.application.workload.uid}"
            return Unprepared(text, lasting=True)
        try:
            items = autopool.subnets(asked.annotations)
        except AnnotationError as error:
            return Unprepared(f"{who}: {error}", lasting=True)
        names: list[str] = []
        for item in items:
            for version, wanted, enabled in (
                (4, item.ipv4, self._terms.enable_ipv4),
                (6, item.ipv6, self._terms.enable_ipv6),
            ):
                if not wanted or not enabled:
                    continue
                place = item.interface, version
                if settled.subnets.get(place) != wanted[0]:
                    text = f"{who} has no automatic IPv{version} pool for {item.interface} of SpiderSubnet {wanted[0]}"
                    trouble = settled.troubles.get(place)
                    if trouble is not None:
                        return Unprepared(f"{text}: {trouble.reason}", trouble.lasting)
                    return Unprepared(f"{text}: its pod asks for one, it does not any more", lasting=True)
                names.append(settled.have[place])
        return Prepared(tuple(names))

    def _reply(self, settled: Settled) -> None:
        """Answer those whom an attempt was for. Who may still get what he wants, waits."""
        now = self.system.clock.now()
        served, self._served = self._served, []
        for waiter in served:
            reply = waiter.envelope.reply
            if reply is None or reply.done:
                self._waiters.remove(waiter)
                continue
            answer = self._answer(waiter.asked, settled)
            if isinstance(answer, Prepared) or answer.lasting or now >= waiter.until:
                self._waiters.remove(waiter)
                reply.resolve(answer)
        if self._waiters:
            self.timers.start("impatient", max(0.0, min(w.until for w in self._waiters) - now), Impatient())

    def _hurry(self) -> None:
        now = self.system.clock.now()
        if not self._busy and self._settled is not None and any(waiter.until <= now for waiter in self._waiters):
            self._served = [waiter for waiter in self._waiters if waiter.until <= now]
            self._reply(self._settled)

    # -- attempts ------------------------------------------------------------------------------------------------------

    def _attempt(self) -> None:
        if self._busy:
            self._more = True
            return
        self._busy = True
        self._more = False
        self.timers.cancel("again")
        self._served = list(self._waiters)
        seen, self._look = (None if self._look else self._seen), False
        work = Settlement(self._workload, self._terms, seen=seen, notes=self._notes, sizes=self._sizes)
        self.pipe(work.run(), lambda settled: settled, failed=Failed)

    def _ended(self, settled: Settled) -> None:
        self._busy = False
        self._settled, self._sizes = settled, settled.sizes
        if settled.application is not None:
            if settled.application.workload.uid != self._workload.uid:
                self._notes = {}  # another one's
            self._workload = settled.application.workload
        self._reply(settled)
        self._terms.hungry(self._workload, frozenset(trouble.subnet for trouble in settled.troubles.values()))
        self._say(settled)
        if self._more:
            self._attempt()
        elif any(not trouble.lasting for trouble in settled.troubles.values()):
            self._later()
        else:
            self._pause = 0.0

    def _say(self, settled: Settled) -> None:
        now = self.system.clock.now()
        if settled.problem and settled.application is not None:
            self._terms.said(self._workload, POOL_FAILED, settled.problem)
        if not settled.troubles:
            self._troubled_since = None
            return
        if self._troubled_since is None:
            self._troubled_since = now
        for trouble in settled.troubles.values():
            if trouble.growing or now - self._troubled_since >= _SAID_AFTER:
                self._terms.said(self._workload, SUBNET_CHANGED if trouble.changed else POOL_FAILED, trouble.reason)

    def _failed(self, error: Exception) -> None:
        self._busy = False
        if not isinstance(error, StoreError | ActorError):
            raise error
        _log.warning("%s: %s: %s", self._workload, type(error).__name__, error)
        now = self.system.clock.now()
        self._look = self._look or bool(self._served)
        served, self._served = self._served, []
        for waiter in served:
            if now >= waiter.until:
                self._waiters.remove(waiter)
                if waiter.envelope.reply is not None:
                    waiter.envelope.reply.resolve(Unprepared(f"{self._workload}: {error}", lasting=False))
        self._later()

    def _later(self) -> None:
        self._pause = FIRST_PAUSE if self._waiters else min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        self.timers.start("again", self._pause * self.system.random.uniform(0.75, 1.0), Again())
