"""From the call, the cluster's settings and what the kernel says to the plan for one NIC."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from ipaddress import ip_address, ip_network

from msgspec import Struct

from api.wire import Coordination
from cni.config import NetConfig, shown
from cni.coordination.plan import (
    MAIN_TABLE,
    MARK,
    POD_VETH,
    REPLY_TABLE,
    CoordinationPlan,
    RoutePlan,
    RulePlan,
    host_veth,
    single,
)
from cni.coordination.policy import Policy, policy
from cni.coordination.settings import OFF, Settings, chosen_mode, first_nic, leaves_cidrs_to_cluster, settle
from cni.coordination.views import NodeLink, NodeView, PodLink, PodView, Survey
from cni.errors import InvalidConfig
from cni.protocol import Invocation, Role

_NOT_THE_NODES = re.compile(
    r"lo$|docker|cbr|dummy|virbr|lxcbr|veth|cali|flannel|kube-ipvs|cni|vx-submariner|cilium", re.ASCII
)
"""Links whose addresses are not addresses of the node that a pod would ask for."""
_IPV6_MTU = 1280
_IPV6_METRIC = 1024
"""That a route has which does not say another."""
_WITHOUT_MAC = ("ipvlan",)
"""Kinds of links whose MAC address is their parent's."""


class _Way(Struct, frozen=True, kw_only=True):
    """The way between pod and node that a NIC uses."""

    overlay: bool
    first: bool
    """Whether no NIC of the pod came before."""
    pod_end: str
    pod_mac: str
    host_end: NodeLink
    """With index 0 where it is to be made."""


def wanted(conf: NetConfig) -> bool:
    """Whether a configuration asks for it, as far as it alone can tell."""
    return conf.coordinator is not None and conf.coordinator.mode not in OFF


def needs_cluster(invocation: Invocation) -> bool:
    """Whether a main plugin's call cannot do without the cluster's CIDRs, as far as it alone can tell."""
    conf = invocation.conf.coordinator
    return (
        conf is not None and invocation.role is Role.MAIN and wanted(invocation.conf) and leaves_cidrs_to_cluster(conf)
    )


def pair_of(invocation: Invocation) -> str:
    """The node's end of the veth pair that a call may make; empty where it makes none."""
    conf = invocation.conf.coordinator
    if conf is None or conf.mode in (*OFF, "overlay"):
        return ""
    return host_veth(invocation.container_id) if invocation.ifname == first_nic(conf) else ""


def check(invocation: Invocation) -> None:
    """Refuse what no setting of the cluster and nothing in the pod can make right, before anything is asked for.

    Raises:
        InvalidConfig: a value cannot be.
    """
    conf = invocation.conf.coordinator
    if conf is None or not wanted(invocation.conf):
        return
    chosen = settle(conf, Coordination(), prefix=_prefix(invocation))
    if chosen.mode == "overlay" and invocation.ifname == chosen.first_nic:
        raise _no_overlay(chosen, invocation.ifname)
    if chosen.mac_prefix and invocation.link_kind in _WITHOUT_MAC:
        raise _no_mac(chosen, invocation.ifname, invocation.link_kind)


