"""A copy of an old sandbox's ADD comes late, after the pod's next sandbox was given its addresses.

To a pool a claim that comes later is of a newer sandbox, so the copy takes the record over. Only the node knows better.
"""

import anyio
import pytest

from actors.node.outbox import OutboxActor
from api import wire
from api.core import Pod, PodSpec
from api.kinds import POD
from api.meta import ObjectMeta
from cni.journal import JournalEntry, State
from cni.protocol import Verb
from runtime.testing import run
from runtime.transport.port import Call, Peer
from tests.simulation.node import Violation
from tests.simulation.world import World

NODE = "n1"
OLD, LIVING = "0" * 64, "1" * 64


async def late_copy(world: World) -> None:
    pod = await world.truth.create(
        POD, Pod(metadata=ObjectMeta(name="pod", namespace="default"), spec=PodSpec(node_name=NODE))
    )
    await anyio.sleep(0.1)
    result = await world.call(NODE, world.invocation(Verb.ADD, pod, LIVING))
    assert result is not None
    world.held[LIVING] = (pod.metadata.uid, tuple(ip.address for ip in result.ips))

    ref = wire.PodRef(namespace="default", name="pod", uid=pod.metadata.uid)
    copy = wire.encode(wire.Allocate(pod=ref, nic="eth0", container_id=OLD))
    peer = Peer(account="agent", node=NODE, role="agent")
    for controller in world.controllers.values():
        await controller.serve(Call(payload=copy, peer=peer, deadline=anyio.current_time() + 10))
    assert {record.cid for record in world.committed().values()} == {OLD[:12]}, "the copy changed nothing"

    world.crash(NODE)  # what the agent owes is read from its journal
    owed = JournalEntry(container_id=OLD, ifname="eth0", pod=ref, state=State.RELEASING, pools=("v4", "v6"))
    world._disks[NODE].entries[owed.key] = owed
    await world.start_agent(NODE)
    await anyio.sleep(60.0)
    world.check()
    assert {record.cid for record in world.committed().values()} == {LIVING[:12]}

    world.held.clear()
    await world.delete(NODE, pod, LIVING)
    await world.truth.delete(POD, "pod", namespace="default")


def test_its_release_gives_the_addresses_back_to_the_living_sandbox() -> None:
    world = World(1, pods=0, stories=[late_copy])
    run(world.run, seed=1)


def test_without_that_a_living_pod_loses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody(_outbox: OutboxActor, _entry: JournalEntry) -> str:
        return ""

    monkeypatch.setattr(OutboxActor, "_successor", nobody)
    world = World(1, pods=0, stories=[late_copy])
    with pytest.raises(BaseExceptionGroup) as caught:
        run(world.run, seed=1)
    assert caught.group_contains(Violation, match="held by None", depth=None)
