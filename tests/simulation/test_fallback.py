"""A node that may allocate by itself: from when on, until when, and that it does no harm beside others who do."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from actors.controller import Controller
from actors.node.controllers import Controllers
from actors.node.fallback import Fallback
from api import wire
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import IPPoolSpec, SpiderIPPool, decode_records
from api.kinds import IPPOOL, NAMESPACE, NODE, POD
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore
from runtime.transport.port import Interim, Peer, TransportError, Unreachable

PATIENCE = 5.0


class Replica:
    """A controller that answers, or is away."""

    def __init__(self) -> None:
        self.connected = True
        self.asked = 0

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,
        patient: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        if not self.connected:
            raise Unreachable("away")
        self.asked += 1
        return wire.encode(wire.Ready())


class Cluster:
    """A store, and nodes that may allocate by themselves."""

    def __init__(self, nodes: int = 1) -> None:
        self.system = System(clock=VirtualClock(), random=random.Random(1))
        self.truth = MemoryStore()
        self.store = FaultyStore(self.truth, policy=Chances(), random=self.system.random)
        self.replica = Replica()
        self.controllers = [Controllers([self.replica], clock=self.system.clock) for _ in range(nodes)]
        self.trees = [Supervisor(f"n{number}/fallback", self.system) for number in range(nodes)]
        self.fallbacks = [self._fallback(number) for number in range(nodes)]

    def _fallback(self, number: int) -> Fallback:
        settings = ControllerSettings(pod_namespace="spiderpool", pod_name=f"agent-{number}", gc_ip_enabled=False)
        return Fallback(
            self.system,
            controllers=self.controllers[number],
            supervisor=self.trees[number],
            make=lambda path: Controller(self.system, self.store, settings=settings, path=path),
            peer=Peer(account="agent", node=f"n{number}", role="agent"),
            patience=PATIENCE,
        )

    async def populate(self, pods: int) -> None:
        await self.truth.create(NAMESPACE, Namespace(metadata=ObjectMeta(name="default")))
        for number in range(len(self.fallbacks)):
            await self.truth.create(NODE, Node(metadata=ObjectMeta(name=f"n{number}")))
        for number in range(pods):
            await self.truth.create(
                POD,
                Pod(
                    metadata=ObjectMeta(name=f"p{number}", namespace="default"),
                    spec=PodSpec(node_name=f"n{number % len(self.fallbacks)}"),
                ),
            )
        spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/24", ips=["10.6.0.10-10.6.0.60"], default=True)
        await self.truth.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="v4"), spec=spec))

    async def add(self, number: int) -> wire.Response:
        """Addresses for pod `number`, asked as its node's agent does."""
        request = wire.Allocate(
            pod=wire.PodRef("default", f"p{number}"), nic="eth0", container_id=f"{number:012x}", default_ipv4=("v4",)
        )
        controllers = self.controllers[number % len(self.controllers)]
        return (await controllers.ask(request, deadline=self.system.clock.now() + 20)).response

    def records(self) -> dict[str, Any]:
        (pool,) = self.truth.peek(IPPOOL)
        return decode_records(pool.status.allocated_ips)

    def run(self, story: Callable[["Cluster"], Coroutine[Any, Any, None]], *, pods: int = 1) -> None:
        async def main() -> None:
            await self.populate(pods)
            async with anyio.create_task_group() as group:
                for tree, fallback in zip(self.trees, self.fallbacks, strict=True):
                    group.start_soon(tree.run)
                    group.start_soon(fallback.run)
                await anyio.sleep(0.01)
                await story(self)
                group.cancel_scope.cancel()

        run(main, seed=1)


def serving(cluster: Cluster) -> bool:
    return cluster.fallbacks[0].connected


def test_from_when_on_and_until_when() -> None:
    async def story(cluster: Cluster) -> None:
        await anyio.sleep(60)
        assert not serving(cluster), "a controller answers"
        cluster.replica.connected = False
        await anyio.sleep(PATIENCE - 1)
        assert not serving(cluster)
        await anyio.sleep(2)
        assert serving(cluster)
        assert isinstance(await cluster.add(0), wire.Allocated)
        assert [record.node for record in cluster.records().values()] == ["n0"]
        cluster.replica.connected = True
        await cluster.add(0)
        assert cluster.replica.asked == 1, "from now on the controller again"
        await anyio.sleep(15)
        assert not serving(cluster)
        assert cluster.trees[0].status().children == ()

    Cluster().run(story)


def test_an_add_waits_for_it() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.replica.connected = False
        assert isinstance(await cluster.add(0), wire.Allocated)
        assert cluster.system.clock.now() < 20

    Cluster().run(story)


def test_without_an_api_server_nobody_allocates_and_it_is_tried_again() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.replica.connected = False
        cluster.store.cut()
        with pytest.raises(TransportError):
            await cluster.add(0)
        await anyio.sleep(60)
        assert not serving(cluster)
        cluster.store.heal()
        await anyio.sleep(60)
        assert serving(cluster)
        assert isinstance(await cluster.add(0), wire.Allocated)

    Cluster().run(story)


def test_many_nodes_that_allocate_by_themselves_give_no_address_twice() -> None:
    async def story(cluster: Cluster) -> None:
        cluster.replica.connected = False
        await anyio.sleep(PATIENCE + 2)
        given: list[str] = []

        async def add(number: int) -> None:
            answer = await cluster.add(number)
            while isinstance(answer, wire.Rejected) and answer.retry:
                await anyio.sleep(0.2)
                answer = await cluster.add(number)
            assert isinstance(answer, wire.Allocated), answer
            given.append(answer.addresses[0].address.partition("/")[0])

        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(add, number)
        assert len(given) == len(set(given)) == 30
        assert set(given) == set(cluster.records())

    Cluster(nodes=5).run(story, pods=30)
