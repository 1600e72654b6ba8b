"""Debian's plugins with our IPAM and our coordinator behind them; cnitool is the runtime, the programs are all real.

The lists are as people write them for Multus and the original; nothing in them is ours but the names of the plugins.
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.processes.lab import CniError, Lab, Pod, call
from tests.processes.test_cni import cnitool, gone, interfaces
from tests.processes.test_coordinator import call_pod, node_veths, pod, routes_of_veth0
from tests.servers import CniBinaries, ServersUnavailable, debian_plugins

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

__all__ = ["pod"]

COORDINATOR = {"txQueueLen": 0, "tunePodRoutes": True, "mode": "auto", "type": "coordinator"}
"""As the original's controller writes it."""


@pytest.fixture(scope="module")
def bins(lab: Lab) -> Path:
    """A node's CNI folder: Debian's programs, and our shim under the names that the original has."""
    try:
        theirs = debian_plugins()
    except ServersUnavailable as problem:
        pytest.skip(str(problem))
    folder = lab.folder / "debian-bin"
    folder.mkdir()
    for name in ("macvlan", "bridge", "host-device", "host-local", "tuning"):
        (folder / name).symlink_to(theirs / name)
    for name in ("spiderpool", "coordinator"):
        (folder / name).write_bytes((lab.plugins / "spiderpool").read_bytes())
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(autouse=True)
def no_bridge() -> Iterator[None]:
    """The bridge that a plugin made goes with the test."""
    yield
    with IPRoute() as route:
        for index in route.link_lookup(ifname="br-debian"):
            route.link("del", index=index)


def ipam(lab: Lab) -> dict[str, Any]:
    return {"type": "spiderpool", **{f"default_{family}_ippool": pools for family, pools in lab.pools_of_pods.items()}}


def run(lab: Lab, pod: Pod, binaries: CniBinaries, bins: Path, *plugins: dict[str, Any]) -> Any:
    """ADD, CHECK, and a function that does DEL."""
    network = {"cniVersion": "0.4.0", "name": f"debian-{pod.name[:20]}", "plugins": list(plugins)}
    result = json.loads(cnitool(lab, pod, binaries, network, "add", path=bins))
    cnitool(lab, pod, binaries, network, "check", path=bins)
    return result, lambda: cnitool(lab, pod, binaries, network, "del", path=bins)


def test_a_list_that_was_written_for_the_original(lab: Lab, pod: Pod, cni_binaries: CniBinaries, bins: Path) -> None:
    main = {"type": "macvlan", "master": "n1-up", "mode": "bridge", "mtu": 0, "ipam": ipam(lab)}
    result, delete = run(lab, pod, cni_binaries, bins, main, COORDINATOR)
    assert [face["name"] for face in result["interfaces"]] == ["eth0"]
    assert pod.netns is not None
    assert pod.netns.run(interfaces) == ["eth0", "lo", "veth0"]
    for ip in result["ips"]:
        assert call_pod(pod, ip["address"].partition("/")[0])
    assert "10.96.0.0/16" in pod.netns.run(routes_of_veth0)
    delete()
    delete()
    gone(lab, pod)
    assert node_veths() == []


def test_without_the_coordinator_the_node_is_cut_off(lab: Lab, pod: Pod, cni_binaries: CniBinaries, bins: Path) -> None:
    main = {"type": "macvlan", "master": "n1-up", "ipam": ipam(lab)}
    result, delete = run(lab, pod, cni_binaries, bins, main)
    with pytest.raises(OSError):  # noqa: PT011 - a timeout, or no neighbour
        call_pod(pod, result["ips"][0]["address"].partition("/")[0])
    delete()
    gone(lab, pod)


def test_ours_in_the_place_of_theirs(lab: Lab, pod: Pod, cni_binaries: CniBinaries) -> None:
    """The same list, and our shim has the name macvlan too."""
    (lab.plugins / "coordinator").write_bytes((lab.plugins / "spiderpool").read_bytes())
    (lab.plugins / "coordinator").chmod(0o755)
    main = {"type": "macvlan", "master": "n1-up", "mode": "bridge", "mtu": 0, "ipam": ipam(lab)}
    result, delete = run(lab, pod, cni_binaries, lab.plugins, main, COORDINATOR)
    for ip in result["ips"]:
        assert call_pod(pod, ip["address"].partition("/")[0])
    delete()
    gone(lab, pod)
    assert node_veths() == []


