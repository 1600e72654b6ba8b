"""Whether the other end of a connection is still there: pure decisions, the connection does what they say.

Detection has to be fast where somebody waits and cost nothing where nobody does. So the two are told apart:

* **Nobody waits**: a ping every few seconds and half a minute until the connection is given up (`Connection.watch`).
  That is a few wake-ups a minute for each connection, and the answers keep the other end's own vigil asleep.
* **A request waits**: when it has waited `probe` seconds and nothing was heard in that time, a ping asks whether the
  other end is alive (a hung process does not answer, a slow handler does). Without an answer it is *silent* after
  `suspect` seconds of waiting: the caller sends the request elsewhere, the connection stays for the case that the other
  end only slept. After `broken` seconds the connection is given up. While pings are answered they become rarer, up to
  one a second: a request that waits long for a good reason is not paid for with ten wake-ups a second.

A vigil that is itself late has slept with its whole process: what came meanwhile has not been read yet, and it begins
anew instead of accusing others.
"""

from msgspec import Struct

_LONGEST_PROBE = 1.0


class Patience(Struct, frozen=True, kw_only=True):
    """How long to wait for a word while a request waits. All in seconds."""

    probe: float = 0.1
    suspect: float = 0.3
    broken: float = 3.0


class Verdict(Struct, frozen=True):
    """What is to be done now, and when to look again (clock seconds)."""

    again: float
    ping: bool = False
    silent: bool = False
    """The other end owes an answer and is not to be relied on for now."""
    broken: bool = False


class Vigil:
    """One connection, for as long as requests wait on it. `begin` when the first does, `look` when told to."""

    def __init__(self, patience: Patience) -> None:
        """Nobody waits yet."""
        self._patience = patience
        self._since = 0.0
        self._due = 0.0
        self._asked: float | None = None
        self._pause = patience.probe

    def __repr__(self) -> str:
        return f"<Vigil since {self._since:.3f}, asked {self._asked}>"

    def begin(self, now: float) -> float:
        """A request waits from now on; returns when to look."""
        self._since, self._asked, self._pause = now, None, self._patience.probe
        self._due = now + self._pause
        return self._due

    def look(self, now: float, heard: float) -> Verdict:
        """`heard` is when the last byte came."""
        patience = self._patience
        if now > self._due + patience.probe:
            self._since, self._asked = now, None
        if self._asked is not None and heard >= self._asked:
            self._asked = None
            self._pause = min(2 * self._pause, _LONGEST_PROBE)
        since = max(self._since, heard)
        quiet = now - since
        if quiet >= patience.broken:
            return Verdict(again=now, broken=True)
        ping = self._asked is None and quiet >= self._pause - 1e-6
        if ping:
            self._asked = now
        silent = False
        again = since + self._pause
        if self._asked is not None:
            # Both: it has been quiet for that long, and it was asked long enough ago to have answered.
            end = max(since + patience.suspect, self._asked + patience.suspect - patience.probe)
            silent = now >= end - 1e-6
            if silent:
                again = min(now + _LONGEST_PROBE, since + patience.broken)
                ping = ping or now - self._asked >= _LONGEST_PROBE
            else:
                again = end
        self._due = again
        return Verdict(again=again, ping=ping, silent=silent)
