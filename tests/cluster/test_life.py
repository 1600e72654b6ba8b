"""The life of an installation: roll-outs, upgrade, rollback and removal under running pods, traces, the status verb."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.audit import addresses, settled
from tests.cluster.lab import Cluster
from tests.cluster.lab.cluster import PRODUCT, PRODUCT_NAMESPACE
from tests.cluster.lab.pods import pod
from tests.cluster.product import AGENT, CONTROLLER, RELEASE, Product
from tests.cluster.workload import Deployment, Stream, fetch, sandbox_failures

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def steady(product: Product) -> Iterator[Deployment]:
    """Pods that live through everything that happens here."""
    deployment = Deployment(product.cluster, "steady")
    deployment.scale(4)
    yield deployment
    deployment.remove()
    settled(product.cluster, expect=0)


def _still_the_same(steady: Deployment, before: dict[str, list[str]]) -> None:
    """The pods of before are there, with the addresses of before, and reach each other."""
    after = {item["metadata"]["name"]: addresses(item) for item in steady.pods()}
    assert after == before
    names = list(after)
    for source, target in zip(names, names[1:] + names[:1], strict=True):
        for address in after[target]:
            assert fetch(steady.cluster, source, address) == "ok\n"


def _snapshot(steady: Deployment) -> dict[str, list[str]]:
    return {item["metadata"]["name"]: addresses(item) for item in steady.pods()}


@pytest.mark.parametrize("component", [f"daemonset/{AGENT}", f"deployment/{CONTROLLER}"])
def test_a_rollout_costs_no_pod_its_network_and_no_sandbox_more_than_a_retry(
    product: Product, steady: Deployment, component: str, terminal: Callable[[str], None]
) -> None:
    cluster, before = product.cluster, _snapshot(steady)
    failures = sum(sandbox_failures(cluster).values())
    with Stream(cluster).running() as seen:
        cluster.kubectl("rollout", "restart", component, f"--namespace={PRODUCT_NAMESPACE}")
        product.rolled_out(timeout=180)
    assert seen.ready == seen.started > 0
    assert sum(sandbox_failures(cluster).values()) - failures <= len(cluster.nodes)
    terminal(f"{component}: {seen.ready} pods came and went, longest gap {seen.gap:.1f} s")
    _still_the_same(steady, before)
    settled(cluster, expect=4)


def test_an_upgrade_changes_values_and_a_rollback_takes_them_back(product: Product, steady: Deployment) -> None:
    cluster, before = product.cluster, _snapshot(steady)

    def level() -> str:
        config = cluster.kubectl_json("get", f"daemonset/{AGENT}", f"--namespace={PRODUCT_NAMESPACE}")
        (container,) = config["spec"]["template"]["spec"]["containers"]
        return next(str(e["value"]) for e in container["env"] if e["name"] == "SPIDERPOOL_LOG_LEVEL")

    certificate = _certificate(cluster)
    with Stream(cluster).running() as seen:
        product.upgrade(values={"spiderpoolAgent": {"debug": {"logLevel": "debug"}}})
        product.rolled_out(timeout=180)
        assert level() == "debug"
        cluster.helm("rollback", RELEASE, f"--namespace={PRODUCT_NAMESPACE}", "--wait", "--timeout=180s")
        product.rolled_out(timeout=180)
    assert level() == "info"
    assert _certificate(cluster) == certificate
    assert seen.ready == seen.started > 0
    _still_the_same(steady, before)
    settled(cluster, expect=4)


def _certificate(cluster: Cluster) -> str:
    secret = "secret/spiderpool-controller-server-certs"
    return str(cluster.kubectl_json("get", secret, f"--namespace={PRODUCT_NAMESPACE}")["data"]["tls.crt"])


def test_an_upgrade_mends_a_crd_and_never_takes_a_field_away(product: Product) -> None:
    cluster, name = product.cluster, "spiderippools.spiderpool.spidernet.io"
    schema = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties"
    patch = [
        {"op": "add", "path": f"{schema}/theirs", "value": {"type": "string"}},
        {"op": "remove", "path": f"{schema}/gateway"},
    ]
    cluster.kubectl("patch", "crd", name, "--type=json", f"--patch={json.dumps(patch)}")
    product.upgrade()
    crd = cluster.kubectl_json("get", "crd", name)
    fields = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert {"gateway", "theirs"} <= set(fields)
    cluster.kubectl("patch", "crd", name, "--type=json", f'--patch=[{{"op": "remove", "path": "{schema}/theirs"}}]')


def test_a_second_installation_is_refused(product: Product) -> None:
    done = subprocess.run(
        product.cluster.argv(
            "helm", "install", "again", "helm/spiderpool", "--namespace=elsewhere", "--create-namespace"
        ),
        capture_output=True,
        text=True,
        env=product.cluster.environment,
        check=False,
    )
    assert done.returncode != 0
    assert RELEASE in done.stderr and PRODUCT_NAMESPACE in done.stderr, done.stderr


def test_helm_test_starts_two_pods_that_reach_each_other(product: Product) -> None:
    shown = product.cluster.helm("test", RELEASE, f"--namespace={PRODUCT_NAMESPACE}", "--timeout=120s")
    assert "Succeeded" in shown
    settled(product.cluster)


def _spiderpoolctl(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = cluster.plane.argv([sys.executable, "-m", "ctl.main", *arguments])
    return subprocess.run(argv, capture_output=True, text=True, env=cluster.environment, check=False)


def test_status_shows_one_screen_and_an_exit_code(product: Product, steady: Deployment) -> None:
    product.rolled_out()
    done = _spiderpoolctl(product.cluster, "status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All is well." in done.stdout
    for word in (*product.cluster.nodes, "lan-v4", "lan-v6", AGENT, CONTROLLER):
        assert word in done.stdout
    shown = json.loads(_spiderpoolctl(product.cluster, "status", "--output=json").stdout)
    assert {pool["owner"] for pool in shown["pools"]} <= {replica["pod"] for replica in shown["replicas"]}
    assert sum(agent["adds"] for agent in shown["agents"]) >= len(steady.pods())


def test_addresses_records_and_collector_can_be_looked_at(product: Product, steady: Deployment) -> None:
    cluster = product.cluster
    done = _spiderpoolctl(cluster, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for item in steady.pods()[:1]:
        for address in addresses(item):
            (seen,) = json.loads(_spiderpoolctl(cluster, "ip", "show", address, "-o=json").stdout)["addresses"]
            assert (seen["state"], seen["uid"]) == ("used", item["metadata"]["uid"])
    told = json.loads(_spiderpoolctl(cluster, "gc", "-o=json").stdout)["told"]
    assert [one["answer"] for one in told] == ["ok"] * len(told) and told
    refused = _spiderpoolctl(cluster, "ip", "release", addresses(steady.pods()[0])[0], "--yes")
    assert refused.returncode == 1 and "Deleting the pod releases it" in refused.stderr


def test_status_says_what_is_wrong(product: Product) -> None:
    cluster = product.cluster
    patch = '{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"n1"}}}}}'
    where = (f"daemonset/{AGENT}", f"--namespace={PRODUCT_NAMESPACE}")
    cluster.kubectl("patch", *where, f"--patch={patch}")
    try:
        cluster.wait(lambda: _spiderpoolctl(cluster, "status").returncode == 1, 90, "status finds something wrong")
        done = _spiderpoolctl(cluster, "status")
        assert "WRONG: node n2: its agent is" in done.stdout
    finally:
        cluster.kubectl(
            "patch", *where, '--patch={"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":null}}}}}'
        )
        product.rolled_out(timeout=180)


def test_the_trace_of_a_pod_started_by_kubelet_is_complete(product: Product) -> None:
    cluster = product.cluster
    jaeger = cluster.jaeger()
    cluster.apply(pod("traced", node="n1"))
    cluster.wait_for_pods("traced")
    wanted = {"cni ADD", "shim exec", "rpc Allocate", "allocator.select", "ippool.batch", "endpoint.write"}

    def complete() -> bool:
        tags = urllib.parse.quote('{"k8s.pod.name":"traced"}')
        _, answer = jaeger._query(f"/api/traces?service=spiderpool-agent&tags={tags}&limit=20&lookback=1h")
        traces = answer.get("data") or ()
        return any(wanted <= {span["operationName"] for span in trace["spans"]} for trace in traces)

    try:
        cluster.wait(complete, 60, "the whole trace in Jaeger", interval=1.0)
    finally:
        cluster.kubectl("delete", "pod", "traced")
    settled(cluster)


def test_uninstalling_leaves_running_pods_connected_and_no_pod_hangs(product: Product, steady: Deployment) -> None:
    cluster, before = product.cluster, _snapshot(steady)
    settled(cluster, expect=4)
    held = cluster.items(f"{PRODUCT}/spiderippools")
    product.uninstall()
    try:
        _still_the_same(steady, before)
        left = cluster.items(f"{PRODUCT}/spiderippools")
        assert [p.get("status") for p in left] == [p.get("status") for p in held]

        def ours(kind: str) -> list[str]:
            names = cluster.kubectl("get", kind, f"--namespace={PRODUCT_NAMESPACE}", "--output=name").split()
            # A pool's history stays as long as the pool does, which owns it.
            return [n for n in names if "spiderpool" in n and "/spiderpool-history." not in n]

        for kind in ("daemonset", "deployment", "service", "serviceaccount", "configmap"):
            assert ours(kind) == []
        # helm waits for what it deletes itself; kubelet ends the pods of those.
        cluster.wait(lambda: ours("pod") == [], 30, "no pod of ours")
        # No other CNI takes over here, so that the shim is left to answer DEL.
        assert all(_is_marked(cluster, node) for node in cluster.nodes)
        (victim, *_) = before
        cluster.kubectl("delete", "pod", victim, "--timeout=60s", timeout=70)
    finally:
        product.install()
    product.rolled_out(timeout=180)
    steady.settle(4)
    settled(cluster, expect=4)
    assert not any(_is_marked(cluster, node) for node in cluster.nodes)


def _is_marked(cluster: Cluster, node: str) -> bool:
    return cluster.node(node).run(["test", "-e", "/opt/cni/bin/spiderpool.uninstalled"], check=False).returncode == 0
