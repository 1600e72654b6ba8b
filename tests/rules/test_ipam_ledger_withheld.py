"""Addresses that rest, are in quarantine or lie in two pools, and what is put back after a foreign write."""

import json
from typing import Any

import msgspec
import pytest
from msgspec import structs

from api.ippool import AllocationRecord, IPPoolStatus
from ipam.ledger import MAX_OBJECT_BYTES, Ledger
from ipam.operations import Granted, Surrendered
from ipam.overlap import Overlap
from ipam.ranges import parse_ranges
from ipam.territory import PoolError
from tests.rules.ipam_world import (
    NAME,
    address,
    claim,
    disown,
    foreign,
    load,
    make_pool,
    one,
    plain,
    reason,
    reloaded,
    stored,
    surrender,
    withheld,
)

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def two(**options: Any) -> Ledger:
    return load(make_pool(["10.0.0.1-10.0.0.2"]), cooldown=30, **options)


# ---------------------------------------------------------------- rest


def test_a_freed_address_rests() -> None:
    ledger = two()
    one(ledger, claim("u1"), now=NOW)
    one(ledger, surrender("u1"), now=NOW)
    assert withheld(ledger) == {"10.0.0.1": {"reason": "cool-down", "until": "2027-01-15T08:00:30Z"}}
    assert address(one(ledger, claim("u2"), now=NOW)) == "10.0.0.2/16"


def test_a_freed_address_is_used_when_nothing_else_is_free_and_its_rest_is_over() -> None:
    ledger = two()
    one(ledger, claim("u1"), now=NOW)
    one(ledger, claim("u2"), now=NOW)
    one(ledger, surrender("u2"), now=NOW)
    one(ledger, surrender("u1"), now=NOW + 5)
    assert address(one(ledger, claim("u3"), now=NOW + 6)) == "10.0.0.2/16", "it has rested longest"
    assert list(withheld(ledger)) == ["10.0.0.1"]


def test_rest_is_over_with_its_second_and_nothing_is_written_for_that() -> None:
    ledger = two()
    one(ledger, claim("u1"), now=NOW)
    one(ledger, surrender("u1"), now=NOW)
    assert address(one(reloaded(ledger), claim("u2"), now=NOW + 29)) == "10.0.0.2/16"
    fresh = reloaded(ledger, cooldown=30)
    outcome = fresh.apply([surrender("nobody")], now=NOW + 30)
    assert not outcome.changed
    assert list(withheld(fresh)) == ["10.0.0.1"], "still written down"
    assert address(one(fresh, claim("u2"), now=NOW + 30)) == "10.0.0.1/16"
    assert withheld(fresh) == {}


def test_without_a_cool_down_nothing_rests() -> None:
    ledger = load(cooldown=0)
    one(ledger, claim("u1"), now=NOW)
    one(ledger, surrender("u1"), now=NOW)
    assert ledger.status().withheld_ips is None
    assert address(one(ledger, claim("u2"), now=NOW)) == "10.0.0.1/16"


def test_rest_survives_the_owner() -> None:
    ledger = two()
    one(ledger, claim("u1"), now=NOW)
    one(ledger, surrender("u1"), now=NOW)
    assert address(one(reloaded(ledger), claim("u2"), now=NOW)) == "10.0.0.2/16"


def test_what_rests_is_forgotten_before_a_grant_fails_for_the_objects_size() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.255.254"]), max_records=100_000, cooldown=30)
    long = "n" * 63 + "/" + "p" * 200
    batch = [claim(f"{at:036}", pod=long) for at in range(2500)]
    ledger.apply(batch, now=NOW)
    gone = ledger.apply([surrender(f"{at:036}") for at in range(0, 2500, 2)], now=NOW)
    assert len(withheld(ledger)) == 1250
    granted = 0
    while isinstance(answer := one(ledger, claim(f"new{granted}", pod=long), now=NOW), Granted):
        granted += 1
    assert reason(answer)[1] == "object-size"
    assert len(withheld(ledger)) < 10, "fewer than one grant more would need"
    assert len(msgspec.json.encode(structs.replace(ledger.pool, status=ledger.status()))) < MAX_OBJECT_BYTES
    assert granted > len(gone.answers)


