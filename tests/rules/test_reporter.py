"""Reports: how often, what they say, and that a controller that wants an address looked for is answered at once."""

import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import anyio

from actors.node.controllers import Controllers
from actors.node.reporter import Connected, ReporterActor
from api import wire
from api.wire import Attachment, Look, Noted, PodRef, Report
from cni.journal import JournalEntry
from runtime.actor import System
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.transport.port import Disconnected, Interim

CID = "0123456789abcdef" * 4


class World:
    """A reporter on a virtual clock, and the replica that it reports to."""

    def __init__(self, answer: Callable[["World", Report], Coroutine[Any, Any, wire.Response]]) -> None:
        self.connected = True
        self.reports: list[tuple[float, Report]] = []
        self.entries = [JournalEntry(container_id=CID, ifname="eth0", pod=PodRef("d", "p", "u"))]
        self.carried_addresses: set[str] = set()
        self.looks: list[tuple[str, ...]] = []
        self._answer = answer
        self.clock = VirtualClock()

    async def load(self) -> list[JournalEntry]:
        return list(self.entries)

    async def carried(self, addresses: tuple[str, ...]) -> frozenset[str]:
        self.looks.append(tuple(addresses))
        return frozenset(self.carried_addresses & set(addresses))

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
        assert patient, "or pings go to and fro for a minute"
        request = wire.decode_request(payload)
        assert isinstance(request, Report)
        self.reports.append((self.clock.now(), request))
        return wire.encode(await self._answer(self, request))

    def run(self, seconds: float, *, meddle: Callable[["World"], Coroutine[Any, Any, None]] | None = None) -> None:
        async def main() -> None:
            system = System(clock=self.clock, random=random.Random(1))
            controllers = Controllers([self], clock=self.clock)
            supervisor = Supervisor("n", system)
            ref = supervisor.add_actor(
                "reporter",
                lambda: ReporterActor(journal=self, kernel=self, controllers=controllers),  # type: ignore[arg-type]
            )
            controllers.on_connect(lambda: ref.tell(Connected()))
            self.controllers = controllers
            async with anyio.create_task_group() as group:
                group.start_soon(supervisor.run)
                if meddle is not None:
                    group.start_soon(meddle, self)
                await anyio.sleep(seconds)
                await supervisor.stop()
                group.cancel_scope.cancel()

        run(main, seed=1)


async def taken(world: World, report: Report) -> wire.Response:
    return Noted()


def pauses(world: World) -> list[float]:
    times = [at for at, _ in world.reports]
    return [after - before for before, after in pairwise(times)]


def test_a_report_a_minute() -> None:
    world = World(taken)
    world.run(600)
    assert 8 <= len(world.reports) <= 10
    assert all(60 <= pause <= 66.1 for pause in pauses(world))
    report = world.reports[0][1]
    assert report.attachments == (Attachment(uid="u", nic="eth0", cid=CID[:12]),)
    assert (report.looked, report.round, report.wait) == ((), 0, 60.0)
    assert not world.looks


def test_an_answer_that_was_held_back_for_the_minute_is_followed_at_once() -> None:
    async def held(world: World, report: Report) -> wire.Response:
        await anyio.sleep(report.wait)
        return Noted()

    world = World(held)
    world.run(600)
    assert all(59.9 <= pause <= 60.1 for pause in pauses(world))


def test_what_is_asked_is_looked_at_then_and_answered_at_once() -> None:
    async def asking(world: World, report: Report) -> wire.Response:
        if len(world.reports) == 1:
            await anyio.sleep(20)
            world.carried_addresses = {"10.6.0.5"}
            world.entries = []
            return Noted(look=("10.6.0.5", "fd00::5"), round=7)
        return Noted()

    world = World(asking)
    world.run(60)
    (begun, _), (at, second) = world.reports
    assert world.looks == [("10.6.0.5", "fd00::5")]
    assert second.looked == (Look("10.6.0.5", carried=True), Look("fd00::5", carried=False))
    assert second.round == 7
    assert second.attachments == (), "the journal as it was after the question"
    assert 20 <= at - begun <= 20.1


def test_a_controller_that_asks_without_end_is_not_answered_without_pause() -> None:
    async def insatiable(world: World, report: Report) -> wire.Response:
        await anyio.sleep(0.001)
        return Noted(look=("10.6.0.5",), round=report.round + 1)

    world = World(insatiable)
    world.run(120)
    assert 50 <= len(world.reports) <= 150


def test_a_question_is_forgotten_when_its_answer_cannot_be_told() -> None:
    async def cut(world: World, report: Report) -> wire.Response:
        if len(world.reports) == 1:
            return Noted(look=("10.6.0.5",), round=7)
        if len(world.reports) == 2:
            raise Disconnected("cut")
        return Noted()

    world = World(cut)
    world.run(60)
    assert [report.round for _, report in world.reports] == [0, 7, 0]
    assert 5 <= pauses(world)[1] <= 11.1


def test_nothing_old_is_told_to_a_controller_that_comes_back() -> None:
    world = World(taken)

    async def away(world: World) -> None:
        world.connected = False
        await anyio.sleep(100)
        world.entries = []
        world.connected = True
        world.controllers.connected()

    world.run(120, meddle=away)
    ((at, report),) = world.reports
    assert 105 <= at <= 111.1
    assert report.attachments == ()
