"""The way between pod and node with the real programs, shim and API server; the test's own namespace is the node."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.processes.lab import CniError, Lab, Pod, call, shim

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]

NODE = {4: ("10.6.255.1", 16), 6: ("fd00:6::ffff", 64)}
SERVICES = {"10.96.0.0/16", "fd00:10:96::/112"}
"""As the API server was told, and tells by a ServiceCIDR."""


@pytest.fixture
def pod(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod on a node that has addresses. The node's routing rules, which stay, go with the test."""
    with IPRoute() as route:
        index = route.link_lookup(ifname="n1-up")[0]
        for address, length in NODE.values():
            route.addr("add", index=index, address=address, prefixlen=length, flags=2)
    made = lab.pod(request.node.name.replace("_", "-").lower()[:60])
    made.new_sandbox()
    yield made
    with IPRoute() as route:
        for address, length in NODE.values():
            route.addr("del", index=index, address=address, prefixlen=length)
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in route.get_rules(family=family):
                if one.get_attr("FRA_PRIORITY") == 1000:
                    route.rule("del", family=family, priority=1000, table=500)


def config(lab: Lab, pod: Pod, **coordinator: Any) -> dict[str, Any]:
    return {**lab.config(pod.node), "coordinator": coordinator}


def node_veths() -> list[str]:
    return [name for _, name in socket.if_nameindex() if name.startswith("veth")]


def gone(lab: Lab, pod: Pod) -> None:
    lab.wait_for(lambda: pod.uid not in {record["podUid"] for record in lab.records().values()})
    assert pod.netns is not None
    assert pod.netns.run(socket.if_nameindex) == [(1, "lo")]
    assert node_veths() == []


