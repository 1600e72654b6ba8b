"""Who waits for room in a full pool, in the order in which they came.

While a workload is rolled, addresses are wanted a moment before they come back. A claim that is refused then costs its
node a sandbox, which is taken down and built again after a pause that grows with each try; a claim that waits costs
next to nothing. So one that brings patience is not refused for want of a free address before its patience is over.

Nobody is promised anything here: who waits has nothing in the store, may leave at any time, and is answered as anybody
else is, by a batch. Who waits goes into every batch that has an address for somebody who came later, and goes first. A
claim whose patience is over goes into a batch of its own, so that the refusal is no older than that.
"""

import math
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from actors.pools.claims import Claim
from ipam import operations as rules
from runtime.clock import Clock
from runtime.envelope import Envelope
from telemetry import attributes, metrics, traces

CAPACITY: Final = 512
"""So many wait in one pool. Who comes later is refused at once: a queue that long is not served in a few seconds."""
MARGIN_SECONDS: Final = 2.0
"""A refusal goes out so long before its asker gives up: there is a read before it, and its reasons have to arrive."""
TOGETHER_SECONDS: Final = 0.05
"""Whose patience ends so soon after another's leaves with it: one read proves that there is no room for all of them."""
_FIRST_JOIN: Final = 16
"""How many join a batch at first. Where that leaves room the number doubles: few are looked at for one address."""


class _Guest(Struct, frozen=True):
    ask: Envelope
    since: float
    until: float


class WaitingRoom:
    """Of one life of one pool's actor. Times are those of the clock port."""

    def __init__(self, pool: str, clock: Clock, *, capacity: int = CAPACITY) -> None:
        """Nobody waits."""
        self._pool = pool
        self._clock = clock
        self._capacity = capacity
        self._guests: dict[int, _Guest] = {}
        """By the identity of the envelope, in order of arrival. Some may have been answered, or have given up."""

    def __repr__(self) -> str:
        return f"<WaitingRoom of {self._pool}: {len(self)}>"

    def __len__(self) -> int:
        self._sweep()
        return len(self._guests)

    def keep(self, ask: Envelope, answer: rules.Answer) -> bool:
        """Whether somebody waits, or waits on, rather than be given this answer."""
        if not (isinstance(answer, rules.Refused) and answer.reason.predicate == "full"):
            return False
        now = self._clock.now()
        guest = self._guests.get(id(ask))
        if guest is None:
            guest = _Guest(ask, now, _until(ask))
            if guest.until <= now + TOGETHER_SECONDS or len(self) >= self._capacity:
                return False
            self._guests[id(ask)] = guest
        return guest.until > now + TOGETHER_SECONDS

    def leave(self, ask: Envelope, answer: rules.Answer | None = None) -> None:
        """Somebody is answered, whether he has waited or not; None: with something else than the ledger's answer."""
        guest = self._guests.pop(id(ask), None)
        if guest is None:
            return
        match answer:
            case rules.Granted():
                outcome = "granted"
            case rules.Refused(reason=reason) if reason.predicate == "full":
                outcome = "full"
            case _:
                outcome = "other"
        self._note(guest, outcome)

    def due(self) -> list[Envelope]:
        """Whose patience is over."""
        self._sweep()
        end = self._clock.now() + TOGETHER_SECONDS
        return [guest.ask for guest in self._guests.values() if guest.until <= end]

    def due_in(self) -> float | None:
        """Seconds until the next one's patience is over; None where nobody waits."""
        self._sweep()
        nearest = min((guest.until for guest in self._guests.values()), default=None)
        return None if nearest is None else max(0.0, nearest - self._clock.now())

    def passed_over(self, asks: Sequence[Envelope], answers: Sequence[rules.Answer], *, spare: bool) -> bool:
        """Whether somebody who waits is left out of a batch that has an address for him.

        Args:
            asks: the batch, in the order of `joined`.
            answers: what it comes to.
            spare: whether the pool has an address left after it.
        """
        self._sweep()
        ahead = self._ahead(asks)
        if ahead == len(self._guests):
            return False
        return spare or any(isinstance(answer, rules.Granted) and answer.fresh for answer in answers[ahead:])

    def joined(self, asks: Sequence[Envelope]) -> list[Envelope]:
        """A batch and more of those who wait: they first, in their order."""
        first = max(_FIRST_JOIN, 2 * self._ahead(asks))
        there = {id(ask) for ask in asks}
        waiting = [g.ask for at, (key, g) in enumerate(self._guests.items()) if at < first or key in there]
        return [*waiting, *(ask for ask in asks if id(ask) not in self._guests)]

    def _ahead(self, asks: Sequence[Envelope]) -> int:
        """How many of those who came first are the first of a batch."""
        count = 0
        for guest, ask in zip(self._guests.values(), asks, strict=False):
            if guest.ask is not ask:
                break
            count += 1
        return count

    def _sweep(self) -> None:
        """Forget those who do not wait any more."""
        for key in [key for key, guest in self._guests.items() if _gone(guest.ask)]:
            self._note(self._guests.pop(key), "gone")

    def _note(self, guest: _Guest, outcome: str) -> None:
        metrics.POOL_WAITS.labels(outcome=outcome).inc()
        wall, waited = self._clock.wall(), self._clock.now() - guest.since
        traces.record(
            "ippool.room",
            start_ns=int((wall - waited) * 1e9),
            end_ns=int(wall * 1e9),
            parent=guest.ask.trace,
            attributes={attributes.POOL: self._pool},
        )


def _gone(ask: Envelope) -> bool:
    return ask.reply is None or ask.reply.done


def _until(ask: Envelope) -> float:
    """When somebody's patience is over: it counts from when he came to the mailbox."""
    message = ask.message
    if _gone(ask) or not isinstance(message, Claim) or message.confirm or not message.patience > 0:
        return -math.inf
    end = ask.queued_at + message.patience
    return end if ask.deadline is None else min(end, ask.deadline - MARGIN_SECONDS)
