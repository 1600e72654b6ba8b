"""Which pools share addresses: against a set of every address, and the condition that says so."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from api.ippool import IPPoolSpec, IPPoolStatus, SpiderIPPool
from api.meta import Condition, ObjectMeta
from ipam.overlap import CONDITION, Atlas, Overlap, conditions
from ipam.ranges import Ranges, parse_ranges

NOW = 1_800_000_000.0


def pool(
    name: str, *ips: str, exclude: tuple[str, ...] = (), subnet: str = "10.0.0.0/16", generation: int = 1
) -> SpiderIPPool:
    meta = ObjectMeta(name=name, uid=f"{name}-uid", generation=generation)
    return SpiderIPPool(metadata=meta, spec=IPPoolSpec(subnet=subnet, ips=list(ips), exclude_ips=list(exclude)))


def shares(atlas: Atlas, name: str) -> dict[str, str]:
    found = atlas.overlap(name)
    return {other: str(ranges) for other, ranges in found.shares} if found else {}


def test_both_pools_name_each_other_and_strangers_are_left_out() -> None:
    atlas = Atlas()
    atlas.replace(
        [
            pool("red", "10.0.0.1-10.0.0.9", exclude=("10.0.0.5",)),
            pool("blue", "10.0.0.4-10.0.0.20"),
            pool("green", "10.0.9.1"),
            pool("six", "fd00::1-fd00::9", subnet="fd00::/64"),
            pool("broken", "nonsense"),
        ]
    )
    assert shares(atlas, "red") == {"blue": "10.0.0.4,10.0.0.6-10.0.0.9"}
    assert shares(atlas, "blue") == {"red": "10.0.0.4,10.0.0.6-10.0.0.9"}
    assert [shares(atlas, name) for name in ("green", "six", "broken", "none")] == [{}, {}, {}, {}]


def test_a_change_of_the_status_is_none_and_one_of_the_spec_is() -> None:
    atlas, red = Atlas(), pool("red", "10.0.0.1")
    assert atlas.learn([red])
    assert not atlas.learn([structs.replace(red, status=IPPoolStatus(allocated_ip_count=3))])
    assert atlas.learn([pool("red", "10.0.0.2", generation=2)])
    assert atlas.learn([pool("blue", "10.0.0.2")])
    assert shares(atlas, "red") == {"blue": "10.0.0.2"}
    assert atlas.learn([], gone=["blue"])
    assert not atlas.learn([], gone=["blue"])
    assert shares(atlas, "red") == {}


spans = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda it: (it[0], it[0] + it[1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(spans, max_size=4), min_size=1, max_size=5))
def test_as_sets_of_addresses(pools: list[list[tuple[int, int]]]) -> None:
    atlas = Atlas()
    atlas.replace(
        [pool(f"p{at}", *(f"10.0.0.{low}-10.0.0.{high}" for low, high in ranges)) for at, ranges in enumerate(pools)]
    )
    sets = [{ip for low, high in ranges for ip in range(low, high + 1)} for ranges in pools]
    for at, mine in enumerate(sets):
        found = atlas.overlap(f"p{at}")
        expected = {f"p{other}": mine & theirs for other, theirs in enumerate(sets) if other != at and mine & theirs}
        got = {name: {ip & 255 for low, high in ranges.spans for ip in range(low, high + 1)} for name, ranges in
               (found.shares if found else ())}  # fmt: skip
        assert got == expected
        if found is not None:
            assert found.addresses == Ranges.of(4, [span for _, ranges in found.shares for span in ranges.spans])


def test_the_condition_comes_stays_changes_and_goes() -> None:
    red = pool("red", "10.0.0.1")
    assert conditions(red, None, now=NOW) is red.status.conditions
    other = Condition("Ready", "True", "Because", "", "2026-01-01T00:00:00Z")
    red = structs.replace(red, status=IPPoolStatus(conditions=[other]))
    overlap = Overlap((("blue", parse_ranges(["10.0.0.1"], 4)),))
    told = conditions(red, overlap, now=NOW)
    assert told == [
        other,
        Condition(
            CONDITION,
            "True",
            "AddressesInTwoPools",
            "granted by neither: 10.0.0.1 with blue",
            "2027-01-15T08:00:00Z",
            1,
        ),
    ]
    red = structs.replace(red, status=IPPoolStatus(conditions=told))
    assert conditions(red, overlap, now=NOW + 60) is told
    wider = Overlap((*overlap.shares, ("green", parse_ranges(["10.0.0.1"], 4))))
    again = conditions(red, wider, now=NOW + 60)[1]
    assert (again.message, again.last_transition_time) == (
        "granted by neither: 10.0.0.1 with blue; 10.0.0.1 with green",
        "2027-01-15T08:00:00Z",
    )
    over = conditions(red, None, now=NOW + 60)[1]
    assert (over.status, over.last_transition_time) == ("False", "2027-01-15T08:01:00Z")
    changed = structs.replace(red, metadata=structs.replace(red.metadata, generation=2))
    seen = conditions(changed, overlap, now=NOW + 60)[1]
    assert (seen.observed_generation, seen.last_transition_time) == (2, "2027-01-15T08:00:00Z"), "or kubectl waits on"


def test_a_long_overlap_is_told_in_short() -> None:
    many = parse_ranges([f"10.0.0.{at}" for at in range(0, 40, 2)], 4)
    text = str(Overlap(tuple((f"p{at}", many) for at in range(9))))
    assert text.endswith("; and 4 more pools")
    assert "10.0.0.8,... with p0" in text


def test_a_network_is_known_until_its_last_pool_has_gone() -> None:
    atlas = Atlas()
    atlas.replace([pool("a", subnet="10.0.0.0/16"), pool("b", subnet="10.0.0.0/16"), pool("c", subnet="10.0.0.0/24")])
    whole, half = (10 << 24, (10 << 24) + 0xFFFF), (10 << 24, (10 << 24) + 0x7FFF)
    assert atlas.crossing(4, whole) == (("10.0.0.0/24", "c"),)
    assert atlas.crossing(4, half) == (("10.0.0.0/24", "c"), ("10.0.0.0/16", "a"))
    atlas.learn([], gone=["a", "c"])
    assert atlas.crossing(4, half) == (("10.0.0.0/16", "b"),)
    atlas.learn([], gone=["b"])
    assert atlas.crossing(4, half) == ()


def test_who_needs_a_few_does_not_look_at_all() -> None:
    atlas = Atlas()
    atlas.replace([pool(f"p{number}", f"10.0.0.{number}") for number in range(9)])
    everything = parse_ranges(["10.0.0.0-10.0.0.255"], 4)
    few = atlas.shared(everything, but="p1", most=3)
    assert few is not None and few.pools == ("p0", "p2", "p3")
    all_of_them = atlas.shared(everything, but="p1")
    assert all_of_them is not None and len(all_of_them.shares) == 8
