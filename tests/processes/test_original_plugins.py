"""The original's plugins against the real agent, controller and API server; and sandboxes that go without a DEL."""

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from pyroute2 import IPRoute

from tests.processes.lab import NODES, CniError, Lab, Pod, call
from tests.processes.test_cni import gone

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(180)]


class Socket(http.client.HTTPConnection):
    """As the original's clients speak: a body where the API wants one, on GET and DELETE too."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def ask(lab: Lab, node: str, method: str, path: str, body: object = None, **query: str) -> tuple[int, Any]:
    connection = Socket(lab.socket(node))
    try:
        target = f"/v1{path}?{urlencode(query)}" if query else f"/v1{path}"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        connection.request(method, target, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        raw = response.read()
    finally:
        connection.close()
    return response.status, json.loads(raw) if raw else None


def arguments(pod: Pod, ifname: str = "eth0") -> dict[str, Any]:
    assert pod.netns is not None
    return {
        "containerID": pod.cid,
        "ifName": ifname,
        "netNamespace": str(pod.netns.path),
        "podNamespace": pod.lab.namespace,
        "podName": pod.name,
        "podUID": pod.uid,
    }


def carry(address: str, verb: str) -> None:
    """What the main plugin does with an address; on loopback, in the namespace of the calling thread."""
    with IPRoute() as route:
        route.addr(verb, index=1, address=address, prefixlen=128 if ":" in address else 32)


@pytest.fixture
def pod(lab: Lab, request: pytest.FixtureRequest) -> Pod:
    made = lab.pod(request.node.name.replace("_", "-").lower()[:60])
    made.new_sandbox()
    return made


def of(lab: Lab, pod: Pod) -> dict[str, dict[str, Any]]:
    return {address: record for address, record in lab.records().items() if record["podUid"] == pod.uid}


def test_ip(lab: Lab, pod: Pod) -> None:
    assert ask(lab, pod.node, "GET", "/ipam/healthy") == (200, None)
    status, first = ask(lab, pod.node, "POST", "/ipam/ip", arguments(pod))
    assert status == 200, first
    assert ask(lab, pod.node, "POST", "/ipam/ip", arguments(pod)) == (200, first)
    addresses = {ip["address"].partition("/")[0]: ip for ip in first["ips"]}
    assert set(addresses) == set(of(lab, pod))
    assert {ip["version"] for ip in first["ips"]} == {4, 6}
    assert {(ip["nic"], ip["enableIPConflictDetection"]) for ip in first["ips"]} == {("eth0", False)}
    assert {record["cid"] for record in of(lab, pod).values()} == {pod.cid[:12]}
    assert {(route["ifName"], route["dst"]) for route in first["routes"]} == {("eth0", "0.0.0.0/0"), ("eth0", "::/0")}

    who = {"podNamespace": lab.namespace, "podName": pod.name}
    status, endpoint = ask(lab, pod.node, "GET", "/workloadendpoint", **who)
    assert (status, endpoint["podUID"], endpoint["node"]) == (200, pod.uid, pod.node)
    (nic,) = endpoint["interfaces"]
    assert nic["interface"] == "eth0"
    assert {nic["ipv4"], nic["ipv6"]} == {ip["address"] for ip in first["ips"]}
    assert {nic["ipv4Pool"], nic["ipv6Pool"]} == {ip["ipPool"] for ip in first["ips"]}
    status, text = ask(lab, NODES[1], "GET", "/workloadendpoint", **who)
    assert (status, text) == (404, f"pod {lab.namespace}/{pod.name} is not on node {NODES[1]}")

    status, config = ask(lab, pod.node, "GET", "/coordinator/config", who)
    assert (status, config["mode"], config["tunePodRoutes"]) == (200, "auto", True)
    assert isinstance(config["serviceCIDR"], list)

    # As macvlan does it: the address is on a link until after the IPAM plugin's DEL.
    assert pod.netns is not None
    for address in addresses:
        pod.netns.run(lambda address=address: carry(address, "add"))  # type: ignore[misc]
    assert ask(lab, pod.node, "DELETE", "/ipam/ip", arguments(pod)) == (200, None)
    lab.wait_for(lambda: "still carries" in lab.processes[pod.node].tail(50))
    assert set(of(lab, pod)) == set(addresses), "a link has them"
    for address in addresses:
        pod.netns.run(lambda address=address: carry(address, "del"))  # type: ignore[misc]
    gone(lab, pod)
    assert ask(lab, pod.node, "DELETE", "/ipam/ip", arguments(pod)) == (200, None)
    assert ask(lab, pod.node, "GET", "/workloadendpoint", **who)[0] == 404


def test_ours_deletes_what_the_originals_plugin_added_and_the_other_way_round(lab: Lab, pod: Pod) -> None:
    assert ask(lab, pod.node, "POST", "/ipam/ip", arguments(pod))[0] == 200
    pod.delete(binary=lab.plugins / "spiderpool")
    gone(lab, pod)
    pod.new_sandbox()
    pod.add(binary=lab.plugins / "spiderpool")
    assert ask(lab, pod.node, "DELETE", "/ipam/ips", arguments(pod)) == (200, None)
    gone(lab, pod)


def test_the_default_route_nic_of_a_pod(lab: Lab) -> None:
    pod = Pod(lab, "default-route-nic", NODES[0], annotations={"ipam.spidernet.io/default-route-nic": "net1"})
    who = {"podNamespace": lab.namespace, "podName": pod.name}
    lab.wait_for(lambda: ask(lab, pod.node, "GET", "/coordinator/config", who)[1]["podDefaultRouteNIC"] == "net1")
    elsewhere = ask(lab, NODES[1], "GET", "/coordinator/config", who)
    nobody = ask(lab, NODES[1], "GET", "/coordinator/config", {**who, "podName": "nobody"})
    assert elsewhere == nobody
    assert "podDefaultRouteNIC" not in nobody[1]


def test_what_is_refused_leaves_nothing(lab: Lab, pod: Pod) -> None:
    for wrong, named in (
        ({"ifName": "a/b"}, 'ifName: "a/b"'),
        ({"netNamespace": "/nowhere"}, 'netNamespace: "/nowhere"'),
        ({"podUID": 7}, "podUID: 7"),
    ):
        status, text = ask(lab, pod.node, "POST", "/ipam/ip", {**arguments(pod), **wrong})
        assert (status, named in text) == (400, True)
    environment = {**pod.environment(), "CNI_NETNS": "/nowhere"}
    with pytest.raises(CniError) as caught:
        call(lab.plugins / "spiderpool", "ADD", lab.config(pod.node), environment)
    assert caught.value.document["code"] == 8
    status, text = ask(lab, NODES[1], "POST", "/ipam/ip", arguments(pod))
    assert status == 500
    assert f"runs on node {pod.node}, not on {NODES[1]}" in text
    status, text = ask(lab, pod.node, "POST", "/ipam/ip", {**arguments(pod), "podUID": "another"})
    assert status == 500
    assert "another" in text
    assert not of(lab, pod)
    for node in NODES:
        lab.wait_for(lambda node=node: not lab.journal(node))


def test_a_sandbox_that_goes_without_a_del_is_noticed_at_once(lab: Lab, pod: Pod) -> None:
    pod.add()
    assert len(of(lab, pod)) == 2
    assert pod.netns is not None
    pod.netns.__exit__(None, None, None)
    # Two looks of the audit alone are fifteen seconds apart.
    lab.wait_for(lambda: not of(lab, pod), seconds=10)
    lab.wait_for(lambda: pod.name not in lab.endpoints())


def test_a_process_that_goes_on_in_it_keeps_its_addresses(lab: Lab, pod: Pod) -> None:
    pod.add()
    assert pod.netns is not None
    process = pod.netns.run(lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]))
    try:
        pod.netns.__exit__(None, None, None)
        lab.wait_for(lambda: "still carries" in lab.processes[pod.node].tail(50))
        assert len(of(lab, pod)) == 2
        call(lab.plugins / "macvlan", "DEL", lab.config(pod.node), pod.environment())
        lab.wait_for(lambda: f"{pod.netns.path} is gone, and a link" in lab.processes[pod.node].tail(20))
        assert len(of(lab, pod)) == 2
    finally:
        process.kill()
        process.wait()
    lab.wait_for(lambda: not of(lab, pod))
    lab.wait_for(lambda: not lab.journal(pod.node))
