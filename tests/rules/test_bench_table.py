"""A figure meets its goal or not, and the table says so."""

from __future__ import annotations

import pytest

from bench.kubelet.table import Row, number, text


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row(work="w", ours=1.0, reference=1.0, ratio_goal=1.0), True),
        (Row(work="w", ours=1.2, reference=1.0, ratio_goal=1.1), False),
        (Row(work="w", ours=2.0, goal=2.0), True),
        (Row(work="w", ours=2.1, goal=2.0), False),
        (Row(work="w", ours=2.1, reference=1.0), None),
        (Row(work="w", ours=0, reference=0, goal=0), True),
    ],
)
def test_whether_a_goal_is_met(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert {True: "yes", False: "NO", None: "-"}[met] == row.cells()[-1]


def test_columns_are_aligned_and_notes_follow() -> None:
    shown = text([Row(work="long work", ours=1.5, unit="s", note="why"), Row(work="w", ours=100)]).splitlines()
    assert shown[2].index("|") == shown[3].index("|") == len("long work ")
    assert shown[-1] == "  long work: why"


def test_counts_stay_whole_and_figures_keep_three_digits() -> None:
    assert [number(it) for it in (0.0, 13.0, 0.614, 51.53)] == ["0", "13", "0.61", "51.5"]
