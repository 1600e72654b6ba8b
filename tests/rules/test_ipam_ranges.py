"""Interval sets against sets of integers, and the grammar of entries."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.addresses import format_address
from ipam.ranges import RangeError, Ranges, parse_range, parse_ranges

BASES = {4: 10 << 24, 6: 0xFD00 << 112}

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 8)).map(lambda it: (it[0], it[0] + it[1])), max_size=8)


def numbers(ranges: Ranges) -> set[int]:
    return {address for first, last in ranges.spans for address in range(first, last + 1)}


def is_normal(ranges: Ranges) -> bool:
    flat = [edge for span in ranges.spans for edge in span]
    gaps = [later[0] - earlier[1] for earlier, later in zip(ranges.spans, ranges.spans[1:], strict=False)]
    return flat == sorted(flat) and all(gap > 1 for gap in gaps)


@settings(max_examples=300)
@given(spans, spans)
def test_set_operations_are_those_of_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    one, other = Ranges.of(4, left), Ranges.of(4, right)
    plain, plain_other = numbers(one), numbers(other)
    assert plain == {address for first, last in left for address in range(first, last + 1)}
    for result, expected in (
        (one, plain),
        (one.union(other), plain | plain_other),
        (one.difference(other), plain - plain_other),
        (one.intersection(other), plain & plain_other),
    ):
        assert numbers(result) == expected
        assert is_normal(result)
        assert result.size == len(expected)
        assert bool(result) == bool(expected)
        assert {address for address in range(-1, 70) if address in result} == expected


@given(spans, st.sampled_from([4, 6]))
def test_text_is_read_back_and_canonical(drawn: list[tuple[int, int]], version: int) -> None:
    ranges = Ranges.of(version, [(BASES[version] + first, BASES[version] + last) for first, last in drawn])
    text = ranges.format()
    assert parse_ranges(text, version) == ranges
    assert parse_ranges(list(reversed(text)), version).format() == text
    assert str(ranges) == ",".join(text)


@given(spans, st.sampled_from([4, 6]))
def test_entries_may_come_in_any_order_overlap_and_repeat(drawn: list[tuple[int, int]], version: int) -> None:
    base = BASES[version]
    entries = [
        f"{format_address(base + first, version)}-{format_address(base + last, version)}" for first, last in drawn
    ]
    expected = {base + address for first, last in drawn for address in range(first, last + 1)}
    assert numbers(parse_ranges(entries + entries, version)) == expected


def test_documented_merge() -> None:
    assert parse_ranges(["10.0.0.5", "10.0.0.1-10.0.0.4"], 4).format() == ["10.0.0.1-10.0.0.5"]
    assert parse_ranges(["FD00:0::1-fd00::2", "fd00::9"], 6).format() == ["fd00::1-fd00::2", "fd00::9"]
    assert parse_ranges([], 6).format() == []


def test_huge_ranges_are_counted_exactly() -> None:
    everything = parse_ranges(["fd12:3456:789a::-fd12:3456:789a:ffff:ffff:ffff:ffff:ffff"], 6)
    hole = parse_ranges(["fd12:3456:789a::10"], 6)
    assert everything.size == 2**80
    assert everything.difference(hole).size == 2**80 - 1
    assert everything.difference(hole).format() == [
        "fd12:3456:789a::-fd12:3456:789a::f",
        "fd12:3456:789a::11-fd12:3456:789a:ffff:ffff:ffff:ffff:ffff",
    ]


def test_membership_wants_numbers() -> None:
    assert "10.0.0.1" not in parse_ranges(["10.0.0.1"], 4)


@pytest.mark.parametrize("operation", [Ranges.union, Ranges.difference, Ranges.intersection])
def test_families_do_not_mix(operation: object) -> None:
    assert callable(operation)
    with pytest.raises(ValueError, match="IPv4 set and an IPv6 set"):
        operation(Ranges(4), Ranges(6))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("", "'' is not an IP address"),
        ("10.0.0.0/24", "a CIDR is not allowed, write it as first-last"),
        ("10.0.0.1 - 10.0.0.2", "spaces are not allowed"),
        ("10.0.0.1-", "'' is not an IP address"),
        ("-", "'' is not an IP address"),
        ("10.0.0.1-10.0.0.2-10.0.0.3", "expected A or A-B"),
        ("10.0.0.9-10.0.0.1", "the first address is above the last"),
        ("10.0.0.1-fd00::1", "both ends must be of one IP version"),
        ("fd00::1", "an IPv6 address where IPv4 is expected"),
        ("10.0.0.300", "'10.0.0.300' is not an IP address"),
        ("::ffff:10.0.0.1", "'::ffff:10.0.0.1' is an IPv4-mapped address, write it as IPv4"),
        ("fe80::1%eth0", "'fe80::1%eth0' has a zone"),
    ],
)
def test_a_wrong_entry_is_named_with_field_and_value(entry: str, problem: str) -> None:
    with pytest.raises(RangeError) as caught:
        parse_ranges(["10.0.0.1", entry], 4, field="spec.excludeIPs")
    assert str(caught.value) == f"spec.excludeIPs[1]: {entry!r}: {problem}"
    assert (caught.value.field, caught.value.value, caught.value.problem) == ("spec.excludeIPs[1]", entry, problem)


def test_a_range_over_ipv4_mapped_addresses_is_refused() -> None:
    with pytest.raises(RangeError, match="holds IPv4-mapped addresses"):
        parse_range("::-::1:0:0:0")


def test_one_entry_takes_either_family() -> None:
    assert parse_range("10.0.0.1-10.0.0.3") == (BASES[4] + 1, BASES[4] + 3)
    assert parse_range("fd00::7") == (BASES[6] + 7, BASES[6] + 7)