def coordination_plan(
    invocation: Invocation,
    cluster: Coordination,
    survey: Survey,
    *,
    ordinal: int | None = None,
    names: Sequence[str] = (),
    built: Iterable[CoordinationPlan] = (),
) -> CoordinationPlan | None:
    """What to build around the NIC of a call, which is configured already; None for nothing.

    A key of the plugin's configuration wins over the cluster's setting; lists are not merged.

    Args:
        invocation: its `conf.coordinator` has the plugin's keys.
        cluster: the settings that hold where the plugin's keys say nothing.
        survey: of the pod, and of its node.
        ordinal: of the NIC among the pod's, the first being 0. None: it is the last one that is there.
        names: of all NICs that the pod will have; empty where that is not known.
        built: of the pod's other NICs, as far as they are known. What one of them brought for all may not be what the
            settings of today would bring.

    Raises:
        InvalidConfig: a value cannot be, or cannot be in this pod.
        TryAgainLater: the cluster does not know its CIDRs, and the configuration does not say them.
    """
    conf = invocation.conf.coordinator
    if conf is None or chosen_mode(conf, cluster, prefix=_prefix(invocation))[0] in OFF:
        return None
    chosen = settle(conf, cluster, prefix=_prefix(invocation))
    pod, ifname = survey.pod, invocation.ifname
    nic = pod.link(ifname)
    if nic is None or not nic.addresses:
        what = f"has no interface {shown(ifname)}" if nic is None else f"has no address on {shown(ifname)}"
        raise InvalidConfig(f"CNI_IFNAME: {invocation.netns} {what}", "the coordinator comes when it is configured")
    way = _way(chosen, invocation.container_id, nic, survey)
    end = pod.link(way.pod_end)
    mtu = end.mtu if way.host_end.index and end is not None else chosen.mtu
    if nic.hosts(6) and mtu < _IPV6_MTU:
        field = f"MTU of {way.pod_end}, the pod's way to its node" if way.overlay else "vethMTU"
        raise InvalidConfig(
            f"{field}: {mtu} is below {_IPV6_MTU}, which IPv6 needs", f"{ifname} has {', '.join(nic.hosts(6))}"
        )
    table = _table(pod, nic, chosen.first_nic, ordinal) if way.overlay or not way.first else 0
    routes = _Routes(chosen, nic, pod, way, hosts=_host_addresses(nic, pod, survey.node), table=table, built=built)
    policies: list[Policy] = []
    if table and chosen.tune:
        _check_default_nic(chosen, pod, names)
        policies = [
            policy(
                version,
                nic,
                pod,
                table=table,
                wanted=chosen.default_nic,
                overlay=way.overlay,
                end=way.pod_end,
                first=version in routes.fresh,
                planned=routes.planned,
            )
            for version in sorted({6 if ":" in one else 4 for one in nic.hosts()})
        ]
    separate = {rule.version for one in policies if one.own_table for rule in one.rules}
    mac = _mac(chosen, nic)
    chained = invocation.role is Role.COORDINATOR
    return CoordinationPlan(
        netns=invocation.netns,
        ifname=ifname,
        container_id=invocation.container_id,
        overlay=way.overlay,
        first=way.first,
        pod_end=way.pod_end,
        host_veth=way.host_end.ifname,
        host_index=way.host_end.index,
        pod_mac=way.pod_mac,
        host_mac=way.host_end.mac,
        mtu=0 if way.host_end.index else chosen.mtu,
        link_address=chosen.link_address if not way.host_end.index and nic.hosts(4) else "",
        pod_addresses=nic.hosts(),
        host_addresses=routes.hosts,
        known_hosts=routes.known_hosts,
        table=table,
        routes=_ordered(
            (
                *routes.planned,
                *routes.in_table,
                *(route for one in policies for route in one.copies),
                *routes.replies,
                *routes.chosen(separate),
            ),
            taken=routes.taken,
        ),
        withdrawn=tuple(route for one in policies for route in one.withdrawn),
        rules=tuple(rule for one in policies for rule in one.rules),
        marked=routes.marked,
        common_routes=routes.common,
        common_rules=routes.common_rules,
        host_table=chosen.host_table,
        rp_filter=chosen.rp_filter,
        tx_queue_len=chosen.tx_queue_len,
        former_tx_queue_len=nic.tx_queue_len if chained and chosen.tx_queue_len else 0,
        mac=mac,
        former_mac=nic.mac if chained and mac not in {"", nic.mac} else "",
        notes=tuple(one.note for one in policies if one.note),
    )


