"""Addresses that are asked for by name: how they are written, which pools have them, and who gets them."""

import pytest

from api.annotations import MULTUS_NETWORKS
from api.ippool import AllocationRecord, encode_records
from ipam.operations import Granted, Refused
from ipam.overlap import Overlap
from ipam.ranges import parse_ranges
from ipam.selection import SelectionError, select
from ipam.wishes import Wish, WishError, unfit, wishes
from tests.rules.ipam_world import address, claim, disown, load, make_pool, one, reason, stored, surrender
from tests.rules.selection_world import by_name, pool, request

WEB = "ns/web-0"


def test_one_a_family() -> None:
    found = wishes(("10.0.0.9", "fd00::9/64"))
    assert found == {4: Wish(4, (10 << 24) + 9, None), 6: Wish(6, (0xFD << 120) + 9, 64)}
    assert [(str(wish), wish.address) for wish in found.values()] == [
        ("10.0.0.9", "10.0.0.9"),
        ("fd00::9/64", "fd00::9"),
    ]
    assert wishes(()) == {}


@pytest.mark.parametrize(
    ("ips", "words"),
    [
        (("10.0.0.9", "10.0.0.8/16"), "'10.0.0.8/16': a NIC has one IPv4 address, and 10.0.0.9 is asked for too"),
        (("10.0.0",), "'10.0.0'"),
        (("",), "''"),
        (("fe80::1%eth0",), "has a zone"),
        (("10.0.0.9/33",), "'33' is no prefix length"),
        (("10.0.0.9/",), "'' is no prefix length"),
    ],
)
def test_what_cannot_be(ips: tuple[str, ...], words: str) -> None:
    with pytest.raises(WishError, match=r"^ips: ") as caught:
        wishes(ips)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("10.0.0.9", None),
        ("10.0.0.9/16", None),
        ("10.0.0.9/32", None),
        ("10.0.0.9/24", "subnet 10.0.0.0/16"),
        ("10.0.0.7", "10.0.0.1-10.0.0.6, 10.0.0.8-10.0.0.12, 10.0.0.20 and 1 more"),
        ("10.1.0.9", "10.0.0.1-10.0.0.6"),
        ("fd00::9", "10.0.0.1-10.0.0.6"),
    ],
)
def test_which_pools_have_it(text: str, seen: str | None) -> None:
    lan = make_pool(["10.0.0.1-10.0.0.12", "10.0.0.20", "10.0.0.30"], exclude=["10.0.0.7"])
    (wish,) = wishes((text,)).values()
    found = unfit(wish, lan)
    assert (found is None) == (seen is None)
    if found is not None and seen is not None:
        assert (found.predicate, found.wanted) == ("ips", text)
        assert seen in found.seen
    assert unfit(wish, make_pool(subnet="nonsense")) is not None


# -- choosing pools


def test_pools_without_it_are_passed_over() -> None:
    pools = by_name(pool("a", ips=["10.0.0.1-10.0.0.9"]), pool("b", ips=["10.0.1.1-10.0.1.9"]))
    asked = request({"ipv4": ["a", "b"]}, ips=("10.0.1.5",))
    chosen = select(asked, pools).asked
    assert (chosen.ipv4, chosen.named_ipv4, chosen.wished_ipv4) == (("b",), ("b",), "10.0.1.5")
    assert select(request({"ipv4": ["a", "b"]}), pools).asked.ipv4 == ("a", "b"), "negative control"


def test_what_a_name_has_in_a_pool_without_it_does_not_count() -> None:
    """So that it is given up: the pool is not among those that are named any more."""
    pools = by_name(pool("a", ips=["10.0.0.1-10.0.0.9"]), pool("b", ips=["10.0.1.1-10.0.1.9"]))
    asked = request({"ipv4": ["a", "b"]}, ips=("10.0.1.5",), holds=frozenset({("eth0", "a")}))
    chosen = select(asked, pools).asked
    assert (chosen.ipv4, chosen.named_ipv4) == (("b",), ("b",))


@pytest.mark.parametrize(
    ("ips", "cause", "words"),
    [
        (("10.0.9.9",), "no_available_pool", "a: rejected by ips: wanted 10.0.9.9, found 10.0.0.1-10.0.0.9"),
        (("fd00::9",), "wrong_input", "ips: fd00::9: annotation ipam.spidernet.io/ippool names no IPv6 pool for eth0"),
        (("10.0.0.1", "10.0.0.2"), "wrong_input", "a NIC has one IPv4 address"),
    ],
)
def test_what_no_pool_has_is_refused(ips: tuple[str, ...], cause: str, words: str) -> None:
    with pytest.raises(SelectionError) as caught:
        select(request({"ipv4": ["a"]}, ips=ips), by_name(pool("a", ips=["10.0.0.1-10.0.0.9"])))
    assert caught.value.cause == cause
    assert words in str(caught.value)
    assert cause != "wrong_input" or MULTUS_NETWORKS in str(caught.value)


