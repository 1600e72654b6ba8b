"""Fixed addresses, releases of whole sandboxes, and records whose place nobody knows: case by case."""

import json

import pytest
from msgspec import structs

from api.ippool import AllocationRecord
from ipam.operations import Granted, Heir, Reclaim, Refused, Surrendered
from tests.rules.ipam_world import (
    NAME,
    address,
    claim,
    foreign,
    load,
    make_pool,
    one,
    plain,
    reason,
    reloaded,
    stored,
    surrender,
)

WEB = "ns/web-0"


def test_a_fixed_address_is_kept_and_passes_to_the_next_uid() -> None:
    ledger = load()
    ledger.apply([claim("old", pod=WEB, fixed=True), claim("other")])
    assert one(ledger, surrender("old", retain=True)) == Surrendered(retained=("10.0.0.1",))
    assert stored(ledger)["10.0.0.1"] == {
        "pod": WEB,
        "podUid": "old",
        "nic": "eth0",
        "node": "n1",
        "cid": "c1",
        "kept": True,
    }
    assert not ledger.holds("old", "eth0")
    outcome = reloaded(ledger).apply([claim("new", cid="c9", node="n2", pod=WEB, fixed=True)])
    assert outcome.answers == (Granted(ip=(10 << 24) + 1, prefix=16, address="10.0.0.1/16", fresh=False),)
    assert [(it.what, it.uid, it.node) for it in outcome.changes] == [("taken over", "new", "n2")]


def test_the_same_uid_takes_its_kept_address_back() -> None:
    """A new sandbox of the same pod."""
    ledger = load()
    ledger.apply([claim("u1", pod=WEB, fixed=True)])
    ledger.apply([surrender("u1", retain=True)])
    assert address(one(ledger, claim("u1", cid="c2", pod=WEB, fixed=True))) == "10.0.0.1/16"
    assert "kept" not in stored(ledger)["10.0.0.1"]
    assert one(ledger, surrender("u1", cid="c1", retain=True)) == Surrendered(), "a late DEL of the old sandbox"


def test_a_repeated_retain_is_the_same_and_changes_nothing() -> None:
    ledger = load()
    ledger.apply([claim("u1", pod=WEB, fixed=True)])
    ledger.apply([surrender("u1", retain=True)])
    again = ledger.apply([surrender("u1", retain=True)])
    assert (again.answers, again.changed) == ((Surrendered(retained=("10.0.0.1",)),), False)


def test_what_the_old_sandbox_may_carry_is_refused_and_says_where() -> None:
    ledger = load()
    ledger.apply([claim("old", cid="c1", node="n1", pod=WEB, fixed=True)])
    outcome = ledger.apply([claim("new", cid="c2", node="n2", pod=WEB, fixed=True)])
    (refused,) = outcome.answers
    assert isinstance(refused, Refused)
    assert refused.retry
    assert reason(refused) == (
        NAME,
        "held",
        "a fixed address that no link carries any more",
        "10.0.0.1 held by uid old in container c1 on node n1",
    )
    assert not outcome.changed


def test_a_live_migration_takes_over_what_the_source_still_carries() -> None:
    ledger = load()
    ledger.apply([claim("source", cid="c1", node="n1", pod="ns/vm", fixed=True)])
    moved = one(ledger, claim("target", cid="c2", node="n2", pod="ns/vm", fixed=True, moving=True))
    assert plain(moved) == "10.0.0.1"
    assert one(ledger, surrender("source", cid="c1")) == Surrendered(), "the source's DEL finds nothing of its own"
    assert ledger.holds("target", "eth0")


def test_what_the_target_of_a_failed_migration_gives_up_is_the_sources_again() -> None:
    """It carries the address: kept would say that no link does, and the next pod of the name would get it."""
    ledger = load()
    ledger.apply([claim("source", cid="c1", node="n1", pod="ns/vm", fixed=True)])
    ledger.apply([claim("target", cid="c2", node="n2", pod="ns/vm", fixed=True, moving=True)])
    back = structs.replace(surrender("target", cid="c2", node="n2", retain=True), heir=Heir("source", "n1"))
    assert one(ledger, structs.replace(back, cid="c3")) == Surrendered() and ledger.holds("target", "eth0")
    assert one(ledger, back) == Surrendered()
    assert ledger.holds("source", "eth0") and not ledger.holds("target", "eth0")
    assert reason(one(ledger, claim("next", pod="ns/vm", fixed=True)))[1] == "held"
    assert one(reloaded(ledger), surrender("source", cid="c1", node="n1")) == Surrendered(ips=("10.0.0.1",))


def test_nobody_else_gets_what_is_kept() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.0.2"]))
    ledger.apply([claim("old", pod=WEB, fixed=True)])
    ledger.apply([surrender("old", retain=True)])
    answers = ledger.apply(
        [claim("new", pod=WEB), claim("a", pod="ns/web-1", fixed=True), claim("old", "net1", pod=WEB, fixed=True)]
    ).answers
    assert [plain(it) for it in answers] == ["10.0.0.2", "full", "full"]
    assert reason(answers[2])[1] == "full", "another NIC of the same name is another holder"


def test_every_nic_of_a_name_gets_its_own_back() -> None:
    ledger = load()
    ledger.apply([claim("old", "eth0", pod=WEB, fixed=True), claim("old", "net1", pod=WEB, fixed=True)])
    ledger.apply([surrender("old", "net1", keep=(), retain=True)])
    answers = ledger.apply(
        [claim("new", "net1", pod=WEB, fixed=True), claim("new", "eth0", pod=WEB, fixed=True)]
    ).answers
    assert [plain(it) for it in answers] == ["10.0.0.2", "10.0.0.1"]


