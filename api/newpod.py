"""A pod as it comes to admission, with the fields that are looked at or changed there and no others.

`api.core.Pod` has none of these: a controller replica holds every pod of a cluster.
"""

from msgspec import Struct, field

type Quantity = str | int | float
"""As Kubernetes writes it, ``"1"``; the API server sends text."""

MIRROR = "kubernetes.io/config.mirror"
"""Annotation of a pod that a kubelet has from a file: it runs already, whatever the object says."""


class Resources(Struct, frozen=True, omit_defaults=True):
    """What a container asks of its node, by the resource's name."""

    limits: dict[str, Quantity] = {}
    requests: dict[str, Quantity] = {}


class NewContainer(Struct, frozen=True, omit_defaults=True):
    """A container."""

    resources: Resources = field(default_factory=Resources)


class NewPodSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of the specification."""

    containers: list[NewContainer] = []
    init_containers: list[NewContainer] = []
    """Sidecars are among them."""
    host_network: bool = False


class NewPodMeta(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What there is of the metadata before the object is stored."""

    name: str = ""
    """Empty where the API server is to make one of `generate_name`."""
    generate_name: str = ""
    annotations: dict[str, str] = {}


class NewPod(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """See the module."""

    metadata: NewPodMeta = field(default_factory=NewPodMeta)
    spec: NewPodSpec = field(default_factory=NewPodSpec)
