"""The messages between an agent and a controller replica, and their encoding (msgpack, tagged).

The agent knows nothing of pools: it says which pod on which NIC wants addresses, and gets addresses. Who speaks
(account, node) is never in a message: the connection's credentials prove it. Fields are only ever added, with
defaults, so that a rolling update may pair any two neighbouring versions.
"""

import msgspec
from msgspec import Struct

from api.endpoint import IPAllocationDetail
from api.networks import Bandwidth
from api.reasons import Explanation
from api.route import Route


class PodRef(Struct, frozen=True):
    """A pod as the container runtime names it. `uid` is empty where the runtime gives none."""

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Fixed(Struct, frozen=True, kw_only=True):
    """Addresses that belong to a name and stay with it, whichever pod has that name."""

    kind: str
    """StatefulSet or VirtualMachineInstance."""
    name: str
    """Of the workload."""
    holder: str
    """Under which name, in the pod's namespace, records and SpiderEndpoint are kept: the pod's or the workload's."""


class NicRequest(Struct, frozen=True, kw_only=True):
    """What a further NIC of a pod asks for, in the same ADD. The fields mean what they mean in `Allocate`."""

    nic: str
    default_ipv4: tuple[str, ...] = ()
    default_ipv6: tuple[str, ...] = ()
    clean_gateway: bool = False
    master_subnets: tuple[str, ...] | None = None
    multus: str = ""
    ips: tuple[str, ...] = ()
    parent_mac: str = ""


class NodeLink(Struct, frozen=True):
    """An interface of the node."""

    name: str
    mac: str


class Allocate(Struct, frozen=True, tag=True):
    """Addresses for one NIC of one pod sandbox, or for several. Idempotent: a repetition gets the same addresses.

    All or nothing, over NICs and families. The answer is `Allocated`, `Rejected`, or, with `meta`, perhaps `Networked`.
    """

    pod: PodRef
    nic: str
    """Interface name inside the pod."""
    container_id: str
    default_ipv4: tuple[str, ...] = ()
    """Pool names of the plugin configuration, `default_ipv4_ippool`."""
    default_ipv6: tuple[str, ...] = ()
    clean_gateway: bool = False
    """Whether the default route is to be left out."""
    begun: int = 0
    """When the ADD began, milliseconds since the epoch by the node's clock: of two sandboxes of a pod the later one's
    word counts, whichever comes last."""
    disputed: bool = False
    """Whether a copy of such a request of an earlier sandbox of the pod may still be under way."""
    master_subnets: tuple[str, ...] | None = None
    """The networks, as CIDRs, of the physical NIC behind an SR-IOV interface; None where the configuration does not ask
    for pools to match them (`match_master_subnet`)."""
    multus: str = ""
    """``namespace/name`` of the NetworkAttachmentDefinition that makes the NIC, for pools with a `multusName`. Empty
    where the agent does not know: the pod's annotations say it then."""
    ips: tuple[str, ...] = ()
    """Addresses that the NIC is to have, with or without prefix length, at most one a family; others are refused."""
    parent_mac: str = ""
    """MAC address of the node's NIC below this one, where its VLAN id and MAC address come from the cluster's network
    provider: they are in the IPv4 address that is granted then. Empty: nobody else has to know of the address."""
    links: tuple[NodeLink, ...] = ()
    """The node's interfaces, for `parent_mac`, where the agent does not know what the NIC is made on: another program's
    plugin has asked. Then the SpiderMultusConfig of its network says it."""
    more: tuple[NicRequest, ...] = ()
    """Further NICs of the sandbox that are wanted along with this one; their grants are in `Allocated.others`."""
    meta: bool = False
    """Whether the agent is the pod's meta plugin and has not asked for its networks yet. Where the pod's annotations
    name any, nothing is allocated and the answer is `Networked`."""
    early: bool = False
    """Whether `Allocated` is to be said ahead, too, once the addresses are committed and before the SpiderEndpoint is
    written. What counts is the answer: it may be another one where this request broke and was sent again."""
    coordinated: bool = False
    """Whether a NIC gets a way to its node, and its configuration leaves it to the cluster which CIDRs go that way.
    While the cluster does not know them such a pod is refused, before it costs an address."""


class Release(Struct, frozen=True, tag=True):
    """A NIC of a sandbox is gone: after this the sandbox holds nothing but what the NICs in `keep` have.

    So what an ADD was granted for the pod's other NICs along with its own, and no ADD ever fetched, goes too.
    Idempotent; touches only records of this pod uid and container.
    """

    pod: PodRef
    nic: str
    container_id: str
    pools: tuple[str, ...] = ()
    """Where the addresses came from, as far as the agent remembers: saves a search."""
    keep: tuple[str, ...] = ()
    """The sandbox's other NICs that the agent knows of."""
    fixed: Fixed | None = None
    """As `Allocated.fixed`; None also where the agent does not remember, which it then does of no pool either."""
    successor: str = ""
    """The container id of the sandbox that the pod has on this node now, with the same NIC. What a late copy of the old
    sandbox's ADD may have taken over from it becomes its again, and nothing is freed."""


