"""KubeVirt as far as addresses go: its three kinds, and the objects that its controllers would make. Played."""

from typing import Any, Final

from tests.cases.workloads import RESOURCES
from tests.cases.world import World
from tests.servers import ControlPlane

GROUP: Final = "kubevirt.io"
KINDS: Final = ("VirtualMachine", "VirtualMachineInstance", "VirtualMachineInstanceMigration")
MIGRATION_JOB: Final = "kubevirt.io/migrationJobName"

RESOURCES.update(dict.fromkeys(KINDS, f"/apis/{GROUP}/v1"))


def install(control_plane: ControlPlane) -> None:
    """The definitions, with any fields at all."""
    for kind in KINDS:
        plural = f"{kind.lower()}s"
        names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()}
        schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
        version = {"name": "v1", "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
        control_plane.request(
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": f"{plural}.{GROUP}"},
                "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
            },
        )
    for kind in KINDS:
        control_plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", f"crd/{kind.lower()}s.{GROUP}")


class Machine:
    """A virtual machine with its instances and their launchers."""

    def __init__(self, world: World, name: str, notes: dict[str, str]) -> None:
        """`notes` are the launchers' annotations. The VirtualMachine is made, nothing runs."""
        self._world = world
        self.name = name
        self._notes = notes
        self._number = 0
        self._uid = self._create("VirtualMachine", name)["metadata"]["uid"]
        self._instance = ""

    def start(self) -> None:
        """An instance."""
        owner = self._reference("VirtualMachine", self.name, self._uid)
        made = self._create("VirtualMachineInstance", self.name, owner)
        self._instance = made["metadata"]["uid"]

    def launcher(self, *, migration: str = "", node: str = "") -> str:
        """A pod for the instance; its name. `migration` names the object by which it is a target of a move."""
        self._number += 1
        name = f"virt-launcher-{self.name}-{self._number}"
        notes = {**self._notes, **({MIGRATION_JOB: migration} if migration else {})}
        spec: dict[str, Any] = {"containers": [{"name": "compute", "image": "none"}]}
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        owner = self._reference("VirtualMachineInstance", self.name, self._instance)
        meta = {"name": name, "annotations": notes, "ownerReferences": [owner]}
        self._world.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        return name

    def migrate(self, name: str) -> None:
        """The object of a move."""
        self._create("VirtualMachineInstanceMigration", name, spec={"vmiName": self.name})

    def migrated(self, name: str) -> None:
        """The move has ended well."""
        path = f"{RESOURCES['VirtualMachineInstanceMigration']}/namespaces/{self._world.namespace}"
        path += f"/virtualmachineinstancemigrations/{name}/status"
        self._world.request("PATCH", path, {"status": {"phase": "Succeeded"}})

    def stop(self) -> None:
        """The instance goes; its launchers are collected."""
        self._world.delete("VirtualMachineInstance", self.name)

    def _create(self, kind: str, name: str, owner: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        meta: dict[str, Any] = {"name": name}
        if owner is not None:
            meta["ownerReferences"] = [owner]
        return self._world.apply({"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": meta, **more})

    @staticmethod
    def _reference(kind: str, name: str, uid: str) -> dict[str, Any]:
        return {"apiVersion": f"{GROUP}/v1", "kind": kind, "name": name, "uid": uid, "controller": True}
