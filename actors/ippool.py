"""The actor of one IPPool: the only writer of its status, one write per batch.

Messages: `Claim`, `Surrender`, `Disown` and `Peek` from allocators and collectors; `Loaded`, `Written`, `Failed` and
`Retry` from its own I/O. State: the ledger of the last object it read or wrote, with that object's resourceVersion; the
batch in hand. Persists: `status.allocatedIPs`, `status.withheldIPs` and the counts. Answers: after the store has
acknowledged.

Natural batching: while a write is in flight the mailbox is held and fills; the next write takes all of it, releases
first. There is no timer that waits for more.

The fence is the resourceVersion. Every write demands the version the ledger was read at. Answers that need no write
(found, nothing to release, full) are fenced as well: they are given only together with a write that succeeded, or
when a read begun after the requests came shows the ledger's own version. So a replica that has been deposed without
knowing it, or two replicas that both believe to own the pool, cost conflicts and never a duplicate or a stale answer.

What a crash leaves, await by await: before the write, nothing; between write and answer, records whose asker repeats
the request (it finds them by pod uid and NIC) or gives up (its agent releases them, for it knows that it asked);
after the answer, nothing. A write whose reply was lost is not guessed about: the object is read again and the batch
replayed on it, which finds what is already there.
"""

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from msgspec import Struct

from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.reasons import Reason
from ipam import operations as rules
from ipam.ledger import Ledger, Outcome
from ipam.ranges import Ranges
from ipam.territory import PoolError
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope
from runtime.store.port import Ambiguous, Busy, Conflict, NotFound, Store, StoreError, Unavailable
from telemetry import attributes, metrics, traces

_log = logging.getLogger(__name__)

_committed, _unchanged, _conflicting, _ambiguous = (
    metrics.POOL_COMMITS.labels(outcome) for outcome in ("committed", "unchanged", "conflict", "ambiguous")
)

_BATCH = 512
"""Requests in one write. At 117 bytes a record that is 60 kB of growth (spec of the original: 1.5 MB object limit)."""
_CONFLICTS = 20
"""Replays of one batch before its askers are told to come back."""
_RETRY_SECONDS = 0.2
"""Pause after the store could not be reached, before the batch is tried again."""


class Granted(Struct, frozen=True, tag=True):
    """An address is the asker's, and the store has it."""

    address: str
    """With prefix length."""
    fresh: bool
    """False when the record was there before."""
    spec: IPPoolSpec
    """Of the pool as it was committed: gateway and routes come from it."""
    doubtful: bool = False
    """Whether another copy of the claim may still be under way, at a replica that gave no answer."""


class Surrendered(Struct, frozen=True, tag=True):
    """What was freed now, in canonical text without prefix length."""

    addresses: tuple[str, ...] = ()
    held: bool = False
    """Whether this pod uid and NIC still hold an address here, for a newer sandbox."""
    retained: tuple[str, ...] = ()
    """What stays for the next pod of the same name."""


class Refused(Struct, frozen=True, tag=True):
    """The pool cannot or will not; nothing was written for this request."""

    reason: Reason
    retry: bool = False
    doubtful: bool = False
    """As in `Granted`."""


class Claim(Question["Granted | Refused"], frozen=True, tag=True):
    """One address for one NIC of a pod."""

    pod: str
    """``namespace/name``; of a virtual machine with fixed addresses the name of its instance."""
    uid: str
    nic: str
    node: str
    cid: str
    """First 12 hex digits of the container id."""
    fixed: bool = False
    """The address belongs to the name: what an earlier pod of that name left is taken over, once nothing carries it."""
    moving: bool = False
    """A live migration runs: it is taken over though the other pod still carries it."""


class Surrender(Question["Surrendered | Refused"], frozen=True, tag=True):
    """Give back what this pod uid, NIC and container hold here."""

    uid: str
    nic: str
    cid: str
    node: str = ""
    """The node that asks; a record of another node is not touched. Empty: a caller that may release anything."""
    keep: tuple[str, ...] | None = None
    """All the NICs that the container has left: everything else that it holds goes. None: only `nic` goes."""
    retain: bool = False
    """What goes is kept for the next pod of the same name."""
    kept_only: bool = False
    """What a link may still carry stays."""


class Disown(Question["Surrendered | Refused"], frozen=True, tag=True):
    """Somebody else on the network has these addresses: the records go, and nobody gets the addresses for a while."""

    uid: str
    nic: str
    cid: str
    node: str
    addresses: tuple[str, ...]
    """Canonical text without prefix length."""
    seen: str
    """What was met."""
    seconds: float


class Peek(Question[bool], frozen=True, tag=True):
    """Whether this pod uid and NIC hold an address here, from memory: a hint for the order of candidates, no more."""

    uid: str
    nic: str
    pod: str = ""
    """Or, if given, a pod of this name does."""


class Loaded(Struct, frozen=True, tag=True):
    """The object was read."""

    pool: SpiderIPPool


