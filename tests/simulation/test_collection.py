"""The collector in a world of real agents: sandboxes without a DEL, power cuts, lost journals, forced deletions.

Whatever happens, no address is given to a second pod while a link still carries it, and in the end nothing is left.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from actors.pools.peers import COLLECTOR
from api.core import Pod, PodSpec
from api.ippool import AllocationRecord, decode_records, encode_records
from api.kinds import IPPOOL, POD
from api.meta import ObjectMeta
from api.wire import Look
from cni.journal import State
from cni.protocol import Verb
from ipam.inquiry import Answer, Inquiry
from runtime.ownership import ranking
from runtime.store.port import Conflict
from runtime.testing import run
from tests.simulation.node import Violation
from tests.simulation.world import NODES, ROUGH_NETWORK, ROUGH_STORE, Story, World, crashes, hangs

SEEDS = range(1, 16)
THREE = ("c1", "c2", "c3")


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

    play(World(seed, forgetful=0.3, replicas=THREE, spread=True), seed, disturb)


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


@pytest.mark.parametrize("seed", range(1, 6))
def test_records_planted_in_a_busy_cluster_are_found(seed: int) -> None:
    """The worst that a lost journal leaves: records of pods that are gone, unknown to the agents of their nodes."""

    async def disturb(world: World) -> None:
        for number, node in enumerate(NODES):
            await plant(
                world,
                AllocationRecord(
                    pod=f"default/lost-{number}", pod_uid=f"lost-{number}", nic="eth0", node=node, cid="0" * 12
                ),
            )
            await plant(world, AllocationRecord(pod=f"default/old-{number}", pod_uid=f"old-{number}"))
        await hangs(world)

    world = World(seed, replicas=THREE, spread=True)
    world.settle_seconds = 200.0
    play(world, seed, disturb)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("killed", [False, True])
def test_a_question_finds_its_agent_at_whichever_replica_that_waits(seed: int, killed: bool) -> None:
    """Three nodes' agents are connected to some of three replicas; one collects, or the next after it was killed."""
    took: list[float] = []

    async def story(world: World) -> None:
        for number, node in enumerate(NODES):
            meta = ObjectMeta(name=f"ghost-{number}", namespace="default")
            pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
            record = AllocationRecord(
                pod=f"default/ghost-{number}", pod_uid=pod.metadata.uid, nic="eth0", node=node, cid="0" * 12
            )
            await plant(world, record)
        await anyio.sleep(30.0)
        if killed:
            world.crash(ranking(COLLECTOR, THREE)[0])
            await anyio.sleep(13.0)  # its own agents turn to another replica, the others' reports are passed on
        begun = anyio.current_time()
        for number in range(len(NODES)):
            await world.truth.delete(POD, f"ghost-{number}", namespace="default")
        while any("ghost" in record.pod for record in world.committed().values()):  # noqa: ASYNC110 - virtual time
            await anyio.sleep(0.01)
        took.append(anyio.current_time() - begun)

    play(World(seed, replicas=THREE, spread=True, stories=[story]), seed)
    assert took and took[0] < 1.0


async def plant(world: World, record: AllocationRecord) -> None:
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
        return


# ---------------------------------------------------------------- pods deleted by force


def forced(number: int) -> Story:
    """A pod whose object goes long before its sandbox, on a node whose journal is lost in between."""

    async def story(world: World) -> None:
        node = NODES[number % len(NODES)]
        await anyio.sleep(world.random.uniform(0, 5))
        name = f"forced-{number}"
        meta = ObjectMeta(name=name, namespace="default")
        pod = await world.truth.create(POD, Pod(metadata=meta, spec=PodSpec(node_name=node)))
        tries = 0
        while True:
            tries += 1
            cid = f"f{number:05x}{tries:06x}".ljust(64, "f")
            if await world.call(node, world.invocation(Verb.ADD, pod, cid)) is not None:
                break
            await world.delete(node, pod, cid)
            await anyio.sleep(1.0)
        await world.truth.delete(POD, name, namespace="default")
        await anyio.sleep(world.random.uniform(0, 1))
        world.crash(node)
        world._disks[node].entries = {
            key: entry for key, entry in world._disks[node].entries.items() if entry.container_id != cid
        }
        await world.start_agent(node)
        await anyio.sleep(world.random.uniform(20, 60))
        netns = f"/run/netns/{cid[:12]}"
        world._kernels[node].lose(netns, watched=True)
        for veth in [what for what, where in world.segment.items() if where == netns]:
            del world.segment[veth]  # nobody remembers its pair, which has gone with the namespace

    return story


def crowded(seed: int) -> World:
    """Fewer addresses than pods: who waits gets what comes free first, though it has not rested."""
    world = World(seed, addresses=5, stories=[forced(number) for number in range(4)])
    world.arrival = 60.0
    world.settle_seconds = 150.0
    return world


@pytest.mark.parametrize("seed", range(1, 9))
def test_pods_deleted_by_force_keep_their_addresses_until_no_link_carries_them(seed: int) -> None:
    play(crowded(seed), seed)


def test_negative_control_a_collector_that_does_not_mind_what_the_kernel_carries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Inquiry.answer

    def deaf(self: Inquiry, node: str, number: int, looked: Any, known: Any, **options: Any) -> Answer:
        return honest(self, node, number, [Look(look.address, carried=False) for look in looked], known, **options)

    monkeypatch.setattr(Inquiry, "answer", deaf)
    caught = 0
    for seed in range(1, 9):
        try:
            play(crowded(seed), seed)
        except BaseExceptionGroup as error:
            caught += error.subgroup(Violation) is not None
        except Violation:
            caught += 1
    assert caught >= 4