class Disown(Struct, frozen=True, tag=True):
    """Addresses of a sandbox's NIC that somebody else on the LAN uses: nobody gets them for a while.

    Idempotent as `Release` is. The answer is `Released`; or `Rejected` with the cause ``stateful`` where the pod has
    fixed addresses, which it keeps.
    """

    pod: PodRef
    nic: str
    container_id: str
    addresses: tuple[str, ...]
    """Without prefix length."""
    pools: tuple[str, ...] = ()
    """The pool of each address, in the same order."""
    seen: str = ""
    """Who has been found there, for example a MAC address."""


class Inquire(Struct, frozen=True, tag=True):
    """Whether an ADD could be served now (the CNI verb STATUS)."""


class FindEndpoint(Struct, frozen=True, tag=True):
    """What a pod of the asking node has, by its SpiderEndpoint. The answer is `FoundEndpoint`.

    Or `Rejected` with the cause ``not_found``, for a pod of another node too.
    """

    pod: PodRef


class FindCoordinator(Struct, frozen=True, tag=True):
    """The cluster's settings for a pod of the asking node. The answer is `FoundCoordinator`.

    A pod that is not there, or not there any more, gets them without what its own annotation would say.
    """

    pod: PodRef


class FindNetworks(Struct, frozen=True, tag=True):
    """Which networks a pod of the asking node is attached to. The answer is `Networked`, also where there are none.

    Or `Rejected` with the cause ``not_found``, for a pod of another node too.
    """

    pod: PodRef


class SetNetworkStatus(Struct, frozen=True, tag=True):
    """Say on a pod of the asking node what its NICs are, in the annotation that people and programs know from Multus.

    Idempotent. The answer is `Stored`; or `Rejected` with the cause ``not_found`` where the pod is gone, has another
    uid, or runs on another node.
    """

    pod: PodRef
    """With its uid: that of the answer to `Allocate`."""
    status: str
    """The annotation's value: a JSON list."""


class Attachment(Struct, frozen=True):
    """One interface of one sandbox that an agent knows of, whatever has become of it."""

    uid: str
    """Of the pod; empty where neither runtime nor controller has told it yet."""
    nic: str
    cid: str
    """First 12 hex digits of the container id, as records have it."""


class Look(Struct, frozen=True):
    """What a node's kernel says of one address."""

    address: str
    """Without prefix length, canonical."""
    carried: bool
    """Whether a link in any network namespace of the node has it."""


class Report(Struct, frozen=True, tag=True):
    """All that a node's agent knows of: what it builds, what stands, and what it still has to give back.

    What the pools record for the node and no report knows is garbage; see `actors.collection.collector`.
    """

    attachments: tuple[Attachment, ...] = ()
    looked: tuple[Look, ...] = ()
    """The answer to `Noted.look`: journal and kernel were looked at after it was asked."""
    round: int = 0
    """Of the `Noted` that asked, so that an answer that comes late or twice is not taken for another's."""
    wait: float = 0.0
    """Seconds for which the answer may be held back while there is nothing to look for."""


class Address(Struct, frozen=True):
    """One granted address."""

    version: int
    """4 or 6."""
    address: str
    """With prefix length, for example ``10.6.0.5/16``."""
    pool: str
    gateway: str = ""
    vlan: int = 0
    """VLAN id that a network provider says; 0: none did."""
    mac: str = ""
    """MAC address of the pod's NIC that it says; empty: none did."""


class Coordination(Struct, frozen=True, omit_defaults=True):
    """The cluster's settings for pods and their own node; the keys of the plugin's configuration win over them."""

    mode: str = "auto"
    service_cidr: tuple[str, ...] = ()
    overlay_pod_cidr: tuple[str, ...] = ()
    hijack_cidr: tuple[str, ...] = ("169.254.0.0/16",)
    policy_routes: tuple[Route, ...] = ()
    pod_mac_prefix: str = ""
    veth_mtu: int = 1500
    """Bytes."""
    veth_link_address: str = ""
    host_rule_table: int = 500
    pod_rp_filter: int = 0
    """Negative leaves it alone."""
    tx_queue_len: int = 0
    """Packets; 0 leaves it alone."""
    tune_pod_routes: bool = True
    """Whether packets from a NIC's address leave by that NIC, where a pod has several."""
    pod_default_route_nic: str = ""
    """The NIC that the default route goes by; the pod's own word wins over the cluster's. Empty: the first."""
    unready: str = ""
    """Why the cluster's CIDRs are not known, which are empty then; empty when they are."""


class NicGrant(Struct, frozen=True):
    """What one NIC of a pod has."""

    nic: str
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...] = ()
    """All of them, default routes included."""
    clean_gateway: bool = False
    """Whether its default routes were left out."""


