"""Area reclaim: what was given comes back, whatever became of the pod; and not before no link carries it any more."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.cases.conftest import set_ready
from tests.cases.kubelet import EXIT
from tests.cases.workloads import default_network, ippool, pod, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

STILL_SECONDS = 1.5
"""How long it is watched that nothing happens."""


def recorded(world: World, pools: dict[str, list[str]]) -> set[str]:
    """The addresses that pools have records of."""
    return {address for names in pools.values() for name in names for address in world.records(name)}


def free(world: World, pools: dict[str, list[str]]) -> None:
    """Wait until the pools have no record left."""
    world.wait(lambda: not recorded(world, pools), "everything is free")


def stays(world: World, pools: dict[str, list[str]], expected: set[str], *, seconds: float = STILL_SECONDS) -> None:
    """Nothing is freed for a while, though somebody asks for it."""
    world.collect()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert recorded(world, pools) == expected
        time.sleep(0.1)


@contextmanager
def without_plugin(world: World) -> Iterator[None]:
    """The CNI executable is missing on all nodes."""
    for node in world.kubelets.nodes:
        world.kubelets.change(node, plugin=False)
    try:
        yield
    finally:
        for node in world.kubelets.nodes:
            world.kubelets.change(node, plugin=True)


def test_G00001_namespace_deleted(world: World) -> None:
    pools = world.pair(8)
    namespace = world.create_namespace("goes")
    brief = {"terminationGracePeriodSeconds": 1}
    for manifest in (
        workload("Deployment", "d", ippool(**pools), replicas=2, template=brief),
        workload("StatefulSet", "s", ippool(**pools), replicas=2, template=brief, podManagementPolicy="Parallel"),
    ):
        manifest["metadata"]["namespace"] = namespace
        world.apply(manifest)
    world.running(4, namespace=namespace)
    world.request("DELETE", f"/api/v1/namespaces/{namespace}")
    free(world, pools)
    there = f"/api/v1/namespaces/{namespace}"
    world.wait(lambda: world.control_plane.request("GET", there, check=False).status == 404, "the namespace is gone")
    world.namespaces.remove(namespace)


def test_G00001_namespace_gone_before_its_records(world: World) -> None:
    pools = world.pair()
    world.apply(pod("p", ippool(**pools)))
    world.pod("p")
    # Of a namespace that is not there any more, with nobody to release anything.
    number = world.inject(pools["ipv4"][0], "gone-long-ago/p", "00000000-0000-4000-8000-000000000001")
    world.collect()
    world.wait(lambda: number not in world.records(pools["ipv4"][0]), "the record is given up")


def test_G00002_pods_of_one_name_in_two_namespaces(world: World) -> None:
    pools = world.pair()
    other = world.create_namespace("other")
    for namespace in (world.namespace, other):
        manifest = pod("same", ippool(**pools))
        manifest["metadata"]["namespace"] = namespace
        world.apply(manifest)
    stays_there = world.pod("same", namespace=other)
    world.pod("same")
    world.delete("Pod", "same")
    world.gone("same")
    world.wait(lambda: recorded(world, pools) == set(stays_there.addresses["eth0"]), "only the other one's are left")
    assert "same" in world.endpoints(other)
    assert world.held()[f"{other}/same"] == stays_there


def test_G00003_deleted_while_the_plugin_is_missing(world: World) -> None:
    pools = world.pair(20)
    notes = ippool(**pools)
    world.apply(pod("bare", notes))
    owners = {"Deployment": 2, "StatefulSet": 2, "DaemonSet": len(world.lab.nodes), "ReplicaSet": 2, "Job": 2}
    for kind, number in owners.items():
        world.apply(workload(kind, kind.lower(), notes, replicas=number))
    world.running(1 + sum(owners.values()))
    everything = recorded(world, pools)
    assert len(everything) == 2 * (1 + sum(owners.values()))
    with without_plugin(world):
        world.delete("Pod", "bare")
        for kind in owners:
            world.delete(kind, kind.lower())
        world.wait(lambda: not world.pods(), "all pods are terminating")
        # Namespaces and links are still there: nobody else may have the addresses.
        stays(world, pools, everything)
        for node in world.kubelets.nodes:
            world.kubelets.crash(node)
        free(world, pools)
        world.wait(lambda: not world.endpoints(), "the endpoints go too")


def test_G00004_deleted_by_force(world: World) -> None:
    pools = world.pair()
    world.apply(pod("p", ippool(**pools)))
    held = world.pod("p")
    with without_plugin(world):
        world.delete("Pod", "p", grace=0)
        world.wait(lambda: not world.pods(), "the object is gone at once")
        # Its sandbox is not.
        stays(world, pools, set(held.addresses["eth0"]))
    free(world, pools)


def test_G00005_record_of_no_pod(world: World) -> None:
    pools = world.pair()
    world.apply(pod("p", ippool(**pools)))
    held = world.pod("p")
    for names in pools.values():
        world.inject(names[0], f"{world.namespace}/nobody", "00000000-0000-4000-8000-000000000002")
    world.collect()
    world.wait(lambda: recorded(world, pools) == set(held.addresses["eth0"]), "the dirty records are given up")
    world.settled()


def test_G00006_finished_job(world: World) -> None:
    pools = world.pair(10)
    for name, code in (("good", "0"), ("bad", "1")):
        world.apply(workload("Job", name, {**ippool(**pools), EXIT: code}, replicas=2))

    def ended() -> bool:
        phases = [item["status"]["phase"] for item in world.objects("Pod")]
        return len(phases) >= 3 and set(phases) <= {"Succeeded", "Failed"}

    world.wait(ended, "all have ended")
    free(world, pools)
    assert world.objects("Pod"), "the pods themselves are still there"
    world.wait(lambda: not world.endpoints(), "the endpoints go too")


def test_G00007_record_of_another_uid(world: World) -> None:
    pools = world.pair()
    world.apply(pod("p", ippool(**pools)))
    held = world.pod("p")
    for names in pools.values():
        world.inject(names[0], f"{world.namespace}/p", "00000000-0000-4000-8000-000000000003")
    world.collect()
    world.wait(lambda: recorded(world, pools) == set(held.addresses["eth0"]), "the dirty records are given up")
    world.settled()


def test_G00008_programs_restart_again_and_again(world: World) -> None:
    pools = world.pair(20)
    world.apply(workload("Deployment", "w", ippool(**pools), replicas=4))
    world.running(4)
    for step, program in enumerate((*world.lab.controllers, *world.lab.nodes)):
        world.restart(program)
        world.change("Deployment", "w", {"spec": {"template": {"metadata": {"labels": {"step": str(step)}}}}})
        world.scale("Deployment", "w", 3 + step % 2)
    world.lab.wait_ready()
    world.running(3)
    world.settled()
    world.delete("Deployment", "w")
    free(world, pools)


def test_G00009_pod_on_a_node_that_is_not_ready(world: World) -> None:
    pools = world.pair()
    brief = {"terminationGracePeriodSeconds": 1}
    world.apply(workload("Deployment", "w", ippool(**pools), node="n3", template=brief))
    (name,) = world.running(1)
    addresses = recorded(world, pools)
    world.kubelets.change("n3", alive=False)
    set_ready(world.control_plane, "n3", ready=False)
    try:
        world.scale("Deployment", "w", 0)
        world.wait(lambda: not world.pods(), "it is terminating")
        # The agent speaks, and its kernel carries the addresses.
        stays(world, pools, addresses, seconds=4)
        world.lab.kill("n3")
        free(world, pools)
    finally:
        world.lab.start_agent("n3")
        world.lab.wait_ready()
        set_ready(world.control_plane, "n3", ready=True)
        world.kubelets.change("n3", alive=True)
    world.gone(name)


def test_G00010_statefulset_that_stops_using_us(world: World) -> None:
    pools = world.pair()
    world.apply(workload("StatefulSet", "s", ippool(**pools), replicas=2))
    before = world.running(2)
    notes = {"ipam.spidernet.io/ippool": None, **default_network(world.network("overlay", ours=False))}
    world.change("StatefulSet", "s", {"spec": {"template": {"metadata": {"annotations": notes}}}})
    world.replaced(before)
    for held in world.running(2).values():
        assert not held.addresses
    world.collect()
    free(world, pools)
    world.wait(lambda: not world.endpoints(), "the endpoints go too")


def test_G00011_two_statefulsets_share_five_addresses(world: World) -> None:
    pool = world.pool(5)
    for name, replicas in (("one", 5), ("two", 0)):
        world.apply(workload("StatefulSet", name, ippool([pool]), replicas=replicas, podManagementPolicy="Parallel"))
    world.running(5, prefix="one-")
    world.scale("StatefulSet", "one", 0)
    world.scale("StatefulSet", "two", 5)
    world.wait(lambda: any(name.startswith("two-") for name in world.held_names()), "the second one begins")
    world.scale("StatefulSet", "one", 5)
    world.wait(lambda: len(world.held()) == 5, "five of ten run")
    for _ in range(3):
        world.collect()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            addresses = [ip for held in world.held().values() for ip in held.addresses["eth0"]]
            assert len(addresses) == len(set(addresses)) == 5
            assert set(addresses) == set(world.pools[pool])
            time.sleep(0.1)
    world.settled()


SEED = 12
_MOST = 3
"""Pods of a workload, and addresses of its pool; a DaemonSet has one a node."""
KINDS = ("StatefulSet", "StatefulSet", "Deployment", "Deployment", "ReplicaSet", "DaemonSet")


def test_G00012_chaos(world: World) -> None:
    """Six workloads, each on a pool of its own that is just big enough, in random trouble. No Kruise here."""
    dice = random.Random(SEED)
    names = [f"w{number}" for number in range(len(KINDS))]
    notes = {name: ippool(**world.pair(_MOST)) for name in names}
    for name, kind in zip(names, KINDS, strict=True):
        world.apply(workload(kind, name, notes[name], replicas=dice.randint(1, _MOST)))
    for _ in range(3):
        for _ in range(6):
            number = dice.randrange(len(names))
            _disturb(world, dice, names[number], KINDS[number], notes[names[number]])
            time.sleep(dice.uniform(0, 0.3))
        world.lab.wait_ready()
        world.collect()
        world.wait(lambda: _complete(world, names), "every workload has all its pods")
        world.settled()


def _disturb(world: World, dice: random.Random, name: str, kind: str, notes: dict[str, str]) -> None:
    match dice.choice(("scale", "scale", "pods", "pods", "recreate", "roll", "controller", "agent")):
        case "scale" if kind != "DaemonSet":
            world.scale(kind, name, dice.randint(0, _MOST))
        case "pods" | "scale":
            for victim in dice.sample(world.pods(f"{name}-"), k=min(2, len(world.pods(f"{name}-")))):
                world.delete("Pod", victim, grace=dice.choice((None, 0)))
        case "recreate":
            world.delete(kind, name)
            world.apply(workload(kind, name, notes, replicas=dice.randint(1, _MOST)))
        case "roll" if kind != "ReplicaSet":
            changed = {"labels": {"roll": str(dice.random())}}
            world.change(kind, name, {"spec": {"template": {"metadata": changed}}})
        case "controller":
            world.restart(dice.choice(world.lab.controllers))
        case _:
            world.restart(dice.choice(world.lab.nodes))


def _complete(world: World, names: Sequence[str]) -> bool:
    held = world.held_names()
    wanted = 0
    for name, kind in zip(names, KINDS, strict=True):
        items = [item for item in world.objects(kind) if item["metadata"]["name"] == name]
        if not items:
            return False
        wanted += len(world.lab.nodes) if kind == "DaemonSet" else items[0]["spec"]["replicas"]
    return len(held) == wanted == len(world.pods())
