"""An object that is being deleted and must not go yet says in its status what it waits for."""

from collections.abc import Mapping, Sequence
from typing import Final

from api.ippool import AllocationRecord
from api.meta import FINALIZER, Condition, ObjectMeta, with_condition
from ipam.addresses import format_address
from ipam.withheld import rfc3339

CONDITION: Final = "DeletionBlocked"
"""Type of the condition in the status."""
_NAMED: Final = 3
"""Of what is waited for, the message names so many."""


def departing(meta: ObjectMeta) -> bool:
    """Whether an object is being deleted, and waits for us."""
    return meta.deletion_timestamp is not None and FINALIZER in meta.finalizers


def others(meta: ObjectMeta) -> list[str] | None:
    """The finalizers without ours, as a merge patch wants them."""
    return [one for one in meta.finalizers if one != FINALIZER] or None


def in_use(records: Mapping[int, AllocationRecord], version: int) -> str:
    """What a pool waits for."""
    named = [f"{format_address(ip, version)} of {records[ip].pod}" for ip in sorted(records)[:_NAMED]]
    return f"{len(records)} addresses are in use: {_listed(named, len(records))}"


def owes(addresses: Sequence[str]) -> str:
    """What a pool waits for whose addresses nobody uses any more."""
    named = _listed(addresses[:_NAMED], len(addresses))
    return f"{len(addresses)} addresses are not released by the network provider yet: {named}"


def has_pools(names: Sequence[str]) -> str:
    """What a subnet waits for."""
    return f"{len(names)} pools are left: {_listed(sorted(names)[:_NAMED], len(names))}"


def blocked(
    conditions: Sequence[Condition], meta: ObjectMeta, *, reason: str, message: str, now: float
) -> list[Condition]:
    """The conditions with that of an object that waits. Others' stay, and so does the time since when it waits."""
    mine = Condition(
        type=CONDITION,
        status="True",
        reason=reason,
        message=message,
        last_transition_time=rfc3339(now),
        observed_generation=meta.generation,
    )
    return with_condition(conditions, mine)


def waiting(conditions: Sequence[Condition]) -> str:
    """What the object waits for, as its status says it; empty where it does not."""
    return next((it.message for it in conditions if it.type == CONDITION), "")


def _listed(named: Sequence[str], total: int) -> str:
    more = total - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
