"""What is asked of the owner of a SpiderSubnet: automatic pool and subnet change together, so one actor writes both."""

from msgspec import Struct

from runtime.actor import Question


class AutoPool(Struct, frozen=True, tag=True):
    """An automatic pool as a workload wants it.

    Attributes:
        name: of the SpiderIPPool; one that is there is changed, else it is made.
        size: addresses that it is to have, excludeIPs and reserved ones not counted.
        labels, annotations: that it is to have, besides those that every pool has.
        affinity: labels of podAffinity.matchLabels: which application may use it.
    """

    name: str
    size: int
    labels: dict[str, str]
    annotations: dict[str, str]
    affinity: dict[str, str]


class Provide(Question["Provided | NotProvided"], frozen=True, tag=True):
    """Have this pool in the subnet. Answered with `Provided` when it is so, else with `NotProvided`."""

    subnet: str
    pool: AutoPool


class Discard(Question["Discarded | NotProvided"], frozen=True, tag=True):
    """Delete this automatic pool. Answered with `Discarded`; its addresses come back when no pod has one any more.

    With `NotProvided` where the pool is not an automatic one of that subnet: it stays.
    """

    subnet: str
    pool: str


class Provided(Struct, frozen=True, tag=True):
    """The pool has exactly as many addresses as were asked for."""

    pool: str


class Discarded(Struct, frozen=True, tag=True):
    """The pool is being deleted, or has gone."""

    pool: str


class NotProvided(Struct, frozen=True, tag=True):
    """The pool is as it was.

    Attributes:
        reason: what a user needs to act.
        lasting: whether it stays so until somebody changes an object; otherwise it may be asked again: addresses are
            short, or those in use are more than wanted.
    """

    pool: str
    reason: str
    lasting: bool
