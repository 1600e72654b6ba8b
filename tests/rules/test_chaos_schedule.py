"""The faults of a chaos run: the same for the same seed, none twice on the same thing at once, none without an end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.chaos.schedule import KINDS, claims_of, schedule

NODES = ("n1", "n2")


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50)
def test_a_seed_makes_the_same_faults_and_a_longer_run_begins_alike(seed: int) -> None:
    long, short = schedule(seed, 300, NODES), schedule(seed, 60, NODES)
    assert long == schedule(seed, 300, NODES)
    assert [step for step in short if step.begins] == [step for step in long if step.begins and step.at <= 60]


def test_another_seed_makes_other_faults() -> None:
    assert schedule(1, 60, NODES) != schedule(2, 60, NODES)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50)
def test_what_begins_ends_and_nothing_is_broken_twice_at_once(seed: int) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    held: set[str] = set()
    for step in schedule(seed, 300, NODES):
        claims = claims_of(kinds[step.fault], step.target)
        if not step.begins:
            assert claims <= held
            held -= claims
            continue
        assert not claims & held, step
        if step.seconds:
            held |= claims
    assert not held


def test_every_kind_comes() -> None:
    assert {step.fault for seed in range(20) for step in schedule(seed, 600, NODES)} == {kind.name for kind in KINDS}
