"""Area reservedip: addresses that nobody gets."""

import pytest

from tests.cases.refusals import causes
from tests.cases.subnets import subnet
from tests.cases.workloads import ippool, pod
from tests.cases.world import World
from tests.processes.webhooks import IPPOOLS

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


def test_S00003_excluding_an_address_in_use(world: World) -> None:
    pool = world.pool(4)
    world.apply(pod("p", ippool([pool])))
    (used,) = world.pod("p").addresses["eth0"]
    free = next(ip for ip in world.pools[pool] if ip != used)
    change = {"spec": {"excludeIPs": [used]}}
    # What is in use is seen in the status: the record is there before the pod is told its address.
    (refused,) = causes(world.control_plane.request("PATCH", f"{IPPOOLS}/{pool}", change, check=False))
    assert "spec.excludeIPs" in refused and used in refused
    world.change_pool(pool, excludeIPs=[free])


def test_S00004_what_a_subnet_excludes_is_in_none_of_its_pools(world: World) -> None:
    with subnet(world) as lan:
        barred = lan.range(20, 23)
        lan.change(excludeIPs=[barred])
        refused = world.wait(lambda: causes(lan.pool("m", 18, 21, check=False)), "it is seen")
        assert len(refused) == 1 and "spec.ips" in refused[0] and lan.name in refused[0]
        lan.pool("m", 24, 25)
        name = f"{lan.name}-m"
        world.pools[name] = (lan.at(24), lan.at(25))
        world.apply(pod("p", ippool([name])))
        assert world.pod("p").addresses["eth0"] == (lan.at(24),)
        world.delete("Pod", "p")
        world.gone("p")
        del world.pools[name]
