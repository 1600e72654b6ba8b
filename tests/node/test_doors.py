"""The original's plugins at the real socket of a whole agent, with a controller that the test plays.

The agent's node, sandbox, outbox and reporter actors are the real ones; links and journal are in memory.
"""

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from actors.agent import Agent
from api import wire
from api.configfile import ConfigFile
from api.reasons import Explanation
from api.route import Route
from api.settings import AgentSettings
from cni.journal import NETWORKS, Attached, JournalEntry, Key, State
from cni.result import IpConfig, Result
from runtime.actor import System
from runtime.transport.port import Interim
from telemetry.health import HealthTree
from tests.node.test_server import exchange
from tests.simulation.node import MemoryDisk, MemoryJournal, MemoryKernel

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="the server speaks to root only"),
]

CID = "0123456789abcdef" * 4
POD = {"podNamespace": "default", "podName": "web-0", "podUID": "5b3c"}
ADD = {**POD, "containerID": CID, "ifName": "eth0", "netNamespace": "/run/netns/web-0"}
DEL = {**POD, "containerID": CID, "ifName": "eth0"}
NET1 = wire.NicGrant(nic="net1", addresses=(wire.Address(4, "10.7.0.5/24", "green"),))


class Played:
    """A controller replica: grants what it is asked for, and remembers what it was asked."""

    connected = True

    def __init__(self) -> None:
        self.asked: list[wire.Request] = []
        self.stateful = False
        self.refuse = ""

    def of(self, kind: type[Any]) -> list[Any]:
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
        request = wire.decode_request(payload)
        self.asked.append(request)
        return wire.encode(self.answer(request))

    def answer(self, request: wire.Request) -> wire.Response:
        match request:
            case wire.Allocate(pod, nic):
                if self.refuse:
                    return wire.Rejected(message=self.refuse, cause="ip_used_out")
                return wire.Allocated(
                    addresses=(
                        wire.Address(4, f"10.6.0.{5 + len(nic)}/16", "blue", "10.6.0.1"),
                        wire.Address(6, "fd06::5/64", "blue6", "fd06::1"),
                    ),
                    routes=(Route("0.0.0.0/0", "10.6.0.1"), Route("::/0", "fd06::1")),
                    explanation=Explanation(),
                    pod_uid=pod.uid or "found",
                    others=(NET1,) if nic == "eth0" else (),
                )
            case wire.Release():
                return wire.Released()
            case wire.Disown():
                if self.stateful:
                    return wire.Rejected(message="pod default/web-0 keeps its addresses", cause="stateful")
                return wire.Released(addresses=request.addresses)
            case wire.Report():
                return wire.Noted()
            case wire.FindCoordinator():
                return wire.FoundCoordinator(default_route_nic="net1")
            case wire.FindEndpoint(pod):
                return wire.Rejected(message=f"pod {pod}: no such pod", cause="not_found")
            case _:
                return wire.Ready()


