"""Area spidercoordinator: the controllers find the cluster's CIDRs, say so, and agents and pods go by that.

The API server is real, and it serves Calico's and Cilium's kinds; what those networks would write is played.
"""

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.cases.conftest import COORDINATOR, COORDINATORS
from tests.processes.lab import CniError, Lab, Pod, call
from tests.processes.test_original_plugins import ask
from tests.servers import ControlPlane
from tests.servers.control_plane import ApiRefused

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(120)]

NODE = "n1"
NODE_ADDRESS = ("100.126.0.1", 24)
SERVICES = ["10.96.0.0/16", "fd00:10:96::/112"]
"""As the API server was told, and tells by a ServiceCIDR."""
KUBE_SYSTEM = "/api/v1/namespaces/kube-system"
CONFIG_MAPS = f"{KUBE_SYSTEM}/configmaps"
CALICO = "/apis/crd.projectcalico.org/v1/ippools"
CILIUM_POOLS = "/apis/cilium.io/v2alpha1/ciliumpodippools"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
KUBEADM = {"podSubnet": "10.30.0.0/16,fd00:30::/48", "serviceSubnet": "10.96.0.0/16"}
CALICO_FILE = json.dumps({"name": "k8s-pod-network", "plugins": [{"type": "calico"}]})
FLANNEL_FILE = json.dumps({"name": "cbr0", "plugins": [{"type": "flannel"}]})


