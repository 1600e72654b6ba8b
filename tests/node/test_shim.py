"""The CNI executable against agents of every kind: none, late, dying, deaf, and one that is well."""

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.protocol import Invocation
from cni.result import encode_versions
from cni.server import CniServer
from cni.shim.build import MAX_BYTES, TARGETS, build
from tests.rules.test_cni_protocol import CONF

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="the server speaks to root only")]

BUILD = Path(__file__).resolve().parents[2] / "build" / "cni"
MACHINES = {"x86_64": ("amd64", 62), "aarch64": ("arm64", 183)}
BODY = json.dumps(CONF).encode()
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0a1b2c3d",
    "CNI_NETNS": "/run/netns/a b%c",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;X=\u00e4\u00f6\r\n: y",
    "CNI_PATH": "/opt/cni/bin:/usr/lib/cni",
}


@pytest.fixture(scope="module")
def shims() -> Mapping[str, Path]:
    """By architecture."""
    return {path.parent.name: path for path in build(BUILD)}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may look into."""
    path = Path(tempfile.mkdtemp(prefix="spiderpool-shim-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def shim(shims: Mapping[str, Path], folder: Path) -> Path:
    """For this machine, under the name of a plugin."""
    return Path(shutil.copy2(shims[MACHINES[os.uname().machine][0]], folder / "macvlan"))


async def run(
    shim: Path, body: bytes = BODY, *, user: int | None = None, **environment: str
) -> tuple[int, dict[str, Any], str]:
    """Exit code, stdout as JSON, stderr."""
    merged = {**ENVIRONMENT, "SPIDERPOOL_SOCKET": str(shim.with_name("s")), **environment}
    process = await asyncio.create_subprocess_exec(
        shim,
        env={key: value for key, value in merged.items() if value},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        user=user,
    )
    out, err = await asyncio.wait_for(process.communicate(body), 30)
    assert process.returncode is not None
    return process.returncode, json.loads(out) if out else {}, err.decode()


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def agent(path: Path, peer: Peer) -> AsyncIterator[None]:
    """An agent that does whatever `peer` does."""
    server = await asyncio.start_unix_server(peer, path)
    try:
        yield
    finally:
        server.close()


@pytest.mark.parametrize("architecture", TARGETS)
def test_the_executables(shims: Mapping[str, Path], architecture: str) -> None:
    data = shims[architecture].read_bytes()
    assert len(data) <= MAX_BYTES
    assert data[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", data, 18)[0] == dict(MACHINES.values())[architecture]
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, offset + n * size)[0] for n in range(count)}
    assert 3 not in kinds, "it asks for a dynamic loader"


def test_a_build_that_is_up_to_date_compiles_nothing(shims: Mapping[str, Path]) -> None:
    before = [path.stat().st_mtime_ns for path in shims.values()]
    assert [path.stat().st_mtime_ns for path in build(BUILD)] == before


async def test_version_needs_no_agent(shim: Path) -> None:
    assert await run(shim, b"", CNI_COMMAND="VERSION") == (0, json.loads(encode_versions()), "")


async def test_a_call_arrives_as_it_was_made(shim: Path) -> None:
    seen: list[Invocation] = []

    async def handler(invocation: Invocation) -> bytes:
        seen.append(invocation)
        return b'{"cniVersion":"1.1.0"}'

    before = time.time_ns()
    async with CniServer(shim.with_name("s"), handler):
        assert await run(shim) == (0, {"cniVersion": "1.1.0"}, "")
    assert (seen[0].type, seen[0].container_id, seen[0].ifname) == ("macvlan", "0a1b2c3d", "eth0")
    assert seen[0].netns == "/run/netns/a b%c"
    assert seen[0].args.extra == {"X": "\u00e4\u00f6\r\n: y"}
    assert before < seen[0].shim_start_ns < time.time_ns()


async def test_an_error_of_the_agent(shim: Path) -> None:
    async with CniServer(shim.with_name("s"), _answer):
        code, document, _ = await run(shim, b'{"cniVersion":')
        assert (code, document["code"]) == (1, 6)
        code, document, _ = await run(shim, CNI_COMMAND="")
        assert (code, document["code"]) == (1, 4)
        assert "CNI_COMMAND" in document["msg"]


async def test_verbs_without_an_answer_print_nothing(shim: Path) -> None:
    async def handler(_: Invocation) -> bytes:
        return b""

    async with CniServer(shim.with_name("s"), handler):
        assert await run(shim, CNI_COMMAND="DEL") == (0, {}, "")


async def test_a_megabyte_is_taken_and_more_is_refused(shim: Path) -> None:
    async def handler(invocation: Invocation) -> bytes:
        return json.dumps({"length": len(invocation.conf.master)}).encode()

    def config(size: int) -> bytes:
        rest = len(json.dumps({**CONF, "master": ""}))
        return json.dumps({**CONF, "master": "x" * (size - rest)}).encode()

    async with CniServer(shim.with_name("s"), handler):
        assert (await run(shim, config(1 << 20)))[0] == 0
        for size in ((1 << 20) + 1, 5_000_000):
            code, document, _ = await run(shim, config(size))
            assert (code, document["code"]) == (1, 7)
            assert str(size) in document["msg"]
            assert str(1 << 20) in document["msg"]


async def test_a_stdin_without_an_end(shim: Path) -> None:
    with Path("/dev/zero").open("rb") as endless:  # noqa: ASYNC230
        process = await asyncio.create_subprocess_exec(
            shim, env=ENVIRONMENT, stdin=endless, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert "more than" in json.loads(out)["msg"]


async def test_an_environment_that_is_too_long(shim: Path) -> None:
    code, document, _ = await run(shim, CNI_ARGS="a" * 60_000)
    assert (code, document["code"], document["details"]) == (1, 4, "Cni-Args")


async def test_no_agent(shim: Path) -> None:
    begun = time.monotonic()
    code, document, _ = await run(shim)
    assert time.monotonic() - begun > 4.9
    assert (code, document["code"]) == (1, 11)
    assert str(shim.with_name("s")) in document["msg"]
    assert document["details"] == "No such file or directory"


async def test_a_socket_that_nobody_listens_on(shim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(shim.with_name("s")))
    code, document, _ = await run(shim)
    assert (code, document["code"], document["details"]) == (1, 11, "Connection refused")


async def test_an_agent_that_comes_late(shim: Path) -> None:
    call = asyncio.create_task(run(shim))
    await asyncio.sleep(0.5)
    async with CniServer(shim.with_name("s"), _answer):
        assert await call == (0, {"cniVersion": "1.1.0"}, "")


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nCni-Exit: 0\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nCni-Exit: 0\r\n\r\n{"cniVersion":"1.1.0","ips":[',
        b'HTTP/1.1 200 OK\r\nCni-Exit: 0\r\n\r\n{"cniVersion":"1.1.0"}',
    ],
)
async def test_an_agent_that_dies_while_it_works(shim: Path, part: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        writer.write(part)
        writer.close()

    async with agent(shim.with_name("s"), peer):
        code, document, _ = await run(shim)
    assert (code, document["code"]) == (1, 11)
    assert document["details"] == str(shim.with_name("s"))


async def test_an_agent_that_stops_before_it_reads_is_replaced_by_the_next(shim: Path) -> None:
    first = socket.socket(socket.AF_UNIX)
    first.bind(str(shim.with_name("s")))
    first.listen()
    call = asyncio.create_task(run(shim))
    await asyncio.sleep(0.3)
    async with CniServer(shim.with_name("s"), _answer):
        first.close()
        assert await call == (0, {"cniVersion": "1.1.0"}, "")


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
async def test_a_call_whose_agent_dies_over_it_is_made_again_at_the_next(shim: Path, verb: str) -> None:
    """Every verb can be repeated: the agent that comes next goes on from what the first one left."""
    begun = asyncio.Event()

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        begun.set()
        writer.close()

    async def handler(invocation: Invocation) -> bytes:
        return json.dumps({"cniVersion": "1.1.0", "verb": invocation.verb}).encode()

    conf = json.dumps({**CONF, "prevResult": {"cniVersion": "1.1.0"}}).encode()
    assert len(conf) > len(BODY)
    async with agent(shim.with_name("s"), dies):
        call = asyncio.create_task(run(shim, BODY if verb != "CHECK" else conf, CNI_COMMAND=verb))
        await begun.wait()
        async with CniServer(shim.with_name("s"), handler):
            assert await call == (0, {"cniVersion": "1.1.0", "verb": verb}, "")


async def test_a_call_is_repeated_once_only(shim: Path) -> None:
    calls = []

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(BODY))
        calls.append(True)
        writer.close()

    async with agent(shim.with_name("s"), dies):
        code, document, _ = await run(shim)
    assert (code, document["code"], len(calls)) == (1, 11, 2)
    assert "went away while it worked" in document["msg"]


async def test_an_agent_that_hangs_with_a_full_queue(shim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(shim.with_name("s")))
        deaf.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(shim.with_name("s")))
            code, document, _ = await run(shim)
    assert (code, document["code"]) == (1, 11)


async def test_other_users_are_refused(shim: Path) -> None:
    called = []

    async def handler(invocation: Invocation) -> bytes:
        called.append(invocation)
        return b"{}"

    async with CniServer(shim.with_name("s"), handler):
        shim.with_name("s").chmod(0o777)
        try:
            code, document, _ = await run(shim, user=65534)
        except OSError as error:
            pytest.skip(f"no other user can be played here: {error}")
    assert (code, document["code"]) == (1, 999)
    assert "65534" in document["details"]
    assert not called


async def test_a_runtime_that_gives_up(shim: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(_: Invocation) -> bytes:
        begun.set()
        await asyncio.sleep(0.2)
        ended.set()
        return b"{}"

    async with CniServer(shim.with_name("s"), handler):
        process = await asyncio.create_subprocess_exec(
            shim, env={**ENVIRONMENT, "SPIDERPOOL_SOCKET": str(shim.with_name("s"))}, stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(BODY)
        process.stdin.close()
        await begun.wait()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.wait_for(ended.wait(), 5)
        assert (await run(shim))[0] == 0


async def _answer(_: Invocation) -> bytes:
    return b'{"cniVersion":"1.1.0"}'
