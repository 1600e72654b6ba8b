"""Which nodes are dead, as far as can be seen from outside: since when they are in trouble, and their agents silent.

Pure: times are the caller's, in seconds of one clock that never goes back.
"""

from collections.abc import Collection, Iterable

from ipam.garbage import NodeState, dead

_LONGEST_PAUSE_SECONDS = 10.0
_SHORTEST_PAUSE_SECONDS = 0.5
_FIRST_WORD_SECONDS = 15.0
"""For agents to find the way to an observer that has just begun, whatever the grace."""


class NodeWatch:
    """What one observer has seen of nodes since it began to look."""

    def __init__(self, *, grace: float) -> None:
        """`grace` is how many seconds a node is waited for."""
        self._grace = grace
        self._pause = min(_LONGEST_PAUSE_SECONDS, max(grace / 4, _SHORTEST_PAUSE_SECONDS))
        self._probed: dict[str, float] = {}
        self._began = 0.0
        self._heard: dict[str, float] = {}
        self._trouble: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<NodeWatch {len(self._heard)} heard, {len(self._trouble)} in trouble>"

    def begin(self, now: float) -> None:
        """Look from now on: whoever was not heard before may have been silent since now, and no longer."""
        self._began = now
        self._probed.clear()
        self._heard.clear()
        self._trouble.clear()

    def deaf(self, now: float) -> None:
        """Until now an agent may have spoken without being heard: nobody's silence before counts."""
        self._began = now

    def heard(self, name: str, now: float) -> None:
        """The agent of a node spoke."""
        self._heard[name] = now

    def saw(self, name: str, state: NodeState, now: float) -> bool:
        """Take in what a node's object says; whether it is in trouble."""
        if state is NodeState.ALIVE:
            self._trouble.pop(name, None)
            return False
        self._trouble.setdefault(name, now)
        return True

    def is_dead(self, name: str, state: NodeState, now: float) -> bool:
        """Whether the kernel of a node in that state can be taken to carry nothing any more."""
        since = self._trouble.get(name, now)
        return dead(state, not_ready_for=now - since, silent_for=now - self._last_word(name, since), grace=self._grace)

    def to_probe(self, now: float) -> frozenset[str]:
        """Nodes in trouble whose agents should be made to say something now: else who only has nothing to say is dead.

        Each is returned once in a while only, and many times within the grace.
        """
        due = frozenset(
            name for name in self._trouble if self._probed.get(name, now - self._pause) <= now - self._pause
        )
        self._probed = {name: at for name, at in self._probed.items() if name in self._trouble} | dict.fromkeys(
            due, now
        )
        return due

    def look_at(self, name: str, now: float) -> float:
        """When to look at a node in trouble again."""
        dies = self.dies_at(name, now)
        return min(dies, now + self._pause) if dies > now else now + self._pause

    def dies_at(self, name: str, now: float) -> float:
        """When a node in trouble will be dead if nothing changes; in the past where it is."""
        since = self._trouble.get(name, now)
        return self._last_word(name, since) + self._grace

    @property
    def in_trouble(self) -> Collection[str]:
        """Nodes that are not ready, or have no object."""
        return self._trouble.keys()

    def speaking(self, now: float) -> frozenset[str]:
        """Nodes whose agents were heard within the grace."""
        return frozenset(name for name, at in self._heard.items() if now - at < self._grace)

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        known = frozenset(names)
        self._trouble = {name: since for name, since in self._trouble.items() if name in known}
        self._heard = {name: at for name, at in self._heard.items() if name in known}

    def _last_word(self, name: str, since: float) -> float:
        first = self._began + max(0.0, _FIRST_WORD_SECONDS - self._grace)
        return max(self._heard.get(name, first), since)
