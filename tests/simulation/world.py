"""A cluster in one process: the real actors of replicas and nodes, on a virtual clock, over a store and a network
that fail.

Two replicas own every pool at the same time, as two that both believe in their ownership would; or the pools are spread
over the replicas, which take over from each other. Three nodes run the real node, sandbox and outbox actors over a
kernel and a journal in memory that survive a crash of their agent, as the real ones do. A kubelet per pod calls ADD
until it succeeds (a new sandbox for every try, a DEL for every failure), lets the pod live, and calls DEL until that
succeeds.
"""

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup

from actors.agent import Agent
from actors.controller import Controller
from actors.node.detection import Terms
from actors.node.meta import Meta
from api.configfile import ConfigFile, IaasNetworkProvider
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, decode_records
from api.kinds import ENDPOINT, IPPOOL, NAMESPACE, NETWORKATTACHMENT, NODE, POD
from api.meta import FINALIZER, ObjectMeta
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from api.settings import ControllerSettings
from cni.config import CoordinatorConfig, IpamConfig, NetConfig
from cni.delegate import Target
from cni.errors import CniError, InvalidConfig
from cni.journal import JournalEntry
from cni.protocol import Invocation, PodArgs, Verb
from cni.result import Result
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from runtime.testing import EventRecord, VirtualClock
from runtime.testing.store import Chances, FaultyStore, Policy
from runtime.testing.transport import SimulatedNetwork, Weather
from runtime.transport.port import Peer
from tests.simulation.cloud import CONFIG, PlayedWeb
from tests.simulation.node import MemoryDisk, MemoryJournal, MemoryKernel, Point, Violation
from tests.simulation.observed import Ages, Watched

NODES = ("n1", "n2", "n3")
REPLICAS = ("c1", "c2")
NETWORKS = ("wan", "dmz")
"""Beside that of the first interface; all pools serve them."""


class _NoPrograms:
    """`cni.delegate.Delegates` of a node that has none."""

    async def run(
        self,
        verb: Verb,
        target: Target,
        conf: Mapping[str, Any],
        *,
        previous: Result | None = None,
        seconds: float = 0,
    ) -> Result:
        del target, previous, seconds
        msg = f"{verb}: type: {conf.get('type')!r} is no program of this node"
        raise InvalidConfig(msg)


class _SimulatedMeta(Meta, frozen=True, kw_only=True):
    """A node without configurations of its own; what would block is done at once."""

    async def apart[T](self, work: Callable[[], T]) -> T:
        await anyio.lowlevel.checkpoint()
        return work()


type Story = Callable[["World"], Coroutine[Any, Any, None]]