class Written(Struct, frozen=True, tag=True):
    """The write succeeded."""

    pool: SpiderIPPool


class Failed(Struct, frozen=True, tag=True):
    """A read or a write failed."""

    error: Exception
    writing: bool


class Retry(Struct, frozen=True, tag=True):
    """The pause after a failure is over."""


Message = Claim | Surrender | Disown | Peek | Loaded | Written | Failed | Retry


class _Attempt(Struct):
    """The batch in hand and how far it has come."""

    asks: list[Envelope]
    verified: bool = False
    """Whether the ledger was read after this batch was taken: its answers need no further fence."""
    conflicts: int = 0
    outcome: Outcome | None = None


class IPPoolActor(Actor[Message]):
    """See the module."""

    batch = _BATCH
    capacity = 8192

    def __init__(
        self,
        name: str,
        store: Store,
        *,
        reserved: Callable[[int], Ranges],
        max_records: int,
    ) -> None:
        """`reserved` gives the addresses of an IP version that no pool may grant; `max_records` bounds the pool."""
        self._name = name
        self._store = store
        self._reserved = reserved
        self._max_records = max_records
        self._ledger: Ledger | None = None
        self._pool: SpiderIPPool | None = None
        self._attempt: _Attempt | None = None

    def __repr__(self) -> str:
        version = self._pool.metadata.resource_version if self._pool is not None else "-"
        doing = f"{len(self._attempt.asks)} in hand" if self._attempt is not None else "idle"
        return f"<IPPoolActor {self._name} at {version}, {doing}>"

    def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Take a batch in hand, and hold the mailbox until it is answered."""
        asks: list[Envelope] = []
        now, wall = self.system.clock.now(), self.system.clock.wall()
        for envelope in batch:
            if isinstance(envelope.message, Peek):
                _answer(envelope, self._peek(envelope.message))
                continue
            asks.append(envelope)
            waited = now - envelope.queued_at
            if isinstance(envelope.message, Claim):
                metrics.IPAM_ALLOCATION_LIMIT_DURATION.observe(waited)
            else:
                metrics.IPAM_RELEASE_LIMIT_DURATION.observe(waited)
            traces.record(
                "ippool.wait",
                start_ns=int((wall - (now - envelope.queued_at)) * 1e9),
                end_ns=int(wall * 1e9),
                parent=envelope.trace,
                attributes={attributes.POOL: self._name},
            )
        if not asks:
            return
        self._attempt = _Attempt(asks=asks)
        self.hold()
        self._try()

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Go on when I/O has ended."""
        match message:
            case Loaded(pool):
                self._loaded(pool)
            case Written(pool):
                self._written(pool)
            case Failed(error, writing):
                self._failed(error, writing=writing)
            case Retry():
                self._load()
            case Claim() | Surrender() | Disown() | Peek():
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
        if not attempt.asks:
            self._finish()
            return
        if self._ledger is None or self._pool is None:
            self._load()
            return
        # A SpiderReservedIP takes effect with the next batch, whether or not the pool has been read again.
        self._ledger.reserve(self._reserved(self._ledger.version))
        operations = [self._operation(ask.message) for ask in attempt.asks]
        attempt.outcome = self._ledger.apply(operations, now=self.system.clock.wall())
        if attempt.outcome.changed:
            self._write(attempt)
        elif attempt.verified:
            _unchanged.inc()
            self._answer_all(attempt)
        else:
            self._load()

    def _operation(self, message: Claim | Surrender | Disown) -> rules.Operation:
        """A request as the ledger's rule. Replayed for every attempt, so it looks at nothing but ledger and request."""
        match message:
            case Claim(pod, uid, nic, node, cid, fixed, moving):
                return rules.Claim(pod=pod, uid=uid, nic=nic, node=node, cid=cid, fixed=fixed, moving=moving)
            case Surrender(uid, nic, cid, node, keep, retain, kept_only):
                return rules.Surrender(
                    uid=uid, nic=nic, cid=cid, node=node, keep=keep, retain=retain, kept_only=kept_only
                )
            case Disown(uid, nic, cid, node, addresses, seen, seconds):
                return rules.Disown(
                    uid=uid, nic=nic, cid=cid, node=node, addresses=addresses, seen=seen, seconds=seconds
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
            try:
                version = pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)
                self._ledger = Ledger.load(pool, self._reserved(version), self._max_records)
            except PoolError as error:
                self._refuse_all(Reason(predicate="status", pool=self._name, wanted="readable", seen=str(error)))
                return
            self._pool = pool
        # Same version: the answers that were worked out before the read come out of `_try` again, now fenced by it.
        attempt.verified = True
        self._try()

    def _write(self, attempt: _Attempt) -> None:
        assert self._ledger is not None and self._pool is not None
        status = self._ledger.status()
        change: dict[str, object] = {
            "status": {
                "allocatedIPs": status.allocated_ips,
                "allocatedIPCount": status.allocated_ip_count,
                "totalIPCount": status.total_ip_count,
                "withheldIPs": status.withheld_ips,
            }
        }
        size = len(status.allocated_ips or "")
        self.pipe(
            self._commit(attempt, change, size),
            Written,
            failed=lambda error: Failed(error, writing=True),
            on_behalf=self._behalf(),
        )

    async def _commit(self, attempt: _Attempt, change: dict[str, object], size: int) -> SpiderIPPool:
        """One write for the whole batch. Its span is a child of the first asker's and linked to all of them."""
        assert self._pool is not None
        links = [traces.span_link(ask.trace) for ask in attempt.asks if ask.trace is not None]
        begun = self.system.clock.now()
        with traces.span(
            "ippool.batch",
            links=links,
            attributes={
                attributes.POOL: self._name,
                attributes.BATCH_SIZE: len(attempt.asks),
                "spiderpool.batch.bytes": size,
                "spiderpool.batch.conflicts": attempt.conflicts,
            },
        ):
            pool = await self._store.patch(
                IPPOOL,
                self._name,
                change,
                subresource="status",
                # Which implies the uid: to demand that as well would cost a read on the API server.
                resource_version=self._pool.metadata.resource_version,
            )
        metrics.POOL_COMMIT_SECONDS.observe(self.system.clock.now() - begun)
        metrics.POOL_COMMIT_BYTES.inc(size)
        metrics.POOL_COMMIT_OPERATIONS.observe(len(attempt.asks))
        return pool

    def _written(self, pool: SpiderIPPool) -> None:
        self._pool = pool
        _committed.inc()
        if self._attempt is not None:
            self._answer_all(self._attempt)

    def _failed(self, error: Exception, *, writing: bool) -> None:
        """The ledger may hold what was not written: it is dropped, and the batch replayed on what the store has."""
        attempt = self._attempt
        self._ledger = None
        self._pool = None
        if attempt is None:
            return
        attempt.outcome = None
        attempt.verified = False
        match error:
            case Conflict():
                attempt.conflicts += 1
                _conflicting.inc()
                if any(isinstance(ask.message, Claim) for ask in attempt.asks):
                    metrics.IPAM_ALLOCATION_UPDATE_IPPOOL_CONFLICT_COUNTS.inc()
                else:
                    metrics.IPAM_RELEASE_UPDATE_IPPOOL_CONFLICT_COUNTS.inc()
                if attempt.conflicts > _CONFLICTS:
                    self._refuse_all(
                        Reason(
                            predicate="conflict",
                            pool=self._name,
                            wanted="an undisturbed write",
                            seen=f"{attempt.conflicts} foreign writes in a row",
                        ),
                        retry=True,
                    )
                else:
                    self._load()
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
                self._refuse_all(
                    Reason(predicate="store", pool=self._name, wanted="a write", seen=str(error)), retry=True
                )
            case _:
                raise error

    def _answer_all(self, attempt: _Attempt) -> None:
        """Everything in the batch is settled in the store: say so."""
        assert attempt.outcome is not None and self._pool is not None and self._ledger is not None
        for ask, answer in zip(attempt.asks, attempt.outcome.answers, strict=True):
            translated = self._translate(ask.message, answer)
            match translated:
                case Granted(fresh=True):
                    metrics.POOL_ADDRESSES_GRANTED.inc()
                case Surrendered(addresses):
                    metrics.POOL_ADDRESSES_RELEASED.inc(len(addresses))
            _answer(ask, translated)
        self._finish()

    def _translate(self, message: Claim | Surrender | Disown, answer: rules.Answer) -> Granted | Surrendered | Refused:
        assert self._pool is not None and self._ledger is not None
        match answer:
            case rules.Granted():
                return Granted(address=answer.address, fresh=answer.fresh, spec=self._pool.spec)
            case rules.Surrendered():
                held = self._ledger.holds(message.uid, message.nic)
                return Surrendered(addresses=answer.ips, held=held, retained=answer.retained)
            case rules.Refused():
                return Refused(reason=answer.reason, retry=answer.retry)

    def _refuse_all(self, reason: Reason, *, retry: bool = False) -> None:
        if self._attempt is not None:
            for ask in self._attempt.asks:
                _answer(ask, Refused(reason=reason, retry=retry))
        self._finish()

    def _finish(self) -> None:
        self._attempt = None
        self.timers.cancel("retry")
        self.release()

    def _behalf(self) -> Envelope | None:
        """The first asker lends its trace; its deadline must not end a write that others wait for."""
        if self._attempt is None or not self._attempt.asks:
            return None
        first = self._attempt.asks[0]
        return Envelope(message=first.message, queued_at=first.queued_at, trace=first.trace, chain=first.chain)


def _answer(envelope: Envelope, answer: object) -> None:
    if envelope.reply is not None:
        envelope.reply.resolve(answer)
