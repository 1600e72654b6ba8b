"""What the plugin's configuration and the cluster say together, checked: a key of the plugin's wins, as a whole."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_network

from msgspec import Struct

from api.wire import Coordination
from cni.config import CoordinatorConfig, shown
from cni.errors import InvalidConfig, TryAgainLater

MODES = ("auto", "underlay", "overlay", "disable", "disabled")
OFF = ("disable", "disabled")
_FIRST_NIC = "eth0"
_MAC_PREFIX = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}", re.ASCII)
_RESERVED_TABLES = (0, 253, 254, 255)
LONGEST_QUEUE = (1 << 32) - 1
VETH_MTU = (68, 65535)
"""Bytes: what the kernel's driver takes."""


class Settings(Struct, frozen=True, kw_only=True):
    """All of it."""

    mode: str
    mode_field: str
    """Where the mode was said, for errors."""
    first_nic: str
    hijacked: tuple[str, ...]
    """Destinations that the pod reaches through its node."""
    hijack_in_policy_tables: bool
    policy_routes: tuple[tuple[str, str], ...]
    """(network, next hop)."""
    tune: bool
    default_nic: str
    """The NIC that the default route goes by; empty: the first."""
    default_nic_field: str
    """Where that was said, for errors."""
    host_table: int
    rp_filter: int
    tx_queue_len: int
    mac_prefix: str
    link_address: str
    mtu: int


def first_nic(conf: CoordinatorConfig) -> str:
    """The name of the pod's first NIC."""
    return conf.pod_default_cni_nic or _FIRST_NIC


def leaves_cidrs_to_cluster(conf: CoordinatorConfig) -> bool:
    """Whether the cluster has to say which CIDRs are its own: a configuration that names both needs nothing of it."""
    return not (conf.overlay_pod_cidr and conf.service_cidr)


def chosen_mode(conf: CoordinatorConfig, cluster: Coordination, *, prefix: str) -> tuple[str, str]:
    """The mode, and where it was said. Raises `InvalidConfig` for one that there is not."""
    mode, field = (conf.mode, f"{prefix}mode") if conf.mode else (cluster.mode, "SpiderCoordinator spec.mode")
    if mode not in MODES:
        raise InvalidConfig(f"{field}: {shown(mode)} is no coordinator mode", f"modes: {', '.join(MODES)}")
    return mode, field


def settle(conf: CoordinatorConfig, cluster: Coordination, *, prefix: str) -> Settings:
    """Both together. `prefix` goes before the plugin's own keys in errors.

    Raises:
        InvalidConfig: a value cannot be.
        TryAgainLater: the cluster does not know its CIDRs, and the plugin's keys do not say them.
    """
    if cluster.unready and leaves_cidrs_to_cluster(conf):
        text = "overlayPodCIDR and serviceCIDR are not both set, and the cluster does not know its own yet"
        raise TryAgainLater(text, cluster.unready)
    mode, field = chosen_mode(conf, cluster, prefix=prefix)
    nic, nic_field = cluster.pod_default_route_nic, "default-route-nic of the pod, or podDefaultRouteNIC of the cluster"
    if conf.pod_default_route_nic:
        nic, nic_field = conf.pod_default_route_nic, f"{prefix}podDefaultRouteNic"
    in_tables = conf.hijack_in_policy_tables
    return Settings(
        mode=mode,
        mode_field=field,
        first_nic=first_nic(conf),
        hijacked=_hijacked(conf, cluster),
        hijack_in_policy_tables=in_tables is None or in_tables,
        policy_routes=_policy_routes(conf, cluster),
        tune=cluster.tune_pod_routes if conf.tune_pod_routes is None else conf.tune_pod_routes,
        default_nic=nic,
        default_nic_field=nic_field,
        host_table=_table(conf.host_rule_table if conf.host_rule_table is not None else cluster.host_rule_table),
        rp_filter=_rp_filter(conf.pod_rp_filter if conf.pod_rp_filter is not None else cluster.pod_rp_filter),
        tx_queue_len=_queue(conf.tx_queue_len if conf.tx_queue_len is not None else cluster.tx_queue_len),
        mac_prefix=_mac_prefix(conf.pod_mac_prefix or cluster.pod_mac_prefix),
        link_address=_link_address(conf.veth_link_address or cluster.veth_link_address),
        mtu=_mtu(conf.veth_mtu if conf.veth_mtu is not None else cluster.veth_mtu),
    )


