"""What other networks of a cluster say of their pods' addresses, with the fields that we read and no others."""

from msgspec import Struct, field

from api.meta import ObjectMeta


class CalicoIPPoolSpec(Struct, frozen=True, omit_defaults=True):
    """What we need of a Calico pool's specification."""

    cidr: str = ""
    disabled: bool = False
    """Whether nobody gets a new address from it."""


class CalicoIPPool(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Addresses of pods on Calico's network."""

    api_version: str = "crd.projectcalico.org/v1"
    kind: str = "IPPool"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: CalicoIPPoolSpec = field(default_factory=CalicoIPPoolSpec)


class CiliumCIDRs(Struct, frozen=True, omit_defaults=True):
    """The addresses of one IP family."""

    cidrs: list[str] = []


class CiliumPodIPPoolSpec(Struct, frozen=True, omit_defaults=True):
    """What we need of a Cilium pool's specification."""

    ipv4: CiliumCIDRs | None = None
    ipv6: CiliumCIDRs | None = None


class CiliumPodIPPool(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Addresses of pods on Cilium's network, in its IPAM mode multi-pool."""

    api_version: str = "cilium.io/v2alpha1"
    kind: str = "CiliumPodIPPool"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: CiliumPodIPPoolSpec = field(default_factory=CiliumPodIPPoolSpec)


class ControlPlaneContainer(Struct, frozen=True, omit_defaults=True):
    """How a program of the control plane was called."""

    command: list[str] = []
    args: list[str] = []


class ControlPlanePodSpec(Struct, frozen=True, omit_defaults=True):
    """What we need of its specification."""

    containers: list[ControlPlaneContainer] = []


class ControlPlanePod(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A pod of the control plane with its flags, which `api.core.Pod` leaves out: a replica holds every pod."""

    api_version: str = "v1"
    kind: str = "Pod"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ControlPlanePodSpec = field(default_factory=ControlPlanePodSpec)
