"""What is to be done in the kernel, as values: pure functions make them from a call and a result, `cni.kernel` acts."""

from ipaddress import ip_interface

from msgspec import Struct
from msgspec.structs import replace

from api.networks import hardware_address
from cni.config import NetConfig, shown
from cni.errors import InvalidConfig, InvalidEnvironment, UnsupportedField
from cni.protocol import IPAM_TYPE, Invocation, Verb
from cni.result import Result

_MAC_BYTES = 6
"""Of an Ethernet link."""
MACVLAN_MODES = ("bridge", "private", "vepa", "passthru")
IPVLAN_MODES = ("l2", "l3", "l3s")
VLAN_PROTOCOLS = ("802.1q", "802.1ad")
MADE_KINDS = frozenset({"macvlan", "ipvlan", "vlan"})
"""Of links that `Kernel.attach_link` makes; others are there already, and are handed over."""


class LinkPlan(Struct, frozen=True, kw_only=True):
    """A link to make in a container's namespace."""

    netns: str
    ifname: str
    master: str = ""
    """Parent interface; empty means the device of the default route."""
    kind: str = "macvlan"
    mode: str = "bridge"
    """Of macvlan and ipvlan; empty for other kinds."""
    vlan_id: int | None = None
    """Of vlan; None while it is still to come, with the address."""
    vlan_protocol: str = ""
    """Of vlan, one of `VLAN_PROTOCOLS`."""
    mtu: int = 0
    """Bytes; 0 means the parent's."""
    mac: str = ""
    """Empty means that the kernel draws one, or takes the parent's (ipvlan, vlan, macvlan passthru)."""
    container_id: str = ""
    broadcast_queue_length: int = 0
    """Frames; 0 means the kernel's default."""
    link_in_container: bool = False
    """Whether `master` is in the container's namespace instead of the node's."""

    @property
    def is_assigned(self) -> bool:
        """Whether VLAN id and MAC address come with the address: it cannot be made before."""
        return self.kind == "vlan" and self.vlan_id is None


class Assigned(Struct, frozen=True):
    """What a network provider says of a VLAN link."""

    vlan_id: int
    mac: str


class AddressPlan(Struct, frozen=True, kw_only=True):
    """What a link gets before it is set up."""

    addresses: tuple[str, ...]
    """With prefix lengths, "10.0.0.5/16"."""
    gateways: tuple[str, ...] = ()
    """At most one a family: the next hop of routes that name none."""
    routes: tuple[tuple[str, str], ...] = ()
    """(destination network, next hop or ""); both empty gateways and next hop mean on-link."""


class LinkState(Struct, frozen=True, kw_only=True):
    """A link as the kernel shows it."""

    ifname: str
    index: int
    kind: str = ""
    """As in `ip -d link`; empty for a physical one."""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool = False
    """Whether frames get through, as far as the kernel knows; never while it is down."""
    arp: bool = True
    """Whether it resolves addresses of the segment: ipvlan links in l3 and l3s mode do not."""
    parent_index: int = 0
    """The parent's index in its own namespace."""
    parent_netns: int | None = None
    """Which namespace that is, by the number that it has in this one; None: this one."""
    master_index: int = 0
    """The bridge or bond that the link is a port of; 0: none."""
    mode: str = ""
    """Of macvlan and ipvlan."""
    vlan_id: int | None = None
    vlan_protocol: str = ""
    alias: str = ""
    """What its maker wrote on it (`ip link`, alias)."""
    tx_queue_len: int = 0
    """Packets."""
    promisc: bool = False
    """Whether somebody had it take in frames for others, too."""
    allmulti: bool = False
    """Whether somebody had it take in all that is for a group."""
    rp_filter: int = -1
    """Of its own, without that of all interfaces; negative: not known."""


