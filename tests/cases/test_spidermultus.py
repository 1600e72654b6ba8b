"""Area spidermultus, data path: what its definitions make of a pod; and area annotation, what the kernel has of it.

The definitions are as the controller of the original writes them from a SpiderMultusConfig. The agent is the meta
plugin, and the test's own namespace is the node.
"""

import json
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.netns import Netns
from tests.processes import networks
from tests.processes.lab import CniError, Lab, Pod, call
from tests.servers import ServersUnavailable, debian_plugins

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(120)]

NODE = "n1"
FIRST, SECOND = "100.127.1", "100.127.2"
"""The subnets of eth0 and net1."""


class Networks:
    """Pods of which the first interface is on one LAN and net1 is what a definition says."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.tag = secrets.token_hex(3)
        self.pods: list[Pod] = []
        for name, subnet in (("first", FIRST), ("second", SECOND)):
            lab.create_pool(
                f"{name}-{self.tag}",
                ipVersion=4,
                subnet=f"{subnet}.0/24",
                gateway=f"{subnet}.1",
                ips=[f"{subnet}.10-{subnet}.40"],
                **({"routes": [{"dst": "203.0.113.0/24", "gw": f"{subnet}.3"}]} if name == "second" else {}),
            )

    def ipam(self, name: str) -> dict[str, Any]:
        return {"type": "spiderpool", "default_ipv4_ippool": [f"{name}-{self.tag}"]}

    def define(self, name: str, *plugins: dict[str, Any]) -> str:
        """A definition as the controller writes it; its name."""
        config = {"cniVersion": "0.3.1", "name": name, "plugins": list(plugins)}
        networks.define(self.lab.control_plane, self.lab.namespace, f"{name}-{self.tag}", config)
        return f"{name}-{self.tag}"

    def macvlan(self, **more: Any) -> dict[str, Any]:
        return {"type": "macvlan", "master": f"{NODE}-up", "mode": "bridge", "ipam": self.ipam("second"), **more}

    def attach(self, network: str, **notes: str) -> Netns:
        """A pod with it; its namespace."""
        annotations = {"k8s.v1.cni.cncf.io/networks": network, **notes}
        pod = Pod(self.lab, f"pod-{self.tag}-{len(self.pods)}", NODE, annotations=annotations)
        pod.new_sandbox()
        self.pods.append(pod)
        pod.add(config=self.head)
        assert pod.netns is not None
        return pod.netns

    @property
    def head(self) -> dict[str, Any]:
        """As the installed configuration is."""
        return {
            **self.lab.config(NODE),
            "networks": True,
            "coordinator": {"mode": "auto"},
            "ipam": self.ipam("first"),
        }

    def close(self) -> None:
        for pod in self.pods:
            pod.delete(config=self.head)
            assert pod.netns is not None
            assert pod.netns.run(names) == ["lo"]
            pod.netns.__exit__(None, None, None)
        self.lab.wait_for(lambda: not any(pod.uid in str(self.lab.records()) for pod in self.pods))
        for name in ("first", "second"):
            self.lab.remove_pool(f"{name}-{self.tag}")


COORDINATOR = {"txQueueLen": 0, "tunePodRoutes": True, "mode": "auto", "type": "coordinator"}


@pytest.fixture
def made(lab: Lab) -> Iterator[Networks]:
    networks.install_kind(lab.control_plane)
    with IPRoute() as route:
        index = route.link_lookup(ifname=f"{NODE}-up")[0]
        route.addr("add", index=index, address=f"{FIRST}.2", prefixlen=24)
    case = Networks(lab)
    yield case
    case.close()
    with IPRoute() as route:
        route.addr("del", index=index, address=f"{FIRST}.2", prefixlen=24)
        for one in route.get_rules(family=socket.AF_INET):
            if one.get_attr("FRA_PRIORITY") == 1000:
                route.rule("del", priority=1000, table=one.get_attr("FRA_TABLE"))


def names() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def link(ifname: str) -> Callable[[], dict[str, Any]]:
    def look() -> dict[str, Any]:
        with IPRoute() as route:
            (found,) = route.get_links(ifname=ifname)
            return {"mtu": found.get_attr("IFLA_MTU"), "mac": found.get_attr("IFLA_ADDRESS")}

    return look


def way(destination: str, source: str = "") -> Callable[[], tuple[str, str]]:
    """Link and next hop of a packet."""

    def look() -> tuple[str, str]:
        with IPRoute() as route:
            asked = {"dst": destination} | ({"src": source} if source else {})
            (found,) = route.route("get", **asked)
            name = route.get_links(found.get_attr("RTA_OIF"))[0].get_attr("IFLA_IFNAME")
            return name, str(found.get_attr("RTA_GATEWAY"))

    return look


def address_of(ifname: str) -> Callable[[], list[str]]:
    def look() -> list[str]:
        with IPRoute() as route:
            index = route.link_lookup(ifname=ifname)[0]
            return [one.get_attr("IFA_ADDRESS") for one in route.get_addr(index=index, family=socket.AF_INET)]

    return look


def test_M00021_chained_plugins(made: Networks) -> None:
    try:
        folder = debian_plugins()
    except ServersUnavailable as problem:
        pytest.skip(str(problem))
    tuning = {"type": "tuning", "mtu": 1380}
    name = made.define("chained", made.macvlan(), tuning, COORDINATOR)
    (made.lab.plugins / "tuning").unlink(missing_ok=True)
    (made.lab.plugins / "tuning").symlink_to(folder / "tuning")
    assert made.attach(name).run(link("net1"))["mtu"] == 1380


def test_M00022_rp_filter(made: Networks) -> None:
    def setting() -> str:
        with open("/proc/sys/net/ipv4/conf/all/rp_filter") as file:  # noqa: PTH123
            return file.read().strip()

    name = made.define("strict", made.macvlan(), {**COORDINATOR, "podRPFilter": 2})
    assert made.attach(name).run(setting) == "2"


def test_M00024_mac_prefix(made: Networks) -> None:
    name = made.define("prefixed", made.macvlan(), {**COORDINATOR, "podMACPrefix": "0a:1b"})
    netns = made.attach(name)
    (address,) = netns.run(address_of("net1"))
    assert netns.run(link("net1"))["mac"] == "0a:1b:" + ":".join(f"{int(part):02x}" for part in address.split("."))
    bad = made.define("multicast", made.macvlan(), {**COORDINATOR, "podMACPrefix": "01:1b"})
    with pytest.raises(CniError, match=r"podMACPrefix: .*01:1b"):
        made.attach(bad)


def test_M00026_address_of_veth0(made: Networks) -> None:
    pod = Pod(made.lab, f"veth-{made.tag}", NODE)
    pod.new_sandbox()
    made.pods.append(pod)
    head = {**made.head, "coordinator": {"mode": "auto", "vethLinkAddress": "169.254.100.1"}}
    pod.add(config=head)
    assert pod.netns is not None
    assert pod.netns.run(address_of("veth0")) == ["169.254.100.1"]


def test_M00033_mtu_of_macvlan(made: Networks) -> None:
    name = made.define("small", made.macvlan(mtu=1400), COORDINATOR)
    assert made.attach(name).run(link("net1"))["mtu"] == 1400
    with pytest.raises(CniError, match=r"mtu: 9000 .*1500"):
        made.attach(made.define("large", made.macvlan(mtu=9000), COORDINATOR))


@pytest.mark.parametrize("indent", [None, 2])
def test_M00036_M00037_networks_as_json_over_a_multusconfig(made: Networks, indent: int | None) -> None:
    """Compact and pretty; the definition is the controller's."""
    name, lab = f"json-{made.tag}-{indent or 0}", made.lab
    body = {
        "apiVersion": "spiderpool.spidernet.io/v2beta1",
        "kind": "SpiderMultusConfig",
        "metadata": {"name": name},
        "spec": {
            "cniType": "macvlan",
            "macvlan": {"master": [f"{NODE}-up"], "ippools": {"ipv4": [f"second-{made.tag}"]}},
        },
    }
    configs = f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{lab.namespace}/spidermultusconfigs"
    lab.control_plane.request("POST", configs, body)
    path = f"/apis/k8s.cni.cncf.io/v1/namespaces/{lab.namespace}/network-attachment-definitions/{name}"
    lab.wait_for(lambda: lab.control_plane.request("GET", path, check=False).body.get("kind") != "Status")
    asked = json.dumps([{"name": name, "namespace": lab.namespace, "interface": "lan2"}], indent=indent)
    netns = made.attach(asked)
    (address,) = netns.run(address_of("lan2"))
    assert address.startswith(SECOND)
    assert netns.run(address_of("eth0"))[0].startswith(FIRST)
    lab.control_plane.request("DELETE", f"{configs}/{name}")


