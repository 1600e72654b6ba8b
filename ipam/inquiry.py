"""What agents are to look for, what they were asked, and what they said: evidence about records. Pure.

An answer counts only for the record that its address was of when the question was put, and only for that question: one
that comes late, or twice, or was put by an earlier observer, could be older than the record. Questions are told apart
by numbers that are not used twice.
"""

from collections.abc import Callable, Collection, Iterable

from msgspec import Struct

from api.wire import Look, Noted
from ipam.garbage import Held, Known

_AT_A_TIME = 512
"""Addresses in one question."""


class Denial(Struct, frozen=True):
    """The agent of a node neither knows a record's sandbox nor finds its address on any link."""

    held: Held
    superseded: bool
    """It knows a newer sandbox of the same pod and NIC."""


class _Question(Struct, frozen=True):
    round: int
    held: dict[str, Held]
    """By address, as it was then."""


class Inquiry:
    """Of one observer."""

    def __init__(self) -> None:
        """Nothing is wanted."""
        self._wanted: dict[str, dict[str, Held]] = {}
        self._new: set[str] = set()
        self._questions: dict[str, _Question] = {}
        self._denied: dict[Held, set[str]] = {}
        """Of records that name no node: whose agents have denied them."""

    def __repr__(self) -> str:
        return f"<Inquiry {sum(map(len, self._wanted.values()))} addresses at {len(self._wanted)} nodes>"

    def want(self, node: str, held: Held) -> None:
        """Have the agent of a node look for a record's address."""
        wanted = self._wanted.setdefault(node, {})
        if wanted.get(held.address) != held:
            wanted[held.address] = held
            self._new.add(node)

    def wants(self, node: str, held: Held) -> bool:
        """Whether the agent of a node is to look for it, or was asked."""
        return self._wanted.get(node, {}).get(held.address) == held

    def question(self, node: str, number: int) -> Noted:
        """All that is wanted of a node, as a question; `number` is a fresh one above 0. Empty where nothing is."""
        self._new.discard(node)
        wanted = self._wanted.get(node)
        if not wanted:
            return Noted()
        some = dict(list(wanted.items())[:_AT_A_TIME])
        self._questions[node] = _Question(number, some)
        return Noted(look=tuple(some), round=number)

    def unasked(self) -> list[str]:
        """Nodes of which something is wanted that no question has asked for yet; each is returned once."""
        nodes = sorted(self._new)
        self._new.clear()
        return nodes

    def answer(
        self, node: str, number: int, looked: Iterable[Look], known: Known, *, foreign: Collection[Held] = ()
    ) -> list[Denial]:
        """The records that an agent's answer denies; of those that name no node it is remembered, see `missing`.

        What the agent could not see it has left out, and is wanted still. `foreign` records are not the pods' whose
        uid they have: that the agent knows such a pod says nothing.
        """
        question = self._questions.get(node)
        if question is None or not number or number != question.round:
            return []
        del self._questions[node]
        denials: list[Denial] = []
        wanted = self._wanted.get(node, {})
        for look in looked:
            held = question.held.get(look.address)
            if held is None:
                continue
            if wanted.get(look.address) == held:
                del wanted[look.address]
            if look.carried or (held not in foreign and known.of(held.record)):
                self._denied.pop(held, None)
            elif held.placed:
                denials.append(Denial(held, superseded=known.newer(held.record)))
            else:
                self._denied.setdefault(held, set()).add(node)
                denials.append(Denial(held, superseded=False))
        if not wanted:
            self._wanted.pop(node, None)
        return denials

    def missing(self, held: Held, needed: Collection[str]) -> Collection[str]:
        """Which of these nodes' agents have not denied a record that names no node."""
        return frozenset(needed) - self._denied.get(held, set())

    def keep(self, nodes: Collection[str], has: Callable[[Held], bool]) -> None:
        """Forget what is wanted of other nodes, and of records that are not there any more."""
        self._denied = {held: said for held, said in self._denied.items() if has(held)}
        left = {
            node: {address: held for address, held in wanted.items() if has(held)}
            for node, wanted in self._wanted.items()
            if node in nodes
        }
        self._wanted = {node: wanted for node, wanted in left.items() if wanted}

    def clear(self) -> None:
        """Want nothing any more."""
        for memory in (self._wanted, self._new, self._questions, self._denied):
            memory.clear()
