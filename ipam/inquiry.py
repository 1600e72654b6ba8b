"""What agents are to look for, what they were asked, and what they said: evidence about records. Pure.

An answer counts only for the record that its address was of when the question was put, and only for that question: one
that comes late, or twice, or was put by an earlier observer, could be older than the record. Questions are told apart
by numbers that are not used twice.

What an agent carries, or could not look for, is not asked for again at once. Times are the caller's, in seconds.
"""

from collections.abc import Callable, Collection, Iterable

from msgspec import Struct

from api.wire import Look, Noted
from ipam.garbage import Held, Known

REST_SECONDS = 20.0
"""Until an agent is asked for the same again."""
_AT_A_TIME = 512
"""Addresses in one question."""


class Denial(Struct, frozen=True):
    """The agent of a node neither knows a record's sandbox nor finds its address on any link."""

    held: Held
    superseded: bool
    """It knows a newer sandbox of the same pod and NIC."""


class Answer(Struct, frozen=True):
    """What came of a question."""

    denials: tuple[Denial, ...] = ()
    open: tuple[Held, ...] = ()
    """Carried by a link, though the agent does not know the sandbox, or not seen: to be asked for again."""


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
        self._rests: dict[tuple[str, Held], float] = {}
        """Until when an agent is not asked for a record again."""

    def __repr__(self) -> str:
        return f"<Inquiry {sum(map(len, self._wanted.values()))} addresses at {len(self._wanted)} nodes>"

    def want(self, node: str, held: Held, *, now: float) -> None:
        """Have the agent of a node look for a record's address, unless that was just done."""
        if self._rests.get((node, held), now) > now:
            return
        wanted = self._wanted.setdefault(node, {})
        if wanted.get(held.address) != held:
            wanted[held.address] = held
            self._new.add(node)

    def insist(self, node: str, held: Held) -> None:
        """As `want`, even if that was just done: only an agent that lives answers."""
        self._rests.pop((node, held), None)
        self._wanted.setdefault(node, {})[held.address] = held
        self._new.add(node)

    def rouse(self) -> None:
        """Ask for everything that is wanted again, though it was asked for just now."""
        self._rests.clear()

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
        self,
        node: str,
        number: int,
        looked: Iterable[Look],
        known: Known,
        *,
        now: float,
        foreign: Collection[Held] = (),
    ) -> Answer:
        """Take in an agent's answer. That a record which names no node was denied is remembered too, see `missing`.

        `foreign` records are not the pods' whose uid they have: that the agent knows such a pod says nothing.
        """
        question = self._questions.get(node)
        if question is None or not number or number != question.round:
            return Answer()
        del self._questions[node]
        carried = {look.address: look.carried for look in looked}
        denials: list[Denial] = []
        unsettled: list[Held] = []
        wanted = self._wanted.get(node, {})
        for address, held in question.held.items():
            if wanted.get(address) == held:
                del wanted[address]
            if held not in foreign and known.of(held.record):
                self._denied.pop(held, None)
                self._rests[node, held] = now + REST_SECONDS
            elif carried.get(address, True):
                self._denied.pop(held, None)
                self._rests[node, held] = now + REST_SECONDS
                unsettled.append(held)
            else:
                denials.append(Denial(held, superseded=held.placed and known.newer(held.record)))
                if not held.placed:
                    self._denied.setdefault(held, set()).add(node)
        if not wanted:
            self._wanted.pop(node, None)
        return Answer(tuple(denials), tuple(unsettled))

    def missing(self, held: Held, needed: Collection[str]) -> Collection[str]:
        """Which of these nodes' agents have not denied a record that names no node."""
        return frozenset(needed) - self._denied.get(held, set())

    def keep(self, nodes: Collection[str], has: Callable[[Held], bool], *, now: float) -> None:
        """Forget what is wanted of other nodes, and of records that are not there any more."""
        self._rests = {key: until for key, until in self._rests.items() if until > now}
        self._denied = {held: said for held, said in self._denied.items() if has(held)}
        left = {
            node: {address: held for address, held in wanted.items() if has(held)}
            for node, wanted in self._wanted.items()
            if node in nodes
        }
        self._wanted = {node: wanted for node, wanted in left.items() if wanted}

    def clear(self) -> None:
        """Want nothing any more."""
        for memory in (self._wanted, self._new, self._questions, self._denied, self._rests):
            memory.clear()
