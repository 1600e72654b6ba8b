"""Area assignip: every kind of workload gets its addresses, of one family or both, and what a full pool means."""

import pytest

from tests.cases.workloads import ippool, ippools, pod, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

FAMILIES = {"v4": ("ipv4",), "v6": ("ipv6",), "dual": ("ipv4", "ipv6")}


def served(world: World, kind: str, *, each: int) -> None:
    """Three workloads, one a family and one of both: every address is in its pool with the uid of its pod."""
    pools = world.pair(20)
    for variant, families in FAMILIES.items():
        notes = ippool(**{family: pools[family] for family in families})
        if kind == "Pod":
            world.apply(pod(variant, notes))
        else:
            world.apply(workload(kind, variant, notes, replicas=each))
    everything = world.running(3 * each)
    records = {address: r for names in pools.values() for name in names for address, r in world.records(name).items()}
    assert len(records) == 4 * each
    for variant, families in FAMILIES.items():
        mine = {name: held for name, held in everything.items() if name.startswith(variant)}
        assert len(mine) == each
        for name, held in mine.items():
            world.assert_from(held, *(pools[family][0] for family in families))
            assert {records[address]["podUid"] for address in held.addresses["eth0"]} == {held.uid}
            endpoint = world.endpoints()[name]["status"]
            assert endpoint["current"]["uid"] == held.uid
            assert endpoint["ownerControllerType"] == kind
            assert endpoint["ownerControllerName"] == variant


def test_E00001_pod(world: World) -> None:
    served(world, "Pod", each=1)


def test_E00002_deployment(world: World) -> None:
    served(world, "Deployment", each=2)


def test_E00003_statefulset(world: World) -> None:
    served(world, "StatefulSet", each=2)


def test_E00004_daemonset(world: World) -> None:
    served(world, "DaemonSet", each=len(world.lab.nodes))


def test_E00005_job(world: World) -> None:
    served(world, "Job", each=2)


def test_E00006_replicaset(world: World) -> None:
    served(world, "ReplicaSet", each=2)


def test_E00007_very_long_pod(world: World) -> None:
    pools = world.pair()
    labels = {f"example.com/label-{number}": "x" * 60 for number in range(500)}
    notes = {**ippool(**pools), **{f"example.com/note-{number}": "y" * 2000 for number in range(80)}}
    world.apply(pod("p", notes, labels=labels))
    world.assert_from(world.pod("p"), *pools["ipv4"], *pools["ipv6"])


def test_E00008_exhausted_pool(world: World) -> None:
    pool = world.pool(4)
    excluded = world.pools[pool][1]
    world.change_pool(pool, excludeIPs=[excluded])
    world.wait(lambda: world.status(pool).get("totalIPCount", 3) == 3, "the exclusion counts")
    world.apply(workload("Deployment", "w", ippool([pool]), replicas=4))
    world.wait(lambda: len(world.held()) == 3, "three of four pods run")
    (waiting,) = world.wait(lambda: [n for n in world.pods() if n not in world.held_names()], "one waits")
    assert pool in world.refusal(waiting)
    world.settled()
    assert set(world.records(pool)) == set(world.pools[pool]) - {excluded}
    # One goes, and the one that waits gets its address.
    world.scale("Deployment", "w", 3)
    world.running(3)


def test_E00009_one_family_of_two_by_ippools(world: World) -> None:
    pools = world.pair()
    for family in ("ipv4", "ipv6"):
        world.apply(pod(family, ippools({"interface": "eth0", family: pools[family]})))
    for family in ("ipv4", "ipv6"):
        world.assert_from(world.pod(family), *pools[family])
