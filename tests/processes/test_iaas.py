"""A cloud's network provider: a real server, with the real API server, controller and agents.

The kernel here makes no VLAN links, so the main plugin is played; the links are made in a guest (tests/vm).
"""

import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from actors.provider.provider import SKEW_SECONDS
from tests.processes.lab import CniError, Lab, Pod
from tests.processes.test_original_plugins import arguments, ask
from tests.processes.webhooks import IPPOOLS
from tests.provider import ProviderServer
from tests.servers import ControlPlane

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(240)]

TIMEOUT_SECONDS = 4
"""Of a request to the provider: what nobody answers takes this long."""


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    with ProviderServer() as running:
        yield running


@pytest.fixture(scope="module")
def lab(control_plane: ControlPlane, provider: ProviderServer) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    running = Lab(
        control_plane, environment={"SPIDERPOOL_IP_COOLDOWN_DURATION": "1", "SPIDERPOOL_MULTUS_CONFIG_ENABLED": "true"}
    )
    running.controller_config = {
        "iaasNetworkProvider": {"serverUrl": provider.url, "httpRequestTimeout": f"{TIMEOUT_SECONDS}s"}
    }
    with running:
        running.create_pools(40)
        yield running


@pytest.fixture(autouse=True)
def healthy(lab: Lab, provider: ProviderServer) -> Iterator[None]:
    """Whatever became of a test: the next one begins with a provider that works and has nothing assigned."""
    yield
    provider.heal()
    lab.wait_for(lambda: not provider.cloud.assigned, seconds=90)


@pytest.fixture
def pod(lab: Lab, provider: ProviderServer, request: pytest.FixtureRequest) -> Iterator[Pod]:
    made = lab.pod(request.node.name.replace("_", "-").replace("[", "-").replace("]", "").replace(" ", "-")[:60])
    made.new_sandbox()
    yield made
    provider.heal()
    if made.netns is not None:
        lab.wait_for(lambda: _gone(made), seconds=60)


def config(lab: Lab, node: str) -> dict[str, Any]:
    return lab.config(node, type="vlan", vlanMode="auto")


def add(pod: Pod) -> dict[str, Any]:
    return pod.add(binary=pod.lab.plugins / "spiderpool", config=config(pod.lab, pod.node))


def delete(pod: Pod) -> None:
    pod.delete(binary=pod.lab.plugins / "spiderpool", config=config(pod.lab, pod.node))


def _gone(pod: Pod) -> bool:
    try:
        delete(pod)
    except CniError:
        return False
    return True


def four(pod: Pod) -> str:
    return next(address for address in pod.addresses if "." in address)


def mac_of(name: str) -> str:
    with IPRoute() as route:
        (found,) = route.get_links(route.link_lookup(ifname=name)[0])
        return str(found.get("address"))


def withheld(lab: Lab) -> dict[str, Any]:
    return dict(json.loads(lab.status(lab.pools_of_pods["ipv4"][0]).get("withheldIPs") or "{}"))


def settled(lab: Lab, provider: ProviderServer) -> None:
    """Nothing of it is left, on either side."""
    lab.wait_for(lambda: not lab.records())
    lab.wait_for(lambda: not any("owed" in entry for entry in withheld(lab).values()))
    assert provider.cloud.assigned == {}
    assert provider.cloud.violations == []
    lab.wait_for(lambda: not lab.endpoints())


