"""The lab itself: the LAN is real, nodes can lose their power, and nothing of a cluster stays.

The tests of a cluster run in order; the last one takes it down.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.cluster.lab import Cluster, LabFailed, LabUnavailable, lifecycle, plan, pod
from tests.cluster.lab.metrics import writes
from tests.cluster.lab.state import Identity, StateFolder
from tests.servers.process import CommandFailed
from tools.image.oci import write_archive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def url(address: str, port: int) -> str:
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


def service(name: str, family: str) -> dict[str, object]:
    spec = {"ipFamilies": [family], "selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    metadata = {"name": f"{name}-{family.lower()}", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def fetched(cluster: Cluster, pod_name: str, service_name: str) -> str:
    """What a pod gets from a service's virtual address."""
    virtual = cluster.kubectl_json("get", "service", service_name)["spec"]["clusterIP"]
    get = ("timeout", "3", "wget", "-q", "-O", "-", url(virtual, 80))
    return cluster.wait(lambda: cluster.exec(pod_name, *get), 20, f"{pod_name} reaches {service_name} at {virtual}")


def namespaces_in_use() -> set[str]:
    """The network and mount namespaces of every process; a zombie has none."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/*"):
        if link.name in {"net", "mnt"}:
            try:
                found.add(str(link.readlink()))
            except OSError:
                continue
    return found


# ------------------------------------------------------------------ an ordinary CNI


def reaches(cluster: Cluster, pod: str, address: str) -> None:
    """Wait until it does: under the bridge plugin the kernel looks for doubles of an IPv6 address for a second."""
    ping = ("ping", "-c", "1", "-W", "2", address)
    cluster.wait(lambda: ", 0% packet loss" in cluster.exec(pod, *ping), 15, f"{pod} to reach {address}")


def test_pods_of_both_nodes_become_ready_and_reach_each_other(bridge_cluster: Cluster) -> None:
    cluster = bridge_cluster
    cluster.apply(pod("one", node="n1"), pod("two", node="n2"), service("two", "IPv4"), service("two", "IPv6"))
    cluster.wait_for_pods("one", "two")
    two = cluster.pod_ips("two")
    assert [":" in address for address in two] == [False, True]
    for address in two:
        reaches(cluster, "one", address)
        assert cluster.outside.get(url(address, 8080)) == "ok\n"
    assert fetched(cluster, "one", "two-ipv4") == fetched(cluster, "one", "two-ipv6") == "ok\n"


def test_a_pod_whose_probe_fails_is_not_ready(bridge_cluster: Cluster) -> None:
    bridge_cluster.apply(pod("deaf", node="n1", command=["sleep", "600"]))
    running = ("get", "pod", "deaf", "--output=jsonpath={.status.phase}")
    bridge_cluster.wait(lambda: bridge_cluster.kubectl(*running) == "Running", 30, "pod deaf Running")
    with pytest.raises(LabFailed, match="pods deaf Ready"):
        bridge_cluster.wait_for_pods("deaf", timeout=2)


def test_the_client_beyond_the_router_reaches_nodes_and_nobody_else(bridge_cluster: Cluster) -> None:
    assert {"lan0", "wan0"} <= bridge_cluster.router.links().keys()
    for node in bridge_cluster.nodes.values():
        assert all(bridge_cluster.outside.ping(address) for address in node.addresses)
    assert not bridge_cluster.outside.ping("10.89.0.99", seconds=1)
    assert not bridge_cluster.outside.ping("fd00:89::99", seconds=1)


def test_nodes_may_have_further_nics_in_further_segments(bridge_cluster: Cluster) -> None:
    bridge_cluster.add_segment("storage", gateways=["10.91.0.1/24", "fd00:91::1/64"])
    bridge_cluster.add_nic("n2", "net1", segment="storage")
    node = bridge_cluster.node("n2")
    node.run(["ip", "address", "add", "10.91.0.12/24", "dev", "net1"])
    assert node.ping("10.91.0.1")
    assert "net1" not in bridge_cluster.node("n1").links()


def test_a_node_can_lack_a_plugin_and_refuse_new_ones(bridge_cluster: Cluster) -> None:
    one, two = bridge_cluster.node("n1"), bridge_cluster.node("n2")
    assert {path.name for path in (one.disk / "opt/cni/bin").iterdir()} == {
        "bridge",
        "host-local",
        "loopback",
        "macvlan",
    }
    assert not (two.disk / "opt/cni/bin/macvlan").exists()
    two.make_read_only("/opt/cni/bin")
    with pytest.raises(CommandFailed, match="Read-only file system"):
        two.run(["touch", "/opt/cni/bin/other"])
    one.run(["touch", "/opt/cni/bin/other"])
    assert not Path("/opt/cni/bin/other").exists()


def test_an_image_reaches_one_node(bridge_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("here\n")
    write_archive(tmp_path / "image.tar", rootfs=tmp_path / "root", name="lab.local/other:1")
    bridge_cluster.node("n1").load_image(tmp_path / "image.tar")
    listed = ["ctr", "--namespace=k8s.io", "images", "list", "--quiet"]
    assert "lab.local/other:1" in bridge_cluster.node("n1").run(listed).stdout.split()
    assert "lab.local/other:1" not in bridge_cluster.node("n2").run(listed).stdout.split()


def test_a_node_keeps_its_disk_and_its_nics_over_a_power_cycle(bridge_cluster: Cluster) -> None:
    node = bridge_cluster.node("n2")
    node.run(["mkdir", "--parents", "/var/lib/spiderpool"])
    node.run(["sh", "-c", "echo kept > /var/lib/spiderpool/file; echo lost > /run/file"])
    old, mac = node.pid_of("kubelet"), node.links()["eth0"]["address"]
    images = node.run(["ctr", "--namespace=k8s.io", "images", "list", "--quiet"]).stdout
    node.power_off()
    assert not node.is_on
    with pytest.raises(LabFailed, match="n2 is off"):
        node.run(["true"])
    node.power_on()
    node.containerd_ready()
    assert node.run(["cat", "/var/lib/spiderpool/file"]).stdout == "kept\n"
    assert node.run(["cat", "/run/file"], check=False).returncode
    assert {"eth0", "net1"} <= node.links().keys()
    assert node.links()["eth0"]["address"] == mac
    assert node.run(["ctr", "--namespace=k8s.io", "images", "list", "--quiet"]).stdout == images
    assert bridge_cluster.wait(lambda: node.pid_of("kubelet"), 20, "kubelet") != old
    count = "--output=jsonpath={.status.containerStatuses[0].restartCount}"
    bridge_cluster.wait(lambda: bridge_cluster.kubectl("get", "pod", "two", count) == "1", 60, "pod two started again")
    bridge_cluster.wait_for_pods("two")


def test_services_are_started_again_unless_they_are_held(bridge_cluster: Cluster) -> None:
    plane, node = bridge_cluster.plane, bridge_cluster.node("n1")
    old = node.pid_of("kube-proxy")
    node.restart("kube-proxy")
    assert node.pid_of("kube-proxy") != old
    plane.stop("kube-apiserver")
    with pytest.raises(CommandFailed):
        bridge_cluster.kubectl("get", "nodes", timeout=20)
    plane.start("kube-apiserver")
    assert bridge_cluster.wait(lambda: bridge_cluster.kubectl("get", "nodes"), 30, "the API server is back")


def test_writes_are_counted(bridge_cluster: Cluster) -> None:
    before, stored = bridge_cluster.api_writes(), bridge_cluster.etcd_writes()
    bridge_cluster.kubectl("create", "configmap", "one")
    assert (bridge_cluster.api_writes() - before)["POST", "configmaps"] == 1
    assert bridge_cluster.etcd_writes() > stored
    used = bridge_cluster.cpu_seconds()
    assert used["plane/kube-apiserver"] > 0 and used["n1/kubelet"] > 0 and used["n1"] > used["n1/kubelet"]
    assert not writes('apiserver_request_total{verb="GET",resource="pods"} 7\n')


def test_a_second_cluster_of_the_same_name_is_refused(bridge_cluster: Cluster) -> None:
    with pytest.raises(LabUnavailable, match=f"test-bridge is up, used by process {os.getpid()}"):
        Cluster.start(name="test-bridge")


def test_a_cluster_whose_owner_is_dead_is_taken_down_and_nothing_stays(bridge_cluster: Cluster) -> None:
    folder = StateFolder("test-bridge")
    with subprocess.Popen(["sleep", "60"]) as child:
        dead = Identity.of(child.pid)
        child.kill()
    state = bridge_cluster.state
    folder.write(msgspec.structs.replace(state, owner=dead))
    machines = [bridge_cluster.plane, *bridge_cluster.nodes.values()]
    first = [machine.first.pid for machine in machines]
    routers = [bridge_cluster.plane.pid_of(name) for name in ("router", "outside")]
    ours = {str(Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in first for name in ("net", "mnt")}
    ours |= {str(Path(f"/proc/{pid}/ns/net").readlink()) for pid in routers}
    assert ours <= namespaces_in_use()
    processes = []
    for pid in lifecycle.processes_of(folder):
        with contextlib.suppress(ProcessLookupError):  # a probe, for example, that has ended meanwhile
            processes.append(Identity.of(pid))
    assert len(processes) > len(first)

    with folder.locked():
        lifecycle.claim(folder, seconds=0, progress=lambda _: None)

    assert not folder.exists
    assert [entry.name for entry in folder.parent.iterdir()] == ["lock"]
    assert not [process for process in processes if process.alive]
    assert not ours & namespaces_in_use()
    assert not lifecycle.mounts_below(folder.path)
    left = [it.folder for found in state.cgroups.values() for it in found if Path(it.folder).exists()]
    assert not left


# ------------------------------------------------------------------ the reference on the LAN


def test_the_reference_gives_pods_lan_addresses_that_everybody_reaches(reference_cluster: Cluster) -> None:
    cluster = reference_cluster
    cluster.apply(pod("one", node="n1"), pod("two", node="n2"), service("one", "IPv4"))
    cluster.wait_for_pods("one", "two")
    for address in cluster.pod_ips("one"):
        assert address.startswith(("10.89.1.", "fd00:89::1:"))
        reaches(cluster, "two", address)
        assert cluster.outside.get(url(address, 8080)) == "ok\n"
        assert cluster.node("n1").get(url(address, 8080)) == "ok\n"
    assert fetched(cluster, "one", "one-ipv4") == fetched(cluster, "two", "one-ipv4") == "ok\n"


def test_without_the_probe_link_a_node_does_not_reach_its_own_pods(reference_cluster: Cluster) -> None:
    node, (ipv4, ipv6) = reference_cluster.node("n1"), reference_cluster.pod_ips("one")
    assert node.ping(ipv4) and node.ping(ipv6)
    node.run(["ip", "link", "delete", "probe0"])
    assert not node.ping(ipv4, seconds=1) and not node.ping(ipv6, seconds=1)
    assert reference_cluster.node("n2").ping(ipv4)


def test_jaeger_is_on_the_lan(reference_cluster: Cluster) -> None:
    jaeger = reference_cluster.jaeger()
    trace = "0af7651916cd43dd8448eb211c80319c"
    span = {"traceId": trace, "spanId": "b7ad6b7169203331", "name": "hello", "kind": 1}
    span |= {"startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000000001000"}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "lab"}}]}
    body = msgspec.json.encode({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}).decode()
    post = ["busybox", "wget", "-q", "-O", "-", "--header=Content-Type: application/json", f"--post-data={body}"]
    reference_cluster.node("n2").run([*post, f"{jaeger.otlp_endpoint}/v1/traces"])
    assert jaeger.wait_for_trace(trace)["spans"][0]["operationName"] == "hello"
    assert jaeger.otlp_endpoint == f"http://{plan.API[0]}:4318"
