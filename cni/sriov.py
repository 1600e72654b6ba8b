"""What an SR-IOV virtual function is to be in a pod, as values: from the plugin's JSON to a plan, and which one.

The keys are those of sriov-cni. A virtual function (VF) has two ends: its settings at the physical function (PF), which
only the node may change, and its interface, which goes into the pod. A VF whose driver gives it to a program (vfio) has
no interface, and only its settings are changed.

A VF is borrowed: `VfHeld` says what it was before, and is written into the journal before anything is changed.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import asdict, replace

from cni.config import NetConfig, shown
from cni.errors import InvalidConfig, TryAgainLater, UnsupportedField
from cni.plan import VLAN_PROTOCOLS, link_plan
from cni.protocol import Invocation

KIND = "sriov"
LINK_STATES = ("auto", "enable", "disable")
USERSPACE_DRIVERS = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})
"""Drivers that give a device to a program: it has no interface."""
_MARK = "lent by spiderpool to "
_ALIAS_MAX = 255
_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_SWITCH = {"on": True, "off": False}


class VfVlan(Struct, frozen=True, kw_only=True):
    """The VLAN that the NIC puts a VF into."""

    id: int = 0
    """0 is none."""
    qos: int = 0
    protocol: str = VLAN_PROTOCOLS[0]

    def __str__(self) -> str:
        return f"VLAN {self.id}, qos {self.qos}, {self.protocol}" if self.id else "no VLAN"


class VfSettings(Struct, frozen=True, kw_only=True):
    """What a PF knows of one of its VFs, or is to be told; None or empty: nothing. Each field is one request."""

    vlan: VfVlan | None = None
    mac: str = ""
    rates: tuple[int, int] | None = None
    """The least and the most that it may send, Mb/s; 0 is no limit."""
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str = ""

    @property
    def said(self) -> dict[str, "Setting"]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    def but(self, other: "VfSettings") -> "VfSettings":
        """Without the fields in which `other` says the same."""
        more = {name: value for name, value in self.said.items() if other.said.get(name) != value}
        return replace(VfSettings(), **more)


type Setting = VfVlan | tuple[int, int] | bool | str
"""What a field of `VfSettings` may be."""


class VfPlan(Struct, frozen=True, kw_only=True):
    """A VF for a container, and what it is to be there."""

    netns: str
    ifname: str
    pci: str = ""
    """Which one; empty: a free one of `pf`."""
    pf: str = ""
    """The PF's interface on the node; counts where `pci` is empty."""
    mtu: int = 0
    """Bytes; 0 means as it is."""
    settings: VfSettings = VfSettings()
    """Its `mac` is that of the interface, too."""


class VfHeld(Struct, frozen=True, kw_only=True):
    """A VF as it was on the node before it was lent to a container."""

    pci: str
    pf: str
    """PCI address of its PF: interfaces may be renamed."""
    number: int
    ifname: str = ""
    """Empty for one without an interface."""
    mac: str = ""
    """Of the interface."""
    mtu: int = 0
    up: bool = False
    alias: str = ""
    """What somebody wrote on the interface (`ip link`, alias)."""
    tx_queue_len: int | None = None
    """Packets; None where an agent lent the VF that did not look at this, nor at the next two."""
    promisc: bool = False
    allmulti: bool = False
    settings: VfSettings = VfSettings()
    mark: str = ""
    """Written on the interface while it is lent, and for as long as it is not what it was. So an agent that does not
    know of it, since another one lent it, looks into the journal. A pod may change it: nothing is decided by it."""
    boot: str = ""
    """Of which start of the node this is true: after another one a VF is as the node made it."""
    order: int = 0
    """Of two that hold the same VF, the one with the larger number is right."""

    @property
    def label(self) -> str:
        """For messages."""
        return f"VF {self.number} ({self.pci})"


