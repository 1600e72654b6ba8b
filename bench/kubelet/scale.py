"""How fast pods come up and go, and what that costs: one, a hundred, a steady stream."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from bench.kubelet.contest import LABEL, PODS, Contest
from tests.cluster.lab import metrics
from tests.cluster.lab.client import ApiClient
from tests.cluster.watched import PodWatch, Seen

_DEPLOYMENTS: Final = "/apis/apps/v1/namespaces/default/deployments"
_WAIT_SECONDS: Final = 240.0
_LOOK_SECONDS: Final = 0.05


def one_at_a_time(contest: Contest, count: int) -> list[float]:
    """Seconds from bind to Ready, nothing else going on; the node is the scheduler's choice."""
    waits = []
    with PodWatch(contest.cluster, f"{LABEL}=one") as watch:
        for number in range(count):
            name = f"one-{number}-{time.monotonic_ns()}"
            contest.api.create(PODS, contest.pod(name, kind="one"))
            seen = watch.wait(lambda pods, n=number: len(pods) > n and pods[n].ready is not None, 60, name)  # type: ignore[misc]
            waits.append(seen[number].wait)
            contest.api.delete(f"{PODS}/{name}")
            watch.wait(lambda pods, n=number: pods[n].gone is not None, 60, f"{name} gone")  # type: ignore[misc]
    return waits


class Wave(msgspec.Struct):
    """What a wave cost.

    Attributes:
        up: seconds until all are Ready.
        up_cpu: CPU seconds of the whole cluster meanwhile.
        down: seconds until the last namespace is gone.
        down_cpu: CPU seconds meanwhile.
        freed: seconds until the pools hold nothing.
        failures: sandboxes that could not be made or removed.
        writes: to the API server while it came up, by (verb, resource).
        late: the longest that a pod waited from bind to Ready.
    """

    up: float
    up_cpu: float
    down: float
    down_cpu: float
    freed: float
    failures: int
    writes: Counter[tuple[str, str]]
    late: float


def wave(contest: Contest, count: int, *, force: bool = False, meanwhile: Callable[[], None] | None = None) -> Wave:
    """0 -> count -> 0 by a Deployment.

    Args:
        contest: whose turn it is.
        count: pods.
        force: delete without a grace period.
        meanwhile: called once when the first quarter is Ready.

    Raises LabFailed.
    """
    api, name = contest.api, f"wave-{time.monotonic_ns()}"
    api.create(_DEPLOYMENTS, contest.deployment(name, kind=name))
    failures = contest.failures()
    with PodWatch(contest.cluster, f"{LABEL}={name}") as watch:
        written = metrics.writes(api.text("/metrics"))
        cpu, began = contest.cpu(), time.monotonic()
        api.merge(f"{_DEPLOYMENTS}/{name}/scale", {"spec": {"replicas": count}})
        if meanwhile is not None:
            watch.wait(lambda pods: ready(pods) >= count // 4, _WAIT_SECONDS, "the first quarter Ready")
            meanwhile()
        pods = watch.wait(lambda pods: ready(pods) == count, _WAIT_SECONDS, f"{count} pods Ready")
        up, up_cpu = time.monotonic() - began, contest.cpu() - cpu
        written = metrics.writes(api.text("/metrics")) - written
        cpu, began = contest.cpu(), time.monotonic()
        api.merge(f"{_DEPLOYMENTS}/{name}/scale", {"spec": {"replicas": 0}})
        if force:
            for pod in pods:
                api.delete(f"{PODS}/{pod.name}", force=True)
        gone, freed = _gone(contest, began)
        down_cpu = contest.cpu() - cpu
    api.delete(f"{_DEPLOYMENTS}/{name}")
    return Wave(
        up=up,
        up_cpu=up_cpu,
        down=gone,
        down_cpu=down_cpu,
        freed=freed,
        failures=contest.failures() - failures,
        writes=written,
        late=max(pod.wait for pod in pods),
    )


def ready(pods: list[Seen]) -> int:
    """How many were Ready once and are not gone."""
    return sum(it.ready is not None and it.gone is None for it in pods)


def _gone(contest: Contest, began: float) -> tuple[float, float]:
    """Seconds until no namespace is left, and until no address is held."""
    gone = freed = 0.0
    while not (gone and freed):
        now = time.monotonic() - began
        if now > _WAIT_SECONDS:
            raise TimeoutError(f"{contest.namespaces()} namespaces and {contest.held()} addresses are left")
        # Both are asked until the end whoever's turn it is: to ask costs CPU time too.
        held, left = contest.held(), contest.namespaces()
        if not freed and not held:
            freed = now
        if not gone and not left:
            gone = now
        time.sleep(_LOOK_SECONDS)
    return gone, freed


class Flow(msgspec.Struct):
    """What a stream saw.

    Attributes:
        waits: seconds from creation to Ready, a pod each.
        gap: the longest time in which no pod got Ready, seconds.
        failures: sandboxes that could not be made or removed.
    """

    waits: list[float]
    gap: float
    failures: int

    @property
    def p50(self) -> float:
        """Seconds."""
        return statistics.median(self.waits)

    @property
    def p95(self) -> float:
        """Seconds."""
        return sorted(self.waits)[int(len(self.waits) * 0.95)]


def stream(contest: Contest, seconds: float, *, rate: float = 2.0, meanwhile: Callable[[], None] | None = None) -> Flow:
    """Pods at a steady rate, each deleted when it is Ready, for so long and until `meanwhile` has returned.

    `meanwhile` runs in a thread of its own, after a fifth of the time.
    """
    api, kind = ApiClient(contest.cluster), f"stream-{time.monotonic_ns()}"
    failures = contest.failures()
    worker = threading.Thread(target=meanwhile) if meanwhile is not None else None
    deleted: set[str] = set()
    with PodWatch(contest.cluster, f"{LABEL}={kind}") as watch:
        began = time.monotonic()
        number = 0
        started = worker is None

        def sweep() -> None:
            for seen in watch.pods:
                if seen.ready is not None and seen.name not in deleted:
                    deleted.add(seen.name)
                    api.delete(f"{PODS}/{seen.name}")

        while (now := time.monotonic() - began) < seconds or (worker is not None and worker.is_alive()):
            if worker is not None and not started and now > seconds / 5:
                worker.start()
                started = True
            if now * rate >= number:
                api.create(PODS, contest.pod(f"{kind}-{number}", kind=kind))
                number += 1
            sweep()
            time.sleep(0.02)
        pods = watch.wait(
            lambda pods: len(pods) == number and all(it.ready is not None for it in pods), _WAIT_SECONDS, "all Ready"
        )
        sweep()
        watch.wait(lambda pods: all(it.gone is not None for it in pods), _WAIT_SECONDS, "all gone")
    times = sorted(it.ready for it in pods if it.ready is not None)
    return Flow(
        waits=[it.ready - it.made for it in pods if it.ready is not None],
        gap=max(after - before for before, after in zip([began, *times], times, strict=False)),
        failures=contest.failures() - failures,
    )
