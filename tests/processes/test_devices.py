"""The real agent as a device plugin: real API server and rights, the kernel's links, kubelet's side of the API."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpclib.exceptions import GRPCError
from pyroute2 import IPRoute

from tests.processes.lab import CHART, Lab
from tests.servers.device_manager import DeviceManagerThread

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

NODE = "n2"
"""The one whose agent has the rights of its ServiceAccount."""
ENI, NIC = "spidernet.io/sub-eni", "spidernet.io/us2a-nic"
PLUGIN: dict[str, Any] = {
    "enabled": True,
    "devicePluginAffinity": {"nodeSelector": {"matchExpressions": [{"key": "drained", "operator": "DoesNotExist"}]}},
    "resourceAdvertisement": {
        "subENI": {
            "rules": [
                {"defaultMaxCount": 5, "nodeSelector": {"matchLabels": {"size": "large"}}},
                {"defaultMaxCount": 2},
            ]
        },
        "masterNIC": {"rules": [{"includeInterfaces": ["us2*"], "excludeInterfaces": ["us2x"], "defaultMaxCount": 10}]},
    },
}


class Site:
    """A node whose agent is a device plugin, and its kubelet."""

    def __init__(self, lab: Lab, kubelet: DeviceManagerThread) -> None:
        self.lab = lab
        self.kubelet = kubelet

    def label(self, **labels: str | None) -> None:
        body = {"metadata": {"labels": labels}}
        self.lab.control_plane.request("PATCH", f"/api/v1/nodes/{NODE}", body)

    def health(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.lab.health_ports[NODE]}/healthz", timeout=5) as answer:
            tree = json.loads(answer.read())
        text = json.dumps(_find(tree, "devices"))
        assert text != "null", tree
        return text

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.lab.metric_ports[NODE]}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())

    def restart_agent(self, **changes: Any) -> None:
        self.lab.agent_config["agent"] = {"networkResourcePlugin": {**PLUGIN, **changes}}
        self.lab.agent_config["agent"]["networkResourcePlugin"]["kubeletRootDir"] = str(self.root)
        self.lab.processes[NODE].stop()
        self.lab.start_agent(NODE)

    @property
    def root(self) -> Path:
        return self.lab.folder / "kubelet"

    def grant(self) -> None:
        """The rights that the chart gives to agents that are device plugins."""
        values = ("--set", "spiderpoolAgent.networkResourcePlugin.enabled=true")
        cluster, space = self.lab.control_plane, self.lab.namespace
        rendered = cluster.helm("template", "spiderpool", str(CHART), "--namespace", space, *values)
        for document in yaml.safe_load_all(rendered):
            if document and document["kind"] == "ClusterRole" and document["metadata"]["name"] == "spiderpool-agent":
                document["metadata"]["name"] += f"-{space}"
                document["metadata"].setdefault("labels", {})["lab"] = space
                cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(document))


def _find(tree: Any, name: str) -> Any:
    if tree.get("name") == name:
        return tree
    return next((found for child in tree.get("children", ()) if (found := _find(child, name))), None)


@pytest.fixture(scope="module")
def site(lab: Lab) -> Iterator[Site]:
    before = dict(lab.agent_config)
    lab.agent_config["iaasNetworkProvider"] = {"serverUrl": "http://192.0.2.1:1"}
    with IPRoute() as route:
        route.link("add", ifname="us2a", kind="bridge")
        route.link("add", ifname="us2x", kind="bridge")
        try:
            with DeviceManagerThread(lab.folder / "kubelet") as kubelet:
                made = Site(lab, kubelet)
                made.restart_agent()
                yield made
        finally:
            lab.agent_config = before
            for name in ("us2a", "us2b", "us2x"):
                for index in route.link_lookup(ifname=name):
                    route.link("del", index=index)


def test_without_the_right_to_read_its_node_an_agent_says_so_and_serves_pods(site: Site) -> None:
    site.lab.wait_readiness(NODE)
    site.lab.wait_for(lambda: "has not been read" in site.health() and "forbidden" in site.health())
    assert site.kubelet.counts() == {}
    site.grant()
    site.kubelet.wait_for({ENI: 2, NIC: 10}, seconds=60)


def test_iaas_e00031_allocatable_is_what_is_configured(site: Site) -> None:
    site.kubelet.wait_for({ENI: 2, NIC: 10})
    assert f'spiderpool_device_plugin_devices{{resource="{ENI}"}} 2.0' in site.metrics()
    manager = site.kubelet.manager
    assert site.kubelet.call(manager.allocate, ENI, ["sub-eni-0", "sub-eni-1"]) == 1
    with pytest.raises(GRPCError, match=r"no device 'sub-eni-2': there are 2 devices"):
        site.kubelet.call(manager.allocate, ENI, ["sub-eni-2"])
    assert 'outcome="refused"' in site.metrics()


def test_iaas_us2_allocatable_follows_labels_and_interfaces(site: Site) -> None:
    site.kubelet.wait_for({ENI: 2, NIC: 10})
    registered = len(site.kubelet.manager.registrations)
    site.label(size="large")
    site.kubelet.wait_for({ENI: 5, NIC: 10})
    assert len(site.kubelet.manager.registrations) == registered, "a count is pushed"
    with IPRoute() as route:
        route.link("add", ifname="us2b", kind="bridge")
        site.kubelet.wait_for({ENI: 5, NIC: 10, "spidernet.io/us2b-nic": 10})
        route.link("del", index=route.link_lookup(ifname="us2b")[0])
    site.kubelet.wait_for({ENI: 5, NIC: 10})
    site.label(drained="yes")
    site.kubelet.wait_for({})
    site.label(drained=None, size=None)
    site.kubelet.wait_for({ENI: 2, NIC: 10})


def test_iaas_e00044_allocatable_recovers_after_an_agent_or_a_kubelet_has_started_anew(site: Site) -> None:
    site.kubelet.wait_for({ENI: 2, NIC: 10})
    site.lab.kill(NODE)
    site.kubelet.wait_for({})
    site.lab.start_agent(NODE)
    site.kubelet.wait_for({ENI: 2, NIC: 10})
    site.kubelet.call(site.kubelet.manager.stop)
    site.kubelet.call(site.kubelet.manager.start)
    site.kubelet.wait_for({ENI: 2, NIC: 10})
    site.restart_agent(enabled=False)
    site.kubelet.wait_for({})
    site.lab.wait_readiness(NODE)
    assert site.kubelet.counts() == {ENI: 0, NIC: 0}, "the control: it is no device plugin now"
    site.restart_agent()
    site.kubelet.wait_for({ENI: 2, NIC: 10})


def test_without_a_provider_there_are_no_sub_interfaces(site: Site) -> None:
    url = site.lab.agent_config.pop("iaasNetworkProvider")
    try:
        site.restart_agent()
        site.kubelet.wait_for({NIC: 10})
    finally:
        site.lab.agent_config["iaasNetworkProvider"] = url
        site.restart_agent()
    site.kubelet.wait_for({ENI: 2, NIC: 10})