# -- who gets it


def test_it_is_granted_though_others_come_first_by_number() -> None:
    ledger = load()
    answers = ledger.apply([claim("a", address="10.0.0.9"), claim("b"), claim("a", address="10.0.0.9")]).answers
    assert [address(answer) for answer in answers] == ["10.0.0.9/16", "10.0.0.1/16", "10.0.0.9/16"]
    assert [isinstance(answer, Granted) and answer.fresh for answer in answers] == [True, True, False]
    assert address(one(ledger, claim("c"))) == "10.0.0.2/16"


def test_one_that_rests_is_granted_all_the_same() -> None:
    ledger = load(cooldown=30.0)
    ledger.apply([claim("a", address="10.0.0.9")], now=1.0)
    ledger.apply([surrender("a")], now=2.0)
    assert address(one(ledger, claim("b", address="10.0.0.9"), now=3.0)) == "10.0.0.9/16"


def test_why_it_is_not_granted() -> None:
    ledger = load(reserved=parse_ranges(["10.0.0.3"], 4))
    ledger.reserve(parse_ranges(["10.0.0.3"], 4), Overlap((("other", parse_ranges(["10.0.0.4"], 4)),)))
    ledger.apply([claim("a", address="10.0.0.9"), claim("b", address="10.0.0.8")])
    ledger.apply([disown("10.0.0.8", uid="b")])
    before = stored(ledger)
    for wanted, predicate, retry, seen in (
        ("10.0.0.9", "taken", True, "held by pod ns/a, uid a"),
        ("10.0.0.8", "quarantine", True, "conflict: 02:00:00:00:00:99"),
        ("10.0.0.3", "ips", False, "SpiderReservedIP"),
        ("10.0.0.4", "overlap", False, "it lies in more than one pool: 10.0.0.4 with other"),
        ("10.0.0.13", "ips", False, "not of this pool"),
        ("fd00::9", "ips", False, "not of this pool"),
        ("10.0.0", "ips", False, "it is not an IP address"),
    ):
        answer = one(ledger, claim("c", address=wanted))
        assert isinstance(answer, Refused)
        assert (reason(answer)[1:3], answer.retry) == ((predicate, wanted), retry)
        assert seen in reason(answer)[3]
    assert stored(ledger) == before


def test_another_one_waits_until_the_first_is_given_back() -> None:
    """A new sandbox of a pod whose annotation was changed: the old one's link may still carry what it had."""
    ledger = load()
    ledger.apply([claim("a")])
    answer = one(ledger, claim("a", cid="c2", address="10.0.0.9"))
    assert isinstance(answer, Refused) and answer.retry
    assert reason(answer)[1:] == ("held", "10.0.0.9", "10.0.0.1, which container c1 on node n1 has still")
    ledger.apply([surrender("a")])
    assert address(one(ledger, claim("a", cid="c2", address="10.0.0.9"))) == "10.0.0.9/16"


def test_a_name_changes_over_when_nothing_carries_what_it_had() -> None:
    ledger = load()
    ledger.apply([claim("old", pod=WEB, fixed=True)])
    new = claim("new", cid="c2", pod=WEB, fixed=True, address="10.0.0.9")
    assert reason(one(ledger, new))[1] == "held"
    ledger.apply([surrender("old", retain=True)])
    answer = one(ledger, new)
    assert isinstance(answer, Granted)
    assert (answer.address, answer.dropped) == ("10.0.0.9/16", ("10.0.0.1",))
    assert list(stored(ledger)) == ["10.0.0.9"]


def test_a_name_keeps_what_it_asks_for() -> None:
    kept = AllocationRecord(pod=WEB, pod_uid="old", nic="eth0", node="n1", cid="c0", kept=True)
    ledger = load(make_pool(allocated=encode_records({"10.0.0.9": kept})))
    assert address(one(ledger, claim("new", pod=WEB, fixed=True, address="10.0.0.9"))) == "10.0.0.9/16"
    other = load(make_pool(allocated=encode_records({"10.0.0.9": kept})))
    taken = one(other, claim("x", pod="ns/x", fixed=True, address="10.0.0.9"))
    assert reason(taken)[1:] == ("taken", "10.0.0.9", f"kept for pod {WEB}, uid old")
