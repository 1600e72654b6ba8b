"""Owners that die or hang under load, pods that are deleted by force, agents that have nothing to do."""

import asyncio
import itertools
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.request import urlopen

from pyroute2 import IPRoute

from bench.figures import cpu_seconds, row, samples, title
from tests.netns import Netns
from tests.processes.fleet import Fleet, Sandbox
from tests.processes.lab import CniError
from tests.servers import ControlPlane

_ROUNDS = 5


def stall() -> None:
    """How long nobody is served, or one call waits, when the owner of both pools dies or hangs."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        control_plane.install_crds()
        with Fleet(control_plane, agents=10, controllers=3) as fleet:
            fleet.create_pools(300)
            asyncio.run(_stall(fleet))


async def _stall(fleet: Fleet) -> None:
    pods = await fleet.sandboxes("busy", 40)
    await asyncio.sleep(2)
    pool = f"{fleet.namespace}-v4"

    def die(name: str) -> Callable[[], None]:
        def back() -> None:
            fleet.start_controller(name)

        fleet.kill(name)
        return back

    def hang(name: str) -> Callable[[], None]:
        fleet.processes[name].send_signal(signal.SIGSTOP)
        return lambda: fleet.processes[name].send_signal(signal.SIGCONT)

    def nothing(name: str) -> Callable[[], None]:  # noqa: ARG001
        return lambda: None

    for words, act in (("nothing happens", nothing), ("the owner is killed", die), ("the owner hangs", hang)):
        title(f"40 pods added and deleted all the time, 4 on each of 10 agents; {words}")
        gaps: list[float] = []
        longest: list[float] = []
        failed = 0
        for _ in range(1 if act is nothing else _ROUNDS):
            owner = await asyncio.to_thread(fleet.owner, pool)
            load = _Load(fleet, pods)
            await load.during(2.0)
            load.mark()
            back = await asyncio.to_thread(act, owner)
            await load.during(3.0)
            gaps.append(load.longest_gap())
            longest.append(load.longest_call())
            failed += load.failed
            await load.end()
            await asyncio.to_thread(back)
            await asyncio.sleep(3)
        row("longest time without an ADD that succeeds, worst", f"{max(gaps):.3f} s", "< 1 s")
        row("the same, of each round", " ".join(f"{gap:.2f}" for gap in gaps))
        row("longest ADD, worst", f"{max(longest):.3f} s", "< 1 s")
        row("failed calls", str(failed))


class _Load:
    """Every pod is added and deleted without pause."""

    def __init__(self, fleet: Fleet, pods: list[Sandbox]) -> None:
        self._fleet = fleet
        self._stopping = False
        self._done: list[tuple[float, float]] = []
        self._under_way: dict[str, float] = {}
        self._marked = 0.0
        self.failed = 0
        self._tasks = [asyncio.create_task(self._run(pod)) for pod in pods]

    async def _run(self, pod: Sandbox) -> None:
        while not self._stopping:
            begun = self._under_way[pod.name] = time.perf_counter()
            try:
                await self._fleet.add(pod)
            except (CniError, OSError, EOFError):
                self.failed += 1
            else:
                self._done.append((begun, time.perf_counter()))
            del self._under_way[pod.name]
            with suppress(CniError, OSError, EOFError):
                await self._fleet.delete(pod)

    async def during(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def mark(self) -> None:
        """Now it happens."""
        self._marked = time.perf_counter()

    def longest_gap(self) -> float:
        ends = sorted(end for _, end in self._done if end > self._marked - 1)
        return max((b - a for a, b in itertools.pairwise([*ends, time.perf_counter()])), default=0.0)

    def longest_call(self) -> float:
        now = time.perf_counter()
        waits = [end - begun for begun, end in self._done if end > self._marked]
        return max([*waits, *(now - begun for begun in self._under_way.values())], default=0.0)

    async def end(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)


def forced() -> None:
    """A pod is deleted by force: when is its address free, once no link carries it any more, and never before."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        control_plane.install_crds()
        with Fleet(control_plane, agents=2, controllers=2) as fleet:
            fleet.create_pools(50)
            asyncio.run(_forced(fleet))


