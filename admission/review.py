"""What every kind's rules have: an object is completed, then judged, by the request and a snapshot of the cluster.

The webhook server and the owner of an object ask the same rules: two replicas may admit at the same moment what does
not go together, and then the owner sees it.
"""

from typing import Literal, Protocol

from msgspec import Struct

from admission.errors import FieldError

type Operation = Literal["CREATE", "UPDATE", "DELETE"]


class Review[T](Struct, frozen=True):
    """What is asked.

    Attributes:
        operation: what is to be done.
        new: the object as it would be; as it is, when it is to be deleted.
        old: as it is, when it is to be updated.
    """

    operation: Operation
    new: T
    old: T | None = None


class Judgement(Struct, frozen=True):
    """What comes of it.

    Attributes:
        errors: all that is wrong; empty when it is admitted.
        warnings: what `kubectl` prints though it is admitted.
    """

    errors: tuple[FieldError, ...] = ()
    warnings: tuple[str, ...] = ()


class Rules[T](Protocol):
    """Of one kind. Neither function raises for anything that the kind's schema lets through."""

    def complete(self, review: Review[T]) -> T:
        """The object with what its author may leave out. What is wrong stays as it is: `judge` says so."""

    def judge(self, review: Review[T]) -> Judgement:
        """Whether it may be written."""
