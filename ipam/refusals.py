"""Why the ledger refuses, in the words that users read."""

from api.ippool import AllocationRecord
from api.reasons import Reason
from ipam.overlap import Overlap
from ipam.withheld import Owed


def still_held(pool: str, address: str, record: AllocationRecord) -> Reason:
    """A fixed address that may still be in use by an earlier pod of its name."""
    place = f"in container {record.cid or 'unknown'} on node {record.node or 'unknown'}"
    if not (record.node or record.nic or record.cid):
        place = "and it is not known yet where it is carried"
    return Reason(
        predicate="held",
        pool=pool,
        wanted="a fixed address that no link carries any more",
        seen=f"{address} held by uid {record.pod_uid} {place}",
    )


def still_owed(pool: str, address: str, owed: Owed) -> Reason:
    """An address that a network provider has not released yet."""
    return Reason(
        predicate="provider",
        pool=pool,
        wanted=f"{address}, released by the network provider",
        seen=f"it was of pod {owed.pod}, uid {owed.pod_uid}, on node {owed.node or 'unknown'}, and is owed to it",
    )


def exhausted(
    pool: str, *, taken: int, quarantined: int, reserved: int, overlap: Overlap | None, owed: int = 0
) -> Reason:
    """No address is left: all are held, in quarantine, owed to a network provider, reserved, or another pool's too."""
    parts = [f"{taken} taken"]
    parts += [f"{quarantined} in quarantine"] * bool(quarantined)
    parts += [f"{owed} not released by the network provider yet"] * bool(owed)
    seen = ", ".join(parts) if len(parts) > 1 else f"all {taken} taken"
    if overlap is None:
        return Reason(predicate="full", pool=pool, wanted="a free address", seen=f"{seen}, {reserved} more reserved")
    return Reason(
        predicate="overlap",
        pool=pool,
        wanted="a free address of this pool alone",
        seen=f"{seen}, others lie in more than one pool: {overlap}",
    )


def another_held(pool: str, address: str, record: AllocationRecord, *, wanted: str) -> Reason:
    """The holder has another address than the one that it asks for now, and may still carry it."""
    seen = f"{address}, which container {record.cid or 'unknown'} on node {record.node or 'unknown'} has still"
    return Reason(predicate="held", pool=pool, wanted=wanted, seen=seen)


def taken(pool: str, record: AllocationRecord, *, wanted: str) -> Reason:
    """The address that is asked for is somebody else's."""
    kept = "kept for" if record.kept else "held by"
    return Reason(predicate="taken", pool=pool, wanted=wanted, seen=f"{kept} pod {record.pod}, uid {record.pod_uid}")
