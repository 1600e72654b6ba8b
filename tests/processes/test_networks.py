"""Pods with several networks by their annotations: real API server, controller, agent, shim, kernel and plugins.

The test's own namespace is the node. Each pod's first interface is what the installed configuration makes; the others
are what definitions say that were written for Multus.
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pyroute2 import IPRoute

from cni.journal import Journal, State
from tests.processes import networks
from tests.processes.lab import CniError, Lab, Pod, call
from tests.processes.test_cni import cnitool, interfaces
from tests.servers import CniBinaries, ControlPlane, ServersUnavailable, debian_plugins

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

NODE = {4: ("10.6.255.1", 16), 6: ("fd00:6::ffff", 64)}
_STEPS = "spiderpool_netlink_step_seconds_count"
TUNED = "02:00:00:00:11:22"
STATUS = "k8s.v1.cni.cncf.io/network-status"


@pytest.fixture(scope="module")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node's folder of CNI configurations."""
    return tmp_path_factory.mktemp("net.d")


@pytest.fixture(scope="module")
def lab(control_plane: ControlPlane, configurations: Path) -> Iterator[Lab]:
    """As that of other modules; its agents know the folder."""
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    with Lab(control_plane, environment={"SPIDERPOOL_CNI_CONF_DIR": str(configurations)}) as running:
        running.create_pools(300)
        yield running


@pytest.fixture(scope="module")
def wide(lab: Lab, cni_binaries: CniBinaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with definitions, a pool for the second network, and a node with addresses."""
    networks.install_kind(lab.control_plane)
    lab.create_pool("net-b-v4", ipVersion=4, subnet="10.7.0.0/24", gateway="10.7.0.1", ips=["10.7.0.10-10.7.0.60"])
    ours = {"type": "spiderpool", "default_ipv4_ippool": ["net-b-v4"]}
    coordinator = {"type": "coordinator", "mode": "auto", "tunePodRoutes": True}
    state = str(tmp_path_factory.mktemp("host-local"))
    local = {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": "10.99.0.0/24"}]]}
    definitions: dict[str, list[dict[str, Any]]] = {
        "lan-b": [{"type": "macvlan", "master": "n1-up", "mode": "bridge", "ipam": ours}, coordinator],
        "lan-c": [{"type": "macvlan", "master": "n1-up", "ipam": ours}],
        "inside": [{"type": "macvlan", "master": "net1", "linkInContainer": True, "ipam": ours}],
        "below": [{"type": "macvlan", "master": "net2", "linkInContainer": True, "ipam": ours}],
        "above": [{"type": "macvlan", "master": "net1", "linkInContainer": True, "ipam": ours}],
        "foreign": [{"type": "bridge", "bridge": "br-foreign", "ipam": local}],
        "mixed": [{"type": "bridge", "bridge": "br-foreign", "ipam": ours}],
        "broken": [{"type": "macvlan", "master": "nothing0", "ipam": ours}],
        "absent": [{"type": "no-such-plugin"}],
        "overlay": [{"type": "bridge", "bridge": "br-overlay", "isDefaultGateway": True, "ipam": local}],
        "refused": [{"type": "bridge", "bridge": "br-foreign", "vlan": 9999}],
        "device": [{"type": "host-device", "device": "hostdev"}],
        "tuned": [{"type": "macvlan", "master": "n1-up", "ipam": ours}, {"type": "tuning", "mac": TUNED}],
        "ports": [{"type": "played-ports", "capabilities": {"portMappings": True}}],
    }
    for name, plugins in definitions.items():
        version = {"tuned": "1.0.0", "device": "1.0.0"}.get(name, "0.3.1")
        networks.define(
            lab.control_plane, lab.namespace, name, {"cniVersion": version, "name": name, "plugins": plugins}
        )
    with IPRoute() as route:
        index = route.link_lookup(ifname="n1-up")[0]
        for address, length in NODE.values():
            route.addr("add", index=index, address=address, prefixlen=length, flags=2)
    yield lab
    with IPRoute() as route:
        for address, length in NODE.values():
            route.addr("del", index=index, address=address, prefixlen=length)
        for name in ("br-foreign", "br-overlay", "br-pods"):
            for found in route.link_lookup(ifname=name):
                route.link("del", index=found)
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in route.get_rules(family=family):
                if one.get_attr("FRA_PRIORITY") == 1000:
                    route.rule("del", family=family, priority=1000, table=500)


@pytest.fixture(scope="module")
def debian() -> Path:
    """The folder of Debian's plugins."""
    try:
        return debian_plugins()
    except ServersUnavailable as problem:
        pytest.skip(str(problem))


def play(lab: Lab, name: str, script: str) -> None:
    """Put a plugin of somebody else's into the node's folder."""
    path = lab.plugins / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def default_routes() -> list[tuple[str, str]]:
    """The IPv4 ones of the main table, by next hop and link."""
    with IPRoute() as route:
        names = {one["index"]: one.get_attr("IFLA_IFNAME") for one in route.get_links()}
        found = [one for one in route.get_routes(family=socket.AF_INET, table=254) if one["dst_len"] == 0]
        return [(one.get_attr("RTA_GATEWAY"), names[one.get_attr("RTA_OIF")]) for one in found]


def retune(ifname: str, mac: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], address=mac)


