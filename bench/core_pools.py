"""One controller on its own: a hundred agents on one pool, a big pool that fills, its restart, its memory.

The agents of the first two are coroutines that speak to a controller in this process: what is measured is one owner,
the store behind it and the API server, not a hundred Python processes on two cores.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from msgspec import structs

from actors.controller import Controller
from api import wire
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from bench.figures import ApiRequests, conflicts, cpu_seconds, etcd_bytes, latencies, resident, row, title, writes
from ipam.ledger import Ledger
from ipam.operations import Claim
from ipam.ranges import Ranges
from runtime.actor import System
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.transport.local import LocalChannel
from runtime.transport.port import Peer
from tests.processes.fleet import Fleet, Sandbox
from tests.processes.lab import CniError
from tests.servers import ControlPlane

_AGENTS = 100
_BIG = 5000
_BIG_POOLS = 10
_SECONDS = 60.0


@asynccontextmanager
async def _controller(control_plane: ControlPlane) -> AsyncIterator[Controller]:
    """A controller in this process that has seen the cluster, with the rights of an administrator."""
    store = KubernetesStore(from_kubeconfig(control_plane.admin_kubeconfig))
    settings = ControllerSettings(pod_namespace="bench", pod_name="controller-0")
    controller = Controller(System.real(), store, settings=settings, path="controller")
    async with anyio.create_task_group() as group:
        group.start_soon(controller.supervisor.run)
        await controller.cluster.synced()
        yield controller
        await controller.supervisor.stop()
        group.cancel_scope.cancel()
    await store.aclose()


def _crowd(control_plane: ControlPlane) -> Fleet:
    """Only what makes pods: no process is started."""
    control_plane.install_crds()
    return Fleet(control_plane, agents=_AGENTS, controllers=1)


async def _allocate(controller: Controller, fleet: Fleet, pods: Sequence[Sandbox], pool: str) -> list[float]:
    """Every agent asks for its pods one after another; seconds of each ADD."""
    took: list[float] = []
    loop = asyncio.get_running_loop()

    async def agent(node: str) -> None:
        channel = LocalChannel(controller.serve, Peer(account="agent", node=node, role="agent"))
        for number, pod in enumerate([pod for pod in pods if pod.node == node]):
            request = wire.Allocate(
                pod=wire.PodRef(namespace=fleet.namespace, name=pod.name, uid=pod.uid),
                nic="eth0",
                container_id=f"{number:064x}",
                default_ipv4=(pool,),
            )
            begun = time.perf_counter()
            answer = wire.decode_response(await channel.request(wire.encode(request), deadline=loop.time() + _SECONDS))
            if not isinstance(answer, wire.Allocated):
                raise RuntimeError(str(answer))  # noqa: TRY004 - nobody called it wrongly
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(agent(node) for node in fleet.nodes))
    return took


def hundred_agents() -> None:
    """A hundred agents on one pool of a thousand addresses, one ADD at a time each."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        fleet = _crowd(control_plane)
        pool = f"{fleet.namespace}-one"
        _make_pool(control_plane, pool, 1000)
        asyncio.run(_hundred(control_plane, fleet, pool))


async def _hundred(control_plane: ControlPlane, fleet: Fleet, pool: str) -> None:
    pods = await fleet.sandboxes("web", 1000, pools={"ipv4": [pool]})
    async with _controller(control_plane) as controller:
        title("100 agents in one process on one pool of 1000 addresses, IPv4, SpiderEndpoint written before the answer")
        api, cpu = ApiRequests(control_plane), _cpu(control_plane)
        begun = time.perf_counter()
        took = await _allocate(controller, fleet, pods, pool)
        seconds = time.perf_counter() - begun
        requests = api.since()
        row("pods a second", f"{len(took) / seconds:.0f}", ">= 400")
        latencies("one ADD", took)
        row("API writes a pod", f"{writes(requests) / len(took):.2f}")
        row("conflicts", str(conflicts(requests)), "0")
        _show_cpu(control_plane, cpu)


