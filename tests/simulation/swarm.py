"""Worlds drawn at random: which faults, which workloads, how many replicas, all from one number.

A world that breaks an invariant is made smaller as long as it still breaks one, so that what is printed is the least
that is known to fail.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from runtime.testing import run
from runtime.testing.store import Chances
from runtime.testing.transport import Weather
from tests.simulation.stories import closing, conflict, joined, rewriting, statefulset, two_nics
from tests.simulation.world import ROUGH_NETWORK, ROUGH_STORE, Story, World, crashes, hangs, roll_overs

type Disturbance = Callable[[World], Awaitable[None]]

_DISTURBANCES: Final[dict[str, Disturbance]] = {"crashes": crashes, "roll-overs": roll_overs, "hangs": hangs}
_STORIES: Final[dict[str, Callable[[], list[Story]]]] = {
    "names": lambda: [statefulset("web", replicas=2, lives=3)],
    "duos": lambda: [two_nics(number) for number in range(3)],
    "named trios": lambda: [statefulset("db", replicas=1, lives=3, networks=True)],
    "trios": lambda: [joined(number) for number in range(2)],
    "closing": lambda: [closing],
    "conflicts": lambda: [conflict(number) for number in range(2)],
    "foreign": lambda: [rewriting],
}


_NAMED: Final = frozenset({"names", "named trios"})
"""Stories of pods whose SpiderEndpoints no pod owns."""


class Plan(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One world."""

    seed: int
    pods: int = 6
    addresses: int = 24
    replicas: int = 2
    spread: bool = False
    store: bool = False
    """Whether the store fails."""
    network: bool = False
    """Whether the network does."""
    disturb: str = ""
    """What else happens to processes; see `_DISTURBANCES`."""
    stories: tuple[str, ...] = ()
    forgetful: float = 0.0
    rest: bool = False
    """Whether it is looked at how long addresses rest."""

    def __str__(self) -> str:
        return msgspec.json.encode(self).decode()


def draw(seed: int) -> Plan:
    """The plan of a number."""
    dice = random.Random(f"swarm {seed}")
    spread = dice.random() < 0.5
    disturb = dice.choice(["", "crashes", "crashes", "roll-overs", *(["hangs", "hangs"] if spread else [])])
    stories = tuple(name for name in _STORIES if dice.random() < 0.3)
    foreign = "foreign" in stories
    if foreign:
        # They drop what is withheld, and only an owner that remembers puts it back: not one that has just begun.
        stories = tuple(name for name in stories if name != "conflicts")
    return Plan(
        seed=seed,
        pods=dice.randint(1, 12),
        addresses=dice.choice([12, 20, 60]),
        # What foreign writers leave is for who hears all agents: of replicas that do not know each other nobody does.
        replicas=3 if spread else 1 if foreign else dice.choice([1, 2, 3]),
        spread=spread,
        store=dice.random() < 0.7,
        network=dice.random() < 0.7,
        # Foreign writers take away what says where an address is: who dies then is found later than a test waits.
        disturb="" if foreign else disturb,
        stories=stories,
        forgetful=dice.choice([0.0, 0.0, 0.3]) if not foreign else 0.0,
        rest=not foreign and dice.random() < 0.5,
    )


def play(plan: Plan) -> None:
    """Live through it. Raises what went wrong."""
    stories = [story for name in plan.stories for story in _STORIES[name]()]
    world = World(
        plan.seed,
        chances=ROUGH_STORE if plan.store else Chances(),
        weather=ROUGH_NETWORK if plan.network else Weather(),
        pods=plan.pods,
        addresses=plan.addresses,
        replicas=tuple(f"c{number + 1}" for number in range(plan.replicas)),
        spread=plan.spread,
        forgetful=plan.forgetful,
        stories=stories,
    )
    if plan.rest:
        world.ages.rest = 28.0
    if plan.forgetful:
        world.settle_seconds = 400.0
    if plan.disturb == "crashes" and not _NAMED.isdisjoint(plan.stories):
        # A collector that dies between a record and its SpiderEndpoint leaves the latter to the slow audit.
        world.cleaning, world.settle_seconds = True, 700.0
    if "foreign" in plan.stories:
        world.settle_seconds = 1500.0  # what they leave of a pod with two NICs is found by the slow audit, in two looks
    disturb = _DISTURBANCES[plan.disturb] if plan.disturb else None
    run(lambda: world.run(disturb), seed=plan.seed)


def failure(plan: Plan) -> str:
    """What goes wrong in a world, in a line; empty when all is well."""
    try:
        play(plan)
    except BaseException as error:  # an assertion, a deadlock, a time-out: all are told
        if isinstance(error, KeyboardInterrupt):
            raise
        leaf: BaseException = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        return f"{type(leaf).__name__}: {leaf}"
    return ""


def attempt(seed: int) -> tuple[int, str]:
    """The world of a number; returns the number and what goes wrong, with the command that shows the least of it."""
    why = failure(draw(seed))
    if why:
        why += f"\n  the least that fails: make simulate PLAN='{smallest(draw(seed))}'"
    return seed, why


def smallest(plan: Plan, *, tries: int = 40) -> Plan:
    """A world that is not bigger and still goes wrong."""
    while tries > 0:
        for smaller in _smaller(plan):
            tries -= 1
            if failure(smaller):
                plan = smaller
                break
            if tries <= 0:
                break
        else:
            break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    for name in plan.stories:
        yield structs.replace(plan, stories=tuple(other for other in plan.stories if other != name))
    changes: list[dict[str, Any]] = [
        {"disturb": ""},
        {"store": False},
        {"network": False},
        {"forgetful": 0.0},
        {"rest": False},
        {"spread": False, "replicas": 1},
        {"pods": plan.pods // 2},
        {"pods": plan.pods - 1},
    ]
    for change in changes:
        smaller = structs.replace(plan, **change)
        if smaller != plan and smaller.pods >= 0:
            yield smaller
