"""Strangers on the segment: pods get other addresses in the same ADD, whoever dies meanwhile, and nothing is left."""

import msgspec
import pytest

from actors.node import detection
from api.kinds import IPPOOL
from tests.simulation.node import Violation
from tests.simulation.test_allocation import play
from tests.simulation.world import ROUGH_NETWORK, ROUGH_STORE, World, crashes

STRANGERS = {"10.6.0.10": "02:00:00:00:99:10", "10.6.0.12": "02:00:00:00:99:12", "fd00:6::a": "02:00:00:00:99:0a"}


def strange(world: World) -> World:
    world.strangers.update(STRANGERS)
    return world


def withheld(world: World) -> dict[str, str]:
    """Addresses in quarantine, each with why."""
    return {
        address: entry["reason"]
        for pool in world.truth.peek(IPPOOL)
        for address, entry in msgspec.json.decode(pool.status.withheld_ips or "{}").items()
        if "conflict" in entry["reason"]
    }


def test_nobody_gets_what_a_stranger_has_and_each_is_met_once() -> None:
    world = strange(World(3))
    play(world, 3)
    met = withheld(world)
    assert {address: STRANGERS[address] in why for address, why in met.items()} == dict.fromkeys(STRANGERS, True)


@pytest.mark.parametrize("seed", range(1, 9))
def test_faults(seed: int) -> None:
    world = strange(World(seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK))
    play(world, seed, crashes)
    assert withheld(world)


@pytest.mark.timeout(600)
def test_a_crash_at_every_await_that_leaves_something() -> None:
    calm = strange(World(7, pods=2))
    play(calm, 7)
    assert withheld(calm)
    died: set[str] = set()
    for point in range(1, calm.points + 1):
        world = strange(World(7, pods=2, crash_at=point))
        try:
            play(world, 7)
        except BaseException as error:
            msg = f"crash at point {point}: {world.crashed_at}"
            raise AssertionError(msg) from error
        died.add(world.crashed_at.partition(" ")[2])
    assert {"before probe", "after probe", "after update spiderippools"} <= died


def test_who_does_not_look_gives_out_what_a_stranger_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(detection.Detection, "_plan", lambda *_: [])
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group, or what it holds
        play(strange(World(3)), 3)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Violation)
    assert STRANGERS["10.6.0.10"] in str(error)
