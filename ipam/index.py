"""Numbers by a text, without the text: what it costs to find a record again, in 60 bytes.

A dictionary of strings holds every one of them a second time, which for tens of thousands of records is more than all
the rest. This one keeps their hashes; two texts may have the same, so whoever asks looks at what he finds.
"""

from typing import Final

_TWO_DIGITS: Final = (1 << 60) - 1
"""As much of a hash as fits into the smallest object that an int of that size takes."""


class Index:
    """Numbers by text. Finding one costs O(1) and a look at each."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[int, int | tuple[int, ...]] = {}

    def __repr__(self) -> str:
        return f"Index({len(self._numbers)} texts)"

    def add(self, text: str, number: int) -> None:
        """Find this number by this text too. A number is added once."""
        key = hash(text) & _TWO_DIGITS
        known = self._numbers.setdefault(key, number)
        if known is not number:
            self._numbers[key] = (known, number) if isinstance(known, int) else (*known, number)

    def drop(self, text: str, number: int) -> None:
        """Find it no more; a number that is not known changes nothing."""
        key = hash(text) & _TWO_DIGITS
        left = tuple(known for known in self.of(text) if known != number)
        if len(left) > 1:
            self._numbers[key] = left
        elif left:
            self._numbers[key] = left[0]
        else:
            self._numbers.pop(key, None)

    def of(self, text: str) -> tuple[int, ...]:
        """The numbers of this text, perhaps with those of another, in the order in which they came."""
        known = self._numbers.get(hash(text) & _TWO_DIGITS, ())
        return (known,) if isinstance(known, int) else known
