"""Area ippoolcr: what the fields of a pool do, what is refused, and what becomes of pools that change or go."""

from typing import Any

import pytest

from tests.cases.refusals import causes
from tests.cases.subnets import subnet
from tests.cases.workloads import default_network, ippool, ippools, networks, pod, workload
from tests.cases.world import World
from tests.processes.webhooks import DRY, IPPOOLS, POOL_TYPE

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def placed(world: World, name: str, pools: list[str], *, node: str = "", namespace: str = "") -> dict[str, Any]:
    """Create a pod that wants these pools."""
    manifest = pod(name, ippool(pools), node=node)
    if namespace:
        manifest["metadata"]["namespace"] = namespace
    return world.apply(manifest)


def refused(world: World, name: str = "refused", **spec: Any) -> list[str]:
    """Fields and messages of what is wrong with a pool, without storing it; empty when it is right."""
    body = {**POOL_TYPE, "metadata": {"name": f"{world.name}-{name}"}, "spec": {"subnet": str(world.subnet()), **spec}}
    return causes(world.control_plane.request("POST", DRY, body, check=False))


def changed(world: World, name: str, **spec: Any) -> list[str]:
    """The same of a change of one that is there."""
    path = f"{IPPOOLS}/{name}?dryRun=All"
    return causes(world.control_plane.request("PATCH", path, {"spec": spec}, check=False))


def test_D00001_overlapping_pools(world: World) -> None:
    for version in (4, 6):
        first = world.pool(4, version=version)
        shared = world.pools[first][2:]
        spec: dict[str, Any] = {"subnet": str(world.subnet(version)), "ips": [f"{shared[0]}-{shared[1]}"]}
        (said,) = world.wait(lambda spec=spec: refused(world, **spec), "the replicas see it")  # type: ignore[misc]
        assert said == f'spec.ips: Invalid value: "{shared[0]}-{shared[1]}": SpiderIPPool {first} has these addresses'
        assert refused(world, **{**spec, "ips": []}) == []
    half = next(world.subnet().subnets())
    (said,) = refused(world, subnet=str(half))
    assert said.startswith(
        f'spec.subnet: Invalid value: "{half}": overlaps {world.subnet()}, the subnet of SpiderIPPool'
    )


def test_D00001_addresses_in_two_pools(world: World) -> None:
    first = world.pool(4)
    shared = world.pools[first][2:]
    with world.lab.admission.unseen():  # as two replicas would admit them at the same moment
        second = world.pool(2, ips=[f"{shared[0]}-{shared[1]}"])
    world.pools[second] = ()
    for number in range(3):
        placed(world, f"p{number}", [first])
    world.wait(lambda: len(world.held()) == 2, "two of three run")
    (waiting,) = {f"p{number}" for number in range(3)} - set(world.held_names())
    assert second in world.refusal(waiting, match="overlap")
    placed(world, "other", [second])
    world.refusal("other", match="overlap")
    assert set(world.records(first)) == set(world.pools[first]) - set(shared)
    for pool, other in ((first, second), (second, first)):
        conditions = {c["type"]: c for c in world.status(pool).get("conditions", ())}
        assert conditions["Overlapping"]["status"] == "True"
        assert other in conditions["Overlapping"]["message"]


def test_D00002_routes_and_gateway_of_new_pods_only(world: World) -> None:
    pool = world.pool()
    placed(world, "old", [pool])
    before = world.pod("old")
    endpoint = world.endpoints()["old"]
    gateway = str(world.subnet().network_address + 2)
    world.change_pool(pool, gateway=gateway, routes=[{"dst": "198.51.100.0/24", "gw": gateway}])
    wanted = {("0.0.0.0/0", gateway), ("198.51.100.0/24", gateway)}

    def changed(name: str) -> bool:
        placed(world, name, [pool])
        return {(r["dst"], r.get("gw")) for r in world.pod(name).results["eth0"]["routes"]} == wanted

    # The owner re-reads a pool at the latest when its next write is refused.
    assert changed("new") or changed("newer"), world.held()
    assert world.pod("old") == before
    assert world.endpoints()["old"] == endpoint


def test_D00003_wrong_gateway_and_route(world: World) -> None:
    for version in (4, 6):
        pool = world.pool(version=version)
        network, inside = world.subnet(version), world.pools[pool][0]
        outside, far = str(network.broadcast_address + 1), {4: "198.51.100.0/24", 6: "2001:db8::/64"}[version]
        field = f'Invalid value: "{outside}": outside of spec.subnet {network}'
        assert changed(world, pool, gateway=outside) == [f"spec.gateway: {field}"]
        assert changed(world, pool, routes=[{"dst": far, "gw": outside}]) == [f"spec.routes[0].gw: {field}"]
        (said,) = changed(world, pool, gateway=inside)
        assert said.startswith(f'spec.gateway: Invalid value: "{inside}": a pod would get it')
        assert changed(world, pool, gateway=world.gateway(version), routes=[{"dst": far, "gw": inside}]) == []


