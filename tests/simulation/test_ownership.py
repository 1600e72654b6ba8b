"""Pools spread over three replicas: who owns what, what a hung or dead owner costs, and that nothing goes wrong."""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from actors.pools.peers import pool_key
from runtime.ownership import ranking
from runtime.testing import run
from tests.simulation.node import Violation
from tests.simulation.world import (
    ROUGH_NETWORK,
    ROUGH_STORE,
    World,
    crashes,
    hangs,
)

SEEDS = range(1, 9)
THREE = ("c1", "c2", "c3")


def play(world: World, seed: int, disturb: Callable[[World], Awaitable[None]] | None = None) -> str:
    return run(lambda: world.run(disturb), seed=seed)


def spread(seed: int, **options: object) -> World:
    """Three replicas, and pods that come all the while that something goes wrong."""
    world = World(seed, replicas=THREE, spread=True, **options)  # type: ignore[arg-type]
    world.arrival = 8.0
    return world


def writes(world: World, pool: str = "spiderippools") -> dict[str, int]:
    return {
        name: sum(n for call, n in store.outcomes.items() if call[:2] == ("update", pool))
        for name, store in world.stores.items()
    }


def test_in_peace_only_the_owners_write_and_nobody_meets_a_conflict() -> None:
    world = spread(1)
    play(world, 1)
    owners = {ranking(pool_key(name), THREE)[0] for name in ("v4", "v6")}
    assert {name for name, count in writes(world).items() if count} == owners


@pytest.mark.parametrize("seed", SEEDS)
def test_owners_that_hang_die_and_come_back(seed: int) -> None:
    play(spread(seed), seed, hangs)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_with_lost_doubled_and_late_messages(seed: int) -> None:
    play(spread(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, hangs)


@pytest.mark.parametrize("seed", range(1, 16))
def test_crashes_of_everybody_on_top(seed: int) -> None:
    play(spread(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, crashes)


def test_a_hung_owner_costs_no_more_than_a_second() -> None:
    """Every ADD after the hang comes through, in virtual time about as fast as the silence is noticed."""

    async def disturb(world: World) -> None:
        world.cut_off(ranking(pool_key("v4"), THREE)[0])
        await anyio.sleep_forever()

    world = spread(5)
    longest = 0.0

    original = world.call

    async def timed(node: str, invocation: object) -> object:
        nonlocal longest
        begun = anyio.current_time()
        result = await original(node, invocation)  # type: ignore[arg-type]
        if getattr(invocation, "verb", "") == "ADD":
            assert result is not None
            longest = max(longest, anyio.current_time() - begun)
        return result

    world.call = timed  # type: ignore[method-assign,assignment]
    play(world, 5, disturb)
    assert 0.25 < longest < 1.0


def test_the_same_seed_gives_the_same_hash() -> None:
    def digest(seed: int) -> str:
        return play(spread(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, hangs)

    digests = [digest(seed) for seed in range(1, 5)]
    assert digests == [digest(seed) for seed in range(1, 5)]


def test_negative_control_take_over_without_the_fence_breaks_an_invariant() -> None:
    broken = 0
    for seed in range(1, 13):
        try:
            play(spread(seed, fenced=False), seed, hangs)
        except BaseExceptionGroup as error:
            broken += error.subgroup(Violation) is not None
        except Violation:
            broken += 1
    assert broken >= 4
