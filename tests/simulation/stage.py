"""A controller on a store in memory, pools with records, and agents that are played: for what the collector does.

A played agent speaks the real protocol. What it knows and what its node's kernel carries are sets that a scene fills.
"""

from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import anyio
from anyio.abc import TaskGroup

from actors.controller import Controller
from api import wire
from api.configfile import ConfigFile
from api.core import (
    Namespace,
    Node,
    NodeSpec,
    NodeStatus,
    Pod,
    PodSpec,
    StatefulSet,
    StatefulSetOrdinals,
    StatefulSetSpec,
)
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, decode_records, encode_records
from api.kinds import ENDPOINT, IPPOOL, NAMESPACE, NODE, POD, STATEFULSET
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.settings import ControllerSettings
from api.wire import Attachment, Look, Noted
from runtime.actor import System
from runtime.store.discovery import Discovery
from runtime.store.memory import MemoryStore
from runtime.testing import VirtualClock, run
from runtime.testing.store import FaultyStore, Policy, Script
from runtime.transport.port import Call, Peer

type Scene = Callable[["Stage"], Coroutine[Any, Any, None]]

CID = "a" * 12


class PlayedAgent:
    """The agent of one node, with a connection to one controller."""

    def __init__(self, controller: Controller, node: str) -> None:
        self.node = node
        self.known: set[tuple[str, str, str]] = set()
        """What its journal has: (uid, nic, cid)."""
        self.carried: set[str] = set()
        """What the node's kernel has on links."""
        self.blind: set[str] = set()
        """Addresses that it cannot look for."""
        self.asked: list[tuple[str, ...]] = []
        self.delay = 0.001
        """From a question to the look."""
        self._controller = controller

    async def run(self) -> None:
        asked = Noted()
        while True:
            await anyio.sleep(self.delay)
            looked = tuple(
                Look(address, carried=address in self.carried) for address in asked.look if address not in self.blind
            )
            begun = anyio.current_time()
            asked = await self.send(looked=looked, round=asked.round, wait=60.0)
            if asked.look:
                self.asked.append(asked.look)
            else:
                await anyio.sleep(max(0.0, begun + 60.0 - anyio.current_time()))

    async def send(self, *, looked: tuple[Look, ...] = (), round: int = 0, wait: float = 0.0) -> Noted:  # noqa: A002
        """One report."""
        report = wire.Report(
            attachments=tuple(Attachment(*one) for one in sorted(self.known)), looked=looked, round=round, wait=wait
        )
        peer = Peer(account="agent", node=self.node, role="agent")
        call = Call(payload=wire.encode(report), peer=peer, deadline=anyio.current_time() + wait + 10)
        answer = wire.decode_response(await self._controller.serve(call))
        assert isinstance(answer, Noted)
        return answer


