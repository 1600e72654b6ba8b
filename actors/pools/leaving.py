"""What a pool's status has to say of others and of its own end, and when it may go. Pure but for `leave`."""

from typing import Final

from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from api.meta import Condition
from ipam import departure
from ipam.ledger import Ledger
from ipam.overlap import Overlap, conditions
from runtime.store.port import Store

CONDITION: Final = departure.CONDITION


def waits(pool: SpiderIPPool | None, ledger: Ledger | None) -> bool:
    """Whether the pool is being deleted and must not go yet."""
    return pool is not None and departure.departing(pool.metadata) and ledger is not None and not ledger.idle


def may_leave(pool: SpiderIPPool | None, ledger: Ledger | None) -> bool:
    """Whether the pool is being deleted and nothing keeps it but our finalizer."""
    return pool is not None and departure.departing(pool.metadata) and ledger is not None and ledger.idle


def said(pool: SpiderIPPool) -> str:
    """What it says that it waits for; empty when it does not."""
    return departure.waiting(pool.status.conditions)


def due(pool: SpiderIPPool | None, ledger: Ledger | None, overlap: Overlap | None, *, surveyed: bool) -> bool:
    """Whether the status does not say what it has to; without `surveyed` it is not known what others have."""
    if pool is None:
        return False
    if waits(pool, ledger) and not said(pool):
        return True
    status = pool.status
    going = pool.metadata.deletion_timestamp is not None
    if ledger is not None and not going and (status.total_ip_count, status.allocated_ip_count) != ledger.counts:
        return True
    return surveyed and conditions(pool, overlap, now=0.0) is not pool.status.conditions


def told(pool: SpiderIPPool, ledger: Ledger, overlap: Overlap | None, *, surveyed: bool, now: float) -> list[Condition]:
    """The conditions as they have to be; `now` are unix seconds."""
    all_of_it = conditions(pool, overlap, now=now) if surveyed else pool.status.conditions
    if not waits(pool, ledger):
        return all_of_it
    message = departure.in_use(ledger.records, ledger.version) if ledger.records else departure.owes(ledger.debts)
    return departure.blocked(all_of_it, pool.metadata, reason="AddressesInUse", message=message, now=now)


async def leave(store: Store, pool: SpiderIPPool) -> SpiderIPPool:
    """Take our finalizer off a pool, if it is still the one that was judged. Raises `StoreError`."""
    meta = pool.metadata
    change = {"metadata": {"finalizers": departure.others(meta)}}
    return await store.patch(IPPOOL, meta.name, change, resource_version=meta.resource_version)
