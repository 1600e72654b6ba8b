"""An ADD uses a grant that it is told ahead, and answers when the controller has."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from actors.agent import Agent
from api import wire
from api.reasons import Explanation
from cni.config import IpamConfig, NetConfig
from cni.errors import CniError, TryAgainLater
from cni.protocol import IPAM_TYPE, Invocation, PodArgs, Role, Verb
from runtime.actor import System
from runtime.testing import VirtualClock, run
from runtime.transport.port import Interim
from tests.simulation.node import MemoryDisk, MemoryJournal, MemoryKernel

CID = "0123456789abcdef" * 4


def grant(address: str) -> wire.Allocated:
    return wire.Allocated((wire.Address(4, address, "blue"),), (), Explanation(), "u1")


class World:
    """One node, and a controller that writes a SpiderEndpoint for a second."""

    connected = True

    def __init__(self, early: str, answer: wire.Response) -> None:
        self.early = early
        self.answer = answer
        self.seen: list[str] = []
        self.released: list[wire.Release] = []

        async def point(what: str) -> None:
            if what.startswith("after"):
                self.seen.append(what.removeprefix("after "))

        self.segment: dict[str, str] = {}
        self.disk = MemoryDisk(point)
        self.kernel = MemoryKernel(self.segment, point)

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
        match wire.decode_request(payload):
            case wire.Allocate(early=early):
                assert early == (interim is not None)
                if interim is not None and self.early:
                    interim(wire.encode(grant(self.early)))
                await asyncio.sleep(1)
                self.seen.append("answer")
                return wire.encode(self.answer)
            case wire.Release() as release:
                self.released.append(release)
                return wire.encode(wire.Released())
            case _:
                return wire.encode(wire.Ready())

    def add(self) -> list[str] | CniError:
        """What an ADD answers; then the agent has a moment to give back what is owed."""

        async def main() -> list[str] | CniError:
            agent = Agent(
                System(clock=VirtualClock(), random=random.Random(1)),
                path="agent",
                kernel=self.kernel,
                journal=MemoryJournal(self.disk),
                channels=[self],
            )
            async with anyio.create_task_group() as group:
                group.start_soon(agent.supervisor.run)
                await agent.recovered.wait()
                try:
                    answer: list[str] | CniError = [
                        ip["address"] for ip in json.loads(await agent.invoke(self._invocation()))["ips"]
                    ]
                except CniError as error:
                    answer = error
                await asyncio.sleep(60)
                await agent.supervisor.stop()
            return answer

        body: Callable[[], Coroutine[Any, Any, list[str] | CniError]] = main
        return run(body, seed=1)

    def _invocation(self) -> Invocation:
        return Invocation(
            verb=Verb.ADD,
            type="macvlan",
            role=Role.MAIN,
            container_id=CID,
            netns="/run/netns/web-0",
            ifname="eth0",
            args=PodArgs(namespace="default", name="web-0", uid="u1"),
            conf=NetConfig(
                cni_version="1.0.0", name="lan", type="macvlan", master="up0", ipam=IpamConfig(type=IPAM_TYPE)
            ),
        )


@pytest.mark.parametrize("early", ["10.6.0.5/16", ""])
def test_links_are_configured_while_the_endpoint_is_written(early: str) -> None:
    world = World(early, grant("10.6.0.5/16"))
    assert world.add() == ["10.6.0.5/16"]
    configured, answered = world.seen.index("link.configure"), world.seen.index("answer")
    assert (configured < answered) == bool(early), "with nothing said ahead it waits"
    assert world.seen.index("journal.put added") > answered, "an ADD is not over before the controller has answered"
    assert not world.released


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (grant("10.6.0.6/16"), "from 10.6.0.5/16 to 10.6.0.6/16"),
        (wire.Rejected(message="overtaken by a newer sandbox", retry=True, cause="internal", held=True), "overtaken"),
    ],
)
def test_what_was_built_on_another_answer_goes(answer: wire.Response, words: str) -> None:
    world = World("10.6.0.5/16", answer)
    error = world.add()
    assert isinstance(error, TryAgainLater)
    assert words in f"{error} {error.details}"
    assert "link.configure" in world.seen
    assert (world.segment, world.disk.entries) == ({}, {})
    assert [(one.nic, one.container_id) for one in world.released[:1]] == [("eth0", CID)]
