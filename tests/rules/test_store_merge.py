"""JSON merge patch against the examples of RFC 7396 appendix A and its defining pseudo code."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.store.merge import Json, merge_patch

EXAMPLES: list[tuple[Json, Json, Json]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "x"]) | st.sampled_from([0.0, 1.0]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def by_the_book(target: Json, patch: Json) -> Json:
    """Do what the pseudo code in section 2 of the RFC says, word for word."""
    if not isinstance(patch, dict):
        return patch
    result: dict[str, Json] = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = by_the_book(result.get(name), value)
    return result


@pytest.mark.parametrize(("target", "patch", "expected"), EXAMPLES)
def test_examples_of_the_rfc(target: Json, patch: Json, expected: Json) -> None:
    assert merge_patch(target, patch) == expected


@given(VALUES, VALUES)
def test_equals_the_pseudo_code_and_changes_nothing_in_place(target: Json, patch: Json) -> None:
    before = copy.deepcopy((target, patch))
    result = merge_patch(target, patch)
    assert json.dumps(result, sort_keys=True) == json.dumps(by_the_book(target, patch), sort_keys=True)
    assert (target, patch) == before


@given(VALUES, VALUES)
def test_a_patch_that_changes_nothing_returns_the_very_object(target: Json, patch: Json) -> None:
    merged = merge_patch(target, patch)
    same = json.dumps(merged, sort_keys=True) == json.dumps(target, sort_keys=True)
    assert same == (merged is target)


def test_a_boolean_is_no_number() -> None:
    assert json.dumps(merge_patch({"a": 1}, {"a": True})) == '{"a": true}'
    assert json.dumps(merge_patch({"a": [1]}, {"a": [True]})) == '{"a": [true]}'