def test_V00007_the_definition_wins_over_the_cluster(made: Networks) -> None:
    name = made.define("tuned", made.macvlan(), {**COORDINATOR, "hijackCIDR": ["198.18.0.0/15"], "txQueueLen": 77})
    netns = made.attach(name)
    assert netns.run(way("198.18.0.1", netns.run(address_of("net1"))[0]))[0] == "veth0"


def test_A00002_route_on_the_nic_whose_subnet_holds_the_next_hop(made: Networks) -> None:
    routes = json.dumps([{"dst": "192.0.2.0/24", "gw": f"{SECOND}.9"}])
    netns = made.attach(made.define("routed", made.macvlan(), COORDINATOR), **{"ipam.spidernet.io/routes": routes})
    assert netns.run(way("192.0.2.7")) == ("net1", f"{SECOND}.9")


def test_A00010_every_nic_has_the_address_of_its_pool(made: Networks) -> None:
    pools = [
        {"interface": nic, "ipv4": [f"{pool}-{made.tag}"]} for nic, pool in (("eth0", "first"), ("net1", "second"))
    ]
    name = made.define("plain", made.macvlan(), COORDINATOR)
    netns = made.attach(name, **{"ipam.spidernet.io/ippools": json.dumps(pools)})
    assert netns.run(address_of("eth0"))[0].startswith(FIRST)
    assert netns.run(address_of("net1"))[0].startswith(SECOND)


