"""Area thirdparty: workloads of a kind that Spiderpool has never heard of, with their own small controller."""

from collections.abc import Iterator

import pytest

from tests.cases.automatic import Subnet, gone, keep, number, sized, subnet
from tests.cases.workloads import RESOURCES, ippool, path_of, pod, workload
from tests.cases.world import World
from tests.processes.webhooks import IPPOOLS
from tests.servers import ControlPlane

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

GROUP = "apps.kruise.io"
KIND = "CloneSet"
API = f"{GROUP}/v1alpha1"
RESOURCES[KIND] = f"/apis/{API}"


@pytest.fixture(scope="module")
def clonesets(control_plane: ControlPlane) -> Iterator[None]:
    """The definition, with any fields at all and a scale subresource."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    scale = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": schema,
        "subresources": {"status": {}, "scale": scale},
    }
    names = {"kind": KIND, "listKind": f"{KIND}List", "plural": "clonesets", "singular": "cloneset"}
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    body = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"clonesets.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }
    control_plane.request("POST", path, body)
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/clonesets.{GROUP}")
    yield
    control_plane.request("DELETE", f"{path}/clonesets.{GROUP}", check=False)


class Clones:
    """A CloneSet, and the part of its controller that matters: `settle` makes pods until there are enough."""

    def __init__(self, world: World, name: str, notes: dict[str, str], replicas: int) -> None:
        self.world = world
        self.name = name
        self._notes = notes
        self._made = 0
        body = {"apiVersion": API, "kind": KIND, "metadata": {"name": name}, "spec": {"replicas": replicas}}
        self.uid = world.apply(body)["metadata"]["uid"]

    def settle(self, replicas: int) -> None:
        """Pods come, or the youngest go."""
        mine = self.world.pods(f"{self.name}-")
        for name in sorted(mine)[replicas:]:
            self.world.delete("Pod", name)
        for _ in range(replicas - len(mine)):
            manifest = pod(f"{self.name}-{self._made:03}", self._notes)
            owner = {"apiVersion": API, "kind": KIND, "name": self.name, "uid": self.uid, "controller": True}
            manifest["metadata"]["ownerReferences"] = [owner]
            self.world.apply(manifest)
            self._made += 1

    def delete(self) -> None:
        """The garbage collector learns of new kinds after half a minute only: the pods are deleted, too."""
        self.world.delete(KIND, self.name)
        self.settle(0)

    def scale(self, replicas: int) -> None:
        """By the scale subresource, as kubectl does."""
        path = f"{path_of(KIND, self.world.namespace)}/{self.name}/scale"
        self.world.request("PATCH", path, {"spec": {"replicas": replicas}})


@pytest.mark.usefixtures("clonesets")
def test_T00001_fixed_pools(world: World) -> None:
    pools = world.pair(4)
    clones = Clones(world, "c", ippool(**pools), 2)
    clones.settle(2)
    for held in world.running(2).values():
        world.assert_from(held, pools["ipv4"][0], pools["ipv6"][0])
    clones.delete()
    world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")


@pytest.mark.usefixtures("clonesets")
def test_T00002_automatic_pools(world: World) -> None:
    with Subnet(world, 10) as lan:
        clones = Clones(world, "c", subnet(ipv4=[lan.name]) | number("+1"), 2)
        clones.settle(2)
        world.running(2)
        sized(world, "c", eth0_4=3)
        # By its scale subresource alone, before any further pod.
        clones.scale(4)
        clones.settle(4)
        world.running(4)
        sized(world, "c", eth0_4=5)
        clones.delete()
        gone(world)
        lan.empty()


@pytest.mark.usefixtures("clonesets")
def test_T00003_what_a_removed_workload_had_is_released(world: World) -> None:
    pools = world.pair(4)
    clones = Clones(world, "c", ippool(**pools), 2)
    clones.settle(2)
    held = world.running(2)
    assert set(world.endpoints()) == set(held)
    clones.delete()
    world.wait(lambda: not world.records(pools["ipv4"][0]) and not world.records(pools["ipv6"][0]), "all is released")
    world.wait(lambda: not world.endpoints(), "and no endpoint is left")


@pytest.mark.usefixtures("clonesets")
def test_T00004_the_same_name_and_kind_has_the_kept_pool_again(world: World) -> None:
    with Subnet(world, 10) as lan:
        seen = []
        for _ in range(2):
            clones = Clones(world, "c", subnet(ipv4=[lan.name]) | number("2") | keep(), 2)
            clones.settle(2)
            world.running(2)
            seen += world.automatic_pools("c")
            clones.delete()
            world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        first, second = (pool["metadata"] for pool in seen)
        assert first["uid"] == second["uid"]
        world.request("DELETE", f"{IPPOOLS}/{first['name']}")
        gone(world)


@pytest.mark.usefixtures("clonesets")
def test_T00005_the_same_name_of_another_kind_has_a_pool_of_its_own(world: World) -> None:
    with Subnet(world, 10) as lan:
        clones = Clones(world, "c", subnet(ipv4=[lan.name]) | number("2") | keep(), 2)
        clones.settle(2)
        world.running(2)
        (kept,) = world.automatic_pools("c")
        clones.delete()
        world.wait(lambda: not world.pods() and not world.held(), "its pods are gone")
        world.apply(workload("Deployment", "c", subnet(ipv4=[lan.name]) | number("2"), replicas=2))
        world.running(2)
        world.wait(lambda: not world.records(kept["metadata"]["name"]), "nobody has an address of the kept one")
        world.delete("Deployment", "c")
        world.wait(lambda: len(world.automatic_pools("c")) == 1, "its own goes")
        (left,) = world.automatic_pools("c")
        assert left["metadata"]["uid"] == kept["metadata"]["uid"]
        world.request("DELETE", f"{IPPOOLS}/{kept['metadata']['name']}")
        gone(world)
