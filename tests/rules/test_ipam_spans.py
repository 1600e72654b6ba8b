"""Whose an address is: against a look at every interval."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.ranges import Ranges
from ipam.spans import Spans

span = st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda it: (it[0], it[0] + it[1]))
owner = st.lists(span, max_size=5).map(lambda it: Ranges.of(4, it).spans)
step = st.tuples(st.sampled_from("abcde"), st.none() | owner)


@settings(max_examples=300, deadline=None)
@given(st.lists(step, max_size=12), span)
def test_as_a_look_at_each(steps: list[tuple[str, tuple[tuple[int, int], ...] | None]], asked: tuple[int, int]) -> None:
    index, naive = Spans(), dict[str, tuple[tuple[int, int], ...]]()
    for name, spans in steps:
        index.remove(name, naive.pop(name, ()))
        if spans is not None:
            index.add(name, spans)
            naive[name] = spans
    first, last = asked
    expected = [(a, b, name) for name, spans in naive.items() for a, b in spans if a <= last and first <= b]
    assert sorted(index.touching(first, last)) == sorted(expected)


def test_a_hundred_thousand_disjoint_intervals_are_none_apart() -> None:
    index = Spans()
    for number in range(1000):
        index.add(f"p{number}", [(number * 1000 + at, number * 1000 + at + 3) for at in range(0, 1000, 10)])
    assert repr(index) == "<Spans 100000 disjoint, 0 apart>"
    assert list(index.touching(500_504, 500_510)) == [(500_510, 500_513, "p500")]
    index.add("odd", [(0, 10**6)])
    assert len(list(index.touching(500_504, 500_510))) == 2
    index.remove("odd", [(0, 10**6)])
    assert repr(index) == "<Spans 100000 disjoint, 0 apart>"