def call_pod(pod: Pod, address: str) -> str:
    """What the pod takes for the address of the node that calls it from its address on the LAN, as a probe does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    assert pod.netns is not None
    with pod.netns.run(lambda: socket.create_server((address, 8080), family=family)) as listener:
        listener.settimeout(2)
        own = NODE[6 if family is socket.AF_INET6 else 4][0]
        with socket.create_connection((address, 8080), timeout=2, source_address=(own, 0)):
            answering, peer = listener.accept()
            answering.close()
            return str(peer[0])


def routes_of_veth0() -> set[str]:
    with IPRoute() as route:
        index = route.link_lookup(ifname="veth0")[0]
        return {f"{one.get_attr('RTA_DST')}/{one['dst_len']}" for one in route.get_routes(oif=index)}


def test_probe_check_and_del(lab: Lab, pod: Pod) -> None:
    conf = config(lab, pod)
    result = pod.add(config=conf)
    assert [one["name"] for one in result["interfaces"]] == ["eth0"]
    assert pod.add(config=conf) == result
    for address in pod.addresses:
        assert call_pod(pod, address) == NODE[6 if ":" in address else 4][0]
    assert pod.netns is not None
    assert pod.netns.run(routes_of_veth0) >= SERVICES
    check = {**conf, "prevResult": result}
    assert call(lab.plugins / "macvlan", "CHECK", check, pod.environment()) == {}

    def harm() -> None:
        with IPRoute() as route:
            route.route("del", dst="10.96.0.0/16")

    pod.netns.run(harm)
    with pytest.raises(CniError, match=r"not what ADD made.*veth0 lacks the route to 10\.96\.0\.0/16"):
        call(lab.plugins / "macvlan", "CHECK", check, pod.environment())
    # The runtime may then ask again: all is made anew.
    pod.add(config=conf)
    assert pod.netns.run(routes_of_veth0) >= SERVICES
    pod.delete(config=conf)
    pod.delete(config=conf)
    gone(lab, pod)


def test_without_it_the_node_is_cut_off(lab: Lab, pod: Pod) -> None:
    pod.add()
    assert node_veths() == []
    with pytest.raises(OSError):  # noqa: PT011 - a timeout, or no neighbour
        call_pod(pod, pod.addresses[0])
    pod.delete()
    gone(lab, pod)


def test_a_failure_takes_everything_back(lab: Lab, pod: Pod) -> None:
    name = f"veth{pod.cid[:11]}"
    with IPRoute() as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": "far"})
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, ifalias="somebody's")
        with pytest.raises(CniError, match=f"{name} exists already on this node, for somebody's"):
            pod.add(config=config(lab, pod))
        assert name in node_veths()
        route.link("del", index=index)
    gone(lab, pod)
    pod.add(config=config(lab, pod))
    assert call_pod(pod, pod.addresses[0])
    pod.delete(config=config(lab, pod))
    gone(lab, pod)


def test_what_cannot_be_costs_no_address(lab: Lab, pod: Pod) -> None:
    with pytest.raises(CniError, match=r"coordinator\.mode: .*overlay.* is not possible for eth0"):
        pod.add(config=config(lab, pod, mode="overlay"))
    gone(lab, pod)
    assert lab.journal(pod.node) == []


class Chain:
    """A runtime that calls macvlan and coordinator one after the other for each NIC, as libcni does for Multus."""

    def __init__(self, lab: Lab, pod: Pod) -> None:
        self.lab, self.pod = lab, pod
        self.results: dict[str, dict[str, Any]] = {}
        for name in ("macvlan", "coordinator"):
            shutil.copy2(shim(), lab.plugins / name)

    def call(self, plugin: str, verb: str, ifname: str, **more: Any) -> dict[str, Any]:
        conf = {"cniVersion": "1.0.0", "name": "lan", "type": plugin, **more}
        if plugin == "macvlan":
            conf = {**self.lab.config(self.pod.node), **conf}
        if verb != "ADD":
            conf["prevResult"] = self.results.get(ifname, {})
        return call(self.lab.plugins / plugin, verb, conf, {**self.pod.environment(), "CNI_IFNAME": ifname})

    def add(self, ifname: str, **more: Any) -> dict[str, Any]:
        made = self.call("macvlan", "ADD", ifname)
        result = self.results[ifname] = self.call("coordinator", "ADD", ifname, prevResult=made, **more)
        assert {**made, "interfaces": None} == {**result, "interfaces": None}, "only a MAC address may differ"
        return result

    def delete(self, ifname: str) -> None:
        for plugin in ("coordinator", "macvlan"):
            self.call(plugin, "DEL", ifname)


def test_the_chained_plugin(lab: Lab, pod: Pod) -> None:
    chain = Chain(lab, pod)
    assert pod.netns is not None
    first = chain.add("eth0")
    assert chain.call("coordinator", "CHECK", "eth0") == chain.call("macvlan", "CHECK", "eth0") == {}
    second = chain.add("net1", podMACPrefix="0a:1b", podDefaultRouteNic="net1")
    assert [one["mac"][:6] for one in second["interfaces"]] == ["0a:1b:"]
    for plugin in ("coordinator", "macvlan"):
        for ifname in ("eth0", "net1"):
            assert chain.call(plugin, "CHECK", ifname) == {}
    for result in (first, second):
        for one in result["ips"]:
            at = one["address"].partition("/")[0]
            assert call_pod(pod, at) == NODE[6 if ":" in at else 4][0]
    own = second["ips"][0]["address"].partition("/")[0]

    def harm() -> None:
        with IPRoute() as route:
            route.route("del", dst="10.96.0.0/16", table=101)

    pod.netns.run(harm)
    with pytest.raises(CniError, match=r"veth0 lacks the route to 10\.96\.0\.0/16 in table 101"):
        chain.call("coordinator", "CHECK", "net1")
    chain.delete("net1")
    assert node_veths() == [f"veth{pod.cid[:11]}"], "the pair is the first one's"
    with pytest.raises(OSError):  # noqa: PT011 - a timeout, or no neighbour
        call_pod(pod, own)
    at = first["ips"][0]["address"].partition("/")[0]
    assert call_pod(pod, at)
    chain.delete("eth0")
    chain.delete("eth0")
    gone(lab, pod)


def test_a_chained_one_that_fails_leaves_nothing(lab: Lab, pod: Pod) -> None:
    chain = Chain(lab, pod)
    chain.add("eth0")
    made = chain.call("macvlan", "ADD", "net1")
    with pytest.raises(CniError, match=r"podDefaultRouteNic: the pod has no interface .*bogus"):
        chain.call("coordinator", "ADD", "net1", prevResult=made, podDefaultRouteNic="bogus")
    with pytest.raises(CniError, match=r"underlay.* is not possible for net1|overlay.* is not possible for net1"):
        chain.call("coordinator", "ADD", "net1", prevResult=made, mode="overlay")
    assert chain.call("coordinator", "ADD", "net1", prevResult=made, mode="disabled")["ips"] == made["ips"]
    chain.delete("net1")
    chain.delete("eth0")
    gone(lab, pod)


def test_a_restarted_agent_takes_down_what_it_built(lab: Lab, pod: Pod) -> None:
    pod.add(config=config(lab, pod))
    lab.kill(pod.node)
    lab.start_agent(pod.node)
    # The runtime's own copy of the configuration is not needed: the journal says what was built.
    pod.delete()
    gone(lab, pod)
    assert not [path for path in Path("/proc/net/dev").read_text().splitlines() if f"veth{pod.cid[:11]}" in path]
