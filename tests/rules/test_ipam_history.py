"""The history of a pool: a book against a list that forgets nothing, pages that come back whole, and who had it."""

import random
import zlib
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from api.ippool import AllocationRecord
from ipam.history import (
    Book,
    Change,
    DamagedPage,
    Held,
    Stay,
    What,
    decoded,
    encoded,
    fitted,
    folded,
    missed,
    stays,
)

IP = "10.6.0.9"


def change(at: float, what: What, pod: str = "a", *, ip: str = IP, late: bool = False) -> Change:
    return Change(at, ip, what, f"default/{pod}", f"uid-{pod}", "eth0", "n1", f"cid-{pod}", late=late)


def record(pod: str = "a", *, kept: bool = False) -> AllocationRecord:
    return AllocationRecord(
        pod=f"default/{pod}", pod_uid=f"uid-{pod}", nic="eth0", node="n1", cid=f"cid-{pod}", kept=kept
    )


def book(*changes: Change, most: int = 2000) -> Book:
    return folded(Book(), changes, most=most)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_changes_are_kept_once_and_by_time() -> None:
    one, two, three = change(1, "granted"), change(2, "released"), change(3, "granted", "b")
    assert book(three, one).log == (one, three)
    assert folded(book(one, two), [two, three]).log == (one, two, three)
    assert folded(book(two), [one, two, two]).log == (one, two)
    same = book(one, two)
    assert folded(same, [one]) is same


def test_the_oldest_give_way_and_what_they_came_to_stays() -> None:
    found = book(change(1, "granted"), change(2, "granted", "b", ip="10.6.0.10"), change(3, "released"), most=2)
    assert found.since == 1
    assert list(found.held) == [IP]
    assert found.held[IP].at == 1
    found = folded(found, [change(4, "granted", "c")], most=1)
    assert (list(found.held), found.since) == (["10.6.0.10"], 3), "what was released is not held"
    assert [one.at for one in found.log] == [4]


def test_what_a_dead_owner_did_not_note_is_found_by_the_records() -> None:
    noted = book(
        change(1, "granted"), change(2, "granted", "b", ip="10.6.0.10"), change(2, "kept", "d", ip="10.6.0.12")
    )
    records = {
        IP: record("c"),
        "10.6.0.11": record("e", kept=True),
        "10.6.0.12": record("d"),
    }
    found = missed(noted, records, at=9)
    assert [(one.ip, one.what, one.pod, one.late) for one in found] == [
        ("10.6.0.10", "released", "default/b", True),
        ("10.6.0.11", "kept", "default/e", True),
        ("10.6.0.12", "taken over", "default/d", True),
        (IP, "taken over", "default/c", True),
    ]
    assert missed(folded(noted, found), records, at=10) == ()
    assert [one.ip for one in missed(noted, records, at=9, but=[IP, "10.6.0.12"])] == ["10.6.0.10", "10.6.0.11"]


def test_what_is_older_than_the_log_is_not_missed_but_another_holder_is() -> None:
    noted = book(change(1, "granted"), change(2, "granted", "b", ip="10.6.0.10"), most=1)
    assert missed(noted, {IP: record("a"), "10.6.0.10": record("b")}, at=9) == ()
    assert [one.what for one in missed(noted, {IP: record("x"), "10.6.0.10": record("b")}, at=9)] == ["taken over"]
    (gone,) = missed(noted, {"10.6.0.10": record("b")}, at=9)
    assert (gone.what, gone.pod) == ("released", ""), "who had it is not known any more"


def test_an_echo_of_what_is_noted_later_is_dropped() -> None:
    real, late = change(5, "granted"), change(6, "granted", late=True)
    assert book(real, late).log == (real,)
    assert folded(book(late), [real]).log == (real,), "the one who did it told it after all"
    ahead = change(7, "granted")
    assert folded(book(late), [ahead]).log == (ahead,), "though its clock is ahead"
    assert book(late, change(7, "released"), change(8, "granted")).log[0] == late, "another story"
    gone = change(9, "released", late=True)
    assert book(real, change(8, "released"), gone).log == (real, change(8, "released"))
    assert folded(book(real, late, gone), [change(8.5, "released")]).log == (real, change(8.5, "released"))


