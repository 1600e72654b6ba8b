"""What is asked of the owner of an application: have its pools, for a pod of it has come."""

from msgspec import Struct

from ipam.identity import Workload
from runtime.actor import Question


class Prepared(Struct, frozen=True, tag=True):
    """The pod's pools are there, by name. They may have fewer addresses than they are to have."""

    pools: tuple[str, ...]


class Unprepared(Struct, frozen=True, tag=True):
    """At least one of them is not there.

    Attributes:
        reason: what a user needs to act.
        lasting: whether it stays so until somebody changes an object.
    """

    reason: str
    lasting: bool


class Prepare(Question[Prepared | Unprepared], frozen=True, tag=True):
    """A pod of the application wants addresses.

    Attributes:
        workload: the application.
        annotations: the pod's that speak of automatic pools.
    """

    workload: Workload
    annotations: dict[str, str]
