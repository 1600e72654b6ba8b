"""Addresses that lie in two pools: they are granted by neither, for each pool knows only its own records.

Admission refuses such a pool, but two admissions at the same time see nothing of each other, and a cluster may run
without. So the owner of a pool looks at all others before it grants anything new under a spec (`actors.survey`).
"""

from collections.abc import Iterable
from functools import reduce

from msgspec import Struct

from api.ippool import SpiderIPPool
from ipam.ranges import Ranges
from ipam.territory import PoolError, Territory, territory

_SHOWN = 5
"""Other pools, and ranges of each, that the text names."""


class Overlap(Struct, frozen=True):
    """What a pool shares with others.

    Attributes:
        shares: the other pool's name, and the addresses that both have; by name, at least one, none of them empty.
    """

    shares: tuple[tuple[str, Ranges], ...]

    @property
    def addresses(self) -> Ranges:
        """All that is shared with anybody."""
        return reduce(Ranges.union, (ranges for _, ranges in self.shares))

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the others."""
        return tuple(name for name, _ in self.shares)

    def __str__(self) -> str:
        shown = "; ".join(f"{_short(ranges)} with {name}" for name, ranges in self.shares[:_SHOWN])
        more = len(self.shares) - _SHOWN
        return f"{shown}; and {more} more pools" if more > 0 else shown


class Atlas:
    """The addresses of all pools, as far as they can be read. A pool is parsed again only when its spec has changed."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[str, int], Territory | None]] = {}

    def __repr__(self) -> str:
        return f"<Atlas of {len(self._known)} pools>"

    def overlap(self, name: str, pools: Iterable[SpiderIPPool]) -> Overlap | None:
        """What the pool of that name shares with the others of these; None when it is not among them, or nothing.

        A pool that is disabled or goes counts as any other: what it granted is in use. One whose spec cannot be read
        grants nothing, and counts for nothing.
        """
        known: dict[str, tuple[tuple[str, int], Territory | None]] = {}
        for pool in pools:
            version = (pool.metadata.uid, pool.metadata.generation)
            found = self._known.get(pool.metadata.name)
            known[pool.metadata.name] = found if found and found[0] == version else (version, _read(pool))
        self._known = known
        mine = known[name][1] if name in known else None
        if mine is None or not mine.addresses:
            return None
        shares = [
            (other, mine.addresses.intersection(theirs.addresses))
            for other, (_, theirs) in sorted(known.items())
            if other != name and theirs is not None and _near(mine, theirs)
        ]
        shared = tuple((other, ranges) for other, ranges in shares if ranges)
        return Overlap(shared) if shared else None


def _near(mine: Territory, theirs: Territory) -> bool:
    """Whether it is worth to look closer."""
    if mine.version != theirs.version or not theirs.addresses:
        return False
    return (
        mine.addresses.spans[0][0] <= theirs.addresses.spans[-1][1]
        and theirs.addresses.spans[0][0] <= mine.addresses.spans[-1][1]
    )


def _read(pool: SpiderIPPool) -> Territory | None:
    try:
        return territory(pool)
    except PoolError:
        return None


def _short(ranges: Ranges) -> str:
    texts = Ranges(ranges.version, ranges.spans[:_SHOWN]).format()
    return ",".join(texts) + (",..." if len(ranges.spans) > _SHOWN else "")
