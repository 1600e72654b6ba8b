"""StatefulSets, pods with two NICs, pools that close, addresses in conflict, foreign writers: under faults."""

from collections.abc import Awaitable, Callable

import pytest

from runtime.testing import run
from tests.simulation.stories import closing, conflict, rewriting, statefulset, two_nics
from tests.simulation.world import ROUGH_NETWORK, ROUGH_STORE, World, crashes, hangs, roll_overs

SEEDS = range(1, 4)
THREE = ("c1", "c2", "c3")


def play(world: World, seed: int, disturb: Callable[[World], Awaitable[None]] | None = None) -> str:
    return run(lambda: world.run(disturb), seed=seed)


@pytest.mark.parametrize("disturb", [crashes, roll_overs, hangs])
@pytest.mark.parametrize("seed", SEEDS)
def test_two_nics_have_all_or_nothing(seed: int, disturb: Callable[[World], Awaitable[None]]) -> None:
    stories = [two_nics(number) for number in range(4)]
    world = World(
        seed, pods=3, addresses=16, chances=ROUGH_STORE, weather=ROUGH_NETWORK, stories=stories, replicas=THREE,
        spread=disturb is hangs,
    )  # fmt: skip
    play(world, seed, disturb)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_nics_that_do_not_fit_leave_nothing(seed: int) -> None:
    """Two of these pods take the pool; the third waits until one goes."""
    play(World(seed, pods=1, addresses=4, stories=[two_nics(number) for number in range(3)]), seed)


@pytest.mark.parametrize("disturb", [crashes, roll_overs, hangs])
@pytest.mark.parametrize("seed", SEEDS)
def test_names_keep_their_addresses_wherever_their_pods_go(
    seed: int, disturb: Callable[[World], Awaitable[None]]
) -> None:
    world = World(
        seed,
        pods=3,
        chances=ROUGH_STORE,
        weather=ROUGH_NETWORK,
        stories=[statefulset("web", replicas=3, lives=3)],
        replicas=THREE,
        spread=disturb is hangs,
    )
    play(world, seed, disturb)


@pytest.mark.parametrize("seed", SEEDS)
def test_pools_that_close_give_out_nothing(seed: int) -> None:
    world = World(seed, pods=16, chances=ROUGH_STORE, weather=ROUGH_NETWORK, stories=[closing])
    world.arrival = 4.0
    play(world, seed, crashes)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_given_back_rests_and_what_is_in_conflict_stays_away_over_a_failover(seed: int) -> None:
    stories = [conflict(number) for number in range(3)]
    world = World(seed, pods=8, addresses=60, chances=ROUGH_STORE, weather=ROUGH_NETWORK, stories=stories)
    world.arrival, world.ages.rest = 10.0, 28.0
    play(world, seed, crashes)


@pytest.mark.parametrize("seed", SEEDS)
def test_foreign_writers_that_know_less_lose_nobodys_address(seed: int) -> None:
    world = World(seed, pods=8, chances=ROUGH_STORE, weather=ROUGH_NETWORK, stories=[rewriting])
    world.settle_seconds = 400.0
    play(world, seed)
