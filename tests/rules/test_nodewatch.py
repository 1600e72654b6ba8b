"""When a node counts as dead, against the plain rule over everything that was seen of it."""

from hypothesis import given
from hypothesis import strategies as st

from ipam.garbage import NodeState
from ipam.nodewatch import NodeWatch

GRACE = 120.0


@given(
    seen=st.lists(
        st.tuples(st.floats(1, 90), st.sampled_from([*NodeState, None])).map(lambda pair: (pair[0], pair[1])),
        max_size=15,
    )
)
def test_a_node_is_dead_when_it_has_been_in_trouble_and_silent_for_the_grace(
    seen: list[tuple[float, NodeState | None]],
) -> None:
    """Each is a pause and what came after it: a state of the node, or (None) a word of its agent."""
    watch = NodeWatch(grace=GRACE)
    now = 1000.0
    watch.begin(now)
    trouble: float | None = None
    heard = now
    state = NodeState.ALIVE
    for pause, what in seen:
        now += pause
        if what is None:
            heard = now
            watch.heard("n1", now)
        else:
            state = what
            watch.saw("n1", state, now)
            trouble = None if state is NodeState.ALIVE else now if trouble is None else trouble
        silent = now - max(heard, now if trouble is None else trouble)
        expected = {
            NodeState.ALIVE: False,
            NodeState.OUT_OF_SERVICE: True,
            NodeState.GONE: silent >= GRACE,
            NodeState.NOT_READY: trouble is not None and now - trouble >= GRACE and silent >= GRACE,
        }[state]
        assert watch.is_dead("n1", state, now) is expected
        if trouble is not None:
            later = max(watch.dies_at("n1", now), now)
            assert watch.is_dead("n1", NodeState.NOT_READY, later + 0.001)


def test_who_speaks_and_who_is_remembered() -> None:
    watch = NodeWatch(grace=GRACE)
    watch.begin(0.0)
    watch.heard("n1", 10.0)
    watch.heard("n2", 100.0)
    assert watch.speaking(129.0) == {"n1", "n2"} and watch.speaking(131.0) == {"n2"}
    assert watch.saw("n3", NodeState.GONE, 100.0) and set(watch.in_trouble) == {"n3"}
    watch.keep(["n1"])
    assert watch.speaking(100.0) == {"n1"} and not watch.in_trouble


def test_silence_counts_only_while_an_agent_would_have_been_heard() -> None:
    watch = NodeWatch(grace=GRACE)
    watch.begin(0.0)
    watch.saw("n1", NodeState.NOT_READY, 0.0)
    watch.deaf(100.0)
    assert not watch.is_dead("n1", NodeState.NOT_READY, 219.0)
    assert watch.is_dead("n1", NodeState.NOT_READY, 220.0)


def test_who_is_in_trouble_is_made_to_speak_many_times_within_the_grace() -> None:
    watch = NodeWatch(grace=20.0)
    watch.begin(0.0)
    assert watch.to_probe(0.0) == frozenset()
    watch.heard("n1", 0.0)
    watch.saw("n1", NodeState.NOT_READY, 0.0)
    probes = [now / 2 for now in range(40) if watch.to_probe(now / 2)]
    assert probes == [0.0, 5.0, 10.0, 15.0]
    assert watch.look_at("n1", 17.0) == 20.0 and watch.look_at("n1", 30.0) == 35.0
    watch.saw("n1", NodeState.ALIVE, 31.0)
    assert watch.to_probe(100.0) == frozenset()


def test_who_was_never_heard_has_a_moment_for_a_first_word() -> None:
    watch = NodeWatch(grace=2.0)
    watch.begin(0.0)
    watch.saw("n1", NodeState.NOT_READY, 0.0)
    assert not watch.is_dead("n1", NodeState.NOT_READY, 14.9)
    assert watch.is_dead("n1", NodeState.NOT_READY, 15.0)
    assert watch.is_dead("n1", NodeState.OUT_OF_SERVICE, 0.0)
