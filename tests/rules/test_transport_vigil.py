"""When somebody who owes an answer counts as silent, and what watching costs, on a clock of the test's own."""

from runtime.transport.vigil import Patience, Vigil

PATIENCE = Patience()


def watch(*, answers: float | None, until: float, stall: float = 0.0) -> tuple[float | None, float | None, int]:
    """A request waits from 0 on; the other end answers pings before `answers`, and then no more.

    Returns when it counted as silent, when as broken, and how many pings were sent. `stall` delays the first look.
    """
    vigil = Vigil(PATIENCE)
    now, heard, pings, silent = vigil.begin(0.0) + stall, -100.0, 0, None
    while now < until:
        verdict = vigil.look(now, heard)
        if verdict.ping:
            pings += 1
            if answers is None or now < answers:
                heard = now + 0.001
        if verdict.silent and silent is None:
            silent = now
        if verdict.broken:
            return silent, now, pings
        assert verdict.again > now
        now = verdict.again
    return silent, None, pings


def test_who_never_answers_is_silent_after_three_tenths_and_broken_after_three_seconds() -> None:
    silent, broken, pings = watch(answers=0.0, until=10.0)
    assert silent is not None and abs(silent - 0.3) < 0.01
    assert broken is not None and abs(broken - 3.0) < 0.01
    assert pings <= 4


def test_who_answers_is_never_silent_and_is_asked_once_a_second_in_the_end() -> None:
    silent, broken, pings = watch(answers=None, until=20.0)
    assert (silent, broken) == (None, None)
    assert 20 <= pings <= 26


def test_who_hangs_later_is_found_too() -> None:
    silent, broken, _ = watch(answers=5.0, until=20.0)
    assert silent is not None and 5.0 < silent < 6.6
    assert broken is not None and broken > silent


def test_a_process_that_slept_itself_accuses_nobody() -> None:
    vigil = Vigil(PATIENCE)
    due = vigil.begin(0.0)
    assert vigil.look(due, -100.0).ping
    late = vigil.look(due + 60.0, -100.0)
    assert not late.silent and not late.broken


def test_negative_control_without_the_stall_rule_the_same_look_accuses() -> None:
    vigil = Vigil(PATIENCE)
    verdict = vigil.look(vigil.begin(0.0), -100.0)
    assert vigil.look(verdict.again, -100.0).silent


def test_data_that_comes_counts_as_an_answer() -> None:
    vigil = Vigil(PATIENCE)
    now = vigil.begin(0.0)
    for _ in range(50):
        verdict = vigil.look(now, now - 0.01)
        assert not verdict.ping and not verdict.silent
        now = verdict.again
