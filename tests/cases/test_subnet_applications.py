"""Area subnet, applications: a workload that names a SpiderSubnet has pools of its own, that grow and go with it.

Deployments and the others are driven by the controllers of Kubernetes.
"""

from collections.abc import Iterator
from http import HTTPStatus

import pytest

from tests.cases.automatic import Subnet, gone, keep, number, sized, sizes, subnet, subnets
from tests.cases.workloads import ippool, pod, workload
from tests.cases.world import World
from tests.processes.lab import Lab
from tests.processes.webhooks import IPPOOLS, POOL_TYPE

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def test_I00003_a_pool_grows_before_the_pods_and_shrinks_behind_them(world: World) -> None:
    with Subnet(world, 20) as lan:
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("+1"), replicas=2))
        held = world.running(2)
        (pool,) = world.automatic_pools("web")
        assert pool["metadata"]["name"].startswith("auto4-web-eth0-")
        assert {address for one in held.values() for address in one.addresses["eth0"]} <= set(lan.addresses)
        sized(world, "web", eth0_4=3)
        world.scale("Deployment", "web", 6)
        world.running(6)
        sized(world, "web", eth0_4=7)
        assert lan.given() == 7
        world.scale("Deployment", "web", 1)
        sized(world, "web", eth0_4=2)
        world.delete("Deployment", "web")
        gone(world)
        lan.empty()


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet", "Job"])
def test_I00003_every_kind_of_workload(world: World, kind: str) -> None:
    with Subnet(world, 10) as lan, Subnet(world, 10, version=6) as lan6:
        world.apply(workload(kind, "w", subnet(ipv4=[lan.name], ipv6=[lan6.name]) | number("+0"), replicas=3))
        held = world.running(3)
        assert all(len(one.addresses["eth0"]) == 2 for one in held.values())
        sized(world, "w", eth0_4=3, eth0_6=3)
        world.delete(kind, "w")
        gone(world)
        lan.empty()


def test_I00003_a_cronjob_has_its_pool_before_its_first_job(world: World) -> None:
    with Subnet(world, 10) as lan:
        body = workload("CronJob", "nightly", subnet(ipv4=[lan.name]) | number("+1"), replicas=2, suspend=True)
        made = world.apply(body)
        sized(world, "nightly", eth0_4=3)
        # What `kubectl create job --from=cronjob/nightly` does, and the controller when it is time.
        owner = {key: made[key] for key in ("apiVersion", "kind")} | {"name": "nightly", "uid": made["metadata"]["uid"]}
        for run in "1", "2":
            meta = {"name": f"nightly-{run}", "ownerReferences": [owner | {"controller": True}]}
            spec = body["spec"]["jobTemplate"]["spec"]
            world.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
            held = world.running(2)
            assert {ip for one in held.values() for ip in one.addresses["eth0"]} <= set(lan.addresses)
            world.delete("Job", f"nightly-{run}")
            world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
            sized(world, "nightly", eth0_4=3)
        world.delete("CronJob", "nightly")
        gone(world)
        lan.empty()


def test_I00006_many_applications_come_and_go(world: World) -> None:
    with Subnet(world, 40) as lan:
        names = [f"d{index}" for index in range(10)]
        for name in names:
            world.apply(workload("Deployment", name, subnet(ipv4=[lan.name]) | number("2"), replicas=1))
        world.running(10)
        assert {tuple(sizes(world, name).values()) for name in names} == {(2,)}
        assert lan.given() == 20
        for name in names:
            world.delete("Deployment", name)
        gone(world)
        lan.empty()


def test_I00008_all_are_scaled_at_once_again_and_again(world: World) -> None:
    with Subnet(world, 40) as lan:
        names = ["a", "b", "c"]
        for name in names:
            world.apply(workload("Deployment", name, subnet(ipv4=[lan.name]) | number("+0"), replicas=1))
        for replicas in (4, 1, 3, 0, 2):
            for name in names:
                world.scale("Deployment", name, replicas)
        for name in names:
            sized(world, name, eth0_4=2)
        world.running(6)
        world.wait(lambda: lan.given() == 6, "the subnet counts what its pools have")


