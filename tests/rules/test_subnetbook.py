"""The book of a subnet against sets of numbers, and what is made of a status that is no book."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.annotations import (
    OWNER_APPLICATION_GV,
    OWNER_APPLICATION_KIND,
    OWNER_APPLICATION_NAME,
    OWNER_APPLICATION_NAMESPACE,
    cidr_label,
)
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from api.subnet import SubnetSpec
from ipam import subnetbook as book
from ipam.ranges import Ranges, parse_ranges

NUMBERS = st.frozensets(st.integers(0, 40), max_size=30)


def ranges(numbers: frozenset[int] | set[int]) -> Ranges:
    return Ranges.of(4, ((number, number) for number in numbers))


def numbers(found: Ranges) -> set[int]:
    return {number for first, last in found.spans for number in range(first, last + 1)}


@given(NUMBERS, st.integers(0, 45))
def test_the_lowest(addresses: frozenset[int], count: int) -> None:
    assert numbers(book.lowest(ranges(addresses), count)) == set(sorted(addresses)[:count])


@given(NUMBERS, st.lists(NUMBERS, max_size=4), NUMBERS)
def test_what_is_free(whole: frozenset[int], pools: list[frozenset[int]], reserved: frozenset[int]) -> None:
    entries = {str(at): book.Entry(ranges(pool)) for at, pool in enumerate(pools)}
    assert numbers(book.free(ranges(whole), entries, ranges(reserved))) == whole - frozenset().union(*pools) - reserved


@given(NUMBERS, st.integers(0, 10), NUMBERS, NUMBERS)
def test_shrinking(have: frozenset[int], count: int, used: frozenset[int], reserved: frozenset[int]) -> None:
    spare = sorted(have - used - reserved)
    after = book.shrunk(ranges(have), count, used=used, reserved=ranges(reserved))
    if len(spare) < count:
        assert after is None
        return
    assert after is not None
    assert numbers(after) == have - set(spare[:count])
    assert numbers(after) >= have & used
    assert book.missing(after, len(have - reserved) - count, ranges(reserved)) == 0


@given(NUMBERS, st.integers(0, 20), NUMBERS, NUMBERS)
def test_growing(have: frozenset[int], count: int, own: frozenset[int], left: frozenset[int]) -> None:
    own, left = own - have, left - have - own
    after = book.grown(ranges(have), count, own=ranges(own), left=ranges(left))
    if len(own) + len(left) < count:
        assert after is None
        return
    assert after is not None
    first = sorted(own)[:count]
    assert numbers(after) == have | set(first) | set(sorted(left)[: count - len(first)])


@given(NUMBERS, st.dictionaries(st.sampled_from("abcd"), NUMBERS), st.dictionaries(st.sampled_from("abcd"), NUMBERS))
def test_the_book_covers_automatic_pools_and_counts_nothing_twice(
    whole: frozenset[int], entries: dict[str, frozenset[int]], pools: dict[str, frozenset[int]]
) -> None:
    """Those named a and b are automatic, and have nothing in common, as their entries have not."""
    auto = {name: pools[name] for name in pools if name in "ab"}
    if "a" in auto and "b" in auto:
        auto["b"] -= auto["a"] | entries.get("a", frozenset())
        entries["b"] = entries.get("b", frozenset()) - auto["a"] - entries.get("a", frozenset())
    made = book.rebuilt(
        ranges(whole),
        {name: book.Entry(ranges(given)) for name, given in entries.items()},
        {name: book.Controlled(ranges(auto.get(name, pools[name])), name in "ab") for name in pools},
    )
    given_out = {name: numbers(entry.addresses) for name, entry in made.items()}
    assert set(given_out) <= set(pools)
    automatic: set[int] = set()
    for name, addresses in auto.items():
        assert given_out[name] == addresses | entries.get(name, frozenset())
        automatic |= given_out[name]
    for name in set(pools) - set(auto):
        assert given_out.get(name, set()) == (pools[name] & whole) - automatic


@given(st.dictionaries(st.text("abc-", min_size=1), st.tuples(NUMBERS, st.sampled_from(["", "v1_Pod_ns_n"]))))
def test_what_is_written_is_read(entries: dict[str, tuple[frozenset[int], str]]) -> None:
    before = {name: book.Entry(ranges(addresses), application) for name, (addresses, application) in entries.items()}
    assert book.read_entries(book.write_entries(before), 4) == (before, ())
    assert (book.write_entries(before) is None) == (not before)


def test_the_originals_spelling() -> None:
    entries = {
        "b": book.Entry(parse_ranges(["10.6.0.7", "10.6.0.1-10.6.0.5"], 4)),
        "a": book.Entry(parse_ranges(["10.6.0.9"], 4), "apps_v1_Deployment_ns_n"),
    }
    assert book.write_entries(entries) == (
        '{"a":{"ips":["10.6.0.9"],"application":"apps_v1_Deployment_ns_n"},"b":{"ips":["10.6.0.1-10.6.0.5","10.6.0.7"]}}'
    )
    text = '{"p":{"ips":["10.6.0.5","10.6.0.1-10.6.0.4"],"other":7}}'
    assert numbers(book.read_entries(text, 4)[0]["p"].addresses) == set(range(0x0A060001, 0x0A060006))


@pytest.mark.parametrize("text", [None, "", "{}", "junk", "[]", "7", '{"p":7}', '{"p":{"ips":["10.6.0.9-10.6.0.1"]}}'])
def test_junk_has_no_entry(text: str | None) -> None:
    assert book.read_entries(text, 4)[0] == {}


def test_what_is_wrong_is_named_and_the_rest_is_kept() -> None:
    text = json.dumps({"good": {"ips": ["10.6.0.1"]}, "bad": {"ips": ["fd00::1"]}, "null": None, "none": {}})
    entries, problems = book.read_entries(text, 4)
    assert set(entries) == {"good", "none"}
    assert [problem.partition(":")[0] for problem in problems] == ["bad", "null"]


def test_a_huge_subnet_is_not_enumerated() -> None:
    whole = book.ground(SubnetSpec(subnet="fd00::/48", ips=["fd00::1-fd00:0:0:ffff:ffff:ffff:ffff:ffff"]))
    entries = {"p": book.Entry(parse_ranges(["fd00::1-fd00::ffff:ffff"], 6))}
    assert book.free(whole, entries, Ranges(6)).size == whole.size - 0xFFFFFFFF
    assert book.lowest(book.free(whole, entries, Ranges(6)), 2).format() == ["fd00::1:0:0-fd00::1:0:1"]


def test_what_a_pool_is_to_the_book() -> None:
    labels = {
        OWNER_APPLICATION_GV: "apps_v1",
        OWNER_APPLICATION_KIND: "Deployment",
        OWNER_APPLICATION_NAMESPACE: "ns",
        OWNER_APPLICATION_NAME: "n",
    }
    spec = IPPoolSpec(subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.3"], exclude_ips=["10.6.0.2"])
    one = book.controlled(SpiderIPPool(metadata=ObjectMeta(labels=labels), spec=spec))
    assert one == book.Controlled(parse_ranges(["10.6.0.1", "10.6.0.3"], 4), True, "apps_v1_Deployment_ns_n")
    assert not book.controlled(SpiderIPPool(spec=spec)).automatic
    with pytest.raises(ValueError, match=r"spec\.subnet"):
        book.ground(IPPoolSpec(subnet="junk"))


@pytest.mark.parametrize(
    ("subnet", "label"),
    [("10.6.0.0/16", "10-6-0-0-16"), ("fd00::/64", "fd00---64"), ("fd00:1:2::/48", "fd00-1-2---48")],
)
def test_labels_of_a_cidr(subnet: str, label: str) -> None:
    assert cidr_label(subnet) == label
