"""A hundred worlds drawn at random; `make simulate SEEDS=10000` plays more of them."""

import multiprocessing
import os

import pytest

from tests.simulation.swarm import Plan, attempt, draw, failure, smallest
from tests.simulation.test_mutations import everything_is_freed

WORLDS = 100


@pytest.mark.timeout(900)
def test_nothing_goes_wrong_in_a_hundred_random_worlds() -> None:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        failed = [why for _, why in pool.imap_unordered(attempt, range(1, WORLDS + 1), chunksize=4) if why]
    assert not failed, "\n".join(failed)


def test_the_worlds_differ_and_a_number_is_always_the_same_one() -> None:
    plans = [draw(seed) for seed in range(1, 101)]
    assert plans == [draw(seed) for seed in range(1, 101)]
    assert {plan.disturb for plan in plans} == {"", "crashes", "roll-overs", "hangs"}
    assert {name for plan in plans for name in plan.stories} == {
        "names",
        "duos",
        "trios",
        "named trios",
        "closing",
        "conflicts",
        "foreign",
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_world_that_goes_wrong_is_told_and_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_is_freed(monkeypatch)
    plan = Plan(seed=1, pods=2, stories=("names", "closing"))
    assert "web-" in failure(plan)
    least = smallest(plan)
    assert (least.pods, least.stories) == (0, ("names",))
