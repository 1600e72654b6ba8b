"""ADDs of a whole agent on the real kernel, with somebody else on the segment; the controller is played."""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from pyroute2 import IPRoute

from actors.agent import Agent
from actors.node.detection import Terms
from api import wire
from api.reasons import Explanation
from api.route import Route
from cni.config import IpamConfig, NetConfig
from cni.errors import AddressInUse, GatewaySilent, TryAgainLater
from cni.kernel import LinuxKernel
from cni.plan import LinkPlan
from cni.protocol import IPAM_TYPE, Invocation, PodArgs, Role, Verb
from runtime.actor import System
from runtime.transport.port import Interim
from tests.netns import Netns
from tests.node.conftest import Segment, talk
from tests.simulation.node import MemoryDisk, MemoryJournal

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="makes links")]

CID = "0123456789abcdef" * 4
TERMS = Terms(conflicts=True, gateways=True, budget=0.1)
TAKEN, GATEWAYS = ("10.77.0.1", "fd77::1"), ("10.77.0.1", "fd77::1")
"""What the segment's neighbour has: addresses of a stranger in one test, and gateways in another."""


class Played:
    """A controller replica that grants the first of some pairs of addresses.

    What it takes back it does not grant again, except where it is `forgetful`.
    """

    connected = True

    def __init__(
        self,
        *pairs: Sequence[str],
        gateways: Sequence[str] = ("", ""),
        stateful: bool = False,
        forgetful: bool = False,
    ) -> None:
        self._forgetful = forgetful
        self._pairs = [tuple(pair) for pair in pairs]
        self._gateways = tuple(gateways)
        self._stateful = stateful
        self.asked: list[wire.Request] = []

    def of[T: wire.Request](self, kind: type[T]) -> list[T]:
        return [request for request in self.asked if isinstance(request, kind)]

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
        del deadline, traceparent, hurry, patient, interim
        request = wire.decode_request(payload)
        self.asked.append(request)
        return wire.encode(self._answer(request))

    def _answer(self, request: wire.Request) -> wire.Response:
        match request:
            case wire.Allocate():
                return self._grant()
            case wire.Disown(addresses=addresses):
                if self._stateful:
                    return wire.Rejected(message="it belongs to StatefulSet web", cause="stateful")
                if not self._forgetful:
                    self._pairs = [pair for pair in self._pairs if not {*addresses} & {*pair}]
                return wire.Released(addresses=addresses)
            case wire.Release():
                return wire.Released()
            case wire.Report():
                return wire.Noted()
            case _:
                return wire.Ready()

    def _grant(self) -> wire.Allocated:
        (four, six), (gateway, gateway6) = self._pairs[0], self._gateways
        return wire.Allocated(
            addresses=(
                wire.Address(4, f"{four}/24", "blue", gateway),
                wire.Address(6, f"{six}/64", "blue6", gateway6),
            ),
            routes=(Route("0.0.0.0/0", gateway),) if gateway else (),
            explanation=Explanation(),
            pod_uid="u",
        )


class Node:
    """An agent on this kernel."""

    def __init__(self, controller: Played, terms: Terms) -> None:
        async def point(_: str) -> None:
            """Nobody dies here."""

        self.controller = controller
        self.disk = MemoryDisk(point)
        self._system = System(clock=System.real().clock, random=random.Random(1))
        self.agent = Agent(
            self._system,
            path="agent",
            kernel=LinuxKernel(),
            journal=MemoryJournal(self.disk),
            channels=[controller],
            terms=terms,
        )

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Node"]:
        running = asyncio.create_task(self.agent.supervisor.run())
        try:
            async with asyncio.timeout(10):
                await self.agent.recovered.wait()
            yield self
        finally:
            await self.agent.supervisor.stop()
            await running

    async def add(self, container: Netns, *, role: Role = Role.MAIN) -> list[str]:
        """The addresses of the answer."""
        answer = json.loads(await self.agent.invoke(_invocation(Verb.ADD, container, role)))
        return [ip["address"].partition("/")[0] for ip in answer["ips"]]

    async def delete(self, container: Netns, *, role: Role = Role.MAIN) -> None:
        await self.agent.invoke(_invocation(Verb.DEL, container, role))

    async def until_nothing_is_owed(self) -> None:
        async with asyncio.timeout(10):
            while self.disk.entries:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def _invocation(verb: Verb, container: Netns, role: Role) -> Invocation:
    return Invocation(
        verb=verb,
        type="macvlan" if role is Role.MAIN else IPAM_TYPE,
        role=role,
        container_id=CID,
        netns=str(container.path),
        ifname="eth0",
        args=PodArgs(namespace="default", name="web-0", uid="u"),
        conf=NetConfig(cni_version="1.0.0", name="lan", type="macvlan", master="up0", ipam=IpamConfig(type=IPAM_TYPE)),
    )