def test_A00011_routes_and_default_route_of_the_pool(made: Networks) -> None:
    netns = made.attach(made.define("plain", made.macvlan(), COORDINATOR))
    (address,) = netns.run(address_of("net1"))
    assert netns.run(way("203.0.113.5")) == ("net1", f"{SECOND}.3")
    assert netns.run(way("8.8.8.8", address)) == ("net1", f"{SECOND}.1")
    assert netns.run(way("8.8.8.8")) == ("eth0", f"{FIRST}.1")


def test_A00012_default_route_nic(made: Networks) -> None:
    notes = {"ipam.spidernet.io/default-route-nic": "net1"}
    netns = made.attach(made.define("plain", made.macvlan(), COORDINATOR), **notes)
    assert netns.run(way("8.8.8.8")) == ("net1", f"{SECOND}.1")
    (address,) = netns.run(address_of("eth0"))
    assert netns.run(way("8.8.8.8", address)) == ("eth0", f"{FIRST}.1")


def test_a_definition_without_coordinator_leaves_routes_alone(made: Networks) -> None:
    """Negative control of those above."""
    netns = made.attach(made.define("alone", made.macvlan()))
    (address,) = netns.run(address_of("net1"))
    assert netns.run(way("8.8.8.8", address)) == netns.run(way("8.8.8.8"))


def test_the_plugin_is_called_by_the_name_that_a_runtime_knows(made: Networks) -> None:
    """Our coordinator needs no plugin of its name where we are the meta plugin."""
    assert not (made.lab.plugins / "coordinator").exists()
    assert call(made.lab.plugins / "macvlan", "VERSION", {"cniVersion": "1.0.0"}, {})["supportedVersions"]
