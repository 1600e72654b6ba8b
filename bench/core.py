"""The core cell: a thousand dual-stack pods through ten agents' sockets, and what else is promised of allocation.

    python -m bench core                  # make bench BENCH=core: everything
    python -m bench core cell --pods 300  # one part: cell, stall, forced, idle, agents, fill, restart, memory

Each part starts its own API server and etcd (which waits for the disk) and prints its figures beside the goals. Nothing
is asserted. Wall-clock figures mean something on a machine that does nothing else; CPU seconds and counts always do.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from bench import core_faults, core_pools
from bench.figures import (
    ApiRequests,
    conflicts,
    cpu_seconds,
    latencies,
    list_requests,
    row,
    title,
    writes,
)
from tests.isolation import isolate
from tests.processes.fleet import Fleet, Sandbox
from tests.processes.lab import CniError
from tests.servers import ControlPlane

PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "cell": lambda options: cell(pods=options.pods, agents=options.agents, controllers=options.controllers),
    "stall": lambda _: core_faults.stall(),
    "forced": lambda _: core_faults.forced(),
    "idle": lambda options: core_faults.idle(pods=options.pods),
    "agents": lambda _: core_pools.hundred_agents(),
    "fill": lambda _: core_pools.fill(),
    "restart": lambda _: core_pools.restart_and_memory(),
}


def main(argv: Sequence[str]) -> int:
    """Run the parts that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="bench core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--controllers", type=int, default=2, help="the chart's default is 2")
    options = parser.parse_args(argv)
    unknown = set(options.part) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not isolate():
        sys.stderr.write("bench core needs root: it makes network namespaces\n")
        return 2
    for name, part in PARTS.items():
        if not options.part or name in options.part:
            part(options)
    return 0


def cell(*, pods: int, agents: int, controllers: int, in_flight: int = 10) -> None:
    """ADD and DEL of all pods, `in_flight` at a time on each agent, pools that fit exactly."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        control_plane.install_crds()
        with Fleet(control_plane, agents=agents, controllers=controllers) as fleet:
            fleet.create_pools(pods)
            asyncio.run(_cell(fleet, pods, in_flight))


async def _cell(fleet: Fleet, count: int, in_flight: int) -> None:
    warm = await fleet.sandboxes("warm", len(fleet.nodes))
    await asyncio.gather(*(fleet.add(pod) for pod in warm))
    await asyncio.gather(*(fleet.delete(pod) for pod in warm))
    await until_empty(fleet)
    pods = await fleet.sandboxes("web", count)
    await asyncio.sleep(1)  # the watches have shown the pods, as they have when a kubelet calls

    title(f"{count} dual-stack ADD, {len(fleet.nodes)} agents x {in_flight}, {len(fleet.controllers)} controllers")
    watch = Watch(fleet)
    begun = time.perf_counter()
    took, failed = await at_once(fleet, pods, fleet.add, in_flight)
    row("all ADDs answered after", f"{time.perf_counter() - begun:.2f} s", "<= 4 s")
    row("pods a second", f"{count / (time.perf_counter() - begun):.0f}")
    latencies("one ADD", took, p99="<= 0.5 s")
    row("failed calls", str(failed), "0")
    watch.show(count)
    told = [address for pod in pods for address in pod.addresses]
    row("addresses, different ones", f"{len(told)}, {len(set(told))}", f"{2 * count}, {2 * count}")

    title(f"the same {count} DEL")
    watch = Watch(fleet)
    begun = time.perf_counter()
    took, failed = await at_once(fleet, pods, fleet.delete, in_flight)
    row("all DELs answered after", f"{time.perf_counter() - begun:.2f} s", "<= 3 s")
    latencies("one DEL", took)
    row("failed calls", str(failed), "0")
    await until_empty(fleet)
    row("no record left after", f"{time.perf_counter() - begun:.2f} s", "<= 3 s")
    while fleet.endpoints():  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    row("no SpiderEndpoint left after", f"{time.perf_counter() - begun:.2f} s")
    watch.show(count)


class Watch:
    """What the work between its making and `show` costs, by whom."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._api = ApiRequests(fleet.control_plane)
        self._before = self._cpu()

    def _cpu(self) -> dict[str, float]:
        found = {name: cpu_seconds(process.pid) for name, process in self._fleet.processes.items()}
        found["API server"] = cpu_seconds(self._fleet.control_plane.api_server.pid)
        found["etcd"] = cpu_seconds(self._fleet.control_plane.etcd.pid)
        found["this driver"] = time.process_time()
        return found

    def show(self, pods: int) -> None:
        """Writes, conflicts and CPU seconds for so many pods."""
        after = self._cpu()
        requests = self._api.since()
        row("API writes a pod", f"{writes(requests) / pods:.2f}", "<= 1.3")
        row("conflicts", str(conflicts(requests)), "0")
        list_requests(requests)
        spent = {name: after[name] - before for name, before in self._before.items()}
        agents = sum(spent.pop(node) for node in self._fleet.nodes)
        controllers = sum(spent.pop(name) for name in self._fleet.controllers)
        parts = {"agents": agents, "controllers": controllers, **spent}
        words = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())
        print(f"  CPU seconds: {words}; in all {sum(parts.values()):.2f}")


async def at_once(
    fleet: Fleet, pods: Sequence[Sandbox], work: Callable[[Sandbox], Awaitable[None]], in_flight: int
) -> tuple[list[float], int]:
    """Seconds of every call that succeeded, and how many failed. A failed one is tried again after a second."""
    limits = {node: asyncio.Semaphore(in_flight) for node in fleet.nodes}
    took: list[float] = []
    failed = 0

    async def one(pod: Sandbox) -> None:
        nonlocal failed
        async with limits[pod.node]:
            while True:
                begun = time.perf_counter()
                try:
                    await work(pod)
                except (CniError, OSError, EOFError):
                    failed += 1
                    await asyncio.sleep(1)
                else:
                    took.append(time.perf_counter() - begun)
                    return

    await asyncio.gather(*(one(pod) for pod in pods))
    return took, failed


async def until_empty(fleet: Fleet) -> None:
    """Until no pool has a record."""
    while await asyncio.to_thread(fleet.records):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.02)
