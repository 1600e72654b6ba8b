"""Every documented name of allocation, release, gc and pools moves when what it counts happens, and not before."""

import re
from functools import partial

import anyio
import pytest

from api.ippool import AllocationRecord, decode_records, encode_records
from api.kinds import IPPOOL
from runtime.store.port import Conflict
from runtime.testing import run
from runtime.testing.store import Chances
from runtime.testing.transport import Weather
from telemetry import metrics
from tests.simulation.world import NODES, World

QUIET = re.compile(r"_(err|failure|conflict)_|failure_counts|conflict_counts|ip_gc_")
"""Names that stay where they are while all is well."""


@pytest.fixture(autouse=True)
def a_process_that_has_just_started() -> None:
    """The longest and the shortest are those of the process's life, which other tests share."""
    for durations in (
        metrics.IPAM_ALLOCATION_DURATION,
        metrics.IPAM_ALLOCATION_LIMIT_DURATION,
        metrics.IPAM_RELEASE_DURATION,
        metrics.IPAM_RELEASE_LIMIT_DURATION,
    ):
        durations._count, durations._minimum = 0, float("inf")
        durations._sum = durations._maximum = durations._latest = 0.0


def documented() -> dict[str, float]:
    """The values of the documented names; of a histogram how often it was asked, of a gauge with labels their sum."""
    found: dict[str, float] = {}
    for row in metrics.TABLE:
        if row.documented and "_subnet_" not in row.name:  # those: tests/simulation/test_subnet.py
            sample = row.name + {"histogram": "_count", "counter": "_total", "gauge": ""}[row.kind.value]
            families = metrics.REGISTRY.restricted_registry([sample]).collect()
            found[row.name] = sum(one.value for family in families for one in family.samples)
    return found


def moved(before: dict[str, float]) -> set[str]:
    now = documented()
    return {name for name, value in now.items() if value != before[name]}


async def leak(world: World) -> None:
    """A record that nobody will ever release."""
    while True:
        seen = await world.truth.get(IPPOOL, "v4")
        records = decode_records(seen.status.allocated_ips)
        free = next(ip for ip in (f"10.6.0.{number}" for number in range(10, 30)) if ip not in records)
        records[free] = AllocationRecord(pod="default/ghost", pod_uid="ghost", node=NODES[0], nic="eth0", cid="0" * 12)
        try:
            change = {"status": {"allocatedIPs": encode_records(records)}}
            await world.truth.patch(
                IPPOOL, "v4", change, subresource="status", resource_version=seen.metadata.resource_version
            )
        except Conflict:
            continue
        return


async def everything(world: World) -> None:
    """What goes wrong in a year, in a minute."""
    await leak(world)  # while there is room
    await anyio.sleep(0.02)
    for pool in ("v4", "v6"):
        await world.truth.patch(IPPOOL, pool, {"spec": {"disable": True}})
    await anyio.sleep(3)
    for pool in ("v4", "v6"):
        await world.truth.patch(IPPOOL, pool, {"spec": {"disable": False}})
    await anyio.sleep(2)
    world.network.weather = Weather(lose_request=1.0)
    await anyio.sleep(45)
    world.network.weather = Weather()
    await anyio.sleep(5)
    for controller in world.controllers.values():
        controller.measure(debug=True)


def test_every_documented_name_moves_when_it_is_caused() -> None:
    before = documented()
    still = set(before)
    for seed in range(4, 9):  # in one year not everything goes wrong
        world = World(seed, chances=Chances(conflict=0.1, lost_reply=0.05, unavailable=0.08), pods=24, addresses=10)
        world.lifetime = (20.0, 60.0)
        run(partial(world.run, everything), seed=seed)
        # The shortest wait, and the latest, may well be none at all.
        waits = {name for name in before if "_min_limit" in name or "_latest_limit" in name}
        still = set(before) - moved(before) - waits
        if not still:
            break
    assert still == set()


def test_negative_control_where_all_is_well_no_failure_is_counted() -> None:
    before = documented()
    world = World(3, pods=6, replicas=("c1",))
    run(world.run, seed=3)
    now = moved(before)
    assert {name for name in now if QUIET.search(name)} == set()
    assert {"spiderpool_ipam_allocation_counts", "spiderpool_ipam_release_counts"} <= now


@pytest.mark.parametrize("kind", ["average", "max", "min", "latest"])
def test_durations_are_gauges(kind: str) -> None:
    for verb in ("allocation", "release"):
        (row,) = [it for it in metrics.TABLE if it.name == f"spiderpool_ipam_{verb}_{kind}_duration_seconds"]
        assert row.kind is metrics.Kind.GAUGE