def links(container: Netns) -> dict[str, tuple[bool, set[str]]]:
    """Whether it is up, and its addresses without link-local ones, by link."""

    def look() -> dict[str, tuple[bool, set[str]]]:
        with IPRoute() as route:
            found: dict[int, tuple[str, bool, set[str]]] = {
                one["index"]: (one.get_attr("IFLA_IFNAME"), bool(one["flags"] & 1), set()) for one in route.get_links()
            }
            for one in route.get_addr():
                if not one.get_attr("IFA_ADDRESS").startswith("fe80"):
                    found[one["index"]][2].add(one.get_attr("IFA_ADDRESS"))
        return {name: (up, addresses) for name, up, addresses in found.values() if name != "lo"}

    return container.run(look)


def mac_of(container: Netns) -> str:
    def look() -> str:
        with IPRoute() as route:
            return str(route.link("get", ifname="host")[0].get_attr("IFLA_ADDRESS"))

    return container.run(look)


async def test_a_pod_gets_other_addresses_in_the_same_add(segment: Segment) -> None:
    container, mac = segment.container(), mac_of(segment.neighbour)
    controller = Played(("10.77.0.1", "fd77::4"), ("10.77.0.5", "fd77::1"), ("10.77.0.6", "fd77::6"))
    async with Node(controller, Terms(conflicts=True, budget=0.1)).serving() as node:
        assert await node.add(container) == ["10.77.0.6", "fd77::6"]
        assert links(container) == {"eth0": (True, {"10.77.0.6", "fd77::6"})}
        assert [(one.addresses, one.pools, one.seen, one.pod.uid) for one in controller.of(wire.Disown)] == [
            (("10.77.0.1",), ("blue",), mac, "u"),
            (("fd77::1",), ("blue6",), mac, "u"),
        ]
        assert talk(segment.neighbour, container, "10.77.0.1") == b"10.77.0.6"
        assert talk(segment.neighbour, container, "fd77::1") == b"fd77::6"
        await node.delete(container)
        await node.until_nothing_is_owed()
        assert links(container) == {}


async def test_who_does_not_look_takes_what_somebody_has(segment: Segment) -> None:
    """The control."""
    container = segment.container()
    async with Node(Played(TAKEN), Terms()).serving() as node:
        assert await node.add(container) == [*TAKEN]
        assert node.controller.of(wire.Disown) == []


async def test_in_the_end_it_is_given_up(segment: Segment) -> None:
    container = segment.container()
    controller = Played(TAKEN, forgetful=True)
    async with Node(controller, Terms(conflicts=True, budget=0.1)).serving() as node:
        with pytest.raises(TryAgainLater, match=r"eth0: 10\.77\.0\.1 is used by"):
            await node.add(container)
        assert links(container) == {}
        await node.until_nothing_is_owed()
        assert [(one.nic, one.pools) for one in controller.of(wire.Release)] == [("eth0", ("blue", "blue6"))]


async def test_what_belongs_to_the_pod_stays_with_it(segment: Segment) -> None:
    container, mac = segment.container(), mac_of(segment.neighbour)
    controller = Played(("10.77.0.5", "fd77::1"), stateful=True)
    async with Node(controller, Terms(conflicts=True, budget=0.1)).serving() as node:
        with pytest.raises(AddressInUse, match=f"eth0: fd77::1 is used by {mac} .*it belongs to StatefulSet web"):
            await node.add(container)
        assert links(container) == {}
        await node.until_nothing_is_owed()
        assert len(controller.of(wire.Allocate)) == 1


async def test_a_gateway_that_is_not_there(segment: Segment) -> None:
    container = segment.container()
    free = ("10.77.0.5", "fd77::5")
    async with Node(Played(free, gateways=("10.77.0.254", "fd77::1")), TERMS).serving() as node:
        with pytest.raises(GatewaySilent, match=r"pod default/web-0: eth0: gateway 10\.77\.0\.254 does not answer"):
            await node.add(container)
        assert links(container) == {}
        await node.until_nothing_is_owed()
        assert len(node.controller.of(wire.Release)) == 1
    async with Node(Played(free, gateways=GATEWAYS), TERMS).serving() as node:
        assert await node.add(container) == [*free]
        assert links(container) == {"eth0": (True, {*free})}


async def test_another_plugins_link_is_as_it_was(segment: Segment) -> None:
    container = segment.container()
    await LinuxKernel().attach_link(LinkPlan(netns=str(container.path), ifname="eth0", master="up0"))
    before = links(container)
    controller = Played(TAKEN, ("10.77.0.6", "fd77::6"))
    async with Node(controller, Terms(conflicts=True, budget=0.1)).serving() as node:
        assert await node.add(container, role=Role.IPAM) == ["10.77.0.6", "fd77::6"]
        assert links(container) == before == {"eth0": (False, set())}
        assert [one.addresses for one in controller.of(wire.Disown)] == [TAKEN]
        await node.delete(container, role=Role.IPAM)
        await node.until_nothing_is_owed()