class Runtime:
    """What kubelet's runtime does for one pod: it knows the first interface only."""

    def __init__(self, lab: Lab, binaries: CniBinaries, name: str, **annotations: str) -> None:
        keys = {"networks": "k8s.v1.cni.cncf.io/networks", "default": "v1.multus-cni.io/default-network"}
        notes = {keys[key]: value for key, value in annotations.items()}
        ipam = {f"default_{family}_ippool": pools for family, pools in lab.pools_of_pods.items()}
        self.lab = lab
        self.pod = Pod(lab, name, "n1", annotations=notes)
        self.path = os.pathsep.join([str(lab.plugins), binaries.path])
        self.config = {**lab.config("n1"), "networks": True, "coordinator": {"mode": "auto"}}
        self.config["ipam"] = {"type": "spiderpool", **ipam}
        self.pod.new_sandbox()

    def call(self, verb: str, **config: Any) -> dict[str, Any]:
        environment = {**self.pod.environment(), "CNI_PATH": self.path}
        return call(self.lab.plugins / "macvlan", verb, {**self.config, **config}, environment)

    def inside(self) -> list[str]:
        assert self.pod.netns is not None
        return self.pod.netns.run(interfaces)

    def addresses(self, ifname: str) -> list[str]:
        def listed() -> list[str]:
            with IPRoute() as route:
                index = route.link_lookup(ifname=ifname)[0]
                found = [one.get_attr("IFA_ADDRESS") for one in route.get_addr(index=index)]
                return [one for one in found if not one.startswith("fe80")]

        assert self.pod.netns is not None
        return self.pod.netns.run(listed)

    def status(self) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.lab.namespace}/pods/{self.pod.name}"
        notes = self.lab.control_plane.request("GET", path).body["metadata"].get("annotations")
        return list(json.loads((notes or {}).get(STATUS, "[]")))

    def told(self) -> list[dict[str, Any]]:
        """The same once it is there: no ADD waits for it."""
        self.lab.wait_for(self.status)
        return self.status()

    def records(self) -> dict[str, str]:
        """Address to NIC."""
        return {ip: one["nic"] for ip, one in self.lab.records().items() if one["podUid"] == self.pod.uid}

    def held(self) -> list[str]:
        """Entries of the journal, but for what is being released: a request without an answer is so twice, slowly."""
        mine = Journal(self.lab.folder / "n1" / "journal").of(self.pod.cid)
        return [f"{one.ifname} {one.part} {one.state}" for one in mine if one.state is not State.RELEASING]

    def gone(self) -> None:
        """Nothing is left, anywhere."""
        self.lab.wait_for(lambda: not self.records())
        self.lab.wait_for(lambda: self.pod.name not in self.lab.endpoints())
        self.lab.wait_for(lambda: self.held() == [])
        assert self.inside() == ["lo"]
        assert [name for _, name in socket.if_nameindex() if name.startswith("veth")] == []