def test_I00010_a_subnet_that_is_too_small_says_so_and_serves_when_there_is_room(world: World) -> None:
    with Subnet(world, 3) as lan:
        world.apply(workload("Deployment", "first", subnet(ipv4=[lan.name]) | number("2"), replicas=1))
        world.running(1)
        world.apply(workload("Deployment", "second", subnet(ipv4=[lan.name]) | number("2"), replicas=1))
        (name,) = world.wait(lambda: world.pods("second"), "its pod is made")
        assert lan.name in world.refusal(name, match="addresses left")
        path = f"/api/v1/namespaces/{world.namespace}/events"

        def said() -> bool:
            events = world.request("GET", path)["items"]
            return any(
                event["reason"] == "AutomaticPoolFailed" and event["involvedObject"]["name"] == "second"
                for event in events
            )

        world.wait(said, "an event on the Deployment says so")
        world.delete("Deployment", "first")
        world.running(1, prefix="second")


def test_I00011_reserved_addresses_do_not_count(world: World) -> None:
    with Subnet(world, 6) as lan:
        world.reserve(f"{lan.addresses[0]}-{lan.addresses[1]}")
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("+0"), replicas=4))
        held = world.running(4)
        assert {ip for one in held.values() for ip in one.addresses["eth0"]} == set(lan.addresses[2:])


def test_I00012_a_pool_for_each_nic(world: World) -> None:
    with Subnet(world, 5) as first, Subnet(world, 5, lan=1) as second:
        net = world.network("net")
        notes = subnets({"interface": "eth0", "ipv4": [first.name]}, {"interface": "net1", "ipv4": [second.name]}) | {
            "k8s.v1.cni.cncf.io/networks": net
        }
        world.apply(workload("Deployment", "web", notes | number("+0"), replicas=2))
        held = world.running(2)
        sized(world, "web", eth0_4=2, net1_4=2)
        for one in held.values():
            assert one.addresses["eth0"][0] in first.addresses
            assert one.addresses["net1"][0] in second.addresses


def test_E00010_one_family_named_one_family_given(world: World) -> None:
    with Subnet(world, 5, version=6) as lan:
        world.apply(workload("Deployment", "web", subnet(ipv6=[lan.name]), replicas=1))
        (one,) = world.running(1).values()
        assert len(one.addresses["eth0"]) == 1
        assert one.addresses["eth0"][0] in lan.addresses
        sized(world, "web", eth0_6=2)


def test_I00015_the_same_application_made_again_has_its_pool_again(world: World) -> None:
    with Subnet(world, 5) as lan:
        manifest = workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("2") | keep(), replicas=2)
        world.apply(manifest)
        world.running(2)
        (before,) = world.automatic_pools("web")
        world.delete("Deployment", "web")
        world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        (kept,) = world.automatic_pools("web")
        assert "deletionTimestamp" not in kept["metadata"]
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("2"), replicas=2))
        world.running(2)
        (after,) = world.automatic_pools("web")
        assert (after["metadata"]["uid"], after["spec"]["ips"]) == (before["metadata"]["uid"], before["spec"]["ips"])
        # It is not to be kept any more.
        world.delete("Deployment", "web")
        gone(world)


