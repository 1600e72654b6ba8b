"""Pods that the real API server shows to a real controller first, with the chart's webhook and rights."""

import json
import os
from collections.abc import Iterator, Mapping
from http import HTTPStatus

import pytest
import yaml

from tests.cases.refusals import causes
from tests.processes import networks
from tests.processes.lab import Lab
from tests.servers import CommandFailed, ControlPlane
from tests.servers.control_plane import Answer

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

RDMA = "cni.spidernet.io/rdma-resource-inject"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
LEFT_OUT = "pods-left-out"
CONFIGS = "/apis/spiderpool.spidernet.io/v2beta1/namespaces/{}/spidermultusconfigs"


class Pods:
    """Namespaces, SpiderMultusConfigs and pods."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._control_plane = lab.control_plane
        self.namespace = self.make_namespace()

    def make_namespace(self, name: str = "", notes: Mapping[str, str] | None = None) -> str:
        """Returns its name."""
        meta = {"name": name} if name else {"generateName": "pods-"}
        body = {"metadata": {**meta, "annotations": dict(notes or {})}}
        return str(self._control_plane.request("POST", "/api/v1/namespaces", body).body["metadata"]["name"])

    def make_config(self, name: str, master: str, word: str, **notes: str) -> None:
        """A SpiderMultusConfig that answers to a word."""
        block = {"master": [master], "rdmaResourceName": f"example.com/{name}", "ippools": {"ipv4": ["p4"]}}
        body = {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderMultusConfig",
            "metadata": {"name": name, "annotations": {RDMA: word, **notes}},
            "spec": {"cniType": "macvlan", "macvlan": block},
        }
        self._control_plane.request("POST", CONFIGS.format(self.namespace), body)

    def create(self, notes: Mapping[str, str], namespace: str = "", *, name: str = "", dry: bool = True) -> Answer:
        """Ask for a pod."""
        meta = {"name": name} if name else {"generateName": "web-"}
        body = {
            "metadata": {**meta, "annotations": dict(notes)},
            "spec": {"containers": [{"name": name, "image": "none"} for name in "ab"]},
        }
        path = f"/api/v1/namespaces/{namespace or self.namespace}/pods{'?dryRun=All' if dry else ''}"
        return self._control_plane.request("POST", path, body, check=False)

    def networks(self, notes: Mapping[str, str], namespace: str = "") -> str:
        """What a pod is attached to."""
        answer = self.create(notes, namespace)
        assert answer.status == HTTPStatus.CREATED, answer
        return str(answer.body["metadata"].get("annotations", {}).get(NETWORKS, ""))


@pytest.fixture(scope="module")
def pods(control_plane: ControlPlane) -> Iterator[Pods]:
    if os.geteuid() != 0:
        pytest.skip("needs root, or: unshare --map-root-user --net --mount")
    networks.install_kind(control_plane)
    inject = "spiderpoolController.podResourceInject"
    with Lab(
        control_plane,
        nodes=("n1",),
        environment={"SPIDERPOOL_MULTUS_CONFIG_ENABLED": "true"},
        webhooks=True,
        values=(f"{inject}.enabled=true", f"{inject}.namespacesExclude={{{LEFT_OUT}}}"),
    ) as lab:
        case = Pods(lab)
        case.make_namespace(LEFT_OUT)
        yield case


def test_networks_and_namespaces_that_were_made_a_moment_before_are_found(pods: Pods) -> None:
    for number in range(15):
        word = f"word-{number}"
        pods.make_config(f"b-{number}", "eth2", word)
        pods.make_config(f"a-{number}", "eth1", word)
        assert pods.networks({RDMA: word}) == f"{pods.namespace}/a-{number},{pods.namespace}/b-{number}"
        namespace = pods.make_namespace(notes={RDMA: word})
        assert pods.networks({}, namespace) == f"{pods.namespace}/a-{number},{pods.namespace}/b-{number}"
        assert pods.networks({RDMA: ""}, namespace) == "", "a pod can do without"


def test_what_is_stored(pods: Pods) -> None:
    pods.make_config("stored", "eth1", "stored", **{"multus.spidernet.io/cr-name": "renamed"})
    made = pods.create({RDMA: "stored", NETWORKS: "mine@up0"}, dry=False)
    assert made.status == HTTPStatus.CREATED, made
    assert made.body["metadata"]["annotations"][NETWORKS] == f"mine@up0,{pods.namespace}/renamed"
    first, second = (each["resources"] for each in made.body["spec"]["containers"])
    wanted = {"example.com/stored": "1"}
    assert (first, second) == ({"limits": wanted, "requests": wanted}, {})


def test_a_pod_that_cannot_be_is_refused_and_told_why(pods: Pods) -> None:
    text = f"no SpiderMultusConfig with the label {RDMA}: none has it"
    problem = f'metadata.annotations[{RDMA}]: Invalid value: "nobody": {text}'
    answer = pods.create({RDMA: "nobody"}, name="web")
    assert causes(answer) == [problem]
    assert answer.body["message"] == (
        f'admission webhook "pods.spiderpool.spidernet.io" denied the request: Pod "web" is invalid: {problem}'
    )
    assert 'Pod "web-*" is invalid' in pods.create({RDMA: "nobody"}).body["message"]
    both = causes(pods.create({RDMA: "a,b", NETWORKS: "a/b/c"}))
    assert [cause.partition(": ")[0] for cause in both] == [f"metadata.annotations[{key}]" for key in (RDMA, NETWORKS)]
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": pods.namespace, "annotations": {RDMA: "nobody"}},
        "spec": {"containers": [{"name": "a", "image": "none"}]},
    }
    with pytest.raises(CommandFailed) as failed:
        pods.lab.control_plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    assert "none has it" in failed.value.stderr


def test_namespaces_that_are_left_out_and_the_release_s_are_left_alone(pods: Pods) -> None:
    asks = {RDMA: "nobody"}
    assert causes(pods.create(asks))
    for namespace in (LEFT_OUT, pods.lab.namespace):
        assert pods.networks(asks, namespace) == ""
    with pods.lab.admission.unseen():
        assert pods.networks(asks) == "", "nobody else refuses it"
    assert causes(pods.create(asks))


def test_without_a_controller_only_pods_that_are_looked_at_cannot_be_made(pods: Pods) -> None:
    pods.lab.kill("controller")
    try:
        answer = pods.create({})
        assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
        assert 'failed calling webhook "pods.spiderpool.spidernet.io"' in answer.body["message"]
        for namespace in (LEFT_OUT, pods.lab.namespace):
            assert pods.create({}, namespace).status == HTTPStatus.CREATED
    finally:
        pods.lab.start_controller()
        pods.lab.admission.wait()
    assert pods.create({}).status == HTTPStatus.CREATED


def test_device_plugins_are_asked_for_when_they_are_on(pods: Pods) -> None:
    def asked(*named: str) -> dict[str, str]:
        body = pods.create({NETWORKS: ",".join(named)}).body
        found: dict[str, str] = body["spec"]["containers"][0]["resources"].get("limits", {})
        return found

    assert asked(f"{pods.namespace}/none") == {}
    file = pods.lab.folder / "conf.yml"
    before = file.read_text()
    rules = {"masterNIC": {"rules": [{"includeInterfaces": ["eth*"]}]}}
    plugin = {"enabled": True, "resourceAdvertisement": rules}
    file.write_text(before + yaml.safe_dump({"agent": {"networkResourcePlugin": plugin}}))
    pods.lab.kill("controller")
    try:
        pods.lab.start_controller()
        pods.lab.admission.wait()
        for number in range(10):
            pods.make_config(f"counted-{number}", f"eth{number}", "counted")
            assert asked("by-hand", f"counted-{number}") == {f"spidernet.io/eth{number}-nic": "1"}
    finally:
        file.write_text(before)
