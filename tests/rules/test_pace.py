"""Who cannot be served in time is told at the door, and nobody else."""

from actors.allocation.pace import Pace


def busy(*, under_way: int, rate: int, seconds: int) -> tuple[Pace, float]:
    """A pace at which so many are under way while `rate` a second end."""
    pace, now = Pace(), 0.0
    for _ in range(under_way):
        pace.begun(now=now)
    for _ in range(rate * seconds):
        now += 1 / rate
        pace.ended(now=now)
        pace.begun(now=now)
    return pace, now


def test_a_queue_that_ends_before_the_deadline_is_joined() -> None:
    pace, now = busy(under_way=1000, rate=200, seconds=10)
    assert 190 < pace.rate < 210
    assert pace.takes(now=now, deadline=now + 6)
    assert not pace.takes(now=now, deadline=now + 4)


def test_a_few_are_always_taken_however_slow_it_goes() -> None:
    pace, now = busy(under_way=200, rate=1, seconds=20)
    assert pace.takes(now=now, deadline=now + 0.5)


def test_at_first_nothing_is_known() -> None:
    pace = Pace()
    for _ in range(5000):
        assert pace.takes(now=0.0, deadline=1.0)
        pace.begun(now=0.0)


def test_idle_time_is_no_slowness() -> None:
    pace, now = busy(under_way=300, rate=100, seconds=10)
    for _ in range(300):
        pace.ended(now=now)
    for _ in range(300):
        pace.begun(now=now + 3600)
    assert pace.takes(now=now + 3600, deadline=now + 3606)


def test_what_stands_still_is_noticed() -> None:
    pace, now = busy(under_way=1000, rate=200, seconds=10)
    assert pace.takes(now=now, deadline=now + 20)
    assert not pace.takes(now=now + 15, deadline=now + 35)
