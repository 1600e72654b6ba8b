"""Which faults come when: decided by the seed alone, so that the same ones can come again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

_FIRST_SECOND: Final = 4.0
_MEAN_GAP_SECONDS: Final = 3.5
_REST_SECONDS: Final = 3.0
"""What a fault had is left alone for so long when it is over."""


class Kind(msgspec.Struct, frozen=True):
    """A kind of fault.

    Attributes:
        name: as it is logged.
        weight: how often it comes, against the others.
        claims: what it has for itself while it lasts; `{}` stands for its target.
        seconds: the shortest and the longest that it lasts; zeros for what happens at once.
        on_node: whether its target is a node; else it has none.
    """

    name: str
    weight: int
    claims: tuple[str, ...] = ()
    seconds: tuple[float, float] = (0.0, 0.0)
    on_node: bool = False


KINDS: Final = (
    Kind("agent killed", 6, ("programs {}",), on_node=True),
    Kind("agent hung", 3, ("programs {}",), (1, 9), on_node=True),
    Kind("controller killed", 6, ("controller {}",), on_node=True),
    Kind("controller hung", 5, ("controller {}",), (1, 12), on_node=True),
    Kind("kubelet killed", 3, ("kubelet {}",), on_node=True),
    Kind("kubelet away", 2, ("kubelet {}",), (2, 10), on_node=True),
    Kind("containerd killed", 3, ("containerd {}",), on_node=True),
    Kind("containerd away", 2, ("containerd {}",), (1, 6), on_node=True),
    Kind("API server away", 3, ("api",), (1, 10)),
    Kind("etcd hung", 3, ("api",), (1, 8)),
    Kind(
        "power off",
        2,
        ("power", "programs {}", "controller {}", "kubelet {}", "containerd {}", "roll-out"),
        (1, 40),
        on_node=True,
    ),
    Kind("agents rolled out", 3, ("roll-out",), (10, 10)),
    Kind("controllers rolled out", 3, ("roll-out",), (10, 10)),
    Kind("helm upgrade", 2, ("roll-out", "api"), (25, 25)),
    Kind("pods deleted by force", 6),
    Kind("pods deleted", 4),
    Kind("scaled", 10),
    Kind("node cordoned", 1, ("cordon",), (5, 20), on_node=True),
    Kind("node drained", 2, ("cordon",), (5, 20), on_node=True),
)


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do.

    Attributes:
        at: seconds after the start.
        fault: name of its kind.
        begins: False for the end of what lasts.
        target: a node, or "".
        seconds: how long it lasts.
        dice: 0 to 1, for what else has to be chosen.
    """

    at: float
    fault: str
    begins: bool = True
    target: str = ""
    seconds: float = 0.0
    dice: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.seconds:.1f} s" if self.seconds and self.begins else ""
        end = "" if self.begins else " ends"
        return f"{self.fault}{f' on {self.target}' if self.target else ''}{lasts}{end}"


def schedule(seed: int, seconds: float, nodes: Sequence[str]) -> list[Step]:
    """The steps of a run in their order; what begins also ends in it."""
    steps: list[Step] = []
    for begin in _begins(random.Random(seed), nodes):
        if begin.at > seconds:
            break
        steps.append(begin)
        if begin.seconds:
            steps.append(msgspec.structs.replace(begin, at=begin.at + begin.seconds, begins=False))
    return sorted(steps, key=lambda step: step.at)


def claims_of(kind: Kind, target: str) -> frozenset[str]:
    """What a fault has for itself."""
    return frozenset(claim.format(target) for claim in kind.claims)


def _begins(dice: random.Random, nodes: Sequence[str]) -> Iterator[Step]:
    """Without end. Every turn draws equally often, whether or not its fault can come now."""
    now, busy = _FIRST_SECOND, dict[str, float]()
    while True:
        (kind,) = dice.choices(KINDS, [kind.weight for kind in KINDS])
        target = dice.choice(nodes)
        lasts, chosen, gap = dice.uniform(*kind.seconds), dice.random(), dice.expovariate(1 / _MEAN_GAP_SECONDS)
        claims = claims_of(kind, target)
        if all(busy.get(claim, 0.0) <= now for claim in claims):
            busy |= dict.fromkeys(claims, now + lasts + _REST_SECONDS)
            yield Step(at=now, fault=kind.name, target=target if kind.on_node else "", seconds=lasts, dice=chosen)
            now += gap
