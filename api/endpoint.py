"""SpiderEndpoint: the addresses of one pod, for people and for programs to look up.

A projection of what the pools' status says, written after it. It has no spec and no status subresource.
"""

from typing import Annotated

from msgspec import Meta, Struct, field

from api.meta import API_VERSION, ObjectMeta
from api.route import Route


class IPAllocationDetail(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What one NIC of the pod has."""

    interface: str
    """Name inside the pod; empty while the NIC has no name yet."""
    ipv4: str | None = None
    """IPv4 address with prefix length."""
    ipv6: str | None = None
    """IPv6 address with prefix length."""
    ipv4_pool: str | None = None
    """The SpiderIPPool of the IPv4 address."""
    ipv6_pool: str | None = None
    """The SpiderIPPool of the IPv6 address."""
    vlan: Annotated[int, Meta(ge=0, le=4094, extra_json_schema={"format": "int64"})] | None = 0
    """VLAN id, 0 for none."""
    ipv4_gateway: str | None = None
    """Next hop of the IPv4 default route."""
    ipv6_gateway: str | None = None
    """Next hop of the IPv6 default route."""
    clean_gateway: bool | None = None
    """Whether the NIC has no default route."""
    routes: list[Route] = []
    """Routes of the NIC besides default routes."""
    mac: str | None = None
    """MAC address that the infrastructure asked for, as aa:bb:cc:dd:ee:ff."""


class EndpointCurrent(Struct, frozen=True, rename="camel"):
    """What the pod has now."""

    uid: str = ""
    """The pod's uid."""
    node: str = ""
    """The node that the pod runs on."""
    ips: list[IPAllocationDetail] = []
    """One entry per NIC."""


class EndpointStatus(Struct, frozen=True, rename="camel"):
    """The pod's addresses and the workload that it belongs to in the end."""

    current: EndpointCurrent = field(default_factory=EndpointCurrent)
    """What the pod has now."""
    owner_controller_type: str = ""
    """Kind of the topmost controller; Pod for a pod without one."""
    owner_controller_name: str = ""
    """Name of the topmost controller."""


class SpiderEndpoint(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The IP addresses of one pod. Written by Spiderpool; changing it by hand changes no address."""

    api_version: str = API_VERSION
    kind: str = "SpiderEndpoint"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    status: EndpointStatus = field(default_factory=EndpointStatus)
