"""Health and the server that shows it: states roll up, probes answer as the chart expects, bad clients cost nothing."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from telemetry import metrics, traces
from telemetry.health import HealthTree, State
from telemetry.http import HttpServer, Post, Response


class Clock:
    """Unix seconds that move when told to."""

    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def test_the_worst_part_is_the_whole() -> None:
    tree = HealthTree("agent")
    assert tree.status() is State.STARTING
    for state in (State.STOPPED, State.OK, State.DEGRADED, State.BLOCKED, State.STARTING, State.FAILED):
        tree.report(f"a/{state}", state)
        assert tree.status() is state
    tree.forget("a")
    assert tree.status() is State.STARTING


def test_since_is_when_the_state_changed() -> None:
    clock = Clock()
    tree = HealthTree("agent", clock=clock)
    tree.report("store", State.OK)
    clock.now += 5
    tree.report("store", State.OK, "3 watches")
    found = tree.get("store")
    assert found is not None
    assert (found.since, found.detail) == (1_000_000_000.0, "3 watches")
    tree.report("store", State.DEGRADED, "reconnecting")
    assert tree.get("store") != found
    assert tree.get("nothing") is None


def test_the_tree() -> None:
    tree = HealthTree("controller", clock=Clock())
    tree.report("pools", State.OK, "2 actors")
    tree.report("pools/v4", State.DEGRADED, "restarting")
    tree.report("pools/v4/x", State.OK)
    tree.report("rpc/server", State.OK)
    tree.report("poolside", State.OK)
    assert tree.render() == (
        "controller  degraded\n"
        "  pools  ok  (below: degraded)  2 actors\n"
        "    v4  degraded  restarting\n"
        "      x  ok\n"
        "  rpc  ok\n"
        "    server  ok\n"
        "  poolside  ok\n"
    )
    found = json.loads(tree.to_json())
    assert (found["name"], found["status"], len(found["children"])) == ("controller", "degraded", 3)
    pools = found["children"][0]
    assert pools["since"] == "2001-09-09T01:46:40.000+00:00"
    assert (pools["state"], pools["status"], pools["children"][0]["detail"]) == ("ok", "degraded", "restarting")
    tree.forget("pools")
    assert tree.render() == "controller  ok\n  rpc  ok\n    server  ok\n  poolside  ok\n"
    assert repr(tree) == "<HealthTree controller: ok, 2 parts>"


async def exchange(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a new connection and read until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), dict(field.split(": ", 1) for field in fields), body


async def get(port: int, path: str) -> tuple[int, bytes]:
    status, _, body = await exchange(port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return status, body


@pytest.mark.parametrize(
    ("state", "healthz", "startup", "readiness", "liveness"),
    [
        (None, 503, 500, 500, 200),
        (State.STARTING, 503, 500, 500, 200),
        (State.OK, 200, 200, 200, 200),
        (State.DEGRADED, 200, 200, 200, 200),
        (State.BLOCKED, 503, 200, 500, 200),
        (State.FAILED, 503, 500, 500, 500),
        (State.STOPPED, 503, 200, 500, 200),
    ],
)
async def test_the_probes(state: State | None, healthz: int, startup: int, readiness: int, liveness: int) -> None:
    tree = HealthTree("agent")
    if state is not None:
        tree.report("x", state)
    async with HttpServer("127.0.0.1", 0, health=tree) as server:
        assert (await get(server.port, "/healthz"))[0] == healthz
        assert (await get(server.port, "/v1/runtime/startup"))[0] == startup
        assert (await get(server.port, "/v1/runtime/readiness"))[0] == readiness
        assert (await get(server.port, "/v1/runtime/liveness"))[0] == liveness
        assert json.loads((await get(server.port, "/healthz"))[1])["name"] == "agent"
        assert (await get(server.port, "/healthz?text"))[1] == tree.render().encode()
        assert (await get(server.port, "/metrics"))[0] == 404


async def test_metrics_are_read_and_rendered() -> None:
    read: list[int] = []
    remove = metrics.on_scrape(lambda: read.append(1))
    async with HttpServer("", 0, program=metrics.Program.AGENT) as server:
        status, fields, body = await exchange(
            server.port, b"GET /metrics HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n"
        )
        assert (await get(server.port, "/healthz"))[0] == 404
    remove()
    assert status == 200
    assert fields["Content-Type"] == metrics.CONTENT_TYPE
    assert int(fields["Content-Length"]) == len(body)
    assert b"spiderpool_sandboxes 0.0\n" in body
    assert read == [1]


async def test_traces_in_memory_are_shown() -> None:
    with traces.recording(service="agent") as recorder:
        with traces.span("outer"), traces.span("inner"):
            pass
        trace_id = recorder.span("outer").trace_id
        async with HttpServer("127.0.0.1", 0, recorder=recorder) as server:
            status, listed = await get(server.port, "/debug/traces")
            assert (status, json.loads(listed)) == (200, [trace_id])
            status, shown = await get(server.port, f"/debug/traces?{trace_id}")
            assert (status, [span["name"] for span in json.loads(shown)]) == (200, ["outer", "inner"])
            assert (await get(server.port, f"/debug/traces?{1:032x}"))[0] == 404
            assert (await get(server.port, "/debug/traces?x"))[0] == 400
    async with HttpServer("127.0.0.1", 0) as server:
        assert (await get(server.port, "/debug/traces"))[0] == 404


async def test_a_connection_is_kept() -> None:
    async with HttpServer("127.0.0.1", 0, routes={"/x": lambda query: Response(query.encode())}) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /x?1 HTTP/1.1\r\n\r\nHEAD /x?2 HTTP/1.1\r\n\r\nGET /x?3 HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.count(b"keep-alive") == 2
    assert b"\r\n\r\n1HTTP" in answer
    assert b"\r\n\r\nHTTP" in answer
    assert answer.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /healthz HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /healthz SPDY\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"DELETE /set HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"GET /set HTTP/1.1\r\nConnection: close\r\n\r\n", 405),
        (b"POST /nothing HTTP/1.1\r\nConnection: close\r\n\r\n", 404),
        (b"POST /set HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
        (b"POST /set HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST /set HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        ("POST /set HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n".encode("latin-1"), 400),
        (b"POST /set HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    ],
)
async def test_bad_requests(request_: bytes, status: int) -> None:
    set_off: list[str] = []

    def post(query: str) -> Response:
        set_off.append(query)
        return Response()

    async with HttpServer("127.0.0.1", 0, health=HealthTree("x"), routes={"/set": Post(post)}) as server:
        assert (await exchange(server.port, request_))[0] == status
    assert set_off == []


async def test_a_post_sets_something_off_and_its_body_is_read_past() -> None:
    set_off: list[str] = []

    def post(query: str) -> Response:
        set_off.append(query)
        return Response(b"done\n")

    body = b"GET /set HTTP/1.1\r\n\r\n" * 2000
    async with HttpServer("127.0.0.1", 0, routes={"/set": Post(post)}) as server:
        status, fields, answer = await exchange(
            server.port,
            b"POST /set?a=1 HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            + b"POST /set HTTP/1.1\r\nConnection: close\r\n\r\n",
        )
        assert (await exchange(server.port, b"HEAD /set HTTP/1.0\r\n\r\n"))[1]["Allow"] == "POST"
    assert (status, fields["Connection"], set_off) == (200, "keep-alive", ["a=1", ""])
    assert answer.endswith(b"\r\n\r\ndone\n")


async def test_a_client_that_says_nothing_does_not_hold_up_the_end() -> None:
    async with HttpServer("127.0.0.1", 0, health=HealthTree("x")) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /he")
        await asyncio.sleep(0.01)
        assert repr(server) == f"<HttpServer 127.0.0.1:{server.port}>"
    writer.close()
    await writer.wait_closed()


async def test_too_many_connections_are_turned_away() -> None:
    async with HttpServer("127.0.0.1", 0, health=HealthTree("x"), connections=1) as server:
        _, idle = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await reader.read() == b""
        for one in (idle, writer):
            one.close()
            await one.wait_closed()


async def test_a_route_that_fails_costs_its_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_query: str) -> Any:
        raise RuntimeError

    async with HttpServer("127.0.0.1", 0, health=HealthTree("x"), routes={"/broken": broken}) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /broken HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert (await get(server.port, "/healthz"))[0] == 503
    assert "a request was not answered" in caplog.text


async def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="in use"):
        async with HttpServer("127.0.0.1", server.getsockname()[1]):
            pass


async def test_a_probe_says_what_is_wrong() -> None:
    tree = HealthTree("agent")
    tree.report("agent/node", State.OK)
    tree.report("agent/install", State.BLOCKED, "/opt/cni/bin cannot be written:\nread-only")
    tree.report("agent/cni", State.DEGRADED)
    async with HttpServer("127.0.0.1", 0, health=tree) as server:
        status, body = await get(server.port, "/v1/runtime/readiness")
        assert (status, body) == (500, b"agent/install is blocked: /opt/cni/bin cannot be written: read-only\n")
        tree.report("agent/install", State.OK)
        assert await get(server.port, "/v1/runtime/readiness") == (200, b"")


async def test_two_processes_share_a_port_and_each_has_its_own_socket(tmp_path: Path) -> None:
    old, new = HealthTree("old"), HealthTree("new")
    async with (
        HttpServer("", 0, health=old, unix=tmp_path / "old") as first,
        HttpServer("", first.port, health=new, unix=tmp_path / "new") as second,
    ):
        assert second.port == first.port
        for name in ("old", "new"):
            reader, writer = await asyncio.open_unix_connection(tmp_path / name)
            writer.write(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["name"] == name


async def test_a_socket_is_replaced_and_one_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("stale")
    async with HttpServer("127.0.0.1", 0, health=HealthTree("x"), unix=tmp_path / "s"):
        assert (tmp_path / "s").is_socket()
    with pytest.raises(OSError, match="too long"):
        await HttpServer("127.0.0.1", 0, unix=tmp_path / ("x" * 120)).__aenter__()
    with pytest.raises(OSError):  # noqa: PT011 - the port's own words
        await HttpServer("192.0.2.1", 1, unix=tmp_path / "s").__aenter__()
