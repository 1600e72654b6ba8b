"""SpiderCoordinator: how pods' routes are arranged between the LAN and the cluster's own network."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from api.ippool import Conditions
from api.meta import API_VERSION, ObjectMeta
from api.route import Route
from api.schema import REQUIRED


class CoordinatorSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Settings for all pods; a SpiderMultusConfig carries the same ones for its own."""

    mode: Literal["auto", "underlay", "overlay", "disabled"] | None = "auto"
    """Whether Spiderpool makes the pod's first NIC (underlay), an additional one (overlay), or finds out (auto)."""
    pod_cidr_type: Literal["auto", "cluster", "calico", "cilium", "none"] | None = field(
        default=None, name="podCIDRType"
    )
    """Where the addresses of the cluster's own pod network are read from: what kubeadm was given (cluster), Calico,
    Cilium, nowhere (none), or whichever is there (auto). A SpiderCoordinator has to say it."""
    hijack_cidr: list[str] = field(default_factory=list, name="hijackCIDR")
    """Further destinations, addresses or CIDRs, that pods reach through their node. None when absent."""
    policy_routes: list[Route] = []
    """Routes put into every NIC's own table. None when absent."""
    pod_mac_prefix: str | None = field(default=None, name="podMACPrefix")
    """First two bytes, as 0a:1b, of MAC addresses made from the pod's IPv4 address. Absent leaves them alone."""
    tune_pod_routes: bool | None = True
    """Whether the routes of additional NICs get tables of their own, so that replies leave where requests came in."""
    pod_default_route_nic: str | None = field(default=None, name="podDefaultRouteNIC")
    """The NIC that gets the default route of a pod with several, as eth0. The first one when absent."""
    host_rule_table: int | None = 500
    """Number of the routing table on the node that has the routes to pods."""
    pod_rp_filter: int | None = field(default=0, name="podRPFilter")
    """Value of rp_filter inside pods: 0, 1 or 2; negative leaves it alone."""
    tx_queue_len: int | None = 0
    """Length of a NIC's transmit queue in packets; 0 leaves it alone."""
    veth_link_address: str | None = None
    """IPv4 address of the node's side of veth0, as 169.254.100.1. None when absent."""
    veth_mtu: Annotated[int, Meta(ge=1)] | None = field(default=None, name="vethMTU")
    """MTU of veth0 in bytes. 1500 when absent."""


class CoordinatorStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The addresses of the cluster's own network, as they were found."""

    phase: Annotated[str, REQUIRED, Meta(extra_json_schema={"enum": ["Synced", "NotReady"]})] = ""
    """Synced when the addresses below are known, else NotReady."""
    reason: str | None = None
    """Why the phase is NotReady."""
    overlay_pod_cidr: list[str] = field(default_factory=list, name="overlayPodCIDR")
    """CIDRs of pods on the cluster's own network."""
    service_cidr: list[str] = field(default_factory=list, name="serviceCIDR")
    """CIDRs of Services."""
    conditions: Conditions = []
    """Synced is True while phase is Synced, with where the addresses were found, else False with the reason."""


class SpiderCoordinator(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """How pods' routes are arranged between the LAN and the cluster's own network."""

    api_version: str = API_VERSION
    kind: str = "SpiderCoordinator"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: CoordinatorSpec = field(default_factory=CoordinatorSpec)
    status: CoordinatorStatus = field(default_factory=CoordinatorStatus)
