"""The actor of one IPPool: the only writer of its status, one write per batch.

Messages: those of `actors.pools.claims` from allocators and collectors, `Reconsider` and `Reread` from its replica;
`Loaded`, `Surveyed`, `Written`, `Left`, `Failed`, `Retry`, `Paid` and `Due` from its own I/O and timers. State: the
ledger of the last object it read or wrote, with that object's resourceVersion; the batch in hand; the claims that wait
for room; what the pool shares with others. Persists: `status.allocatedIPs`, `status.withheldIPs`, the counts and the
condition `Overlapping`; of a pool that is being deleted the condition `DeletionBlocked`, and its finalizer goes with a
write that demands the version without records. Answers: after the store has acknowledged; `Peek` at once, from memory.

Natural batching: while a write is in flight the mailbox is held and fills; the next write takes all of it, releases
first. There is no timer that waits for more, but for the byte budget (`actors.pools.governor`): who has overdrawn it
holds its mailbox a while longer, and takes a bigger batch then.

The fence is the resourceVersion. Every write demands the version the ledger was read at. Answers that need no write
(found, nothing to release, full) are fenced as well: they are given only together with a write that succeeded, or
when a read begun after the requests came shows the ledger's own version. So a replica that has been deposed without
knowing it, or two replicas that both believe to own the pool, cost conflicts and never a duplicate or a stale answer.

A claim with patience that finds the pool full waits for room (`actors.pools.waiting`). It joins the batch that has an
address for it, before whoever came later, and is refused by a batch of its own when its patience is over. A pool that
stays full is read then, and not otherwise.

Programs that know less than we do write the pool too, while a cluster moves over: the original's agents keep of a
record the pod and its uid, and of the status what they know. When the pool was written by somebody else the ledger
takes the rest from the one before, and writes it with the next batch.

Before the first new address under a spec the actor looks at all other pools (`actors.pools.survey`).

What a crash leaves, await by await: before the write, nothing; between write and answer, records whose asker repeats
the request (it finds them by pod uid and NIC) or gives up (its agent releases them, for it knows that it asked);
after the answer, nothing. A write whose reply was lost is not guessed about: the object is read again and the batch
replayed on it, which finds what is already there.
"""

import logging
from collections.abc import Sequence
from typing import assert_never

import msgspec

from actors.pools import leaving
from actors.pools.batch import Batch, commit, count, depends_on_others, no_room, observe, reply, work_out
from actors.pools.claims import (
    Chase,
    Claim,
    Disown,
    Granted,
    Peek,
    Reclaim,
    Refused,
    Request,
    Settle,
    Surrender,
    Surrendered,
    holder,
)
from actors.pools.governor import Governor
from actors.pools.messages import (
    Due,
    Failed,
    Left,
    Loaded,
    Message,
    Paid,
    Reconsider,
    Reread,
    Retry,
    Surveyed,
    Written,
)
from actors.pools.survey import Survey
from actors.pools.terms import Terms, Witnesses
from actors.pools.waiting import WaitingRoom
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from api.reasons import Reason
from ipam import operations as rules
from ipam.ledger import Ledger
from ipam.overlap import Overlap
from ipam.territory import PoolError
from runtime.actor import LATER, Actor
from runtime.envelope import Envelope
from runtime.store.port import Ambiguous, Busy, Conflict, NotFound, Store, StoreError, Unavailable
from telemetry import metrics

_log = logging.getLogger(__name__)

_committed, _unchanged, _conflicting, _ambiguous, _failing = (
    metrics.POOL_COMMITS.labels(outcome) for outcome in ("committed", "unchanged", "conflict", "ambiguous", "failed")
)

_BATCH = 512
"""Requests in one write. At 117 bytes a record that is 60 kB of growth (spec of the original: 1.5 MB object limit)."""
_PACED_BATCH = 4096
"""After a pause for the byte budget."""
_CONFLICTS = 20
"""Replays of one batch before its askers are told to come back."""
_RETRY_SECONDS = 0.2
"""Pause after the store could not be reached, before the batch is tried again."""


