"""What the CNI executable does without a call to an agent: after an uninstall, and as a probe."""

import asyncio
import os
import socket
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from cni.server import CniServer
from telemetry.health import HealthTree, State
from telemetry.http import HttpServer, Response
from tests.node.test_shim import _answer, agent, folder, run, shim, shims  # noqa: F401 - fixtures

pytestmark = [pytest.mark.node, pytest.mark.skipif(os.geteuid() != 0, reason="the server speaks to root only")]


@pytest.fixture(params=["missing", "refused"])
def uninstalled(request: pytest.FixtureRequest, shim: Path) -> Path:  # noqa: F811
    """A shim beside the mark, and no agent."""
    shim.with_name("spiderpool.uninstalled").write_text("today")
    if request.param == "refused":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(shim.with_name("s")))
    return shim


@pytest.mark.parametrize("verb", ["DEL", "GC"])
async def test_after_an_uninstall_what_goes_may_go(uninstalled: Path, verb: str) -> None:
    begun = time.monotonic()
    assert await run(uninstalled, CNI_COMMAND=verb) == (0, {}, "")
    assert time.monotonic() - begun < 4, "it waited for an agent that will not come"


@pytest.mark.parametrize(("verb", "expected"), [("ADD", 11), ("CHECK", 11), ("STATUS", 50)])
async def test_after_an_uninstall_nothing_new_is_made(uninstalled: Path, verb: str, expected: int) -> None:
    code, document, _ = await run(uninstalled, CNI_COMMAND=verb)
    assert (code, document["code"]) == (1, expected)
    assert document["msg"].startswith("Spiderpool was uninstalled from this node")
    assert "00-spiderpool.conflist" in document["details"]


async def test_the_mark_counts_under_every_name_and_by_links(uninstalled: Path) -> None:
    link = uninstalled.with_name("coordinator")
    link.symlink_to(uninstalled)
    other = uninstalled.with_name("elsewhere")
    other.mkdir()
    (other / "macvlan").symlink_to(uninstalled)
    for path in (link, other / "macvlan"):
        assert await run(path, CNI_COMMAND="DEL", SPIDERPOOL_SOCKET=str(uninstalled.with_name("s"))) == (0, {}, "")


async def test_an_agent_that_serves_is_asked_whatever_lies_there(uninstalled: Path) -> None:
    async with CniServer(uninstalled.with_name("s"), _answer):
        assert await run(uninstalled) == (0, {"cniVersion": "1.1.0"}, "")


async def test_negative_control_without_the_mark_an_agent_is_waited_for(shim: Path) -> None:  # noqa: F811
    begun = time.monotonic()
    code, document, _ = await run(shim, CNI_COMMAND="DEL")
    assert time.monotonic() - begun > 4.9
    assert (code, document["code"]) == (1, 11)


async def probe(program: Path, socket_path: Path, path: str) -> tuple[int, str]:
    """Exit code and what it prints."""
    process = await asyncio.create_subprocess_exec(
        program, "probe", socket_path, path, stdout=asyncio.subprocess.PIPE, env={}
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_probes_of_an_agent(shim: Path) -> None:  # noqa: F811
    tree = HealthTree("agent")
    tree.report("agent/node", State.OK)
    tree.report("agent/cni/socket", State.STARTING, "the journal is being read")
    path = shim.with_name("probe")
    async with HttpServer("127.0.0.1", 0, health=tree, unix=path):
        code, words = await probe(shim, path, "/v1/runtime/readiness")
        assert (code, words) == (1, "agent/cni/socket is starting: the journal is being read\n")
        assert await probe(shim, path, "/v1/runtime/liveness") == (0, "")
        tree.report("agent/cni/socket", State.OK)
        assert await probe(shim, path, "/v1/runtime/readiness") == (0, "")
        code, words = await probe(shim, path, "/nowhere")
        assert (code, words) == (1, "not found\n")


async def test_a_probe_without_an_answer(shim: Path) -> None:  # noqa: F811
    path = shim.with_name("probe")
    assert await probe(shim, path, "/x") == (1, f"{path}: No such file or directory\n")

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0\r\n")
        writer.close()

    for peer in (silent, other):
        async with agent(path, peer):
            code, words = await probe(shim, path, "/x")
            assert code == 1
            assert words.startswith(str(path))
        path.unlink(missing_ok=True)
    assert (await probe(shim, Path("/x" * 80), "/x"))[0] == 1
    assert (await probe(shim, path, "/x" * 8000))[0] == 1


async def test_a_long_answer_is_cut_to_its_first_line(shim: Path) -> None:  # noqa: F811
    path = shim.with_name("probe")

    def long(_: str) -> Response:
        return Response(b"first\n" + b"x" * 20_000, HTTPStatus.SERVICE_UNAVAILABLE)

    async with HttpServer("127.0.0.1", 0, routes={"/long": long}, unix=path):
        assert await probe(shim, path, "/long") == (1, "first\n")