class Inspection(Struct, frozen=True, kw_only=True):
    """A link with what is configured on it."""

    link: LinkState
    addresses: tuple[str, ...] = ()
    """With prefix lengths; link-local ones left out."""
    routes: tuple[tuple[str, str], ...] = ()
    """(destination network, next hop or "") of the main table, those that the kernel makes itself left out."""
    networks: tuple[str, ...] = ()
    """Of the main table, too: those that it has made itself, for the networks of the addresses."""


def link_plan(invocation: Invocation) -> LinkPlan:
    """The link that an ADD of a main plugin asks for.

    Where several places name a MAC address, the runtime's wins over CNI_ARGS, that over the configuration.

    Raises:
        InvalidConfig: the mode or the MAC address is none, or there is no VLAN id.
        InvalidEnvironment: the MAC address of CNI_ARGS is none.
        UnsupportedField: the kind of link cannot have it.
    """
    conf = invocation.conf
    field, mac = _wanted_mac(invocation)
    plan = LinkPlan(
        netns=invocation.netns,
        ifname=invocation.ifname,
        master=conf.master,
        kind=invocation.link_kind,
        mode="",
        mtu=conf.mtu,
        mac=_mac(field, mac) if mac else "",
        container_id=invocation.container_id,
        broadcast_queue_length=conf.broadcast_queue_length,
        link_in_container=conf.link_in_container,
    )
    match plan.kind:
        case "macvlan":
            return replace(plan, mode=_mode(conf, "macvlan", MACVLAN_MODES))
        case "ipvlan":
            if mac:
                _refuse_mac(field, mac)
            if conf.coordinator is not None and conf.coordinator.pod_mac_prefix:
                _refuse_mac("coordinator.podMACPrefix", conf.coordinator.pod_mac_prefix)
            return replace(
                plan,
                master=conf.master or _master_of_chain(invocation),
                mode=_mode(conf, "ipvlan", IPVLAN_MODES),
                broadcast_queue_length=0,
            )
        case "vlan":
            vlan_id = _vlan_id(conf)
            if vlan_id is None:
                _check_assigned(invocation, field, mac)
            return replace(plan, vlan_id=vlan_id, vlan_protocol=_vlan_protocol(conf), broadcast_queue_length=0)
        case _:
            return plan


def is_assigned(conf: NetConfig) -> bool:
    """Whether VLAN id and MAC address of what a configuration makes come with its address."""
    return conf.type == "vlan" and conf.vlan_mode == "auto" and conf.vlan_tag is None


def assigned_plan(plan: LinkPlan, assigned: Assigned) -> LinkPlan:
    """The plan of a link that is made as a network provider says; others stay as they are."""
    return replace(plan, vlan_id=assigned.vlan_id, mac=assigned.mac) if plan.kind == "vlan" else plan


def link_differences(plan: LinkPlan, seen: LinkState, parent: LinkState | None) -> list[str]:
    """What of a link is not as planned, in words; its name, addresses and MAC address are compared by others.

    `parent` is the link that the plan names; None where it names none, or where there is none of that name.
    """
    if seen.kind != plan.kind:
        return [f"it is a {seen.kind or 'physical'} link, not {plan.kind}"]
    found = []
    if seen.mode != plan.mode:
        found.append(f"its mode is {seen.mode}, not {plan.mode}")
    if seen.vlan_id != plan.vlan_id:
        found.append(f"its VLAN id is {seen.vlan_id}, not {plan.vlan_id}")
    if seen.vlan_protocol != plan.vlan_protocol:
        found.append(f"its protocol is {seen.vlan_protocol}, not {plan.vlan_protocol}")
    if plan.mtu and seen.mtu != plan.mtu:
        found.append(f"its MTU is {seen.mtu}, not {plan.mtu}")
    if not seen.up:
        found.append("it is down")
    if plan.master and parent is None:
        found.append(f"there is no interface {plan.master} for it any more")
    elif parent is not None and seen.parent_index != parent.index:
        found.append(f"it is not on {parent.ifname}")
    return found


