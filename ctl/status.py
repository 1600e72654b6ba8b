"""`spiderpoolctl status`: whether an installation, or a spiderpool-standalone, works, on one screen.

What Kubernetes knows (workloads, pods, pools) comes from the API server; what only the replicas know (owners of pools,
last ADD of each node, errors of the last hour) from each replica's `/debug/status`, through the API server's proxy to
its pod, so that a kubeconfig is all it takes. A replica that does not answer is said to be so; the rest is shown. A
spiderpool-standalone says all of it itself.
"""

import argparse
import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from api.coordinator import SpiderCoordinator
from api.ippool import SpiderIPPool
from api.kinds import COORDINATOR, IPPOOL, Kind
from api.meta import ObjectMeta
from api.status import NodeActivity, PoolWork, ReplicaStatus
from ctl import addresses, output, programs, stores
from ctl.errors import Failure
from ctl.programs import Program, Silent
from ctl.screen import Agent, Component, Pool, Replica, Status, render
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import NotFound
from telemetry.health import Node, State

_COMPONENT = "app.kubernetes.io/component"
_VERSION = "app.kubernetes.io/version"
_PATIENCE_SECONDS = 5.0
"""For which a request may wait at its pool; what asks gives up after 20."""


class _Counts(Struct, frozen=True, rename="camel"):
    """Of a Deployment or a DaemonSet: each has its own words for the same."""

    replicas: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    desired_number_scheduled: int = 0
    number_ready: int = 0
    updated_number_scheduled: int = 0


class _Workload(Struct, frozen=True):
    metadata: ObjectMeta
    status: _Counts = _Counts()


class _Condition(Struct, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""


class _Waiting(Struct, frozen=True):
    reason: str = ""


class _ContainerState(Struct, frozen=True):
    waiting: _Waiting | None = None


class _Container(Struct, frozen=True, rename="camel"):
    restart_count: int = 0
    state: _ContainerState = _ContainerState()


class _PodSpec(Struct, frozen=True, rename="camel"):
    node_name: str = ""


class _PodStatus(Struct, frozen=True, rename="camel"):
    phase: str = ""
    conditions: list[_Condition] = []
    container_statuses: list[_Container] = []


class _Pod(Struct, frozen=True):
    metadata: ObjectMeta
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()

    @property
    def ready(self) -> bool:
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)

    @property
    def state(self) -> str:
        """A word for people."""
        if self.metadata.deletion_timestamp is not None:
            return "Terminating"
        waiting = [c.state.waiting.reason for c in self.status.container_statuses if c.state.waiting is not None]
        return next(filter(None, waiting), "Ready" if self.ready else self.status.phase or "Pending")


class _Node(Struct, frozen=True):
    metadata: ObjectMeta


def _kind[T](cls: type[T], plural: str, name: str, group: str = "apps", *, namespaced: bool = True) -> Kind[T]:
    return Kind(group=group, version="v1", plural=plural, kind=name, namespaced=namespaced, status=True, type=cls)


_DEPLOYMENT = _kind(_Workload, "deployments", "Deployment")
_DAEMONSET = _kind(_Workload, "daemonsets", "DaemonSet")
_POD = _kind(_Pod, "pods", "Pod", "")
_NODE = _kind(_Node, "nodes", "Node", "", namespaced=False)