async def _forced(fleet: Fleet) -> None:
    title("pods deleted by force, their sandbox lives on for 3 s, and then its namespace goes without a DEL")
    await asyncio.sleep(8)  # the first reports of the agents
    took: list[float] = []
    early = 0
    for number in range(_ROUNDS):
        [pod] = await fleet.sandboxes(f"forced-{number}", 1)
        namespace = Netns(fleet.folder / "netns", pod.name).__enter__()
        pod.netns = namespace.path
        await fleet.add(pod)

        def carry(addresses: tuple[str, ...] = pod.addresses) -> None:
            with IPRoute() as route:
                route.link("add", ifname="eth0", kind="veth", peer={"ifname": "eth0-peer"})
                [index] = route.link_lookup(ifname="eth0")
                for address in addresses:
                    route.addr("add", index=index, address=address, prefixlen=64 if ":" in address else 16)

        namespace.run(carry)
        path = f"/api/v1/namespaces/{fleet.namespace}/pods/{pod.name}?gracePeriodSeconds=0"
        await asyncio.to_thread(fleet.control_plane.request, "DELETE", path)
        end = time.perf_counter() + 3
        while time.perf_counter() < end:
            early += not set(pod.addresses) <= set(await asyncio.to_thread(fleet.records))
            await asyncio.sleep(0.1)
        namespace.__exit__(None, None, None)
        begun = time.perf_counter()
        while set(pod.addresses) & set(await asyncio.to_thread(fleet.records)):
            if time.perf_counter() - begun > 60:
                break
            await asyncio.sleep(0.01)
        took.append(time.perf_counter() - begun)
    row("from the last link's end to the address free, worst", f"{max(took):.3f} s", "< 1 s")
    row("the same, of each pod", " ".join(f"{seconds:.2f}" for seconds in took))
    row("looks that found it free while a link carried it", str(early), "0")


def idle(*, pods: int) -> None:
    """What an agent costs that has nothing to do, while pods come up on ten others."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        control_plane.install_crds()
        with Fleet(control_plane, agents=11, controllers=2) as fleet:
            fleet.create_pools(pods)
            asyncio.run(_idle(fleet, pods))


async def _idle(fleet: Fleet, count: int) -> None:
    *busy, lazy = fleet.nodes
    made = await fleet.sandboxes("web", count, nodes=busy)
    await asyncio.sleep(10)
    title(f"an idle agent while {count} pods come up elsewhere")
    pid = fleet.processes[lazy].pid
    limits = {node: asyncio.Semaphore(10) for node in busy}

    async def add(pod: Sandbox) -> None:
        async with limits[pod.node]:
            await fleet.start(pod)

    asked, used, begun = _requests(fleet, lazy), cpu_seconds(pid), time.perf_counter()
    await asyncio.gather(*(add(pod) for pod in made))
    seconds, spent = time.perf_counter() - begun, cpu_seconds(pid) - used
    asked = _requests(fleet, lazy) - asked
    used = cpu_seconds(pid)
    await asyncio.sleep(seconds)
    alone = cpu_seconds(pid) - used
    row(f"CPU seconds in the {seconds:.1f} s that it took", f"{spent:.2f}", "<= 0.02 more than without pods")
    row("CPU seconds in as much time without pods", f"{alone:.2f}")
    row("its requests to the API server", f"{asked:.0f}", "0")
    await asyncio.gather(*(fleet.stop(pod) for pod in made))


def _requests(fleet: Fleet, node: str) -> float:
    with urlopen(f"http://127.0.0.1:{fleet.metric_ports[node]}/metrics") as answer:
        text = answer.read().decode()
    return sum(value for _, value in samples(text, "spiderpool_store_requests_total"))
