"""Addresses that lie in two pools: they are granted by neither, for each pool knows only its own records.

Admission refuses such a pool, but two admissions at the same time see nothing of each other, and a cluster may run
without. So the owner of a pool looks at all others before it grants anything new under a spec (`actors.pools.survey`).
"""

from collections.abc import Iterable
from functools import reduce
from typing import Final

from msgspec import Struct

from api.ippool import SpiderIPPool
from api.meta import Condition, with_condition
from ipam.addresses import format_address
from ipam.ranges import Ranges
from ipam.spans import Spans
from ipam.territory import PoolError, Territory, territory
from ipam.withheld import rfc3339

CONDITION: Final = "Overlapping"
"""Type of the condition in a pool's status."""
_SHOWN: Final = 5
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

    __slots__ = ("_known", "_networks", "_pools", "_spans")

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[str, int], Territory | None]] = {}
        self._spans = {4: Spans(), 6: Spans()}
        self._networks = {4: Spans(), 6: Spans()}
        """Each network once, by its CIDR."""
        self._pools: dict[str, set[str]] = {}
        """Of each network."""

    def __repr__(self) -> str:
        return f"<Atlas of {len(self._known)} pools>"

    def learn(self, pools: Iterable[SpiderIPPool], gone: Iterable[str] = ()) -> bool:
        """Take in pools, new or changed, and those that are gone. Returns whether any spec is another than before.

        A pool that is disabled or goes counts as any other: what it granted is in use. One whose spec cannot be read
        grants nothing, and counts for nothing.
        """
        changed = False
        for name in gone:
            changed |= self._forget(name)
        for pool in pools:
            name, version = pool.metadata.name, (pool.metadata.uid, pool.metadata.generation)
            if name not in self._known or self._known[name][0] != version:
                self._forget(name)
                self._note(name, version, _read(pool))
                changed = True
        return changed

    def replace(self, pools: Iterable[SpiderIPPool]) -> bool:
        """Take in all pools that there are, and forget the others. Returns as `learn`."""
        there = {pool.metadata.name: pool for pool in pools}
        return self.learn(there.values(), gone=[name for name in self._known if name not in there])

    def overlap(self, name: str) -> Overlap | None:
        """What the pool of that name shares with others; None when it is not known, or shares nothing."""
        mine = self._known[name][1] if name in self._known else None
        return self.shared(mine.addresses, but=name) if mine is not None else None

    def shared(self, addresses: Ranges, *, but: str, most: int | None = None) -> Overlap | None:
        """What a set of addresses shares with pools of other names; None when it is nothing.

        O(log n) for each interval of the set, of n that all pools have, and what is found. With `most` it does not go
        on once it has found so many pools, and may not have found all that they share.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        for first, last in addresses.spans:
            for begin, end, owner in self._spans[addresses.version].touching(first, last):
                if len(found) == most:
                    break
                if owner != but:
                    found.setdefault(owner, []).append((max(first, begin), min(last, end)))
        shares = tuple((owner, Ranges.of(addresses.version, found[owner])) for owner in sorted(found))
        return Overlap(shares) if shares else None

    def crossing(self, version: int, network: tuple[int, int]) -> tuple[tuple[str, str], ...]:
        """Networks that share addresses with this one and are not the same: the CIDR, and one pool that has it."""
        return tuple(
            (cidr, min(self._pools[cidr]))
            for first, last, cidr in sorted(self._networks[version].touching(*network))
            if (first, last) != network
        )

    def _note(self, name: str, version: tuple[str, int], found: Territory | None) -> None:
        self._known[name] = (version, found)
        if found is not None:
            self._spans[found.version].add(name, found.addresses.spans)
            cidr = _cidr(found)
            if cidr not in self._pools:
                self._networks[found.version].add(cidr, [found.network])
            self._pools.setdefault(cidr, set()).add(name)

    def _forget(self, name: str) -> bool:
        if name not in self._known:
            return False
        _, found = self._known.pop(name)
        if found is not None:
            self._spans[found.version].remove(name, found.addresses.spans)
            cidr = _cidr(found)
            self._pools[cidr].discard(name)
            if not self._pools[cidr]:
                del self._pools[cidr]
                self._networks[found.version].remove(cidr, [found.network])
        return True


def _cidr(found: Territory) -> str:
    return f"{format_address(found.network[0], found.version)}/{found.prefix}"


def _read(pool: SpiderIPPool) -> Territory | None:
    try:
        return territory(pool)
    except PoolError:
        return None


def _short(ranges: Ranges) -> str:
    texts = Ranges(ranges.version, ranges.spans[:_SHOWN]).format()
    return ",".join(texts) + (",..." if len(ranges.spans) > _SHOWN else "")


def conditions(pool: SpiderIPPool, overlap: Overlap | None, *, now: float) -> list[Condition]:
    """`status.conditions` as it has to be; equal to what the pool has when nothing is to be written.

    Pools that never overlapped have no such condition. Others' conditions stay.
    """
    before = next((it for it in pool.status.conditions if it.type == CONDITION), None)
    status, reason, message = (
        ("True", "AddressesInTwoPools", f"granted by neither: {overlap}")
        if overlap is not None
        else ("False", "NoneShared", "no address lies in another pool")
    )
    if before is None and overlap is None:
        return pool.status.conditions
    after = Condition(
        type=CONDITION,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=rfc3339(now),
        observed_generation=pool.metadata.generation,
    )
    found = with_condition(pool.status.conditions, after)
    return pool.status.conditions if found == pool.status.conditions else found