def run(argv: Sequence[str]) -> int:
    """The verb: 0 when all is well, 1 when something is not. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl status",
        description="Show whether an installation works. Exit code 0: it does; 1: something is wrong, named below.",
    )
    programs.add_arguments(parser)
    parser.add_argument("--agent", default="spiderpool-agent", metavar="NAME", help="its DaemonSet's name")
    output.add_argument(parser)
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    status = asyncio.run(_ask(given.state_dir, given.namespace, given.controller, given.agent))
    print(output.shown(status, given.output, lambda wide: render(status, now=time.time(), wide=wide)), end="")
    return 1 if status.wrong else 0


async def _ask(state_dir: str, namespace: str, controller: str, agent: str) -> Status:
    async with stores.opened(state_dir) as store:
        asked = await programs.replicas(store, state_dir, namespace=namespace, controller=controller)
        pools = (await store.list(IPPOOL)).items
        if not isinstance(store, KubernetesStore):
            (program,) = asked
            return alone(state_dir, await _said(program), await _health(program), pools)
        try:
            deployment = await store.get(_DEPLOYMENT, controller, namespace=namespace)
            daemonset = await store.get(_DAEMONSET, agent, namespace=namespace)
        except NotFound as error:
            msg = f"{error}: is Spiderpool installed in namespace {namespace}? Name another one with -n"
            raise Failure(msg) from error
        pods = (await store.list(_POD, namespace=namespace)).items
        nodes = (await store.list(_NODE)).items
        controllers = [pod for pod in pods if pod.metadata.labels.get(_COMPONENT) == controller]
        by_name = {program.name: program for program in asked}
        answers = await asyncio.gather(*(_said(by_name.get(pod.metadata.name)) for pod in controllers))
        return assemble(
            namespace,
            components=[_component(deployment, "Deployment"), _component(daemonset, "DaemonSet")],
            controllers=list(zip(controllers, answers, strict=True)),
            agents=[pod for pod in pods if pod.metadata.labels.get(_COMPONENT) == agent],
            nodes=[node.metadata.name for node in nodes],
            pools=pools,
            coordinators=(await store.list(COORDINATOR)).items,
        )


async def _said(program: Program | None) -> ReplicaStatus | str:
    """What a replica says of itself, or why it does not."""
    if program is None:
        return "not in the Service's EndpointSlices"
    try:
        return msgspec.json.decode(await program.ask("GET", "/debug/status"), type=ReplicaStatus)
    except (Silent, msgspec.DecodeError) as error:
        return " ".join(str(error).split())


async def _health(program: Program) -> Node | str:
    """The tree of a program's parts, or why there is none."""
    try:
        return msgspec.json.decode(await program.ask("GET", "/healthz"), type=Node)
    except (Silent, msgspec.DecodeError) as error:
        return " ".join(str(error).split())


def alone(state_dir: str, said: ReplicaStatus | str, health: Node | str, pools: Sequence[SpiderIPPool]) -> Status:
    """The same of a spiderpool-standalone, which is controller and agent in one."""
    name = "spiderpool-standalone"
    wrong = [f"{name}: {why}" for why in dict.fromkeys(one for one in (said, health) if isinstance(one, str))]
    parts = [] if isinstance(health, str) else list(_unwell(health))
    known = said if isinstance(said, ReplicaStatus) else ReplicaStatus(replica=name, version="", started=0.0)
    ready = isinstance(health, Node) and health.status in {State.OK, State.DEGRADED}
    seen = max(known.nodes, key=lambda activity: activity.last_add, default=NodeActivity(node=""))
    state = "Ready" if ready else health.status if isinstance(health, Node) else "silent"
    return Status(
        namespace="",
        state_dir=state_dir,
        components=(
            Component(name=name, kind="Program", desired=1, ready=int(ready), updated=1, version=known.version),
        ),
        replicas=(
            Replica(
                pod=known.replica,
                state=state,
                version=known.version,
                owns=len(known.pools),
                writes=known.writes,
                granted=known.granted,
                budget=known.budget,
            ),
        ),
        agents=(
            Agent(
                node=seen.node or known.replica,
                pod=name,
                state=state,
                version=known.version,
                last_add=seen.last_add,
                last_pod=seen.last_pod,
                adds=seen.adds,
                failures=seen.failures,
            ),
        ),
        pools=tuple(_pools(pools, known.pools, known.work)),
        problems=known.problems,
        wrong=(*wrong, *parts),
    )


def _unwell(node: Node, path: str = "") -> Iterable[str]:
    """A line for every part that is not as it should be."""
    if node.state not in {None, State.OK, State.STOPPED}:
        yield f"{path or node.name} is {node.state}{': ' if node.detail else ''}{node.detail}"
    for child in node.children:
        yield from _unwell(child, f"{path}/{child.name}".lstrip("/"))


def _pools(pools: Sequence[SpiderIPPool], owners: Mapping[str, str], work: Mapping[str, PoolWork]) -> Iterable[Pool]:
    books, _ = addresses.books(pools)
    for pool in sorted(pools, key=lambda pool: pool.metadata.name):
        name = pool.metadata.name
        yield Pool(
            name=name,
            used=pool.status.allocated_ip_count or 0,
            total=pool.status.total_ip_count or 0,
            owner=owners.get(name, ""),
            withheld=len(addresses.waiting(books[name])) if name in books else 0,
            work=work.get(name, PoolWork()),
        )


def _component(item: _Workload, kind: str) -> Component:
    counts = item.status
    return Component(
        name=item.metadata.name,
        kind=kind,
        desired=counts.replicas or counts.desired_number_scheduled,
        ready=counts.ready_replicas or counts.number_ready,
        updated=counts.updated_replicas or counts.updated_number_scheduled,
        version=item.metadata.labels.get(_VERSION, ""),
    )


