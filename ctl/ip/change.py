"""Changes of a pool's records by hand: what becomes of its status, and the write that the pool's owner notices.

The write demands the resourceVersion that the decision was made on. Whoever owns the pool then meets a conflict with
its own next write, reads again, and goes on from what is there: the same as between two owners.
"""

from collections.abc import Callable

from msgspec import structs

from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool
from api.kinds import IPPOOL
from ctl import addresses
from ctl.errors import Failure
from ipam.addresses import BITS, format_address
from ipam.ledger import Ledger
from ipam.operations import Claim, Granted, Refused
from ipam.ranges import Ranges
from ipam.table import Table
from ipam.territory import PoolError, territory
from ipam.withheld import COOL_DOWN, Withheld, freed, withhold
from runtime.store.port import Conflict, NotFound, Store

_ATTEMPTS = 5
_MAX_RECORDS = 1 << 20
"""Who gives an address by hand decides for himself how many a pool should hold."""

type Decide = Callable[[SpiderIPPool], IPPoolStatus]
"""From the pool as it is now. Raises `Failure` when it is not any more what the user has agreed to."""


async def commit(store: Store, pool: str, decide: Decide) -> None:
    """Write what `decide` makes of the pool; when somebody else was first, of what it is then.

    Raises `Failure`, `StoreError`.
    """
    for _ in range(_ATTEMPTS):
        try:
            found = await store.get(IPPOOL, pool)
            status = decide(found)
            await store.patch(
                IPPOOL,
                pool,
                {
                    "status": {
                        "allocatedIPs": status.allocated_ips,
                        "allocatedIPCount": status.allocated_ip_count,
                        "totalIPCount": status.total_ip_count,
                        "withheldIPs": status.withheld_ips,
                    }
                },
                subresource="status",
                resource_version=found.metadata.resource_version,
            )
        except Conflict:
            continue
        except (PoolError, NotFound) as error:
            raise Failure(str(error)) from None
        return
    msg = f"SpiderIPPool {pool}: others changed it {_ATTEMPTS} times in a row, nothing was done: try again"
    raise Failure(msg)


def released(
    pool: SpiderIPPool, number: int, record: AllocationRecord | None, entry: Withheld | None, *, now: float, rest: float
) -> IPPoolStatus:
    """Without the record of an address, which then rests for `rest` seconds; without a record, not withheld any more.

    `record` and `entry` are what the user has seen. Raises `Failure` when they are others now, and `PoolError`.
    """
    land = territory(pool)
    table = Table.read(pool.status, land.version, land.addresses)
    text = format_address(number, land.version)
    if table.records.get(number) != record or (record is None and table.withheld.get(number) != entry):
        has = table.records.get(number)
        now_ = f"pod {has.pod} (uid {has.pod_uid}) has it" if has is not None else "nobody has it"
        msg = f"{text} of pool {pool.metadata.name} has changed meanwhile, nothing was done: now {now_}"
        raise Failure(msg)
    resting = withhold(now + rest, COOL_DOWN) if record is not None and rest > 0 else None
    if record is not None and entry is not None and not entry.resting and entry.until > now:
        resting = entry  # a quarantine outlives whom it was given to all the same
    table.set(number, None, resting if record is None else freed(record, resting))
    return _status(pool, table)


def granted(pool: SpiderIPPool, number: int, claim: Claim, *, now: float, force: bool) -> IPPoolStatus:
    """With a record of this address for this claim, by the rules of every grant.

    With `force` a quarantine is ended. Raises `Failure` with the rule that is against it, and `PoolError`.
    """
    land = territory(pool)
    text = format_address(number, land.version)
    table = Table.read(pool.status, land.version, land.addresses)
    has, entry = table.records.get(number), table.withheld.get(number)
    if has is not None:
        msg = f"{text} of pool {pool.metadata.name} belongs to pod {has.pod} (uid {has.pod_uid})"
        raise Failure(msg)
    if entry is not None and entry.owed is not None:
        msg = f"{text} of pool {pool.metadata.name} is not released by the network provider yet"
        raise Failure(msg)
    if entry is not None and not entry.resting and entry.until > now:
        if not force:
            msg = f"{text} of pool {pool.metadata.name} is in quarantine ({entry.reason}): --force ends that"
            raise Failure(msg)
        table.set(number, None, None)
        pool = _replaced(pool, _status(pool, table))
    everything = [(0, number - 1), (number + 1, (1 << BITS[land.version]) - 1)]
    others = Ranges.of(land.version, [(first, last) for first, last in everything if first <= last])
    book = Ledger(pool, others, _MAX_RECORDS)
    (answer,) = book.apply([claim], now=now).answers
    match answer:
        case Granted(ip=ip) if ip == number:
            return book.status()
        case Granted(address=other):
            msg = f"{claim.nic} of pod {claim.pod} has {other} of pool {pool.metadata.name} already"
        case Refused(reason=reason):
            msg = f"{text} of pool {pool.metadata.name}: {reason}"
        case _:
            msg = f"{text} of pool {pool.metadata.name}: {answer}"
    raise Failure(msg)


def _status(pool: SpiderIPPool, table: Table) -> IPPoolStatus:
    return addresses.book(_replaced(pool, _contents(pool.status, table))).status()


def _contents(status: IPPoolStatus, table: Table) -> IPPoolStatus:
    allocated, withheld = table.texts()
    return structs.replace(status, allocated_ips=allocated, withheld_ips=withheld)


def _replaced(pool: SpiderIPPool, status: IPPoolStatus) -> SpiderIPPool:
    return structs.replace(pool, status=status)
