"""The allocation protocol under faults, many seeds, with the invariants judged while it runs and at the end.

Two replicas own both pools at the same time; what each seed does repeats to the letter. A failing test names its seed.
"""

from collections.abc import Awaitable, Callable

import anyio
import pytest

from cni.journal import Key, State
from runtime.testing import run
from tests.simulation.node import Violation
from tests.simulation.stories import joined
from tests.simulation.world import NODES, ROUGH_NETWORK, ROUGH_STORE, World, crashes, roll_overs

SEEDS = range(1, 11)


def play(world: World, seed: int, disturb: Callable[[World], Awaitable[None]] | None = None) -> str:
    """Run one world in the deterministic loop and return its event hash."""
    return run(lambda: world.run(disturb), seed=seed)


def test_without_faults_every_pod_gets_and_gives_back_its_addresses() -> None:
    world = World(1)
    play(world, 1)
    committed = [call for call in world.stores["c1"].outcomes if call[0] == "update" and call[1] == "spiderippools"]
    assert committed, "the world wrote no pool at all"


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_doubled_and_late_messages(seed: int) -> None:
    play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_of_replicas_and_agents_on_top(seed: int) -> None:
    play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, crashes)


@pytest.mark.parametrize("seed", SEEDS)
def test_agents_that_replace_each_other_on_top(seed: int) -> None:
    play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, roll_overs)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_an_agent_left_after_its_successor_had_read_the_journal(seed: int) -> None:
    world, node = World(seed, pods=8), NODES[0]
    world.lifetime = (0.5, 0.6)
    owed: set[Key] = set()

    def owes_more() -> bool:
        return bool({entry.key for entry in world.entries() if entry.state is State.RELEASING} - owed)

    async def disturb(world: World) -> None:
        await anyio.sleep(0.5)
        while not world.busy(node):  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.0005)
        owed.update(entry.key for entry in world.entries() if entry.state is State.RELEASING)
        await world.roll_over(node, killed_when=owes_more)

    play(world, seed, disturb)  # and nobody starts again after that


@pytest.mark.timeout(600)
def test_a_crash_at_every_await_that_leaves_something() -> None:
    calm = World(7, pods=4)
    play(calm, 7)
    assert calm.points > 100
    died: set[str] = set()
    for point in range(1, calm.points + 1):
        world = World(7, pods=4, crash_at=point)
        try:
            play(world, 7)
        except BaseException as error:
            msg = f"crash at point {point}: {world.crashed_at}"
            raise AssertionError(msg) from error
        died.add(world.crashed_at.partition(" ")[2])
    assert {
        "before update spiderippools",
        "after update spiderippools",
        "after create spiderendpoints",
        "before journal.put adding",
        "after journal.put added",
        "after journal.put releasing",
        "after link.create",
        "before link.delete",
    } <= died


@pytest.mark.timeout(600)
def test_a_crash_at_the_first_await_of_each_kind_and_every_third_of_a_pod_with_three_nics() -> None:
    def world(crash_at: int = 0) -> World:
        return World(7, pods=1, crash_at=crash_at, stories=[joined(0)])

    calm = world()
    play(calm, 7)
    died: set[str] = set()
    for point in sorted({*range(1, calm.points + 1, 3), *calm.first_points.values()}):
        crashing = world(point)
        try:
            play(crashing, 7)
        except BaseException as error:
            msg = f"crash at point {point}: {crashing.crashed_at}"
            raise AssertionError(msg) from error
        died.add(crashing.crashed_at.partition(" ")[2])
    assert {"after patch pods", "after create spiderendpoints", "after link.create", "before journal.put added"} <= died


@pytest.mark.parametrize("seed", SEEDS)
def test_pods_with_three_nics_while_everything_fails(seed: int) -> None:
    stories = [joined(number, lives=2) for number in range(3)]
    play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK, pods=2, addresses=14, stories=stories), seed, crashes)


def test_the_same_seed_gives_the_same_hash() -> None:
    def digest(seed: int) -> str:
        return play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, crashes)

    digests = [digest(seed) for seed in range(1, 7)]
    assert digests == [digest(seed) for seed in range(1, 7)]
    assert len(set(digests)) == len(digests)


def test_more_pods_than_addresses_wait_their_turn() -> None:
    play(World(3, pods=24, addresses=8, chances=ROUGH_STORE, weather=ROUGH_NETWORK), 3)


def test_negative_control_without_the_fence_an_invariant_breaks() -> None:
    broken = 0
    for seed in range(1, 9):
        try:
            play(World(seed, fenced=False), seed)
        except BaseExceptionGroup as error:
            broken += error.subgroup(Violation) is not None
        except Violation:
            broken += 1
    assert broken >= 6


def test_negative_control_two_agents_that_do_not_claim_undo_each_others_work() -> None:
    for seed in SEEDS:
        try:
            play(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK, claims=False), seed, roll_overs)
        except (Violation, BaseExceptionGroup) as error:
            if isinstance(error, Violation) or error.subgroup(Violation) is not None:
                return
    pytest.fail("claims are not needed, or the invariants are not looked at")
