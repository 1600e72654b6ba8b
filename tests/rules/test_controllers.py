"""An agent's way to any replica that answers: order, failover, doubt, and an end by the deadline."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors.node.controllers import Controllers
from api import wire
from runtime.testing import VirtualClock, run
from runtime.transport.port import Disconnected, Interim, Overloaded, Silent, TransportError, Unreachable


class Replica:
    """A channel that answers, or fails in one way for ever."""

    def __init__(self, failure: TransportError | None = None, *, connected: bool = True) -> None:
        self.failure = failure
        self.connected = connected
        self.asked = 0
        self.hurried = False

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,
        patient: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        self.asked += 1
        self.hurried = hurry
        await asyncio.sleep(0.001)
        if self.failure is not None:
            raise self.failure
        return wire.encode(wire.Ready())


def ask(*replicas: Replica, seconds: float = 5.0) -> tuple[Any, float]:
    """What comes of one request, and the virtual seconds it took."""

    async def main() -> tuple[Any, float]:
        controllers = Controllers(list(replicas), clock=VirtualClock())
        try:
            answer: Any = await controllers.ask(wire.Inquire(), deadline=seconds)
        except TransportError as error:
            answer = error
        return answer, asyncio.get_running_loop().time()

    body: Callable[[], Coroutine[Any, Any, tuple[Any, float]]] = main
    return run(body, seed=1)


def test_a_connected_replica_is_asked_first() -> None:
    down, up = Replica(Unreachable("down"), connected=False), Replica()
    answer, _ = ask(down, up)
    assert (answer.response, answer.doubtful, down.asked) == (wire.Ready(), False, 0)


def test_another_replica_takes_over_and_the_answer_is_in_doubt() -> None:
    answer, _ = ask(Replica(Disconnected("cut")), Replica())
    assert answer.doubtful


def test_an_overloaded_replica_is_not_worked_around() -> None:
    answer, _ = ask(Replica(Overloaded("busy")), Replica())
    assert isinstance(answer, Overloaded)


@pytest.mark.parametrize(("failure", "kind"), [(Unreachable("down"), Unreachable), (Disconnected("cut"), Disconnected)])
def test_it_ends_by_the_deadline_and_says_whether_something_may_have_happened(
    failure: TransportError, kind: type[TransportError]
) -> None:
    answer, seconds = ask(Replica(failure), Replica(failure))
    assert type(answer) is kind
    assert seconds == pytest.approx(5.0, abs=0.2)


def test_without_any_replica_it_ends_by_the_deadline_too() -> None:
    answer, seconds = ask()
    assert isinstance(answer, Unreachable)
    assert "no controller replica is known" in str(answer)
    assert seconds == pytest.approx(5.0, abs=0.2)


def test_only_who_has_somebody_else_to_ask_is_in_a_hurry() -> None:
    alone, down = Replica(), Replica(Unreachable("down"), connected=False)
    ask(alone, down)
    assert not alone.hurried
    first, second = Replica(), Replica()
    ask(first, second)
    assert first.hurried


def test_a_silent_replica_is_left_and_the_answer_is_in_doubt() -> None:
    answer, seconds = ask(Replica(Silent("hangs")), Replica())
    assert answer.doubtful
    assert seconds < 1.0


def test_nodes_spread_over_the_replicas_and_each_keeps_its_order() -> None:
    names = ("controller-a", "controller-b", "controller-c")
    first: set[str] = set()
    for node in (f"node-{number}" for number in range(20)):
        orders = set()
        for order in (names, names[::-1]):
            controllers = Controllers([], clock=VirtualClock(), node=node)
            replicas = {name: Replica() for name in names}
            for name in order:
                controllers.add(replicas[name], name=name)
            run(lambda asked=controllers: asked.ask(wire.Inquire(), deadline=5.0), seed=1)  # type: ignore[misc]
            orders.add(next(name for name, replica in replicas.items() if replica.asked))
        assert len(orders) == 1
        first |= orders
    assert first == set(names)


def test_listeners_hear_of_a_connection() -> None:
    controllers = Controllers([], clock=VirtualClock())
    heard: list[int] = []
    controllers.on_connect(lambda: heard.append(1))
    controllers.connected()
    assert heard == [1]


def test_the_last_resort_is_asked_only_where_no_replica_can_be() -> None:
    for connected in (True, False):
        replica, resort = Replica(connected=connected), Replica()
        controllers = Controllers([replica], clock=VirtualClock())
        controllers.resort_to(resort)
        run(lambda asked=controllers: asked.ask(wire.Inquire(), deadline=5.0), seed=1)  # type: ignore[misc]
        assert (replica.asked, resort.asked) == ((1, 0) if connected else (0, 1))
        assert controllers.connections == int(connected), "it is no replica"
    idle = Controllers([], clock=VirtualClock())
    idle.resort_to(Replica(connected=False))
    with pytest.raises(Unreachable):
        run(lambda: idle.ask(wire.Inquire(), deadline=1.0), seed=1)


@pytest.mark.parametrize("patient", [True, False])
def test_what_may_be_held_back_is_sent_once(patient: bool) -> None:
    broken, other = Replica(Disconnected("cut")), Replica()
    controllers = Controllers([broken, other], clock=VirtualClock())

    async def main() -> None:
        await controllers.ask(wire.Report(), deadline=5.0, patient=patient)

    if patient:
        with pytest.raises(Disconnected):
            run(main, seed=1)
    else:
        run(main, seed=1)
    assert (broken.asked, other.asked) == ((1, 0) if patient else (1, 1))