class Node:
    """An agent at its socket."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        async def point(_: str) -> None:
            """Nobody dies here."""

        self.socket = folder / "s"
        self.disk = MemoryDisk(point)
        self.kernel = MemoryKernel({}, point)
        self.controller = Played()
        self.settings = AgentSettings(
            pod_namespace="spiderpool",
            pod_name="agent",
            node_name="n1",
            config=ConfigFile(ipam_unix_socket_path=str(self.socket), enable_gateway_detection=True),
            **settings,
        )
        self.health = HealthTree("spiderpool-agent")

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Node"]:
        system = System.real(health=self.health)
        journal = MemoryJournal(self.disk)
        agent = Agent(
            System(clock=system.clock, random=random.Random(1), health=self.health),
            path="agent",
            kernel=self.kernel,
            journal=journal,
            channels=[self.controller],
            node="n1",
        )
        agent.reside(self.settings)
        running = asyncio.create_task(agent.supervisor.run())
        try:
            async with asyncio.timeout(10):
                while not self.socket.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            yield self
        finally:
            await agent.supervisor.stop()
            await running
            journal.died()

    async def call(self, method: str, path: str, body: object = None, **query: str) -> tuple[int, Any]:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        target = f"{path}?{urlencode(query)}" if query else path
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        status, headers, answer = await exchange(self.socket, head.encode() + raw)
        if answer:
            assert headers["content-type"] == "application/json"
        return status, json.loads(answer) if answer else None

    def states(self) -> dict[str, State]:
        return {key.ifname: entry.state for key, entry in self.disk.entries.items()}

    async def until(self, what: Any) -> None:
        async with asyncio.timeout(10):
            while not what():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_a_pod_comes_and_goes(tmp_path: Path) -> None:
    async with Node(tmp_path).serving() as node:
        assert await node.call("GET", "/v1/ipam/healthy") == (200, None)
        status, first = await node.call("POST", "/v1/ipam/ip", ADD)
        assert status == 200
        assert [(ip["nic"], ip["address"], ip["ipPool"]) for ip in first["ips"]] == [
            ("eth0", "10.6.0.9/16", "blue"),
            ("eth0", "fd06::5/64", "blue6"),
            ("net1", "10.7.0.5/24", "green"),
        ]
        assert {ip["enableGatewayDetection"] for ip in first["ips"]} == {True}
        assert {ip["enableIPConflictDetection"] for ip in first["ips"]} == {False}
        assert [(r["ifName"], r["dst"]) for r in first["routes"]] == [("eth0", "0.0.0.0/0"), ("eth0", "::/0")]
        assert await node.call("POST", "/v1/ipam/ip", ADD) == (200, first)
        assert len(node.controller.of(wire.Allocate)) == 1, "the journal answers the second time"
        assert node.states() == {"eth0": State.ADDED}
        for _ in range(2):
            assert await node.call("DELETE", "/v1/ipam/ip", DEL) == (200, None)
        await node.until(lambda: not node.disk.entries)
        (release,) = node.controller.of(wire.Release)
        assert (release.nic, release.container_id, release.pod.uid, release.keep) == ("eth0", CID, "5b3c", ())
        assert set(release.pools) == {"blue", "blue6", "green"}


async def test_an_add_that_is_refused_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    async with Node(tmp_path).serving() as node:
        node.controller.refuse = "pod default/web-0: no IPv4 address: pool blue: full (10 of 10)"
        assert await node.call("POST", "/v1/ipam/ip", ADD) == (500, node.controller.refuse)
        assert not node.disk.entries


@pytest.mark.parametrize("conflict", [True, False])
async def test_giving_everything_back(tmp_path: Path, conflict: bool) -> None:
    async with Node(tmp_path).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        await node.call("POST", "/v1/ipam/ip", {**ADD, "ifName": "net2"})
        asked = {**POD, "containerID": CID, "isReleaseConflictIPs": conflict}
        assert await node.call("DELETE", "/v1/ipam/ips", asked) == (200, None)
        await node.until(lambda: not node.disk.entries)
        disowned = node.controller.of(wire.Disown)
        assert [d.addresses for d in disowned] == (
            [("10.6.0.9", "fd06::5"), ("10.6.0.9", "fd06::5")] if conflict else []
        )
        releases = node.controller.of(wire.Release)
        assert {one.nic for one in releases} <= {"eth0", "net2"}
        assert releases[-1].keep == (), "the last one is for all that is left"
        assert {pool for one in releases for pool in one.pools} == {"blue", "blue6", "green"}


async def test_conflicts_that_may_not_be_given_back(tmp_path: Path) -> None:
    asked = {**POD, "containerID": CID, "isReleaseConflictIPs": True}
    async with Node(tmp_path).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        node.controller.stateful = True
        assert await node.call("DELETE", "/v1/ipam/ips", asked) == (522, "pod default/web-0 keeps its addresses")
        assert node.states() == {"eth0": State.ADDED}
    (tmp_path / "off").mkdir()
    async with Node(tmp_path / "off", enabled_release_conflict_ips=False).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        status, text = await node.call("DELETE", "/v1/ipam/ips", asked)
        assert status == 521
        assert "SPIDERPOOL_ENABLED_RELEASE_CONFLICT_IPS" in text
        assert (node.states(), node.controller.of(wire.Disown)) == ({"eth0": State.ADDED}, [])


async def test_the_address_waits_for_its_link(tmp_path: Path) -> None:
    """The main plugin's link goes after our DEL; nothing is released as long as it, or a process in there, has it."""
    async with Node(tmp_path).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        carried = {"10.6.0.9/16"}
        node.kernel.carries = lambda *_: asyncio.sleep(0, bool(carried))  # type: ignore[method-assign]
        assert await node.call("DELETE", "/v1/ipam/ip", DEL) == (200, None)
        await asyncio.sleep(0.3)
        assert node.states() == {"eth0": State.RELEASING}
        assert not node.controller.of(wire.Release)
        carried.clear()
        await node.until(lambda: node.controller.of(wire.Release))


