"""`spiderpoolctl status`: whether an installation works, on one screen.

What Kubernetes knows (workloads, pods, pools) comes from the API server; what only the replicas know (owners of pools,
last ADD of each node, errors of the last hour) from each replica's `/debug/status`, through the API server's proxy to
its pod, so that a kubeconfig is all it takes. A replica that does not answer is said to be so; the rest is shown.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from api.core import SERVICE_LABEL, EndpointSlice, ObjectReference
from api.ippool import SpiderIPPool
from api.kinds import ENDPOINTSLICE, IPPOOL, Kind
from api.meta import ObjectMeta
from api.status import Problem, ReplicaStatus
from ctl import stores
from ctl.errors import Failure
from ctl.get import table
from runtime.store.apiserver import Call
from runtime.store.kubernetes import KubernetesStore
from runtime.store.observe import Outcome
from runtime.store.port import NotFound, StoreError

_ROWS = 12
"""Of a table. One screen: what does not fit is counted, and the part with trouble comes first."""
_COMPONENT = "app.kubernetes.io/component"
_VERSION = "app.kubernetes.io/version"
_HTTP_PORT = "http"


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


class Component(Struct, frozen=True):
    """A workload of the installation."""

    name: str
    kind: str
    desired: int
    ready: int
    updated: int
    version: str


class Agent(Struct, frozen=True):
    """A node and its agent."""

    node: str
    pod: str = ""
    state: str = "missing"
    restarts: int = 0
    version: str = ""
    last_add: float = 0.0
    last_pod: str = ""
    adds: int = 0
    failures: int = 0


class Replica(Struct, frozen=True):
    """A replica of the controller."""

    pod: str
    node: str = ""
    state: str = ""
    version: str = ""
    owns: int = 0
    answer: str = "ok"
    """Or why it did not give one."""


class Pool(Struct, frozen=True):
    """A pool and its owner."""

    name: str
    used: int
    total: int
    owner: str = ""


class Status(Struct, frozen=True):
    """All of it. With `--output json` this is what is printed."""

    namespace: str
    components: tuple[Component, ...]
    replicas: tuple[Replica, ...]
    agents: tuple[Agent, ...]
    pools: tuple[Pool, ...]
    problems: tuple[Problem, ...]
    wrong: tuple[str, ...] = field(default=())
    """What keeps it from being well, a line each."""


def run(argv: Sequence[str]) -> int:
    """The verb: 0 when all is well, 1 when something is not. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl status",
        description="Show whether an installation works. Exit code 0: it does; 1: something is wrong, named below.",
    )
    parser.add_argument("-n", "--namespace", default="spiderpool", help="of the release (default %(default)s)")
    parser.add_argument("--controller", default="spiderpool-controller", metavar="NAME", help="its Deployment's name")
    parser.add_argument("--agent", default="spiderpool-agent", metavar="NAME", help="its DaemonSet's name")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    given = parser.parse_args(argv)
    status = asyncio.run(_ask(given.namespace, given.controller, given.agent))
    if given.output == "json":
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(status), indent=2).decode() + "\n")
    else:
        print(render(status, now=time.time()), end="")
    return 1 if status.wrong else 0


async def _ask(namespace: str, controller: str, agent: str) -> Status:
    async with stores.opened("") as store:
        assert isinstance(store, KubernetesStore)
        try:
            deployment = await store.get(_DEPLOYMENT, controller, namespace=namespace)
            daemonset = await store.get(_DAEMONSET, agent, namespace=namespace)
        except NotFound as error:
            msg = f"{error}: is Spiderpool installed in namespace {namespace}? Name another one with -n"
            raise Failure(msg) from error
        slices = (await store.list(ENDPOINTSLICE, namespace=namespace, labels={SERVICE_LABEL: controller})).items
        pods = (await store.list(_POD, namespace=namespace)).items
        nodes = (await store.list(_NODE)).items
        pools = (await store.list(IPPOOL)).items
        ports = health_ports(slices)
        controllers = [pod for pod in pods if pod.metadata.labels.get(_COMPONENT) == controller]
        answers = await asyncio.gather(*(_replica(store, pod, ports.get(pod.metadata.name, 0)) for pod in controllers))
        return assemble(
            namespace,
            components=[_component(deployment, "Deployment"), _component(daemonset, "DaemonSet")],
            controllers=list(zip(controllers, answers, strict=True)),
            agents=[pod for pod in pods if pod.metadata.labels.get(_COMPONENT) == agent],
            nodes=[node.metadata.name for node in nodes],
            pools=pools,
        )


async def _replica(store: KubernetesStore, pod: _Pod, port: int) -> ReplicaStatus | str:
    """What a replica says of itself, or why it does not."""
    if not port:
        return "not in the Service's EndpointSlices"
    name, namespace = pod.metadata.name, pod.metadata.namespace
    path = f"/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/debug/status"
    try:
        body = await store.server.request(Call(method="GET", path=path, what=f"ask pod {name}"), Outcome())
        return msgspec.json.decode(body, type=ReplicaStatus)
    except (StoreError, msgspec.DecodeError) as error:
        return " ".join(str(error).split())


