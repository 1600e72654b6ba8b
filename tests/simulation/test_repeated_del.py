"""A runtime repeats DEL: what was released a moment ago is not released again."""

import anyio

from api.core import Pod, PodSpec
from api.kinds import POD
from api.meta import ObjectMeta
from cni.protocol import Verb
from runtime.testing import run
from telemetry import metrics
from tests.simulation.world import World

NODE = "n1"
SANDBOX = "0" * 64


def asked() -> float:
    return metrics.REGISTRY.get_sample_value("spiderpool_ipam_release_counts_total") or 0.0


async def thrice(world: World) -> None:
    pod = await world.truth.create(
        POD, Pod(metadata=ObjectMeta(name="pod", namespace="default"), spec=PodSpec(node_name=NODE))
    )
    await anyio.sleep(0.1)
    disk, point = world._disks[NODE], world._disks[NODE].point
    await world.call(NODE, world.invocation(Verb.ADD, pod, SANDBOX))

    lost, repeated = anyio.Event(), anyio.Event()

    async def linger(where: str) -> None:
        """The journal has just lost the entry, and the outbox has not heard of it yet."""
        await point(where)
        if where == "after journal.remove":
            disk.point = point
            lost.set()
            await repeated.wait()

    before = asked()
    disk.point = linger
    assert await world.call(NODE, world.invocation(Verb.DEL, pod, SANDBOX)) is not None
    await lost.wait()
    assert await world.call(NODE, world.invocation(Verb.DEL, pod, SANDBOX)) is not None
    repeated.set()
    await anyio.sleep(1.0)
    assert not disk.entries, "nobody sees to what the second DEL wrote down"
    assert await world.call(NODE, world.invocation(Verb.DEL, pod, SANDBOX)) is not None
    await anyio.sleep(1.0)
    assert asked() == before + 1
    await world.truth.delete(POD, "pod", namespace="default")


def test_a_del_in_the_moment_in_which_the_first_one_is_over_asks_nobody() -> None:
    world = World(1, pods=0, stories=[thrice])
    run(world.run, seed=1)
