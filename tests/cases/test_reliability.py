"""Area reliability: pods come and go while one part after the other is away."""

from collections.abc import Callable

import pytest

from tests.cases.workloads import ippool, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def survived(world: World, trouble: Callable[[], None]) -> None:
    """Workloads come while there is trouble, and go; what is left agrees, then nothing is left."""
    pools = world.pair(20)
    notes = ippool(**pools)
    world.apply(workload("StatefulSet", "s", notes, replicas=2, podManagementPolicy="Parallel"))
    before = world.running(2)
    world.apply(workload("DaemonSet", "d", notes))
    world.apply(workload("Deployment", "w", notes, replicas=4))
    for name in before:
        world.delete("Pod", name)
    trouble()
    world.lab.wait_ready()
    after = world.running(2 + len(world.lab.nodes) + 4, seconds=60)
    world.settled()
    for name, held in before.items():
        assert after[name].addresses == held.addresses
        assert after[name].uid != held.uid
    for kind, name in (("StatefulSet", "s"), ("DaemonSet", "d"), ("Deployment", "w")):
        world.delete(kind, name)
    for names in pools.values():
        world.wait(lambda names=names: not world.records(names[0]), f"{names[0]} is free")  # type: ignore[misc]


def test_R00001_controllers_restart(world: World) -> None:
    def trouble() -> None:
        for name in world.lab.controllers:
            world.lab.kill(name)
        for name in world.lab.controllers:
            world.lab.start_controller(name)

    survived(world, trouble)


def test_R00002_etcd_restarts(world: World) -> None:
    def trouble() -> None:
        world.control_plane.stop_etcd()
        world.control_plane.start_etcd()
        world.control_plane.api_server.wait_until(
            lambda: world.control_plane.request("GET", "/readyz", check=False).status == 200
        )

    survived(world, trouble)


def test_R00003_api_server_restarts(world: World) -> None:
    def trouble() -> None:
        world.control_plane.stop_apiserver()
        world.control_plane.start_apiserver()

    survived(world, trouble)


def test_R00004_agents_restart(world: World) -> None:
    def trouble() -> None:
        for node in world.lab.nodes:
            world.restart(node)

    survived(world, trouble)


def test_R00006_node_without_power(world: World) -> None:
    pools = world.pair(20)
    world.apply(workload("StatefulSet", "s", ippool(**pools), replicas=2, node="n1"))
    world.apply(workload("Deployment", "w", ippool(**pools), replicas=2, node="n1"))
    before = world.running(4)
    world.kubelets.change("n1", alive=False)
    world.lab.kill("n1")
    world.kubelets.crash("n1")
    world.lab.start_agent("n1")
    world.lab.wait_ready()
    world.kubelets.change("n1", alive=True)

    def rebuilt() -> bool:
        held = world.held()
        return len(held) == len(before) and all(
            held[f"{world.namespace}/{name}"].cid != old.cid for name, old in before.items()
        )

    world.wait(rebuilt, "every pod has a new sandbox")
    world.settled()
    held = world.held()
    for name, old in before.items():
        new = held[f"{world.namespace}/{name}"]
        assert new.uid == old.uid
        if name.startswith("s-"):
            assert new.addresses == old.addresses


def test_R00007_each_controller_goes_in_turn(world: World) -> None:
    pools = world.pair(20)
    for number, name in enumerate(world.lab.controllers):
        world.lab.kill(name)
        try:
            work = f"w{number}"
            world.apply(workload("Deployment", work, ippool(**pools), replicas=3))
            world.running(3, prefix=f"{work}-")
            # Collecting goes on: sandboxes vanish without a DEL, and their pods with them.
            for node in world.kubelets.nodes:
                world.kubelets.change(node, sends_del=False)
            world.delete("Deployment", work)
            for names in pools.values():
                world.wait(lambda names=names: not world.records(names[0]), f"{names[0]} is free")  # type: ignore[misc]
        finally:
            for node in world.kubelets.nodes:
                world.kubelets.change(node, sends_del=True)
            world.lab.start_controller(name)
            world.lab.wait_ready()
