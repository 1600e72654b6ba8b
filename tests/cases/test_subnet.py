"""Area subnet, as far as no application has to ask: subnets, pools cut from them, and what becomes of both."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import pytest

from actors.subnets.messages import NotProvided, Provided
from api.meta import FINALIZER
from tests.cases.refusals import causes
from tests.cases.subnets import SUBNET_TYPE, SUBNETS, subnet
from tests.cases.workloads import ippool, pod
from tests.cases.world import World
from tests.processes.webhooks import IPPOOLS, POOL_TYPE

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def test_I00001_made_changed_and_deleted(world: World) -> None:
    with subnet(world) as lan:
        lan.counted(64, 0)
        meta = lan.found["metadata"]
        assert meta["finalizers"] == [FINALIZER]
        assert meta["labels"] == {"ipam.spidernet.io/subnet-cidr": str(lan.network).replace(".", "-").replace("/", "-")}
        assert lan.found["spec"]["ipVersion"] == 4
        lan.change(gateway=lan.at(2), routes=[{"dst": "198.51.100.0/24", "gw": lan.at(3)}])
        assert causes(lan.change(gateway=lan.at(20), check=False)) == [
            (
                f'spec.gateway: Invalid value: "{lan.at(20)}": '
                "a pod would get it: take it out of spec.ips or put it into spec.excludeIPs"
            )
        ]
        assert "never changes" in str(lan.change(subnet="10.99.0.0/16", check=False).body)
        other = {**SUBNET_TYPE, "metadata": {"name": f"{lan.name}-x"}, "spec": {"subnet": str(lan.network)}}
        refused = world.wait(lambda: causes(world.control_plane.request("POST", SUBNETS, other, check=False)), "seen")
        assert refused == [
            f'spec.subnet: Invalid value: "{lan.network}": overlaps {lan.network} of SpiderSubnet {lan.name}'
        ]
        # A pod in a pool of a subnet that is deleted: both wait for it, and say so.
        lan.pool("m", 16, 19)
        name = f"{lan.name}-m"
        world.pools[name] = tuple(lan.at(number) for number in range(16, 20))
        world.apply(pod("p", ippool([name])))
        assert world.pod("p").addresses["eth0"] == (lan.at(16),)
        world.request("DELETE", f"{SUBNETS}/{lan.name}")
        blocked = "DeletionBlocked"
        world.wait(lambda: blocked in {c["type"] for c in lan.found["status"].get("conditions", ())}, "it says so")
        world.wait(lambda: blocked in {c["type"] for c in world.status(name).get("conditions", ())}, "so does the pool")
        world.wait(lambda: {name, lan.name} <= _about(world, blocked), "and events")
        del world.pools[name]
        world.delete("Pod", "p")
        world.wait(lan.gone, "both go with the pod")


def _about(world: World, reason: str) -> set[str]:
    events = world.request("GET", "/api/v1/namespaces/default/events")["items"]
    return {event["involvedObject"]["name"] for event in events if event["reason"] == reason}


def test_I00002_addresses_added_and_taken_away(world: World) -> None:
    with subnet(world) as lan:
        lan.pool("m", 20, 29)
        lan.counted(64, 10)
        lan.change(ips=[lan.range(16, 99)])
        lan.counted(84, 10)
        lan.change(ips=[lan.range(18, 30)])
        lan.counted(13, 10)
        held = f"spec.ips: Forbidden: would leave out {lan.range(25, 29)}, which SpiderIPPool {lan.name}-m has"
        assert causes(lan.change(ips=[lan.range(18, 24)], check=False)) == [held]
        assert causes(lan.change(excludeIPs=[lan.range(25, 60)], check=False)) == [held]
        lan.drop("m")
        lan.counted(13, 0)
        lan.change(ips=[lan.range(18, 24)])
        lan.counted(7, 0)


def test_I00004_excluded_addresses_are_in_no_pool(world: World) -> None:
    with subnet(world) as lan:
        lan.change(excludeIPs=[lan.range(16, 19), lan.at(25)])
        lan.counted(59, 0)

        def tried() -> list[str]:
            answer = lan.pool("m", 24, 26, check=False)
            if answer.status == HTTPStatus.CREATED:  # by a replica that has not seen the change yet
                lan.drop("m")
            return causes(answer) if answer.status == HTTPStatus.UNPROCESSABLE_ENTITY else []

        refused = world.wait(tried, "it is seen everywhere")
        assert refused[0].endswith(f"SpiderSubnet {lan.name} does not have {lan.at(25)}")
        assert lan.provide(a=6, b=2) == {"a": Provided(f"{lan.name}-a"), "b": Provided(f"{lan.name}-b")}
        given = sorted(ip for entry in lan.entries.values() for ip in entry["ips"])
        assert given == sorted([*lan.spec("a")["ips"], *lan.spec("b")["ips"]])
        assert all(lan.at(25) not in ips for ips in given)
        assert {lan.spec(name)["ips"][0].partition("-")[0] for name in "ab"} >= {lan.at(20)}
        assert lan.counts == (59, 8)


def test_I00005_what_a_subnet_becomes_is_for_new_pools(world: World) -> None:
    with subnet(world, routes=[]) as lan:
        lan.pool("old", 16, 19)
        world.wait(
            lambda: lan.spec("old").get("gateway") == lan.gateway, "it inherits, at the latest when it is adopted"
        )
        old = lan.spec("old")
        route = {"dst": "198.51.100.0/24", "gw": lan.at(3)}
        lan.change(gateway=lan.at(2), routes=[route])
        lan.counted(64, 4)

        def new() -> dict[str, Any]:
            made = lan.pool("new", 20, 23).body["spec"]
            if made["gateway"] == lan.gateway:  # by what that replica sees
                lan.drop("new")
                path = f"{IPPOOLS}/{lan.name}-new"
                world.wait(lambda: world.control_plane.request("GET", path, check=False).status == 404, "it is gone")
                return {}
            return dict(made)

        made = world.wait(new, "the change is seen")
        assert (made["gateway"], made["routes"]) == (lan.at(2), [route])
        assert lan.spec("old") == old
        kept = lan.pool("own", 24, 27, gateway=lan.at(4), routes=[]).body["spec"]
        assert (kept["gateway"], kept["routes"]) == (lan.at(4), [])
        owner = world.request("GET", f"{IPPOOLS}/{lan.name}-own")["metadata"]
        assert owner["labels"]["ipam.spidernet.io/owner-spider-subnet"] == lan.name
        assert owner["ownerReferences"][0]["name"] == lan.name


def test_I00006_many_automatic_pools(world: World) -> None:
    with subnet(world) as lan:
        names = [f"a{number}" for number in range(20)]
        answers = lan.provide(**dict.fromkeys(names, 3))
        assert set(answers.values()) == {Provided(f"{lan.name}-{name}") for name in names}
        assert lan.counts == (64, 60)
        refused = lan.provide(more=5)["more"]
        assert isinstance(refused, NotProvided)
        assert "has 4 addresses left" in refused.reason
        assert lan.provide(a0=7, a1=1)["a0"] == Provided(f"{lan.name}-a0")
        lan.counted(64, 62)
        first = [ips for name in names for ips in lan.spec(name)["ips"]]
        assert sorted(first) == sorted(ips for entry in lan.entries.values() for ips in entry["ips"])
        edited: dict[str, Any] = {"spec": {"ips": []}}
        answer = world.control_plane.request("PATCH", f"{IPPOOLS}/{lan.name}-a5", edited, check=False)
        assert [one.partition(": the pool")[0] for one in causes(answer)] == ["spec.ips: Forbidden"]
        lan.discard(*names)
        lan.counted(64, 0)
        assert "controlledIPPools" not in lan.found["status"]


def test_I00007_many_pools_made_by_hand(world: World) -> None:
    with subnet(world) as lan:
        for number in range(16):
            lan.pool(f"m{number}", 16 + 4 * number, 19 + 4 * number)
        lan.counted(64, 64)
        for number in range(16):
            lan.drop(f"m{number}")
        lan.counted(64, 0)


def _at_once(world: World, path: str, body: dict[str, Any]) -> Counter[int]:
    def create(_: int) -> int:
        return world.control_plane.request("POST", path, body, check=False).status

    with ThreadPoolExecutor(20) as threads:
        return Counter(threads.map(create, range(100)))


def test_I00009_identical_subnets(world: World) -> None:
    with subnet(world, lan=1) as lan:
        name, cidr = f"{lan.name}-same", str(world.subnet(4, 0))
        body = {**SUBNET_TYPE, "metadata": {"name": name}, "spec": {"subnet": cidr}}
        try:
            assert _at_once(world, SUBNETS, body) == {HTTPStatus.CREATED: 1, HTTPStatus.CONFLICT: 99}
        finally:
            world.request("DELETE", f"{SUBNETS}/{name}")


def test_I00010_identical_pools(world: World) -> None:
    with subnet(world) as lan:
        spec = {"subnet": str(lan.network), "ips": [lan.range(16, 19)]}
        body = {**POOL_TYPE, "metadata": {"name": f"{lan.name}-same"}, "spec": spec}
        assert _at_once(world, IPPOOLS, body) == {HTTPStatus.CREATED: 1, HTTPStatus.CONFLICT: 99}
        lan.counted(64, 4)


def test_I00011_reserved_addresses_do_not_count(world: World) -> None:
    with subnet(world) as lan:
        world.reserve(lan.range(17, 18), lan.at(70))
        assert lan.provide(a=3)["a"] == Provided(f"{lan.name}-a")
        assert lan.spec("a")["ips"] == [lan.at(16), lan.range(19, 20)]
        refused = lan.provide(b=60)["b"]
        assert isinstance(refused, NotProvided)
        assert "has 58 addresses left" in refused.reason
        assert lan.provide(b=58)["b"] == Provided(f"{lan.name}-b")
        assert lan.counts == (64, 61)


def test_I00022_dirty_data_goes(world: World) -> None:
    with subnet(world) as lan:
        lan.pool("m", 20, 29)
        lan.counted(64, 10)
        clean = lan.found["status"]
        for text in (f'{{"ghost":{{"ips":["{lan.at(40)}"],"application":"apps_v1_Deployment_a_b"}}}}', "junk"):
            dirty = {"status": {"controlledIPPools": text, "allocatedIPCount": 1}}
            world.request("PATCH", f"{SUBNETS}/{lan.name}/status", dirty)
            world.wait(lambda: lan.found["status"] == clean, "the status is as before")