def address_plan(result: Result) -> AddressPlan:
    """What a result puts on its interface."""
    gateways: dict[int, str] = {}
    for ip in result.ips:
        if ip.gateway:
            gateways.setdefault(ip_interface(ip.address).version, ip.gateway)
    return AddressPlan(
        addresses=tuple(ip.address for ip in result.ips),
        gateways=tuple(gateways.values()),
        routes=tuple((route.dst, route.gw) for route in result.routes),
    )


def _mode(conf: NetConfig, kind: str, known: tuple[str, ...]) -> str:
    mode = conf.mode or known[0]
    if mode not in known:
        raise InvalidConfig(f"mode: {shown(mode)} is no {kind} mode", f"modes: {', '.join(known)}")
    return mode


def _master_of_chain(invocation: Invocation) -> str:
    """The one interface that earlier plugins of the list have made, on the node or in the container."""
    if invocation.verb is not Verb.ADD or invocation.prev_result is None or len(invocation.prev_result.interfaces) != 1:
        return ""
    return invocation.prev_result.interfaces[0].name


def _vlan_id(conf: NetConfig) -> int | None:
    """None: it comes with the address."""
    if conf.vlan_mode not in {"", "manual", "auto"}:
        raise InvalidConfig(f"vlanMode: {shown(conf.vlan_mode)} is unknown", "known: manual, auto")
    if conf.vlan_tag is not None:
        return conf.vlan_tag
    if conf.vlan_mode == "auto":
        return None
    raise InvalidConfig("vlanId: missing from the network configuration")


def _check_assigned(invocation: Invocation, field: str, mac: str) -> None:
    """Refuse what does not go with a VLAN id and a MAC address that a network provider says."""
    conf = invocation.conf
    what = 'vlanMode: "auto" takes VLAN id and MAC address from a network provider'
    if conf.ipam.type != IPAM_TYPE:
        raise InvalidConfig(f"ipam.type: {shown(conf.ipam.type)}: {what}", f"only addresses of {IPAM_TYPE} have them")
    if not conf.master or conf.link_in_container:
        raise InvalidConfig(f"master: {shown(conf.master)}: {what}", "it knows interfaces of the node, by their MAC")
    prefix = "" if conf.coordinator is None else conf.coordinator.pod_mac_prefix
    if mac or prefix:
        field, mac = (field, mac) if mac else ("coordinator.podMACPrefix", prefix)
        raise UnsupportedField(f"{field}: {shown(mac)} is not possible: {what}", "any other gets no frames")


def _vlan_protocol(conf: NetConfig) -> str:
    protocol = conf.vlan_proto.lower() or VLAN_PROTOCOLS[0]
    if protocol not in VLAN_PROTOCOLS:
        raise InvalidConfig(f"vlanProto: {shown(conf.vlan_proto)} is unknown", f"known: {', '.join(VLAN_PROTOCOLS)}")
    return protocol


def _wanted_mac(invocation: Invocation) -> tuple[str, str]:
    """The field that names a MAC address, and what it says; empty when none does."""
    conf = invocation.conf
    places = (
        ("runtimeConfig.mac", conf.runtime_config.mac),
        ("CNI_ARGS MAC", invocation.args.mac),
        ("args.cni.mac", conf.args.cni.mac),
        ("mac", conf.mac),
    )
    return next(((field, value) for field, value in places if value), ("", ""))


def _refuse_mac(field: str, value: str) -> None:
    msg = f"{field}: {shown(value)} is not possible, an ipvlan link has the MAC address of its master"
    raise UnsupportedField(msg, "macvlan links have their own")


def _mac(field: str, text: str) -> str:
    raw = hardware_address(text)
    if len(raw) != _MAC_BYTES:
        problem = f"{field}: {shown(text)} is not a MAC address"
    elif raw[0] & 1:
        problem = f"{field}: {shown(text)} is a multicast MAC address"
    elif not any(raw):
        problem = f"{field}: {shown(text)} is the zero MAC address"
    else:
        return raw.hex(":")
    raise InvalidEnvironment(problem) if field.startswith("CNI_ARGS") else InvalidConfig(problem)
