"""Area affinity: which pools serve a pod, by its node, its namespace and itself."""

import pytest

from tests.cases.workloads import ippool, pod, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def label_node(world: World, node: str, **labels: str | None) -> None:
    """Set labels, or remove them."""
    world.request("PATCH", f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})


def test_L00001_matched_node_affinity(world: World) -> None:
    label_node(world, "n1", l00001="here")
    pool = world.pool(nodeAffinity={"matchLabels": {"l00001": "here"}})
    world.apply(pod("p", ippool([pool]), node="n1"))
    held = world.pod("p")
    world.assert_from(held, pool)
    assert [(r["pod"], r["podUid"]) for r in world.records(pool).values()] == [(f"{world.namespace}/p", held.uid)]
    label_node(world, "n1", l00001=None)


def test_L00002_unmatched_node_affinity(world: World) -> None:
    pool = world.pool(nodeAffinity={"matchLabels": {"l00002": "here"}})
    world.apply(pod("p", ippool([pool]), node="n1"))
    said = world.refusal("p", match="nodeAffinity")
    assert pool in said
    assert not world.records(pool)


def test_L00003_matched_namespace_affinity(world: World) -> None:
    pool = world.pool(namespaceAffinity={"matchLabels": {"team": "l00003"}})
    namespace = world.create_namespace("team", labels={"team": "l00003"})
    manifest = pod("p", ippool([pool]))
    manifest["metadata"]["namespace"] = namespace
    world.apply(manifest)
    world.assert_from(world.pod("p", namespace=namespace), pool)


def test_L00004_unmatched_namespace_affinity(world: World) -> None:
    pool = world.pool(namespaceAffinity={"matchLabels": {"team": "l00004"}})
    world.apply(pod("p", ippool([pool])))
    assert pool in world.refusal("p", match="namespaceAffinity")
    assert not world.records(pool)


def test_L00005_matched_pod_affinity(world: World) -> None:
    pool = world.pool(podAffinity={"matchLabels": {"app": "l00005"}})
    world.apply(pod("p", ippool([pool]), labels={"app": "l00005"}))
    world.assert_from(world.pod("p"), pool)


def test_L00006_unmatched_pod_affinity(world: World) -> None:
    pool = world.pool(podAffinity={"matchLabels": {"app": "l00006"}})
    world.apply(pod("p", ippool([pool]), labels={"app": "other"}))
    assert pool in world.refusal("p", match="podAffinity")
    assert not world.records(pool)


def test_L00007_cross_zone_daemonset(world: World) -> None:
    zones = {"n1": "l00007-a", "n2": "l00007-b", "n3": "l00007-b"}
    for node, zone in zones.items():
        label_node(world, node, l00007=zone)
    pools = {zone: world.pool(nodeAffinity={"matchLabels": {"l00007": zone}}) for zone in set(zones.values())}
    world.apply(workload("DaemonSet", "d", ippool(list(pools.values()))))
    for held in world.running(3).values():
        world.assert_from(held, pools[zones[held.node]])
    for node in zones:
        label_node(world, node, l00007=None)


def test_L00009_pool_shared_by_namespaces(world: World) -> None:
    pool = world.pool(8, namespaceAffinity={"matchLabels": {"team": "l00009"}})
    for suffix in ("a", "b"):
        namespace = world.create_namespace(suffix, labels={"team": "l00009"}, pools={4: [pool]})
        manifest = workload("Deployment", "web", replicas=2)
        manifest["metadata"]["namespace"] = namespace
        world.apply(manifest)
    for namespace in world.namespaces[1:]:
        for held in world.running(2, namespace=namespace).values():
            world.assert_from(held, pool)
    assert len(world.records(pool)) == 4


def test_L00008_statefulset_restarts_and_changes_its_pool(world: World) -> None:
    first, second = world.pool(), world.pool()
    world.apply(workload("StatefulSet", "s", ippool([first]), replicas=2))
    before = world.running(2)
    for name in before:
        world.delete("Pod", name)
    world.replaced(before)
    after = world.running(2)
    for name, held in after.items():
        assert held.uid != before[name].uid
        assert held.addresses == before[name].addresses
        assert world.endpoints()[name]["status"]["current"]["uid"] == held.uid
    world.settled()

    world.change("StatefulSet", "s", {"spec": {"template": {"metadata": {"annotations": ippool([second])}}}})
    world.replaced(after)
    for name, held in world.running(2).items():
        world.assert_from(held, second)
        assert world.endpoints()[name]["status"]["current"]["uid"] == held.uid
    world.wait(lambda: not world.records(first), "the first pool's addresses are free")
    world.settled()

    world.delete("StatefulSet", "s")
    world.gone("s-0", "s-1")
    world.wait(lambda: not world.records(second), "the second pool's addresses are free")
    world.wait(lambda: not world.endpoints(), "the endpoints go with the StatefulSet")
