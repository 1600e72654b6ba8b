"""Patterns for pool names, as users know them from the shell and as Go's `filepath.Match` reads them. Pure.

`*` stands for any characters but `/`, `?` for one of them; `[a-c]` and `[^a-c]` for one character that is, or is not,
in the ranges; a backslash takes its meaning from the character behind it. A pattern fits a whole name.

Two differences: a malformed pattern is always refused, where Go reads it only as far as a name fits; and characters are
compared, where Go looks at bytes while it skips for a `*`, which no Kubernetes name shows.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

_SEPARATOR: Final = "/"
_MARKS: Final = frozenset("*?[")


class PatternError(ValueError):
    """A pattern that cannot be read.

    Attributes:
        pattern: as written.
        problem: what is wrong with it.
    """

    def __init__(self, pattern: str, problem: str) -> None:
        super().__init__(f"pattern {pattern!r}: {problem}")
        self.pattern = pattern
        self.problem = problem


class _Star(Struct, frozen=True):
    """Any characters but the separator, or none."""


class _Any(Struct, frozen=True):
    """One character but the separator."""


class _One(Struct, frozen=True):
    """This character."""

    character: str


class _Class(Struct, frozen=True):
    """One character of these ranges, or none of them; the separator is no exception here."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool


type _Token = _Star | _Any | _One | _Class


class Pattern(Struct, frozen=True):
    """A pattern that was read; see `parse`."""

    tokens: tuple[_Token, ...]

    def matches(self, name: str) -> bool:
        """Whether the whole name fits. In the worst case it takes as many steps as name times pattern is long."""
        at = token = 0
        star = resume = -1
        while at < len(name) or token < len(self.tokens):
            if token < len(self.tokens):
                current = self.tokens[token]
                if isinstance(current, _Star):
                    star, resume = token, at
                    token += 1
                    continue
                if at < len(name) and _fits(current, name[at]):
                    token, at = token + 1, at + 1
                    continue
            # Only the last star is asked to take one more: what those before it could take, it can take as well.
            if star < 0 or resume >= len(name) or name[resume] == _SEPARATOR:
                return False
            resume += 1
            token, at = star + 1, resume
        return True


def is_pattern(name: str) -> bool:
    """Whether this is meant as a pattern and not as a name."""
    return not _MARKS.isdisjoint(name)


def parse(pattern: str) -> Pattern:
    """Read a pattern. Raises `PatternError`: an open or empty `[...]`, half a range, a backslash at the end."""
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        match pattern[at]:
            case "*":
                if not tokens or not isinstance(tokens[-1], _Star):
                    tokens.append(_Star())
                at += 1
            case "?":
                tokens.append(_Any())
                at += 1
            case "[":
                found, at = _class(pattern, at + 1)
                tokens.append(found)
            case _:
                character, at = _character(pattern, at)
                tokens.append(_One(character))
    return Pattern(tokens=tuple(tokens))


def expand(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that fit, in their order. Raises `PatternError`."""
    parsed = parse(pattern)
    return [name for name in names if parsed.matches(name)]


def _fits(token: _Any | _One | _Class, character: str) -> bool:
    match token:
        case _Any():
            return character != _SEPARATOR
        case _One(wanted):
            return character == wanted
        case _Class(ranges, negated):
            return any(low <= character <= high for low, high in ranges) != negated


def _class(pattern: str, at: int) -> tuple[_Class, int]:
    """Read on behind `[`; returns where the pattern goes on."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and pattern.startswith("]", at)):
        low, at = _bound(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _bound(pattern, at + 1)
        ranges.append((low, high))
    return _Class(ranges=tuple(ranges), negated=negated), at + 1


def _bound(pattern: str, at: int) -> tuple[str, int]:
    """One end of a range: `-` and `]` need a backslash."""
    if at >= len(pattern):
        raise PatternError(pattern, "[ without ]")
    if pattern[at] == "]":
        raise PatternError(pattern, "[] holds no character, or half a range; ] itself is written \\]")
    if pattern[at] == "-":
        raise PatternError(pattern, "a range without its first character; - itself is written \\-")
    return _character(pattern, at)


def _character(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at] != "\\":
        return pattern[at], at + 1
    if at + 1 >= len(pattern):
        raise PatternError(pattern, "it ends with a backslash")
    return pattern[at + 1], at + 2
