"""The batch of requests that a pool's owner has in hand: how far it has come, how it is written, who is answered."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeGuard

from msgspec import Struct

from actors.pools.claims import Chase, Claim, Disown, Granted, Refused, Request, Settle, Surrendered, operation
from actors.pools.waiting import WaitingRoom
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from ipam import operations as rules
from ipam.history import Change
from ipam.ledger import Ledger
from runtime.clock import Clock
from runtime.envelope import Envelope
from runtime.store.port import Store
from telemetry import attributes, metrics, traces

_EXHAUSTED: Final = frozenset({"full", "max-records", "object-size"})
"""Predicates that say that a pool has no more room."""


class Batch(Struct):
    """What was taken out of the mailbox at once."""

    asks: list[Envelope]
    look: bool = False
    """Whether other pools are to be looked at in any case."""
    reread: bool = False
    """Whether the pool is to be read in any case: somebody has seen that there is something to do."""
    verified: bool = False
    """Whether the ledger was read after this batch was taken: its answers need no further fence."""
    conflicts: int = 0
    outcome: rules.Outcome | None = None
    unsure: tuple[Change, ...] = ()
    """What a write without an answer may have changed."""


def observe(asks: Sequence[Envelope], *, pool: str, clock: Clock) -> None:
    """How long they waited in the mailbox."""
    now, wall = clock.now(), clock.wall()
    for envelope in asks:
        waited = now - envelope.queued_at
        if isinstance(envelope.message, Claim):
            metrics.IPAM_ALLOCATION_LIMIT_DURATION.observe(waited)
        else:
            metrics.IPAM_RELEASE_LIMIT_DURATION.observe(waited)
        traces.record(
            "ippool.wait",
            start_ns=int((wall - waited) * 1e9),
            end_ns=int(wall * 1e9),
            parent=envelope.trace,
            attributes={attributes.POOL: pool},
        )


async def commit(
    store: Store, pool: SpiderIPPool, batch: Batch, status: Mapping[str, object], *, size: int, clock: Clock
) -> SpiderIPPool:
    """One write for the whole batch. Its span is a child of the first asker's and linked to all of them.

    Args:
        store: where.
        pool: the version that the write demands.
        batch: for whom.
        status: all of it.
        size: of the object, in bytes.
        clock: for the time that it takes.

    Raises `StoreError`.
    """
    name, begun = pool.metadata.name, clock.now()
    with traces.span(
        "ippool.batch",
        links=[traces.span_link(ask.trace) for ask in batch.asks if ask.trace is not None],
        attributes={
            attributes.POOL: name,
            attributes.BATCH_SIZE: len(batch.asks),
            "spiderpool.batch.bytes": size,
            "spiderpool.batch.conflicts": batch.conflicts,
        },
    ):
        written = await store.replace_status(IPPOOL, pool, status)
    metrics.POOL_COMMIT_SECONDS.observe(clock.now() - begun)
    metrics.POOL_COMMIT_BYTES.inc(size)
    metrics.POOL_COMMIT_OPERATIONS.observe(len(batch.asks))
    return written


def work_out(batch: Batch, ledger: Ledger, room: WaitingRoom, *, now: float) -> rules.Outcome:
    """Apply a batch to the ledger, so that nobody who waits for room is passed over; `now` are unix seconds."""
    batch.outcome = ledger.apply([operation(ask.message) for ask in batch.asks], now=now)
    while room.passed_over(batch.asks, batch.outcome.answers, spare=ledger.spare):
        ledger.revert(batch.outcome)
        batch.asks = room.joined(batch.asks)
        batch.outcome = ledger.apply([operation(ask.message) for ask in batch.asks], now=now)
    return batch.outcome


def depends_on_others(answer: rules.Answer) -> bool:
    """Whether an answer is right only if it is known which addresses other pools have."""
    match answer:
        case rules.Granted():
            return answer.fresh
        case rules.Refused():
            return answer.reason.predicate == "overlap"
        case _:
            return False


def no_room(answer: rules.Answer) -> TypeGuard[rules.Refused]:
    """Whether the pool has no more addresses to give."""
    return isinstance(answer, rules.Refused) and answer.reason.predicate in _EXHAUSTED


def count(message: Request, said: Granted | Surrendered | Refused) -> None:
    """What an answer has done."""
    match said:
        case Granted(fresh=True):
            metrics.POOL_ADDRESSES_GRANTED.inc()
        case Surrendered(addresses) if not isinstance(message, Chase | Settle):
            metrics.POOL_ADDRESSES_RELEASED.inc(len(addresses))
            if isinstance(message, Disown):
                metrics.POOL_ADDRESSES_QUARANTINED.inc(len(addresses))


def reply(ask: Envelope, said: object) -> None:
    """Tell whoever asked, if somebody waits."""
    if ask.reply is not None:
        ask.reply.resolve(said)
