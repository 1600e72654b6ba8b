"""Whether a request can still be served in time: told at its door, rather than after it has waited in vain.

A queue that is longer than what can be served before the deadlines of those in it does harm: whoever waits in it is
served when nobody listens any more, and asks again. The rate at which requests have ended lately says how long the one
that comes now would wait.
"""

from typing import Final

_FEW: Final = 256
"""So many at once are always taken: over less than that nothing can be said from a rate."""
_WINDOW: Final = 5.0
"""Seconds over which the rate is remembered."""


class Pace:
    """Counts requests that begin and end. Times are those of the monotonic clock, in seconds."""

    def __init__(self) -> None:
        """Nothing has ended yet."""
        self._ended = 0.0
        self._busy = 0.0
        self._at: float | None = None
        self.under_way = 0

    def __repr__(self) -> str:
        return f"<Pace {self.under_way} under way, {self.rate:.0f} a second>"

    @property
    def rate(self) -> float:
        """Requests that ended in a second of work, lately; 0 while that is not known."""
        return self._ended / self._busy if self._busy > 0 else 0.0

    def takes(self, *, now: float, deadline: float) -> bool:
        """Whether a request that comes now would end before its deadline, by all that is known."""
        self._pass(now)
        if self.under_way < _FEW or self._busy < 1.0:
            return True
        return self.under_way <= self.rate * (deadline - now)

    def begun(self, *, now: float) -> None:
        """One more is under way."""
        self._pass(now)
        self.under_way += 1

    def ended(self, *, now: float) -> None:
        """One less is."""
        self._pass(now)
        self.under_way -= 1
        self._ended += 1

    def _pass(self, now: float) -> None:
        """Time in which nothing was under way does not count, and old times count less and less."""
        if self._at is not None and self.under_way:
            passed = now - self._at
            faded = 0.5 ** (passed / _WINDOW)
            self._ended *= faded
            self._busy = self._busy * faded + passed
        self._at = now
