"""SpiderIPPool: a set of addresses of one subnet, who may have them, and who has them.

`status.allocatedIPs` is the authority over every address. It is JSON inside a string, ``{"<ip>": record, ...}`` with
sorted keys, and absent when no address is in use: programs written for the original take absence to mean "unused".
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from api.meta import API_VERSION, Condition, LabelSelector, ObjectMeta
from api.route import Route
from api.schema import FAMILY, NEVER_CHANGES, Count, Network

type Atomic = Annotated[LabelSelector, Meta(extra_json_schema={"x-kubernetes-map-type": "atomic"})]
"""A selector that server-side apply replaces as a whole."""
type Conditions = Annotated[
    list[Condition],
    Meta(extra_json_schema={"x-kubernetes-list-map-keys": ["type"], "x-kubernetes-list-type": "map"}),
]
type IPVersion = Annotated[Literal[4, 6], Meta(extra_json_schema={"format": "int64", **NEVER_CHANGES})]


class IPPoolSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What the pool holds and whom it serves. An affinity that is absent excludes nobody."""

    ip_version: IPVersion | None = None
    """IP family of the pool, 4 or 6. Taken from the subnet when absent; never changes afterwards."""
    subnet: Network = ""
    """The subnet as a CIDR; its prefix length is that of every address. Never changes."""
    ips: list[str] = []
    """Addresses of the pool, single or as ranges: 10.6.0.5 or 10.6.0.10-10.6.0.20."""
    exclude_ips: list[str] = field(default_factory=list, name="excludeIPs")
    """Addresses taken out of ips, in the same form. None when absent."""
    gateway: str | None = None
    """Next hop of the default route, inside the subnet and never given to a pod. Absent: that of its SpiderSubnet if
    there is one, else none."""
    routes: list[Route] | None = None
    """Further routes of pods that get an address of this pool. Absent: those of its SpiderSubnet; empty: none."""
    pod_affinity: Atomic | None = None
    """Only pods with these labels. All pods when absent."""
    namespace_affinity: Atomic | None = None
    """Only pods in namespaces with these labels. Ignored when namespaceName is given."""
    namespace_name: list[str] = []
    """Only pods in namespaces with these names. All namespaces when absent."""
    node_affinity: Atomic | None = None
    """Only pods on nodes with these labels. Ignored when nodeName is given."""
    node_name: list[str] = []
    """Only pods on nodes with these names. All nodes when absent."""
    multus_name: list[str] = []
    """Only NICs made by these network attachments: namespace/name, or a name in the agent's namespace. All NICs when
    absent."""
    default: bool = False
    """Whether pods that name no pool may use this one."""
    disable: bool = False
    """Whether the pool gives no new addresses. What is in use stays in use."""


class IPPoolStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What is in use. Written only by the actor that owns the pool."""

    allocated_ips: str | None = field(default=None, name="allocatedIPs")
    """JSON object in a string: address to the pod that has it. Absent when no address is in use."""
    total_ip_count: Count | None = field(default=None, name="totalIPCount")
    """Number of addresses in ips without excludeIPs."""
    allocated_ip_count: Count | None = field(default=None, name="allocatedIPCount")
    """Number of addresses in use."""
    withheld_ips: str | None = field(default=None, name="withheldIPs")
    """JSON object in a string: address to the time until which nobody gets it, and why. Absent when there is none."""
    conditions: Conditions = []
    """Overlapping is True while addresses of the pool lie in another pool as well: those are granted by neither.
    DeletionBlocked is True while the pool is being deleted and addresses of it are in use."""


class SpiderIPPool(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A set of IP addresses of one subnet, and the rules for which pods get them."""

    api_version: str = API_VERSION
    kind: str = "SpiderIPPool"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: Annotated[IPPoolSpec, FAMILY] = field(default_factory=IPPoolSpec)
    status: IPPoolStatus = field(default_factory=IPPoolStatus)


class AllocationRecord(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """Who has an address. Programs of the original write `pod` and `podUid` only, and drop the rest."""

    pod: str
    """``namespace/name``."""
    pod_uid: str
    nic: str = ""
    """Interface inside the pod."""
    node: str = ""
    cid: str = ""
    """First 12 hex digits of the sandbox's container id."""
    kept: bool = False
    """No link carries the address any more; it waits for the next pod of the same name."""
    begun: int = 0
    """When the sandbox's ADD began, milliseconds since the epoch, where a request of an earlier sandbox of the pod may
    still be under way; else absent."""
    parent_mac: str = field(default="", name="parentNicMac")
    """MAC address of the node's NIC below the pod's, where a network provider was or will be asked for the address:
    then it must be released there before anybody else gets it. Absent where no provider knows of it."""
    provider_by: int = 0
    """Until when that request may be under way, milliseconds since the epoch."""


_records_decoder = msgspec.json.Decoder(dict[str, AllocationRecord])


def decode_records(text: str | None) -> dict[str, AllocationRecord]:
    """Read `status.allocatedIPs`: canonical address text to record; absent and empty mean no record.

    Raises `msgspec.DecodeError` (a `ValueError`) whose text says where, for what is not such an object.
    """
    return _records_decoder.decode(text) if text else {}


def encode_records(records: Mapping[str, AllocationRecord]) -> str | None:
    """Write `status.allocatedIPs` with sorted keys; None, hence absent, when there is no record."""
    if not records:
        return None
    return msgspec.json.encode(dict(sorted(records.items()))).decode()