def fill() -> None:
    """Fill a pool of 5,000 addresses: what etcd has to write for it."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        fleet = _crowd(control_plane)
        pool = f"{fleet.namespace}-big"
        _make_pool(control_plane, pool, _BIG)
        asyncio.run(_fill(control_plane, fleet, pool))


async def _fill(control_plane: ControlPlane, fleet: Fleet, pool: str) -> None:
    pods = await fleet.sandboxes("web", _BIG, pools={"ipv4": [pool]})
    async with _controller(control_plane) as controller:
        title(f"100 agents fill a pool of {_BIG} addresses")
        before, begun = etcd_bytes(control_plane), time.perf_counter()
        api = ApiRequests(control_plane)
        await _allocate(controller, fleet, pods, pool)
        requests = api.since()
        written = etcd_bytes(control_plane) - before
        endpoints = sum(n for (resource, _, _), n in requests.items() if resource == "spiderendpoints")
        row("written to etcd's log", f"{written / 1e6:.1f} MB", "<= 100 MB")
        row("seconds", f"{time.perf_counter() - begun:.1f} s")
        pools = sum(n for (resource, _, _), n in requests.items() if resource == "spiderippools/status")
        row("pool writes, endpoint writes", f"{pools}, {endpoints}")


def restart_and_memory() -> None:
    """Controllers and agents as processes, ten pools of 5,000 records."""
    with ControlPlane(durable=True, progress=print) as control_plane:
        control_plane.install_crds()
        with Fleet(control_plane, agents=1, controllers=1) as fleet:
            pools = [f"{fleet.namespace}-p{number}" for number in range(_BIG_POOLS)]
            for number, pool in enumerate(pools):
                _make_pool(control_plane, pool, _BIG + 100, network=20 + number)
                _occupy(control_plane, pool, _BIG - 100)  # the default of SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS is 5,000
            asyncio.run(_restart(fleet, pools))
    _size()


async def _restart(fleet: Fleet, pools: Sequence[str]) -> None:
    [controller], [node] = fleet.controllers, fleet.nodes
    pods = [(await fleet.sandboxes(f"on-{n}", 10, pools={"ipv4": [pool]})) for n, pool in enumerate(pools)]
    await asyncio.sleep(1)
    for batch in pods:
        await fleet.add(batch[0])
    title(f"memory, with {_BIG_POOLS} pools of {_BIG} records")
    row("controller", f"{resident(fleet.processes[controller].pid):.0f} MiB", "<= 150 MiB")
    row("agent", f"{resident(fleet.processes[node].pid):.0f} MiB", "<= 90 MiB")
    title(f"a controller that owns {_BIG_POOLS} pools of {_BIG} records is killed and started again")
    took: list[float] = []
    serving: list[float] = []
    for number in range(1, 4):
        await asyncio.to_thread(fleet.kill, controller)
        begun = time.perf_counter()
        await asyncio.to_thread(fleet.start_controller, controller)
        while "connected to" not in _since_start(fleet, node, number):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)
        serving.append(time.perf_counter() - begun)
        asked = time.perf_counter()
        for batch in pods:
            await _once(fleet, batch[number])
            took.append(time.perf_counter() - asked)
            asked = time.perf_counter()
    firsts = took[:: len(pods)]
    row("process start to the agent connected, worst", f"{max(serving):.2f} s")
    row("then to its first answer, worst", f"{max(firsts):.3f} s", "<= 1 s")
    row("first answers of the other pools, worst", f"{max(took):.3f} s", "<= 1 s")
    row("controller afterwards", f"{resident(fleet.processes[controller].pid):.0f} MiB", "<= 150 MiB")


def _since_start(fleet: Fleet, node: str, number: int) -> str:
    """The agent's log after its `number`-th loss of the controller."""
    log = fleet.processes[node].log.read_text()
    parts = log.split("the other side closed the connection")
    return parts[-1] if len(parts) > number else ""


async def _once(fleet: Fleet, pod: Sandbox) -> None:
    try:
        await fleet.add(pod)
    except CniError as error:
        print(f"  an ADD failed: {error}")


def _make_pool(control_plane: ControlPlane, name: str, size: int, *, network: int = 20) -> None:
    first = (10 << 24) + (network << 16) + 16
    last = first + size - 1
    text = [".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)) for number in (first, last)]
    spec = {"ipVersion": 4, "subnet": f"10.{network}.0.0/16", "ips": ["-".join(text)], "gateway": f"10.{network}.0.1"}
    body = {"apiVersion": IPPOOL.api_version, "kind": IPPOOL.kind, "metadata": {"name": name}, "spec": spec}
    control_plane.request("POST", IPPOOL.path(), body)


def _occupy(control_plane: ControlPlane, name: str, count: int, *, stem: str = "shop/web") -> int:
    """Fill a pool's status with records of pods that are not there; returns the size of the object in bytes."""
    found = control_plane.request("GET", IPPOOL.path("", name)).body
    table = _table(IPPoolSpec(subnet=found["spec"]["subnet"], ips=found["spec"]["ips"]), count, stem)
    status = {"allocatedIPs": table.status.allocated_ips, "allocatedIPCount": count}
    path = IPPOOL.path("", name, "status")
    return len(json.dumps(control_plane.request("PATCH", path, {"status": status}).body))


def _table(spec: IPPoolSpec, count: int, stem: str) -> SpiderIPPool:
    pool = SpiderIPPool(metadata=ObjectMeta(name="bench"), spec=spec)
    ledger = Ledger(pool, Ranges(4), max_records=1_000_000)
    ledger.apply(
        [
            Claim(
                pod=f"{stem}-{at}",
                uid=f"{at:08x}-1111-2222-3333-444455556666",
                nic="eth0",
                node="worker-with-a-name-0001.example.org",
                cid=f"{at:012x}",
            )
            for at in range(count)
        ]
    )
    return structs.replace(pool, status=ledger.status())


def _size() -> None:
    title(f"the object of a pool with {_BIG} records of long names (namespace 30, pod 60, node 35 characters)")
    spec = IPPoolSpec(subnet="10.20.0.0/16", ips=["10.20.0.16-10.20.100.255"])
    table = _table(spec, _BIG, f"{'n' * 30}/{'p' * 55}")
    encoded = len(json.dumps({"allocatedIPs": table.status.allocated_ips}))
    row("encoded status", f"{encoded / 1e6:.2f} MB", "< 1.2 MB")


def _cpu(control_plane: ControlPlane) -> dict[str, float]:
    return {
        "API server": cpu_seconds(control_plane.api_server.pid),
        "etcd": cpu_seconds(control_plane.etcd.pid),
        "controller and agents": time.process_time(),
    }


def _show_cpu(control_plane: ControlPlane, before: dict[str, float]) -> None:
    after = _cpu(control_plane)
    print("  CPU seconds: " + ", ".join(f"{name} {after[name] - spent:.2f}" for name, spent in before.items()))