class Returned(StrEnum):
    """What came of a VF that was to be given back."""

    BACK = "back"
    """It is as it was."""
    GONE = "gone"
    """The device is no more, or the node was started anew: there is nothing to give back."""
    LOST = "lost"
    """Its interface is neither in the container nor on the node (yet): nothing was changed."""
    MISNAMED = "misnamed"
    """It is as it was, but for its name, which another interface has."""
    ANOTHERS = "another's"
    """It is on the node with the mark of somebody else: nothing was changed."""


class VfSeen(Struct, frozen=True, kw_only=True):
    """One of a PF's VFs, as far as the choice goes."""

    number: int
    pci: str
    driver: str = ""
    ifname: str = ""
    """On the node; empty where its interface is elsewhere or where it has none."""
    addresses: tuple[str, ...] = ()
    uppers: tuple[str, ...] = ()
    """Interfaces that are built on it: bridges, bonds, VLANs."""
    mark: str = ""
    """Of somebody to whom it was lent, and who has not given it back."""

    @property
    def label(self) -> str:
        """For messages."""
        return f"VF {self.number} ({self.pci})"


class PfView(Struct, frozen=True, kw_only=True):
    """A PF with its VFs, in their order."""

    pci: str
    ifname: str
    """Empty where its interface is not on the node."""
    vfs: tuple[VfSeen, ...] = ()


def vf_plan(invocation: Invocation) -> VfPlan:
    """The VF that an ADD of the plugin type `sriov` asks for.

    Where several places name a device, the runtime's wins over `deviceID`, that over `pciBusID`.

    Raises:
        InvalidConfig: a value is none, or does not go with another one.
        InvalidEnvironment: the MAC address of CNI_ARGS is none.
        UnsupportedField: a key that makes no sense for a VF.
    """
    conf = invocation.conf
    link = link_plan(invocation)
    if conf.link_in_container:
        raise UnsupportedField("linkInContainer: true is not possible, a PF cannot be in a container")
    pci = _device(conf)
    if not pci and not conf.master:
        msg = "deviceID: missing from the network configuration"
        raise InvalidConfig(msg, "a device plugin names the device; or master names a PF, for a free one of its VFs")
    return VfPlan(
        netns=invocation.netns,
        ifname=invocation.ifname,
        pci=pci,
        pf="" if pci else conf.master,
        mtu=conf.mtu,
        settings=VfSettings(
            vlan=_vlan(conf),
            mac=link.mac,
            rates=_rates(conf),
            spoofchk=_switch("spoofchk", conf.spoofchk),
            trust=_switch("trust", conf.trust),
            link_state=_link_state(conf.link_state),
        ),
    )


def has_rate(plan: VfPlan) -> bool:
    """Whether the configuration limits what the VF may send."""
    return plan.settings.rates is not None and plan.settings.rates[1] > 0


def with_rate(plan: VfPlan, mbps: int, held: VfHeld) -> VfPlan:
    """The plan with a limit for what the VF may send, unless the configuration has one."""
    if has_rate(plan) or not mbps:
        return plan
    rates = limited(plan.settings.rates or held.settings.rates, mbps)
    return replace(plan, settings=replace(plan.settings, rates=rates))


def limited(rates: tuple[int, int] | None, mbps: int) -> tuple[int, int]:
    """Rates of a VF with one limit more."""
    least, most = rates or (0, 0)
    most = min(most or mbps, mbps)
    return min(least, most), most


def mark(container_id: str, ifname: str) -> str:
    """What is written on a VF's interface while a container has it."""
    return f"{_MARK}{container_id}/{ifname}"[:_ALIAS_MAX]


def is_mark(alias: str) -> bool:
    """Whether what is written on an interface says that it was lent."""
    return alias.startswith(_MARK)


def free_vf(view: PfView, holders: Mapping[str, str]) -> VfSeen:
    """The first VF of a PF that nobody uses. `holders`: who holds which one, by PCI address.

    Raises:
        InvalidConfig: the PF has none at all.
        TryAgainLater: all are in use; it says by what.
    """
    if not view.vfs:
        raise InvalidConfig(f"master: {shown(view.ifname)} has no virtual functions", "its sriov_numvfs is 0")
    problems = []
    for vf in view.vfs:
        problem = f"held by {holders[vf.pci]}" if vf.pci in holders else _unfit(vf)
        if not problem:
            return vf
        problems.append(f"{vf.label}: {problem}")
    msg = f"master: no virtual function of {shown(view.ifname)} is free"
    raise TryAgainLater(msg, "; ".join(problems))


