"""Area annotation: what pods and namespaces ask for, in which order it counts, and what is no request at all."""

import json

import pytest

from tests.cases.workloads import default_network, ippool, ippools, networks, pod, routes, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def test_A00002_routes_annotation(world: World) -> None:
    pools = [world.pool(lan=0), world.pool(lan=1)]
    gateway = str(world.subnet(4, 1).network_address + 2)
    notes = {
        **ippools({"interface": "eth0", "ipv4": pools[:1]}, {"interface": "net1", "ipv4": pools[1:]}),
        **routes(("192.0.2.0/24", gateway)),
        **networks(world.network("second")),
    }
    world.apply(pod("p", notes))
    held = world.pod("p")
    told = {nic: [(r["dst"], r.get("gw")) for r in result["routes"]] for nic, result in held.results.items()}
    assert ("192.0.2.0/24", gateway) in told["net1"]
    assert ("192.0.2.0/24", gateway) not in told["eth0"]


def test_A00003_invalid_annotations(world: World) -> None:
    v4, v6 = world.pool(), world.pool(version=6)
    key, several, further = (f"ipam.spidernet.io/{name}" for name in ("ippool", "ippools", "routes"))
    wrong = {
        "unknown": (ippool(["no-such-pool"]), "no-such-pool"),
        "unknown-of-several": (ippool([v4, "no-such-pool"]), "no-such-pool"),
        "no-json": ({key: "{"}, key),
        "list": ({key: json.dumps([v4])}, key),
        "text": ({key: json.dumps({"ipv4": v4})}, key),
        "number": ({key: json.dumps({"ipv4": [4]})}, key),
        "family": (ippool([v6]), "ipVersion"),
        "twice": (ippool([v4, v4]), v4),
        "empty": (ippool(), key),
        "several-empty": (ippools(), several),
        "several-no-list": ({several: json.dumps({"ipv4": [v4]})}, several),
        "several-half-named": (ippools({"interface": "eth0", "ipv4": [v4]}, {"ipv6": [v6]}), several),
        "several-unknown": (ippools({"interface": "eth0", "ipv4": ["no-such-pool"]}), "no-such-pool"),
        "routes-no-cidr": ({**ippool([v4]), **routes(("192.0.2.0", world.gateway()))}, further),
        "routes-family": ({**ippool([v4]), **routes(("192.0.2.0/24", world.gateway(6)))}, further),
    }
    for name, (notes, _) in wrong.items():
        world.apply(pod(name, notes))
    for name, (_, named) in wrong.items():
        world.refusal(name, match=named)
    assert not world.records(v4)
    assert not world.records(v6)


def test_A00004_pod_before_namespace_before_plugin_configuration(world: World) -> None:
    of_pod, of_namespace, of_network = world.pool(), world.pool(), world.pool()
    network = default_network(world.network("conf", ipv4=[of_network]))
    world.annotate_namespace(world.namespace, default_ipv4_ippool=json.dumps([of_namespace]))
    world.apply(pod("annotated", {**network, **ippool([of_pod])}))
    world.assert_from(world.pod("annotated"), of_pod)
    world.apply(pod("plain", network))
    world.assert_from(world.pod("plain"), of_namespace)
    world.annotate_namespace(world.namespace, default_ipv4_ippool=None)
    # The replicas see the namespace by a watch.
    world.later(lambda name: pod(name, network), of_network)


def test_A00005_ippools_before_ippool(world: World) -> None:
    single, several = world.pool(), world.pool()
    world.apply(pod("p", {**ippool([single]), **ippools({"interface": "eth0", "ipv4": [several]})}))
    world.assert_from(world.pod("p"), several)


def test_A00006_namespace_before_cluster_default(world: World) -> None:
    of_cluster, of_namespace = world.pool(default=True), world.pool()
    world.apply(pod("plain"))
    world.assert_from(world.pod("plain"), of_cluster)
    other = world.create_namespace("own", pools={4: [of_namespace]})
    manifest = pod("p")
    manifest["metadata"]["namespace"] = other
    world.apply(manifest)
    world.assert_from(world.pod("p", namespace=other), of_namespace)