class World:
    """Everything of one simulated cluster. Use `run`."""

    def __init__(
        self,
        seed: int,
        *,
        chances: Chances | None = None,
        weather: Weather | None = None,
        pods: int = 12,
        addresses: int = 20,
        fenced: bool = True,
        claims: bool = True,
        crash_at: int = 0,
        replicas: Sequence[str] = REPLICAS,
        spread: bool = False,
        forgetful: float = 0.0,
        stories: Sequence["Story"] = (),
        web: PlayedWeb | None = None,
    ) -> None:
        """Say what goes wrong.

        `chances` are the store's faults and `weather` the network's. Without `fenced` the pools' writes demand no
        resourceVersion; without `claims` two agents of a node do not keep away from each other. `crash_at` counts the
        points at which a crash leaves something: whoever reaches that one dies there. With `spread` every pool belongs
        to one of the `replicas`, else to each. `forgetful` is the chance that a pod's sandbox goes without a DEL.
        `stories` are told beside the pods. With `web` the first interfaces of pods are a network provider's business.
        """
        self.web = web
        self.replicas = tuple(replicas)
        self._spread = spread
        self._forgetful = forgetful
        self._stories = stories
        self.controllers: dict[str, Controller] = {}
        self.arrival = 0.05
        """The seconds over which pods arrive."""
        self.lifetime = (1.0, 3.0)
        """Of a pod, in seconds."""
        self.collecting = True
        """Whether there is a collector."""
        self.cleaning = False
        """Whether SpiderEndpoints that no pool knows go with the slow audit."""
        self.settle_seconds = 60.0
        """How long the last releases may take, once no journal has an entry any more."""
        self.random = random.Random(seed)
        self.record = EventRecord(keep=400)
        self.truth = MemoryStore()
        self.ages = Ages(self.truth)
        self.network = SimulatedNetwork(self.random, weather=weather or Weather(), record=self.record)
        self.segment: dict[str, str] = {}
        self.held: dict[str, tuple[str, tuple[str, ...]]] = {}
        """Acknowledged ADDs whose DEL has not begun: container id to pod uid and addresses."""
        self.pods = pods
        self.addresses = addresses
        self.calls: Counter[int] = Counter()
        """CNI calls under way, by the id of their agent."""
        self.stores: dict[str, FaultyStore] = {}
        self._chances: Policy = chances or Chances()
        self._fenced = fenced
        self._claims = claims
        self._crash_at = crash_at
        self.points = 0
        self.first_points: dict[str, int] = {}
        """Of everything that leaves something, when it happened first."""
        self.crashed_at = ""
        self.patient = chances is None and weather is None
        """Whether store and network are well, so that what is written behind an answer is there in the end."""
        self.strangers: dict[str, str] = {}
        """Hosts on the segment that no pool knows of, MAC address by address. With any, agents look for them."""
        self._kernels = {node: MemoryKernel(self.segment, self._point(node), self.strangers) for node in NODES}
        self._disks = {node: MemoryDisk(self._point(node)) for node in NODES}
        self._journals: dict[str, MemoryJournal] = {}
        self._agents: dict[str, Agent] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}
        self._group: TaskGroup | None = None
        self._calm = False

    # -- processes -----------------------------------------------------------------------------------------------------

    def _system(self) -> System:
        return System(clock=VirtualClock(), random=self.random, observer=self.record)

    async def start_replica(self, name: str) -> None:
        """A controller process, with its own connection to the store."""
        policy: Policy = Chances() if self._calm else self._chances
        faulty = self.stores[name] = FaultyStore(
            Watched(self.truth, self._point(name), fenced=self._fenced, seen=self.ages.look),
            policy=policy,
            random=self.random,
        )
        settings = ControllerSettings(
            pod_namespace="spiderpool",
            pod_name=name,
            gc_ip_enabled=self.collecting,
            config=ConfigFile(
                enable_clean_outdated_endpoint=self.cleaning,
                enable_spider_subnet=False,
                iaas_network_provider=CONFIG if self.web is not None else IaasNetworkProvider(),
            ),
        )
        controller = self.controllers[name] = Controller(
            self._system(), faulty, settings=settings, web=self.web, path=name
        )
        if self._spread:
            peer = Peer(account="system:serviceaccount:spiderpool:spiderpool-controller", node="n1", role="controller")
            controller.peers.members(self.replicas)
            for other in self.replicas:
                if other != name:
                    controller.peers.add(self.network.channel(name, other, peer=peer), name=other)
        self._spawn(name, controller.supervisor)
        self.network.serve(name, controller.serve)
        for agent in self._agents.values():
            agent.controllers.connected()

    def cut_off(self, name: str) -> None:
        """From now on nobody hears a replica, nor it them, as if it hung or its network did. It goes on working."""
        for other in (*self.replicas, *NODES):
            if other != name:
                self.network.partition(name, other)

    def reconnect(self, name: str) -> None:
        """Undo `cut_off`."""
        for other in (*self.replicas, *NODES):
            if other != name:
                self.network.heal(name, other)
        self.stores[name].heal()
        for agent in self._agents.values():
            agent.controllers.connected()

    def reboot(self, node: str) -> None:
        """Power off: the agent dies, and with it every namespace."""
        self.crash(node)
        lost = self._kernels[node].reboot()
        self.held = {cid: what for cid, what in self.held.items() if f"/run/netns/{cid[:12]}" not in lost}

    async def start_agent(self, node: str) -> None:
        """An agent process, on the kernel and the journal that its predecessor left."""
        peer = Peer(account="system:serviceaccount:spiderpool:spiderpool-agent", node=node, role="agent")
        journal = self._journals[node] = MemoryJournal(self._disks[node], claims=self._claims)
        order = self.replicas if node != "n2" else self.replicas[::-1]
        agent = self._agents[node] = Agent(
            self._system(),
            path=node,
            kernel=self._kernels[node],
            journal=journal,
            channels=[self.network.channel(node, replica, peer=peer) for replica in order],
            terms=Terms(conflicts=bool(self.strangers)),
            meta=_SimulatedMeta(delegates=_NoPrograms()),
        )
        self._spawn(node, agent.supervisor)

    def busy(self, node: str) -> bool:
        """Whether its agent has calls to answer."""
        return self.calls[id(self._agents[node])] > 0

    async def roll_over(self, node: str, *, killed_when: Callable[[], bool] | None = None) -> None:
        """A new agent beside the old one; then the old one ends, in order or not, when it likes, or is killed."""
        old, scope, journal = self._agents.get(node), self._scopes[node], self._journals[node]
        if old is None:
            return
        await self.start_agent(node)
        if killed_when is not None:
            while not killed_when():  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.0002)
        else:
            await anyio.sleep(self.random.uniform(0, 1.0))
        if killed_when is None and self.random.random() < 0.5:
            while self.calls[id(old)]:  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.01)
            await old.supervisor.stop()
            await anyio.sleep(2.0)
        scope.cancel()
        journal.died()

    def crash(self, name: str) -> None:
        """kill -9: everything that the process was doing ends where it is."""
        self.record.event("crash", name)
        self.network.withdraw(name)
        self._scopes[name].cancel()
        if self._agents.pop(name, None) is not None:
            self._journals[name].died()

    def _point(self, name: str) -> Point:
        async def point(what: str) -> None:
            self.points += 1
            self.first_points.setdefault(what, self.points)
            if self.points == self._crash_at:
                self.crashed_at = f"{name} {what}"
                self.crash(name)
                self._group.start_soon(self._revive, name)  # type: ignore[union-attr]
                await anyio.sleep(0.001)

        return point

    async def _revive(self, name: str) -> None:
        await anyio.sleep(0.3)
        await (self.start_replica(name) if name in self.replicas else self.start_agent(name))

    def _spawn(self, name: str, supervisor: Supervisor) -> None:
        assert self._group is not None
        scope = self._scopes[name] = anyio.CancelScope()

        async def process() -> None:
            with scope:
                await supervisor.run()

        self._group.start_soon(process)

    # -- the run -------------------------------------------------------------------------------------------------------

    async def run(self, disturb: Callable[["World"], Awaitable[None]] | None = None) -> str:
        """Let the pods live and die while `disturb` does its worst, then have peace, and judge.

        Returns the event hash.
        """
        await self._populate()
        async with AsyncExitStack() as stack, anyio.create_task_group() as group:
            await stack.enter_async_context(self.network)
            self._group = group
            if self.web is not None:
                self.web.group = group
            for replica in self.replicas:
                await self.start_replica(replica)
            for node in NODES:
                await self.start_agent(node)
            trouble = anyio.CancelScope()

            async def make_trouble() -> None:
                with trouble:
                    if disturb is not None:
                        await disturb(self)

            group.start_soon(make_trouble)
            with anyio.fail_after(2000):
                async with anyio.create_task_group() as kubelets:
                    for number in range(self.pods):
                        kubelets.start_soon(self._kubelet, number)
                    for story in self._stories:
                        kubelets.start_soon(story, self)
                trouble.cancel()
                await self.peace()
                await self._settled()
            self.check(final=True)
            group.cancel_scope.cancel()
        return self.record.digest()

    async def peace(self) -> None:
        """No more faults, and everybody alive."""
        self._calm = True
        if self.web is not None:
            self.web.faults = {}
        self.network.weather = Weather()
        for store in self.stores.values():
            store.policy = Chances()
            store.heal()
            await store.settle()
        for name in self.replicas:
            self.reconnect(name)
        for name in (*self.replicas, *NODES):
            if self._scopes[name].cancel_called:
                await (self.start_replica(name) if name in self.replicas else self.start_agent(name))

    async def _settled(self) -> None:
        """Wait until nothing is owed any more."""
        while any(disk.entries for disk in self._disks.values()):  # noqa: ASYNC110 - virtual time
            await anyio.sleep(1.0)
        await anyio.sleep(self.settle_seconds)
        while self.owed():  # noqa: ASYNC110 - virtual time
            await anyio.sleep(1.0)

    async def _populate(self) -> None:
        for node in NODES:
            await self.truth.create(NODE, Node(metadata=ObjectMeta(name=node)))
        await self.truth.create(NAMESPACE, Namespace(metadata=ObjectMeta(name="default")))
        last = self.addresses - 1
        v4 = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=[f"10.6.0.10-10.6.0.{10 + last}"], default=True)
        v6 = IPPoolSpec(ip_version=6, subnet="fd00:6::/64", ips=[f"fd00:6::a-fd00:6::{10 + last:x}"], default=True)
        for name, spec in (("v4", v4), ("v6", v6)):
            await self.truth.create(
                IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name, finalizers=[FINALIZER]), spec=spec)
            )
        config = {"cniVersion": "1.1.0", "type": "macvlan", "master": "eth0", "ipam": {"type": "spiderpool"}}
        for name in NETWORKS:
            text = json.dumps({**config, "name": name})
            definition = NetworkAttachmentDefinition(
                metadata=ObjectMeta(name=name, namespace="default"), spec=NetworkAttachmentSpec(config=text)
            )
            await self.truth.create(NETWORKATTACHMENT, definition)

    async def _kubelet(self, number: int) -> None:
        node = NODES[number % len(NODES)]
        await anyio.sleep(self.random.uniform(0, self.arrival))
        name = f"pod-{number}"
        pod = await self.truth.create(
            POD, Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=PodSpec(node_name=node))
        )
        tries: list[str] = []
        while True:
            cid = f"{number:06x}{len(tries) + 1:06x}".ljust(64, "f")
            result = await self.call(node, self.invocation(Verb.ADD, pod, cid))
            if result is not None:
                break
            await self.delete(node, pod, cid)
            tries.append(cid)
            await anyio.sleep(1.0)
        addresses = tuple(ip.address for ip in result.ips)
        self.held[cid] = (pod.metadata.uid, addresses)
        self.check()
        await anyio.sleep(self.random.uniform(*self.lifetime))
        if tries and self.random.random() < 0.5:
            await self.delete(node, pod, tries[-1])  # those of old sandboxes, too
        self.check()
        self.held.pop(cid, None)
        if self._forgetful and self.random.random() < self._forgetful:
            self._kernels[node].lose(f"/run/netns/{cid[:12]}", watched=self.random.random() < 0.5)
            await self.truth.delete(POD, name, namespace="default")
            return
        await self.delete(node, pod, cid)
        if self.random.random() < 0.3:
            await self.delete(node, pod, cid)  # kubelet repeats DELs
        await self.truth.delete(POD, name, namespace="default")

    async def delete(self, node: str, pod: Pod, cid: str, *, ifname: str = "eth0", networks: bool = False) -> None:
        """DEL until it succeeds."""
        invocation = self.invocation(Verb.DEL, pod, cid, ifname=ifname, networks=networks)
        while await self.call(node, invocation) is None:  # noqa: ASYNC110
            await anyio.sleep(1.0)

    async def call(self, node: str, invocation: Invocation) -> Result | None:
        """One exec of the shim: a result, or None for any failure, an agent that dies meanwhile included."""
        agent = self._agents.get(node)
        scope = self._scopes[node]
        if agent is None:
            return None
        outcome: list[Result] = []
        async with anyio.create_task_group() as group:

            async def call() -> None:
                self.calls[id(agent)] += 1
                try:
                    body = await agent.invoke(invocation)
                    outcome.append(msgspec.json.decode(body, type=Result) if body else Result())
                except CniError as error:
                    self.record.event(f"cni {node}", f"{error}")
                finally:
                    self.calls[id(agent)] -= 1
                group.cancel_scope.cancel()

            async def watch() -> None:
                while not scope.cancel_called:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
                group.cancel_scope.cancel()

            group.start_soon(call)
            group.start_soon(watch)
        return outcome[0] if outcome else None

    def invocation(self, verb: Verb, pod: Pod, cid: str, *, ifname: str = "eth0", networks: bool = False) -> Invocation:
        """What the shim would send; with `networks` by a configuration that is the node's meta plugin."""
        meta = pod.metadata
        provided = self.web is not None and ifname == "eth0"
        kind = "vlan" if provided else "macvlan"
        return Invocation(
            verb=verb,
            type=kind,
            container_id=cid,
            netns=f"/run/netns/{cid[:12]}",
            ifname=ifname,
            args=PodArgs(namespace=meta.namespace, name=meta.name, uid=meta.uid),
            conf=NetConfig(
                cni_version="1.1.0",
                name="lan",
                type=kind,
                vlan_mode="auto" if provided else "",
                master="eth0",
                ipam=IpamConfig(type="spiderpool"),
                coordinator=CoordinatorConfig() if ifname == "eth0" else None,
                networks=networks,
            ),
        )

    # -- invariants ----------------------------------------------------------------------------------------------------

    def entries(self) -> list[JournalEntry]:
        """Of all journals."""
        return [entry for disk in self._disks.values() for entry in disk.entries.values()]

    def committed(self) -> dict[str, AllocationRecord]:
        """Address to record, over all pools."""
        found: dict[str, AllocationRecord] = {}
        for pool in self.truth.peek(IPPOOL):
            found |= decode_records(pool.status.allocated_ips)
        return found

    def records(self) -> dict[str, str]:
        """Address to pod uid, as committed."""
        return {ip: record.pod_uid for ip, record in self.committed().items()}

    def owed(self) -> list[str]:
        """Addresses that the network provider has not released yet, by the pools."""
        return [
            address
            for pool in self.truth.peek(IPPOOL)
            for address, entry in json.loads(pool.status.withheld_ips or "{}").items()
            if "owed" in entry
        ]

    def check(self, *, final: bool = False) -> None:
        """Acknowledged means stored; no address twice; in the end nothing is left."""
        if self.ages.violations:
            raise Violation(self.ages.violations[0])
        records = self.records()
        for cid, (uid, addresses) in self.held.items():
            for address in addresses:
                holder = records.get(address.partition("/")[0])
                if holder != uid:
                    msg = f"{cid[:12]} was told that it holds {address}, which the store says is held by {holder}"
                    raise Violation(msg)
                if self.web is not None and "." in address:
                    has = self.web.cloud.assigned.get(address.partition("/")[0], ("",))[0]
                    if has != uid:
                        msg = f"{cid[:12]} was told that it holds {address}, which the provider says is held by {has}"
                        raise Violation(msg)
        if self.web is not None and self.web.cloud.violations:
            raise Violation(self.web.cloud.violations[0])
        if final:
            if self.web is not None and self.web.cloud.assigned:
                msg = f"left with the provider: {self.web.cloud.assigned}"
                raise Violation(msg)
            left = {"records": records, "links": self.segment, "endpoints": len(self.truth.peek(ENDPOINT))}
            if any(left.values()):
                msg = f"left behind: {left}"
                raise Violation(msg)


