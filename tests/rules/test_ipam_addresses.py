"""Text of addresses against what Go prints, and the free-address structure against a naive search."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipam.addresses import MAPPED_FIRST, MAPPED_LAST, FreeAddresses, format_address, parse_address
from ipam.ranges import Ranges

GO_IP_STRING = """
00000000000000000000000000000000 ::
00000000000000000000000000000001 ::1
00010000000000000000000000000000 1::
fd000000000000000000000000000001 fd00::1
fd000000000000010000000000000002 fd00:0:0:1::2
20010db8000000000001000000000001 2001:db8::1:0:0:1
20010db8000000010001000100010001 2001:db8:0:1:1:1:1:1
00000001000000010000000100000001 0:1:0:1:0:1:0:1
00010000000000020000000000000003 1:0:0:2::3
00010000000000000002000000000003 1::2:0:0:3
00000000000000000000000001020304 ::102:304
0000000000000000ffff000001020304 ::ffff:0:102:304
00000000000000000000ffff0a000001 10.0.0.1
00000000000000000000ffffffffffff 255.255.255.255
00000000000000000000ffff00000000 0.0.0.0
00000000000000000000fffeffffffff ::fffe:ffff:ffff
00000000000000000001000000000000 ::1:0:0:0
fe800000000000000000000a00000000 fe80::a:0:0
0064ff9b00000000000000000a010203 64:ff9b::a01:203
ffffffffffffffffffffffffffffffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
00010002000300040005000600070000 1:2:3:4:5:6:7:0
00000002000300040005000600070008 0:2:3:4:5:6:7:8
00000000000300040005000600000000 ::3:4:5:6:0:0
000a00000000000b00000000000c000d a::b:0:0:c:d
fd00abcd0000000000000000000000ef fd00:abcd::ef
00bf4066005177d8004e00a700000000 bf:4066:51:77d8:4e:a7::
0000000000000000d8fb0000000000e8 ::d8fb:0:0:e8
0073000000a50000005a000069b00000 73:0:a5:0:5a:0:69b0:0
0000396d009ab6750000000000000000 0:396d:9a:b675::
3b2100850013000000000000c5130000 3b21:85:13::c513:0
00fd00000000000000200000007e0000 fd::20:0:7e:0
004300000056f531001f000000000013 43:0:56:f531:1f::13
"""
"""Bytes and what `net.IP(bytes).String()` of Go 1.25 prints for them."""


@pytest.mark.parametrize("line", GO_IP_STRING.strip().splitlines())
def test_text_is_what_go_prints(line: str) -> None:
    raw, text = line.split()
    assert format_address(int(raw, 16), 6) == text


@pytest.mark.parametrize("line", [line for line in GO_IP_STRING.strip().splitlines() if ":" in line])
def test_what_go_prints_is_read_back(line: str) -> None:
    raw, text = line.split()
    assert parse_address(text) == (6, int(raw, 16))


@given(st.integers(0, 2**32 - 1))
def test_ipv4_round_trip(number: int) -> None:
    assert parse_address(format_address(number, 4)) == (4, number)
    assert format_address(number, 4) == str(ipaddress.IPv4Address(number))


sparse_words = st.lists(st.sampled_from([0, 0, 0, 1, 0xAB, 0xFFFF]), min_size=8, max_size=8).map(
    lambda words: sum(word << 16 * at for at, word in enumerate(words))
)


@given(sparse_words | st.integers(0, 2**128 - 1))
def test_ipv6_round_trip(number: int) -> None:
    text = format_address(number, 6)
    if MAPPED_FIRST <= number <= MAPPED_LAST:
        assert parse_address(text) == (4, number - MAPPED_FIRST)
    else:
        assert parse_address(text) == (6, number)
        assert text == str(ipaddress.IPv6Address(number))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not an IP address"),
        ("10.0.0", "is not an IP address"),
        ("10.0.0.256", "is not an IP address"),
        ("010.0.0.1", "is not an IP address"),
        (" 10.0.0.1", "is not an IP address"),
        ("167772161", "is not an IP address"),
        ("fd00::1::2", "is not an IP address"),
        ("fd00:::1", "is not an IP address"),
        ("١٠.0.0.1", "is not an IP address"),
        ("fe80::1%eth0", "has a zone"),
        ("::ffff:10.0.0.1", "is an IPv4-mapped address"),
    ],
)
def test_what_is_no_address_says_why(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_address(text)


@pytest.mark.parametrize(("number", "version"), [(-1, 4), (2**32, 4), (2**128, 6)])
def test_a_number_beyond_the_family_is_refused(number: int, version: int) -> None:
    with pytest.raises(ValueError, match="is not an IPv"):
        format_address(number, version)


span_lists = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 6)).map(lambda it: (it[0], it[0] + it[1])), max_size=6
)


@settings(max_examples=300)
@given(
    spans=span_lists,
    taken=st.sets(st.integers(0, 70)),
    steps=st.lists(st.none() | st.integers(0, 70), max_size=80),
)
def test_lowest_free_is_what_a_search_over_all_would_find(
    spans: list[tuple[int, int]], taken: set[int], steps: list[int | None]
) -> None:
    """A step is None: take the lowest; or an address: release it if taken, take it back if not."""
    ranges = Ranges.of(4, spans)
    everything = {address for first, last in ranges.spans for address in range(first, last + 1)}
    free = FreeAddresses(ranges.spans, taken)
    for step in steps:
        expected = min(everything - taken, default=None)
        assert free.lowest() == expected
        if step is None:
            if expected is not None:
                taken.add(expected)
        elif step in taken:
            taken.remove(step)
            free.released(step)
        else:
            taken.add(step)
    assert free.lowest() == min(everything - taken, default=None)
    assert FreeAddresses(ranges.spans, taken).lowest() == min(everything - taken, default=None)


def test_no_spans_means_none() -> None:
    free = FreeAddresses((), {5})
    assert free.lowest() is None
    free.released(5)
    assert free.lowest() is None


def test_releasing_and_taking_back_for_ever_does_not_grow_the_heap() -> None:
    taken = {0, 1, 2}
    free = FreeAddresses(((0, 9),), taken)
    assert free.lowest() == 3
    for _ in range(1000):
        taken.remove(1)
        free.released(1)
        taken.add(1)
    assert repr(free) == "FreeAddresses(spans=1, cursor=0x3, freed=1)"
    assert free.lowest() == 3


@pytest.mark.parametrize(
    "span",
    [
        pytest.param((10 << 24, (11 << 24) - 1), id="10.0.0.0/8"),
        pytest.param((0xFD00 << 112, (0xFD00 << 112) + 2**64 - 1), id="fd00::/64"),
        pytest.param((0, 2**127), id="half of IPv6"),
    ],
)
def test_a_huge_range_with_many_holes_is_an_ordinary_one(span: tuple[int, int]) -> None:
    holes = Ranges.of(6, [(span[0] + 3 * at, span[0] + 3 * at) for at in range(10_000)])
    taken: set[int] = set()
    free = FreeAddresses(Ranges.of(6, [span]).difference(holes).spans, taken)
    for _ in range(25_000):
        address = free.lowest()
        assert address is not None
        taken.add(address)
    assert max(taken) == span[0] + 34_999, "two of three below the last hole, then one after the other"
