"""What agents were asked and what their answers prove: only what was asked, and seen after it was asked."""

import pytest

from api.ippool import AllocationRecord
from api.wire import Attachment, Look, Noted
from ipam.garbage import Held, Known
from ipam.inquiry import REST_SECONDS, Answer, Denial, Inquiry

CID = "c" * 12
PLACED = Held("v4", "10.6.0.5", AllocationRecord(pod="d/web", pod_uid="u1", nic="eth0", node="n1", cid=CID))
SUCCESSOR = Held("v4", "10.6.0.5", AllocationRecord(pod="d/db", pod_uid="u2", nic="eth0", node="n1", cid="d" * 12))
LEGACY = Held("v4", "10.6.0.6", AllocationRecord(pod="d/old", pod_uid="u3"))
NOBODY = Known(())


def asked(*held: Held, node: str = "n1", number: int = 7) -> Inquiry:
    inquiry = Inquiry()
    for one in held:
        inquiry.want(node, one, now=0.0)
    assert inquiry.question(node, number) == Noted(look=tuple(one.address for one in held), round=number)
    return inquiry


def told(
    inquiry: Inquiry,
    *looked: Look,
    node: str = "n1",
    number: int = 7,
    known: Known = NOBODY,
    foreign: tuple[Held, ...] = (),
) -> list[Denial]:
    """What an answer denies."""
    return list(inquiry.answer(node, number, looked, known, now=100.0, foreign=foreign).denials)


def test_an_address_that_is_not_found_and_a_sandbox_that_is_not_known_deny_a_record() -> None:
    inquiry = asked(PLACED)
    assert told(inquiry, Look(PLACED.address, carried=False)) == [Denial(PLACED, superseded=False)]
    assert not inquiry.wants("n1", PLACED)
    assert inquiry.question("n1", 8) == Noted()


def test_an_agent_that_carries_it_or_knows_the_sandbox_denies_nothing() -> None:
    known = Known([Attachment("u1", "eth0", CID)])
    assert told(asked(PLACED), Look(PLACED.address, carried=True)) == []
    assert told(asked(PLACED), Look(PLACED.address, carried=False), known=known) == []


def test_a_newer_sandbox_of_the_same_pod_is_told() -> None:
    known = Known([Attachment("u1", "eth0", "e" * 12)])
    assert told(asked(PLACED), Look(PLACED.address, carried=False), known=known) == [Denial(PLACED, superseded=True)]


def test_an_answer_to_another_question_proves_nothing() -> None:
    look = Look(PLACED.address, carried=False)
    for number in (0, 6, 8):
        inquiry = asked(PLACED)
        assert told(inquiry, look, number=number) == []
        assert told(inquiry, look)  # the question stands
    assert told(asked(PLACED), look, node="n2") == []


def test_an_answer_counts_once_and_for_the_record_of_then() -> None:
    """The address was given to another pod since: the late copy of an answer says nothing about that one."""
    look = Look(PLACED.address, carried=False)
    inquiry = asked(PLACED)
    inquiry.want("n1", SUCCESSOR, now=0.0)
    assert told(inquiry, look) == [Denial(PLACED, superseded=False)]
    assert inquiry.wants("n1", SUCCESSOR)
    assert told(inquiry, look) == []
    assert inquiry.question("n1", 8).look == (SUCCESSOR.address,)
    assert told(inquiry, look) == []
    assert told(inquiry, look, number=8) == [Denial(SUCCESSOR, superseded=False)]


@pytest.mark.parametrize("looked", [[], [Look(PLACED.address, carried=True)]])
def test_what_is_carried_or_could_not_be_seen_is_asked_for_again_later(looked: list[Look]) -> None:
    inquiry = asked(PLACED)
    assert inquiry.answer("n1", 7, looked, NOBODY, now=100.0) == Answer(open=(PLACED,))
    inquiry.want("n1", PLACED, now=100.0 + REST_SECONDS - 0.1)
    assert inquiry.question("n1", 8) == Noted()
    inquiry.want("n1", PLACED, now=100.0 + REST_SECONDS)
    assert inquiry.question("n1", 9).look == (PLACED.address,)


def test_a_record_without_a_node_is_denied_by_all_or_not_at_all() -> None:
    inquiry = Inquiry()
    assert inquiry.missing(LEGACY, {"n1", "n2"}) == {"n1", "n2"}
    look = Look(LEGACY.address, carried=False)
    for number, node in enumerate(("n1", "n2"), 1):
        inquiry.want(node, LEGACY, now=0.0)
        inquiry.question(node, number)
        assert told(inquiry, look, node=node, number=number) == [Denial(LEGACY, superseded=False)]
    assert inquiry.missing(LEGACY, {"n1", "n2"}) == frozenset()
    assert inquiry.missing(LEGACY, {"n1", "n2", "n3"}) == {"n3"}
    inquiry.want("n3", LEGACY, now=0.0)
    inquiry.question("n3", 3)
    assert told(inquiry, Look(LEGACY.address, carried=True), node="n3", number=3) == []
    assert inquiry.missing(LEGACY, {"n1", "n2"}) == {"n1", "n2"}


def test_an_agent_that_knows_the_pod_speaks_for_its_record_unless_the_record_has_another_name() -> None:
    known = Known([Attachment("u3", "eth0", CID)])
    look = Look(LEGACY.address, carried=False)
    assert told(asked(LEGACY), look, known=known) == []
    assert told(asked(LEGACY), look, known=known, foreign=(LEGACY,)) == [Denial(LEGACY, superseded=False)]


def test_what_is_new_is_told_once_and_what_is_gone_is_forgotten() -> None:
    inquiry = Inquiry()
    for node in ("n2", "n1", "n1"):
        inquiry.want(node, PLACED, now=0.0)
    assert inquiry.unasked() == ["n1", "n2"] and inquiry.unasked() == []
    inquiry.keep({"n1"}, lambda held: held == PLACED, now=0.0)
    assert inquiry.wants("n1", PLACED) and not inquiry.wants("n2", PLACED)
    inquiry.keep({"n1"}, lambda _: False, now=0.0)
    assert inquiry.question("n1", 1) == Noted()


def test_a_question_is_no_longer_than_an_agent_can_answer() -> None:
    inquiry = Inquiry()
    for number in range(1000):
        inquiry.want("n1", Held("v4", f"10.6.{number // 256}.{number % 256}", PLACED.record), now=0.0)
    first = inquiry.question("n1", 1).look
    assert len(first) == 512
    told(inquiry, *[Look(address, carried=False) for address in first], number=1)
    assert len(inquiry.question("n1", 2).look) == 488
