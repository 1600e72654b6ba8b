"""Rendezvous hashing: everybody agrees, a member that goes moves only its own, and nobody gets far too much."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from runtime.ownership import owner, ranking, score

MEMBERS = st.sets(st.text(min_size=1, max_size=12), min_size=1, max_size=8)
KEYS = st.text(max_size=20)


@given(key=KEYS, members=MEMBERS)
def test_everybody_agrees_whatever_the_order(key: str, members: set[str]) -> None:
    assert ranking(key, sorted(members)) == ranking(key, sorted(members, reverse=True))
    assert owner(key, members) == ranking(key, members)[0]
    assert set(ranking(key, members)) == members


@given(key=KEYS, members=MEMBERS, data=st.data())
def test_who_goes_moves_only_its_own_and_to_the_next_in_rank(key: str, members: set[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(members)))
    before, after = ranking(key, members), ranking(key, members - {gone})
    assert after == tuple(member for member in before if member != gone)


@given(key=KEYS, members=MEMBERS, new=st.text(min_size=1, max_size=12))
def test_who_comes_takes_from_others_and_moves_nothing_between_them(key: str, members: set[str], new: str) -> None:
    assert owner(key, members | {new}) in {owner(key, members), new}


def test_without_members_nobody_owns() -> None:
    assert owner("blue", ()) == ""
    assert ranking("blue", ()) == ()


def test_shares_are_fair_and_move_by_one_share() -> None:
    members = [f"spiderpool-controller-{letter}" for letter in "abc"]
    keys = [f"pool-{number}" for number in range(3000)]
    shares = Counter(owner(key, members) for key in keys)
    assert all(850 < share < 1150 for share in shares.values())
    moved = [key for key in keys if owner(key, members) != owner(key, members[:2])]
    assert len(moved) == shares[members[2]]


def test_scores_are_those_of_every_other_version() -> None:
    """A replica of another version must come to the same owner: these numbers may never change."""
    assert score("blue", "spiderpool-controller-0") == SCORE
    assert ranking("blue", ["a", "b", "c"]) == RANKING


SCORE = 12747010921613917933
RANKING = ("b", "c", "a")


def test_negative_control_a_hash_over_the_number_of_members_moves_nearly_everything() -> None:
    keys = [f"pool-{number}" for number in range(3000)]
    moved = [key for key in keys if score(key, "") % 3 != score(key, "") % 2]
    assert len(moved) > 1800
