"""What is left over is given up, and nothing else: sandboxes without a DEL, reboots, lost journals, dead nodes."""

from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import anyio
import pytest

from actors.controller import Controller
from api import wire
from api.core import Node, NodeSpec, NodeStatus, Pod, PodSpec
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, decode_records, encode_records
from api.kinds import ENDPOINT, IPPOOL, NODE, POD
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from api.wire import Attachment
from cni.journal import State
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import Conflict
from runtime.testing import VirtualClock, run
from runtime.transport.port import Call, Peer
from tests.simulation.world import NODES, ROUGH_NETWORK, ROUGH_STORE, World, crashes, hangs

SEEDS = range(1, 16)


def play(world: World, seed: int, disturb: Callable[[World], Awaitable[None]] | None = None) -> str:
    return run(lambda: world.run(disturb), seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_sandboxes_that_vanish_without_a_del_give_their_addresses_back(seed: int) -> None:
    play(World(seed, forgetful=0.7, chances=ROUGH_STORE, weather=ROUGH_NETWORK), seed, crashes)


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cuts_of_nodes(seed: int) -> None:
    async def disturb(world: World) -> None:
        while True:
            await anyio.sleep(world.random.uniform(0.5, 2.0))
            node = world.random.choice(NODES)
            world.reboot(node)
            await anyio.sleep(world.random.uniform(0.1, 1.0))
            await world.start_agent(node)

    play(World(seed, forgetful=0.3, replicas=("c1", "c2", "c3"), spread=True), seed, disturb)


@pytest.mark.parametrize("seed", range(1, 7))
def test_what_is_owed_goes_within_a_second_of_a_controllers_return(seed: int) -> None:
    world = World(seed)
    world.lifetime = (1.0, 200.0)
    seen: list[float] = []

    async def disturb(world: World) -> None:
        await anyio.sleep(1.0)
        for name in world.replicas:
            world.crash(name)
        await anyio.sleep(150.0)  # by then the pauses between two tries are as long as they get
        owed = {entry.container_id[:12] for entry in world.entries() if entry.state is State.RELEASING}
        assert owed
        await world.start_replica(world.replicas[0])
        back = anyio.current_time()
        while owed & {record.cid for record in world.committed().values()}:  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.01)
        seen.append(anyio.current_time() - back)
        await world.start_replica(world.replicas[1])

    play(world, seed, disturb)
    assert seen and seen[0] < 1.0


# ---------------------------------------------------------------- one controller, and what agents tell it

type Scene = Callable[["Stage"], Coroutine[Any, Any, None]]


class Stage:
    """A controller on a store in memory, one pool with records, and the voice of one agent."""

    def __init__(self, **settings: Any) -> None:
        self.store = MemoryStore()
        self.system = System(clock=VirtualClock(), random=Random(1))
        self.controller = Controller(
            self.system,
            self.store,
            settings=ControllerSettings(pod_namespace="spiderpool", pod_name="c1", **settings),
            path="c1",
        )

    async def record(self, **records: AllocationRecord) -> None:
        """Put these into the pool, by the last byte of the address."""
        held = {f"10.6.0.{name[1:]}": record for name, record in records.items()}
        await self.store.patch(IPPOOL, "v4", {"status": {"allocatedIPs": encode_records(held)}}, subresource="status")

    async def report(self, *known: tuple[str, str], node: str = "n1") -> None:
        """An agent's report: (nic, cid) each."""
        report = wire.Report(attachments=tuple(Attachment(uid="u", nic=nic, cid=cid) for nic, cid in known))
        peer = Peer(account="agent", node=node, role="agent")
        call = Call(payload=wire.encode(report), peer=peer, deadline=anyio.current_time() + 10)
        assert wire.decode_response(await self.controller.serve(call)) == wire.Noted()

    async def left(self) -> set[str]:
        """The addresses that are still held."""
        await anyio.sleep(1.0)
        return set(decode_records((await self.store.get(IPPOOL, "v4")).status.allocated_ips))

    async def pod(self, name: str, node: str = "n1", **meta: Any) -> str:
        made = await self.store.create(
            POD,
            Pod(metadata=ObjectMeta(name=name, namespace="default", **meta), spec=PodSpec(node_name=node)),
        )
        return made.metadata.uid

    async def node(self, name: str, *, ready: bool = True, out: bool = False) -> None:
        status = {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]}
        taints = [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}] if out else None
        await self.store.patch(NODE, name, {"status": status}, subresource="status")
        await self.store.patch(NODE, name, {"spec": {"taints": taints}})


def act(scene: Scene, **settings: Any) -> None:
    async def main() -> None:
        stage = Stage(**settings)
        await stage.store.create(NODE, Node(metadata=ObjectMeta(name="n1"), spec=NodeSpec(), status=NodeStatus()))
        await stage.store.create(
            IPPOOL,
            SpiderIPPool(
                metadata=ObjectMeta(name="v4"),
                spec=IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.50"]),
            ),
        )
        async with anyio.create_task_group() as group:
            group.start_soon(stage.controller.supervisor.run)
            await stage.controller.cluster.synced()
            await scene(stage)
            group.cancel_scope.cancel()

    run(main, seed=1)


def holding(pod: str, uid: str, cid: str = "aaaaaaaaaaaa", *, node: str = "n1", nic: str = "eth0") -> AllocationRecord:
    return AllocationRecord(pod=f"default/{pod}", pod_uid=uid, nic=nic, node=node, cid=cid)


