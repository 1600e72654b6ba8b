"""Who a pod is for its addresses: the workload above it, whether its addresses are fixed, and for how long. Pure.

Most pods are known by their uid alone: another pod of the same name is another pod. A StatefulSet's pod and a KubeVirt
VM are known by their name, so that the next pod of that name gets the same addresses. They hold them as long as the
workload wants a pod of that name.
"""

from typing import Final

from msgspec import Struct

from api.core import Pod, StatefulSet
from api.kubevirt import VirtualMachine, VirtualMachineInstance
from api.meta import OwnerReference
from api.wire import Fixed

STATEFULSET: Final = "StatefulSet"
VIRTUAL_MACHINE_INSTANCE: Final = "VirtualMachineInstance"
_KUBEVIRT: Final = "kubevirt.io"
_ABOVE: Final = {"ReplicaSet": "apps", "Job": "batch"}
"""Kinds that another workload often stands above, and their groups."""


class Workload(Struct, frozen=True, kw_only=True):
    """What a pod belongs to in the end; the pod itself where nothing controls it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def version(self) -> str:
        """The version within the group."""
        return self.api_version.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def own(pod: Pod) -> Workload:
    """A pod as its own workload."""
    meta = pod.metadata
    return Workload(api_version="v1", kind="Pod", namespace=meta.namespace, name=meta.name, uid=meta.uid)


def owned(namespace: str, owner: OwnerReference) -> Workload:
    """What an owner reference names."""
    return Workload(api_version=owner.api_version, kind=owner.kind, namespace=namespace, name=owner.name, uid=owner.uid)


def may_be_owned(workload: Workload) -> bool:
    """Whether another workload may stand above this one that we know how to find: a Deployment, a CronJob."""
    return _ABOVE.get(workload.kind) == workload.group


def fixed(pod: Pod, *, statefulset: bool, kubevirt: bool) -> Fixed | None:
    """Whether a pod's addresses are fixed; the switches are the settings of the same meaning.

    The kinds of other groups that happen to be called StatefulSet are not meant.
    """
    owner = pod.metadata.controller
    if owner is None:
        return None
    group = owner.api_version.partition("/")[0]
    if statefulset and owner.kind == STATEFULSET and group == "apps":
        return Fixed(kind=STATEFULSET, name=owner.name, holder=pod.metadata.name)
    if kubevirt and owner.kind == VIRTUAL_MACHINE_INSTANCE and group == _KUBEVIRT:
        return Fixed(kind=VIRTUAL_MACHINE_INSTANCE, name=owner.name, holder=owner.name)
    return None


def ordinal(pod: str, statefulset: str) -> int | None:
    """The number in a pod's name, None where it is not named after the StatefulSet."""
    prefix, dash, digits = pod.rpartition("-")
    if not dash or prefix != statefulset or not (digits.isascii() and digits.isdigit()):
        return None
    # Kubernetes writes no leading zeros: "web-01" is not the pod of an ordinal.
    return int(digits) if digits == str(int(digits)) else None


def statefulset_of(pod: str) -> str:
    """The StatefulSet that a pod of this name would belong to; empty where the name has no ordinal."""
    name = pod.rpartition("-")[0]
    return name if name and ordinal(pod, name) is not None else ""


def wants_pod(statefulset: StatefulSet | None, pod: str) -> bool:
    """Whether a StatefulSet is to have a pod of this name. One that is being deleted still wants what it has."""
    if statefulset is None:
        return False
    number = ordinal(pod, statefulset.metadata.name)
    if number is None:
        return False
    spec = statefulset.spec
    replicas = 1 if spec.replicas is None else spec.replicas
    start = spec.ordinals.start if spec.ordinals is not None else 0
    return start <= number < start + replicas


def wants_instance(instance: VirtualMachineInstance | None, machine: VirtualMachine | None) -> bool:
    """Whether a virtual machine's instance of this name is, or will be, there.

    It is enough that the instance exists and stays. One that goes, or is gone, comes again where a VirtualMachine of
    the same name stays.
    """
    if instance is not None and instance.metadata.deletion_timestamp is None:
        return True
    return machine is not None and machine.metadata.deletion_timestamp is None