async def test_lookups_and_probes(tmp_path: Path) -> None:
    async with Node(tmp_path).serving() as node:
        pod = {"podNamespace": "default", "podName": "web-0"}
        status, answer = await node.call("GET", "/v1/coordinator/config", pod)
        assert (status, answer["mode"], answer["podDefaultRouteNIC"]) == (200, "auto", "net1")
        assert await node.call("GET", "/v1/workloadendpoint", **pod) == (404, "pod default/web-0: no such pod")
        await node.until(lambda: node.health.status().name == "OK")
        for name in ("startup", "readiness", "liveness"):
            assert await node.call("GET", f"/v1/runtime/{name}") == (200, None)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected", "named"),
    [
        ("POST", "/v1/ipam/ip", {**ADD, "ifName": "a/b"}, 400, 'ifName: "a/b"'),
        ("POST", "/v1/ipam/ip", {**ADD, "podUID": 7}, 400, "podUID: 7"),
        ("POST", "/v1/ipam/ip", b"{", 400, "body: "),
        ("DELETE", "/v1/ipam/ip", None, 400, "body: "),
        ("DELETE", "/v1/ipam/ips", {}, 400, "containerID: missing"),
        ("GET", "/v1/coordinator/config", {"podName": "x"}, 400, "podNamespace: missing"),
        ("GET", "/v1/workloadendpoint", None, 400, "podNamespace: missing"),
        ("PUT", "/v1/ipam/ip", ADD, 405, "/v1/ipam/ip takes POST or DELETE, not PUT"),
        ("GET", "/v1/nothing", None, 404, "no such path: /v1/nothing"),
    ],
)
async def test_wrong_input(tmp_path: Path, *, method: str, path: str, body: object, expected: int, named: str) -> None:
    async with Node(tmp_path).serving() as node:
        status, text = await node.call(method, path, body)
        assert status == expected
        assert named in text
        assert not node.disk.entries
        assert not [a for a in node.controller.asked if not isinstance(a, wire.Inquire | wire.Report)]


async def test_a_defect_is_no_stack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with Node(tmp_path).serving() as node:

        async def broken(_: str) -> bool:
            raise ZeroDivisionError("a secret")

        node.kernel.netns_exists = broken  # type: ignore[method-assign,assignment]
        status, text = await node.call("POST", "/v1/ipam/ip", ADD)
        assert (status, "secret" in text, "Traceback" in text) == (500, False, False)
        assert "ZeroDivisionError" in text
        assert "a secret" in caplog.text


async def test_a_namespace_that_goes_frees_its_addresses_at_once(tmp_path: Path) -> None:
    async with Node(tmp_path).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        node.kernel.lose("/run/netns/other", watched=True)
        await asyncio.sleep(0.4)
        assert node.states() == {"eth0": State.ADDED}, "the control: another one's"
        node.kernel.lose("/run/netns/web-0", watched=True)
        await node.until(lambda: node.controller.of(wire.Release))
        await node.until(lambda: not node.disk.entries)


async def test_a_namespace_whose_mount_goes_keeps_its_addresses_while_a_link_has_them(tmp_path: Path) -> None:
    async with Node(tmp_path).serving() as node:
        await node.call("POST", "/v1/ipam/ip", ADD)
        carried = {"10.6.0.9/16"}
        node.kernel.carried = lambda _: asyncio.sleep(0, frozenset(carried))  # type: ignore[method-assign,assignment]
        node.kernel.lose("/run/netns/web-0", watched=True)
        await asyncio.sleep(0.5)
        assert node.states() == {"eth0": State.ADDED}
        assert await node.call("DELETE", "/v1/ipam/ip", DEL) == (200, None)
        await asyncio.sleep(0.3)
        assert node.states() == {"eth0": State.RELEASING}
        assert not node.controller.of(wire.Release)
        # A newer sandbox of the pod has taken the address over: that is where it is carried.
        entry = node.disk.entries[Key(CID, "eth0")]
        newer = {"container_id": "f" * 64, "state": State.ADDED, "netns": "/run/netns/newer"}
        replaced = type(entry)(**{f: getattr(entry, f) for f in entry.__struct_fields__} | newer)
        node.disk.entries[replaced.key] = replaced
        await node.until(lambda: node.controller.of(wire.Release))


@pytest.mark.parametrize("state", [State.ADDED, State.ADDING])
async def test_the_next_agent_shows_the_networks_that_the_last_one_attached(tmp_path: Path, state: State) -> None:
    node = Node(tmp_path)
    eth0 = Attached(ifname="eth0", name="lan", plugins=(), result=Result(ips=(IpConfig(address="10.6.0.9/16"),)))
    entry = JournalEntry(
        container_id=CID,
        ifname="eth0",
        part=NETWORKS,
        netns="/run/netns/web-0",
        network="lan",
        pod=wire.PodRef("default", "web-0", "5b3c"),
        state=state,
        bare=True,
        networks=(eth0,),
    )
    node.disk.entries[entry.key] = entry
    async with node.serving():
        if state is State.ADDED:
            await node.until(lambda: node.controller.of(wire.SetNetworkStatus))
            (told,) = node.controller.of(wire.SetNetworkStatus)
            assert (told.pod, json.loads(told.status)[0]["ips"]) == (entry.pod, ["10.6.0.9"])
            assert node.disk.entries == {entry.key: entry}
        else:  # the control: what was never finished is taken apart
            await node.until(lambda: not node.disk.entries)
            assert not node.controller.of(wire.SetNetworkStatus)