def assemble(
    namespace: str,
    *,
    components: Sequence[Component],
    controllers: Sequence[tuple[_Pod, ReplicaStatus | str]],
    agents: Sequence[_Pod],
    nodes: Sequence[str],
    pools: Sequence[SpiderIPPool],
    coordinators: Sequence[SpiderCoordinator] = (),
) -> Status:
    """Everything that was read, put together and judged."""
    said = [answer for _, answer in controllers if isinstance(answer, ReplicaStatus)]
    owners: dict[str, str] = {}
    for answer in said:
        # The owner's own word counts: a replica that is just taking over knows better than the one that lags.
        owners |= {pool: owner for pool, owner in answer.pools.items() if owner == answer.replica or pool not in owners}
    work = {pool: done for answer in said for pool, done in answer.work.items() if owners.get(pool) == answer.replica}
    replicas = tuple(_summary(pod, answer, owners) for pod, answer in controllers)
    rows = tuple(_agents(agents, nodes, said))
    status = Status(
        namespace=namespace,
        components=tuple(components),
        replicas=replicas,
        agents=rows,
        pools=tuple(_pools(pools, owners, work)),
        problems=tuple(sorted((p for answer in said for p in answer.problems), key=lambda p: -p.at)),
    )
    return msgspec.structs.replace(status, wrong=(*_wrong(status), *_unsynced(coordinators)))


def _unsynced(coordinators: Sequence[SpiderCoordinator]) -> Iterable[str]:
    """Those by which pods would get no way to Services and to other pods, and therefore wait."""
    for one in coordinators:
        if one.status.phase == "NotReady":
            yield f"SpiderCoordinator {one.metadata.name}: NotReady: {one.status.reason or 'without a reason'}"


def _summary(pod: _Pod, answer: ReplicaStatus | str, owners: Mapping[str, str]) -> Replica:
    name = pod.metadata.name
    owns = sum(owner == name for owner in owners.values())
    replica = Replica(pod=name, node=pod.spec.node_name, state=pod.state, owns=owns)
    if isinstance(answer, str):
        return msgspec.structs.replace(replica, answer=answer)
    return msgspec.structs.replace(
        replica, version=answer.version, writes=answer.writes, granted=answer.granted, budget=answer.budget
    )


def _agents(pods: Sequence[_Pod], nodes: Sequence[str], said: Sequence[ReplicaStatus]) -> Iterable[Agent]:
    by_node: dict[str, _Pod] = {}
    for pod in pods:
        # While an agent is replaced there are two on its node: the one that is ready speaks for it.
        if pod.ready or pod.spec.node_name not in by_node:
            by_node[pod.spec.node_name] = pod
    for node in sorted({*nodes, *by_node} - {""}):
        seen = [activity for answer in said for activity in answer.nodes if activity.node == node]
        last = max(seen, key=lambda activity: activity.last_add, default=None)
        agent = by_node.get(node)
        yield Agent(
            node=node,
            pod=agent.metadata.name if agent else "",
            state=agent.state if agent else "missing",
            restarts=sum(c.restart_count for c in agent.status.container_statuses) if agent else 0,
            version=agent.metadata.labels.get(_VERSION, "") if agent else "",
            last_add=last.last_add if last else 0.0,
            last_pod=last.last_pod if last else "",
            adds=sum(activity.adds for activity in seen),
            failures=sum(activity.failures for activity in seen),
        )


def _wrong(status: Status) -> Iterable[str]:
    for component in status.components:
        if component.ready < component.desired or not component.desired:
            yield f"{component.kind} {component.name}: {component.ready} of {component.desired} ready"
        if component.updated < component.desired:
            yield f"{component.kind} {component.name}: {component.updated} of {component.desired} updated"
    for replica in status.replicas:
        if replica.answer != "ok":
            yield f"controller {replica.pod}: {replica.answer}"
    for agent in status.agents:
        if agent.state != "Ready":
            yield f"node {agent.node}: its agent is {agent.state}"
    for pool in status.pools:
        if pool.work.oldest > _PATIENCE_SECONDS:
            yield f"pool {pool.name}: {pool.work.waiting} requests wait, the first for {pool.work.oldest:.0f} s"
    versions = sorted({c.version for c in status.components} | {a.version for a in status.agents if a.version})
    if len(versions) > 1:
        yield f"several versions at once: {', '.join(versions)}"