@st.composite
def lives(draw: st.DrawFn) -> list[Change]:
    """A pool's true changes, in order."""
    holders: dict[str, str] = {}
    told: list[Change] = []
    at = 0.0
    for number in range(draw(st.integers(0, 40))):
        at += draw(st.floats(0.001, 1000))
        ip = f"10.6.0.{draw(st.integers(1, 4))}"
        pod = holders.get(ip)
        if pod is None:
            holders[ip] = f"p{number}"
            told.append(change(at, "granted", holders[ip], ip=ip))
        else:
            what: What = draw(st.sampled_from(["released", "quarantined", "kept", "taken over"]))
            if what == "taken over":
                pod = holders[ip] = f"p{number}"
            elif what != "kept":
                del holders[ip]
            told.append(change(at, what, pod, ip=ip))
    return told


def records_after(changes: list[Change]) -> Mapping[str, AllocationRecord]:
    found: dict[str, AllocationRecord] = {}
    for one in changes:
        found.pop(one.ip, None)
        if one.holds:
            found[one.ip] = AllocationRecord(
                pod=one.pod, pod_uid=one.uid, nic=one.nic, node=one.node, cid=one.cid, kept=one.what == "kept"
            )
    return found


@given(lives(), st.integers(1, 50), st.randoms())
def test_a_book_is_the_end_of_the_story_however_it_was_told(
    told: list[Change], most: int, order: random.Random
) -> None:
    whole = folded(Book(), told, most=most)
    pieces = list(told)
    grown = Book()
    while pieces:
        size = order.randint(1, len(pieces))
        grown = folded(decoded(encoded(grown)), pieces[:size], most=most)
        if order.random() < 0.5:
            grown = folded(grown, pieces[:size], most=most) if most >= len(told) else grown
        pieces = pieces[size:]
    assert grown == whole
    assert len(whole.log) == min(most, len(told))
    assert [one.ip for one in whole.log] == [one.ip for one in told[len(told) - len(whole.log) :]]
    assert missed(whole, records_after(told), at=1e9) == ()


@given(lives(), lives(), st.integers(1, 50))
def test_after_a_look_at_the_records_a_book_knows_who_has_what(
    told: list[Change], lost: list[Change], most: int
) -> None:
    """Whatever was noted and whatever is true now: what is missed leads from one to the other, and nothing is twice."""
    noted = folded(Book(), told, most=most)
    truth = records_after([structs.replace(one, uid=f"other-{one.uid}") for one in lost])
    found = missed(noted, truth, at=1e7)
    after = folded(noted, found, most=2000)
    assert missed(after, truth, at=2e7) == ()
    ended = {stay.ip for stay in stays(after, truth) if stay.ended is None}
    assert ended == set(truth)
    for stay in stays(after, truth):
        if stay.ended is None:
            assert stay.uid == truth[stay.ip].pod_uid


@given(lives())
def test_two_owners_that_tell_in_turns_lose_nothing(told: list[Change]) -> None:
    mine, others = told[::2], told[1::2]
    assert folded(folded(Book(), mine), others).log == tuple(folded(Book(), told).log)
    assert folded(folded(Book(), others), mine).log == tuple(folded(Book(), told).log)


# -- storing -----------------------------------------------------------------------------------------------------------


def crowd(number: int, name: str = "default/deployment-6f7d9c8b5d-{}") -> list[Change]:
    rng = random.Random(1)

    def uid() -> str:
        return f"{rng.getrandbits(128):032x}"

    found = []
    for at in range(number):
        who = (name.format(at), uid(), "eth0", f"node-{at % 50}", uid()[:12])
        found.append(Change(1.75e9 + at, f"10.6.{at // 250}.{at % 250}", "granted", *who))
    return found


