"""How a simulation went, as values: for a table, and for programs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from simulation.audit import Finding
from simulation.plan import Plan

_SHARES: Final = (0.5, 0.9, 0.99, 1.0)


class Percentiles(Struct, frozen=True):
    """Of many values; 0 where there are none."""

    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    longest: float = 0.0


class Writes(Struct, frozen=True, kw_only=True):
    """What the controllers wrote, and how much of it."""

    by_kind: dict[str, int]
    """Writes that succeeded, by the plural of the kind."""
    per_pod: float
    """Pools and SpiderEndpoints, for each time that a pod came."""
    conflicts: int
    pool_bytes: int
    """Of pools' statuses, over all their writes."""
    pool_bytes_per_second: float
    """While pods came."""
    largest_pool: int
    """Bytes of the largest status that was written."""


class Report(Struct, frozen=True, kw_only=True):
    """What `spiderpoolctl simulate -o json` prints. Times are in seconds."""

    plan: Plan
    pods: int
    """That came."""
    served: int
    """That got all their addresses."""
    deleted: int
    """That were deleted again."""
    unserved: dict[str, int]
    """Pods that were given up, by the last cause."""
    failed_adds: dict[str, int]
    """By cause; their pods tried again."""
    simulated: float
    """From the first ADD to the last that succeeded."""
    real: float
    """That this took, on this machine. All else is the same every time."""
    add: Percentiles
    """From a pod's first ADD to its addresses."""
    batch: Percentiles
    """Addresses that one write of a pool gave or took back."""
    writes: Writes
    findings: tuple[Finding, ...]
    """Of the audit."""

    @property
    def well(self) -> bool:
        """Whether the audit found nothing."""
        return not self.findings


def percentiles(values: Iterable[float]) -> Percentiles:
    """See `weighted`."""
    return weighted(Counter(values))


def weighted(counts: Mapping[float, int]) -> Percentiles:
    """Of values and how often each came. The p-th is the smallest value that p percent are not above."""
    total, passed = sum(counts.values()), 0
    if not total:
        return Percentiles()
    found: list[float] = []
    for value, count in sorted(counts.items()):
        passed += count
        while len(found) < len(_SHARES) and passed >= _SHARES[len(found)] * total:
            found.append(value)
    return Percentiles(*found)