@pytest.fixture
def runtime(wide: Lab, cni_binaries: CniBinaries, request: pytest.FixtureRequest) -> Any:
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:40] + secrets.token_hex(3)
    return lambda **annotations: Runtime(wide, cni_binaries, name, **annotations)


def test_three_interfaces_of_ours(wide: Lab, runtime: Any) -> None:
    pod = runtime(networks="lan-b,lan-c@data")
    result = pod.call("ADD")
    assert [one["name"] for one in result["interfaces"]] == ["eth0"]
    assert pod.inside() == ["data", "eth0", "lo", "net1", "veth0"]
    by_nic = {nic: {ip for ip, at in pod.records().items() if at == nic} for nic in ("eth0", "net1", "data")}
    assert {len(addresses) for addresses in by_nic.values()} == {1, 2}
    for nic, addresses in by_nic.items():
        assert set(pod.addresses(nic)) == addresses
    (endpoint,) = [one for name, one in wide.endpoints().items() if name == pod.pod.name]
    assert {ip["interface"] for ip in endpoint["status"]["current"]["ips"]} == set(by_nic)
    status = pod.told()
    assert [(one["name"], one["interface"]) for one in status] == [
        ("lan", "eth0"),
        (f"{wide.namespace}/lan-b", "net1"),
        (f"{wide.namespace}/lan-c", "data"),
    ]
    assert {one["interface"]: set(one["ips"]) for one in status} == by_nic
    assert pod.call("ADD") == result
    assert pod.call("CHECK", prevResult=result) == {}
    pod.call("DEL")
    pod.call("DEL")
    pod.gone()


def test_the_first_interface_is_made_once(wide: Lab, runtime: Any) -> None:
    """It stands while somebody finds out that the pod names networks."""

    def steps() -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{wide.metric_ports['n1']}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        counts = (one for family in families for one in family.samples if one.name == _STEPS)
        return {one.labels["step"]: one.value for one in counts}

    pod = runtime(networks="lan-b,lan-c")
    before = steps()
    pod.call("ADD")
    after = steps()
    assert {step: after.get(step, 0) - before.get(step, 0) for step in ("make_link", "delete_link")} == {
        "make_link": 3,
        "delete_link": 0,
    }
    pod.call("DEL")
    pod.gone()


@pytest.mark.parametrize("networks", ["lan-b,inside@net2", "inside@net2,lan-b@net1"])
def test_an_interface_on_another_one_of_the_pod(wide: Lab, runtime: Any, networks: str) -> None:
    pod = runtime(networks=networks)
    pod.call("ADD")
    assert pod.inside() == ["eth0", "lo", "net1", "net2", "veth0"]
    assert set(pod.records().values()) == {"eth0", "net1", "net2"}
    pod.call("DEL")
    pod.gone()


def test_a_pod_without_networks_pays_nothing(wide: Lab, runtime: Any) -> None:
    pod = runtime()
    pod.call("ADD")
    assert pod.inside() == ["eth0", "lo", "veth0"]
    assert pod.status() == []
    assert pod.held() == ["eth0  added"]
    pod.call("DEL")
    pod.gone()


def test_other_peoples_plugins(wide: Lab, runtime: Any) -> None:
    pod = runtime(networks="foreign,mixed")
    result = pod.call("ADD")
    assert pod.inside() == ["eth0", "lo", "net1", "net2", "veth0"]
    assert pod.addresses("net1")[0].startswith("10.99.0.")
    assert pod.addresses("net2")[0] in {ip for ip, nic in pod.records().items() if nic == "net2"}
    assert [one["interface"] for one in pod.told()] == ["eth0", "net1", "net2"]
    assert pod.status()[1]["ips"] == pod.addresses("net1")
    assert pod.call("CHECK", prevResult=result) == {}
    pod.call("DEL")
    left = [name for _, name in socket.if_nameindex() if name.startswith("veth")]
    assert left == []
    pod.gone()


