"""Real controllers in a modelled cluster, on a virtual clock, from the first pod to the audit.

Real are the controllers from the bytes of a request to the bytes of a write: reflectors, allocator, selection, pool
actors with their byte budget, SpiderEndpoints, the history of pools, and the protocol between replicas. Modelled are
the API server (`simulation.apiserver`), the network (`simulation.network`) and the nodes (`simulation.node`). There is
no collector: nobody's node fails, and agents that are modelled have no kernel to look at.

Nothing here waits for real time, so what comes out depends on the plan alone.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import anyio
import msgspec

from actors.controller import Controller
from actors.node.controllers import Controllers
from actors.pools.peers import pool_key
from api import annotations
from api.core import Namespace, Pod, PodSpec
from api.core import Node as NodeObject
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import ENDPOINT, IPPOOL, NAMESPACE, NODE, POD
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.testing import SteadyLoop, VirtualClock
from runtime.transport.port import Peer
from simulation.apiserver import ModelledApiServer, Traffic
from simulation.audit import audit
from simulation.network import ModelledNetwork
from simulation.node import Node, Tally
from simulation.plan import Plan
from simulation.report import Report, Writes, percentiles, weighted

_NAMESPACE = "spiderpool"
_USERS = "default"
_ACCOUNTS = {role: f"system:serviceaccount:{_NAMESPACE}:spiderpool-{role}" for role in ("agent", "controller")}
_LIFETIME = (5.0, 20.0)
"""Seconds for which a pod has its addresses that is deleted again."""
_RESOLUTION = 1e-4
"""Seconds: what happens within a tenth of a millisecond happens at once. A run is a fifth faster for that."""

type Progress = Callable[[int], None]
"""Called with the number of pods that are done, at most every `STEP` of them."""
STEP = 500


class World:
    """One simulation. `run` once."""

    def __init__(self, plan: Plan, *, progress: Progress = lambda _done: None) -> None:
        """`plan` is completed."""
        self.plan = plan
        self.truth = MemoryStore(wall=VirtualClock().wall)
        self.traffic = Traffic()
        self.tally = Tally()
        self.controllers: dict[str, Controller] = {}
        self._progress = progress
        self._random = Random(plan.seed)  # noqa: S311 - a seed that repeats is the point
        self._network = ModelledNetwork(
            latency=plan.network_latency, random=self._random, mortal=plan.kill_owner_at is not None
        )
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._pods: list[Pod] = []
        self._told = 0

    def __repr__(self) -> str:
        return f"<World {self.tally.done} of {self.plan.pods} pods>"

    async def run(self, *, real: Callable[[], float]) -> Report:
        """Let all pods come, and some go; then look at what is there. `real` gives seconds that pass in earnest."""
        began = real()
        self._populate()
        async with anyio.create_task_group() as group:
            for at in range(self.plan.controllers):
                self._start(f"controller-{at + 1}", group.start_soon)
            for controller in self.controllers.values():
                await controller.cluster.synced()
            begun = asyncio.get_running_loop().time()
            if self.plan.kill_owner_at is not None:
                group.start_soon(self._kill, self.plan.kill_owner_at)
            await self._live()
            batches = self._batches()
            group.cancel_scope.cancel()
        return self._report(simulated=self.tally.ended - begun, real=real() - began, batches=batches)

    # -- what there is -------------------------------------------------------------------------------------------------

    def _populate(self) -> None:
        """Nodes, pools and pods, as they were before anything happens here."""
        plan = self.plan
        self.truth.adopt(NAMESPACE, [Namespace(metadata=_meta(_USERS, 1))])
        nodes = [NodeObject(metadata=_meta(node_name(at), at)) for at in range(plan.nodes)]
        self.truth.adopt(NODE, nodes)
        for version in (4, 6) if plan.dual_stack else (4,):
            pools = [_pool(plan, version, at) for at in range(plan.pools)]
            self.truth.adopt(IPPOOL, pools)
        asked = [_asked(plan, at) for at in range(plan.pools)]
        specs = [PodSpec(node_name=node.metadata.name) for node in nodes]
        self._pods = [
            Pod(metadata=_pod_meta(number, asked[number % plan.nodes % plan.pools]), spec=specs[number % plan.nodes])
            for number in range(plan.pods)
        ]
        self.truth.adopt(POD, self._pods)

    def _start(self, name: str, spawn: Callable[..., object]) -> None:
        plan, clock = self.plan, VirtualClock()
        store = ModelledApiServer(
            self.truth,
            self.traffic,
            latency=plan.api_latency,
            random=self._random,
            mortal=plan.kill_owner_at is not None,
        )
        settings = ControllerSettings(
            pod_namespace=_NAMESPACE, pod_name=name, gc_ip_enabled=False, pool_write_rate=plan.write_budget
        )
        controller = Controller(System(clock=clock, random=self._random), store, settings=settings, path=name)
        for other, known in self.controllers.items():
            controller.peers.add(self._network.channel(other, peer=_peer("controller", name)), name=other)
            known.peers.add(self._network.channel(name, peer=_peer("controller", other)), name=name)
        self.controllers[name] = controller
        for known in self.controllers.values():
            known.peers.members(self.controllers)
        self._network.serve(name, controller.serve)
        scope = self._scopes[name] = anyio.CancelScope()

        async def process() -> None:
            with scope:
                await controller.supervisor.run()

        spawn(process)

    async def _kill(self, at: float) -> None:
        """The controller that owns the most pools is gone from one moment to the next."""
        await anyio.sleep(at)
        peers = next(iter(self.controllers.values())).peers
        owned = Counter(peers.owner(pool_key(pool.metadata.name)) for pool in self.truth.peek(IPPOOL))
        victim = max(owned, key=lambda name: (owned[name], name))
        self._network.withdraw(victim)
        self._scopes[victim].cancel()

    # -- what happens --------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Every pod comes at a moment of its own."""
        plan, loop = self.plan, asyncio.get_running_loop()
        nodes = [self._node(node_name(at)) for at in range(plan.nodes)]
        moments = sorted((self._random.uniform(0, plan.over), number) for number in range(plan.pods))
        begun = loop.time()
        lives: set[asyncio.Task[None]] = set()
        failed: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            lives.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                failed.append(error)

        def begin(work: Coroutine[Any, Any, None]) -> None:
            task = loop.create_task(work)
            lives.add(task)
            task.add_done_callback(ended)

        for moment, number in moments:
            if begun + moment > loop.time():
                await asyncio.sleep(begun + moment - loop.time())
            begin(self._life(nodes[number % plan.nodes], self._pods[number], number))
        while lives and not failed:
            await asyncio.wait(lives, return_when=asyncio.FIRST_EXCEPTION)
        if failed:
            raise failed[0]

    def _node(self, name: str) -> Node:
        clock = VirtualClock()
        controllers = Controllers((), clock=clock, node=name)
        for replica in self.controllers:
            controllers.add(self._network.channel(replica, peer=_peer("agent", name)), name=replica)
        return Node(
            name,
            controllers=controllers,
            clock=clock,
            random=self._random,
            tally=self.tally,
            nics=self.plan.nics,
        )

    async def _life(self, node: Node, pod: Pod, number: int) -> None:
        goes = self.plan.churn > 0 and self._random.random() < self.plan.churn
        granted = await node.start(pod, number)
        if self.tally.done - self._told >= STEP:
            self._told = self.tally.done
            self._progress(self._told)
        if granted is not None and goes:
            await asyncio.sleep(self._random.uniform(*_LIFETIME))
            await node.stop(pod, *granted)
            await self.truth.delete(POD, pod.metadata.name, namespace=pod.metadata.namespace)

    # -- what came of it -----------------------------------------------------------------------------------------------

    def _batches(self) -> Counter[int]:
        return sum((controller.throughput.sizes for controller in self.controllers.values()), Counter[int]())

    def _report(self, *, simulated: float, real: float, batches: Counter[int]) -> Report:
        tally, traffic, plan = self.tally, self.traffic, self.plan
        counted = traffic.writes[IPPOOL.plural] + traffic.writes[ENDPOINT.plural]
        return Report(
            plan=plan,
            pods=plan.pods,
            served=len(tally.latencies),
            deleted=tally.deleted,
            unserved=dict(sorted(tally.unserved.items())),
            failed_adds=dict(sorted(tally.failures.items())),
            simulated=simulated,
            real=real,
            add=percentiles(tally.latencies),
            batch=weighted({float(size): count for size, count in batches.items()}),
            writes=Writes(
                by_kind=dict(sorted(traffic.writes.items())),
                per_pod=counted / plan.pods,
                conflicts=traffic.conflicts,
                pool_bytes=traffic.pool_bytes,
                pool_bytes_per_second=traffic.pool_bytes / simulated if simulated > 0 else 0.0,
                largest_pool=traffic.largest,
            ),
            findings=audit(self.truth.peek(IPPOOL), self.truth.peek(ENDPOINT), tally.held),
        )


