"""Area reservedip: addresses that nobody gets."""

import pytest

from tests.cases.workloads import ippool, pod
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]


def test_S00001_reserved_address(world: World) -> None:
    pools = world.pair(1)
    reservations = [world.reserve(*world.pools[names[0]], suffix=family) for family, names in pools.items()]
    world.apply(pod("p", ippool(**pools)))
    assert pools["ipv4"][0] in world.refusal("p")
    for name in reservations:
        world.unreserve(name)
    world.assert_from(world.pod("p"), pools["ipv4"][0], pools["ipv6"][0])


def test_S00002_excluded_addresses(world: World) -> None:
    pool = world.pool(4)
    first, second, third, fourth = world.pools[pool]
    world.change_pool(pool, excludeIPs=[f"{first}-{second}", fourth])
    for name in ("a", "b"):
        world.apply(pod(name, ippool([pool])))
    world.wait(world.held, "one of them runs")
    (waiting,) = {"a", "b"} - set(world.held_names())
    world.refusal(waiting)
    assert set(world.records(pool)) == {third}