def test_I00016_a_kept_pool_is_not_another_kinds(world: World) -> None:
    with Subnet(world, 6) as lan:
        asked = subnet(ipv4=[lan.name]) | number("2") | keep()
        world.apply(workload("Deployment", "web", asked, replicas=1))
        world.running(1)
        (before,) = world.automatic_pools("web")
        world.delete("Deployment", "web")
        world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        world.apply(workload("StatefulSet", "web", asked, replicas=1))
        held = world.running(1)
        pools = {pool["metadata"]["name"]: pool for pool in world.automatic_pools("web")}
        kept = pools.pop(before["metadata"]["name"])
        assert (kept["metadata"]["uid"], kept["spec"]) == (before["metadata"]["uid"], before["spec"])
        (other,) = pools.values()
        assert not set(other["spec"]["ips"]) & set(kept["spec"]["ips"])
        assert len(world.records(other["metadata"]["name"])) == len(held)
        world.wait(lambda: not world.records(kept["metadata"]["name"]), "nobody has an address of the kept one")
        world.delete("StatefulSet", "web")
        world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        for pool in world.automatic_pools("web"):
            world.request("DELETE", f"{IPPOOLS}/{pool['metadata']['name']}")
        gone(world)


@pytest.mark.parametrize("length", [63, 150])
def test_I00017_very_long_names(world: World, length: int) -> None:
    """63 characters are a label's value, beyond that a digest stands for the rest; two that differ there are two."""
    with Subnet(world, 10) as lan:
        names = [f"{'w' * (length - 1)}{letter}" for letter in "ab"]
        for name, letter in zip(names, "ab", strict=True):
            manifest = workload("Deployment", name, subnet(ipv4=[lan.name]) | number("+0"), replicas=2)
            chosen = {"app": letter}
            manifest["spec"]["selector"]["matchLabels"] = chosen
            manifest["spec"]["template"]["metadata"]["labels"] = chosen
            world.apply(manifest)
        world.running(4)
        pools = world.automatic_pools()
        assert len(pools) == 2
        for pool in pools:
            assert len(pool["metadata"]["name"]) <= 253
            assert all(len(value) <= 63 for value in pool["metadata"]["labels"].values())
        for name in names:
            world.scale("Deployment", name, 1)
        world.wait(lambda: lan.given() == 2, "both are found again and shrink")
        for name in names:
            world.delete("Deployment", name)
        gone(world)


def test_I00018_addresses_of_an_automatic_pool_are_the_subnets_business(world: World) -> None:
    with Subnet(world, 6) as lan:
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("2"), replicas=1))
        world.running(1)
        (pool,) = world.automatic_pools("web")
        path = f"{IPPOOLS}/{pool['metadata']['name']}"
        for wrong in ([lan.addresses[5]], [f"{lan.addresses[0]}-{lan.addresses[3]}"], []):
            answer = world.control_plane.request("PATCH", path, {"spec": {"ips": wrong}}, check=False)
            assert answer.status == HTTPStatus.UNPROCESSABLE_ENTITY
            assert "spec.ips" in str(answer.body)
        # The control: what is not the subnet's business may be changed.
        world.request("PATCH", path, {"spec": {"disable": True}})
        assert world.automatic_pools("web")[0]["spec"]["ips"] == pool["spec"]["ips"]


def test_I00019_a_pool_goes_when_it_is_not_to_be_kept_any_more(world: World) -> None:
    with Subnet(world, 6) as lan:
        asked = subnet(ipv4=[lan.name]) | number("2")
        for name in "while-it-runs", "when-it-is-gone":
            world.apply(workload("Deployment", name, asked | keep(), replicas=1))
        world.running(2)
        template = {"template": {"metadata": {"annotations": {"ipam.spidernet.io/ippool-reclaim": "true"}}}}
        world.change("Deployment", "while-it-runs", {"spec": template})
        world.running(2)
        for name in "while-it-runs", "when-it-is-gone":
            world.delete("Deployment", name)
        gone(world, "while-it-runs")
        world.wait(lambda: not world.pods() and not world.held(), "all pods are gone")
        (kept,) = world.automatic_pools("when-it-is-gone")
        assert "deletionTimestamp" not in kept["metadata"], "the control"
        flipped = {"metadata": {"labels": {"ipam.spidernet.io/ippool-reclaim": "true"}}}
        world.request("PATCH", f"{IPPOOLS}/{kept['metadata']['name']}", flipped)
        gone(world)
        lan.empty()


