"""Addresses that a network provider has to know of: owed when their record goes, nobody's before they are settled."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from ipam.ledger import Ledger
from ipam.operations import Chase, Claim, Disown, Granted, Operation, Reclaim, Refused, Settle, Surrender, Surrendered
from ipam.territory import PoolError
from tests.rules.ipam_world import address, claim, disown, load, make_pool, one, reloaded, surrender

MAC = "02:00:00:00:00:01"
NOW = 1_800_000_000.0
FIRST = "10.0.0.1"


def provided(uid: str = "u1", *, by: int = 1000, **more: Any) -> Claim:
    return structs.replace(claim(uid, **more), parent_mac=MAC, by=by)


def ledger_of(*ips: str, cooldown: float = 30) -> Ledger:
    return load(make_pool(ips or ["10.0.0.1-10.0.0.2"]), cooldown=cooldown)


def withheld(ledger: Ledger) -> dict[str, dict[str, Any]]:
    return dict(json.loads(ledger.status().withheld_ips or "{}"))


def matched(ledger: Ledger, operation: Operation, *, now: float = NOW) -> bool:
    answer = one(ledger, operation, now=now)
    assert isinstance(answer, Surrendered)
    return bool(answer.ips)


def test_what_is_released_is_owed_until_it_is_settled() -> None:
    ledger = ledger_of(FIRST)
    one(ledger, provided(), now=NOW)
    one(ledger, surrender(), now=NOW)
    assert withheld(ledger) == {
        FIRST: {
            "owed": {"pod": "ns/u1", "podUid": "u1", "node": "n1", "parentNicMac": MAC, "by": 1000},
            "reason": "provider",
            "until": "9999-12-31T23:59:59Z",
        }
    }
    ledger = reloaded(ledger, cooldown=30)
    refused = one(ledger, claim("u2"), now=NOW + 1e6)
    assert isinstance(refused, Refused)
    assert refused.reason.seen == "0 taken, 1 not released by the network provider yet, 0 more reserved"
    assert not ledger.idle
    assert not matched(ledger, Settle(address=FIRST, by=999))
    assert not matched(ledger, Chase(address=FIRST, by=999, until=5000))
    assert not matched(ledger, Chase(address="10.0.0.2", by=1000, until=5000))
    assert not matched(ledger, Chase(address="nonsense", by=1000, until=5000))
    assert matched(ledger, Chase(address=FIRST, by=1000, until=5000))
    assert not matched(ledger, Chase(address=FIRST, by=1000, until=6000)), "somebody else is at it"
    assert not matched(ledger, Settle(address=FIRST, by=1000))
    assert matched(ledger, Settle(address=FIRST, by=5000), now=NOW + 100)
    assert withheld(ledger) == {FIRST: {"reason": "cool-down", "until": "2027-01-15T08:02:10Z"}}
    assert ledger.debts == []
    assert address(one(ledger, claim("u2"), now=NOW + 100)) == "10.0.0.1/16"


def test_a_release_that_does_not_count_changes_nothing() -> None:
    ledger = ledger_of()
    one(ledger, provided(), now=NOW)
    one(ledger, surrender(), now=NOW)
    outcome = ledger.apply([Chase(address=FIRST, by=1000, until=1000)], now=NOW)
    assert outcome.answers == (Surrendered(ips=(FIRST,)),)
    assert not outcome.changed


def test_an_address_in_conflict_stays_in_quarantine_when_it_is_settled() -> None:
    ledger = ledger_of()
    one(ledger, provided(), now=NOW)
    one(ledger, disown(FIRST), now=NOW)
    ledger = reloaded(ledger, cooldown=30)
    assert matched(ledger, Settle(address=FIRST, by=1000), now=NOW + 10)
    assert withheld(ledger)[FIRST]["reason"].startswith("conflict: ")
    assert address(one(ledger, claim("u2"), now=NOW + 10)) == "10.0.0.2/16"


def test_a_fixed_address_that_is_kept_is_owed_as_well() -> None:
    ledger = ledger_of()
    first = provided("u1", pod="ns/web-0", fixed=True)
    one(ledger, first, now=NOW)
    answer = one(ledger, surrender("u1", retain=True), now=NOW)
    assert answer == Surrendered(retained=(FIRST,))
    record = json.loads(ledger.status().allocated_ips or "{}")[FIRST]
    assert record["kept"]
    assert "parentNicMac" not in record
    second = provided("u2", pod="ns/web-0", fixed=True, by=2000)
    refused = one(ledger, second, now=NOW + 1)
    assert isinstance(refused, Refused)
    assert refused.retry
    assert refused.reason.predicate == "provider"
    # Kept or not: what nobody keeps any more is owed still.
    going = reloaded(ledger)
    one(going, structs.replace(surrender("u1", cid=""), kept_only=True), now=NOW)
    assert withheld(going)[FIRST]["reason"] == "provider"
    assert matched(ledger, Settle(address=FIRST, by=1000), now=NOW + 2)
    assert withheld(ledger) == {}
    assert address(one(ledger, second, now=NOW + 3)) == "10.0.0.1/16"
    assert json.loads(ledger.status().allocated_ips or "{}")[FIRST]["providerBy"] == 2000


def test_a_newer_sandbox_takes_the_debt_over_with_the_record() -> None:
    ledger = ledger_of()
    one(ledger, provided(by=2000), now=NOW)
    one(ledger, provided(by=1000, cid="c2"), now=NOW)
    one(ledger, surrender(cid="c2"), now=NOW)
    assert withheld(ledger)[FIRST]["owed"]["by"] == 2000, "both may be under way"


def test_nobody_gets_it_by_name() -> None:
    ledger = ledger_of()
    one(ledger, provided(), now=NOW)
    one(ledger, surrender(), now=NOW)
    refused = one(ledger, claim("u2", address=FIRST), now=NOW)
    assert isinstance(refused, Refused)
    assert refused.retry
    assert refused.reason.predicate == "provider"


@pytest.mark.parametrize("owed", ["soon", {"by": 1}, []])
def test_a_debt_that_cannot_be_read_is_said(owed: object) -> None:
    pool = make_pool()
    text = json.dumps({FIRST: {"reason": "provider", "until": "9999-12-31T23:59:59Z", "owed": owed}})
    with pytest.raises(PoolError, match="owes what cannot be read"):
        load(structs.replace(pool, status=structs.replace(pool.status, withheld_ips=text)))


def test_unknown_keys_of_a_debt_are_no_mistake() -> None:
    debt = {"pod": "ns/p", "podUid": "u", "node": "n", "parentNicMac": MAC, "by": 1, "later": True}
    text = json.dumps({FIRST: {"reason": "provider", "until": "9999-12-31T23:59:59Z", "owed": debt, "more": 1}})
    pool = make_pool()
    ledger = load(structs.replace(pool, status=structs.replace(pool.status, withheld_ips=text)))
    assert ledger.debts == [FIRST]
    assert withheld(ledger)[FIRST]["more"] == 1


# ---------------------------------------------------------------- any order of anything

POOL = tuple(f"10.0.0.{number}" for number in range(1, 5))
uids = st.sampled_from(["u1", "u2", "u3", "u4", "u5"])
bys = st.integers(1, 4)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(
        lambda uid, cid, by, fixed, told: structs.replace(
            claim(uid, cid=cid, pod="ns/web-0" if uid in ("u1", "u2") else f"ns/{uid}", fixed=fixed),
            parent_mac=MAC if told else "",
            by=by if told else 0,
        ),
        uids,
        st.sampled_from(["c1", "c2"]),
        bys,
        st.booleans(),
        st.sampled_from([True, True, False]),
    ),
    st.builds(
        lambda uid, cid, retain: surrender(uid, cid=cid, retain=retain),
        uids,
        st.sampled_from(["", "c1", "c2"]),
        st.booleans(),
    ),
    st.builds(lambda uid: structs.replace(surrender(uid, cid=""), kept_only=True), uids),
    st.builds(lambda uid, ip: disown(ip, uid=uid, cid=""), uids, st.sampled_from(POOL)),
    st.builds(Chase, address=st.sampled_from(POOL), by=bys, until=bys),
    st.builds(Settle, address=st.sampled_from(POOL), by=bys),
)


def holders(ledger: Ledger) -> dict[str, dict[str, Any]]:
    return json.loads(ledger.status().allocated_ips or "{}") or {}


@settings(max_examples=300)
@given(st.lists(operations, max_size=40), st.booleans())
def test_who_is_told_of_an_address_is_told_that_it_is_released(story: list[Operation], again: bool) -> None:
    """The model is the set of addresses that the provider may have. Only settling takes one out, and nobody gets it."""
    ledger = ledger_of("10.0.0.1-10.0.0.4", cooldown=3)
    told: dict[str, str] = {}
    now = NOW
    for operation in story:
        now += 1
        before = holders(ledger)
        outcome = ledger.apply([operation], now=now)
        (answer,) = outcome.answers
        if again:
            fresh = reloaded(ledger, cooldown=3)
            assert fresh.debts == ledger.debts
            ledger = fresh
        debts = set(ledger.debts)
        match operation, answer:
            case Claim(parent_mac=mac), Granted():
                ip = answer.address.partition("/")[0]
                if ip in told:
                    assert before[ip]["podUid"] == operation.uid or told[ip] == "", f"{ip} is owed, and granted"
                if mac:
                    told[ip] = operation.uid
            case Settle(), Surrendered(ips=(ip,)):
                assert ip not in holders(ledger) or holders(ledger)[ip].get("kept")
                del told[ip]
            case Disown() | Reclaim() | Surrender() | Chase() | Claim() | Settle(), _:
                pass
        records = holders(ledger)
        for ip in told:
            carried = ip in records and records[ip].get("parentNicMac") == MAC
            assert carried != (ip in debts), f"{ip} is told of, and neither held so nor owed"
        assert debts <= told.keys()