def test_what_is_in_use_stays(world: World) -> None:
    pool = world.pool()
    placed(world, "holds", [pool])
    (address,) = world.pod("holds").addresses["eth0"]
    world.wait(lambda: world.records(pool), "the record is there")
    text = f"Forbidden: would leave out what is in use: {address} of {world.namespace}/holds"
    assert changed(world, pool, ips=[]) == [f"spec.ips: {text}"]
    assert changed(world, pool, excludeIPs=[address]) == [f"spec.excludeIPs: {text}"]
    assert changed(world, pool, subnet="192.0.2.0/24")[0].endswith("it never changes")
    assert changed(world, pool, ips=[address]) == []


def test_D00004_deleted_while_in_use(world: World) -> None:
    pool = world.pool()
    assert world.request("GET", f"{IPPOOLS}/{pool}")["metadata"]["finalizers"] == ["spiderpool.spidernet.io"]
    placed(world, "holds", [pool])
    world.pod("holds")
    world.request("DELETE", f"{IPPOOLS}/{pool}")
    placed(world, "late", [pool])
    assert pool in world.refusal("late", match="terminating")
    assert len(world.records(pool)) == 1
    world.wait(lambda: "DeletionBlocked" in {c["type"] for c in world.status(pool).get("conditions", ())}, "it says so")
    world.delete("Pod", "late")
    world.delete("Pod", "holds")
    del world.pools[pool]
    path = f"{IPPOOLS}/{pool}"
    world.wait(lambda: world.control_plane.request("GET", path, check=False).status == 404, "it goes with its last one")


def test_D00005_disabled_pool(world: World) -> None:
    pool = world.pool()
    world.apply(workload("Deployment", "w", ippool([pool])))
    (first,) = world.running(1)
    world.change_pool(pool, disable=True)
    world.wait(lambda: world.later_refused(lambda name: pod(name, ippool([pool])), match="disable"), "it is seen")
    world.scale("Deployment", "w", 2)
    (waiting,) = world.wait(lambda: [n for n in world.pods("w-") if n != first], "a second pod is there")
    assert pool in world.refusal(waiting, match="disable")
    assert {r["pod"] for r in world.records(pool).values()} == {f"{world.namespace}/{first}"}
    world.delete("Deployment", "w")
    world.wait(lambda: not world.records(pool), "the release works")


def test_D00006_many_pools_at_once(world: World) -> None:
    pools = [world.pool(2, version=version) for version in (4, 6) for _ in range(10)]
    v4, v6 = pools[:10], pools[10:]
    for number, (four, six) in enumerate(zip(v4, v6, strict=True)):
        world.apply(pod(f"p{number}", ippool([four], [six])))
    for number, (four, six) in enumerate(zip(v4, v6, strict=True)):
        world.assert_from(world.pod(f"p{number}"), four, six)
    for number in range(10):
        world.delete("Pod", f"p{number}")
    world.wait(lambda: not any(world.records(pool) for pool in pools), "all are free")
    for pool in pools:
        world.request("DELETE", f"{IPPOOLS}/{pool}")
        del world.pools[pool]

    def left() -> set[str]:
        return {item["metadata"]["name"] for item in world.request("GET", IPPOOLS)["items"]} & set(pools)

    world.wait(lambda: not left(), "their owners let all of them go")


def test_D00007_created_edited_deleted(world: World) -> None:
    pool = world.pool(2, ips=[str(world.subnet().network_address + 0x10)])
    first, second = world.pools[pool]
    placed(world, "a", [pool])
    assert world.pod("a").addresses["eth0"] == (first,)
    placed(world, "b", [pool])
    world.refusal("b", match=pool)
    world.change_pool(pool, ips=[f"{first}-{second}"])
    assert world.pod("b").addresses["eth0"] == (second,)
    world.delete("Pod", "a")
    world.delete("Pod", "b")
    world.wait(lambda: not world.records(pool), "it is free")
    world.request("DELETE", f"{IPPOOLS}/{pool}")
    del world.pools[pool]
    world.wait(lambda: world.later_refused(lambda name: pod(name, ippool([pool])), match="exist"), "it is gone")


