"""How spiderpoolctl asks a spiderpool-standalone, and what its status makes of the answers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.ippool import IPPoolSpec, IPPoolStatus, SpiderIPPool
from api.meta import ObjectMeta
from api.status import SOCKET_NAME, NodeActivity, Problem, ReplicaStatus
from ctl import programs
from ctl.programs import Silent, Standalone
from ctl.screen import render
from ctl.status import alone
from runtime.store.sqlite import SQLiteStore
from telemetry.health import HealthTree, Node, State
from telemetry.http import HttpServer, Post, Response, Route

asked: list[str] = []


def answer(query: str) -> Response:
    asked.append(query)
    return Response(b"told\n")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Path]:
    asked.clear()
    health = HealthTree("standalone")
    health.report("agent/node", State.OK)
    routes: dict[str, Route] = {"/v1/ipam/gc_ips": Post(answer), "/debug/status": answer}
    async with HttpServer("127.0.0.1", 0, health=health, routes=routes, unix=tmp_path / SOCKET_NAME):
        yield tmp_path


async def test_the_program_of_a_state_folder_is_asked_by_its_socket(served: Path) -> None:
    (program,) = await programs.replicas(SQLiteStore(served / "s"), str(served), namespace="", controller="")
    assert program.name == "spiderpool-standalone"
    assert await program.ask("POST", "/v1/ipam/gc_ips") == b"told\n"
    assert await program.ask("GET", "/debug/status", {"a": "b c"}) == b"told\n"
    assert asked == ["", "a=b+c"]


async def test_what_is_no_good_answer_is_said(served: Path) -> None:
    with pytest.raises(Silent, match="GET /nil: HTTP 404: not found"):
        await Standalone(served).ask("GET", "/nil")
    with pytest.raises(Silent, match="GET /v1/ipam/gc_ips: HTTP 405: use POST"):
        await Standalone(served).ask("GET", "/v1/ipam/gc_ips")


async def test_a_program_that_does_not_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(Silent, match=r"http\.sock: .*: is it running\?"):
        await Standalone(tmp_path).ask("GET", "/debug/status")


SAID = ReplicaStatus(
    replica="spiderpool-standalone",
    version="1",
    started=0.0,
    pools={"lan": "spiderpool-standalone"},
    nodes=(NodeActivity(node="localhost", last_add=90.0, last_pod="default/web", adds=2, failures=1),),
    problems=(
        Problem(at=95.0, count=1, node="localhost", pod="default/db", cause="ip_used_out", message="full " * 50),
    ),
)
POOL = SpiderIPPool(
    metadata=ObjectMeta(name="lan"),
    spec=IPPoolSpec(subnet="10.6.0.0/16", ips=["10.6.0.1"]),
    status=IPPoolStatus(
        allocated_ip_count=1,
        total_ip_count=1,
        withheld_ips='{"10.6.0.1":{"reason":"cool-down","until":"2999-01-01T00:00:00Z"}}',
    ),
)


def tree(state: State, detail: str = "") -> Node:
    health = HealthTree("standalone")
    health.report("poolfiles/files", state, detail)
    health.report("agent/node", State.OK)
    return health.snapshot()


def test_a_program_that_is_well() -> None:
    found = alone("/state", SAID, tree(State.OK), [POOL])
    assert found.wrong == ()
    text = render(found, now=100.0)
    assert text.startswith("spiderpool-standalone in /state\n") and "All is well." in text
    assert "REPLICA" not in text
    rows = [line.split() for line in text.splitlines()]
    assert ["localhost", "spiderpool-standalone", "Ready", "0", "10s", "default/web", "2", "1"] in rows
    assert ["lan", "1", "1", "spiderpool-standalone"] in rows
    assert ["lan", "1", "1", "spiderpool-standalone", "1", "0", "-", "0", "0", "-"] in [
        line.split() for line in render(found, now=100.0, wide=True).splitlines()
    ]
    assert "full " * 40 not in text and "full " * 40 in render(found, now=100.0, wide=True)


def test_each_part_that_is_not_well_is_named() -> None:
    found = alone("/state", SAID, tree(State.DEGRADED, "lan.yaml: spec.gatway"), [POOL])
    assert found.wrong == ("poolfiles/files is degraded: lan.yaml: spec.gatway",)
    assert found.agents[0].state == "Ready"
    found = alone("/state", SAID, tree(State.FAILED), [POOL])
    assert found.agents[0].state == "failed" and found.components[0].ready == 0


def test_a_silent_program_is_wrong_and_its_pools_are_shown_all_the_same() -> None:
    found = alone("/state", "no answer", "no answer", [POOL])
    assert found.wrong == ("spiderpool-standalone: no answer",)
    assert [pool.name for pool in found.pools] == ["lan"]
