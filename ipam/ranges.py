"""Which addresses a user wrote: the range grammar of the custom resources and sets of addresses as intervals.

An entry is `A` or `A-B`, no spaces, both of one family, A <= B. Sets are sorted disjoint intervals of integers and are
never enumerated: 10.0.0.0/8 and a /64 are ordinary pools here, and a pool with 10,000 exclusions is one of 10,001
intervals.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from ipam.addresses import MAPPED_FIRST, MAPPED_LAST, format_address, parse_address

MAX_INT64: Final = (1 << 63) - 1
"""Counts in a status saturate here: the schema says int64, and an IPv6 range may hold 2^64 addresses and more."""

_BEYOND: Final = 1 << 129


class RangeError(ValueError):
    """An entry of a list of ranges that cannot be read.

    Attributes:
        field: where it stood, e.g. `ips[2]`.
        value: the entry, verbatim.
        problem: what is wrong with it.
    """

    def __init__(self, *, field: str, value: str, problem: str) -> None:
        super().__init__(f"{field}: {value!r}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


class Ranges(Struct, frozen=True):
    """A set of addresses of one family.

    Build it with `parse_ranges` or `Ranges.of`; the constructor trusts its arguments.

    Attributes:
        version: 4 or 6.
        spans: inclusive intervals, sorted, disjoint and not adjacent, so equal sets compare equal.
    """

    version: int
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, version: int, spans: Iterable[tuple[int, int]]) -> "Ranges":
        """The union of any inclusive intervals, in any order."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if merged and first <= merged[-1][1] + 1:
                if last > merged[-1][1]:
                    merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        return cls(version, tuple(merged))

    @property
    def size(self) -> int:
        """Number of addresses, exact."""
        return sum(last - first + 1 for first, last in self.spans)

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, int):
            return False
        at = bisect_right(self.spans, (address, _BEYOND)) - 1
        return at >= 0 and address <= self.spans[at][1]

    def union(self, other: "Ranges") -> "Ranges":
        """Addresses in either set.

        Raises:
            ValueError: the sets are of different families.
        """
        self._same_family(other)
        return Ranges.of(self.version, (*self.spans, *other.spans))

    def difference(self, other: "Ranges") -> "Ranges":
        """Addresses of this set that are not in the other. Linear in the number of intervals.

        Raises:
            ValueError: the sets are of different families.
        """
        self._same_family(other)
        kept: list[tuple[int, int]] = []
        at = 0
        for span_first, last in self.spans:
            first = span_first
            while at < len(other.spans) and other.spans[at][1] < first:
                at += 1
            cut = at
            while cut < len(other.spans) and other.spans[cut][0] <= last:
                hole_first, hole_last = other.spans[cut]
                if hole_first > first:
                    kept.append((first, hole_first - 1))
                first = hole_last + 1
                cut += 1
            if first <= last:
                kept.append((first, last))
            at = max(at, cut - 1)
        return Ranges(self.version, tuple(kept))

    def intersection(self, other: "Ranges") -> "Ranges":
        """Addresses in both sets. Linear in the number of intervals.

        Raises:
            ValueError: the sets are of different families.
        """
        self._same_family(other)
        shared: list[tuple[int, int]] = []
        mine, theirs = 0, 0
        while mine < len(self.spans) and theirs < len(other.spans):
            first = max(self.spans[mine][0], other.spans[theirs][0])
            last = min(self.spans[mine][1], other.spans[theirs][1])
            if first <= last:
                shared.append((first, last))
            if self.spans[mine][1] < other.spans[theirs][1]:
                mine += 1
            else:
                theirs += 1
        return Ranges(self.version, tuple(shared))

    def format(self) -> list[str]:
        """The set in the grammar that `parse_ranges` reads, canonical: merged, ascending, one address as `A`."""
        return [
            format_address(first, self.version)
            if first == last
            else f"{format_address(first, self.version)}-{format_address(last, self.version)}"
            for first, last in self.spans
        ]

    def __str__(self) -> str:
        return ",".join(self.format())

    def _same_family(self, other: "Ranges") -> None:
        if self.version != other.version:
            message = f"an IPv{self.version} set and an IPv{other.version} set have nothing in common"
            raise ValueError(message)


def parse_range(text: str, *, version: int | None = None, field: str = "ips") -> tuple[int, int]:
    """Read one entry, `A` or `A-B`.

    Args:
        text: the entry, verbatim.
        version: the family it must have; None takes either.
        field: named in the error.

    Returns:
        First and last address, inclusive.

    Raises:
        RangeError: no address on either side, spaces, a CIDR, mixed or wrong family, A > B, or a span that holds
            IPv4-mapped addresses.
    """

    def wrong(problem: str) -> RangeError:
        return RangeError(field=field, value=text, problem=problem)

    parts = text.split("-")
    if len(parts) > 2:
        raise wrong("expected A or A-B")
    numbers: list[int] = []
    families: list[int] = []
    for part in parts:
        try:
            family, number = parse_address(part)
        except ValueError as error:
            if "/" in text:
                raise wrong("a CIDR is not allowed, write it as first-last") from None
            if "".join(text.split()) != text:
                raise wrong("spaces are not allowed") from None
            raise wrong(f"{part!r} {error}") from None
        families.append(family)
        numbers.append(number)
    if families[0] != families[-1]:
        raise wrong("both ends must be of one IP version")
    if version is not None and families[0] != version:
        raise wrong(f"an IPv{families[0]} address where IPv{version} is expected")
    first, last = numbers[0], numbers[-1]
    if first > last:
        raise wrong("the first address is above the last")
    if families[0] == 6 and first < MAPPED_FIRST and last > MAPPED_LAST:
        raise wrong("holds IPv4-mapped addresses")
    return first, last


def parse_ranges(entries: Sequence[str], version: int, *, field: str = "ips") -> Ranges:
    """Read a list of entries of one family into a set; overlapping and repeated entries are merged.

    Raises:
        RangeError: naming `field[index]` and the entry, for the first one that is wrong.
    """
    return Ranges.of(
        version,
        [parse_range(entry, version=version, field=f"{field}[{at}]") for at, entry in enumerate(entries)],
    )
