"""What a replica remembers for `spiderpoolctl status`, and what the verb makes of the answers."""

from random import Random
from typing import Any

import anyio
import msgspec
import pytest

from actors.controller import Controller
from actors.pools.claims import Claim
from actors.replica.activity import Activity
from api.coordinator import CoordinatorStatus, SpiderCoordinator
from api.core import EndpointSlice
from api.ippool import IPPoolSpec, IPPoolStatus, SpiderIPPool
from api.kinds import CONFIGMAP, IPPOOL
from api.meta import ObjectMeta
from api.reasons import Explanation
from api.settings import ControllerSettings
from api.status import Budget, NodeActivity, PoolWork, Problem, ReplicaStatus
from api.wire import Allocate, Allocated, Inquire, Networked, PodRef, Ready, Rejected, Release
from ctl import status
from ctl.programs import health_ports
from ctl.screen import Component, Status, ago, render
from ctl.status import assemble
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.testing import VirtualClock, run
from runtime.transport.port import Peer
from telemetry import metrics

PEER = Peer(
    account="system:serviceaccount:spiderpool:spiderpool-agent", node="n1", pod="spiderpool/agent-1", role="agent"
)
GRANTED = Allocated(addresses=(), routes=(), explanation=Explanation(), pod_uid="u")
WELL = [
    Component(name="spiderpool-controller", kind="Deployment", desired=1, ready=1, updated=1, version="0.1.0"),
    Component(name="spiderpool-agent", kind="DaemonSet", desired=1, ready=1, updated=1, version="0.1.0"),
]


def allocate(name: str) -> Allocate:
    return Allocate(pod=PodRef(namespace="default", name=name, uid="u"), nic="eth0", container_id="c")


def pod(name: str, node: str, *, ready: bool = True, waiting: str = "") -> Any:
    document = {
        "metadata": {"name": name, "namespace": "spiderpool", "labels": {"app.kubernetes.io/version": "0.1.0"}},
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {"restartCount": 2, "state": {"waiting": {"reason": waiting}} if waiting else {"running": {}}}
            ],
        },
    }
    return msgspec.convert(document, status._Pod)


def pool(name: str, used: int, total: int) -> SpiderIPPool:
    return SpiderIPPool(
        metadata=ObjectMeta(name=name),
        spec=IPPoolSpec(subnet="10.6.0.0/16", ips=[]),
        status=IPPoolStatus(allocated_ip_count=used, total_ip_count=total),
    )


def test_grants_and_refusals_are_counted_by_node() -> None:
    activity = Activity()
    activity.record(allocate("a"), GRANTED, PEER, at=100.0)
    activity.record(allocate("b"), Rejected(message="full", cause="ip_used_out"), PEER, at=101.0)
    activity.record(Inquire(), Ready(), PEER, at=102.0)
    activity.record(allocate("c"), Networked(pod_uid="u"), PEER, at=103.0)  # which is asked for again, in full
    (node,) = activity.nodes()
    assert node == NodeActivity(
        node="n1", agent="spiderpool/agent-1", last_add=100.0, last_pod="default/a", adds=1, failures=1
    )


def test_repetitions_of_a_refusal_are_one_problem_and_old_ones_are_forgotten() -> None:
    activity = Activity()
    for second in range(5):
        activity.record(allocate("b"), Rejected(message=f"full {second}", cause="ip_used_out"), PEER, at=float(second))
    activity.record(
        Release(pod=PodRef(namespace="default", name="c"), nic="eth0", container_id="c"),
        Rejected(message="not yours", cause="denied"),
        PEER,
        at=10.0,
    )
    latest, repeated = activity.problems(now=20.0)
    assert (latest.pod, latest.cause, latest.count) == ("default/c", "denied", 1)
    assert (repeated.pod, repeated.message, repeated.count) == ("default/b", "full 4", 5)
    assert activity.problems(now=3604.5) == (latest,)
    assert activity.problems(now=9999.0) == ()


def test_problems_are_bounded() -> None:
    activity = Activity()
    for number in range(2000):
        activity.record(allocate(f"p{number}"), Rejected(message="full", cause="x"), PEER, at=1.0)
    problems = activity.problems(now=1.0)
    assert len(problems) == 500
    assert problems[0].pod == "default/p1999"