def test_a_bridge_with_our_ipam(lab: Lab, pod: Pod, cni_binaries: CniBinaries, bins: Path) -> None:
    main = {"type": "bridge", "bridge": "br-debian", "isGateway": False, "ipam": ipam(lab)}
    result, delete = run(lab, pod, cni_binaries, bins, main, COORDINATOR)
    records = {address for address, one in lab.records().items() if one["podUid"] == pod.uid}
    assert {ip["address"].partition("/")[0] for ip in result["ips"]} == records
    for address in records:
        assert call_pod(pod, address)
    delete()
    gone(lab, pod)
    assert node_veths() == []


def test_a_device_of_the_host(lab: Lab, pod: Pod, cni_binaries: CniBinaries, bins: Path) -> None:
    with IPRoute() as route:
        route.link("add", ifname="hostdev", kind="veth", peer={"ifname": "hostdev-port"})
        port, lan = (route.link_lookup(ifname=name)[0] for name in ("hostdev-port", "lan"))
        route.link("set", index=port, master=lan, state="up")
    try:
        main = {"type": "host-device", "device": "hostdev", "ipam": ipam(lab)}
        result, delete = run(lab, pod, cni_binaries, bins, main, COORDINATOR)
        for ip in result["ips"]:
            assert call_pod(pod, ip["address"].partition("/")[0])
        delete()
        gone(lab, pod)
        assert "hostdev" in [name for _, name in socket.if_nameindex()]
    finally:
        with IPRoute() as route:
            for index in route.link_lookup(ifname="hostdev-port"):
                route.link("del", index=index)


def test_an_overlay_and_a_net1_of_ours(lab: Lab, pod: Pod, cni_binaries: CniBinaries, bins: Path) -> None:
    """As a Multus calls: eth0 by bridge and host-local, net1 by macvlan and the coordinator."""
    state = str(lab.folder / "host-local")
    local = {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": "10.99.0.0/24"}]]}
    overlay = {"type": "bridge", "bridge": "br-debian", "isDefaultGateway": True, "ipam": local}
    base = {"cniVersion": "1.0.0", "name": "overlay"}
    environment = {**pod.environment(), "CNI_PATH": str(bins)}
    call(bins / "bridge", "ADD", {**base, **overlay}, environment)
    net1 = {**environment, "CNI_IFNAME": "net1"}
    lan = {"cniVersion": "0.3.1", "name": "lan"}
    main = {**lan, "type": "macvlan", "master": "n1-up", "ipam": {**ipam(lab), "default_ipv6_ippool": []}}
    result = call(bins / "macvlan", "ADD", main, net1)
    chained = {**lan, **COORDINATOR, "prevResult": result}
    assert call(bins / "coordinator", "ADD", chained, net1) == result
    assert call(bins / "coordinator", "ADD", chained, net1) == result, "a repetition"
    assert pod.netns is not None
    assert pod.netns.run(interfaces) == ["eth0", "lo", "net1"]
    (address,) = [ip["address"].partition("/")[0] for ip in result["ips"] if ":" not in ip["address"]]
    assert call_pod(pod, address), "the node reaches net1 by the overlay's link"
    for _ in range(2):
        call(bins / "coordinator", "DEL", chained, net1)
    with IPRoute() as route:
        assert [one for one in route.get_routes(table=500) if one.get_attr("RTA_DST") == address] == []
    call(bins / "macvlan", "DEL", main, net1)
    call(bins / "bridge", "DEL", {**base, **overlay}, environment)
    gone(lab, pod)
    assert node_veths() == []


def test_the_coordinator_alone_is_refused(lab: Lab, pod: Pod) -> None:
    (lab.plugins / "coordinator").write_bytes((lab.plugins / "spiderpool").read_bytes())
    (lab.plugins / "coordinator").chmod(0o755)
    conf = {"cniVersion": "1.0.0", "name": "lan", **COORDINATOR}
    with pytest.raises(CniError, match="prevResult: missing"):
        call(lab.plugins / "coordinator", "ADD", conf, pod.environment())
    call(lab.plugins / "coordinator", "DEL", conf, pod.environment())
    gone(lab, pod)
