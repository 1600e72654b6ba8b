"""Pods on a real cluster have LAN addresses: made by kubelet, seen Ready by its probes, reached from everywhere."""

from __future__ import annotations

import ipaddress
import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest

from tests.cluster.audit import addresses, audit, settled, underlay_pods
from tests.cluster.lab import plan
from tests.cluster.lab.cluster import CORE, PRODUCT
from tests.cluster.product import POOL_V4, POOL_V6, Product
from tests.cluster.workload import Deployment, fetch, sandbox_failures

pytestmark = pytest.mark.timeout(300)

REPLICAS = 10


@pytest.fixture(scope="module")
def web(product: Product) -> Iterator[Deployment]:
    deployment = Deployment(product.cluster, "web")
    deployment.scale(REPLICAS)
    yield deployment
    deployment.remove()


def _one_per_node(web: Deployment) -> dict[str, list[dict[str, Any]]]:
    by_node: dict[str, list[dict[str, Any]]] = {}
    for pod in web.pods():
        by_node.setdefault(pod["spec"]["nodeName"], []).append(pod)
    assert len(by_node) == 2
    assert all(len(pods) >= 2 for pods in by_node.values())
    return by_node


def _name(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


def test_every_pod_is_ready_by_its_probe_with_addresses_of_both_pools(web: Deployment) -> None:
    used = [ip for pod in web.pods() for ip in addresses(pod)]
    assert len(used) == len(set(used)) == 2 * REPLICAS
    pools = {pool["metadata"]["name"]: pool for pool in web.cluster.items(f"{PRODUCT}/spiderippools")}
    for name in (POOL_V4, POOL_V6):
        (written,) = pools[name]["spec"]["ips"]
        first, last = (ipaddress.ip_address(part) for part in written.split("-"))
        ours = [ipaddress.ip_address(ip) for ip in used if ipaddress.ip_address(ip).version == first.version]
        assert len(ours) == REPLICAS
        assert all(int(first) <= int(ip) <= int(last) for ip in ours)
        assert pools[name]["status"]["allocatedIPCount"] == REPLICAS


def test_pods_pools_endpoints_journals_and_kernels_agree(web: Deployment) -> None:
    settled(web.cluster, expect=REPLICAS)


@contextmanager
def _no_route(web: Deployment, pod: dict[str, Any], address: str) -> Iterator[None]:
    node = web.cluster.node(pod["spec"]["nodeName"])
    veth = node.run(["sh", "-c", f"ip route show table 500 | grep '^{address} '"]).stdout.split()[2]
    node.run(["ip", "route", "del", address, "dev", veth, "table", "500"])
    try:
        yield
    finally:
        node.run(["ip", "route", "add", address, "dev", veth, "scope", "link", "table", "500"])


@contextmanager
def _carried_twice(web: Deployment, pod: dict[str, Any], address: str) -> Iterator[None]:
    """Another pod carries it too, where no neighbour hears of it."""
    other = next(it for it in web.pods() if _name(it) != _name(pod))
    node = web.cluster.node(other["spec"]["nodeName"])
    (process, *_) = node.processes_below(f"kubepods/*/pod{other['metadata']['uid']}")
    ip = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "ip", "address"]
    subprocess.run([*ip, "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run([*ip, "del", f"{address}/32", "dev", "lo"], check=True)


@contextmanager
def _endpoint_without_it(web: Deployment, pod: dict[str, Any], _: str) -> Iterator[None]:
    def write(ips: list[Any]) -> None:
        patch = json.dumps({"status": {"current": {"ips": ips}}})
        web.cluster.kubectl("patch", "spiderendpoint", _name(pod), "--type=merge", f"--patch={patch}")

    ips = web.cluster.kubectl_json("get", "spiderendpoint", _name(pod))["status"]["current"]["ips"]
    write([])
    try:
        yield
    finally:
        write(ips)


@contextmanager
def _held_twice(web: Deployment, _: dict[str, Any], address: str) -> Iterator[None]:
    """The pool has one more record for the pod, of an address that it does not have."""

    def write(records: dict[str, Any]) -> None:
        patch = json.dumps({"status": {"allocatedIPs": json.dumps(records)}})
        where = ("spiderippool", POOL_V4, "--subresource=status", "--type=merge")
        web.cluster.kubectl("patch", *where, f"--patch={patch}")

    records = json.loads(web.cluster.kubectl_json("get", "spiderippool", POOL_V4)["status"]["allocatedIPs"])
    write(records | {"10.89.10.249": records[address]})
    try:
        yield
    finally:
        write(records)


@pytest.mark.parametrize("fault", [_no_route, _carried_twice, _endpoint_without_it, _held_twice])
def test_an_audit_would_find_it(
    web: Deployment, fault: Callable[[Deployment, dict[str, Any], str], AbstractContextManager[None]]
) -> None:
    """Without it the audits of all other tests would prove nothing."""
    (first, *_) = underlay_pods(web.cluster).values()
    address = addresses(first)[0]
    with fault(web, first, address):
        found = audit(web.cluster)
    assert any(address in line or _name(first) in line for line in found), found
    assert not audit(web.cluster)


def test_pods_reach_each_other_on_the_same_and_on_another_node(web: Deployment) -> None:
    near, far = _one_per_node(web).values()
    for source, target in itertools.product((near[0], far[0]), (near[1], far[1])):
        for address in addresses(target):
            assert fetch(web.cluster, _name(source), address) == "ok\n"


def test_router_and_outside_client_reach_pods_and_pods_reach_them(web: Deployment) -> None:
    for pods in _one_per_node(web).values():
        for address in addresses(pods[0]):
            assert web.cluster.router.ping(address, count=2)
            target = f"[{address}]" if ":" in address else address
            assert web.cluster.outside.get(f"http://{target}:8080/") == "ok\n"
        for gateway, outside in zip(plan.GATEWAY, plan.OUTSIDE, strict=True):
            for other in (gateway, outside):
                web.cluster.exec(_name(pods[0]), "ping", "-c", "1", "-W", "3", other)


def test_pods_reach_services_through_kube_proxy(web: Deployment) -> None:
    for pods in _one_per_node(web).values():
        for address in web.cluster_ips():
            # More often than there are nodes: both near and far endpoints are met.
            for _ in range(6):
                assert fetch(web.cluster, _name(pods[0]), address, port=80) == "ok\n"


def test_pods_reach_the_api_server_by_its_service_and_their_own_node(web: Deployment) -> None:
    for node, pods in _one_per_node(web).items():
        web.cluster.exec(_name(pods[0]), "sh", "-c", f"nc -w 5 {plan.API_SERVICE} 443 </dev/null")
        for address in plan.node_addresses(node):
            web.cluster.exec(_name(pods[0]), "ping", "-c", "1", "-W", "3", address)


def test_nodes_reach_their_pods(web: Deployment) -> None:
    for node, pods in _one_per_node(web).items():
        for pod in web.pods():
            for address in addresses(pod):
                if pod in pods or _name(pod) == _name(pods[0]):
                    target = f"[{address}]" if ":" in address else address
                    assert web.cluster.node(node).get(f"http://{target}:8080/") == "ok\n"


def test_a_host_port_of_the_cluster_answers_from_outside(web: Deployment) -> None:
    """NodePort: the client is beyond the router, the request enters by a node and is answered by the same way."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web-nodeport"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
        },
    }
    web.cluster.apply(service)
    try:
        for node in web.cluster.nodes:
            ipv4, ipv6 = plan.node_addresses(node)
            for address in (ipv4, f"[{ipv6}]"):
                url = f"http://{address}:30080/"
                answer = partial(web.cluster.outside.get, url)
                web.cluster.wait(answer, 20, url)
                for _ in range(4):
                    assert answer() == "ok\n"
    finally:
        web.cluster.delete(service)


def test_no_sandbox_failed(web: Deployment) -> None:
    ours = tuple(f"{_name(pod)}:" for pod in web.pods())
    assert [message for message in sandbox_failures(web.cluster) if message.startswith(ours)] == []


def test_no_rollout_of_pods_made_a_node_unready(web: Deployment) -> None:
    for node in web.cluster.items(f"{CORE}/nodes"):
        ready = next(it for it in node["status"]["conditions"] if it["type"] == "Ready")
        assert ready["status"] == "True"