class Stage:
    """See the module."""

    def __init__(
        self,
        *,
        config: ConfigFile | None = None,
        discovery: Discovery | None = None,
        policy: Policy | None = None,
        seed: int = 1,
        **settings: Any,
    ) -> None:
        """`policy` is for what the controller asks of its store."""
        self.clock = VirtualClock()
        self.store = MemoryStore(wall=self.clock.wall)
        self.connection = FaultyStore(self.store, policy=policy or Script(), random=Random(seed))
        self.controller = Controller(
            System(clock=self.clock, random=Random(seed)),
            self.connection if policy is not None else self.store,
            settings=ControllerSettings(
                pod_namespace="spiderpool", pod_name="c1", config=config or ConfigFile(), **settings
            ),
            path="c1",
            discovery=discovery,
        )
        self.agents: dict[str, PlayedAgent] = {}
        self._group: TaskGroup | None = None
        self._scopes: dict[str, anyio.CancelScope] = {}

    async def play(self, scene: Scene, nodes: tuple[str, ...]) -> None:
        for name in nodes:
            await self.store.create(NODE, Node(metadata=ObjectMeta(name=name), spec=NodeSpec(), status=NodeStatus()))
        await self.store.create(NAMESPACE, Namespace(metadata=ObjectMeta(name="default")))
        for name, spec in (
            ("v4", IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.50"])),
            ("v6", IPPoolSpec(ip_version=6, subnet="fd00:6::/64", ips=["fd00:6::1-fd00:6::50"])),
        ):
            await self.store.create(
                IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name, finalizers=[FINALIZER]), spec=spec)
            )
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self.controller.supervisor.run)
            await self.controller.cluster.synced()
            for name in nodes:
                self.start_agent(name)
            await scene(self)
            group.cancel_scope.cancel()

    async def ask(self, request: wire.Request, node: str = "n1") -> wire.Response:
        """One request of a node's agent."""
        peer = Peer(account="agent", node=node, role="agent")
        call = Call(payload=wire.encode(request), peer=peer, deadline=anyio.current_time() + 20)
        return wire.decode_response(await self.controller.serve(call))

    # -- nodes and agents ----------------------------------------------------------------------------------------------

    @property
    def agent(self) -> PlayedAgent:
        """That of node n1."""
        return self.agents["n1"]

    def start_agent(self, node: str) -> PlayedAgent:
        assert self._group is not None
        agent = self.agents.setdefault(node, PlayedAgent(self.controller, node))
        scope = self._scopes[node] = anyio.CancelScope()

        async def process() -> None:
            with scope:
                await agent.run()

        self._group.start_soon(process)
        return agent

    def silence(self, node: str) -> None:
        self._scopes[node].cancel()

    async def node(self, name: str, *, ready: bool = True, out: bool = False) -> None:
        status = {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]}
        taints = [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}] if out else None
        await self.store.patch(NODE, name, {"status": status}, subresource="status")
        await self.store.patch(NODE, name, {"spec": {"taints": taints}})

    # -- pods and what owns them ---------------------------------------------------------------------------------------

    async def pod(
        self, name: str, node: str = "n1", *, owner: OwnerReference | None = None, restart: str = "Always", **meta: Any
    ) -> str:
        owners = [owner] if owner is not None else []
        made = await self.store.create(
            POD,
            Pod(
                metadata=ObjectMeta(name=name, namespace="default", owner_references=owners, **meta),
                spec=PodSpec(node_name=node, restart_policy=restart),
            ),
        )
        return made.metadata.uid

    async def is_now(self, name: str, phase: str, *ips: str, reason: str = "") -> None:
        """A pod's status."""
        status = {"phase": phase, "reason": reason or None, "podIPs": [{"ip": ip} for ip in ips] or None}
        await self.store.patch(POD, name, {"status": status}, namespace="default", subresource="status")

    async def delete(self, name: str) -> None:
        await self.store.delete(POD, name, namespace="default")

    async def statefulset(self, name: str, replicas: int, start: int = 0) -> OwnerReference:
        made = await self.store.create(
            STATEFULSET,
            StatefulSet(
                metadata=ObjectMeta(name=name, namespace="default"),
                spec=StatefulSetSpec(replicas=replicas, ordinals=StatefulSetOrdinals(start=start) if start else None),
            ),
        )
        return OwnerReference(
            api_version="apps/v1", kind="StatefulSet", name=name, uid=made.metadata.uid, controller=True
        )

    # -- records -------------------------------------------------------------------------------------------------------

    async def record(self, **records: AllocationRecord) -> None:
        """Put these into the pools, by family and last byte of the address: ``a1`` and ``b1``."""
        for pool, letter, prefix in (("v4", "a", "10.6.0."), ("v6", "b", "fd00:6::")):
            held = {f"{prefix}{name[1:]}": record for name, record in records.items() if name[0] == letter}
            found = await self.records(pool)
            change = {"status": {"allocatedIPs": encode_records({**found, **held})}}
            await self.store.patch(IPPOOL, pool, change, subresource="status")

    async def records(self, pool: str = "v4") -> dict[str, AllocationRecord]:
        return decode_records((await self.store.get(IPPOOL, pool)).status.allocated_ips)

    async def left(self, *, after: float = 1.0) -> set[str]:
        """The last bytes of the IPv4 addresses that are held after so many seconds."""
        await anyio.sleep(after)
        return {address.rpartition(".")[2] for address in await self.records()}

    async def freed_within(self, address: str, seconds: float) -> float:
        """How long it takes until nobody holds an address."""
        begun = anyio.current_time()
        with anyio.fail_after(seconds):
            while address in await self.records():  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.005)
        return anyio.current_time() - begun

    async def endpoint(self, name: str, uid: str, *nics: IPAllocationDetail, owner: str = "Pod", **meta: Any) -> None:
        await self.store.create(
            ENDPOINT,
            SpiderEndpoint(
                metadata=ObjectMeta(name=name, namespace="default", finalizers=[FINALIZER], **meta),
                status=EndpointStatus(
                    current=EndpointCurrent(uid=uid, node="n1", ips=list(nics)),
                    owner_controller_type=owner,
                    owner_controller_name=name,
                ),
            ),
        )

    async def shown(self) -> dict[str, list[str]]:
        """By SpiderEndpoint, what it shows."""
        return {
            found.metadata.name: [
                f"{ip.interface} {address}"
                for ip in found.status.current.ips
                for address in (ip.ipv4, ip.ipv6)
                if address
            ]
            for found in (await self.store.list(ENDPOINT)).items
        }


def act(scene: Scene, *, nodes: tuple[str, ...] = ("n1",), seed: int = 1, **settings: Any) -> None:
    """Play a scene to its end."""

    async def main() -> None:
        await Stage(seed=seed, **settings).play(scene, nodes)

    run(main, seed=seed)


def holding(
    pod: str, uid: str, cid: str = CID, *, node: str = "n1", nic: str = "eth0", kept: bool = False
) -> AllocationRecord:
    """A record as we write it."""
    return AllocationRecord(pod=f"default/{pod}", pod_uid=uid, nic=nic, node=node, cid=cid, kept=kept)


def legacy(pod: str, uid: str) -> AllocationRecord:
    """A record as the original's agents write it."""
    return AllocationRecord(pod=f"default/{pod}", pod_uid=uid)


def nic(name: str, ipv4: str = "", ipv6: str = "") -> IPAllocationDetail:
    """One interface of a SpiderEndpoint."""
    return IPAllocationDetail(
        interface=name,
        ipv4=f"{ipv4}/16" if ipv4 else None,
        ipv4_pool="v4" if ipv4 else None,
        ipv6=f"{ipv6}/64" if ipv6 else None,
        ipv6_pool="v6" if ipv6 else None,
    )
