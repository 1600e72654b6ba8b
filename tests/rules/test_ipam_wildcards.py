"""Patterns for pool names: what each part stands for, against a naive reading, and what cannot be read."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ipam.wildcards import PatternError, expand, is_pattern, parse


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("lan", ["lan"], ["lan4", "la", "Lan", ""]),
        ("lan*", ["lan", "lan4", "lan-a.b"], ["la", "wlan", "lan/4"]),
        ("*lan", ["lan", "wlan", "lanlan"], ["lan4", "a/lan"]),
        ("*-*-v4", ["a-b-v4", "--v4", "a-b-c-v4"], ["a-v4", "a-b-v6"]),
        ("**", ["", "x"], ["a/b"]),
        ("v?", ["v4", "v6", "vü"], ["v", "v46", "v/"]),
        ("v[46]", ["v4", "v6"], ["v5", "v", "v46"]),
        ("v[4-6x]", ["v4", "v5", "v6", "vx"], ["v3", "v7", "v-"]),
        ("v[^4-6]", ["v3", "vx", "v/"], ["v4", "v5", "v6", "v"]),
        ("v[a^]", ["va", "v^"], ["vb"]),
        ("v[*?]", ["v*", "v?"], ["v4", "v"]),
        ("v[[]", ["v["], ["v]"]),
        (r"v[\]\-]", ["v]", "v-"], ["v4", "v\\"]),
        (r"v[\^a]", ["v^", "va"], ["vb"]),
        (r"v\*", ["v*"], ["v4", r"v\*"]),
        (r"\v4", ["v4"], [r"\v4"]),
        ("v]", ["v]"], ["v"]),
        ("[z-a]*", [], ["a", "m", "z"]),
        ("*[/]*b", ["a/b", "/ab"], ["a/", "a/b/b"]),
    ],
)
def test_what_fits(pattern: str, fits: list[str], does_not: list[str]) -> None:
    """As Go's `path/filepath.Match` answers for each of them."""
    assert expand(pattern, fits) == fits
    assert expand(pattern, does_not) == []


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("[", "[ without ]"),
        ("a[b", "[ without ]"),
        ("[a-", "[ without ]"),
        ("[a*", "[ without ]"),
        ("*[^", "[ without ]"),
        ("[]", "[] holds no character"),
        ("[]a]", "[] holds no character"),
        ("[^]a]", "[] holds no character"),
        ("[a-]", "or half a range"),
        ("[-a]", "a range without its first character"),
        ("[a-b-c]", "a range without its first character"),
        ("a\\", "it ends with a backslash"),
        ("[a\\", "it ends with a backslash"),
    ],
)
def test_what_cannot_be_read(pattern: str, problem: str) -> None:
    with pytest.raises(PatternError, match=r"^pattern ") as caught:
        parse(pattern)
    assert (caught.value.pattern, repr(pattern) in str(caught.value)) == (pattern, True)
    assert problem in caught.value.problem


@pytest.mark.parametrize(
    ("name", "meant"), [("a*", True), ("a?", True), ("a[b]", True), ("a[b", True), ("a-b.c", False)]
)
def test_what_is_meant_as_a_pattern(name: str, meant: bool) -> None:
    assert is_pattern(name) == meant


def naive(pattern: str, name: str) -> bool:
    """Every way in which stars can be filled, one after the other."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(naive(pattern[1:], name[at:]) for at in range(len(name) + 1))
    if not name:
        return False
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        members = inside.removeprefix("^")
        listed = (
            {chr(code) for code in range(ord(members[0]), ord(members[-1]) + 1)} if "-" in members else set(members)
        )
        return ((name[0] in listed) != inside.startswith("^")) and naive(rest, name[1:])
    return pattern[0] in {"?", name[0]} and naive(pattern[1:], name[1:])


parts = st.sampled_from(["*", "?", "a", "b", "-", "[ab]", "[^a]", "[a-c]", "[^b-c]"])


@given(pattern=st.lists(parts, max_size=7).map("".join), name=st.text("abcd-", max_size=7))
@example(pattern="*a*b", name="aabab")
def test_as_a_naive_reading_says(pattern: str, name: str) -> None:
    assert parse(pattern).matches(name) == naive(pattern, name)


@given(st.text("ab-*?[]^\\/", max_size=10), st.text("ab-/", max_size=6))
def test_whatever_is_written_is_read_or_refused(pattern: str, name: str) -> None:
    refused: PatternError | None = None
    try:
        assert parse(pattern).matches(name) in (True, False)
    except PatternError as error:
        refused = error
    assert refused is None or repr(pattern) in str(refused)


def test_many_stars_cost_little() -> None:
    """A reading that tries every way would not come back."""
    assert not parse("*a" * 60 + "*b").matches("a" * 253)