def test_address_vlan_and_mac(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    add(pod)
    address = four(pod)
    assert provider.cloud.assigned == {address: (pod.uid, "n1", mac_of("n1-up"))}
    (request,) = [one for one in provider.asked("allocate") if one.body["podName"] == pod.name]
    assert request.body["iaasIPsAllocationRequest"] == [
        {"ipAddress": address, "subnet": "10.6.0.0/16", "parentNicMac": mac_of("n1-up")}
    ]
    assert (request.body["podNamespace"], request.body["podUID"]) == (lab.namespace, pod.uid)
    assert 0 < int(request.headers["X-Request-Timeout-Ms"]) <= 1000 * TIMEOUT_SECONDS
    mac, vlan = provider.cloud.said[address]
    (detail,) = lab.endpoints()[pod.name]["status"]["current"]["ips"]
    assert (detail["mac"], detail["vlan"]) == (mac, vlan)
    # What the foreign plugin `vlan` asks before it makes the link.
    status, body = ask(lab, pod.node, "GET", "/workloadendpoint", podNamespace=lab.namespace, podName=pod.name)
    assert status == 200
    (interface,) = body["interfaces"]
    assert (interface["interface"], interface["mac"], interface["vlan"]) == ("eth0", mac, vlan)
    # Once more, by another life of the agent's: the same.
    result = pod.result
    lab.kill(pod.node)
    lab.start_agent(pod.node)
    lab.wait_readiness(pod.node)
    assert add(pod) == result
    delete(pod)
    settled(lab, provider)


@pytest.mark.parametrize(
    "fault", ["500", "404", "hang", "reset", "reset after", "garbage", "another address", "missing", "no vlan"]
)
def test_a_failed_add_leaks_nothing(lab: Lab, provider: ProviderServer, pod: Pod, fault: Any) -> None:
    provider.faults["allocate"].append(fault)
    with pytest.raises(CniError) as failed:
        add(pod)
    assert failed.value.document["code"] == (103 if fault == "404" else 11), failed.value
    assert "provider" in failed.value.document["msg"]
    lab.wait_for(lambda: not lab.records())
    # The same sandbox again, which may have another address: the first one is withheld meanwhile.
    lab.wait_for(lambda: _added(pod))
    assert provider.cloud.assigned[four(pod)][0] == pod.uid
    delete(pod)
    settled(lab, provider)


def _added(pod: Pod) -> bool:
    try:
        add(pod)
    except CniError as error:
        if error.document["code"] != 11:
            raise
        return False
    return True


def test_a_provider_that_is_down_when_a_pod_goes(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    add(pod)
    address = four(pod)
    time.sleep(TIMEOUT_SECONDS + SKEW_SECONDS + 1)  # until nothing of the ADD can be under way any more
    asked = len(provider.asked("release"))
    provider.faults["release"].append("hang")
    begun = time.monotonic()
    delete(pod)
    assert time.monotonic() - begun < TIMEOUT_SECONDS, "DEL waited for the provider"
    lab.wait_for(lambda: len(provider.asked("release")) > asked)
    provider.down = True
    lab.wait_for(lambda: address not in lab.records())
    lab.wait_for(lambda: provider.asked("release") and _said(lab), seconds=60)
    assert withheld(lab)[address]["owed"]["podUid"] == pod.uid
    metrics = _metrics(lab, "controller")
    assert "spiderpool_provider_releases_failing 1" in metrics
    assert 'spiderpool_provider_requests_total{method="release",outcome="refused"}' in metrics
    # The controller dies over it; the next one goes on.
    lab.kill("controller")
    lab.start_controller()
    lab.wait_readiness("controller")
    assert withheld(lab)[address]["owed"]["podUid"] == pod.uid
    assert provider.cloud.assigned[address][0] == pod.uid
    provider.heal()
    settled(lab, provider)


def _said(lab: Lab) -> bool:
    pool = lab.pools_of_pods["ipv4"][0]
    events = lab.control_plane.request("GET", "/api/v1/namespaces/default/events").body["items"]
    return any(
        one["reason"] == "ProviderNotReleased" and one["involvedObject"]["name"] == pool and "503" in one["message"]
        for one in events
    )


def _metrics(lab: Lab, program: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{lab.metric_ports[program]}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_controller_that_dies_while_the_provider_is_asked(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    provider.faults["allocate"].append("slow")
    asked = len(provider.asked("allocate"))
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(add(pod))
        except CniError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    lab.wait_for(lambda: len(provider.asked("allocate")) > asked)
    lab.kill("controller")
    lab.start_controller()
    thread.join(60)
    assert outcome
    if isinstance(outcome[0], CniError):
        lab.wait_for(lambda: _added(pod), seconds=60)
    assert provider.cloud.assigned == {four(pod): (pod.uid, "n1", mac_of("n1-up"))}
    delete(pod)
    lab.wait_for(lambda: not provider.cloud.assigned, seconds=90)
    settled(lab, provider)


def test_a_pod_that_goes_without_a_del(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    """The collector has the address back only when the provider has been told, by the node that it was on."""
    add(pod)
    address = four(pod)
    assert pod.netns is not None
    pod.netns.__exit__(None, None, None)
    pod.netns = None
    lab.wait_for(lambda: not provider.cloud.assigned, seconds=90)
    releases = [one.body for one in provider.asked("release") if one.body["podUID"] == pod.uid]
    assert releases[-1] == {
        "nodeName": "n1",
        "parentNicMac": mac_of("n1-up"),
        "podName": pod.name,
        "podNamespace": lab.namespace,
        "podUID": pod.uid,
        "subnet": "10.6.0.0/16",
        "ipAddress": address,
    }
    settled(lab, provider)


def test_pods_of_other_networks_are_none_of_its_business(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    """The negative control of all this: the same pools, and nothing is asked."""
    asked = len(provider.requests)
    pod.add()
    pod.delete()
    lab.wait_for(lambda: not lab.records())
    assert len(provider.requests) == asked
    assert not any("owed" in entry for entry in withheld(lab).values())


def test_a_master_that_is_not_there_costs_no_address(lab: Lab, provider: ProviderServer, pod: Pod) -> None:
    asked = len(provider.requests)
    with pytest.raises(CniError, match="nothing0"):
        pod.add(binary=lab.plugins / "spiderpool", config={**config(lab, pod.node), "master": "nothing0"})
    assert len(provider.requests) == asked
    delete(pod)
    settled(lab, provider)


def test_the_originals_plugin(lab: Lab, provider: ProviderServer) -> None:
    """It asks for the address, then for the rest, and says nothing of what it makes: the SpiderMultusConfig does."""
    for name, block in (("cloud", {"vlanMode": "auto"}), ("plain", {"vlanID": 100})):
        lab.control_plane.request(
            "POST",
            f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{lab.namespace}/spidermultusconfigs",
            {
                "apiVersion": "spiderpool.spidernet.io/v2beta1",
                "kind": "SpiderMultusConfig",
                "metadata": {"name": name, "annotations": {"multus.spidernet.io/cr-name": f"{name}-net"}},
                "spec": {"cniType": "vlan", "vlan": {"master": ["n1-up"], **block}},
            },
        )
    for name in ("plain", "cloud"):
        notes = {
            "ipam.spidernet.io/ippool": json.dumps(lab.pools_of_pods),
            "v1.multus-cni.io/default-network": f"{lab.namespace}/{name}-net",
        }
        pod = Pod(lab, f"of-the-original-{name}", "n1", annotations=notes)
        pod.new_sandbox()
        lab.wait_for(lambda pod=pod: ask(lab, "n1", "POST", "/ipam/ip", arguments(pod))[0] == 200)
        status, body = ask(lab, "n1", "POST", "/ipam/ip", arguments(pod))
        assert status == 200
        four = next(ip for ip in body["ips"] if ip["version"] == 4)
        address = four["address"].partition("/")[0]
        _, found = ask(lab, "n1", "GET", "/workloadendpoint", podNamespace=lab.namespace, podName=pod.name)
        (interface,) = found["interfaces"]
        if name == "cloud":
            assert provider.cloud.assigned[address] == (pod.uid, "n1", mac_of("n1-up"))
            assert (four["mac"], four["vlan"]) == provider.cloud.said[address]
            assert (interface["mac"], interface["vlan"]) == provider.cloud.said[address]
        else:
            assert provider.cloud.assigned == {}
            assert "mac" not in interface
        assert ask(lab, "n1", "DELETE", "/ipam/ip", arguments(pod))[0] == 200
        assert pod.netns is not None
        pod.netns.__exit__(None, None, None)
    lab.wait_for(lambda: not provider.cloud.assigned, seconds=60)
    settled(lab, provider)


def test_a_deleted_pool_waits_for_the_provider(lab: Lab, provider: ProviderServer) -> None:
    name = f"{lab.namespace}-cloud"
    lab.create_pool(name, ipVersion=4, subnet="10.9.0.0/16", ips=["10.9.0.5-10.9.0.6"])
    lab.control_plane.request("PATCH", f"{IPPOOLS}/{name}", {"metadata": {"finalizers": ["spiderpool.spidernet.io"]}})
    pod = lab.pod("of-a-pool-that-goes", pools={"ipv4": [name]})
    pod.new_sandbox()
    lab.wait_for(lambda: _added(pod))
    provider.down = True
    lab.control_plane.request("DELETE", f"{IPPOOLS}/{name}")
    delete(pod)
    lab.wait_for(lambda: "owed" in (lab.status(name).get("withheldIPs") or ""))
    assert lab.control_plane.request("GET", f"{IPPOOLS}/{name}").status == 200
    provider.heal()
    lab.wait_for(lambda: lab.control_plane.request("GET", f"{IPPOOLS}/{name}", check=False).status == 404, seconds=90)
    lab._pools.remove(name)
    assert provider.cloud.assigned == {}
