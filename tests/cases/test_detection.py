"""Area coordinator, the cases about conflicts and gateways: pods on a segment where others are, too."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.cases.workloads import default_network, pod, workload
from tests.cases.world import World
from tests.netns import Netns

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

MAC = "02:00:00:00:99:01"


@pytest.fixture(autouse=True)
def detecting(world: World) -> Iterator[None]:
    """Agents that look for addresses and gateways."""
    lab = world.lab
    lab.agent_config |= {"enableIPConflictDetection": True, "enableGatewayDetection": True}
    _restart_agents(world)
    yield
    lab.agent_config.clear()
    _restart_agents(world)


def test_C00007_conflict(world: World) -> None:
    pools = world.pair(1)
    notes = wired(world, pools)
    taken = [world.pools[names[0]][0] for names in pools.values()]
    with host(world, "router", *gateways(world)):
        with host(world, "stranger", *taken, mac=MAC):
            world.apply(pod("p", notes))
            assert MAC in world.wait(lambda: conflicts(world), "an event says who")
            world.refusal("p")
        assert set(world.pod("p").addresses["eth0"]) == set(taken)


def test_C00009_gateway(world: World) -> None:
    notes = wired(world, world.pair(3))
    world.apply(pod("p", notes))
    said = world.refusal("p", match="does not answer")
    assert any(f"eth0: gateway {gateway} does not answer" in said for gateway in gateways(world))
    with host(world, "router", *gateways(world)[:1]):
        assert f"eth0: gateway {gateways(world)[1]} does not answer" in world.refusal("p", match=gateways(world)[1])
    with host(world, "router", *gateways(world)):
        world.pod("p")


def test_C00018_address_in_conflict_of_a_stateless_pod(world: World) -> None:
    pools = world.pair(3)
    notes = wired(world, pools)
    four, six = (world.pools[pools[family][0]] for family in ("ipv4", "ipv6"))
    with host(world, "router", *gateways(world)), host(world, "stranger", four[0], mac=MAC):
        world.apply(workload("Deployment", "w", notes, replicas=2))
        addresses = {address for held in world.running(2).values() for address in held.addresses["eth0"]}
        assert addresses & {*four} == {*four[1:]}
        assert len(addresses & {*six}) == 2
        assert MAC in world.wait(lambda: conflicts(world), "an event says who")
        failures = [said for name in world.held() for said in world.kubelets.failures.get(name, ())]
        assert failures == []
        world.delete("Deployment", "w")
        world.wait(lambda: not world.records(pools["ipv4"][0]), "nothing is left")


def test_C00019_address_in_conflict_of_a_stateful_pod(world: World) -> None:
    pools = world.pair(3)
    notes = wired(world, pools)
    first = world.pools[pools["ipv4"][0]][0]
    with host(world, "router", *gateways(world)):
        with host(world, "stranger", first, mac=MAC):
            world.apply(workload("StatefulSet", "s", notes))
            assert f"eth0: {first} is used by {MAC} on the network" in world.refusal("s-0", match=MAC)
            said = world.kubelets.failures[f"{world.namespace}/s-0"]
            tried = len(said) + 3
            world.wait(lambda: len(said) >= tried, "it is tried again")
            assert "s-0" not in world.held_names()
            assert {ip: record["pod"] for ip, record in world.records(pools["ipv4"][0]).items()} == {
                first: f"{world.namespace}/s-0"
            }
        assert first in world.pod("s-0").addresses["eth0"]


# -- who is on the segment ---------------------------------------------------------------------------------------------


def wired(world: World, pools: Mapping[str, list[str]]) -> dict[str, str]:
    """Annotations of pods on the segment."""
    return default_network(world.network("lan", ipv4=pools["ipv4"], ipv6=pools["ipv6"], wired=True))


def gateways(world: World) -> list[str]:
    return [world.gateway(version) for version in (4, 6)]


@contextmanager
def host(world: World, name: str, *addresses: str, mac: str = "") -> Iterator[None]:
    """A machine with these addresses."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns(world.lab.folder / "netns", f"{world.name}-{name}"))
        with IPRoute() as route:
            port = f"{name}-port"
            route.link("add", ifname=port, kind="veth", peer={"ifname": name, **({"address": mac} if mac else {})})
            index, inside, lan = (route.link_lookup(ifname=one)[0] for one in (port, name, "lan"))
            stack.callback(_delete, index)
            route.link("set", index=index, master=lan, state="up")
            with netns.path.open() as namespace:
                route.link("set", index=inside, net_ns_fd=namespace.fileno())

        def configure() -> None:
            with IPRoute() as route:
                (end,) = route.link_lookup(ifname=name)
                for address in addresses:
                    length, flags = (64, {"flags": 2}) if ":" in address else (24, {})
                    route.addr("add", index=end, address=address, prefixlen=length, **flags)
                route.link("set", index=end, state="up")

        netns.run(configure)
        yield


def _delete(index: int) -> None:
    with IPRoute() as route:
        route.link("del", index=index)


def _restart_agents(world: World) -> None:
    for node in world.lab.nodes:
        world.restart(node)
    world.lab.wait_ready()


def conflicts(world: World) -> str:
    """What events about pods say of addresses in conflict."""
    items: list[dict[str, Any]] = world.request("GET", f"/api/v1/namespaces/{world.namespace}/events")["items"]
    return "\n".join(item["message"] for item in items if item["reason"] == "IPConflict")