def test_a_full_page_of_a_big_pool_is_small() -> None:
    full = folded(Book(), crowd(7000))
    assert (len(full.log), len(full.held)) == (2000, 5000)
    page = fitted(full)
    assert decoded(page) == full
    assert len(page) * 4 // 3 < 200_000


def test_changes_with_long_names_are_kept_as_far_as_they_fit() -> None:
    rng = random.Random(2)
    long = [
        structs.replace(one, pod="ns/" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=250)))
        for one in crowd(2000)
    ]
    page = fitted(folded(Book(), long))
    assert len(page) * 4 // 3 <= 300_000
    kept = decoded(page)
    assert 700 < len(kept.log) < 2000
    assert kept.log[-1] == long[-1]
    assert len(kept.held) == 2000 - len(kept.log)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        zlib.compress(b"{"),
        zlib.compress(b"{}"),
        encoded(Book())[:-4],
        zlib.compress(b'{"format":2,"since":0,"holders":[],"log":[],"held":[]}'),
        zlib.compress(b'{"format":1,"since":0,"holders":[],"log":[[1,"10.6.0.9",0,0]],"held":[]}'),
        zlib.compress(b'{"format":1,"since":0,"holders":[["","","","",""]],"log":[[1,"10.6.0.9",-1,0]],"held":[]}'),
        zlib.compress(b'{"format":1,"since":0,"holders":[["","","","",""]],"log":[[1,"10.6.0.9",9,0]],"held":[]}'),
        zlib.compress(b" " * (17 << 20)),
    ],
)
def test_what_is_no_page_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(DamagedPage):
        decoded(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_page_or_none(data: bytes) -> None:
    for raw in (data, zlib.compress(data)):
        try:
            decoded(raw)
        except DamagedPage:
            continue


# -- asking ------------------------------------------------------------------------------------------------------------


def test_who_had_it_from_when_to_when() -> None:
    found = stays(
        book(
            change(1, "granted"),
            change(2, "kept"),
            change(3, "taken over", "a2"),
            change(4, "released", "a2"),
            change(5, "granted", "b"),
            change(6, "quarantined", "b"),
            change(7, "granted", "c"),
        )
    )
    assert [(stay.pod, stay.how, stay.began, stay.ended, stay.end) for stay in found] == [
        ("default/a", "granted", 1, 2, "kept"),
        ("default/a", "kept", 2, 3, "taken over"),
        ("default/a2", "taken over", 3, 4, "released"),
        ("default/b", "granted", 5, 6, "quarantined"),
        ("default/c", "granted", 7, None, ""),
    ]


def test_what_began_before_the_log_is_filled_in_from_the_end_or_from_the_records() -> None:
    old = book(
        change(1, "granted"),
        change(2, "granted", "b", ip="10.6.0.10"),
        change(3, "granted", "c", ip="10.6.0.11"),
        change(4, "released"),
        most=1,
    )
    records = {"10.6.0.10": record("b"), "10.6.0.11": record("x")}
    by_ip = {stay.ip: stay for stay in stays(old, records)}
    assert (by_ip[IP].pod, by_ip[IP].began, by_ip[IP].ended) == ("default/a", 1, 4)
    assert (by_ip["10.6.0.10"].pod, by_ip["10.6.0.10"].began) == ("default/b", 2)
    assert by_ip["10.6.0.11"].pod == "", "somebody else than now had it then"
    (only,) = stays(book(change(4, "released")))
    assert (only.pod, only.began, only.ended) == ("default/a", None, 4)


def test_what_was_found_late_says_so() -> None:
    (stay,) = stays(book(change(5, "granted", late=True), change(9, "released", late=True)))
    assert stay.noticed == ("began", "ended")
    assert msgspec.json.decode(msgspec.json.encode(stay), type=Stay) == stay


def test_a_held_address_of_the_page_is_what_was_held() -> None:
    page = Book(held={IP: Held(1.5, 2 * 7)}, since=2.25)
    assert decoded(encoded(page)) == page