# ---------------------------------------------------------------- quarantine


def test_an_address_in_conflict_is_nobodys_until_its_time_is_over() -> None:
    ledger = load(make_pool(["10.0.0.1"]), cooldown=30)
    one(ledger, claim("u1"), now=NOW)
    outcome = ledger.apply([disown("10.0.0.1", seconds=600)], now=NOW)
    assert outcome.answers == (Surrendered(ips=("10.0.0.1",)),)
    assert [it.what for it in outcome.changes] == ["quarantined"]
    assert stored(ledger) == {}
    assert withheld(ledger) == {"10.0.0.1": {"reason": "conflict: 02:00:00:00:00:99", "until": "2027-01-15T08:10:00Z"}}
    ledger = reloaded(ledger)
    refused = one(ledger, claim("u2"), now=NOW + 599)
    assert reason(refused) == (NAME, "full", "a free address", "0 taken, 1 in quarantine, 0 more reserved")
    assert address(one(ledger, claim("u2"), now=NOW + 600)) == "10.0.0.1/16"


def test_only_what_the_holder_has_can_be_disowned() -> None:
    ledger = load()
    ledger.apply([claim("u1"), claim("u2")], now=NOW)
    everything = tuple(f"10.0.0.{at}" for at in range(1, 13))
    for wrong in (disown(*everything, uid="u9"), disown(*everything, cid="c9"), disown("10.0.0.2"), disown()):
        outcome = ledger.apply([wrong], now=NOW)
        assert (outcome.answers, outcome.changed) == ((Surrendered(),), False)
    assert reason(one(ledger, disown(*everything, node="n2"), now=NOW))[1] == "node"
    assert one(ledger, disown(*everything, node="n1"), now=NOW) == Surrendered(ips=("10.0.0.1",))


def test_a_quarantine_outlasts_the_release_of_somebody_who_got_the_address_all_the_same() -> None:
    """A program that does not know of withholding granted it."""
    status = IPPoolStatus(
        allocated_ips=foreign(ip_10_0_0_1="u1"),
        withheld_ips='{"10.0.0.1":{"reason":"conflict: x","until":"2027-01-15T09:00:00Z","seenBy":["n1"]}}',
    )
    ledger = load(make_pool(status=status), cooldown=30)
    one(ledger, surrender("u1"), now=NOW)
    assert withheld(ledger) == {
        "10.0.0.1": {"reason": "conflict: x", "until": "2027-01-15T09:00:00Z", "seenBy": ["n1"]}
    }, "and keys that we do not know stay"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "not decodable"),
        ('{"10.0.0.1":1}', "not decodable"),
        ('{"10.0.0.01":{"reason":"x","until":"2027-01-15T09:00:00Z"}}', "this key is not"),
        ('{"fd00::1":{"reason":"x","until":"2027-01-15T09:00:00Z"}}', "this key is not an IPv4 address"),
        ('{"10.0.0.1":{"until":"2027-01-15T09:00:00Z"}}', "has no reason"),
        ('{"10.0.0.1":{"reason":"x","until":"tomorrow"}}', "has no time it ends at, but 'tomorrow'"),
        ('{"10.0.0.1":{"reason":"x","until":"2027-01-15T09:00:00"}}', "has no time it ends at"),
        ('{"10.0.0.1":{"reason":"x"}}', "has no time it ends at, but None"),
    ],
)
def test_what_cannot_be_read_is_reported_and_not_overwritten(text: str, problem: str) -> None:
    with pytest.raises(PoolError) as caught:
        load(make_pool(status=IPPoolStatus(withheld_ips=text)))
    assert caught.value.field == "status.withheldIPs"
    assert problem in str(caught.value)


# ---------------------------------------------------------------- overlap