def test_D00008_a_pool_inherits_what_its_subnet_says(world: World) -> None:
    routes = [{"dst": "198.51.100.0/24", "gw": str(world.subnet().network_address + 3)}]
    with subnet(world, routes=routes) as lan:
        lan.pool("bare", 16, 19)
        assert (lan.spec("bare")["gateway"], lan.spec("bare")["routes"]) == (lan.gateway, routes)
        lan.pool("own", 24, 27, gateway=lan.at(2), routes=[])
        own = lan.spec("own")
        assert (own["gateway"], own["routes"]) == (lan.at(2), []), "the control: what it says itself holds"


def test_D00009_multus_name_matches(world: World) -> None:
    main, second = f"{world.namespace}/main", f"{world.namespace}/second"
    pools = [world.pool(multusName=[main], lan=0), world.pool(multusName=[second], lan=1)]
    world.apply(pod("p", {**default_network(world.network("main")), **ippool(pools[:1])}))
    world.assert_from(world.pod("p"), pools[0])
    notes = {
        **default_network(main),
        **networks(world.network("second")),
        **ippools(*({"interface": nic, "ipv4": [pool]} for nic, pool in zip(("eth0", "net1"), pools, strict=True))),
    }
    world.apply(pod("q", notes))
    held = world.pod("q")
    for nic, pool in zip(("eth0", "net1"), pools, strict=True):
        world.assert_from(held, pool, nic=nic)


def test_D00010_multus_name_differs(world: World) -> None:
    main, second = world.network("main"), world.network("second")
    free, bound = world.pool(lan=0), world.pool(lan=1, multusName=[f"{world.namespace}/third"])
    world.apply(pod("one", {**default_network(main), **ippool([bound])}))
    world.apply(pod("none", ippool([bound])))
    both = {**default_network(main), **networks(second)}
    named = ippools({"interface": "eth0", "ipv4": [free]}, {"interface": "net1", "ipv4": [bound]})
    world.apply(pod("named", {**both, **named}))
    world.apply(pod("unnamed", {**both, **ippools({"ipv4": [free]}, {"ipv4": [bound]})}))
    for name in ("one", "none", "named", "unnamed"):
        assert bound in world.refusal(name, match="multusName")
    world.settled()
    assert not world.records(free)
    assert not world.records(bound)


def test_D00011_node_name_matches(world: World) -> None:
    pool = world.pool(nodeName=["n2", "n3"])
    placed(world, "p", [pool], node="n2")
    world.assert_from(world.pod("p"), pool)


def test_D00012_node_name_differs(world: World) -> None:
    pool = world.pool(nodeName=["n2", "n3"])
    placed(world, "p", [pool], node="n1")
    assert pool in world.refusal("p", match="nodeName")
    assert not world.records(pool)


def test_D00013_node_name_before_node_affinity(world: World) -> None:
    by_label = {"matchLabels": {"kubernetes.io/hostname": "n2"}}
    pool = world.pool(nodeName=["n1"], nodeAffinity=by_label)
    placed(world, "named", [pool], node="n1")
    placed(world, "labelled", [pool], node="n2")
    world.assert_from(world.pod("named"), pool)
    world.refusal("labelled", match="nodeName")


def test_D00014_namespace_name_matches(world: World) -> None:
    pool = world.pool(namespaceName=[world.namespace, "elsewhere"])
    placed(world, "p", [pool])
    world.assert_from(world.pod("p"), pool)


def test_D00015_namespace_name_differs(world: World) -> None:
    pool = world.pool(namespaceName=["elsewhere"])
    placed(world, "p", [pool])
    assert pool in world.refusal("p", match="namespaceName")
    assert not world.records(pool)


def test_D00016_namespace_name_before_namespace_affinity(world: World) -> None:
    labelled = world.create_namespace("labelled", labels={"team": "d00016"})
    pool = world.pool(namespaceName=[world.namespace], namespaceAffinity={"matchLabels": {"team": "d00016"}})
    placed(world, "named", [pool])
    placed(world, "labelled", [pool], namespace=labelled)
    world.assert_from(world.pod("named"), pool)
    world.refusal("labelled", namespace=labelled, match="namespaceName")


def test_D00017_huge_pool(world: World) -> None:
    pool = world.pool(
        2,
        version=6,
        subnet="fd12:3456:789a::/48",
        gateway="fd12:3456:789a::1",
        ips=["fd12:3456:789a::1-fd12:3456:789a:3fff:ffff:ffff:ffff:ffff"],
        excludeIPs=["fd12:3456:789a::1-fd12:3456:789a::10"],
    )
    world.pools[pool] = ("fd12:3456:789a::11", "fd12:3456:789a::12")
    world.apply(workload("Deployment", "w", ippool((), [pool]), replicas=2))
    for held in world.running(2).values():
        world.assert_from(held, pool)
    status = world.status(pool)
    assert status["totalIPCount"] == 2**63 - 1
    assert status["allocatedIPCount"] == 2