def test_A00007_wildcards_in_namespace_annotation(world: World) -> None:
    first, _ = world.pool(1, suffix="floor-1a"), world.pool(suffix="cellar-1a")
    second = world.pool(1, suffix="floor-2a")
    patterns = [f"{world.name}-floor-?a*"]
    namespace = world.create_namespace("wild", pools={4: patterns})
    for name in ("a", "b"):
        manifest = pod(name)
        manifest["metadata"]["namespace"] = namespace
        world.apply(manifest)
    addresses = {world.pod(name, namespace=namespace).addresses["eth0"][0] for name in ("a", "b")}
    assert addresses == {world.pools[first][0], world.pools[second][0]}


def test_A00008_annotated_pod_of_many_containers(world: World) -> None:
    pools = world.pair()
    second = world.pool(lan=1)
    containers = [{"name": f"c{n}", "image": "none", "env": [{"name": "X", "value": "y" * 2000}]} for n in range(12)]
    notes = {
        **ippools({"interface": "eth0", **pools}, {"interface": "net1", "ipv4": [second]}),
        **networks(world.network("second")),
        "example.com/long": "z" * 100_000,
    }
    world.apply(pod("p", notes, containers=containers))
    held = world.pod("p")
    world.assert_from(held, *pools["ipv4"], *pools["ipv6"])
    world.assert_from(held, second, nic="net1")


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_A00009_change_of_the_pool(world: World, kind: str) -> None:
    first, second = world.pair(), world.pair()
    world.apply(workload(kind, "w", ippool(**first), replicas=2))
    before = world.running(2)
    for held in before.values():
        world.assert_from(held, *first["ipv4"], *first["ipv6"])
    world.change(kind, "w", {"spec": {"template": {"metadata": {"annotations": ippool(**second)}}}})
    world.replaced(before)
    for held in world.running(2).values():
        world.assert_from(held, *second["ipv4"], *second["ipv6"])
    for pool in (*first["ipv4"], *first["ipv6"]):
        world.wait(lambda pool=pool: not world.records(pool), f"{pool} is free")  # type: ignore[misc]


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
def test_A00010_several_nics(world: World, named: bool) -> None:
    pools = [world.pair(lan=0), world.pair(lan=1)]
    nics = [{"interface": nic, **pair} if named else pair for nic, pair in zip(("eth0", "net1"), pools, strict=True)]
    world.apply(workload("Deployment", "w", {**ippools(*nics), **networks(world.network("second"))}, replicas=2))
    for name, held in world.running(2).items():
        for nic, pair in zip(("eth0", "net1"), pools, strict=True):
            world.assert_from(held, *pair["ipv4"], *pair["ipv6"], nic=nic)
        details = world.endpoints()[name]["status"]["current"]["ips"]
        assert [detail["interface"] for detail in details] == ["eth0", "net1"]
        assert {r["nic"] for p in pools[1]["ipv4"] for r in world.records(p).values()} == {"net1"}


def test_A00011_default_route_of_the_pool(world: World) -> None:
    gateway = world.gateway()
    pool = world.pool(routes=[{"dst": "198.51.100.0/24", "gw": gateway}])
    for name, clean in (("with", False), ("without", True)):
        world.apply(pod(name, ippools({"interface": "eth0", "ipv4": [pool], "cleangateway": clean})))
    told = {
        name: {(r["dst"], r.get("gw")) for r in world.pod(name).results["eth0"]["routes"]}
        for name in ("with", "without")
    }
    assert told["with"] == {("0.0.0.0/0", gateway), ("198.51.100.0/24", gateway)}
    assert told["without"] == {("198.51.100.0/24", gateway)}


def test_A00013_ippools_without_the_first_nic(world: World) -> None:
    pool = world.pool()
    notes = {**ippools({"interface": "net1", "ipv4": [pool]}), **networks(world.network("second"))}
    world.apply(pod("p", notes))
    assert "eth0" in world.refusal("p", match="ipam.spidernet.io/ippools")
    assert not world.records(pool)