def simulate(plan: Plan, *, progress: Progress = lambda _done: None, real: Callable[[], float]) -> Report:
    """Run a plan that is completed, in this thread. `real` gives seconds that pass in earnest."""
    world = World(plan, progress=progress)
    with asyncio.Runner(loop_factory=lambda: SteadyLoop(resolution=_RESOLUTION)) as runner:
        return runner.run(world.run(real=real))


def node_name(at: int) -> str:
    """Of the node of that number."""
    return f"node-{at + 1}"


def pool_name(version: int, at: int) -> str:
    """Of the pool of that number."""
    return f"v{version}-{at + 1}"


def _peer(role: str, name: str) -> Peer:
    node = name if role == "agent" else ""
    return Peer(account=_ACCOUNTS[role], node=node, pod=f"{_NAMESPACE}/{name}", role=role)


def _meta(name: str, number: int) -> ObjectMeta:
    return ObjectMeta(name=name, uid=_uid(number), resource_version="1")


def _pod_meta(number: int, asked: dict[str, str]) -> ObjectMeta:
    return ObjectMeta(
        name=f"pod-{number + 1}", namespace=_USERS, uid=_uid(number), resource_version="1", annotations=asked
    )


def _uid(number: int) -> str:
    return f"00000000-0000-4000-9000-{number:012x}"


def _asked(plan: Plan, at: int) -> dict[str, str]:
    """The annotation of the pods of a pool's nodes."""
    named = {f"ipv{version}": [pool_name(version, at)] for version in ((4, 6) if plan.dual_stack else (4,))}
    return {annotations.POD_IPPOOL: msgspec.json.encode(named).decode()}


def _pool(plan: Plan, version: int, at: int) -> SpiderIPPool:
    subnet = plan.subnet(version, at)
    gateway, first = subnet[1], subnet[2]
    return SpiderIPPool(
        metadata=_meta(pool_name(version, at), at),
        spec=IPPoolSpec(
            ip_version=4 if version == 4 else 6,
            subnet=str(subnet),
            ips=[f"{first}-{first + plan.pool_size - 1}"],
            gateway=str(gateway),
        ),
    )