@pytest.mark.parametrize(
    ("network", "named"),
    [
        ("lan-b,broken", "network [^ ]*/broken, interface net2: master: .*nothing0"),
        ("lan-b,absent", "network [^ ]*/absent, interface net2: .*no plugin .*no-such-plugin"),
        ("refused,lan-b", "network [^ ]*/refused, interface net1: plugin bridge: .*9999"),
        ("foreign,lan-b,missing", "missing"),
        ("below,above", "master: .*net"),
        ("lan-b,foreign@eth0", "eth0"),
    ],
)
def test_one_that_fails_takes_all_others_along(wide: Lab, runtime: Any, network: str, named: str) -> None:
    pod = runtime(networks=network)
    with pytest.raises(CniError, match=named):
        pod.call("ADD")
    pod.gone()
    assert pod.status() == []
    pod.call("DEL")
    pod.gone()


@pytest.mark.parametrize("first", ["", "overlay"])
@pytest.mark.parametrize("asked", [True, False])
def test_the_default_route_goes_where_it_is_asked_for(wide: Lab, runtime: Any, first: str, asked: bool) -> None:
    """Whoever has made the interfaces; without the wish it is that of the first one."""
    lan_b = {"name": "lan-b"} | ({"default-route": ["10.7.0.1"]} if asked else {})
    notes = {"default": f"{wide.namespace}/{first}"} if first else {}
    pod = runtime(networks=json.dumps([lan_b, {"name": "foreign"}]), **notes)
    result = pod.call("ADD")
    assert pod.pod.netns is not None
    (default,) = pod.pod.netns.run(default_routes)
    elsewhere = ("10.99.0.1" if first else "10.6.0.1", "eth0")
    assert default == (("10.7.0.1", "net1") if asked else elsewhere)
    assert pod.call("CHECK", prevResult=result) == {}
    told = {one["interface"]: one.get("gateway", []) for one in pod.told()}
    assert (told["eth0"] == []) is asked
    assert "10.7.0.1" in told["net1"]
    pod.call("DEL")
    pod.gone()


def test_the_first_interface_may_ask_for_another_next_hop(wide: Lab, runtime: Any) -> None:
    pod = runtime(default=json.dumps([{"name": "lan-c", "namespace": wide.namespace, "default-route": ["10.7.0.77"]}]))
    pod.call("ADD")
    assert pod.pod.netns is not None
    assert pod.pod.netns.run(default_routes) == [("10.7.0.77", "eth0")]
    pod.call("DEL")
    pod.gone()


def test_what_the_runtime_knows_of_ports_goes_to_whose_the_first_interface_is(wide: Lab, runtime: Any) -> None:
    """And not to further ones."""
    told = wide.folder / "ports"
    play(wide, "played-ports", f'cat >"{told}.$CNI_IFNAME"; echo "{{}}"')
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    pod = runtime(default=f"{wide.namespace}/ports", networks="ports")
    pod.call("ADD", runtimeConfig={"portMappings": ports})
    found = {nic: json.loads(told.with_suffix(f".{nic}").read_text()) for nic in ("eth0", "net1")}
    assert found["eth0"]["runtimeConfig"] == {"portMappings": ports}
    assert "runtimeConfig" not in found["net1"]
    pod.call("DEL")
    pod.gone()


