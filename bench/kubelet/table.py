"""The figures as a table; whether a goal was met is said, never asserted."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final

import msgspec

_TITLES: Final = ("work", "ours", "REF", "ratio", "goal", "met")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of work.

    Attributes:
        work: what was done.
        ours: our figure.
        reference: that of the reference chain, which has none for what only we do.
        unit: of both.
        ratio_goal: the most that ours may be as a multiple of the reference.
        goal: the most that ours may be.
        note: what else is worth knowing.
    """

    work: str
    ours: float
    reference: float | None = None
    unit: str = ""
    ratio_goal: float | None = None
    goal: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """None without a reference."""
        return self.ours / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """None without a goal."""
        if self.ratio_goal is not None and self.ratio is not None:
            return self.ratio <= self.ratio_goal
        return self.ours <= self.goal if self.goal is not None else None

    def cells(self) -> tuple[str, ...]:
        """As the table shows them."""
        goal = "" if self.goal is None else f"<= {number(self.goal)}{_unit(self.unit)}"
        if self.ratio_goal is not None:
            goal = f"<= {self.ratio_goal:.1f} x REF"
        return (
            self.work,
            f"{number(self.ours)}{_unit(self.unit)}",
            "-" if self.reference is None else f"{number(self.reference)}{_unit(self.unit)}",
            "-" if self.ratio is None else f"{self.ratio:.2f}",
            goal or "-",
            {True: "yes", False: "NO", None: "-"}[self.met],
        )


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def number(value: float) -> str:
    """Three digits that mean something; counts as they are."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def stamp() -> str:
    """What every table says of its machine: how much else was going on matters to every figure."""
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{os.cpu_count()} cores, load {busy}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def text(rows: list[Row]) -> str:
    """The table, with the notes below it."""
    lines = [_TITLES, *(row.cells() for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_TITLES))]
    shown = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shown.insert(1, "-|-".join("-" * width for width in widths))
    notes = [f"  {row.work}: {row.note}" for row in rows if row.note]
    return "\n".join([*shown, *(["notes:"] if notes else []), *notes])
