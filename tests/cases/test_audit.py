"""That the audit at the end of each case sees what it is there for: each promise broken once."""

import json
from typing import Any

import pytest

from tests.cases.audit import findings
from tests.cases.kubelet import Held
from tests.cases.workloads import ippool, pod
from tests.cases.world import World

UID = "uid-p"


def held(uid: str = UID, *addresses: str) -> Held:
    return Held(uid=uid, node="n1", cid="c", addresses={"eth0": addresses or ("10.0.0.1",)}, results={})


def pool(name: str = "lan", count: int | None = None, **records: tuple[str, str]) -> dict[str, Any]:
    table = {ip.replace("_", ".")[2:]: {"pod": who, "podUid": uid} for ip, (who, uid) in records.items()}
    status = {"allocatedIPs": json.dumps(table), "allocatedIPCount": len(table) if count is None else count}
    return {"metadata": {"name": name}, "status": status}


def endpoint(address: str = "10.0.0.1/24", uid: str = UID) -> dict[str, Any]:
    current = {"uid": uid, "ips": [{"interface": "eth0", "ipv4": address}]}
    return {"metadata": {"namespace": "ns", "name": "p"}, "status": {"current": current}}


MINE = ("ns/p", UID)


def test_nothing_is_wrong() -> None:
    assert findings({"ns/p": held()}, [pool(a_10_0_0_1=MINE)], [endpoint()]) == []
    assert findings({}, [{"metadata": {"name": "fresh"}}], []) == []


@pytest.mark.parametrize(
    ("pools", "endpoints", "said"),
    [
        ([pool()], [endpoint()], "no pool holds 10.0.0.1 of ns/p"),
        ([pool(a_10_0_0_1=("ns/p", "old"))], [endpoint()], "no pool holds 10.0.0.1 of ns/p"),
        ([pool(a_10_0_0_1=MINE, a_10_0_0_2=("ns/gone", "g"))], [endpoint()], "a pool holds 10.0.0.2 of ns/gone"),
        ([pool(a_10_0_0_1=MINE, count=2)], [endpoint()], "pool lan counts 2, holds 1"),
        ([pool(a_10_0_0_1=MINE), pool("twin", a_10_0_0_1=MINE)], [endpoint()], "recorded in two pools"),
        ([pool(a_10_0_0_1=MINE)], [], "the SpiderEndpoint lacks 10.0.0.1"),
        ([pool(a_10_0_0_1=MINE)], [endpoint("10.0.0.9/24")], "a SpiderEndpoint says 10.0.0.9"),
        ([pool(a_10_0_0_1=MINE)], [endpoint(uid="old")], "a SpiderEndpoint says 10.0.0.1 of ns/p (old)"),
    ],
)
def test_what_is_wrong_is_found(pools: list[dict[str, Any]], endpoints: list[dict[str, Any]], said: str) -> None:
    found = findings({"ns/p": held()}, pools, endpoints)
    assert any(said in line for line in found), found


def test_an_address_that_two_pods_carry_is_found() -> None:
    found = findings({"ns/p": held(), "ns/q": held("uid-q")}, [pool(a_10_0_0_1=MINE)], [endpoint()])
    assert "10.0.0.1 is carried twice" in found


def test_what_is_kept_is_no_leak() -> None:
    kept = [pool(a_10_0_0_1=MINE)]
    assert findings({}, kept, [endpoint()])
    assert findings({}, kept, [endpoint()], kept=["ns/p"]) == []


@pytest.mark.blocking
@pytest.mark.timeout(60)
def test_X00001_a_record_of_nobody_fails_a_case(world: World) -> None:
    name = world.pool()
    world.apply(pod("p", ippool([name])))
    world.pod("p")
    world.settled()
    address = world.inject(name, f"{world.namespace}/nobody", "00000000-0000-4000-8000-00000000000f")
    with pytest.raises(AssertionError, match=f"a pool holds {address}"):
        world.settled(seconds=0.2)
    world.collect()
