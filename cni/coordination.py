"""How a pod and its own node reach each other, as values.

A macvlan link cannot talk to its parent, so a pod on the LAN would be cut off from exactly one machine: its own node,
with kubelet's probes and with everything that the node does for it (Services, the API server's address). Hence a veth
pair beside the LAN link: node and pod route each other's addresses over it, the pod sends Services' addresses to the
node over it, and replies to what came in by it leave by it.

Pure: `coordination_plan` decides from the call, the addresses, the cluster's settings and what the node's kernel says;
`cni.netlink.coordinator` acts.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, ip_address, ip_interface, ip_network

from msgspec import Struct

from api.wire import Coordination
from cni.config import CoordinatorConfig, NetConfig, shown
from cni.errors import InvalidConfig, UnsupportedField
from cni.protocol import Invocation

POD_VETH = "veth0"
MARK = 1
"""Of packets that answer what came in by veth0; other marks of the pod's own programs are left alone."""
REPLY_TABLE = 100
"""In the pod: where marked packets go."""
MAIN_TABLE = 254
RULE_PRIORITY = 1000
"""Of the rules on both sides."""

_MODES = ("auto", "underlay", "overlay", "disable", "disabled")
_OFF = ("disable", "disabled")
_FIRST_NIC = "eth0"
_NOT_THE_NODES = re.compile(
    r"lo$|docker|cbr|dummy|virbr|lxcbr|veth|cali|flannel|kube-ipvs|cni|vx-submariner|cilium", re.ASCII
)
"""Links whose addresses are not addresses of the node that a pod would ask for."""
_RESERVED_TABLES = (0, 253, 254, 255)


class RoutePlan(Struct, frozen=True, kw_only=True):
    """One route; the link is given by where it stands."""

    destination: str
    """A network."""
    gateway: str = ""
    source: str = ""
    table: int = MAIN_TABLE


class NodeView(Struct, frozen=True, kw_only=True):
    """What the node's kernel says."""

    addresses: tuple[tuple[str, str], ...] = ()
    """(link name, address without prefix length), in the kernel's order."""
    sources: tuple[str, ...] = ()
    """Where the node would send to the pod's addresses from, in their order; none where it has no way."""


class Pair(Struct, frozen=True):
    """What a DEL knows of a pod's pair."""

    host_veth: str
    container_id: str


class CoordinationPlan(Struct, frozen=True, kw_only=True):
    """The veth pair of one pod and what goes with it."""

    netns: str
    ifname: str
    """The pod's LAN link."""
    container_id: str
    host_veth: str
    pod_mac: str
    host_mac: str
    mtu: int
    link_address: str = ""
    """An IPv4 address that veth0 gets."""
    pod_addresses: tuple[str, ...] = ()
    host_addresses: tuple[str, ...] = ()
    """The node's, without those of a family that the pod does not have."""
    routes: tuple[RoutePlan, ...] = ()
    """Of veth0, in an order in which every next hop is known when it is needed."""
    lan_routes: tuple[RoutePlan, ...] = ()
    """Of the LAN link."""
    marked: tuple[int, ...] = ()
    """IP versions whose replies are marked."""
    host_table: int
    rp_filter: int
    """Of the pod; negative leaves it alone."""
    tx_queue_len: int = 0
    """Of the LAN link; 0 leaves it alone."""

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions of the pod's addresses."""
        return tuple(sorted({ip_address(one).version for one in self.pod_addresses}))

    @property
    def host_routes(self) -> tuple[RoutePlan, ...]:
        """Of the node's end."""
        return tuple(RoutePlan(destination=_single(one), table=self.host_table) for one in self.pod_addresses)


def host_veth(container_id: str) -> str:
    """The name of the node's end: a repeated ADD, and a DEL that has lost all memory, find it."""
    return f"veth{container_id[:11]}"


def wanted(conf: NetConfig) -> bool:
    """Whether a configuration asks for it, as far as it alone can tell."""
    return conf.coordinator is not None and conf.coordinator.mode not in _OFF


def check(invocation: Invocation) -> None:
    """Refuse what no setting of the cluster can make right, before anything is asked for.

    Raises:
        InvalidConfig: a value cannot be.
        UnsupportedField: it can, and not here.
    """
    conf = invocation.conf.coordinator
    if conf is not None:
        _mode(conf.mode or "auto", conf, invocation.ifname, field="coordinator.mode")