def test_A00014_the_same_nic_twice(world: World) -> None:
    pools = [world.pool(lan=0), world.pool(lan=1)]
    world.apply(pod("p", ippools(*({"interface": "eth0", "ipv4": [pool]} for pool in pools))))
    assert "eth0" in world.refusal("p", match="ipam.spidernet.io/ippools")
    assert not any(world.records(pool) for pool in pools)


def test_A00015_wildcards_in_ippools(world: World) -> None:
    wanted, _ = world.pool(suffix="blue-1"), world.pool(suffix="red-1")
    world.apply(pod("p", ippools({"interface": "eth0", "ipv4": [f"{world.name}-blue*"]})))
    world.assert_from(world.pod("p"), wanted)
    world.apply(pod("none", ippools({"interface": "eth0", "ipv4": [f"{world.name}-green*"]})))
    world.refusal("none")


def test_A00016_an_empty_pool_of_one_nic_does_not_drain_the_other(world: World) -> None:
    many, one = world.pool(3, lan=0), world.pool(1, lan=1)
    notes = {
        **ippools({"interface": "eth0", "ipv4": [many]}, {"interface": "net1", "ipv4": [one]}),
        **networks(world.network("second")),
    }
    world.apply(workload("Deployment", "w", notes, replicas=2))
    world.wait(lambda: len(world.held()) == 1, "one of two pods runs")
    waiting = world.wait(lambda: [n for n in world.pods() if n not in world.held_names()], "the other one waits")
    tried = len(world.kubelets.failures.get(f"{world.namespace}/{waiting[0]}", ()))
    while len(world.kubelets.failures.get(f"{world.namespace}/{waiting[0]}", ())) < tried + 3:
        # Whoever is given an address here is given it for the moment of one ADD.
        assert len(world.records(many)) <= 2
    assert "net1" in world.refusal(waiting[0]) or one in world.refusal(waiting[0])
    world.settled()
    assert len(world.records(many)) == len(world.records(one)) == 1


def test_A00017_statefulset_with_a_network_whose_pool_changes(world: World) -> None:
    stays, first, second = world.pool(lan=0), world.pool(lan=1), world.pool(lan=1)
    eth0 = default_network(world.network("main", ipv4=[stays]))
    notes = {**eth0, **networks(world.network("second", ipv4=[first]))}
    world.apply(workload("StatefulSet", "s", notes))
    before = world.running(1)
    world.delete("Pod", "s-0")
    world.replaced(before)
    again = world.running(1)
    assert again["s-0"].addresses == before["s-0"].addresses

    world.network("second", ipv4=[second])
    world.delete("Pod", "s-0")
    world.replaced(again)
    held = world.running(1)["s-0"]
    assert held.addresses["eth0"] == before["s-0"].addresses["eth0"]
    world.assert_from(held, second, nic="net1")
    world.wait(lambda: not world.records(first), "the old address is free")


def test_A00018_statefulset_with_unnamed_nics(world: World) -> None:
    stays, first, second = world.pool(lan=0), world.pool(lan=1), world.pool(lan=1)
    further = networks(world.network("second"))
    world.apply(workload("StatefulSet", "s", {**ippools({"ipv4": [stays]}, {"ipv4": [first]}), **further}))
    before = world.running(1)
    world.assert_from(before["s-0"], first, nic="net1")
    world.delete("Pod", "s-0")
    world.replaced(before)
    again = world.running(1)
    assert again["s-0"].addresses == before["s-0"].addresses

    changed = ippools({"ipv4": [stays]}, {"ipv4": [second]})
    world.change("StatefulSet", "s", {"spec": {"template": {"metadata": {"annotations": changed}}}})
    world.replaced(again)
    held = world.running(1)["s-0"]
    world.assert_from(held, stays)
    world.assert_from(held, second, nic="net1")
    world.wait(lambda: not world.records(first), "the old address is free")