def test_all_is_well() -> None:
    replica = ReplicaStatus(
        replica="controller-1",
        version="0.1.0",
        started=0.0,
        pools={"lan": "controller-1"},
        nodes=(NodeActivity(node="n1", last_add=90.0, last_pod="default/a", adds=3, failures=1),),
    )
    found = assemble(
        "spiderpool",
        components=WELL,
        controllers=[(pod("controller-1", "n1"), replica)],
        agents=[pod("agent-1", "n1")],
        nodes=["n1"],
        pools=[pool("lan", 3, 10)],
    )
    assert found.wrong == ()
    text = render(found, now=100.0)
    assert "All is well." in text
    assert "lan    3      10      controller-1" in text
    assert [line.split() for line in text.splitlines() if line.startswith("n1")] == [
        ["n1", "agent-1", "Ready", "2", "10s", "default/a", "3", "1"]
    ]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"nodes": ["n1", "n2"]}, "node n2: its agent is missing"),
        ({"agents": [pod("agent-1", "n1", ready=False, waiting="CrashLoopBackOff")]}, "its agent is CrashLoopBackOff"),
        ({"controllers": [(pod("controller-1", "n1"), "connection refused")]}, "controller-1: connection refused"),
        (
            {"components": [msgspec.structs.replace(WELL[0], ready=0), WELL[1]]},
            "Deployment spiderpool-controller: 0 of 1 ready",
        ),
        (
            {"components": [msgspec.structs.replace(WELL[0], version="0.2.0"), WELL[1]]},
            "several versions at once: 0.1.0, 0.2.0",
        ),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], wrong: str) -> None:
    usual: dict[str, Any] = {
        "components": WELL,
        "controllers": [(pod("controller-1", "n1"), ReplicaStatus(replica="controller-1", version="0", started=0.0))],
        "agents": [pod("agent-1", "n1")],
        "nodes": ["n1"],
        "pools": [],
    }
    found = assemble("spiderpool", **{**usual, **change})
    assert any(wrong in line for line in found.wrong), found.wrong
    assert f"WRONG: {found.wrong[0]}" in render(found, now=0.0)


def test_a_coordinator_that_is_not_ready_is_named() -> None:
    def wrong(phase: str) -> tuple[str, ...]:
        status = CoordinatorStatus(phase=phase, reason="no source says it" if phase == "NotReady" else None)
        one = SpiderCoordinator(metadata=ObjectMeta(name="default"), status=status)
        return assemble(
            "spiderpool", components=WELL, controllers=[], agents=[], nodes=[], pools=[], coordinators=[one]
        ).wrong

    assert wrong("NotReady") == ("SpiderCoordinator default: NotReady: no source says it",)
    assert wrong("Synced") == ()
    assert wrong("") == (), "nobody keeps its status"


def test_of_two_agents_on_a_node_the_ready_one_speaks() -> None:
    found = assemble(
        "spiderpool",
        components=WELL,
        controllers=[],
        agents=[pod("new", "n1", ready=False), pod("old", "n1")],
        nodes=["n1"],
        pools=[],
    )
    assert [agent.pod for agent in found.agents] == ["old"]


def test_the_owner_itself_knows_best_and_long_tables_are_cut() -> None:
    first = ReplicaStatus(replica="a", version="0", started=0.0, pools={"p0": "a", "p1": "a"})
    second = ReplicaStatus(replica="b", version="0", started=0.0, pools={"p0": "a", "p1": "b"})
    problems = (Problem(at=1.0, count=2, node="n1", pod="default/x", cause="ip_used_out", message="m" * 300),)
    found = assemble(
        "spiderpool",
        components=WELL,
        controllers=[(pod("a", "n1"), first), (pod("b", "n2"), msgspec.structs.replace(second, problems=problems))],
        agents=[pod("agent-1", "n1")],
        nodes=["n1"],
        pools=[pool(f"p{number}", 0, 1) for number in range(20)],
    )
    assert [p.owner for p in found.pools[:3]] == ["a", "b", ""]
    text = render(found, now=61.0)
    assert "and 8 more pools" in text
    assert "Refused in the last hour:" in text
    assert max(map(len, text.splitlines())) < 200


