"""What is to be done in the kernel, as values: pure functions make them from a call and a result, `cni.kernel` acts."""

from ipaddress import ip_interface

from msgspec import Struct

from cni.config import shown
from cni.errors import InvalidConfig, InvalidEnvironment
from cni.protocol import Invocation
from cni.result import Result

MACVLAN_MODES = ("bridge", "private", "vepa", "passthru")


class LinkPlan(Struct, frozen=True, kw_only=True):
    """A link to make in a container's namespace."""

    netns: str
    ifname: str
    master: str = ""
    """Parent interface; empty means the device of the default route."""
    kind: str = "macvlan"
    mode: str = "bridge"
    mtu: int = 0
    """Bytes; 0 means the parent's."""
    mac: str = ""
    """Empty means that the kernel draws one."""
    container_id: str = ""
    broadcast_queue_length: int = 0
    """Frames; 0 means the kernel's default."""
    link_in_container: bool = False
    """Whether `master` is in the container's namespace instead of the node's."""


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
    parent_index: int = 0
    """The parent's index in its own namespace."""
    mode: str = ""
    alias: str = ""
    """What its maker wrote on it (`ip link`, alias)."""


class Inspection(Struct, frozen=True, kw_only=True):
    """A link with what is configured on it."""

    link: LinkState
    addresses: tuple[str, ...] = ()
    """With prefix lengths; link-local ones left out."""
    routes: tuple[tuple[str, str], ...] = ()
    """(destination network, next hop or "") of the main table, those that the kernel makes itself left out."""


def link_plan(invocation: Invocation) -> LinkPlan:
    """The link that an ADD of a main plugin asks for.

    Where several places name a MAC address, the runtime's wins over CNI_ARGS, that over the configuration.

    Raises:
        InvalidConfig: the mode or the MAC address is none.
        InvalidEnvironment: the MAC address of CNI_ARGS is none.
    """
    conf = invocation.conf
    mode = conf.mode or "bridge"
    if mode not in MACVLAN_MODES:
        raise InvalidConfig(f"mode: {shown(mode)} is no macvlan mode", f"modes: {', '.join(MACVLAN_MODES)}")
    mac = ""
    for field, value in (
        ("runtimeConfig.mac", conf.runtime_config.mac),
        ("CNI_ARGS MAC", invocation.args.mac),
        ("args.cni.mac", conf.args.cni.mac),
        ("mac", conf.mac),
    ):
        if value:
            mac = _mac(field, value)
            break
    return LinkPlan(
        netns=invocation.netns,
        ifname=invocation.ifname,
        master=conf.master,
        kind=invocation.link_kind,
        mode=mode,
        mtu=conf.mtu,
        mac=mac,
        container_id=invocation.container_id,
        broadcast_queue_length=conf.broadcast_queue_length,
        link_in_container=conf.link_in_container,
    )


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


def _mac(field: str, text: str) -> str:
    parts = text.lower().split(":")
    try:
        raw = bytes.fromhex("".join(parts))
    except ValueError:
        raw = b""
    if len(raw) != 6 or any(len(part) != 2 for part in parts):
        problem = f"{field}: {shown(text)} is not a MAC address"
    elif raw[0] & 1:
        problem = f"{field}: {shown(text)} is a multicast MAC address"
    elif not any(raw):
        problem = f"{field}: {shown(text)} is the zero MAC address"
    else:
        return ":".join(parts)
    raise InvalidEnvironment(problem) if field.startswith("CNI_ARGS") else InvalidConfig(problem)