def test_an_overlay_of_the_node_makes_the_first_interface(wide: Lab, runtime: Any, configurations: Path) -> None:
    """By the list in the node's folder, whose port mapper gets the ports that the runtime told us of."""
    told = wide.folder / "overlay-ports"
    play(wide, "played-mapper", f'tee "{told}.$CNI_COMMAND" | sed "s/.*\\"prevResult\\":\\({{.*}}\\)}}/\\1/"')
    local = {"type": "host-local", "dataDir": str(wide.folder / "overlay"), "ranges": [[{"subnet": "10.98.0.0/24"}]]}
    overlay = {"type": "bridge", "bridge": "br-pods", "isDefaultGateway": True, "ipam": local}
    mapper = {"type": "played-mapper", "capabilities": {"portMappings": True}}
    written = configurations / "10-pod-network.conflist"
    written.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pod-network", "plugins": [overlay, mapper]}))
    ports = [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    pod = runtime(networks="lan-b")
    pod.config["clusterNetwork"] = "pod-network"
    try:
        result = pod.call("ADD", runtimeConfig={"portMappings": ports})
        assert result["ips"][0]["address"].startswith("10.98.0.")
        assert pod.inside() == ["eth0", "lo", "net1"]
        assert json.loads(told.with_suffix(".ADD").read_text())["runtimeConfig"] == {"portMappings": ports}
        assert pod.told()[0]["name"] == "pod-network"
    finally:
        written.unlink()
    pod.call("DEL")
    assert json.loads(told.with_suffix(".DEL").read_text())["runtimeConfig"] == {"portMappings": ports}
    pod.gone()


def test_the_runtime_asks_for_the_overlays_status(
    wide: Lab, runtime: Any, configurations: Path, cni_binaries: CniBinaries
) -> None:
    """By cnitool, which asks as containerd does. Under version 1.0.0 there is no such verb."""
    pod = runtime()
    plugin = {**pod.config, "networks": True, "clusterNetwork": "pods"}

    def ask(version: str = "1.1.0") -> str:
        listed = {"cniVersion": version, "name": "lan", "plugins": [plugin]}
        return cnitool(wide, pod.pod, cni_binaries, listed, "status")

    with pytest.raises(AssertionError, match=r'clusterNetwork: this node has no CNI configuration of the name "pods"'):
        ask()
    assert ask("1.0.0") == ""
    play(wide, "played-overlay", '[ "$CNI_COMMAND" != STATUS ] || [ -e "$0.up" ] || exit 1')
    real = {wide.plugins / program.name: program for program in (cni_binaries.bridge, cni_binaries.host_local)}
    for link, program in real.items():
        link.symlink_to(program)
    written = configurations / "10-pods.conflist"

    def overlay(plugin: dict[str, Any]) -> None:
        written.write_text(json.dumps({"cniVersion": "1.1.0", "name": "pods", "plugins": [plugin]}))

    try:
        overlay({"type": "played-overlay"})
        with pytest.raises(
            AssertionError, match='clusterNetwork "pods": plugin played-overlay: STATUS ended with code 1'
        ):
            ask()
        (wide.plugins / "played-overlay.up").touch()
        assert ask() == ""
        # The CNI project's own plugin, which asks its IPAM in turn.
        overlay({"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.98.0.0/24"}})
        assert ask() == ""
        overlay({"type": "bridge", "ipam": {"type": "nowhere"}})
        with pytest.raises(AssertionError, match=r'clusterNetwork "pods": plugin bridge: .*nowhere'):
            ask()
    finally:
        written.unlink()
        for link in real:
            link.unlink()


def test_below_a_multus_only_what_it_calls_for_is_made(wide: Lab, runtime: Any, configurations: Path) -> None:
    """The negative control is every other test here: without one the agent attaches the pod itself."""
    multus = configurations / "00-multus.conf"
    multus.write_text(json.dumps({"cniVersion": "0.3.1", "name": "multus", "type": "multus-shim"}))
    pod = runtime(networks="lan-b,foreign")
    try:
        first = pod.call("ADD")
        assert pod.inside() == ["eth0", "lo", "veth0"]
        assert set(pod.records().values()) == {"eth0"}
        lan_b = {
            "cniVersion": "0.3.1",
            "name": "lan-b",
            "type": "macvlan",
            "master": "n1-up",
            "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["net-b-v4"]},
        }
        second = {**pod.pod.environment(), "CNI_IFNAME": "net1"}
        made = call(wide.plugins / "macvlan", "ADD", lan_b, second)
        assert pod.inside() == ["eth0", "lo", "net1", "veth0"]
        assert set(pod.records().values()) == {"eth0", "net1"}
        assert pod.status() == [], "that is Multus' to say"
        call(wide.plugins / "macvlan", "DEL", {**lan_b, "prevResult": made}, second)
        assert pod.call("CHECK", prevResult=first) == {}, "the first one stays"
        pod.call("DEL")
    finally:
        multus.unlink()
    pod.gone()