def test_I00020_spare_addresses_are_nobody_elses(world: World) -> None:
    with Subnet(world, 6) as lan:
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("+5"), replicas=1))
        world.running(1)
        (pool,) = world.automatic_pools("web")
        name = pool["metadata"]["name"]
        world.apply(workload("Deployment", "thief", ippool([name]), replicas=1))
        (thief,) = world.wait(lambda: world.pods("thief"), "its pod is made")
        said = world.refusal(thief)
        assert name in said and "podAffinity" in said
        world.apply(workload("Deployment", "late", subnet(ipv4=[lan.name]) | number("1"), replicas=1))
        (late,) = world.wait(lambda: world.pods("late"), "its pod is made")
        assert lan.name in world.refusal(late, match="addresses left")
        assert len(world.records(name)) == 1


def test_I00021_the_same_application_with_two_nics_made_again_has_both_pools_again(world: World) -> None:
    with Subnet(world, 5) as first, Subnet(world, 5, lan=1) as second:
        notes = subnets({"interface": "eth0", "ipv4": [first.name]}, {"interface": "net1", "ipv4": [second.name]}) | {
            "k8s.v1.cni.cncf.io/networks": world.network("net")
        }
        uids: list[set[str]] = []
        for _ in range(2):
            world.apply(workload("Deployment", "web", notes | number("2") | keep(), replicas=2))
            for one in world.running(2).values():
                assert one.addresses["eth0"][0] in first.addresses
                assert one.addresses["net1"][0] in second.addresses
            sized(world, "web", eth0_4=2, net1_4=2)
            uids.append({pool["metadata"]["uid"] for pool in world.automatic_pools("web")})
            world.delete("Deployment", "web")
            world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        assert uids[0] == uids[1]
        for pool in world.automatic_pools("web"):
            world.request("DELETE", f"{IPPOOLS}/{pool['metadata']['name']}")
        gone(world)


def test_I00023_a_pod_that_nothing_controls_gets_none(world: World) -> None:
    with Subnet(world, 5) as lan:
        world.apply(pod("alone", subnet(ipv4=[lan.name])))
        assert "no workload controls the pod" in world.refusal("alone")
        assert not world.automatic_pools()
        world.delete("Pod", "alone")
        world.gone("alone")


@pytest.fixture
def no_automatic_pools(lab: Lab) -> Iterator[None]:
    """The controllers' file says so, for one case."""

    def restart() -> None:
        for name in lab.controllers:
            lab.kill(name)
            lab.start_controller(name)
        lab.wait_ready()
        lab.admission.wait()

    lab.controller_config["enableAutoPoolForApplication"] = False
    try:
        restart()
        yield
    finally:
        del lab.controller_config["enableAutoPoolForApplication"]
        restart()


@pytest.mark.usefixtures("no_automatic_pools")
def test_I00024_automatic_pools_are_off(world: World) -> None:
    with Subnet(world, 6) as lan:
        world.apply(workload("Deployment", "web", subnet(ipv4=[lan.name]) | number("2"), replicas=1))
        (name,) = world.wait(lambda: world.pods("web"), "its pod is made")
        assert "enableAutoPoolForApplication" in world.refusal(name)
        assert not world.automatic_pools()
        # The control: a pool by hand in the same subnet serves.
        network = world.subnet()
        pool = f"{world.name}-hand"
        spec = {"subnet": str(network), "ips": [lan.addresses[0]]}
        world.request("POST", IPPOOLS, {**POOL_TYPE, "metadata": {"name": pool}, "spec": spec})
        world.pools[pool] = (lan.addresses[0],)
        world.apply(pod("p", ippool([pool])))
        assert world.pod("p").addresses["eth0"] == (lan.addresses[0],)
        for kind, gone_now in (("Deployment", "web"), ("Pod", "p")):
            world.delete(kind, gone_now)
        world.gone("p", name)
        del world.pools[pool]
        world.request("DELETE", f"{IPPOOLS}/{pool}")
