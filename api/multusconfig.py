"""SpiderMultusConfig: a network attachment in fields instead of a JSON string.

A NetworkAttachmentDefinition is made of it. Exactly the block that matches `cniType` is given.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from api.coordinator import CoordinatorSpec
from api.meta import API_VERSION, ObjectMeta


def _asked(*rules: tuple[str, str]) -> Meta:
    """What the API server itself asks of an object: expressions (CEL), each with what it says when one is false."""
    return Meta(
        extra_json_schema={"x-kubernetes-validations": [{"rule": rule, "message": text} for rule, text in rules]}
    )


_MASTERS = (
    ("self.master.size() > 0", "master names at least one interface of the node"),
    ("self.master.size() < 2 || has(self.bond)", "several masters need a bond"),
)
_RESOURCE = ("self.resourceName != ''", "resourceName is what the device plugin calls them, as example.com/nic")

type VlanID = Annotated[int, Meta(ge=0, le=4094, extra_json_schema={"format": "int32"})]
"""0 means none."""
type MTU = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int32"})]
"""0 means what the kernel gives."""
type Rate = Annotated[int, Meta(ge=0, extra_json_schema={"format": "int32"})]
"""Mbit/s, 0 means no limit."""
type Priority = Annotated[int, Meta(ge=0, le=7, extra_json_schema={"format": "int32"})]
"""Of IEEE 802.1p."""


class SpiderpoolPools(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The IPPools that NICs of this attachment draw from where pod and namespace name none."""

    ipv4: list[str] = []
    """Names of IPv4 pools in order of preference; * ? [ ] match as in a shell. None when absent."""
    ipv6: list[str] = []
    """Names of IPv6 pools in order of preference; * ? [ ] match as in a shell. None when absent."""
    match_master_subnet: bool = False
    """Whether only pools count in whose subnet the NIC's physical function has an address (sriov)."""


class BondConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A bond that is made of the masters on the node."""

    name: str
    """Name of the bond on the node, as bond0."""
    mode: Annotated[int, Meta(ge=0, le=6, extra_json_schema={"format": "int32"})]
    """Bonding mode as the kernel counts them: 0 balance-rr, 1 active-backup, 4 802.3ad and so on."""
    options: str | None = None
    """Further options of the kernel's bonding driver, as miimon=100;primary=eth1. The kernel's own when absent."""


class _OnMaster(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A NIC on top of an interface of the node."""

    master: list[str]
    """Interfaces of the node; several need a bond."""
    mtu: MTU | None = 0
    """MTU of the pod's NIC in bytes; 0 means the master's."""
    vlan_id: VlanID | None = field(default=None, name="vlanID")
    """VLAN of the master, 1 to 4094; 0 and absent mean none."""
    bond: BondConfig | None = None
    """How several masters are bonded; without effect on one."""
    rdma_resource_name: str | None = None
    """Resource of the RDMA shared device plugin that pods ask for, as example.com/rdma. None when absent."""
    ippools: SpiderpoolPools | None = None
    """The pools of these NICs. Absent: the cluster's default pools."""


class MacvlanConfig(_OnMaster, frozen=True):
    """NICs of type macvlan, in bridge mode."""


class IPvlanConfig(_OnMaster, frozen=True):
    """NICs of type ipvlan, in L2 mode."""


class VlanConfig(_OnMaster, frozen=True):
    """NICs of type vlan, one pod per master and VLAN id on a node."""

    vlan_id: VlanID | None = field(default=None, name="vlanID")
    """VLAN of the NIC; needed in mode manual, forbidden in mode auto."""
    vlan_mode: Literal["manual", "auto"] | None = "manual"
    """Whether the VLAN id is vlanID (manual) or comes with the address from the infrastructure (auto)."""


class SriovConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """NICs that are SR-IOV virtual functions of an Ethernet device."""

    resource_name: str
    """Resource of the SR-IOV device plugin that pods ask for, as example.com/nic."""
    vlan_id: VlanID | None = field(default=None, name="vlanID")
    """VLAN of the virtual function, 1 to 4094; 0 and absent mean none."""
    mtu: MTU | None = 0
    """MTU of the pod's NIC in bytes; 0 leaves it alone."""
    min_tx_rate_mbps: Rate | None = None
    """Guaranteed transmit rate in Mbit/s; 0 and absent mean none."""
    max_tx_rate_mbps: Rate | None = None
    """Highest transmit rate in Mbit/s; 0 and absent mean no limit."""
    rdma_isolation: bool = False
    """Whether the pod gets the RDMA device of the virtual function for itself."""
    spoofchk: Literal["on", "off"] | None = None
    """Whether the device drops what the pod sends with another MAC address than its own. Absent leaves it alone."""
    trust: Literal["on", "off"] | None = None
    """Whether the pod may change the MAC address and receive what is not for it. Absent leaves it alone."""
    link_state: Literal["auto", "enable", "disable"] | None = None
    """State of the virtual function's link; auto follows the device's. Absent leaves it alone."""
    vlan_qos: Priority | None = field(default=None, name="vlanQoS")
    """Priority in the VLAN's tag, 0 to 7; needs vlanID. 0 when absent."""
    vlan_proto: Literal["802.1q", "802.1ad"] | None = None
    """Protocol of the VLAN's tag; needs vlanID. Absent means 802.1q."""
    ippools: SpiderpoolPools | None = None
    """The pools of these NICs. Absent: the cluster's default pools."""


class IBSriovConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """NICs that are SR-IOV virtual functions of an InfiniBand device."""

    resource_name: str
    """Resource of the SR-IOV device plugin that pods ask for, as example.com/nic."""
    pkey: str | None = None
    """InfiniBand partition key, as 0x8001. The port's own when absent."""
    link_state: Literal["auto", "enable", "disable"] | None = "enable"
    """State of the virtual function's link."""
    rdma_isolation: bool | None = True
    """Whether the pod gets the RDMA device of the virtual function for itself."""
    enable_ib_kubernetes: bool | None = False
    """Whether ib-kubernetes gives out the GUIDs."""
    ippools: SpiderpoolPools | None = None
    """The pools of these NICs. Absent: the cluster's default pools."""


class IpoibConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """NICs of type IP over InfiniBand."""

    master: str
    """InfiniBand interface of the node."""
    ippools: SpiderpoolPools | None = None
    """The pools of these NICs. Absent: the cluster's default pools."""


class Trunk(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """VLANs that pass: a range or one."""

    min_id: Annotated[int, Meta(ge=0, le=4094)] | None = field(default=None, name="minID")
    """First VLAN of the range, 0 to 4094."""
    max_id: Annotated[int, Meta(ge=0, le=4094)] | None = field(default=None, name="maxID")
    """Last VLAN of the range, 0 to 4094."""
    id: Annotated[int, Meta(ge=0, le=4094)] | None = None
    """The one VLAN, 0 to 4094."""


class OvsConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """NICs on an Open vSwitch bridge."""

    bridge: str
    """Name of the bridge on the node."""
    vlan: VlanID | None = None
    """VLAN of the port, 1 to 4094; 0 and absent mean none."""
    trunk: list[Trunk] = []
    """VLANs that pass tagged. None when absent."""
    device_id: str | None = field(default=None, name="deviceID")
    """PCI address of a virtual function for hardware offload, as 0000:03:02.1. None when absent."""
    ippools: SpiderpoolPools | None = None
    """The pools of these NICs. Absent: the cluster's default pools."""


_AUTOMATIC = (
    "!has(self.vlanMode) || self.vlanMode != 'auto' || !has(self.vlanID)",
    "vlanID comes with the address where vlanMode is auto",
)
_RATES = (
    (
        "!has(self.minTxRateMbps) || !has(self.maxTxRateMbps) || self.maxTxRateMbps == 0"
        " || self.minTxRateMbps <= self.maxTxRateMbps"
    ),
    "minTxRateMbps is larger than maxTxRateMbps",
)


class MultusConfigSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The attachment."""

    cni_type: Literal["macvlan", "ipvlan", "vlan", "sriov", "ovs", "ib-sriov", "ipoib", "custom"] | None = "custom"
    """Which block below describes the NIC."""
    macvlan: Annotated[MacvlanConfig, _asked(*_MASTERS)] | None = None
    """For cniType macvlan."""
    ipvlan: Annotated[IPvlanConfig, _asked(*_MASTERS)] | None = None
    """For cniType ipvlan."""
    vlan: Annotated[VlanConfig, _asked(*_MASTERS, _AUTOMATIC)] | None = None
    """For cniType vlan."""
    sriov: Annotated[SriovConfig, _asked(_RESOURCE, _RATES)] | None = None
    """For cniType sriov."""
    ovs: OvsConfig | None = None
    """For cniType ovs."""
    ibsriov: Annotated[IBSriovConfig, _asked(_RESOURCE)] | None = None
    """For cniType ib-sriov."""
    ipoib: IpoibConfig | None = None
    """For cniType ipoib."""
    custom_cni: str | None = field(default=None, name="customCNI")
    """For cniType custom: the CNI configuration as JSON, taken as it is."""
    enable_coordinator: bool | None = True
    """Whether the plugin coordinator runs after the NIC is made. Never with cniType custom."""
    disable_ipam: bool | None = field(default=False, name="disableIPAM")
    """Whether the NIC gets no address from Spiderpool."""
    coordinator: CoordinatorSpec | None = None
    """Settings of the coordinator for these NICs; they win over the SpiderCoordinator's, which hold when absent."""
    chain_cni_json_data: list[str] = field(default_factory=list, name="chainCNIJsonData")
    """Further CNI plugins to run after the main one, each as JSON, as {"type":"tuning"}. None when absent."""


BLOCKS: Final = {
    "macvlan": "macvlan",
    "ipvlan": "ipvlan",
    "vlan": "vlan",
    "sriov": "sriov",
    "ovs": "ovs",
    "ib-sriov": "ibsriov",
    "ipoib": "ipoib",
}
"""By `cniType`: the field that has to be there, and no other one of these may be."""

_BLOCK_RULES = [
    (f"(self.cniType == '{kind}') == has(self.{field})", f"{field} goes with cniType {kind}, and with no other")
    for kind, field in BLOCKS.items()
]
_CUSTOM = (
    "self.cniType == 'custom' || !has(self.customCNI) || self.customCNI == ''",
    "customCNI goes with cniType custom",
)


class SpiderMultusConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A kind of NIC that pods can have: type, master interface, VLAN, address pools."""

    api_version: str = API_VERSION
    kind: str = "SpiderMultusConfig"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: Annotated[MultusConfigSpec, _asked(*_BLOCK_RULES, _CUSTOM)] = field(default_factory=MultusConfigSpec)