def test_a_pool_that_is_switched_off_still_gives_a_name_what_is_kept() -> None:
    ledger = load()
    ledger.apply([claim("old", pod=WEB, fixed=True)])
    ledger.apply([surrender("old", retain=True)])
    off = make_pool(disable=True, allocated=ledger.status().allocated_ips)
    assert address(one(load(off), claim("new", pod=WEB, fixed=True))) == "10.0.0.1/16"


def test_a_kept_address_outside_of_the_ranges_goes_when_the_name_gets_another() -> None:
    ledger = load()
    ledger.apply([claim("old", pod=WEB, fixed=True)])
    ledger.apply([surrender("old", retain=True)])
    narrower = make_pool(exclude=["10.0.0.1"], allocated=ledger.status().allocated_ips)
    answer = one(moved := load(narrower), claim("new", pod=WEB, fixed=True))
    assert isinstance(answer, Granted)
    assert (answer.address, answer.dropped) == ("10.0.0.2/16", ("10.0.0.1",))
    assert list(stored(moved)) == ["10.0.0.2"]


@pytest.mark.parametrize("exclude", [["10.0.0.1"], []])
def test_what_nobody_could_get_again_is_freed_and_not_kept(exclude: list[str]) -> None:
    """It left the ranges, or a newer pod of the name has another address by now."""
    ledger = load()
    ledger.apply([claim("old", pod=WEB), *([] if exclude else [claim("new", pod=WEB)])])
    narrower = load(make_pool(exclude=exclude, allocated=ledger.status().allocated_ips))
    assert one(narrower, surrender("old", retain=True)) == Surrendered(ips=("10.0.0.1",))


# ---------------------------------------------------------------- records whose place nobody knows


def test_a_record_of_the_original_is_never_passed_on_before_its_place_is_known() -> None:
    text = json.dumps({"10.0.0.9": {"pod": WEB, "podUid": "old"}})
    refused = one(load(make_pool(allocated=text)), claim("new", pod=WEB, fixed=True))
    assert isinstance(refused, Refused)
    assert refused.retry
    assert reason(refused)[3] == "10.0.0.9 held by uid old and it is not known yet where it is carried"


def test_a_record_of_the_original_that_was_kept_passes_on() -> None:
    ledger = load(make_pool(allocated=json.dumps({"10.0.0.9": {"pod": WEB, "podUid": "old"}})))
    record = AllocationRecord(pod=WEB, pod_uid="old")
    kept = one(ledger, Reclaim(address="10.0.0.9", record=record, retain=True))
    assert kept == Surrendered(retained=("10.0.0.9",))
    assert address(one(ledger, claim("new", pod=WEB, fixed=True))) == "10.0.0.9/16"
    assert stored(ledger)["10.0.0.9"] == {"pod": WEB, "podUid": "new", "nic": "eth0", "node": "n1", "cid": "c1"}


def test_two_records_without_nic_of_a_name_leave_a_doubt() -> None:
    text = json.dumps({f"10.0.0.{at}": {"pod": WEB, "podUid": f"old{at}"} for at in (8, 9)})
    assert address(one(load(make_pool(allocated=text)), claim("new", pod=WEB, fixed=True))) == "10.0.0.1/16"


def test_only_exactly_the_record_that_was_judged_is_reclaimed() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1")))
    judged = AllocationRecord(pod="ns/u1", pod_uid="u1")
    ledger.apply([claim("u1")])
    assert one(ledger, Reclaim(address="10.0.0.9", record=judged)) == Surrendered(), "written anew since"
    assert one(ledger, Reclaim(address="10.0.0.8", record=judged)) == Surrendered()
    assert one(ledger, Reclaim(address="nonsense", record=judged)) == Surrendered()
    assert one(ledger, Reclaim(address="fd00::1", record=judged)) == Surrendered()
    now = ledger.records[(10 << 24) + 9]
    assert one(ledger, Reclaim(address="10.0.0.9", record=now)) == Surrendered(ips=("10.0.0.9",))


# ---------------------------------------------------------------- releases of what a sandbox has left


def test_everything_of_the_sandbox_but_what_it_keeps_goes() -> None:
    ledger = load()
    ledger.apply([claim(nic="eth0"), claim(nic="net1"), claim(nic="net2"), claim("u2")])
    assert one(ledger, surrender(nic="net1", keep=("eth0",))) == Surrendered(ips=("10.0.0.2", "10.0.0.3"))
    assert one(ledger, surrender(nic="eth0", keep=())) == Surrendered(ips=("10.0.0.1",))
    assert list(stored(ledger)) == ["10.0.0.4"]


def test_what_a_newer_sandbox_took_over_is_not_the_older_ones_to_give_up() -> None:
    ledger = load()
    ledger.apply([claim(nic="eth0", cid="c1"), claim(nic="net1", cid="c1")])
    ledger.apply([claim(nic="eth0", cid="c2")])
    assert one(ledger, surrender(nic="eth0", cid="c1", keep=())) == Surrendered(ips=("10.0.0.2",))
    assert ledger.holds("u1", "eth0")


def test_another_node_may_not_give_up_a_whole_sandbox() -> None:
    ledger = load()
    ledger.apply([claim(nic="eth0"), claim(nic="net1")])
    outcome = ledger.apply([surrender(nic="eth0", node="n2", keep=())])
    assert reason(outcome.answers[0])[1:] == ("node", "n2", "n1, for 10.0.0.1")
    assert not outcome.changed


def test_a_record_without_nic_goes_with_the_nic_that_asks() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1")))
    assert one(ledger, surrender(nic="net1", keep=("net1",))) == Surrendered()
    assert one(ledger, surrender(nic="net1", keep=("eth0",))) == Surrendered(ips=("10.0.0.9",))