def coordination_plan(
    invocation: Invocation, addresses: Sequence[str], cluster: Coordination, node: NodeView
) -> CoordinationPlan | None:
    """What to build for a call whose LAN link has `addresses` (with prefix lengths); None for nothing.

    A key of the plugin's configuration wins over the cluster's setting; lists are not merged.

    Raises:
        InvalidConfig: a value cannot be.
        UnsupportedField: it can, and not here.
    """
    conf = invocation.conf.coordinator
    if conf is None:
        return None
    mode, field = (conf.mode, "coordinator.mode") if conf.mode else (cluster.mode, "SpiderCoordinator spec.mode")
    if not _mode(mode, conf, invocation.ifname, field=field):
        return None
    prefix = conf.pod_mac_prefix or cluster.pod_mac_prefix
    if prefix:
        raise UnsupportedField(f"podMACPrefix: {shown(prefix)} is not supported yet")
    own = tuple(str(ip_interface(one).ip) for one in addresses)
    hosts = _host_addresses(own, node)
    source = next((one for one in own if ip_address(one).version == 4), "")
    gateways: dict[int, str] = {}
    for one in hosts:
        gateways.setdefault(ip_address(one).version, one)

    def route(destination: str, gateway: str = "", table: int = MAIN_TABLE) -> RoutePlan:
        from_here = source if ip_network(destination).version == 4 else ""
        return RoutePlan(destination=destination, gateway=gateway, source=from_here, table=table)

    routes = [route(_single(one)) for one in hosts]
    for network in _hijacked(conf, cluster):
        gateway = gateways.get(ip_network(network).version)
        if gateway is not None:
            routes.append(route(network, gateway))
    for version, gateway in gateways.items():
        routes.append(route("0.0.0.0/0" if version == 4 else "::/0", gateway, REPLY_TABLE))
    return CoordinationPlan(
        netns=invocation.netns,
        ifname=invocation.ifname,
        container_id=invocation.container_id,
        host_veth=host_veth(invocation.container_id),
        pod_mac=_mac(invocation.container_id, "pod"),
        host_mac=_mac(invocation.container_id, "node"),
        mtu=_positive("vethMTU", conf.veth_mtu, cluster.veth_mtu),
        link_address=_link_address(conf.veth_link_address or cluster.veth_link_address) if source else "",
        pod_addresses=own,
        host_addresses=hosts,
        routes=tuple(routes),
        lan_routes=_policy_routes(conf, cluster, {ip_address(one).version for one in own}),
        marked=tuple(sorted(gateways)),
        host_table=_table(conf.host_rule_table if conf.host_rule_table is not None else cluster.host_rule_table),
        rp_filter=_rp_filter(conf.pod_rp_filter if conf.pod_rp_filter is not None else cluster.pod_rp_filter),
        tx_queue_len=conf.tx_queue_len if conf.tx_queue_len is not None else cluster.tx_queue_len,
    )


def _mode(mode: str, conf: CoordinatorConfig, ifname: str, *, field: str) -> bool:
    """Whether there is something to build."""
    if mode not in _MODES:
        raise InvalidConfig(f"{field}: {shown(mode)} is no coordinator mode", f"modes: {', '.join(_MODES)}")
    if mode in _OFF:
        return False
    if mode == "overlay":
        raise UnsupportedField(f'{field}: "overlay" is not supported yet', "supported: auto, underlay, disabled")
    first = conf.pod_default_cni_nic or _FIRST_NIC
    if ifname != first:
        raise UnsupportedField(
            f"{field}: {shown(mode)} is not supported for the additional interface {shown(ifname)} yet",
            f"the pod's first interface is {first}; for others leave the coordinator key out or set mode disabled",
        )
    return True


def _host_addresses(own: Iterable[str], node: NodeView) -> tuple[str, ...]:
    """The preferred sources first: the first of each family is the pod's way to everything that the node serves."""
    versions = {ip_address(one).version for one in own}
    named = [address for ifname, address in node.addresses if not _NOT_THE_NODES.match(ifname)]
    usable = [
        one
        for one in dict.fromkeys((*node.sources, *named))
        if one not in own and (at := ip_address(one)).version in versions and not at.is_link_local
    ]
    return tuple(one for one in usable if not ip_address(one).is_loopback)


def _hijacked(conf: CoordinatorConfig, cluster: Coordination) -> list[str]:
    """Destinations that the pod reaches through its node."""
    found: dict[str, None] = {}
    for field, mine, theirs in (
        ("overlayPodCIDR", conf.overlay_pod_cidr, cluster.overlay_pod_cidr),
        ("serviceCIDR", conf.service_cidr, cluster.service_cidr),
        ("hijackCIDR", conf.hijack_cidr, cluster.hijack_cidr),
    ):
        for text in mine or theirs:
            try:
                network = ip_network(text.strip(), strict=False)
            except ValueError as error:
                raise InvalidConfig(f"{field}: {shown(text)} is neither an address nor a CIDR", str(error)) from None
            found[str(network)] = None
    return list(found)


def _policy_routes(conf: CoordinatorConfig, cluster: Coordination, versions: set[int]) -> tuple[RoutePlan, ...]:
    routes = []
    for one in conf.policy_routes or cluster.policy_routes:
        try:
            destination, gateway = ip_network(one.dst, strict=False), ip_address(one.gw)
        except ValueError as error:
            raise InvalidConfig(f"policyRoutes: {shown(f'{one.dst} via {one.gw}')} is no route", str(error)) from None
        if destination.version != gateway.version:
            raise InvalidConfig(f"policyRoutes: {shown(f'{one.dst} via {one.gw}')} mixes two IP families")
        if destination.version in versions:
            routes.append(RoutePlan(destination=str(destination), gateway=str(gateway)))
    return tuple(routes)


def _link_address(text: str) -> str:
    if not text:
        return ""
    try:
        return f"{IPv4Address(text.removesuffix('/32'))}/32"
    except ValueError as error:
        raise InvalidConfig(f"vethLinkAddress: {shown(text)} is no IPv4 address", str(error)) from None


def _positive(field: str, mine: int | None, theirs: int) -> int:
    value = theirs if mine is None else mine
    if value <= 0:
        raise InvalidConfig(f"{field}: {value} is not above 0")
    return value


def _table(value: int) -> int:
    if value in _RESERVED_TABLES or not 0 < value < 1 << 32:
        raise InvalidConfig(f"hostRuleTable: {value} is no table of our own", "a number above 0, not 253 to 255")
    return value


def _rp_filter(value: int) -> int:
    if value > 2:
        raise InvalidConfig(f"podRPFilter: {value} is not 0, 1 or 2, or negative to leave it alone")
    return value


def _mac(container_id: str, end: str) -> str:
    """Unicast, locally administered, the same each time: a repeated ADD makes the same pair."""
    raw = bytearray(hashlib.sha256(f"{container_id}\0{end}".encode()).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


def _single(address: str) -> str:
    return f"{address}/{32 if ip_address(address).version == 4 else 128}"
