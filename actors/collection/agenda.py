"""What the collector means to look at, and when: each thing once, at the earliest time that it was asked for."""

from msgspec import Struct


class OfPod(Struct, frozen=True):
    """The records of a name."""

    key: str
    again: bool = False
    """For the second time."""


class OfNode(Struct, frozen=True):
    """The records of a node."""

    name: str


class OfWorkload(Struct, frozen=True):
    """The kept records of a StatefulSet or of a virtual machine."""

    key: str


class OfPool(Struct, frozen=True):
    """All records of a pool."""

    name: str


class Everything(Struct, frozen=True):
    """Every pool, and the SpiderEndpoints."""


type Thing = OfPod | OfNode | OfWorkload | OfPool | Everything


class Agenda:
    """Things by the time at which they are due, on the clock port (seconds)."""

    def __init__(self) -> None:
        """Nothing is planned."""
        self._due: dict[Thing, float] = {}

    def __repr__(self) -> str:
        return f"<Agenda {len(self._due)} things>"

    def add(self, thing: Thing, *, at: float) -> None:
        """Look at a thing then, or before where that is planned already."""
        known = self._due.get(thing)
        if known is None or at < known:
            self._due[thing] = at

    def first(self) -> float:
        """When the next thing is due; infinite where nothing is planned."""
        return min(self._due.values(), default=float("inf"))

    def take(self, now: float) -> list[Thing]:
        """What is due, in the order in which it was planned; it is planned no more."""
        due = [thing for thing, at in self._due.items() if at <= now]
        for thing in due:
            del self._due[thing]
        return due

    def clear(self) -> None:
        """Plan nothing any more."""
        self._due.clear()
