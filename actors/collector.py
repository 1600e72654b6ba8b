"""The collector: gives up records that nobody needs any more. One in every replica, each for the nodes of its own.

Messages: `Reported` with what a node's agent knows, `Look` from its timer, `Swept` and `SweepFailed` from its own work.
State: since when records are missing from their node's reports, since when nodes are not ready, when each agent was
last heard. Persists: nothing. Answers: `Reported` at once; what follows from it is done beside the actor.

It decides nothing from a cache. Snapshots say where to look; then Pod and Node are read from the store, a pure rule
decides (`ipam.garbage`), and the pool's owner releases exactly this pod uid, NIC, container and node. So two collectors
that believe to care for one node do the same thing twice, and a record that a newer sandbox took over stays.

What is looked at:

* **records nobody knows**: in every report of the record's node for a minute the sandbox is missing, though the record
  was there all the time, and no Pod speaks for it: a crash between two pools, a journal that was lost;
* **dead nodes**: the Node object is gone, or the node is NotReady and either declared out of service or has been so,
  with a silent agent, for the operator's grace.

What a crash leaves: nothing. A new life begins to count anew, which is only ever later.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, assert_never

from msgspec import Struct

from actors.endpoint import Endpoints
from actors.ippool import Refused, Surrender, Surrendered
from actors.peers import Pool
from api.core import Node, Pod
from api.ippool import SpiderIPPool
from api.kinds import NODE, POD, Kind
from api.wire import Attachment, PodRef
from ipam.garbage import Held, Missing, NodeState, by_interface, dead, held_in, orphaned, state_of, unknown
from runtime.actor import Actor, Question
from runtime.envelope import Envelope
from runtime.store.port import NotFound, Store
from telemetry import metrics

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

LOOK_SECONDS = 10.0
"""Between two looks at the nodes' state, in memory."""
PATIENCE_SECONDS = 60.0
"""An ADD has 20 s and a write to the store 10: what is missing for twice that is not on its way."""
_INDEX_SECONDS = 5.0
"""How old the index of records may be. An older record that is gone costs a message, a newer one is not looked at."""
_POOL_SECONDS = 60.0


class Reported(Question[None], frozen=True, tag=True):
    """What the agent of a node knows of."""

    node: str
    attachments: tuple[Attachment, ...]


class Look(Struct, frozen=True, tag=True):
    """Time to look at the nodes."""


class Swept(Struct, frozen=True, tag=True):
    """The records of a node were dealt with."""

    node: str


class SweepFailed(Struct, frozen=True, tag=True):
    """Not all of them could be; the next report or look finds them again."""

    node: str
    error: Exception


Message = Reported | Look | Swept | SweepFailed


class Rules(Struct, frozen=True):
    """The settings that decide. All in seconds."""

    node_grace: float = 120.0
    terminating: bool = True
    """Whether pods on a dead node that are past their grace period lose their addresses."""
    extra_grace: float = 0.0
    interval: float = 600.0
    """Between two searches for records of nodes that do not exist."""


class Sight(Struct, frozen=True):
    """What the collector sees of the cluster, from snapshots that may lag."""

    pools: Callable[[], Mapping[str, SpiderIPPool]]
    nodes: Callable[[], Mapping[str, Node]]
    mine: Callable[[str], bool]
    """Whether a node is this replica's to care for."""


