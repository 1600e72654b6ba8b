"""A grant that is known before the request for it is answered."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from actors.node.asking import Asking
from actors.node.controllers import Controllers
from api import wire
from api.reasons import Explanation
from api.wire import Address, Allocate, Allocated, PodRef, Rejected
from cni.errors import TryAgainLater
from runtime.testing import VirtualClock, run
from runtime.transport.port import Disconnected, Interim, TransportError

POD = PodRef(namespace="default", name="web-0", uid="u1")


def grant(address: str, **changes: Any) -> Allocated:
    return Allocated((Address(4, address, "blue"),), (), Explanation(), "u1", **changes)


@dataclass
class Replica:
    """Says something after a second, and answers after another one."""

    early: wire.Response | bytes | None
    answer: wire.Response | TransportError
    connected: bool = True
    asked: list[wire.Request] = field(default_factory=list)

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
        del deadline, traceparent, hurry, patient
        self.asked.append(wire.decode_request(payload))
        assert interim is not None
        await asyncio.sleep(1)
        if self.early is not None:
            interim(self.early if isinstance(self.early, bytes) else wire.encode(self.early))
        await asyncio.sleep(1)
        if isinstance(self.answer, TransportError):
            self.connected = False
            raise self.answer
        return wire.encode(self.answer)


def ask(*replicas: Replica) -> tuple[list[Any], Asking]:
    """(seconds, what `granted` and then `answered` gave or raised)."""

    async def main() -> tuple[list[Any], Asking]:
        async def request() -> Allocate:
            return Allocate(pod=POD, nic="eth0", container_id="c1")

        asking = Asking(request, controllers=Controllers(list(replicas), clock=VirtualClock()), clock=VirtualClock())
        running = asyncio.create_task(asking.run())
        seen: list[Any] = []
        for what in (asking.granted, asking.answered):
            try:
                result: Any = await what()
            except Exception as error:  # noqa: BLE001 - it is looked at
                result = error
            seen.append((asyncio.get_running_loop().time(), result))
        await running
        return seen, asking

    body: Callable[[], Coroutine[Any, Any, tuple[list[Any], Asking]]] = main
    return run(body, seed=1)


def test_it_is_known_before_it_is_answered() -> None:
    replica = Replica(grant("10.6.0.5/16"), grant("10.6.0.5/16"))
    seen, asking = ask(replica)
    assert seen == [(1.0, grant("10.6.0.5/16")), (2.0, grant("10.6.0.5/16"))]
    assert not asking.doubtful
    (asked,) = replica.asked
    assert isinstance(asked, Allocate)
    assert asked.early


@pytest.mark.parametrize("early", [None, b"\xc1", Rejected(message="no", cause="internal")])
def test_with_nothing_of_use_said_ahead_the_answer_is_it(early: Any) -> None:
    seen, _ = ask(Replica(early, grant("10.6.0.5/16")))
    assert seen == [(2.0, grant("10.6.0.5/16"))] * 2


def test_another_replica_that_answers_alike_is_believed_and_a_copy_may_be_under_way() -> None:
    seen, asking = ask(
        Replica(grant("10.6.0.5/16"), Disconnected("cut")), Replica(None, grant("10.6.0.5/16", nics=("eth0",)))
    )
    assert [type(result) for _, result in seen] == [Allocated, Allocated]
    assert seen[0][0] == 1.0
    assert asking.doubtful


def test_another_answer_ends_the_add() -> None:
    seen, _ = ask(Replica(grant("10.6.0.5/16"), Disconnected("cut")), Replica(None, grant("10.6.0.6/16")))
    assert isinstance(seen[1][1], TryAgainLater)
    assert "from 10.6.0.5/16 to 10.6.0.6/16" in str(seen[1][1].details)


def test_a_refusal_behind_a_grant_is_a_refusal() -> None:
    seen, asking = ask(Replica(grant("10.6.0.5/16"), Rejected(message="overtaken", cause="internal", held=True)))
    assert seen[0] == (1.0, grant("10.6.0.5/16"))
    assert "overtaken" in str(seen[1][1])
    assert asking.doubtful
