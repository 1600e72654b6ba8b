"""The agent's socket: who may speak, what is read, how it ends, and how the next agent takes it over."""

import asyncio
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from cni.errors import TryAgainLater
from cni.protocol import Invocation, Verb
from cni.server import MAX_BODY, CniServer
from tests.rules.test_cni_protocol import CONF, HEADERS

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(os.geteuid() != 0, reason="the server speaks to root only"),
]

BODY = json.dumps(CONF).encode()


async def answer(invocation: Invocation) -> bytes:
    return json.dumps({"verb": invocation.verb, "netns": invocation.netns}).encode()


def request(body: bytes = BODY, *, line: str = "POST /v1/cni HTTP/1.1", **headers: str) -> bytes:
    merged = {**HEADERS, "content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    return "\r\n".join([line, *(f"{k}: {v}" for k, v in merged.items() if v), "", ""]).encode() + body


async def exchange(path: Path, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    try:
        raw = await reader.read()
    finally:
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert int(headers["content-length"]) == len(body)
    return int(status.split(" ")[1]), headers, body


async def test_a_call(tmp_path: Path) -> None:
    async with CniServer(tmp_path / "s", answer):
        status, headers, body = await exchange(tmp_path / "s", request())
        assert (status, headers["cni-exit"]) == (200, "0")
        assert json.loads(body) == {"verb": "ADD", "netns": "/run/netns/pod"}
        assert (await exchange(tmp_path / "s", request(b"", line="GET /v1/ipam/healthy HTTP/1.1")))[0] == 200


async def test_only_the_owner_sees_the_socket(tmp_path: Path) -> None:
    async with CniServer(tmp_path / "s", answer):
        mode = os.stat(tmp_path / "s").st_mode  # noqa: PTH116
        assert stat.S_ISSOCK(mode)
        assert mode & 0o777 == 0o600


BAD_HTTP: list[tuple[bytes, int]] = [
    (request(line="GET /v1/cni HTTP/1.1"), 405),
    (request(line="POST /v1/ipam/healthy HTTP/1.1"), 405),
    (request(line="POST /v2/cni HTTP/1.1"), 404),
    (request(line="POST /v1/cni SPDY/3"), 400),
    (request(line="POST"), 400),
    (b"\x16\x03\x01\r\n\r\n", 400),
    (request(content_length="-1"), 400),
    (request(content_length="0x10"), 400),
    (request(b"", content_length=str(MAX_BODY + 1)), 413),
    (request(b"", content_length="9" * 30), 413),
    (request(transfer_encoding="chunked"), 411),
    (request(x="y\r\nno colon here"), 400),
    (request(x="y\r\n folded: line"), 400),
    (request(x="y" * 70_000), 431),
]


@pytest.mark.parametrize(("data", "expected"), BAD_HTTP)
async def test_bad_http(tmp_path: Path, data: bytes, expected: int) -> None:
    async with CniServer(tmp_path / "s", answer):
        status, headers, body = await exchange(tmp_path / "s", data)
        assert status == expected
        assert "cni-exit" not in headers
        assert body.count(b"\n") == 1
        assert (await exchange(tmp_path / "s", request()))[0] == 200


@pytest.mark.parametrize("data", [b"", b"POST /v1/cni HT", request()[:-5], b"\0" * 10_000])
async def test_a_caller_that_goes_away(tmp_path: Path, data: bytes) -> None:
    async with CniServer(tmp_path / "s", answer) as server:
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(data)
        writer.close()
        await writer.wait_closed()
        assert (await exchange(tmp_path / "s", request()))[0] == 200
        await asyncio.wait_for(asyncio.gather(*server._calls), 5)


async def test_errors_are_cni_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(invocation: Invocation) -> bytes:
        if invocation.verb is Verb.DEL:
            raise TryAgainLater("not now", "busy")
        raise ZeroDivisionError("a secret\nin lines")

    conf = json.dumps({**CONF, "cniVersion": "0.4.0"}).encode()
    async with CniServer(tmp_path / "s", handler):
        status, headers, body = await exchange(tmp_path / "s", request(conf, cni_command="DEL"))
        assert (status, headers["cni-exit"]) == (200, "1")
        assert json.loads(body) == {"cniVersion": "0.4.0", "code": 11, "msg": "not now", "details": "busy"}
        status, headers, body = await exchange(tmp_path / "s", request(conf))
        assert (status, headers["cni-exit"], json.loads(body)["code"]) == (200, "1", 999)
        assert b"Traceback" not in body
        assert "ZeroDivisionError" in caplog.text
        status, headers, body = await exchange(tmp_path / "s", request(b'{"cni'))
        assert (status, headers["cni-exit"], json.loads(body)["code"]) == (200, "1", 6)


async def test_calls_under_way_end_before_the_server_does(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handler(_: Invocation) -> bytes:
        begun.set()
        await go_on.wait()
        return b"{}"

    async with CniServer(tmp_path / "s", handler, drain=5):
        call = asyncio.create_task(exchange(tmp_path / "s", request()))
        await begun.wait()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
    assert (await call)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        await exchange(tmp_path / "s", request())


async def test_a_call_that_does_not_end_is_cut(tmp_path: Path) -> None:
    begun = asyncio.Event()
    ended = []

    async def handler(_: Invocation) -> bytes:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)
        return b"{}"

    async with CniServer(tmp_path / "s", handler, drain=0.1):
        _, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(request())
        await begun.wait()
    assert ended
    writer.close()


async def test_the_next_agent_takes_over_and_its_socket_stays(tmp_path: Path) -> None:
    async def first(_: Invocation) -> bytes:
        return b'"first"'

    async def second(_: Invocation) -> bytes:
        return b'"second"'

    path = tmp_path / "s"
    async with CniServer(path, first) as predecessor:
        assert (await exchange(path, request()))[2] == b'"first"'
        assert await asyncio.to_thread(predecessor.is_current)
        successor = CniServer(path, second)
        await successor.__aenter__()
        assert not await asyncio.to_thread(predecessor.is_current)
        assert await asyncio.to_thread(successor.is_current)
        assert (await exchange(path, request()))[2] == b'"second"'
    assert (await exchange(path, request()))[2] == b'"second"'
    await successor.__aexit__(None, None, None)
    assert os.listdir(tmp_path) == ["s"]  # noqa: PTH208


async def test_whether_anybody_serves(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with CniServer(path, answer) as server:

        async def lost() -> bool:
            return await asyncio.to_thread(server.is_lost)

        assert not await lost()
        successor = CniServer(path, answer)
        await successor.__aenter__()
        assert not await lost()
        await successor.__aexit__(None, None, None)
        assert await lost(), "the successor's socket is there, and nobody listens"
        path.unlink()
        assert await lost()
        path.write_text("no socket")
        assert await lost()


@pytest.mark.parametrize("taken_in", [True, False])
async def test_what_waits_in_the_queue_at_the_end_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_in: bool
) -> None:
    """A shim may have connected before a successor's rename and not been accepted yet: nobody else would answer it."""

    async def nothing(_: CniServer) -> None:
        """The negative control."""

    if not taken_in:
        monkeypatch.setattr(CniServer, "_accept_queued", nothing)
    loop = asyncio.get_running_loop()
    callers = []
    async with CniServer(tmp_path / "s", answer) as server:
        assert server._listener is not None
        loop.remove_reader(server._listener.fileno())  # a loop that has been too busy to accept
        for _ in range(20):
            caller = socket.socket(socket.AF_UNIX)
            caller.setblocking(False)
            caller.connect(os.fspath(tmp_path / "s"))
            caller.send(request())
            callers.append(caller)
    for caller in callers:
        if taken_in:
            assert (await loop.sock_recv(caller, 4096)).startswith(b"HTTP/1.1 200")
        else:
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(caller, 4096)
        caller.close()


async def test_what_lies_at_the_path_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("stale")
    async with CniServer(tmp_path / "s", answer):
        assert (await exchange(tmp_path / "s", request()))[0] == 200


async def test_a_path_that_cannot_be_bound(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 120), Path("/proc/nowhere/s")):
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's business
            await CniServer(path, answer).__aenter__()
