"""What an attempt at changing a subnet is given, and what comes of it (`actors.subnets.change`)."""

from collections.abc import Callable, Mapping

from msgspec import Struct

from actors.subnets.messages import Discard, Discarded, NotProvided, Provide, Provided
from api.ippool import SpiderIPPool
from api.subnet import SpiderSubnet
from ipam.ranges import Ranges

type Ask = Provide | Discard
type Answer = Provided | Discarded | NotProvided


class Sight(Struct, frozen=True):
    """What a replica sees besides the store.

    Attributes:
        pools: those with that CIDR, by name, as last seen or written here; may lag.
        first: the name of the subnet whose the pools are, where an older one has the same CIDR: two that were made at
            the same moment, or without admission.
        wrote: takes in a pool as it was read or written.
        gone: takes in that there is no pool of a name.
        reserved: what no pool may be given, by IP version.
        wall: unix seconds.
    """

    pools: Callable[[str], Mapping[str, SpiderIPPool]]
    first: Callable[[SpiderSubnet], str]
    wrote: Callable[[SpiderIPPool], None]
    gone: Callable[[str], None]
    reserved: Callable[[int], Ranges]
    wall: Callable[[], float]


class Outcome(Struct):
    """What came of an attempt.

    Attributes:
        answers: by the place of the ask; who has none asks again.
        trouble: what the store said, where it is to be asked again.
        overtaken: whether somebody else wrote first.
        waits: what a subnet that is being deleted waits for, where that is new.
    """

    answers: dict[int, Answer]
    trouble: Exception | None = None
    overtaken: bool = False
    waits: str = ""
