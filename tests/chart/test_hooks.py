"""The chart's hooks in a real API server, with the rights of their own accounts: adopt, start, clean."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from api.meta import FINALIZER
from tests.chart.conftest import CHART, ready_controller
from tests.chart.hooks import Hooks
from tests.servers import CommandFailed, ControlPlane

pytestmark = [pytest.mark.servers, pytest.mark.timeout(240)]

RELEASE, NAMESPACE = "sp", "hooks"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
API = "/apis/spiderpool.spidernet.io/v2beta1"
NETWORKS = "network-attachment-definitions.k8s.cni.cncf.io"
CRDS, INIT, CLEAN = "spiderpool-controller-crds", "spiderpool-init", "spiderpool-controller-hook-pre-delete"
LET_GO = "spiderpool-controller-hook-post-delete"
LAN = ("clusterDefaultPool.installIPv4IPPool=true", "clusterDefaultPool.ipv4Subnet=10.6.0.0/16")


@pytest.fixture
def cluster(_progress: Callable[[str], None]) -> Iterator[ControlPlane]:
    """A new one each time: kinds belong to all of a cluster, and one that is made again is slow to go."""
    with ControlPlane(progress=_progress) as server:
        server.create_namespace(NAMESPACE)
        ready_controller(server, NAMESPACE)
        yield server


@pytest.fixture
def hooks(cluster: ControlPlane) -> Iterator[Hooks]:
    with Hooks(cluster, NAMESPACE) as running:
        yield running


def helm(cluster: ControlPlane, verb: str, *values: str) -> str:
    sets = [word for value in values for word in ("--set", value)]
    return cluster.helm(verb, RELEASE, str(CHART), "--namespace", NAMESPACE, *sets)


def uninstall(cluster: ControlPlane) -> None:
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE)


def definition(plural: str) -> dict[str, Any]:
    """As the chart brings it."""
    text = (CHART / "crds" / f"spiderpool.spidernet.io_{plural}.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def spec_of(document: dict[str, Any]) -> dict[str, Any]:
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    found: dict[str, Any] = schema["properties"]["spec"]
    return found


def create(cluster: ControlPlane, document: dict[str, Any], *, manager: str = "kubectl-client-side-apply") -> None:
    """By another program, and wait until it is served."""
    cluster.request("POST", f"{DEFINITIONS}?fieldManager={manager}", document)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{document['metadata']['name']}")


def test_kinds_of_the_original_are_adopted_and_no_field_goes(cluster: ControlPlane, hooks: Hooks) -> None:
    older = definition("spiderippools")
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["withheldIPs"]
    spec_of(older)["properties"]["vlan"] = {"type": "integer"}
    create(cluster, older, manager="helm")
    pool = {"metadata": {"name": "old"}, "spec": {"subnet": "10.6.0.0/16", "vlan": 7}}
    pool |= {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool"}
    cluster.request("POST", f"{API}/spiderippools", pool)

    helm(cluster, "install")
    lines = hooks.last(CRDS).output.splitlines()
    assert (
        "spiderippools.spiderpool.spidernet.io: changed; taken over from helm; new: v2beta1 status.withheldIPs; "
        "kept, though not of this release: v2beta1 spec.vlan"
    ) in lines
    assert lines[-2:] == ["6 kinds are served", f"{NETWORKS}: created"]
    cluster.request("PATCH", f"{API}/spiderippools/old", {"spec": {"disable": True}})
    cluster.request("PATCH", f"{API}/spiderippools/old/status", {"status": {"withheldIPs": "{}"}})
    stored = cluster.request("GET", f"{API}/spiderippools/old").body
    assert stored["spec"]["vlan"] == 7
    assert stored["status"]["withheldIPs"] == "{}"

    # The kind of networks may be another program's: it is not looked at, only missed.
    networks = cluster.request("PATCH", f"{DEFINITIONS}/{NETWORKS}", {"metadata": {"labels": {"theirs": "x"}}}).body
    helm(cluster, "upgrade")
    output = hooks.last(CRDS).output
    assert output.count(": unchanged") == 6
    assert f"{NETWORKS}: already there, left as it is" in output
    after = cluster.request("GET", f"{DEFINITIONS}/{NETWORKS}").body
    assert after["metadata"]["resourceVersion"] == networks["metadata"]["resourceVersion"]
    cluster.helm("rollback", RELEASE, "1", "--namespace", NAMESPACE)
    assert cluster.request("GET", f"{API}/spiderippools/old").body["spec"]["vlan"] == 7

    # What others change meanwhile is taken back, with what they added.
    path = f"{DEFINITIONS}/spidersubnets.spiderpool.spidernet.io"
    theirs = cluster.request("GET", path).body
    spec_of(theirs)["properties"]["owner"] = {"type": "string"}
    spec_of(theirs)["properties"]["gateway"]["description"] = "theirs"
    del spec_of(theirs)["properties"]["excludeIPs"]
    cluster.request("PUT", f"{path}?fieldManager=somebody", theirs)
    helm(cluster, "upgrade")
    assert "spidersubnets.spiderpool.spidernet.io: changed; new: v2beta1 spec.excludeIPs" in hooks.last(CRDS).output
    after = spec_of(cluster.request("GET", path).body)
    assert after["properties"]["owner"] == {"type": "string"}
    assert after["properties"]["gateway"] == spec_of(definition("spidersubnets"))["properties"]["gateway"]


def test_a_kind_that_cannot_be_adopted_stops_the_installation_and_nothing_is_touched(
    cluster: ControlPlane, hooks: Hooks
) -> None:
    other, older = definition("spiderreservedips"), definition("spiderendpoints")
    other["spec"]["scope"] = "Namespaced"
    older["spec"]["versions"][0]["name"] = "v1"
    create(cluster, other)
    create(cluster, older)
    before = [cluster.request("GET", f"{DEFINITIONS}/{each['metadata']['name']}").body for each in (other, older)]
    with pytest.raises(CommandFailed):
        helm(cluster, "install")
    ran = hooks.last(CRDS)
    assert ran.code == 1
    assert "spiderreservedips.spiderpool.spidernet.io: spec.scope: found Namespaced, wanted Cluster" in ran.output
    assert "spiderendpoints.spiderpool.spidernet.io: spec.versions: found v1, wanted v2beta1" in ran.output
    assert "nothing was changed" in ran.output
    after = [cluster.request("GET", f"{DEFINITIONS}/{each['metadata']['name']}").body for each in (other, older)]
    assert [each["metadata"]["resourceVersion"] for each in after] == [
        each["metadata"]["resourceVersion"] for each in before
    ]
    with pytest.raises(CommandFailed):
        cluster.kubectl("get", "-n", NAMESPACE, "deployment/spiderpool-controller")


def test_what_the_values_name_is_made_once_and_what_makes_no_sense_is_refused(
    cluster: ControlPlane, hooks: Hooks
) -> None:
    helm(cluster, "install", *LAN, "clusterDefaultPool.ipv4IPRanges={10.6.1.1-10.6.1.9}", "coordinator.mode=overlay")
    pool = cluster.request("GET", f"{API}/spiderippools/default-v4-ippool").body["spec"]
    assert (pool["subnet"], pool["ips"], pool["default"]) == ("10.6.0.0/16", ["10.6.1.1-10.6.1.9"], True)
    assert cluster.request("GET", f"{API}/spidersubnets/default-v4-subnet").body["spec"]["subnet"] == "10.6.0.0/16"
    coordinator = cluster.request("GET", f"{API}/spidercoordinators/default").body["spec"]
    assert (coordinator["mode"], coordinator["hijackCIDR"], coordinator["vethMTU"]) == (
        "overlay",
        ["169.254.0.0/16"],
        1500,
    )

    cluster.request("PATCH", f"{API}/spiderippools/default-v4-ippool", {"spec": {"ips": ["10.6.2.1"]}})
    more = ("clusterDefaultPool.installIPv6IPPool=true", "clusterDefaultPool.ipv6Subnet=fd00::/64")
    helm(cluster, "upgrade", *LAN, *more, "clusterDefaultPool.ipv4IPRanges={10.6.1.1-10.6.1.9}")
    output = hooks.last(INIT).output
    assert "SpiderIPPool default-v6-ippool: created" in output
    assert (
        'SpiderIPPool default-v4-ippool: already there, left as it is; not as the values say: spec.ips (["10.6.2.1"], '
        'values ["10.6.1.1-10.6.1.9"])'
    ) in output
    assert cluster.request("GET", f"{API}/spiderippools/default-v4-ippool").body["spec"]["ips"] == ["10.6.2.1"]

    with pytest.raises(CommandFailed):
        helm(cluster, "upgrade", *LAN, "clusterDefaultPool.ipv4Gateway=10.7.0.1")
    ran = hooks.last(INIT)
    assert ran.code == 2
    assert "SPIDERPOOL_INIT_DEFAULT_IPV4_IPPOOL_GATEWAY='10.7.0.1': spec.gateway" in ran.output


class Agents:
    """Answers for the agents of nodes, as far as they answer at all: a pod's annotation, then an event."""

    def __init__(self, cluster: ControlPlane, **answers: tuple[str, str] | None) -> None:
        self._cluster = cluster
        self._over = threading.Event()
        self._threads = []
        for node, answer in answers.items():
            cluster.request("POST", "/api/v1/nodes", {"metadata": {"name": node}})
            if answer is not None:
                self._start(node)
                self._threads.append(threading.Thread(target=self._play, args=(node, *answer)))
        for thread in self._threads:
            thread.start()

    def _start(self, node: str) -> None:
        pod = {
            "metadata": {"name": f"agent-{node}", "labels": {"app.kubernetes.io/component": "spiderpool-agent"}},
            "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "agent"}]},
        }
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        self._cluster.request("POST", path, pod)
        self._cluster.request("PATCH", f"{path}/agent-{node}/status", {"status": {"phase": "Running"}})

    def _play(self, node: str, reason: str, message: str) -> None:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/agent-{node}"
        while not self._over.wait(0.2):
            pod = self._cluster.request("GET", path).body
            if pod["metadata"].get("annotations", {}).get("spiderpool.spidernet.io/retire") == "true":
                about = {"kind": "Pod", "namespace": NAMESPACE, "name": f"agent-{node}", "uid": pod["metadata"]["uid"]}
                event = {
                    "metadata": {"name": f"e-{node}"},
                    "involvedObject": about,
                    "reason": reason,
                    "message": message,
                }
                self._cluster.request("POST", f"/api/v1/namespaces/{NAMESPACE}/events", event)
                return

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_agents_withdraw_before_they_are_taken_away(cluster: ControlPlane, hooks: Hooks) -> None:
    helm(cluster, "install", *LAN)
    held = {"metadata": {"finalizers": [FINALIZER]}}  # as admission does, which is not here
    cluster.request("PATCH", f"{API}/spiderippools/default-v4-ippool", held)
    agents = Agents(cluster, n1=("CNIWithdrawn", "all is removed"), n2=("CNILeft", "no other CNI"), n3=None)
    uninstall(cluster)
    agents.stop()
    ran = hooks.last(CLEAN)
    assert ran.code == 0
    assert "node n1: withdrawn: all is removed" in ran.output
    assert "node n2: something is left: no other CNI" in ran.output
    assert "node n3: left as it is: no agent runs there" in ran.output
    assert "1 spiderippools, 1 spidersubnets" in ran.output
    pool = f"{API}/spiderippools/default-v4-ippool"
    assert cluster.request("GET", pool).status == 200
    assert hooks.last(LET_GO).code == 0
    cluster.request("DELETE", pool)
    assert cluster.request("GET", pool, check=False).status == 404, "who deletes it is rid of it"


def test_everything_goes_where_the_values_say_so(cluster: ControlPlane, hooks: Hooks) -> None:
    helm(cluster, "install", *LAN, "spiderpoolController.cleanup.enable=true")
    pool = f"{API}/spiderippools/default-v4-ippool"
    cluster.request("PATCH", pool, {"metadata": {"finalizers": ["spiderpool.spidernet.io/held"]}})
    uninstall(cluster)
    output = hooks.last(CLEAN).output
    assert "SpiderIPPool: 1 removed" in output
    assert "SpiderCoordinator: 1 removed" in output
    kinds = cluster.request("GET", DEFINITIONS).body["items"]
    assert [each["metadata"]["name"] for each in kinds if "spiderpool" in json.dumps(each["spec"]["group"])] == []
