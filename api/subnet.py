"""SpiderSubnet: the addresses of a subnet from which IPPools are cut, by hand or automatically for a workload.

`status.controlledIPPools` says which pool has which addresses. It is JSON inside a string, absent when empty:
``{"<pool>": {"ips": ["10.6.0.5-10.6.0.9"], "application": "apps_v1_Deployment_ns_name"}}``.
"""

from typing import Annotated

from msgspec import Struct, field

from api.ippool import Conditions, IPVersion
from api.meta import API_VERSION, ObjectMeta
from api.route import Route
from api.schema import FAMILY, Count, Network


class SubnetSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What there is to cut pools from. Pools inherit gateway and routes."""

    ip_version: IPVersion | None = None
    """IP family of the subnet, 4 or 6. Taken from the subnet when absent; never changes afterwards."""
    subnet: Network = ""
    """The subnet as a CIDR. Never changes."""
    ips: list[str] = []
    """Addresses for pools, single or as ranges: 10.6.0.5 or 10.6.0.10-10.6.0.20."""
    exclude_ips: list[str] = field(default_factory=list, name="excludeIPs")
    """Addresses taken out of ips, in the same form. None when absent."""
    gateway: str | None = None
    """Next hop of the default route, inside the subnet and never given to a pod. None when absent."""
    routes: list[Route] = []
    """Further routes of pods that get an address of this subnet. None when absent."""


class SubnetStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What pools have been given."""

    controlled_ippools: str | None = field(default=None, name="controlledIPPools")
    """JSON object in a string: pool to the addresses it was given. Absent when there is none."""
    total_ip_count: Count | None = field(default=None, name="totalIPCount")
    """Number of addresses in ips without excludeIPs."""
    allocated_ip_count: Count | None = field(default=None, name="allocatedIPCount")
    """Number of addresses given to pools, whether or not pods have them."""
    conditions: Conditions = []
    """Ready is True while pools get addresses of the subnet; False while it is being deleted, and where an older
    subnet has the same CIDR. DeletionBlocked is True while it is being deleted and has pools."""


class SpiderSubnet(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The addresses of one subnet, from which IPPools are cut."""

    api_version: str = API_VERSION
    kind: str = "SpiderSubnet"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: Annotated[SubnetSpec, FAMILY] = field(default_factory=SubnetSpec)
    status: SubnetStatus = field(default_factory=SubnetStatus)