class Cluster:
    """What a case changes of the cluster, and the SpiderCoordinator that follows."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.control_plane: ControlPlane = lab.control_plane
        self._folder = folder
        self._made: list[str] = []

    def request(self, method: str, path: str, body: Any = None) -> Any:
        return self.control_plane.request(method, path, body).body

    def make(self, collection: str, name: str, **parts: Any) -> None:
        self.request("POST", collection, {"metadata": {"name": name}, **parts})
        self._made.append(f"{collection}/{name}")

    def change(self, path: str, **parts: Any) -> None:
        """Change an object. A replica that has died is asked for admission all the same here, and then another one."""

        def changed() -> bool:
            answer = self.control_plane.request("PATCH", path, parts, check=False)
            if answer.status >= HTTPStatus.BAD_REQUEST and "failed calling webhook" not in str(answer.body):
                raise ApiRefused("PATCH", path, answer)
            return answer.status < HTTPStatus.BAD_REQUEST

        self.lab.wait_for(changed)

    def remove(self, path: str) -> None:
        self.control_plane.request("DELETE", path, {"gracePeriodSeconds": 0})
        with suppress(ValueError):
            self._made.remove(path)

    def define(self, plural: str, kind: str, group: str, version: str) -> None:
        """The definition of a foreign network's kind."""
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        served = {"name": version, "served": True, "storage": True, "schema": schema}
        names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
        spec = {"group": group, "names": names, "scope": "Cluster", "versions": [served]}
        about = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        self.make(DEFINITIONS, f"{plural}.{group}", spec=spec, **about)
        self.control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{plural}.{group}")

    def calico_pool(self, name: str, cidr: str, **spec: Any) -> None:
        about = {"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool"}
        self.make(CALICO, name, spec={"cidr": cidr, **spec}, **about)

    def cilium_pool(self, name: str, *ipv4: str) -> None:
        about = {"apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool"}
        self.make(CILIUM_POOLS, name, spec={"ipv4": {"cidrs": list(ipv4), "maskSize": 24}}, **about)

    def kubeadm(self, **networking: str) -> None:
        text = json.dumps({"kind": "ClusterConfiguration", "networking": networking})
        self.make(CONFIG_MAPS, "kubeadm-config", data={"ClusterConfiguration": text})

    def controller_manager(self, *flags: str) -> str:
        """Its pod, as a kubelet mirrors a static one; the path."""
        name = f"kcm-{secrets.token_hex(3)}"
        container = {"name": "kcm", "image": "none", "command": ["kube-controller-manager", *flags]}
        meta = {"name": name, "labels": {"component": "kube-controller-manager"}}
        spec = {"nodeName": "control-plane", "hostNetwork": True, "containers": [container]}
        self.request("POST", f"{KUBE_SYSTEM}/pods", {"metadata": meta, "spec": spec})
        self._made.append(f"{KUBE_SYSTEM}/pods/{name}")
        return self._made[-1]

    def file(self, name: str, text: str) -> None:
        """A CNI configuration, put in its place as installers do it."""
        (self._folder / f".{name}").write_text(text)
        (self._folder / f".{name}").rename(self._folder / name)

    def remove_file(self, name: str) -> None:
        (self._folder / name).unlink()

    # -- the coordinator -----------------------------------------------------------------------------------------------

    def read(self, kind: str, **spec: Any) -> None:
        """Have the CIDRs read from there."""
        self.change(f"{COORDINATORS}/default", spec={"podCIDRType": kind, **spec})

    def coordinator(self) -> dict[str, Any]:
        found: dict[str, Any] = self.request("GET", f"{COORDINATORS}/default")
        return found

    def wait(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status that is of the present spec and fulfils this."""
        seen: dict[str, Any] = {}

        def found() -> bool:
            seen.update(self.coordinator())
            status = seen.get("status", {})
            of = [one.get("observedGeneration") for one in status.get("conditions", ()) if one["type"] == "Synced"]
            return of == [seen["metadata"]["generation"]] and holds(status)

        try:
            self.lab.wait_for(found, seconds=20)
        except AssertionError as error:
            msg = f"{seen.get('spec')}: {seen.get('status')}"
            raise AssertionError(msg) from error
        return dict(seen["status"])

    def synced(self, *pods: str, services: list[str] | None = None) -> dict[str, Any]:
        """Wait until exactly these CIDRs are found."""
        return self.wait(
            lambda status: (
                status["phase"] == "Synced"
                and status["overlayPodCIDR"] == list(pods)
                and status["serviceCIDR"] == (SERVICES if services is None else services)
                and "reason" not in status
            )
        )

    def not_ready(self, *words: str) -> dict[str, Any]:
        """Wait until they are not known, for this reason."""
        return self.wait(
            lambda status: (
                status["phase"] == "NotReady"
                and all(word in status["reason"] for word in words)
                and status["overlayPodCIDR"] == status["serviceCIDR"] == []
            )
        )

    def said(self, reason: str, *words: str) -> None:
        """Wait for an event about it."""

        def found() -> bool:
            items = self.request("GET", "/api/v1/namespaces/default/events")["items"]
            about = [one for one in items if one["involvedObject"].get("kind") == "SpiderCoordinator"]
            return any(one["reason"] == reason and all(w in one["message"] for w in words) for one in about)

        self.lab.wait_for(found)

    def close(self) -> None:
        for path in reversed(self._made):
            self.control_plane.request("DELETE", path, {"gracePeriodSeconds": 0}, check=False)
        for file in self._folder.iterdir():
            file.unlink()
        self.change(f"{COORDINATORS}/default", spec=COORDINATOR["spec"])
        self.synced()


@pytest.fixture
def cluster(lab: Lab, configurations: Path) -> Iterator[Cluster]:
    """The cluster as all other cases have it, before and after."""
    made = Cluster(lab, configurations)
    made.synced()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def pod(lab: Lab) -> Iterator[Pod]:
    """A pod on a node that has an address, from a pool of its own."""
    tag = secrets.token_hex(3)
    lab.create_pool(
        f"coordinated-{tag}",
        ipVersion=4,
        subnet="100.126.0.0/24",
        gateway="100.126.0.254",
        ips=["100.126.0.10-100.126.0.11"],
    )
    with IPRoute() as route:
        index = route.link_lookup(ifname=f"{NODE}-up")[0]
        route.addr("add", index=index, address=NODE_ADDRESS[0], prefixlen=NODE_ADDRESS[1])
    made = lab.pod(f"coordinated-{tag}", NODE, pools={"ipv4": [f"coordinated-{tag}"]})
    made.new_sandbox()
    yield made
    made.stop()
    lab.wait_for(lambda: not lab.status(f"coordinated-{tag}").get("allocatedIPs"))
    lab.remove_pool(f"coordinated-{tag}")
    with IPRoute() as route:
        route.addr("del", index=index, address=NODE_ADDRESS[0], prefixlen=NODE_ADDRESS[1])
        for one in route.get_rules(family=socket.AF_INET):
            if one.get_attr("FRA_PRIORITY") == 1000:
                route.rule("del", family=socket.AF_INET, priority=1000, table=500)


def config(pod: Pod, **coordinator: Any) -> dict[str, Any]:
    return {**pod.lab.config(pod.node), "coordinator": coordinator}


def routes(pod: Pod) -> set[str]:
    """What the pod reaches through its node, apart from the node itself."""

    def look() -> set[str]:
        with IPRoute() as route:
            index = route.link_lookup(ifname="veth0")[0]
            found = route.get_routes(oif=index, family=socket.AF_INET, table=254)
            return {f"{one.get_attr('RTA_DST')}/{one['dst_len']}" for one in found if one.get_attr("RTA_GATEWAY")}

    assert pod.netns is not None
    return pod.netns.run(look)


def test_V00001_auto(cluster: Cluster) -> None:
    cluster.define("ippools", "IPPool", "crd.projectcalico.org", "v1")
    cluster.calico_pool("one", "10.40.0.0/16")
    cluster.file("10-calico.conflist", CALICO_FILE)
    cluster.read("auto")
    status = cluster.synced("10.40.0.0/16")
    (condition,) = status["conditions"]
    assert (condition["status"], condition["reason"]) == ("True", "Calico")
    assert "10-calico.conflist" in condition["message"]
    # Another network is installed instead, without a word to us.
    cluster.kubeadm(**KUBEADM)
    cluster.file("05-flannel.conflist", FLANNEL_FILE)
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.said("PodCIDRTypeChanged", "cluster", "calico")


def test_V00002_auto_without_a_configuration(cluster: Cluster) -> None:
    cluster.define("ippools", "IPPool", "crd.projectcalico.org", "v1")
    cluster.calico_pool("left-behind", "10.40.0.0/16")
    cluster.file("10-calico.conflist", CALICO_FILE)
    cluster.read("auto")
    cluster.synced("10.40.0.0/16")
    # Ours calls others, and says nothing of them.
    cluster.file("00-spiderpool.conflist", CALICO_FILE)
    cluster.remove_file("10-calico.conflist")
    cluster.synced()


def test_V00003_calico(cluster: Cluster) -> None:
    cluster.read("calico")
    cluster.not_ready("there is no kind ippools.crd.projectcalico.org")
    cluster.said("CalicoNotReady", "no kind")
    cluster.define("ippools", "IPPool", "crd.projectcalico.org", "v1")
    cluster.calico_pool("b", "10.41.0.0/16")
    cluster.synced("10.41.0.0/16")
    cluster.calico_pool("a", "fd00:41::/48")
    assert set(cluster.wait(lambda status: len(status["overlayPodCIDR"]) == 2)["overlayPodCIDR"]) == {
        "10.41.0.0/16",
        "fd00:41::/48",
    }
    cluster.change(f"{CALICO}/a", spec={"disabled": True})
    cluster.synced("10.41.0.0/16")
    cluster.change(f"{CALICO}/b", spec={"cidr": "10.42.0.0/16"})
    cluster.synced("10.42.0.0/16")
    cluster.remove(f"{CALICO}/b")
    cluster.not_ready("none of Calico's 1 IPPools")
    cluster.remove(f"{DEFINITIONS}/ippools.crd.projectcalico.org")
    cluster.not_ready("there is no kind ippools.crd.projectcalico.org")
    # It comes back, and nobody waits for the next time that the reflector asks.
    cluster.define("ippools", "IPPool", "crd.projectcalico.org", "v1")
    cluster.calico_pool("c", "10.43.0.0/16")
    cluster.synced("10.43.0.0/16")


def test_V00004_cilium(cluster: Cluster) -> None:
    path = f"{CONFIG_MAPS}/cilium-config"
    cluster.read("cilium")
    cluster.not_ready("there is no ConfigMap kube-system/cilium-config")
    cluster.said("CiliumNotReady", "cilium-config")
    pools = {"cluster-pool-ipv4-cidr": "10.50.0.0/16", "cluster-pool-ipv6-cidr": "fd00:50::/104"}
    # Cilium's pools are another mode's: without their kind this one works.
    cluster.make(CONFIG_MAPS, "cilium-config", data={"ipam": "cluster-pool", **pools})
    cluster.synced("10.50.0.0/16", "fd00:50::/104")
    cluster.change(path, data={"cluster-pool-ipv4-cidr": "10.51.0.0/16 10.52.0.0/16"})
    cluster.synced("10.51.0.0/16", "10.52.0.0/16", "fd00:50::/104")
    cluster.change(path, data={"ipam": "kubernetes"})
    cluster.not_ready("the CIDRs of pods are not known")
    cluster.kubeadm(**KUBEADM)
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.change(path, data={"ipam": "multi-pool"})
    cluster.not_ready("ciliumpodippools.cilium.io")
    cluster.define("ciliumpodippools", "CiliumPodIPPool", "cilium.io", "v2alpha1")
    cluster.cilium_pool("default", "10.53.0.0/16")
    cluster.synced("10.53.0.0/16")
    cluster.cilium_pool("more", "10.54.0.0/16", "10.55.0.0/16")
    cluster.wait(lambda status: set(status["overlayPodCIDR"]) == {f"10.{one}.0.0/16" for one in (53, 54, 55)})
    cluster.change(path, data={"ipam": "eni"})
    cluster.not_ready("ipam is eni", "hijackCIDR")


def test_V00005_none(cluster: Cluster) -> None:
    cluster.kubeadm(**KUBEADM)
    cluster.read("cluster")
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.read("none")
    cluster.synced()
    # What does not change the answer is not written; what does comes after it.
    before = cluster.coordinator()["metadata"]["resourceVersion"]
    cluster.change(f"{CONFIG_MAPS}/kubeadm-config", metadata={"labels": {"touched": "yes"}})
    cluster.remove(f"{CONFIG_MAPS}/kubeadm-config")
    time.sleep(1.5)
    assert cluster.coordinator()["metadata"]["resourceVersion"] == before


def test_V00006_not_ready_says_nothing_of_cidrs(cluster: Cluster) -> None:
    cluster.kubeadm(**KUBEADM)
    cluster.read("cluster")
    before = cluster.synced("10.30.0.0/16", "fd00:30::/48")["conditions"][0]
    cluster.change(
        f"{CONFIG_MAPS}/kubeadm-config",
        data={"ClusterConfiguration": json.dumps({"networking": {"podSubnet": "10.30.0.0/99"}})},
    )
    status = cluster.not_ready("kubeadm-config podSubnet: '10.30.0.0/99' is no CIDR")
    (condition,) = status["conditions"]
    assert (condition["type"], condition["status"], condition["reason"]) == ("Synced", "False", "ClusterNotReady")
    assert condition["message"] == status["reason"]
    assert before["status"] == "True"
    cluster.said("ClusterNotReady", "10.30.0.0/99")


def test_V00007_the_plugins_own_word_goes_first(cluster: Cluster, pod: Pod) -> None:
    cluster.kubeadm(**KUBEADM)
    cluster.read("cluster", hijackCIDR=["198.18.0.0/16"])
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.lab.wait_for(
        lambda: "198.18.0.0/16" in ask(cluster.lab, NODE, "GET", "/coordinator/config", who(pod))[1]["hijackCIDR"]
    )
    pod.add(config=config(pod))
    assert routes(pod) == {"10.30.0.0/16", SERVICES[0], "198.18.0.0/16"}
    pod.delete(config=config(pod))
    own = config(pod, serviceCIDR=["10.77.0.0/16"], hijackCIDR=["198.19.0.0/16"])
    pod.add(config=own)
    assert routes(pod) == {"10.30.0.0/16", "10.77.0.0/16", "198.19.0.0/16"}


def who(pod: Pod) -> dict[str, str]:
    return {"podNamespace": pod.lab.namespace, "podName": pod.name}


def test_V00008_a_pod_waits_while_it_is_not_ready(cluster: Cluster, pod: Pod) -> None:
    lab = cluster.lab
    cluster.read("cluster")
    cluster.not_ready("the CIDRs of pods are not known")
    lab.wait_for(lambda: ask(lab, NODE, "GET", "/coordinator/config", who(pod))[0] == HTTPStatus.INTERNAL_SERVER_ERROR)
    _, said = ask(lab, NODE, "GET", "/coordinator/config", who(pod))
    assert "SpiderCoordinator default is NotReady: the CIDRs of pods are not known" in said
    with pytest.raises(CniError, match="SpiderCoordinator default is NotReady: the CIDRs of pods") as failed:
        pod.add(config=config(pod))
    assert failed.value.document["code"] == 11
    with pytest.raises(CniError, match="NotReady"):  # half of it is the cluster's to say
        pod.add(config=config(pod, serviceCIDR=["10.77.0.0/16"]))
    assert pod.uid not in {record["podUid"] for record in lab.records().values()}, "it costs no address"
    lab.wait_for(lambda: any("NotReady" in one["message"] for one in _events(cluster, pod)))
    # The node is well all the same, and who needs nothing of the cluster goes on.
    status = {**lab.config(NODE), "cniVersion": "1.1.0"}
    assert call(lab.plugins / "macvlan", "STATUS", status, {"SPIDERPOOL_SOCKET": str(lab.socket(NODE))}) == {}
    own = config(pod, serviceCIDR=["10.77.0.0/16"], overlayPodCIDR=["10.78.0.0/16"])
    pod.add(config=own)
    assert routes(pod) == {"10.77.0.0/16", "10.78.0.0/16", "169.254.0.0/16"}
    pod.delete(config=own)
    pod.add(config=config(pod, mode="disabled"))
    pod.delete(config=config(pod, mode="disabled"))
    pod.add(config=lab.config(NODE))
    pod.delete()
    cluster.kubeadm(podSubnet="10.38.0.0/16")
    cluster.synced("10.38.0.0/16")
    cluster.said("CoordinatorSynced", "10.38.0.0/16", "kubeadm-config")
    lab.wait_for(lambda: ask(lab, NODE, "GET", "/coordinator/config", who(pod))[0] == HTTPStatus.OK)
    pod.add(config=config(pod))
    assert routes(pod) == {"10.38.0.0/16", SERVICES[0], "169.254.0.0/16"}


def _events(cluster: Cluster, pod: Pod) -> list[dict[str, Any]]:
    items = cluster.request("GET", f"/api/v1/namespaces/{cluster.lab.namespace}/events")["items"]
    return [one for one in items if one["involvedObject"].get("uid") == pod.uid]


def test_V00009_kubeadm_goes_before_the_controller_manager(cluster: Cluster) -> None:
    cluster.controller_manager("--cluster-cidr=10.31.0.0/16", "--service-cluster-ip-range=10.96.0.0/16")
    cluster.read("cluster")
    cluster.synced("10.31.0.0/16")
    cluster.kubeadm(**KUBEADM)
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.remove(f"{CONFIG_MAPS}/kubeadm-config")
    cluster.synced("10.31.0.0/16")


def test_V00010_service_cidrs(cluster: Cluster) -> None:
    name = f"more-{secrets.token_hex(3)}"
    about = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR"}
    cluster.make(SERVICE_CIDRS, name, spec={"cidrs": ["10.97.0.0/24"]}, **about)
    cluster.synced(services=[*SERVICES, "10.97.0.0/24"])
    cluster.remove(f"{SERVICE_CIDRS}/{name}")
    cluster.synced()


def test_V00011_no_source_and_back_again(cluster: Cluster) -> None:
    manager = cluster.controller_manager("--cluster-cidr", "10.31.0.0/16")
    cluster.kubeadm(**KUBEADM)
    cluster.read("cluster")
    cluster.synced("10.30.0.0/16", "fd00:30::/48")
    cluster.remove(f"{CONFIG_MAPS}/kubeadm-config")
    cluster.synced("10.31.0.0/16")
    cluster.remove(manager)
    cluster.not_ready("kubeadm-config", "component=kube-controller-manager")
    cluster.controller_manager("--cluster-cidr", "10.32.0.0/16")
    cluster.synced("10.32.0.0/16")
    # The owner dies with it, and the other replica goes on.
    cluster.lab.kill("controller")
    try:
        cluster.kubeadm(**KUBEADM)
        cluster.synced("10.30.0.0/16", "fd00:30::/48")
    finally:
        cluster.lab.start_controller("controller")
    cluster.lab.kill("controller-1")
    try:
        cluster.read("none")
        cluster.synced()
    finally:
        cluster.lab.start_controller("controller-1")
        cluster.lab.admission.wait()