class Allocated(Struct, frozen=True, tag=True):
    """The answer to `Allocate`: committed to the store."""

    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    """All routes of the NIC, default routes included."""
    explanation: Explanation
    pod_uid: str
    """The uid that the records carry; it is what a release must name."""
    doubtful: bool = False
    """Whether a copy of a claim may still be under way to a pool, through a replica that gave no answer."""
    coordinator: Coordination = Coordination()
    others: tuple[NicGrant, ...] = ()
    """What the pod's other NICs were given along with this one; their own ADDs will ask for it."""
    fixed: Fixed | None = None
    """Set where the addresses stay when the pod goes; a release must name it."""
    nics: tuple[str, ...] = ()
    """All NICs that the pod will have by its annotations, in the order in which they are made; the first one is eth0.
    Empty where that cannot be told."""
    moving: bool = False
    """Whether the pod is the target of a live migration: until it is over somebody else has the addresses rightly."""
    bandwidth: Bandwidth | None = None
    """How much each NIC of the pod may carry, by the pod's annotations; None: as much as there is."""


class NetworkDefinition(Struct, frozen=True, kw_only=True):
    """A network that a pod is attached to: its NetworkAttachmentDefinition, and what the pod asks of it."""

    namespace: str
    name: str
    interface: str
    """Inside the pod: the one that was asked for, else ``net1`` for the first, ``net2`` for the second and so on."""
    config: str = ""
    """The definition's `spec.config`, a CNI configuration or a list of them. Empty: a file of the node has it, under
    the definition's name."""
    resource: str = ""
    """The device plugin's resource that the definition takes a device of; empty: none."""
    ips: tuple[str, ...] = ()
    """Addresses that are asked for, with or without a prefix length."""
    mac: str = ""
    default_route: tuple[str, ...] = ()
    """Gateways of the default routes that are asked for on this interface."""
    cni_args: str = ""
    """A JSON object, for `args.cni` of the plugin's configuration; empty where none was given. So the next ones."""
    infiniband_guid: str = ""
    bandwidth: str = ""
    """A JSON object, for `runtimeConfig.bandwidth`."""
    port_mappings: str = ""
    """A JSON list, for `runtimeConfig.portMappings`."""
    device_id: str = ""
    """The device that is asked for, rather than one that the kubelet has chosen."""


class Networked(Struct, frozen=True, tag=True):
    """The answer to `FindNetworks`, and to an `Allocate` of a meta plugin whose pod names networks."""

    pod_uid: str
    default: NetworkDefinition | None = None
    """What makes the first NIC; None: the pod leaves that to whoever was called."""
    networks: tuple[NetworkDefinition, ...] = ()
    """What makes the others, in the order of their making."""


class Released(Struct, frozen=True, tag=True):
    """The answer to `Release`: committed to the store. `addresses` lists what was freed now, without prefix length."""

    addresses: tuple[str, ...] = ()


class Noted(Struct, frozen=True, tag=True):
    """The answer to `Report`."""

    look: tuple[str, ...] = ()
    """Addresses, without prefix length, that the agent is to look for in the node's kernel and report at once."""
    round: int = 0
    """To be repeated in that report."""


class FoundEndpoint(Struct, frozen=True, tag=True):
    """The answer to `FindEndpoint`."""

    uid: str
    """Of the pod."""
    node: str
    nics: tuple[IPAllocationDetail, ...] = ()


class FoundCoordinator(Struct, frozen=True, tag=True):
    """The answer to `FindCoordinator`."""

    coordination: Coordination = Coordination()
    tune_pod_routes: bool = True
    default_route_nic: str = ""
    """The pod's own word wins over the cluster's."""


class Stored(Struct, frozen=True, tag=True):
    """The answer to `SetNetworkStatus`."""


class Ready(Struct, frozen=True, tag=True):
    """The answer to `Inquire` of a controller that serves."""


class Rejected(Struct, frozen=True, tag=True):
    """The request was not, or not wholly, carried out."""

    message: str
    """For the operator: names the field and the value."""
    retry: bool = False
    """Whether the same request may succeed later without anybody changing anything."""
    cause: str = ""
    """Short stable word for metrics: ``wrong_input``, ``no_available_pool``, ``ip_used_out``, ``internal``, ..."""
    explanation: Explanation | None = None
    held: bool = False
    """Whether records may be there all the same: the agent sends a `Release`."""


Lookup = FindEndpoint | FindCoordinator | FindNetworks | SetNetworkStatus
"""What has nothing to do with addresses; see `actors.replica.lookups`."""
Request = Allocate | Release | Disown | Lookup | Inquire | Report
Response = Allocated | Networked | Released | FoundEndpoint | FoundCoordinator | Stored | Noted | Ready | Rejected

_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_response_decoder: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Request | Response) -> bytes:
    """Message to bytes."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """Bytes to request. Raises `msgspec.DecodeError`, whose text gives the path."""
    return _request_decoder.decode(data)


def decode_response(data: bytes) -> Response:
    """Bytes to response. Raises `msgspec.DecodeError`, whose text gives the path."""
    return _response_decoder.decode(data)