def test_the_work_of_pools_is_their_owners_and_a_request_that_waits_for_long_is_wrong() -> None:
    mine, others = PoolWork(waiting=2, oldest=1.25, busy=True, batches=4, requests=50, largest=30), PoolWork(batches=9)
    usual = ReplicaStatus(replica="a", version="0", started=0.0, pools={"lan": "a"})
    first = msgspec.structs.replace(
        usual, work={"lan": mine}, budget=Budget(rate=1.25e6, balance=-2e5), writes=5, granted=40
    )
    second = msgspec.structs.replace(usual, replica="b", work={"lan": others})

    def found(first: ReplicaStatus) -> Status:
        return assemble(
            "spiderpool",
            components=WELL,
            controllers=[(pod("b", "n2"), second), (pod("a", "n1"), first)],
            agents=[pod("agent-1", "n1")],
            nodes=["n1"],
            pools=[pool("lan", 3, 10)],
        )

    shown = found(first)
    assert shown.wrong == ()
    assert shown.pools[0].work == mine
    rows = [line.split() for line in render(shown, now=0.0, wide=True).splitlines()]
    assert ["lan", "3", "10", "a", "0", "4", "12.50", "30", "2", "1.2s"] in rows
    assert "a         n1     Ready   0         1      40        0.12" in render(shown, now=0.0)
    assert "-0.2 MB, 1.2 MB/s, pools pause" in render(shown, now=0.0)
    late = msgspec.structs.replace(first, work={"lan": msgspec.structs.replace(mine, oldest=9.0)})
    assert found(late).wrong == ("pool lan: 2 requests wait, the first for 9 s",)


def test_a_replica_says_what_its_pools_do() -> None:
    """What `/debug/status` has, from a replica that serves."""
    requests = 20

    async def main() -> None:
        system = System(clock=VirtualClock(), random=Random(1))
        store = MemoryStore()
        spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.99"])
        await store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="lan"), spec=spec))
        settings = ControllerSettings(pod_namespace="spiderpool", pod_name="c1")
        controller = Controller(system, store, settings=settings, path="c1")
        async with anyio.create_task_group() as group:
            group.start_soon(controller.supervisor.run)
            await controller.cluster.synced()

            async def claim(number: int) -> None:
                claim = Claim(pod=f"d/p{number}", uid=f"u{number}", nic="eth0", node="n1", cid="c")
                await controller.pools("lan").ask(claim, timeout=5.0)

            async with anyio.create_task_group() as claims:
                for number in range(requests):
                    claims.start_soon(claim, number)
            said = msgspec.json.decode(msgspec.json.encode(controller.status()), type=ReplicaStatus)
            work = said.work["lan"]
            assert (work.requests, said.granted, work.waiting) == (requests, requests, 0)
            assert 1 <= said.writes <= work.batches < requests
            assert work.largest > 1
            assert said.budget.rate == 2_500_000
            controller.measure(debug=True)
            assert value("spiderpool_pool_writes_per_grant") == said.writes / requests
            assert value("spiderpool_total_ippool_counts") == 1
            assert value("spiderpool_debug_ippool_total_ip_counts", SpiderIPPool="lan") == 99
            assert value("spiderpool_debug_ippool_available_ip_counts", SpiderIPPool="lan") == 99 - requests
            controller.measure(debug=False)
            assert value("spiderpool_debug_ippool_total_ip_counts", SpiderIPPool="lan") is None
            await controller.supervisor.stop()
        assert [item.metadata.name for item in store.peek(CONFIGMAP)] == ["spiderpool-history.lan"]

    run(main, seed=1)


def value(name: str, **labels: str) -> float | None:
    """Of this metric alone: others read files to answer."""
    for family in metrics.REGISTRY.restricted_registry([name]).collect():
        for sample in family.samples:
            if sample.labels == labels:
                return sample.value
    return None


def test_the_port_comes_from_the_slices() -> None:
    document = {
        "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "controller-1"}}],
        "ports": [{"name": "rpc", "port": 5723}, {"name": "http", "port": 5720}],
    }
    assert health_ports([msgspec.convert(document, EndpointSlice)]) == {"controller-1": 5720}


def test_ages_are_short() -> None:
    assert [ago(at, 1_000_000.0) for at in (0.0, 999_990.0, 999_700.0, 990_000.0, 700_000.0)] == [
        *("", "10s", "5m", "2h", "3d")
    ]