def _hijacked(conf: CoordinatorConfig, cluster: Coordination) -> tuple[str, ...]:
    sets: Iterable[tuple[str, tuple[str, ...]]] = (
        ("overlayPodCIDR", conf.overlay_pod_cidr or cluster.overlay_pod_cidr),
        ("serviceCIDR", conf.service_cidr or cluster.service_cidr),
        ("hijackCIDR", conf.hijack_cidr or cluster.hijack_cidr),
    )
    found: dict[str, None] = {}
    for field, texts in sets:
        for text in texts:
            try:
                network = ip_network(text.strip(), strict=False)
            except ValueError as error:
                raise InvalidConfig(f"{field}: {shown(text)} is neither an address nor a CIDR", str(error)) from None
            found[str(network)] = None
    return tuple(found)


def _policy_routes(conf: CoordinatorConfig, cluster: Coordination) -> tuple[tuple[str, str], ...]:
    routes: dict[tuple[str, str], None] = {}
    for one in conf.policy_routes or cluster.policy_routes:
        try:
            destination, gateway = ip_network(one.dst, strict=False), ip_address(one.gw)
        except ValueError as error:
            raise InvalidConfig(f"policyRoutes: {shown(f'{one.dst} via {one.gw}')} is no route", str(error)) from None
        if destination.version != gateway.version:
            raise InvalidConfig(f"policyRoutes: {shown(f'{one.dst} via {one.gw}')} mixes two IP families")
        routes[str(destination), str(gateway)] = None
    return tuple(routes)


def _mac_prefix(text: str) -> str:
    if not text:
        return ""
    lower = text.lower()
    if not _MAC_PREFIX.fullmatch(lower):
        raise InvalidConfig(f"podMACPrefix: {shown(text)} is not the first two bytes of a MAC address", "as 0a:1b")
    if int(lower[:2], 16) & 1:
        raise InvalidConfig(f"podMACPrefix: {shown(text)} begins a multicast address", "its first byte must be even")
    return lower


def link_address(text: str) -> str:
    """The address of `vethLinkAddress` with its prefix length.

    Raises `ValueError`: an interface cannot have it.
    """
    address = IPv4Address(text.removesuffix("/32"))
    if address.is_unspecified or address.is_multicast or address.is_reserved:
        msg = f"{address} is not the address of an interface"
        raise ValueError(msg)
    return f"{address}/32"


def _link_address(text: str) -> str:
    try:
        return link_address(text) if text else ""
    except ValueError as error:
        raise InvalidConfig(f"vethLinkAddress: {shown(text)} is no IPv4 address for a link", str(error)) from None


def _mtu(value: int) -> int:
    least, most = VETH_MTU
    if not least <= value <= most:
        raise InvalidConfig(f"vethMTU: {value} is not {least} to {most}", "bytes, as a veth pair can have")
    return value


def _queue(value: int) -> int:
    if not 0 <= value <= LONGEST_QUEUE:
        raise InvalidConfig(f"txQueueLen: {value} is not 0 to {LONGEST_QUEUE}", "0 leaves it alone")
    return value


def _table(value: int) -> int:
    if value in _RESERVED_TABLES or not 0 < value < 1 << 32:
        raise InvalidConfig(f"hostRuleTable: {value} is no table of our own", "a number above 0, not 253 to 255")
    return value


def _rp_filter(value: int) -> int:
    if value > 2:
        raise InvalidConfig(f"podRPFilter: {value} is not 0, 1 or 2, or negative to leave it alone")
    return value