def settings_differences(wanted: VfSettings, seen: VfSettings) -> list[str]:
    """What of a VF is not as wanted at its PF, in words."""
    return [
        f"its {name} is {described(seen.said.get(name))}, not {described(value)}"
        for name, value in wanted.but(seen).said.items()
    ]


def described(value: Setting | None) -> str:
    """A field of `VfSettings` for messages."""
    match value:
        case bool():
            return "on" if value else "off"
        case (least, most):
            return f"{least} to {most or 'any'} Mb/s"
        case None:
            return "unknown"
        case _:
            return str(value)


def _unfit(vf: VfSeen) -> str:
    """Why a VF that nobody holds cannot be lent; empty when it can."""
    if not vf.driver:
        return "it has no driver"
    if vf.driver in USERSPACE_DRIVERS:
        return f"its driver is {vf.driver}"
    if not vf.ifname:
        return "its interface is not on the node"
    if vf.addresses:
        return f"{vf.ifname} has address {vf.addresses[0]}"
    if vf.uppers:
        return f"{vf.ifname} is used by {', '.join(vf.uppers)}"
    return ""


def _device(conf: NetConfig) -> str:
    places = (
        ("runtimeConfig.deviceID", conf.runtime_config.device_id),
        ("deviceID", conf.device_id),
        ("pciBusID", conf.pci_bus_id),
    )
    for field, value in places:
        if value:
            pci = value.lower()
            if not _PCI.fullmatch(pci):
                raise InvalidConfig(f"{field}: {shown(value)} is not a PCI address", 'as in "0000:03:02.1"')
            return pci
    return ""


def _vlan(conf: NetConfig) -> VfVlan | None:
    protocol = conf.vlan_proto.lower() or VLAN_PROTOCOLS[0]
    if protocol not in VLAN_PROTOCOLS:
        raise InvalidConfig(f"vlanProto: {shown(conf.vlan_proto)} is unknown", f"known: {', '.join(VLAN_PROTOCOLS)}")
    if conf.vlan is None:
        for field, value in (("vlanQoS", conf.vlan_qos), ("vlanProto", conf.vlan_proto or None)):
            if value is not None:
                raise InvalidConfig(f"{field}: {shown(value)} needs a vlan", "vlan is missing")
        return None
    if conf.vlan == 0 and conf.vlan_qos:
        raise InvalidConfig(f"vlanQoS: {conf.vlan_qos} needs a vlan", "vlan is 0, which is none")
    if conf.vlan == 0 and protocol != VLAN_PROTOCOLS[0]:
        raise InvalidConfig(f"vlanProto: {shown(conf.vlan_proto)} needs a vlan", "vlan is 0, which is none")
    return VfVlan(id=conf.vlan, qos=conf.vlan_qos or 0, protocol=protocol)


def _rates(conf: NetConfig) -> tuple[int, int] | None:
    if conf.min_tx_rate is None and conf.max_tx_rate is None:
        return None
    least, most = conf.min_tx_rate or 0, conf.max_tx_rate or 0
    if most and least > most:
        raise InvalidConfig(f"min_tx_rate: {least} is larger than max_tx_rate", f"max_tx_rate is {most}")
    return least, most


def _switch(field: str, value: str) -> bool | None:
    if value and value not in _SWITCH:
        raise InvalidConfig(f"{field}: {shown(value)} is unknown", "known: on, off")
    return _SWITCH.get(value)


def _link_state(value: str) -> str:
    if value and value not in LINK_STATES:
        raise InvalidConfig(f"link_state: {shown(value)} is unknown", f"known: {', '.join(LINK_STATES)}")
    return value