class _Routes:
    """The routes that have to do with the node."""

    def __init__(
        self,
        chosen: Settings,
        nic: PodLink,
        pod: PodView,
        way: _Way,
        *,
        hosts: tuple[str, ...],
        table: int,
        built: Iterable[CoordinationPlan],
    ) -> None:
        self.hosts = hosts
        self._chosen = chosen
        self._nic = nic
        self._way = way
        self._table = table
        self._source = next(iter((pod.link(chosen.first_nic) or nic).hosts(4)), "")
        self._gateways: dict[int, str] = {}
        for one in hosts:
            self._gateways.setdefault(ip_address(one).version, one)
        on_end = {one.destination for one in pod.routes if one.device == way.pod_end and one.table == MAIN_TABLE}
        self.known_hosts = () if way.first else tuple(one for one in hosts if single(one) in on_end)
        known = {ip_address(one).version for one in self.known_hosts}
        self.fresh = frozenset(self._gateways) - known
        """IP versions that no NIC before this one had: the main table's routes go with this one."""
        marks = {one.version for one in pod.rules if one.mark == MARK and one.table == REPLY_TABLE}
        self.marked: tuple[int, ...] = ()
        if not way.overlay:
            self.marked = tuple(version for version in sorted(self._gateways) if way.first or version not in marks)
        first = pod.link(chosen.first_nic)
        with_pair = set() if way.overlay or first is None else {ip_address(one).version for one in first.hosts()}
        self._lent = known - with_pair
        """IP versions that an earlier NIC brought which may go before this one."""
        self._pod = pod
        self._built = {_identity(one) for plan in built for one in plan.shared_routes}
        self._first_hosts = frozenset(() if first is None else map(single, first.hosts()))

    @property
    def planned(self) -> tuple[RoutePlan, ...]:
        """Of the main table."""
        return tuple(
            one for one in (*self._to_hosts(MAIN_TABLE), *self._hijacks(MAIN_TABLE)) if one.version in self.fresh
        )

    @property
    def in_table(self) -> tuple[RoutePlan, ...]:
        """Of the NIC's own table."""
        if not self._table:
            return ()
        hijacks = self._hijacks(self._table) if self._chosen.hijack_in_policy_tables else []
        return (*self._to_hosts(self._table), *(one for one in hijacks if one.version not in self.fresh))

    @property
    def replies(self) -> tuple[RoutePlan, ...]:
        """Where marked packets go."""
        everything = {4: "0.0.0.0/0", 6: "::/0"}
        return tuple(self._route(everything[one], self._gateways[one], REPLY_TABLE) for one in self.marked)

    @property
    def common(self) -> tuple[RoutePlan, ...]:
        """Of an earlier NIC, for this one as well. The overlay's own way to its next hop is the overlay's."""
        main = [one for one in self._pod.routes if one.table == MAIN_TABLE and one.device == self._way.pod_end]
        hops = {single(one.gateway) for one in main if one.is_default}
        to_hosts = {(one.destination, one.source) for one in self._to_hosts(MAIN_TABLE)}
        hijacks = {(one.destination, one.source) for one in self._hijacks(MAIN_TABLE)}
        found = [one for one in self._pod.routes if one.table == REPLY_TABLE and one.is_default]
        for one in main:  # by whichever of the node's addresses it was first for that NIC
            key = (one.destination, one.source)
            today = key in hijacks if one.gateway in self.hosts else key in to_hosts and one.destination not in hops
            if today or _identity(one) in self._built:
                found.append(one)
        return tuple(one for one in found if one.version in self._lent)

    @property
    def common_rules(self) -> tuple[RulePlan, ...]:
        """The same of rules."""
        return tuple(
            one
            for one in self._pod.rules
            if one.version in self._lent
            and one.table == REPLY_TABLE
            and (one.mark == MARK or one.source in self._first_hosts)
        )

    @property
    def taken(self) -> frozenset[str]:
        """Destinations that the main table has a route to, which stays: there is one for each metric."""
        usual = {4: (0,), 6: (0, _IPV6_METRIC)}
        made = POD_VETH if not self._way.host_end.index else ""
        return frozenset(
            one.destination
            for one in self._pod.routes
            if one.table == MAIN_TABLE and one.metric in usual[one.version] and one.device != made
        )

    def chosen(self, separate: Iterable[int]) -> tuple[RoutePlan, ...]:
        """The user's own: in the NIC's table where packets from its address are looked up there, else in main."""
        apart, versions = set(separate), {ip_address(one).version for one in self._nic.hosts()}
        return tuple(
            RoutePlan(
                destination=destination,
                gateway=gateway,
                table=self._table if version in apart else MAIN_TABLE,
                device=self._nic.ifname,
            )
            for destination, gateway in self._chosen.policy_routes
            if (version := ip_network(destination).version) in versions
        )

    def _to_hosts(self, table: int) -> list[RoutePlan]:
        return [self._route(single(one), "", table) for one in self.hosts]

    def _hijacks(self, table: int) -> list[RoutePlan]:
        found = ((one, self._gateways.get(ip_network(one).version)) for one in self._chosen.hijacked)
        return [self._route(network, gateway, table) for network, gateway in found if gateway is not None]

    def _route(self, destination: str, gateway: str, table: int) -> RoutePlan:
        source = "" if ":" in destination else self._source
        return RoutePlan(destination=destination, gateway=gateway, source=source, table=table, device=self._way.pod_end)


def _way(chosen: Settings, container_id: str, nic: PodLink, survey: Survey) -> _Way:
    """Which way it is, by the mode, the NIC and what is in the pod."""
    pod = survey.pod
    paired = pod.link(POD_VETH) is not None
    is_first = nic.ifname == chosen.first_nic
    if chosen.mode != "overlay" and is_first:
        made = NodeLink(ifname=host_veth(container_id), index=0, mac=_end_mac(container_id, "node"))
        return _Way(overlay=False, first=True, pod_end=POD_VETH, pod_mac=_end_mac(container_id, "pod"), host_end=made)
    if chosen.mode != "overlay" and paired:
        return _found(chosen, POD_VETH, survey, overlay=False, first=False)
    if chosen.mode == "underlay":
        raise InvalidConfig(
            f'{chosen.mode_field}: "underlay" is not possible for {nic.ifname}: the pod has no {POD_VETH}',
            f"{chosen.first_nic} has to go through the coordinator before it",
        )
    if is_first:
        raise _no_overlay(chosen, nic.ifname)
    if paired:
        raise InvalidConfig(
            f'{chosen.mode_field}: "overlay" is not possible for {nic.ifname}: the pod has a {POD_VETH}',
            f"its interface {chosen.first_nic} is an underlay's",
        )
    tables = {one.table for one in pod.routes if one.device == chosen.first_nic}
    return _found(chosen, chosen.first_nic, survey, overlay=True, first=not tables - {MAIN_TABLE, REPLY_TABLE})


