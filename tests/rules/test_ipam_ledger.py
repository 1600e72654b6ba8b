"""The ledger of one pool, case by case: what the author of a model could misread too."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool
from ipam.ledger import MAX_OBJECT_BYTES
from ipam.operations import Granted, Operation, Refused, Surrendered
from ipam.ranges import MAX_INT64, Ranges, parse_ranges
from ipam.territory import PoolError
from tests.rules.ipam_world import (
    NAME,
    address,
    batches,
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

# ---------------------------------------------------------------- claims


def test_lowest_first_and_the_answer() -> None:
    ledger = load(make_pool(["10.0.0.5-10.0.0.9"], exclude=["10.0.0.6"]), reserved=parse_ranges(["10.0.0.7"], 4))
    outcome = ledger.apply([claim("u1"), claim("u2")])
    assert outcome.answers == (
        Granted(ip=(10 << 24) + 5, prefix=16, address="10.0.0.5/16", fresh=True),
        Granted(ip=(10 << 24) + 8, prefix=16, address="10.0.0.8/16", fresh=True),
    )
    assert outcome.changed
    assert stored(ledger) == {
        "10.0.0.5": {"pod": "ns/u1", "podUid": "u1", "nic": "eth0", "node": "n1", "cid": "c1"},
        "10.0.0.8": {"pod": "ns/u2", "podUid": "u2", "nic": "eth0", "node": "n1", "cid": "c1"},
    }


def test_a_repeated_claim_gets_the_same_and_changes_nothing() -> None:
    ledger = load()
    first = one(ledger, claim())
    again = ledger.apply([claim()])
    assert not again.changed
    assert again.answers == (structs.replace(first, fresh=False),)


def test_two_nics_of_a_pod_in_one_pool_get_two_addresses() -> None:
    """The original gives both the same one."""
    ledger = load()
    answers = ledger.apply([claim(nic="eth0"), claim(nic="net1"), claim(nic="eth0")]).answers
    assert [address(answer) for answer in answers] == ["10.0.0.1/16", "10.0.0.2/16", "10.0.0.1/16"]


def test_two_pods_with_the_same_name_are_two_holders() -> None:
    ledger = load()
    answers = ledger.apply([claim("old", pod="ns/web-0"), claim("new", pod="ns/web-0")]).answers
    assert [address(answer) for answer in answers] == ["10.0.0.1/16", "10.0.0.2/16"]


def test_a_newer_sandbox_takes_the_record_over() -> None:
    ledger = load()
    ledger.apply([claim(cid="c1", node="n1")])
    outcome = ledger.apply([claim(cid="c2", node="n2")])
    assert outcome.changed
    assert address(outcome.answers[0]) == "10.0.0.1/16"
    assert stored(ledger)["10.0.0.1"] == {"pod": "ns/u1", "podUid": "u1", "nic": "eth0", "node": "n2", "cid": "c2"}
    assert one(ledger, surrender(cid="c1")) == Surrendered(), "the late DEL of the old sandbox"
    assert one(ledger, surrender(cid="c2")) == Surrendered(ips=("10.0.0.1",))


def test_a_sandbox_may_ask_whether_what_it_was_granted_is_still_its_own() -> None:
    ledger = load()
    question = structs.replace(claim(cid="c1"), confirm=True)
    assert reason(one(ledger, question)) == (NAME, "superseded", "a record of sandbox c1", "no record")
    ledger.apply([claim(cid="c1")])
    outcome = ledger.apply([question])
    assert address(outcome.answers[0]) == "10.0.0.1/16" and not outcome.changed
    ledger.apply([claim(cid="c2")])
    outcome = ledger.apply([question])
    assert reason(outcome.answers[0]) == (NAME, "superseded", "a record of sandbox c1", "one of sandbox c2")
    assert not outcome.changed, "an old sandbox that asks takes nothing over"


def test_a_claim_of_the_old_sandbox_that_comes_late_is_undone_by_its_release() -> None:
    ledger = load()
    ledger.apply([claim(cid="c2", node="n1"), claim("u9", cid="c1")])
    ledger.apply([claim(cid="c1", node="n1")])
    outcome = ledger.apply([surrender(cid="c1", node="n1", successor="c2")])
    assert (outcome.answers, outcome.changed) == ((Surrendered(),), True)
    assert stored(ledger)["10.0.0.1"]["cid"] == "c2"
    assert stored(ledger)["10.0.0.2"]["podUid"] == "u9"
    assert not ledger.apply([surrender(cid="c1", node="n1", successor="c2")]).changed, "twice is no error"
    assert one(ledger, surrender(cid="c2")) == Surrendered(ips=("10.0.0.1",))


def test_an_address_freed_in_a_batch_serves_a_claim_before_it_in_the_same_batch() -> None:
    ledger = load(make_pool(["10.0.0.1"]))
    ledger.apply([claim("u1")])
    outcome = ledger.apply([claim("u2"), surrender("u1")])
    assert outcome.answers[1] == Surrendered(ips=("10.0.0.1",))
    assert address(outcome.answers[0]) == "10.0.0.1/16"


@pytest.mark.parametrize("name", ["pod", "uid", "nic", "node", "cid"])
def test_a_claim_that_could_never_be_released_is_refused_alone(name: str) -> None:
    ledger = load()
    outcome = ledger.apply([structs.replace(claim(), **{name: ""}), claim("u2")])
    assert reason(outcome.answers[0]) == (NAME, "claim", "pod, uid, nic, node, cid", f"no {name}")
    assert address(outcome.answers[1]) == "10.0.0.1/16"


def test_ipv6_keys_and_answers() -> None:
    pool = make_pool(["FD00:0:0::0a-fd00::ffff:ffff:ffff:ffff"], subnet="fd00::/64")
    ledger = load(pool, reserved=parse_ranges(["fd00::b"], 6))
    answers = ledger.apply([claim("u1"), claim("u2")]).answers
    assert [address(answer) for answer in answers] == ["fd00::a/64", "fd00::c/64"]
    assert list(stored(ledger)) == ["fd00::a", "fd00::c"]
    assert ledger.status().total_ip_count == MAX_INT64
    assert ledger.version == 6


# ---------------------------------------------------------------- releases


def test_only_uid_nic_and_cid_together_release() -> None:
    ledger = load()
    ledger.apply([claim("u1", "eth0", "c1")])
    before = ledger.status()
    wrong = [
        surrender("u2", "eth0", "c1"),
        surrender("u1", "net1", "c1"),
        surrender("u1", "eth0", "c2"),
        surrender("", "eth0", "c1"),
        surrender("u1", "", "c1"),
    ]
    outcome = ledger.apply(wrong)
    assert set(outcome.answers) == {Surrendered()}
    assert not outcome.changed
    assert ledger.status() == before
    assert one(ledger, surrender("u1", "eth0", "")) == Surrendered(ips=("10.0.0.1",)), "no cid: any sandbox"
    assert ledger.status().allocated_ips is None
    assert one(ledger, surrender("u1", "eth0", "c1")) == Surrendered(), "twice is no error"


def test_a_release_touches_one_nic_only() -> None:
    ledger = load()
    ledger.apply([claim(nic="eth0"), claim(nic="net1")])
    ledger.apply([surrender(nic="eth0")])
    assert {record["nic"] for record in stored(ledger).values()} == {"net1"}


def test_another_node_is_refused_and_told_which() -> None:
    ledger = load()
    ledger.apply([claim(node="n1")])
    outcome = ledger.apply([surrender(node="n2")])
    assert reason(outcome.answers[0]) == (NAME, "node", "n2", "n1, for 10.0.0.1")
    assert not outcome.changed
    assert one(ledger, surrender(cid="c2", node="n2")) == Surrendered(), "not of this sandbox: nothing to refuse"
    assert one(ledger, surrender(node="n1")) == Surrendered(ips=("10.0.0.1",))


def test_a_record_that_names_no_node_is_released_by_any() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1")))
    assert one(ledger, surrender(node="n7")) == Surrendered(ips=("10.0.0.9",))


# ---------------------------------------------------------------- records of other programs


def test_a_record_without_nic_is_taken_over_and_named() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1")))
    outcome = ledger.apply([claim()])
    assert outcome.answers == (Granted(ip=(10 << 24) + 9, prefix=16, address="10.0.0.9/16", fresh=False),)
    assert stored(ledger)["10.0.0.9"] == {"pod": "ns/u1", "podUid": "u1", "nic": "eth0", "node": "n1", "cid": "c1"}
    assert address(one(ledger, claim(nic="net1"))) == "10.0.0.1/16", "named now, so no longer anybody's"


def test_a_record_without_nic_is_released_by_uid() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1", ip_10_0_0_8="u2")))
    assert one(ledger, surrender("u1", "net7", "c9")) == Surrendered(ips=("10.0.0.9",))
    assert list(stored(ledger)) == ["10.0.0.8"]


def test_a_record_without_nic_beside_one_with_is_left_alone() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_8="u1")))
    ledger.apply([claim(nic="eth0")])
    beside = json.loads(foreign(ip_10_0_0_9="u1")) | stored(ledger)
    ledger = load(make_pool(allocated=json.dumps(beside)))
    assert one(ledger, surrender(nic="net1", cid="")) == Surrendered()
    assert address(one(ledger, claim(nic="net1"))) == "10.0.0.1/16"
    assert one(ledger, surrender(nic="eth0")) == Surrendered(ips=("10.0.0.8",))


def test_two_records_without_nic_belong_to_nobody_in_particular() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_8="u1", ip_10_0_0_9="u1")))
    assert ledger.find("u1", "eth0") is None
    assert len(ledger.held("u1")) == 2
    assert one(ledger, surrender(cid="")) == Surrendered()
    assert address(one(ledger, claim())) == "10.0.0.1/16"


def test_a_record_without_uid_holds_its_address_against_everybody() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.0.2"], allocated='{"10.0.0.1":{"pod":"ns/x","podUid":""}}'))
    assert one(ledger, surrender(uid="", cid="")) == Surrendered()
    assert address(one(ledger, claim())) == "10.0.0.2/16"
    assert ledger.held("") == ()


def test_other_fields_survive_whatever_happens_to_the_rest() -> None:
    text = json.dumps(
        {
            "10.0.0.1": {"pod": "vm/disk", "podUid": "u1", "x-owner": {"deep": [1, "ü", None]}},
            "10.0.0.2": {"pod": 'odd"name\\', "podUid": "u2", "since": 7},
            "10.0.99.9": {"pod": "ns/out-of-range", "podUid": "u3"},
        }
    )
    ledger = load(make_pool(allocated=text))
    outcome = ledger.apply([claim("u1", pod="vm/other"), claim("u4")])
    expected = json.loads(text)
    expected["10.0.0.1"] |= {"nic": "eth0", "node": "n1", "cid": "c1"}
    expected["10.0.0.3"] = {"pod": "ns/u4", "podUid": "u4", "nic": "eth0", "node": "n1", "cid": "c1"}
    assert stored(ledger) == expected
    assert reloaded(ledger).records == ledger.records
    ledger.revert(outcome)
    assert stored(ledger) == json.loads(text)


def test_the_rest_of_the_status_is_as_loaded() -> None:
    withheld = '{"10.0.0.3":{"until":"2026-01-01T00:00:00Z","reason":"cool-down"}}'
    ledger = load(make_pool(status=IPPoolStatus(withheld_ips=withheld)))
    assert ledger.status() == IPPoolStatus(total_ip_count=12, allocated_ip_count=0, withheld_ips=withheld)


def test_keys_are_sorted_as_text() -> None:
    ledger = load(make_pool(["10.0.0.9-10.0.0.11"]))
    ledger.apply([claim("u1"), claim("u2"), claim("u3")])
    assert list(stored(ledger)) == ["10.0.0.10", "10.0.0.11", "10.0.0.9"]


# ---------------------------------------------------------------- refusals


def test_a_disabled_pool_grants_nothing_new_but_leaves_what_is_in_use() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1"), disable=True))
    outcome = ledger.apply([claim("u1"), claim("u2"), surrender("u1", cid="")])
    assert reason(outcome.answers[0]) == (NAME, "disable", "false", "true"), "released first"
    ledger.revert(outcome)
    assert address(one(ledger, claim("u1"))) == "10.0.0.9/16"
    assert reason(one(ledger, claim("u2"))) == (NAME, "disable", "false", "true")


def test_a_terminating_pool_grants_nothing_new_but_leaves_what_is_in_use() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1"), deleted="2026-01-01T00:00:00Z"))
    assert address(one(ledger, claim("u1"))) == "10.0.0.9/16"
    assert reason(one(ledger, claim("u2"))) == (
        NAME,
        "terminating",
        "no deletionTimestamp",
        "2026-01-01T00:00:00Z",
    )


def test_a_full_pool_says_so_and_still_serves_its_holders() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.0.3"]), reserved=parse_ranges(["10.0.0.2"], 4))
    outcome = ledger.apply([claim("u1"), claim("u2"), claim("u3"), claim("u1")])
    assert reason(outcome.answers[2]) == (NAME, "full", "a free address", "all 2 taken, 1 more reserved")
    assert address(outcome.answers[3]) == "10.0.0.1/16"


def test_a_pool_without_addresses_is_full() -> None:
    assert reason(one(load(make_pool([])), claim()))[1:] == ("full", "a free address", "all 0 taken, 0 more reserved")


def test_max_records_counts_foreign_ones_and_those_outside_of_the_ranges() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_9_9="u8", ip_10_0_0_9="u9")), max_records=3)
    outcome = ledger.apply([claim("u1"), claim("u2"), claim("u9")])
    assert reason(outcome.answers[1]) == (NAME, "max-records", "fewer than 3 records", "3")
    assert address(outcome.answers[2]) == "10.0.0.9/16"


def test_an_address_that_left_the_ranges_is_not_kept() -> None:
    ledger = load(make_pool(exclude=["10.0.0.9"], allocated=foreign(ip_10_0_0_9="u1")), max_records=1)
    answer = one(ledger, claim())
    assert isinstance(answer, Granted)
    assert (answer.address, answer.fresh, answer.dropped) == ("10.0.0.1/16", True, ("10.0.0.9",))
    assert list(stored(ledger)) == ["10.0.0.1"]


def test_an_address_that_left_the_ranges_stays_recorded_until_there_is_another() -> None:
    ledger = load(make_pool(["10.0.0.1"], allocated=foreign(ip_10_0_0_1="u2", ip_10_0_0_9="u1")))
    outcome = ledger.apply([claim("u1")])
    assert reason(outcome.answers[0])[1] == "full"
    assert not outcome.changed
    assert one(ledger, surrender("u1", cid="")) == Surrendered(ips=("10.0.0.9",))
    assert ledger.status().allocated_ip_count == 1


def test_an_address_that_was_reserved_later_is_kept() -> None:
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_9="u1")), reserved=parse_ranges(["10.0.0.9"], 4))
    assert address(one(ledger, claim())) == "10.0.0.9/16"
    ledger.apply([surrender()])
    answers = ledger.apply([claim(f"v{at}") for at in range(12)]).answers
    assert "10.0.0.9/16" not in {address(answer) for answer in answers[:11]}
    assert reason(answers[11])[1] == "full"


def test_an_address_that_is_reserved_now_is_not_granted_now() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.0.3"]))
    ledger.apply([claim("u1")])
    ledger.reserve(parse_ranges(["10.0.0.1-10.0.0.2"], 4))
    answers = ledger.apply([claim("u1"), claim("u2"), claim("u3")]).answers
    assert [plain(answer) for answer in answers] == ["10.0.0.1", "10.0.0.3", "full"]
    assert reason(answers[2])[3] == "all 1 taken, 2 more reserved"
    ledger.reserve(Ranges(4))
    assert address(one(ledger, claim("u3"))) == "10.0.0.2/16"
    with pytest.raises(ValueError, match="nothing in common"):
        ledger.reserve(Ranges(6))


def test_an_object_near_the_limit_of_etcd_takes_no_more() -> None:
    ledger = load(make_pool(["10.0.0.1-10.0.255.254"], allocated=foreign(ip_10_0_0_1="old")), max_records=100_000)
    granted = 0
    while not isinstance(answer := one(ledger, claim(f"{granted:036}", pod="n" * 63 + "/" + "p" * 200)), Refused):
        granted += 1
    assert reason(answer)[1:3] == ("object-size", f"an object below {MAX_OBJECT_BYTES} bytes")
    encoded = len(msgspec.json.encode(structs.replace(ledger.pool, status=ledger.status())))
    assert 0.98 * MAX_OBJECT_BYTES < encoded < MAX_OBJECT_BYTES
    assert address(one(ledger, claim(f"{0:036}", cid="c2"))) == "10.0.0.2/16", "a newer sandbox adds no bytes"
    assert reason(one(ledger, claim("old", nic="n" * 600)))[1] == "object-size", "naming a foreign record does"
    assert len(one(ledger, surrender(f"{0:036}", cid="")).ips) == 1  # type: ignore[union-attr]


# ---------------------------------------------------------------- revert and replay


def test_only_the_latest_outcome_can_be_reverted() -> None:
    ledger = load()
    first = ledger.apply([claim("u1")])
    second = ledger.apply([claim("u2")])
    with pytest.raises(ValueError, match="only the latest"):
        ledger.revert(first)
    ledger.revert(second)
    assert list(stored(ledger)) == ["10.0.0.1"]
    assert address(one(ledger, claim("u3"))) == "10.0.0.2/16"


def test_replaying_a_batch_that_was_written_after_all_gives_the_same_answers() -> None:
    """The reply to the write was lost; the newer object has the records already."""
    ledger = load(make_pool(allocated=foreign(ip_10_0_0_5="u5")))
    batch: list[Operation] = [claim("u1"), surrender("u5", cid=""), claim("u2"), claim("u1", "net1")]
    first = ledger.apply(batch)
    again = reloaded(ledger).apply(batch)
    assert not again.changed
    assert [plain(answer) for answer in again.answers] == ["10.0.0.1", (), "10.0.0.2", "10.0.0.3"]
    assert [plain(answer) for answer in first.answers] == ["10.0.0.1", ("10.0.0.5",), "10.0.0.2", "10.0.0.3"]


def test_a_replay_sees_the_newer_spec() -> None:
    batch = [claim("u1")]
    assert address(load().apply(batch).answers[0]) == "10.0.0.1/16"
    assert address(load(make_pool(exclude=["10.0.0.1"])).apply(batch).answers[0]) == "10.0.0.2/16"
    assert reason(load(make_pool(disable=True)).apply(batch).answers[0])[1] == "disable"


@settings(max_examples=60, deadline=None)
@given(st.lists(batches, max_size=5), batches)
def test_revert_restores_answers_of_the_future_too(past: list[list[Operation]], lost: list[Operation]) -> None:
    ledger, untouched = load(), load()
    for batch in past:
        ledger.apply(batch)
        untouched.apply(batch)
    ledger.revert(ledger.apply(lost))
    assert ledger.status() == untouched.status()
    assert ledger.apply(lost).answers == untouched.apply(lost).answers


# ---------------------------------------------------------------- objects that cannot be trusted


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("{", "{"),
        ("[]", "[]"),
        ('{"10.0.0.1":{"pod":"ns/a"}}', '{"10.0.0.1":{"pod":"ns/a"}}'),
        ('{"10.0.0.1":{"pod":1,"podUid":"u"}}', '{"10.0.0.1":{"pod":1,"podUid":"u"}}'),
        ('{"10.0.0.1":"u1"}', '{"10.0.0.1":"u1"}'),
        ('{"nonsense":{"pod":"ns/a","podUid":"u"}}', "nonsense"),
        ('{"10.0.0.1/16":{"pod":"ns/a","podUid":"u"}}', "10.0.0.1/16"),
        ('{"fd00::1":{"pod":"ns/a","podUid":"u"}}', "fd00::1"),
        ('{"::ffff:10.0.0.1":{"pod":"ns/a","podUid":"u"}}', "::ffff:10.0.0.1"),
    ],
)
def test_a_malformed_table_is_reported_and_not_overwritten(text: str, content: str) -> None:
    with pytest.raises(PoolError) as caught:
        load(make_pool(allocated=text))
    assert (caught.value.pool, caught.value.field, caught.value.content) == (NAME, "status.allocatedIPs", content)
    assert str(caught.value).startswith(f"SpiderIPPool {NAME}: status.allocatedIPs: ")
    assert repr(content) in str(caught.value)


def test_a_second_spelling_of_an_address_is_reported() -> None:
    with pytest.raises(PoolError, match="this key is not written as fd00::1"):
        load(
            make_pool(["fd00::1"], subnet="fd00::/64", allocated='{"FD00::1":{"pod":"ns/a","podUid":"u"}}'),
            reserved=Ranges(6),
        )


def test_a_long_table_is_cut_in_the_message() -> None:
    with pytest.raises(PoolError) as caught:
        load(make_pool(allocated="x" * 100_000))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (make_pool(["10.0.0.9-10.0.0.1"]), r"spec\.ips\[0\]: the first address is above the last: '10.0.0.9-10.0.0.1'"),
        (make_pool(exclude=["10.0.0.3", "10.0.0.0/30"]), r"spec\.excludeIPs\[1\]: a CIDR is not allowed"),
        (make_pool(["fd00::1"]), r"spec\.ips\[0\]: an IPv6 address where IPv4 is expected: 'fd00::1'"),
        (make_pool(subnet="10.0.0.0"), r"spec\.subnet: is not a CIDR: '10.0.0.0'"),
        (make_pool(subnet="10.0.0.0/33"), r"spec\.subnet: is not a CIDR: '10.0.0.0/33'"),
        (make_pool(subnet="10.0.0.0/x"), r"spec\.subnet: is not a CIDR: '10.0.0.0/x'"),
        (make_pool(subnet=""), r"spec\.subnet: is not an IP address: ''"),
        (
            structs.replace(make_pool(), spec=IPPoolSpec(ip_version=6, subnet="10.0.0.0/16")),
            r"spec\.ipVersion: spec\.subnet is 10\.0\.0\.0/16: '6'",
        ),
    ],
)
def test_a_malformed_spec_is_reported(pool: SpiderIPPool, message: str) -> None:
    with pytest.raises(PoolError, match=f"^SpiderIPPool {NAME}: {message}"):
        load(pool)


# ---------------------------------------------------------------- looking


def test_records_are_a_live_read_only_view() -> None:
    ledger = load()
    view = ledger.records
    ledger.apply([claim()])
    assert view == {(10 << 24) + 1: AllocationRecord(pod="ns/u1", pod_uid="u1", nic="eth0", node="n1", cid="c1")}
    with pytest.raises(TypeError):
        view[1] = view[(10 << 24) + 1]  # type: ignore[index]
    assert repr(ledger) == "Ledger(lan, records=1, addresses=12)"


def test_an_empty_batch_changes_nothing() -> None:
    outcome = load().apply([])
    assert (outcome.answers, outcome.changed, outcome.undo) == ((), False, ())


# ---------------------------------------------------------------- two sandboxes of a pod, and whose word counts


def test_a_late_claim_of_an_earlier_sandbox_is_told_so_and_changes_nothing() -> None:
    ledger = load()
    one(ledger, structs.replace(claim("u1", cid="old"), begun=1000))
    one(ledger, structs.replace(claim("u1", cid="new"), begun=3000, disputed=True))
    late = ledger.apply([structs.replace(claim("u1", cid="old"), begun=1000)])
    assert not late.changed
    answer = late.answers[0]
    assert isinstance(answer, Refused) and answer.reason.predicate == "superseded"
    assert stored(ledger)["10.0.0.1"]["cid"] == "new"


def test_where_nothing_is_disputed_nothing_is_noted() -> None:
    ledger = load()
    one(ledger, structs.replace(claim("u1"), begun=1000))
    assert "begun" not in stored(ledger)["10.0.0.1"]


def test_a_clock_that_was_set_back_keeps_nobody_out() -> None:
    ledger = load()
    one(ledger, structs.replace(claim("u1", cid="c1"), begun=9_000_000, disputed=True))
    later = one(ledger, structs.replace(claim("u1", cid="c2"), begun=1_000, disputed=True))
    assert isinstance(later, Granted)
    assert stored(ledger)["10.0.0.1"]["begun"] == 1_000


def test_another_pod_of_the_name_is_no_earlier_sandbox() -> None:
    ledger = load()
    one(ledger, structs.replace(claim("u1"), begun=9_000, disputed=True, fixed=True))
    ledger.apply([surrender("u1", retain=True)])
    taken = one(ledger, structs.replace(claim("u2", pod="ns/u1"), begun=8_000, fixed=True))
    assert isinstance(taken, Granted)
