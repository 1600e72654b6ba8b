"""What `spiderpoolctl simulate` is asked for and what its audit finds: pure parts, with all that can be wrong."""

from collections.abc import Callable
from ipaddress import ip_network
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import ObjectMeta
from simulation.audit import audit, counts
from simulation.plan import Plan, PlanError
from simulation.report import Percentiles, percentiles

# -- the plan ----------------------------------------------------------------------------------------------------------


def test_what_is_left_out_fits_the_pods() -> None:
    plan = Plan().completed()
    assert (plan.pods, plan.pools, plan.pool_size) == (100_000, 100, 1100)
    assert Plan(nodes=3, pods_per_node=2000).completed().pools == 3


@pytest.mark.parametrize(
    ("field", "value", "also"),
    [
        ("nodes", 0, {}),
        ("pods_per_node", -1, {}),
        ("controllers", 0, {}),
        ("pools", -1, {}),
        ("pools", 5001, {}),
        ("pool_size", -5, {}),
        ("pool_size", 1 << 23, {}),
        ("over", float("nan"), {}),
        ("api_latency", -0.1, {}),
        ("network_latency", float("inf"), {}),
        ("write_budget", -1.0, {}),
        ("churn", 1.5, {}),
        ("kill_owner_at", -1.0, {"controllers": 2}),
        ("kill_owner_at", 5.0, {}),
        ("nodes", 100_000, {}),
    ],
)
def test_what_makes_no_sense_is_said_with_field_and_value(field: str, value: Any, also: dict[str, Any]) -> None:
    with pytest.raises(PlanError) as caught:
        Plan(**{field: value, **also}).completed()
    assert caught.value.field == field
    assert str(value) in caught.value.problem


@given(nodes=st.integers(1, 400), per_node=st.integers(1, 200), pools=st.integers(0, 20), size=st.integers(0, 5000))
def test_no_two_pools_share_an_address_and_each_has_room(nodes: int, per_node: int, pools: int, size: int) -> None:
    plan = Plan(nodes=nodes, pods_per_node=per_node, pools=min(pools, nodes), pool_size=size).completed()
    for version in (4, 6):
        subnets = [plan.subnet(version, at) for at in range(min(plan.pools, 8))]
        assert all(not one.overlaps(other) for one, other in combinations(subnets, 2))
        assert all(subnet.num_addresses >= plan.pool_size + 3 for subnet in subnets)
    assert plan.subnet(4, plan.pools - 1).subnet_of(ip_network("10.0.0.0/8"))  # type: ignore[arg-type]


def test_percentiles() -> None:
    assert percentiles(range(1, 101)) == Percentiles(50, 90, 99, 100)
    assert percentiles([3.0]) == Percentiles(3.0, 3.0, 3.0, 3.0)
    assert percentiles([1.0, 1.0, 1.0, 9.0]) == Percentiles(1.0, 9.0, 9.0, 9.0)
    assert percentiles([]) == Percentiles()


# -- the audit ---------------------------------------------------------------------------------------------------------

type Case = tuple[list[SpiderIPPool], list[SpiderEndpoint], dict[str, tuple[str, ...]]]


def pool(name: str, prefix: str, **held: str) -> SpiderIPPool:
    records = {
        f"{prefix}{number[1:]}": AllocationRecord(pod=f"default/{uid}", pod_uid=uid, nic="eth0", node="n", cid="c")
        for number, uid in held.items()
    }
    return SpiderIPPool(
        metadata=ObjectMeta(name=name),
        spec=IPPoolSpec(
            ip_version=4, subnet=f"{prefix}0/24", ips=[f"{prefix}2-{prefix}99"], exclude_ips=[f"{prefix}50"]
        ),
        status=IPPoolStatus(allocated_ips=encode_records(records), allocated_ip_count=len(records) or None),
    )


def endpoint(uid: str, *addresses: str) -> SpiderEndpoint:
    ips = [IPAllocationDetail(interface="eth0", ipv4=address) for address in addresses]
    return SpiderEndpoint(
        metadata=ObjectMeta(name=uid, namespace="default"),
        status=EndpointStatus(current=EndpointCurrent(uid=uid, node="n", ips=ips)),
    )


def sound() -> Case:
    return (
        [pool("a", "10.0.0.", _2="u1", _3="u2"), pool("b", "10.0.1.", _2="u3"), pool("c", "10.0.2.")],
        [endpoint("u1", "10.0.0.2/24"), endpoint("u2", "10.0.0.3/24"), endpoint("u3", "10.0.1.2/24")],
        {"u1": ("10.0.0.2/24",), "u2": ("10.0.0.3/24",), "u3": ("10.0.1.2/24",)},
    )


def test_what_is_sound_gives_no_finding() -> None:
    assert audit(*sound()) == ()


def told_twice(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    held["u2"] = ("10.0.0.2/24",)
    endpoints[1] = endpoint("u2", "10.0.0.2/24")


def recorded_twice(
    pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]
) -> None:
    pools[2] = pool("c", "10.0.1.", _2="u3")


def leaked(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    pools[2] = pool("c", "10.0.2.", _9="gone")


def never_recorded(
    pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]
) -> None:
    pools[1] = pool("b", "10.0.1.")


def of_another(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    pools[1] = pool("b", "10.0.1.", _2="u9")


def outside(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    pools[1] = pool("b", "10.0.1.", _50="u3")
    endpoints[2], held["u3"] = endpoint("u3", "10.0.1.50/24"), ("10.0.1.50/24",)


def miscounted(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    pools[0] = structs.replace(pools[0], status=structs.replace(pools[0].status, allocated_ip_count=7))


def nonsense(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    pools[2] = structs.replace(pools[2], status=IPPoolStatus(allocated_ips="{nonsense"))


def without_endpoint(
    pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]
) -> None:
    del endpoints[0]


def left_endpoint(pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]) -> None:
    endpoints.append(endpoint("gone", "10.0.2.9/24"))


def wrong_endpoint(
    pools: list[SpiderIPPool], endpoints: list[SpiderEndpoint], held: dict[str, tuple[str, ...]]
) -> None:
    endpoints[0] = endpoint("u1", "10.0.0.7/24")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (told_twice, {"duplicate": 1, "leak": 1, "lost": 1}),
        (recorded_twice, {"duplicate": 1, "leak": 1, "outside": 0}),
        (leaked, {"leak": 1}),
        (never_recorded, {"lost": 1}),
        (of_another, {"leak": 1, "lost": 1}),
        (outside, {"outside": 1}),
        (miscounted, {"count": 1}),
        (nonsense, {"unreadable": 1}),
        (without_endpoint, {"endpoint": 1}),
        (left_endpoint, {"endpoint": 1}),
        (wrong_endpoint, {"endpoint": 1}),
    ],
)
def test_all_that_is_wrong_is_found(damage: Callable[..., None], found: dict[str, int]) -> None:
    case = sound()
    damage(*case)
    assert counts(audit(*case)) == {check: count for check, count in found.items() if count}