def test_what_lies_in_two_pools_is_granted_by_neither_and_stays_with_its_holder() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.0.3"]))
    ledger.apply([claim("u1")])
    ledger.reserve(parse_ranges([], 4), Overlap((("blue", parse_ranges(["10.0.0.1-10.0.0.2"], 4)),)))
    answers = ledger.apply([claim("u1"), claim("u2"), claim("u3")]).answers
    assert [plain(it) for it in answers] == ["10.0.0.1", "10.0.0.3", "overlap"]
    assert reason(answers[2]) == (
        NAME,
        "overlap",
        "a free address of this pool alone",
        "all 1 taken, others lie in more than one pool: 10.0.0.1-10.0.0.2 with blue",
    )
    ledger.reserve(parse_ranges([], 4), None)
    assert address(one(ledger, claim("u3"))) == "10.0.0.2/16"


# ---------------------------------------------------------------- after a foreign write


def rewritten(ledger: Ledger, **added: str) -> Ledger:
    """What the original's agents make of a pool: typed records, no status fields of ours."""
    bare = {ip: {"pod": it["pod"], "podUid": it["podUid"]} for ip, it in stored(ledger).items()}
    text = json.dumps(bare | json.loads(foreign(**added)))
    return load(structs.replace(ledger.pool, status=IPPoolStatus(allocated_ips=text)), cooldown=30)


def test_what_was_dropped_is_put_back_and_written_with_the_next_change() -> None:
    before = load(cooldown=30)
    before.apply([claim("u1"), claim("u2"), claim("u3", pod="ns/web-0", fixed=True), claim("u4")], now=NOW)
    before.apply([surrender("u3", retain=True), disown("10.0.0.2", uid="u2"), surrender("u4")], now=NOW)
    known, rests = stored(before), withheld(before)
    after = rewritten(before, ip_10_0_0_9="u9", ip_10_0_0_4="u8")
    after.recall(before, now=NOW)
    assert stored(after) == known | json.loads(foreign(ip_10_0_0_9="u9", ip_10_0_0_4="u8"))
    assert withheld(after) == {"10.0.0.2": rests["10.0.0.2"]}, "what rested is held again"
    assert not after.apply([claim("u1")], now=NOW).changed
    assert one(after, surrender("u1", cid="c0"), now=NOW) == Surrendered(), "the cid is known again"
    assert reason(one(after, surrender("u1", node="n2"), now=NOW))[1] == "node"


def test_what_changed_hands_is_not_mistaken_for_what_was_dropped() -> None:
    before = load(cooldown=30)
    before.apply([claim("u1"), claim("u2")], now=NOW)
    text = json.dumps(
        {
            "10.0.0.1": {"pod": "ns/u9", "podUid": "u9"},
            "10.0.0.2": {"pod": "ns/u2", "podUid": "u2", "nic": "eth0", "node": "n1", "cid": "c7"},
        }
    )
    after = load(make_pool(allocated=text), cooldown=30)
    after.recall(before, now=NOW)
    assert stored(after) == json.loads(text)


def test_withheld_addresses_that_somebody_knew_of_are_not_put_back() -> None:
    before = load(cooldown=30)
    before.apply([claim("u1"), claim("u2")], now=NOW)
    before.apply([surrender("u1"), surrender("u2")], now=NOW)
    rest = '{"10.0.0.2":{"reason":"cool-down","until":"2027-01-15T08:00:30Z"}}'
    after = load(make_pool(status=IPPoolStatus(withheld_ips=rest)), cooldown=30)
    after.recall(before, now=NOW)
    assert list(withheld(after)) == ["10.0.0.2"]


def test_without_memory_a_rewritten_record_tells_nothing_of_its_place() -> None:
    before = load()
    before.apply([claim("u1", pod="ns/web-0", fixed=True)])
    ledger = rewritten(before)
    assert ledger.records == {(10 << 24) + 1: AllocationRecord(pod="ns/web-0", pod_uid="u1")}
    assert plain(one(ledger, claim("u2", pod="ns/web-0", fixed=True))) == "held"
