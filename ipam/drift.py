"""Where a SpiderEndpoint says something else than the pools: what it lacks, and what it shows too much. Pure.

The pools are right. An endpoint that is behind for a moment is nothing unusual, it is written after them; so a
difference counts when it is still there at a second look.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from ipam.garbage import Held


class Shown(Struct, frozen=True):
    """One address in a SpiderEndpoint."""

    nic: str
    address: str
    """Without prefix length."""
    pool: str


class Drift(StrEnum):
    """How an endpoint and the pools disagree. The values are labels of a metric."""

    MISSING = "endpoint_missing"
    """The pod holds addresses and has no endpoint."""
    OTHER_POD = "endpoint_of_another_pod"
    """The addresses are of a newer pod of the same name than the endpoint."""
    INCOMPLETE = "endpoint_incomplete"
    """It lacks an address that the pod holds, or shows another one for that NIC."""
    UNRECORDED = "address_unrecorded"
    """It shows an address that the pool does not have for this pod, beside others that it has."""
    OUTDATED = "endpoint_outdated"
    """No pool has any of the addresses that it shows for this pod."""


def compare(uid: str | None, shown: Iterable[Shown], records: Sequence[Held]) -> Drift | None:
    """What is wrong with the endpoint of one name; None where nothing is.

    Args:
        uid: of the pod in the endpoint; None where there is no endpoint.
        shown: the addresses in it.
        records: what the pools hold under its name.
    """
    # A kept record is no pod's; one without NIC was written by others, who look after the endpoint themselves.
    own = [held for held in records if held.record.nic and not held.kept]
    if uid is None:
        return Drift.MISSING if own else None
    seen = set(shown)
    recorded = {(held.address, held.pool) for held in records}
    if not any((one.address, one.pool) in recorded for one in seen) and not own:
        return Drift.OUTDATED
    if own and all(held.record.pod_uid != uid for held in own):
        return Drift.OTHER_POD
    if any(held.record.pod_uid == uid and Shown(held.record.nic, held.address, held.pool) not in seen for held in own):
        return Drift.INCOMPLETE
    if any((one.address, one.pool) not in recorded for one in seen):
        return Drift.UNRECORDED
    return None