class CollectorActor(Actor[Message]):
    """See the module."""

    capacity = 4096

    def __init__(
        self, store: Store, *, pools: Callable[[str], Pool], endpoints: Endpoints, sight: Sight, rules: Rules
    ) -> None:
        """`pools` gives the way to a pool's owner."""
        self._store = store
        self._endpoints = endpoints
        self._pool = pools
        self._sight = sight
        self._rules = rules
        self._missing: dict[str, Missing] = {}
        self._heard: dict[str, float] = {}
        self._not_ready: dict[str, float] = {}
        self._mine: dict[str, float] = {}
        """Of the nodes in trouble: since when this replica cares for them, and would have heard their agents."""
        self._known: set[str] = set()
        self._vanished: dict[str, float] = {}
        """Nodes without an object, since when."""
        self._busy: set[str] = set()
        self._index = _Index()
        self._searched = 0.0

    def __repr__(self) -> str:
        return f"<CollectorActor {len(self._heard)} agents heard, {len(self._not_ready)} nodes not ready>"

    def started(self) -> None:
        """Begin to look; not at once, for the snapshots fill first."""
        self._searched = self.system.clock.now()
        self.timers.start("look", LOOK_SECONDS, Look())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Find out what may have to go; the rest is done beside the actor."""
        match message:
            case Reported(node, attachments):
                self._reported(node, attachments)
            case Look():
                self.timers.start("look", LOOK_SECONDS, Look())
                self._look()
            case Swept(node):
                self._busy.discard(node)
            case SweepFailed(node, error):
                self._busy.discard(node)
                metrics.IP_GC_FAILURE_COUNTS.inc()
                _log.warning("records of node %s could not be dealt with: %s: %s", node, type(error).__name__, error)
            case _:
                assert_never(message)
        return None

    def _reported(self, node: str, attachments: tuple[Attachment, ...]) -> None:
        now = self.system.clock.now()
        self._heard[node] = now
        held = self._index.of(node, self._sight.pools(), now=now)
        due = self._missing.setdefault(node, Missing(patience=PATIENCE_SECONDS)).report(held, attachments, now=now)
        if due:
            self._sweep(node, self._judge_unknown(node, due, attachments))

    def _look(self) -> None:
        now = self.system.clock.now()
        nodes = self._sight.nodes()
        self._vanished |= dict.fromkeys((name for name in self._known if name not in nodes), now)
        self._known = set(nodes)
        if now - self._searched >= self._rules.interval:
            self._searched = now
            for name in self._index.nodes(self._sight.pools(), now=now) - nodes.keys():
                self._vanished.setdefault(name, now)
        self._vanished = {name: since for name, since in self._vanished.items() if name not in nodes}
        states = {name: state_of(node) for name, node in nodes.items()}
        self._not_ready = {
            name: self._not_ready.get(name, now) for name, state in states.items() if state is not NodeState.ALIVE
        }
        self._heard = {name: at for name, at in self._heard.items() if name in nodes or name in self._vanished}
        self._missing = {name: missing for name, missing in self._missing.items() if name in self._heard}
        mine = [name for name in (*self._not_ready, *self._vanished) if self._sight.mine(name)]
        self._mine = {name: self._mine.get(name, now) for name in mine}
        for name in mine:
            if self._is_dead(name, states.get(name, NodeState.GONE), now=now):
                held = self._index.of(name, self._sight.pools(), now=now)
                if held:
                    self._sweep(name, self._judge_orphans(name, held))
                else:
                    self._vanished.pop(name, None)

    def _is_dead(self, name: str, state: NodeState, *, now: float) -> bool:
        since = self._not_ready.get(name, self._vanished.get(name, now))
        return dead(
            state,
            not_ready_for=now - since,
            silent_for=now - max(self._heard.get(name, self._mine.get(name, now)), since),
            grace=self._rules.node_grace,
        )

    def _sweep(self, node: str, work: Coroutine[Any, Any, None]) -> None:
        if node in self._busy:
            work.close()
            return
        self._busy.add(node)
        self.pipe(work, lambda _: Swept(node), failed=lambda error: SweepFailed(node, error))

    async def _judge_unknown(self, node: str, due: tuple[Held, ...], attachments: tuple[Attachment, ...]) -> None:
        for (namespace, name, _, _), records in by_interface(due).items():
            pod = await self._read(POD, name, namespace=namespace)
            reasons = {record: unknown(record, pod, attachments) for record in records}
            await self._release({record: reason for record, reason in reasons.items() if reason}, pod)
            for record, reason in reasons.items():
                if not reason:
                    _log.warning("the agent of node %s does not know the sandbox of %s, whose pod lives", node, record)

    async def _judge_orphans(self, node: str, held: tuple[Held, ...]) -> None:
        state = state_of(await self._read(NODE, node))
        if not self._is_dead(node, state, now=self.system.clock.now()):
            return
        for (namespace, name, _, _), records in by_interface(held).items():
            pod = await self._read(POD, name, namespace=namespace)
            reasons = {
                record: orphaned(
                    record,
                    pod,
                    wall=self.system.clock.wall(),
                    extra=self._rules.extra_grace,
                    terminating=self._rules.terminating,
                )
                for record in records
            }
            await self._release({record: reason for record, reason in reasons.items() if reason}, pod)

    async def _release(self, reasons: Mapping[Held, str], pod: Pod | None) -> None:
        """Have the owners release these records of one pod's NIC, and its endpoint forget the NIC."""
        free = True
        for record, reason in reasons.items():
            answer = await self._pool(record.pool).ask(
                Surrender(uid=record.uid, nic=record.nic, cid=record.cid, node=record.node), timeout=_POOL_SECONDS
            )
            match answer:
                case Surrendered(addresses, held):
                    free = free and not held
                    if addresses:
                        metrics.IP_GC_COUNTS.inc(len(addresses))
                        _audit.info("collected %s: %s", record, reason)
                case Refused(why):
                    free = False
                    metrics.IP_GC_FAILURE_COUNTS.inc()
                    _log.warning("could not collect %s (%s): %s", record, reason, why)
                case _:
                    assert_never(answer)
        first = next(iter(reasons), None)
        # The endpoint of a pod that lives shows what its present sandbox has.
        if first is not None and free and (pod is None or pod.metadata.uid != first.uid or not pod.alive):
            pod_ref = PodRef(namespace=first.namespace, name=first.name, uid=first.uid)
            await self._endpoints.forget(pod_ref, first.nic)

    async def _read[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T | None:
        try:
            return await self._store.get(kind, name, namespace=namespace)
        except NotFound:
            return None


class _Index:
    """Records by node. A pool is read again only when it has changed, and not more often than its records matter."""

    def __init__(self) -> None:
        self._pools: dict[str, tuple[str, dict[str, tuple[Held, ...]]]] = {}
        self._made = float("-inf")

    def of(self, node: str, pools: Mapping[str, SpiderIPPool], *, now: float) -> tuple[Held, ...]:
        """The records of a node."""
        self._refresh(pools, now=now)
        return tuple(record for _, nodes in self._pools.values() for record in nodes.get(node, ()))

    def nodes(self, pools: Mapping[str, SpiderIPPool], *, now: float) -> set[str]:
        """All nodes that have records."""
        self._refresh(pools, now=now)
        return {node for _, nodes in self._pools.values() for node in nodes}

    def _refresh(self, pools: Mapping[str, SpiderIPPool], *, now: float) -> None:
        if now - self._made < _INDEX_SECONDS:
            return
        self._made = now
        fresh: dict[str, tuple[str, dict[str, tuple[Held, ...]]]] = {}
        for name, pool in pools.items():
            known = self._pools.get(name)
            if known is not None and known[0] == pool.metadata.resource_version:
                fresh[name] = known
                continue
            nodes: dict[str, list[Held]] = {}
            for record in held_in(pool):
                nodes.setdefault(record.node, []).append(record)
            fresh[name] = (pool.metadata.resource_version, {node: tuple(held) for node, held in nodes.items()})
        self._pools = fresh