class IPPoolActor(Actor[Message]):
    """See the module."""

    batch = _BATCH
    capacity = 8192

    def __init__(
        self,
        name: str,
        store: Store,
        *,
        terms: Terms,
        governor: Governor,
        survey: Survey,
        witnesses: Witnesses,
    ) -> None:
        """`governor` and `survey` are the replica's."""
        self._name = name
        self._store = store
        self._terms = terms
        self._governor = governor
        self._survey = survey
        self._witnesses = witnesses
        self._ledger: Ledger | None = None
        self._pool: SpiderIPPool | None = None
        self._memory: Ledger | None = None
        """The ledger before the one that is about to be read, without what may not have been written."""
        self._overlap: Overlap | None = None
        self._surveyed: int | None = None
        """The generation under which all pools were read; None where they have to be read again."""
        self._edition = 0
        self._attempt: Batch | None = None
        self._pause = 0.0
        self._paused = False
        self._room: WaitingRoom

    def started(self) -> None:
        """Nobody waits yet."""
        self._room = WaitingRoom(self._name, self.system.clock)

    def __repr__(self) -> str:
        version = self._pool.metadata.resource_version if self._pool is not None else "-"
        doing = f"{len(self._attempt.asks)} in hand" if self._attempt is not None else "idle"
        return f"<IPPoolActor {self._name} at {version}, {doing}>"

    def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Take a batch in hand, and hold the mailbox until it is answered."""
        self.batch = _BATCH
        asks: list[Envelope] = []
        look = reread = False
        for envelope in batch:
            match envelope.message:
                case Peek():
                    reply(envelope, self._peek(envelope.message))
                case Reconsider():
                    look = True
                case Reread():
                    reread = True
                case _:
                    asks.append(envelope)
        if asks or look or reread:
            observe(asks, pool=self._name, clock=self.system.clock)
            self._begin(asks, look=look, reread=reread)

    def _begin(self, asks: list[Envelope], *, look: bool = False, reread: bool = False) -> None:
        self._attempt = Batch(asks=[*self._room.due(), *asks], look=look, reread=reread)
        self.hold()
        self._try()

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Go on when I/O has ended."""
        match message:
            case Loaded(pool):
                self._loaded(pool)
            case Surveyed(overlap, generation):
                self._overlap, self._surveyed = overlap, generation
                if self._attempt is not None:
                    self._attempt.look = False
                    self._try()
            case Written(pool):
                self._written(pool)
            case Left(pool):
                self._left(pool)
            case Failed(error, writing):
                self._failed(error, writing=writing)
            case Retry():
                self._load()
            case Paid():
                self.batch = _PACED_BATCH
                self._paused = False
                self._open()
            case Due():
                if self._attempt is None and not self._paused:
                    self._begin([])
            case Claim() | Surrender() | Disown() | Reclaim() | Chase() | Settle() | Peek() | Reconsider() | Reread():
                return LATER  # user messages come in batches
            case _:
                assert_never(message)
        return None

    def _peek(self, peek: Peek) -> bool:
        ledger = self._ledger
        if ledger is None:
            return False
        return ledger.find(peek.uid, peek.nic) is not None or bool(peek.pod and ledger.knows(peek.pod))

    def _try(self) -> None:
        """Apply the batch in hand to the ledger and write, answer or read, whichever it needs."""
        attempt = self._attempt
        assert attempt is not None
        attempt.asks = [ask for ask in attempt.asks if ask.reply is None or not ask.reply.done]
        idle = not attempt.asks and not attempt.look and not attempt.reread
        if idle and not self._condition_due() and not self._may_leave():
            self._finish()
            return
        if self._ledger is None or self._pool is None or (attempt.reread and not attempt.verified):
            self._load()
            return
        edition = self._survey.edition()
        if edition != self._edition:
            self._edition = edition
            if self._survey.glimpse(self._name) != self._overlap:
                self._surveyed = None
        # A SpiderReservedIP takes effect with the next batch, whether or not the pool has been read again.
        self._ledger.reserve(self._terms.reserved(self._ledger.version), self._overlap)
        outcome = work_out(attempt, self._ledger, self._room, now=self.system.clock.wall())
        look = attempt.look or any(map(depends_on_others, outcome.answers))
        if look and self._surveyed != self._pool.metadata.generation:
            self._ledger.revert(outcome)
            self._look()
        elif outcome.changed or self._condition_due():
            self._write(attempt)
        elif self._may_leave():
            self._leave()
        elif attempt.verified or not attempt.asks:
            _unchanged.inc()
            self._answer_all(attempt)
        else:
            self._load()

    def _condition_due(self) -> bool:
        return leaving.due(self._pool, self._ledger, self._overlap, surveyed=self._knows_others())

    def _knows_others(self) -> bool:
        """Whether all pools were read under this spec."""
        return self._pool is not None and self._surveyed == self._pool.metadata.generation

    def _may_leave(self) -> bool:
        return leaving.may_leave(self._pool, self._ledger)

    def _leave(self) -> None:
        assert self._pool is not None
        self.pipe(
            leaving.leave(self._store, self._pool),
            Left,
            failed=lambda error: Failed(error, writing=True),
            on_behalf=self._behalf(),
        )

    def _left(self, pool: SpiderIPPool) -> None:
        """The answers are proven by the write; of a pool that goes nothing is remembered."""
        self._pool = pool
        if self._attempt is not None:
            self._answer_all(self._attempt)
        self._ledger = self._pool = None

    def _look(self) -> None:
        assert self._pool is not None
        generation = self._pool.metadata.generation
        self.pipe(
            self._survey.overlap(self._name),
            lambda overlap: Surveyed(overlap, generation),
            failed=lambda error: Failed(error, writing=False),
            on_behalf=self._behalf(),
        )

    def _load(self) -> None:
        self.pipe(
            self._store.get(IPPOOL, self._name),
            Loaded,
            failed=lambda error: Failed(error, writing=False),
            on_behalf=self._behalf(),
        )

    def _loaded(self, pool: SpiderIPPool) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        if self._pool is None or self._pool.metadata.resource_version != pool.metadata.resource_version:
            memory = self._memory if self._ledger is None else self._ledger
            same = memory is not None and memory.pool.metadata.uid == pool.metadata.uid
            try:
                version = pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)
                terms = self._terms
                ledger = Ledger(pool, terms.reserved(version), terms.max_records, cooldown=terms.cooldown)
            except PoolError as error:
                self._refuse_all(Reason(predicate="status", pool=self._name, wanted="readable", seen=str(error)))
                return
            if memory is not None and same:
                ledger.recall(memory, now=self.system.clock.wall())
            else:
                self._surveyed = None
            self._ledger, self._pool, self._memory = ledger, pool, None
            landed = tuple(change for change in attempt.unsure if ledger.shows(change))
            if landed:
                self._witnesses.noted(self._name, landed)
        attempt.unsure = ()
        # Same version: the answers that were worked out before the read come out of `_try` again, now fenced by it.
        attempt.verified = True
        self._try()

    def _write(self, attempt: Batch) -> None:
        assert self._ledger is not None and self._pool is not None
        status = self._ledger.status()
        told = leaving.told(
            self._pool,
            self._ledger,
            self._overlap,
            surveyed=self._knows_others(),
            now=self.system.clock.wall(),
        )
        written = {
            "allocatedIPs": status.allocated_ips,
            "allocatedIPCount": status.allocated_ip_count,
            "totalIPCount": status.total_ip_count,
            "withheldIPs": status.withheld_ips,
            "conditions": msgspec.to_builtins(told) or None,
        }
        self.pipe(
            commit(
                self._store,
                self._pool,
                attempt,
                written,
                size=self._ledger.object_bytes,
                clock=self.system.clock,
            ),
            Written,
            failed=lambda error: Failed(error, writing=True),
            on_behalf=self._behalf(),
        )

    def _written(self, pool: SpiderIPPool) -> None:
        assert self._ledger is not None
        before, self._pool = self._pool, pool
        told = before.status.conditions if before is not None else []
        _committed.inc()
        self._pause = self._governor.spend(self._ledger.object_bytes)
        if self._overlap is not None and pool.status.conditions != told:
            self._witnesses.overlapping(self._name, self._overlap)
        if before is not None and leaving.said(pool) and not leaving.said(before):
            self._witnesses.waits(self._name, leaving.said(pool))
        if self._attempt is not None:
            if self._attempt.outcome is not None and self._attempt.outcome.changes:
                self._witnesses.noted(self._name, self._attempt.outcome.changes)
            self._answer_all(self._attempt)

    def _failed(self, error: Exception, *, writing: bool) -> None:
        """The ledger may hold what was not written: it is dropped, and the batch replayed on what the store has."""
        attempt = self._attempt
        if self._ledger is not None:
            if writing and attempt is not None and attempt.outcome is not None:
                self._ledger.revert(attempt.outcome)
            self._memory = self._ledger
        self._ledger = None
        self._pool = None
        if attempt is None:
            return
        if writing and isinstance(error, Ambiguous) and attempt.outcome is not None:
            attempt.unsure = attempt.outcome.changes
            self._pause = self._governor.spend(self._memory.object_bytes if self._memory is not None else 0)
        attempt.outcome = None
        attempt.verified = False
        match error:
            case Conflict():
                self._conflicted(attempt)
            case Ambiguous() if writing:
                _ambiguous.inc()
                _log.warning("pool %s: a write got no answer, reading it back: %s", self._name, error)
                self._load()
            case NotFound():
                self._refuse_all(
                    Reason(predicate="exists", pool=self._name, wanted="an IPPool of this name", seen="none")
                )
            case Busy(retry_after=seconds):
                self.timers.start("retry", seconds, Retry())
            case Unavailable() | Ambiguous():
                _log.warning("pool %s: the store does not answer: %s", self._name, error)
                attempt.asks = [ask for ask in attempt.asks if ask.reply is None or not ask.reply.done]
                if attempt.asks:
                    self.timers.start("retry", _RETRY_SECONDS, Retry())
                else:
                    self._finish()
            case StoreError():
                _failing.inc()
                self._refuse_all(
                    Reason(predicate="store", pool=self._name, wanted="a write", seen=str(error)), retry=True
                )
            case _:
                raise error

    def _conflicted(self, attempt: Batch) -> None:
        """Somebody else wrote the pool first."""
        attempt.conflicts += 1
        _conflicting.inc()
        if any(isinstance(ask.message, Claim) for ask in attempt.asks):
            metrics.IPAM_ALLOCATION_UPDATE_IPPOOL_CONFLICT_COUNTS.inc()
        else:
            metrics.IPAM_RELEASE_UPDATE_IPPOOL_CONFLICT_COUNTS.inc()
        if attempt.conflicts <= _CONFLICTS:
            self._load()
            return
        self._refuse_all(
            Reason(
                predicate="conflict",
                pool=self._name,
                wanted="an undisturbed write",
                seen=f"{attempt.conflicts} foreign writes in a row",
            ),
            retry=True,
        )

    def _answer_all(self, attempt: Batch) -> None:
        """Everything in the batch is settled in the store: say so."""
        assert attempt.outcome is not None and self._pool is not None and self._ledger is not None
        told = [it for it in zip(attempt.asks, attempt.outcome.answers, strict=True) if not self._room.keep(*it)]
        full = next((answer.reason for _, answer in told if no_room(answer)), None)
        if full is not None:
            self._witnesses.exhausted(self._name, full)
        for ask, answer in told:
            self._room.leave(ask, answer)
            translated = self._translate(ask.message, answer)
            count(ask.message, translated)
            reply(ask, translated)
        self._finish()

    def _translate(self, message: Request, answer: rules.Answer) -> Granted | Surrendered | Refused:
        assert self._pool is not None and self._ledger is not None
        match answer:
            case rules.Granted():
                return Granted(address=answer.address, fresh=answer.fresh, spec=self._pool.spec)
            case rules.Surrendered():
                held = self._ledger.holds(*holder(message))
                return Surrendered(addresses=answer.ips, held=held, retained=answer.retained)
            case rules.Refused():
                return Refused(reason=answer.reason, retry=answer.retry)

    def _refuse_all(self, reason: Reason, *, retry: bool = False) -> None:
        if self._attempt is not None:
            for ask in self._attempt.asks:
                self._room.leave(ask)
                reply(ask, Refused(reason=reason, retry=retry))
        self._finish()

    def _finish(self) -> None:
        self._attempt = None
        self.timers.cancel("retry")
        pause, self._pause = self._pause, 0.0
        if pause > 0:
            self._paused = True
            self.timers.start("paid", pause, Paid())
        else:
            self._open()

    def _open(self) -> None:
        """Take the next batch as soon as somebody asks, or one who waits has to be answered, or the pool may go."""
        if self._may_leave():
            self._begin([])
            return
        self.release()
        seconds = self._room.due_in()
        if seconds is not None:
            self.timers.start("due", seconds, Due())

    def _behalf(self) -> Envelope | None:
        """The first asker lends its trace; its deadline must not end a write that others wait for."""
        if self._attempt is None or not self._attempt.asks:
            return None
        first = self._attempt.asks[0]
        return Envelope(message=first.message, queued_at=first.queued_at, trace=first.trace, chain=first.chain)
