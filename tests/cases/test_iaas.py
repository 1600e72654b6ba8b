"""Area iaas: pods whose addresses a cloud's network provider has to know of.

Which node has room for a pod is the device plugin's and the scheduler's business; here the pool has no room for more.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.cases.workloads import default_network, pod
from tests.cases.world import World
from tests.provider import ProviderServer

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

_CONFIGS = "/apis/spiderpool.spidernet.io/v2beta1/namespaces/{}/spidermultusconfigs"
_DEFINITIONS = "/apis/k8s.cni.cncf.io/v1/namespaces/{}/network-attachment-definitions"


@pytest.fixture
def provider(world: World) -> Iterator[ProviderServer]:
    """The controllers ask it, each request for two seconds at most."""
    lab = world.lab
    with ProviderServer() as running:
        lab.controller_config = {"iaasNetworkProvider": {"serverUrl": running.url, "httpRequestTimeout": "2s"}}
        _restart_controllers(world)
        yield running
        lab.controller_config = {}
        _restart_controllers(world)


@pytest.mark.parametrize("alias", ["", "cloud-net"])
def test_I00001_lifecycle(world: World, provider: ProviderServer, alias: str) -> None:
    """With a name of its own for the definition as well."""
    pool = world.pool(2)
    network = _network(world, pool, alias)
    notes = default_network(network)
    for name in ("a", "b"):
        world.apply(pod(name, notes))
    held = {name: world.pod(name) for name in ("a", "b")}
    for name, one in held.items():
        (address,) = one.addresses["eth0"]
        mac, vlan = provider.cloud.said[address]
        (detail,) = world.endpoints()[name]["status"]["current"]["ips"]
        assert (detail["ipv4"].partition("/")[0], detail["mac"], detail["vlan"]) == (address, mac, vlan)
        assert provider.cloud.assigned[address] == (one.uid, one.node, _mac(f"{one.node}-up"))
        (asked,) = [request.body for request in provider.asked("allocate") if request.body["podName"] == name]
        assert (asked["podNamespace"], asked["podUID"], asked["nodeName"]) == (world.namespace, one.uid, one.node)
        assert asked["iaasIPsAllocationRequest"] == [
            {"ipAddress": address, "subnet": str(world.subnet()), "parentNicMac": _mac(f"{one.node}-up")}
        ]
    # No room for a third one, until one has gone and the provider has heard of it.
    world.apply(pod("c", notes))
    world.refusal("c", match="no IPv4 address")
    (going,) = held["a"].addresses["eth0"]
    provider.down = True
    world.delete("Pod", "a")
    world.gone("a")
    world.refusal("c", match="1 not released by the network provider yet")
    assert provider.cloud.assigned[going][0] == held["a"].uid
    provider.heal()
    third = world.pod("c")
    assert third.addresses["eth0"] == (going,)
    assert provider.cloud.assigned[going][0] == third.uid
    released = [request.body for request in provider.asked("release") if request.body["podName"] == "a"]
    assert released[-1] == {
        "nodeName": held["a"].node,
        "parentNicMac": _mac(f"{held['a'].node}-up"),
        "podName": "a",
        "podNamespace": world.namespace,
        "podUID": held["a"].uid,
        "subnet": str(world.subnet()),
        "ipAddress": going,
    }
    for name in ("b", "c"):
        world.delete("Pod", name)
    world.gone("b", "c")
    world.wait(lambda: not provider.cloud.assigned and not _owed(world, pool), "the provider has heard of all")
    assert provider.cloud.violations == []


def test_I00001_other_networks_are_not_asked_for(world: World, provider: ProviderServer) -> None:
    """The negative control: a VLAN whose id is known."""
    pool = world.pool(2)
    network = _network(world, pool, "", vlanMode="manual", vlanID=100)
    world.apply(pod("a", default_network(network)))
    world.pod("a")
    (detail,) = world.endpoints()["a"]["status"]["current"]["ips"]
    assert (detail.get("mac"), detail.get("vlan", 0)) == (None, 0)
    world.delete("Pod", "a")
    world.gone("a")
    assert provider.requests == []


def _network(world: World, pool: str, alias: str, **vlan: Any) -> str:
    """A SpiderMultusConfig whose definition says what pods' runtimes are told; ``namespace/name``."""
    notes = {"multus.spidernet.io/cr-name": alias} if alias else {}
    block = {"master": ["eth9"], "vlanMode": "auto", "ippools": {"ipv4": [pool]}, **vlan}
    world.request(
        "POST",
        _CONFIGS.format(world.namespace),
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderMultusConfig",
            "metadata": {"name": "cloud", "annotations": notes},
            "spec": {"cniType": "vlan", "enableCoordinator": False, "vlan": block},
        },
    )
    name = alias or "cloud"

    def definition() -> dict[str, Any]:
        items = world.request("GET", _DEFINITIONS.format(world.namespace))["items"]
        return next((item for item in items if item["metadata"]["name"] == name), {})

    (plugin,) = json.loads(world.wait(definition, f"{name} is there")["spec"]["config"])["plugins"]
    full = world.network(name, ipv4=plugin["ipam"]["default_ipv4_ippool"])
    main = {key: value for key, value in plugin.items() if key in ("type", "vlanMode", "vlanId")}
    world.kubelets.mains[full] = {**main, "master": "{node}-up"}
    return full


def _owed(world: World, pool: str) -> list[str]:
    withheld = json.loads(world.status(pool).get("withheldIPs") or "{}")
    return [address for address, entry in withheld.items() if "owed" in entry]


def _mac(name: str) -> str:
    with IPRoute() as route:
        (found,) = route.get_links(route.link_lookup(ifname=name)[0])
        return str(found.get("address"))


def _restart_controllers(world: World) -> None:
    for name in world.lab.controllers:
        world.restart(name)
    world.lab.wait_readiness(*world.lab.controllers)
    world.lab.wait_ready()
    world.lab.admission.wait()