def test_a_record_that_nobody_knows_goes_after_a_minute_of_reports_and_not_before() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1", "111111111111"), a2=holding("gone2", "u2", "222222222222"))
        await stage.store.create(
            ENDPOINT,
            SpiderEndpoint(
                metadata=ObjectMeta(name="gone", namespace="default"),
                status=EndpointStatus(
                    current=EndpointCurrent(uid="u1", node="n1", ips=[IPAllocationDetail(interface="eth0")])
                ),
            ),
        )
        await anyio.sleep(6)
        await stage.report(("eth0", "222222222222"))
        await anyio.sleep(50)
        await stage.report(("eth0", "222222222222"))
        assert await stage.left() == {"10.6.0.1", "10.6.0.2"}
        await anyio.sleep(15)
        await stage.report(("eth0", "222222222222"))
        assert await stage.left() == {"10.6.0.2"}
        assert not (await stage.store.list(ENDPOINT)).items

    act(scene)


def test_a_record_that_one_report_in_between_knows_stays() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        await anyio.sleep(6)
        await stage.report()
        await anyio.sleep(40)
        await stage.report(("eth0", "aaaaaaaaaaaa"))
        await anyio.sleep(40)
        await stage.report()
        assert await stage.left() == {"10.6.0.1"}

    act(scene)


def test_a_pod_that_lives_keeps_its_address_though_its_agent_has_lost_the_journal() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("alive")
        await stage.record(a1=holding("alive", uid))
        await anyio.sleep(6)
        for _ in range(5):
            await stage.report()
            await anyio.sleep(40)
        assert await stage.left() == {"10.6.0.1"}

    act(scene)


def test_records_of_other_nodes_and_of_other_makers_are_not_this_agents_business() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(
            a1=holding("gone", "u1", node="n2"),
            a2=AllocationRecord(pod="default/old", pod_uid="u2"),
            a3=AllocationRecord(pod="default/odd", pod_uid="u3", nic="eth0", node="n1"),
        )
        await anyio.sleep(6)
        for _ in range(3):
            await stage.report()
            await anyio.sleep(40)
        assert await stage.left() == {"10.6.0.1", "10.6.0.2", "10.6.0.3"}

    act(scene)


def test_with_the_switch_off_nothing_is_collected() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        for _ in range(4):
            await stage.report()
            await anyio.sleep(40)
        assert await stage.left() == {"10.6.0.1"}

    act(scene, gc_ip_enabled=False)


@pytest.mark.parametrize("how", ["deleted", "out of service", "not ready"])
def test_a_dead_node_gives_up_what_pods_had_that_are_gone_and_nothing_else(how: str) -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("still-there")
        await stage.record(a1=holding("gone", "u1"), a2=holding("still-there", uid))
        await anyio.sleep(15)
        if how == "deleted":
            await stage.store.delete(NODE, "n1")
        else:
            await stage.node("n1", ready=False, out=how == "out of service")
        await anyio.sleep(60)
        assert await stage.left() == ({"10.6.0.2"} if how == "out of service" else {"10.6.0.1", "10.6.0.2"})
        await anyio.sleep(100)
        assert await stage.left() == {"10.6.0.2"}
        await stage.store.delete(POD, "still-there", namespace="default")
        await anyio.sleep(30)
        assert await stage.left() == set()

    act(scene)


def test_a_node_that_reboots_keeps_everything() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        for _ in range(4):
            await stage.node("n1", ready=False)
            await anyio.sleep(100)
            await stage.node("n1", ready=True)
            await anyio.sleep(20)
        assert await stage.left() == {"10.6.0.1"}

    act(scene)


def test_an_agent_that_speaks_outweighs_a_node_that_is_not_ready() -> None:
    async def scene(stage: Stage) -> None:
        await stage.record(a1=holding("gone", "u1"))
        await stage.node("n1", ready=False)
        for _ in range(8):
            await stage.report(("eth0", "aaaaaaaaaaaa"))
            await anyio.sleep(60)
        assert await stage.left() == {"10.6.0.1"}
        await anyio.sleep(150)
        assert await stage.left() == set()

    act(scene)


def test_a_pod_on_a_dead_node_past_its_grace_loses_its_address_where_the_operator_allows_it() -> None:
    async def scene(stage: Stage) -> None:
        uid = await stage.pod("stuck", finalizers=["test/keep"])
        await stage.store.delete(POD, "stuck", namespace="default")
        await stage.record(a1=holding("stuck", uid))
        await stage.node("n1", ready=False)
        await anyio.sleep(300)
        kept.append(await stage.left())

    kept: list[set[str]] = []
    act(scene)
    act(scene, gc_terminating_pod_on_not_ready_node=False)
    assert kept == [set(), {"10.6.0.1"}]


@pytest.mark.parametrize("seed", range(1, 6))
def test_records_planted_in_a_busy_cluster_are_found(seed: int) -> None:
    """The worst that a lost journal leaves: records of pods that are gone, unknown to the agents of their nodes."""

    async def disturb(world: World) -> None:
        for number in range(3):
            record = AllocationRecord(
                pod=f"default/lost-{number}", pod_uid=f"lost-{number}", nic="eth0", node=NODES[number], cid="0" * 12
            )
            while True:
                pool = await world.truth.get(IPPOOL, "v4")
                held = decode_records(pool.status.allocated_ips)
                free = next(f"10.6.0.{n}" for n in range(10, 30) if f"10.6.0.{n}" not in held)
                try:
                    await world.truth.patch(
                        IPPOOL,
                        "v4",
                        {"status": {"allocatedIPs": encode_records({**held, free: record})}},
                        subresource="status",
                        resource_version=pool.metadata.resource_version,
                    )
                except Conflict:
                    continue
                break
        await hangs(world)

    world = World(seed, replicas=("c1", "c2", "c3"), spread=True)
    world.settle_seconds = 400.0
    play(world, seed, disturb)
