"""Which rules there are for which kind: what a webhook server, and a program without one, ask.

A kind may have several sets of rules, each about something else: they complete an object one after the other, and what
any of them says against it is said.
"""

from collections.abc import Mapping
from typing import Any

from admission.review import Judgement, Review, Rules
from api.kinds import Kind


class Rulebook:
    """Rules by kind. A kind without any is written as it comes."""

    def __init__(self) -> None:
        self._rules: dict[Kind[Any], tuple[Rules[Any], ...]] = {}

    def __repr__(self) -> str:
        return f"<Rulebook of {', '.join(sorted(kind.kind for kind in self._rules))}>"

    def add[T](self, kind: Kind[T], *rules: Rules[T]) -> None:
        """Have these rules for a kind, behind those that it has."""
        self._rules[kind] = (*self._rules.get(kind, ()), *rules)

    @property
    def kinds(self) -> Mapping[str, Kind[Any]]:
        """Those that have rules, by the word that stands in an object's `kind`."""
        return {kind.kind: kind for kind in self._rules}

    def complete[T](self, kind: Kind[T], review: Review[T]) -> T:
        """The object with what its author may leave out."""
        for rules in self._rules.get(kind, ()):
            review = Review(review.operation, rules.complete(review), review.old)
        return review.new

    def judge[T](self, kind: Kind[T], review: Review[T]) -> Judgement:
        """All that is wrong, and all there is to warn of."""
        found = [rules.judge(review) for rules in self._rules.get(kind, ())]
        return Judgement(
            tuple(error for one in found for error in one.errors),
            tuple(warning for one in found for warning in one.warnings),
        )
