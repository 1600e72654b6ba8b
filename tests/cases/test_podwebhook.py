"""Area podwebhook: networks and resources of pods by an annotation, with the controllers of Kubernetes and webhooks."""

from typing import Any

import pytest

from tests.cases.conftest import INJECTED
from tests.cases.refusals import causes
from tests.cases.workloads import default_network, pod, workload
from tests.cases.world import World

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

RDMA = "cni.spidernet.io/rdma-resource-inject"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
ASKS = {RDMA: "macvlan-rdma"}


@pytest.fixture
def namespace(world: World) -> str:
    """The one whose pods are looked at; two networks answer to the word."""
    world.request("POST", "/api/v1/namespaces", {"metadata": {"name": INJECTED}})
    world.namespaces.append(INJECTED)
    for number, name in enumerate(("one", "two"), start=1):
        pool = world.pool(lan=number, suffix=name)
        world.network(name, ipv4=[pool])
        resource = f"example.com/{name}"
        block = {"master": [f"eth{number}"], "rdmaResourceName": resource, "ippools": {"ipv4": [pool]}}
        config = {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderMultusConfig",
            "metadata": {"name": name, "annotations": ASKS},
            "spec": {"cniType": "macvlan", "macvlan": block},
        }
        world.apply(config)
    return INJECTED


def refusals(world: World, manifest: dict[str, Any], namespace: str) -> list[str]:
    path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    return causes(world.control_plane.request("POST", path, manifest, check=False))


def test_H00001_networks_and_resources_are_injected(world: World, namespace: str) -> None:
    first = world.pool(suffix="first")
    notes = ASKS | default_network(world.network("first", ipv4=[first]))
    both = [f"{world.namespace}/{name}" for name in ("one", "two")]
    for manifest in (pod("alone", notes), workload("Deployment", "web", notes)):
        manifest["metadata"]["namespace"] = namespace
        world.apply(manifest)
    world.wait(lambda: len(world.held()) == 2, "both pods run")
    for name, held in world.held().items():
        made = world.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name.partition('/')[2]}")
        assert made["metadata"]["annotations"][NETWORKS] == ",".join(both)
        wanted = {"example.com/one": "1", "example.com/two": "1"}
        assert made["spec"]["containers"][0]["resources"] == {"limits": wanted, "requests": wanted}
        world.assert_from(held, first)
        for nic, suffix in (("net1", "one"), ("net2", "two")):
            world.assert_from(held, f"{world.name}-{suffix}", nic=nic)
    assert not refusals(world, pod("x", ASKS), namespace)
    text = f"no SpiderMultusConfig with the label {RDMA}: none has it"
    assert refusals(world, pod("x", {RDMA: "nobody"}), namespace) == [
        f'metadata.annotations[{RDMA}]: Invalid value: "nobody": {text}'
    ]
    # Namespaces that are not included are left alone.
    plain = world.apply(pod("plain", {RDMA: "nobody"} | default_network(f"{world.namespace}/first")))
    assert NETWORKS not in plain["metadata"]["annotations"]
    assert plain["spec"]["containers"][0]["resources"] == {}
    world.assert_from(world.pod("plain"), first)
