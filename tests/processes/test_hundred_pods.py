"""A hundred dual-stack pods on two nodes through the shim, while agent and controller are killed in the middle."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.processes.lab import NODES, Lab, Pod

PODS = 100


@pytest.mark.blocking
@pytest.mark.timeout(300)
def test_no_duplicate_and_no_leak(lab: Lab) -> None:
    pods = [lab.pod(f"web-{number}", NODES[number % 2]) for number in range(PODS)]
    started = threading.Semaphore(0)

    def start(pod: Pod) -> None:
        pod.start()
        started.release()

    with ThreadPoolExecutor(12) as kubelets:
        running = [kubelets.submit(start, pod) for pod in pods]
        for _ in range(PODS // 4):
            started.acquire(timeout=120)
        lab.kill("n1")
        time.sleep(0.2)
        lab.start_agent("n1")
        for _ in range(PODS // 4):
            started.acquire(timeout=120)
        lab.kill("controller")
        time.sleep(0.2)
        lab.start_controller()
        for done in running:
            done.result(timeout=200)

    told = {address: pod for pod in pods for address in pod.addresses}
    assert len(told) == 2 * PODS, "an address was given twice"

    def settled() -> bool:
        return set(lab.records()) == set(told)

    lab.wait_for(settled, seconds=60)
    records = lab.records()
    for address, pod in told.items():
        record = records[address]
        assert (record["podUid"], record["nic"], record["node"]) == (pod.uid, "eth0", pod.node)
        assert pod.cid.startswith(record["cid"])
    endpoints = lab.endpoints()
    for pod in pods:
        detail = endpoints[pod.name]["status"]["current"]["ips"][0]
        assert {detail["ipv4"].partition("/")[0], detail["ipv6"].partition("/")[0]} == set(pod.addresses)
    columns = lab.control_plane.kubectl("get", "spiderippool", f"{lab.namespace}-v4").splitlines()
    assert columns[0].split()[:5] == ["NAME", "VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT"]
    assert columns[1].split()[1:5] == ["4", "10.6.0.0/16", str(PODS), "300"]

    with ThreadPoolExecutor(12) as kubelets:
        for done in [kubelets.submit(pod.stop) for pod in pods]:
            done.result(timeout=200)
    lab.wait_for(lambda: not lab.records() and not lab.endpoints(), seconds=90)
    for node in NODES:
        lab.wait_for(lambda node=node: not lab.journal(node), seconds=90)
    status = lab.status(f"{lab.namespace}-v4")
    assert "allocatedIPs" not in status, "an empty pool must not carry the key"
