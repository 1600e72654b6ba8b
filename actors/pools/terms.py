"""What the owner of a pool goes by, and whom it tells what happens."""

from collections.abc import Callable

from msgspec import Struct

from api.reasons import Reason
from ipam.history import Change
from ipam.overlap import Overlap
from ipam.ranges import Ranges


class Terms(Struct, frozen=True):
    """What a pool's owner goes by."""

    reserved: Callable[[int], Ranges]
    """The addresses of an IP version that no pool may grant."""
    max_records: int
    cooldown: float = 0.0
    """Seconds for which an address that was freed rests."""


def _ignore(pool: str, what: object) -> None:
    """Nobody wants to know."""


class Witnesses(Struct, frozen=True):
    """Who is told what happens to a pool, by the pool's name. They may not raise and may not wait."""

    noted: Callable[[str, tuple[Change, ...]], None] = _ignore
    """What was committed."""
    exhausted: Callable[[str, Reason], None] = _ignore
    """A batch had a claim for which there was no room."""
    overlapping: Callable[[str, Overlap], None] = _ignore
    """It was written into the pool's status that it shares addresses with others."""
    waits: Callable[[str, str], None] = _ignore
    """It was written into the status of a pool that is being deleted what it waits for."""