async def roll_overs(world: World) -> None:
    """Replace the agents one after the other, and have some die while two run."""
    while True:
        await anyio.sleep(world.random.uniform(0.02, 1.0))
        node = world.random.choice(NODES)
        await world.roll_over(node)
        if world.random.random() < 0.3:
            world.crash(node)
            await anyio.sleep(world.random.uniform(0.01, 1.0))
            await world.start_agent(node)


async def crashes(world: World) -> None:
    """Kill a process now and then, and start it again."""
    while True:
        await anyio.sleep(world.random.uniform(0.02, 2.0))
        name = world.random.choice((*world.replicas, *NODES))
        world.crash(name)
        await anyio.sleep(world.random.uniform(0.01, 1.0))
        await (world.start_replica(name) if name in world.replicas else world.start_agent(name))


async def hangs(world: World) -> None:
    """Cut replicas off for a while, some from the store too, and kill one now and then; one at least goes on."""
    while True:
        await anyio.sleep(world.random.uniform(0.02, 1.0))
        name = world.random.choice(world.replicas)
        if world.random.random() < 0.3:
            world.crash(name)
            await anyio.sleep(world.random.uniform(0.01, 2.0))
            await world.start_replica(name)
            continue
        world.cut_off(name)
        if world.random.random() < 0.5:
            world.stores[name].cut()
        await anyio.sleep(world.random.uniform(0.1, 5.0))
        world.reconnect(name)


ROUGH_STORE = Chances(
    lost_request=0.03, lost_reply=0.05, duplicate=0.02, conflict=0.05, unavailable=0.02, before=(0.001, 0.004),
    after=(0.001, 0.004),
)  # fmt: skip
ROUGH_NETWORK = Weather(delay=(0.0002, 0.01), lose_request=0.02, lose_reply=0.03, double_request=0.03, cut=0.03)
