"""Whose an address is, among a hundred thousand intervals of many owners, found without looking at all of them.

Pools hardly ever overlap. So nearly all intervals are disjoint and lie in one sorted list, where a question is a binary
search and a change moves memory. The few that overlap what was there before them are kept apart, and looked at each.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

type Span = tuple[int, int]
"""First and last address, inclusive."""


class Spans:
    """Intervals of one IP family and who has them. Those of one owner do not overlap each other."""

    __slots__ = ("_apart", "_sorted")

    def __init__(self) -> None:
        self._sorted: list[tuple[int, int, str]] = []
        self._apart: set[tuple[int, int, str]] = set()

    def __repr__(self) -> str:
        return f"<Spans {len(self._sorted)} disjoint, {len(self._apart)} apart>"

    def add(self, owner: str, spans: Sequence[Span]) -> None:
        """Take in an owner's intervals, sorted. O(log n) for each, and one move of memory for each run of them."""
        known, at = self._sorted, 0
        while at < len(spans):
            first, last = spans[at]
            place = bisect_left(known, (first,))
            behind = known[place][0] if place < len(known) else None
            if (place and known[place - 1][1] >= first) or (behind is not None and behind <= last):
                self._apart.add((first, last, owner))
                at += 1
                continue
            end = at + 1
            while end < len(spans) and (behind is None or spans[end][1] < behind):
                end += 1
            known[place:place] = [(first, last, owner) for first, last in spans[at:end]]
            at = end

    def remove(self, owner: str, spans: Sequence[Span]) -> None:
        """Forget intervals that `add` was given."""
        known = self._sorted
        for first, last in spans:
            entry = (first, last, owner)
            place = bisect_left(known, entry)
            if place < len(known) and known[place] == entry:
                del known[place]
            else:
                self._apart.discard(entry)

    def touching(self, first: int, last: int) -> Iterator[tuple[int, int, str]]:
        """Every interval that shares an address with this one, whoever has it."""
        known = self._sorted
        place = bisect_left(known, (first,))
        if place and known[place - 1][1] >= first:
            place -= 1
        while place < len(known) and known[place][0] <= last:
            yield known[place]
            place += 1
        yield from (entry for entry in self._apart if entry[0] <= last and first <= entry[1])