def health_ports(slices: Iterable[EndpointSlice]) -> dict[str, int]:
    """The port of `/debug/status` by the name of the replica's pod."""
    found: dict[str, int] = {}
    for item in slices:
        port = next((p.port for p in item.ports or () if p.name == _HTTP_PORT and p.port), 0)
        for endpoint in item.endpoints or ():
            target: ObjectReference | None = endpoint.target_ref
            if target is not None and port:
                found[target.name] = port
    return found


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
) -> Status:
    """Everything that was read, put together and judged."""
    said = [answer for _, answer in controllers if isinstance(answer, ReplicaStatus)]
    owners: dict[str, str] = {}
    for answer in said:
        # The owner's own word counts: a replica that is just taking over knows better than the one that lags.
        owners |= {pool: owner for pool, owner in answer.pools.items() if owner == answer.replica or pool not in owners}
    replicas = tuple(_summary(pod, answer, owners) for pod, answer in controllers)
    rows = tuple(_agents(agents, nodes, said))
    status = Status(
        namespace=namespace,
        components=tuple(components),
        replicas=replicas,
        agents=rows,
        pools=tuple(
            Pool(
                name=pool.metadata.name,
                used=pool.status.allocated_ip_count or 0,
                total=pool.status.total_ip_count or 0,
                owner=owners.get(pool.metadata.name, ""),
            )
            for pool in sorted(pools, key=lambda pool: pool.metadata.name)
        ),
        problems=tuple(sorted((p for answer in said for p in answer.problems), key=lambda p: -p.at)),
    )
    return msgspec.structs.replace(status, wrong=tuple(_wrong(status)))


def _summary(pod: _Pod, answer: ReplicaStatus | str, owners: Mapping[str, str]) -> Replica:
    name = pod.metadata.name
    known = isinstance(answer, ReplicaStatus)
    return Replica(
        pod=name,
        node=pod.spec.node_name,
        state=pod.state,
        version=answer.version if isinstance(answer, ReplicaStatus) else "",
        owns=sum(owner == name for owner in owners.values()),
        answer="ok" if known else str(answer),
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
    versions = sorted({c.version for c in status.components} | {a.version for a in status.agents if a.version})
    if len(versions) > 1:
        yield f"several versions at once: {', '.join(versions)}"


def render(status: Status, *, now: float) -> str:
    """The screen. `now` is in Unix seconds."""
    parts = [
        f"Spiderpool in namespace {status.namespace}",
        table(
            [
                ("COMPONENT", "KIND", "READY", "UPDATED", "VERSION"),
                *(
                    (c.name, c.kind, f"{c.ready}/{c.desired}", f"{c.updated}/{c.desired}", c.version)
                    for c in status.components
                ),
            ]
        ),
        _table(
            ("REPLICA", "NODE", "STATE", "VERSION", "OWNS"),
            [(r.pod, r.node, r.state, r.version, str(r.owns) if r.answer == "ok" else "?") for r in status.replicas],
            "replicas",
        ),
        _table(
            ("NODE", "AGENT", "STATE", "RESTARTS", "LAST-ADD", "POD", "ADDS", "FAILED"),
            [
                (
                    *(a.node, a.pod, a.state, str(a.restarts)),
                    *(ago(a.last_add, now), a.last_pod, str(a.adds), str(a.failures)),
                )
                for a in sorted(status.agents, key=lambda a: (a.state == "Ready", a.node))
            ],
            "nodes",
        ),
        _table(
            ("POOL", "USED", "TOTAL", "OWNER"),
            [(p.name, str(p.used), str(p.total), p.owner) for p in status.pools],
            "pools",
        ),
    ]
    if status.problems:
        parts.append("Refused in the last hour:")
        rows = [(ago(p.at, now), str(p.count), p.node, p.pod, p.cause, _shortened(p.message)) for p in status.problems]
        parts.append(_table(("AGO", "TIMES", "NODE", "POD", "CAUSE", "MESSAGE"), rows, "refusals"))
    parts.append("\n".join(f"WRONG: {line}" for line in status.wrong) or "All is well.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], what: str) -> str:
    if not rows:
        return f"no {what}"
    more = f"\nand {len(rows) - _ROWS} more {what}" if len(rows) > _ROWS else ""
    return table([heads, *rows[:_ROWS]]) + more


def ago(at: float, now: float) -> str:
    """How long before `now`, as kubectl writes it: 12s, 5m, 3h, 2d; empty for never."""
    if not at:
        return ""
    seconds = max(0, int(now - at))
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (seconds >= size and letter != "m"):
            return f"{seconds // size}{letter}"
    return f"{seconds}s"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:99]}…"
