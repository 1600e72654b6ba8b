"""Why a pool was taken or not: what errors, events, span attributes and `spiderpoolctl explain` print."""

from msgspec import Struct

_SHOWN = 10
"""Pools that the one-line form lists. An event's message may have 1024 characters, and a cluster hundreds of pools."""


class Reason(Struct, frozen=True):
    """A predicate that a pool did not fulfil, with what it wanted and what it saw."""

    predicate: str
    """The field or rule by its own word, for example ``nodeName``, ``disable``, ``full``."""
    pool: str
    wanted: str
    seen: str

    def __str__(self) -> str:
        return f"{self.predicate}: wanted {self.wanted or 'nothing'}, found {self.seen or 'nothing'}"


class Verdict(Struct, frozen=True):
    """What was decided about one pool for one NIC of the pod. An accepted pool needs no reason."""

    pool: str
    accepted: bool
    reason: Reason | None = None
    nic: str = ""
    """Empty where only one can be meant."""

    def __str__(self) -> str:
        if self.accepted:
            return f"{self.pool}: accepted" if self.reason is None else f"{self.pool}: accepted ({self.reason})"
        return f"{self.pool}: rejected" if self.reason is None else f"{self.pool}: rejected by {self.reason}"


class Explanation(Struct, frozen=True):
    """The verdicts on all pools that were considered, in the order in which they were."""

    considered: tuple[Verdict, ...] = ()

    def merged(self, *others: "Explanation") -> "Explanation":
        """Continue with later verdicts: a pool that was accepted as a candidate may still turn out to be full.

        The last verdict on a pool for a NIC wins and stands where the two were first named.
        """
        verdicts = {(verdict.nic, verdict.pool): verdict for verdict in self.considered}
        for other in others:
            verdicts |= {(verdict.nic, verdict.pool): verdict for verdict in other.considered}
        return Explanation(considered=tuple(verdicts.values()))

    def summary(self) -> str:
        """One line per pool and NIC, all of them."""
        return "\n".join(self._lines()) or "no pool was considered"

    def __str__(self) -> str:
        """All in one line for errors and logs; the first ten pools where there are more."""
        if not self.considered:
            return "no pool was considered"
        shown = "; ".join(self._lines()[:_SHOWN])
        more = len(self.considered) - _SHOWN
        return f"{shown}; and {more} more" if more > 0 else shown

    def _lines(self) -> list[str]:
        """The NIC is said where there are several."""
        several = len({verdict.nic for verdict in self.considered}) > 1
        return [f"{verdict.nic} {verdict}" if several and verdict.nic else str(verdict) for verdict in self.considered]