@pytest.mark.parametrize("unchecked", [True, False])
def test_a_list_that_says_that_it_cannot_be_checked(wide: Lab, runtime: Any, unchecked: bool) -> None:
    play(wide, "played-check", 'cat >&2; [ "$CNI_COMMAND" != CHECK ] && echo "{}"')
    name = f"check-{unchecked}".lower()
    config = {"cniVersion": "1.0.0", "name": name, "disableCheck": unchecked, "plugins": [{"type": "played-check"}]}
    networks.define(wide.control_plane, wide.namespace, name, config)
    pod = runtime(networks=name)
    result = pod.call("ADD")
    if unchecked:
        assert pod.call("CHECK", prevResult=result) == {}
    else:
        with pytest.raises(CniError, match="CHECK ended with code 1"):
            pod.call("CHECK", prevResult=result)
    pod.call("DEL")
    pod.gone()


def test_a_plugin_behind_ours_may_change_the_address_of_the_link(wide: Lab, runtime: Any, debian: Path) -> None:
    (wide.plugins / "tuning").symlink_to(debian / "tuning")
    pod = runtime(networks="tuned")
    result = pod.call("ADD")
    assert pod.told()[1]["mac"] == TUNED
    assert pod.call("CHECK", prevResult=result) == {}
    assert pod.call("ADD") == result, "a repetition finds all as it was"
    assert pod.pod.netns is not None
    pod.pod.netns.run(lambda: retune("net1", "02:00:00:00:11:33"))
    with pytest.raises(CniError, match="net1: MAC is 02:00:00:00:11:33, expected 02:00:00:00:11:22"):
        pod.call("CHECK", prevResult=result)
    pod.call("DEL")
    pod.gone()


def test_a_device_of_the_host_in_a_sandbox_that_went_without_a_del(wide: Lab, runtime: Any, debian: Path) -> None:
    """Debian's plugin fails for the path of a namespace that is gone."""
    (wide.plugins / "host-device").symlink_to(debian / "host-device")
    with IPRoute() as route:
        route.link("add", ifname="hostdev", kind="veth", peer={"ifname": "hostdev-port"})
    pod = runtime(networks="device")
    pod.call("ADD")
    assert "net1" in pod.inside()
    pod.pod.netns.__exit__(None, None, None)
    wide.wait_for(lambda: pod.held() == [], seconds=10)
    pod.call("DEL")
    wide.wait_for(lambda: not pod.records())
    pod.pod.netns = None


def test_another_network_makes_the_first_interface(wide: Lab, runtime: Any) -> None:
    pod = runtime(default=f"{wide.namespace}/foreign", networks="lan-c")
    result = pod.call("ADD")
    assert result["ips"][0]["address"].startswith("10.99.0.")
    assert pod.inside() == ["eth0", "lo", "net1"]
    assert set(pod.records().values()) == {"net1"}
    assert pod.told()[0]["name"] == f"{wide.namespace}/foreign"
    pod.call("DEL")
    pod.gone()


def test_del_needs_neither_pod_nor_definition_nor_the_agent_that_added(wide: Lab, runtime: Any) -> None:
    networks.define(
        wide.control_plane,
        wide.namespace,
        "passing",
        {"cniVersion": "1.0.0", "name": "passing", "type": "bridge", "bridge": "br-foreign"},
    )
    pod = runtime(networks="passing,lan-b")
    pod.call("ADD")
    assert pod.inside() == ["eth0", "lo", "net1", "net2", "veth0"]
    wide.kill("n1")
    networks.remove(wide.control_plane, wide.namespace, "passing")
    path = f"/api/v1/namespaces/{wide.namespace}/pods/{pod.pod.name}"
    wide.control_plane.request("DELETE", f"{path}?gracePeriodSeconds=0")
    wide.start_agent("n1")
    wide.wait_ready()
    pod.call("DEL")
    pod.gone()


def test_a_sandbox_that_went_without_a_del(wide: Lab, runtime: Any) -> None:
    pod = runtime(networks="lan-b,foreign")
    pod.call("ADD")
    assert pod.pod.netns is not None
    pod.pod.netns.__exit__(None, None, None)
    wide.wait_for(lambda: not pod.records())
    try:
        wide.wait_for(lambda: pod.held() == [], seconds=10)
    except AssertionError:
        print(pod.held(), wide.processes["n1"].tail(40))
        raise
    assert [name for _, name in socket.if_nameindex() if name.startswith("veth")] == []
    pod.pod.netns = None