def _found(chosen: Settings, pod_end: str, survey: Survey, *, overlay: bool, first: bool) -> _Way:
    """A way that is there already."""
    end = survey.pod.link(pod_end)
    if end is None:
        have = ", ".join(one.ifname for one in survey.pod.nics)
        raise InvalidConfig(
            f"{chosen.mode_field}: {shown(chosen.mode)} needs the pod's first interface {pod_end}, and there is none",
            f"the pod has {have}; podDefaultCniNic names the first one",
        )
    for peer in survey.node.peers:
        if (peer.index, peer.peer_index) == (end.peer_index, end.index):
            return _Way(overlay=overlay, first=first, pod_end=pod_end, pod_mac=end.mac, host_end=peer)
    raise InvalidConfig(
        f"{chosen.mode_field}: {shown(chosen.mode)} needs a way to the node behind the pod's interface {pod_end}",
        f"it is a {end.kind or 'physical'} link, and no link of this node is its other end",
    )


def _table(pod: PodView, nic: PodLink, first: str, ordinal: int | None) -> int:
    """The number of the NIC's own table, one that nobody has."""
    if ordinal is None:
        counted = [one for one in pod.nics if one.counted or one.ifname == nic.ifname]
        ordinal = len([one for one in counted if one.ifname != first])
    table = REPLY_TABLE + max(ordinal, 1)
    while table in pod.tables or MAIN_TABLE - 1 <= table <= MAIN_TABLE + 1:
        table += 1
    return table


def _host_addresses(nic: PodLink, pod: PodView, node: NodeView) -> tuple[str, ...]:
    """The preferred sources first: the first of each family is the pod's way to everything that the node serves."""
    versions = {ip_address(one).version for one in nic.hosts()}
    named = [address for ifname, address in node.addresses if not _NOT_THE_NODES.match(ifname)]
    usable = [
        one
        for one in dict.fromkeys((*node.sources, *named))
        if one not in pod.addresses and (at := ip_address(one)).version in versions and not at.is_link_local
    ]
    return tuple(one for one in usable if not ip_address(one).is_loopback)


def _check_default_nic(chosen: Settings, pod: PodView, names: Sequence[str]) -> None:
    have = dict.fromkeys((*names, *(one.ifname for one in pod.nics)))
    if chosen.default_nic and chosen.default_nic not in have:
        msg = f"{chosen.default_nic_field}: the pod has no interface {shown(chosen.default_nic)}"
        raise InvalidConfig(msg, f"it has {', '.join(have)}")


def _ordered(routes: Iterable[RoutePlan], *, taken: Collection[str]) -> tuple[RoutePlan, ...]:
    """Those that are their own next hop first, and of each table one to a destination: the kernel takes no second.

    What is `taken` in the main table is somebody else's, who also keeps it when this is undone.
    """
    once: dict[tuple[int, str], RoutePlan] = {}
    for one in sorted(routes, key=lambda one: bool(one.gateway)):
        if one.table != MAIN_TABLE or one.destination not in taken:
            once.setdefault((one.table, one.destination), one)
    return tuple(once.values())


def _identity(one: RoutePlan) -> tuple[str, str, str]:
    """What tells a route from others of its table and link."""
    return one.destination, one.gateway, one.source


def _mac(chosen: Settings, nic: PodLink) -> str:
    """The MAC address that an address makes."""
    if not chosen.mac_prefix:
        return ""
    if nic.kind in _WITHOUT_MAC:
        raise _no_mac(chosen, nic.ifname, nic.kind)
    address = ip_address(next(iter((*nic.hosts(4), *nic.hosts(6)))))
    return f"{chosen.mac_prefix}:{address.packed[-4:].hex(':')}"


def _no_mac(chosen: Settings, ifname: str, kind: str) -> InvalidConfig:
    return InvalidConfig(
        f"podMACPrefix: {shown(chosen.mac_prefix)} is not possible on {ifname}",
        f"it is an {kind} link, which has its parent's MAC address",
    )


def _no_overlay(chosen: Settings, ifname: str) -> InvalidConfig:
    return InvalidConfig(
        f'{chosen.mode_field}: "overlay" is not possible for {ifname}, the pod\'s first interface',
        "there it is the cluster's own network that makes the first interface; podDefaultCniNic names it",
    )


def _prefix(invocation: Invocation) -> str:
    return "" if invocation.role is Role.COORDINATOR else "coordinator."


def _end_mac(container_id: str, end: str) -> str:
    """Unicast, locally administered, the same each time: a repeated ADD makes the same pair."""
    raw = bytearray(hashlib.sha256(f"{container_id}\0{end}".encode()).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")
