"""What goes wrong while pods come and go: programs replaced, killed, away."""

from __future__ import annotations

import signal
import time
from typing import Final

from bench.kubelet.contest import PODS, Contest
from bench.kubelet.scale import Flow, Wave, stream, wave
from tests.cluster.lab.cluster import PRODUCT_NAMESPACE
from tests.cluster.lab.state import Identity
from tests.cluster.product import AGENT, CONTROLLER
from tests.cluster.watched import PodWatch

_CONTROLLER_SELECTOR: Final = f"app.kubernetes.io/component={CONTROLLER}"
_WAIT_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.02
_SWEEP_SECONDS: Final = 150.0
"""kubelet removes what is left of dead pods once a minute, and each of their sandboxes is one more DEL."""
_CALM_SECONDS: Final = 20.0
"""After the last sandbox has gone, the last events are written and the last releases settled."""


def programs(contest: Contest, *components: str) -> dict[str, list[Identity]]:
    """The processes of our programs by pod; neither the sandbox nor a probe that runs."""
    found = {}
    for name, (node, uid) in contest.product_pods(*components).items():
        processes = contest.cluster.node(node).processes_below(f"kubepods/*/pod{uid}")
        found[name] = [it for it in processes if "daemon" in it.command_line]
    return found


def roll_out_under_a_stream(contest: Contest, seconds: float) -> Flow:
    """All agents are replaced."""

    def roll_out() -> None:
        where = (f"daemonset/{AGENT}", f"--namespace={PRODUCT_NAMESPACE}")
        contest.cluster.kubectl("rollout", "restart", *where)
        contest.product.rolled_out(timeout=180)

    return stream(contest, seconds, meanwhile=roll_out)


def agent_killed(contest: Contest, count: int) -> Wave:
    """One agent dies in the middle of a wave, and kubelet starts it again."""

    def kill() -> None:
        name = contest.product.agent_on("n1")
        for process in programs(contest, AGENT)[name]:
            process.send(signal.SIGKILL)

    return wave(contest, count, meanwhile=kill)


def _deleted_by_force(contest: Contest, count: int, replicas: int) -> float:
    """Pods that run are deleted by force when so many controllers are left; when the last namespace was gone."""
    kind = f"force-{time.monotonic_ns()}"
    with PodWatch(contest.cluster, f"bench={kind}") as watch:
        for number in range(count):
            contest.api.create(PODS, contest.pod(f"{kind}-{number}", kind=kind))
        pods = watch.wait(
            lambda seen: len(seen) == count and all(it.ready is not None for it in seen), _WAIT_SECONDS, "pods Ready"
        )
        _scale(contest, replicas)
        contest.cluster.wait(
            lambda: len(contest.product.pods(CONTROLLER)) == replicas, _WAIT_SECONDS, f"{replicas} controllers"
        )
        for pod in pods:
            contest.api.delete(f"{PODS}/{pod.name}", force=True)
    contest.cluster.wait(lambda: not contest.namespaces(), _WAIT_SECONDS, "namespaces gone", interval=_LOOK_SECONDS)
    return time.monotonic()


def _scale(contest: Contest, replicas: int) -> None:
    path = f"/apis/apps/v1/namespaces/{PRODUCT_NAMESPACE}/deployments/{CONTROLLER}/scale"
    contest.api.merge(path, {"spec": {"replicas": replicas}})


def _empty(contest: Contest) -> float:
    """When the pools hold nothing."""
    contest.cluster.wait(lambda: not contest.held(), _WAIT_SECONDS, "empty pools", interval=_LOOK_SECONDS)
    return time.monotonic()


def all_controllers_away(contest: Contest, count: int) -> tuple[int, float]:
    """How many addresses stayed while no controller was there; seconds until they were free, from the first Ready."""
    _deleted_by_force(contest, count, 0)
    time.sleep(1.0)
    stayed = contest.held()
    with PodWatch(contest.cluster, _CONTROLLER_SELECTOR, namespace=PRODUCT_NAMESPACE) as watch:
        _scale(contest, 2)
        freed = _empty(contest)
        pods = watch.wait(lambda seen: any(it.ready is not None for it in seen), _WAIT_SECONDS, "a controller Ready")
    back = min(it.ready for it in pods if it.ready is not None)
    contest.product.rolled_out()
    return stayed, max(0.0, freed - back)


def one_controller_away(contest: Contest, count: int) -> float:
    """Seconds from the last namespace's end until all addresses are free, one of two replicas having been stopped."""
    try:
        gone = _deleted_by_force(contest, count, 1)
        return max(0.0, _empty(contest) - gone)
    finally:
        _scale(contest, 2)
        contest.product.rolled_out()


def _swept(contest: Contest) -> None:
    """Wait until no container is left that does not run; not for ever, as kubelet keeps some of its own choice."""

    def listed(what: str) -> set[str]:
        list_all = ["ctr", "--namespace=k8s.io", what, "list", "--quiet"]
        return {name for node in contest.cluster.nodes.values() for name in node.run(list_all).stdout.split()}

    until = time.monotonic() + _SWEEP_SECONDS
    while listed("containers") != listed("tasks") and time.monotonic() < until:
        time.sleep(2.0)


def at_rest(contest: Contest, component: str, seconds: float) -> tuple[float, float, float]:
    """Of the greediest pod of a component: MiB resident, percent of a core by its program, and by all of its pod."""
    nodes = contest.product_pods(component)
    running = programs(contest, component)

    def used() -> dict[str, tuple[float, float]]:
        return {
            name: (
                sum(it.cpu_seconds for it in running[name]),
                contest.cluster.node(node).cgroup_cpu_seconds(f"kubepods/*/pod{uid}"),
            )
            for name, (node, uid) in nodes.items()
        }

    _swept(contest)
    time.sleep(_CALM_SECONDS)
    before = used()
    time.sleep(seconds)
    spent = [(own - before[name][0], whole - before[name][1]) for name, (own, whole) in used().items()]
    memory = max(sum(it.resident for it in processes) for processes in running.values())
    return memory / 2**20, max(own for own, _ in spent) / seconds * 100, max(all_ for _, all_ in spent) / seconds * 100
