"""The NetworkAttachmentDefinition: a CNI configuration that pods name in their annotations (`api.networks`).

The kind is the Kubernetes Network Plumbing Working Group's and its CRD may be missing from a cluster.
"""

from msgspec import Struct, field

from api.meta import ObjectMeta


class NetworkAttachmentSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What pods are attached to."""

    config: str = ""
    """A CNI configuration or a list of them, JSON. Empty: a file of the node has it, by the definition's name."""


class NetworkAttachmentDefinition(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """See the module."""

    api_version: str = "k8s.cni.cncf.io/v1"
    kind: str = "NetworkAttachmentDefinition"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: NetworkAttachmentSpec = field(default_factory=NetworkAttachmentSpec)
