"""Routes of a link, in the main table or another."""

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cni.coordination import KERNEL, RoutePlan
from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 6, 7, 8
_RTA_MULTIPATH, _RTA_TABLE = 9, 15
MAIN = 254
_BOOT = 3
"""What `ip route add` and Go's netlink use, shown by `ip route` as nothing."""
_UNICAST = 1
_UNIVERSE, _LINK, _NOWHERE = 0, 253, 255
BY_ROUTER = 9
"""RTPROT_RA: a router has told of it."""
_BY_KERNEL = (KERNEL, BY_ROUTER)
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""No route, or one of type unreachable, prohibit or blackhole."""
_NOT_THERE = (errno.ESRCH, errno.ENOENT, errno.ENODEV, errno.EAFNOSUPPORT)
_MANY = 1000
"""Routes to one destination; as many as that nobody has."""
_LOCAL = 255
_ANY = {family: socket.inet_ntop(family, bytes(size)) for family, size in ((socket.AF_INET, 4), (socket.AF_INET6, 16))}
_ONLINK = 4
_HEADER = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")

type Network = IPv4Network | IPv6Network
type Address = IPv4Address | IPv6Address


def add(sockets: RouteSocket, link: LinkState, destination: Network, gateway: Address | None) -> None:
    """Add a route through the link; one that is there already is fine.

    Without NLM_F_EXCL, so a second IPv4 default route goes before the first, as the reference plugins have it.

    Raises:
        KernelRefused: the gateway is not reachable, or anything else.
    """
    try:
        sockets.request(RTM_NEWROUTE, message.F_CREATE, add_body(destination, gateway, index=link.index))
    except Refusal as refusal:
        if refusal.number != errno.EEXIST:
            via = f" via {gateway}" if gateway else ""
            raise refusal.explain(f"add route {destination}{via} to {link.ifname}") from None


def request(link: LinkState, plan: RoutePlan, *, replace: bool = False) -> Request:
    """The request for a route through the link.

    One that is there already stays, whatever link it goes through, or with `replace` makes room.
    """
    return Request(
        RTM_NEWROUTE,
        message.F_CREATE | (message.F_REPLACE if replace else message.F_EXCL),
        body(plan, index=link.index),
        f"add route {_words(plan)} to {link.ifname} in table {plan.table}",
        () if replace else (errno.EEXIST,),
    )


def restore(link: LinkState, plan: RoutePlan) -> Request:
    """The request to put a route back, before others to the same destination; what makes it impossible is fine."""
    return Request(
        RTM_NEWROUTE,
        message.F_CREATE,
        body(plan, index=link.index),
        f"put route {_words(plan)} back to {link.ifname}",
        (errno.EEXIST, errno.ENODEV, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL),
    )


def remove(link: LinkState, plan: RoutePlan) -> Request:
    """The request to remove the route through the link; one that is not there is fine."""
    return Request(
        RTM_DELROUTE,
        0,
        body(plan, index=link.index, to_remove=True),
        f"remove route {_words(plan)} of {link.ifname} from table {plan.table}",
        _NOT_THERE,
    )


def clear(sockets: RouteSocket, plan: RoutePlan) -> None:
    """Remove all routes to the destination from the table, whatever links they go through; each metric has its own.

    Raises:
        KernelRefused: one cannot be removed.
    """
    asked = body(RoutePlan(destination=plan.destination, table=plan.table), index=0, to_remove=True)
    for _ in range(_MANY):
        try:
            sockets.request(RTM_DELROUTE, 0, asked)
        except Refusal as refusal:
            if refusal.number in _NOT_THERE:
                return
            raise refusal.explain(f"remove route {plan.destination} from table {plan.table}") from None


def body(plan: RoutePlan, *, index: int, to_remove: bool = False) -> bytes:
    """The body of the RTM_NEWROUTE, or RTM_DELROUTE: there what is not said matches everything."""
    destination = ip_network(plan.destination)
    made = add_body(
        destination,
        ip_address(plan.gateway) if plan.gateway else None,
        index=index,
        table=plan.table,
        source=ip_address(plan.source) if plan.source and not to_remove else None,
        protocol=0 if to_remove else plan.protocol,
        scope=_NOWHERE if to_remove else None,
        flags=_ONLINK if plan.onlink and not to_remove else 0,
    )
    if plan.metric:
        made += attribute(_RTA_PRIORITY, u32(plan.metric))
    return made + attribute(_RTA_METRICS, plan.metrics) if plan.metrics and not to_remove else made


def add_body(
    destination: Network,
    gateway: Address | None,
    *,
    index: int,
    table: int = MAIN,
    source: Address | None = None,
    protocol: int = _BOOT,
    scope: int | None = None,
    flags: int = 0,
) -> bytes:
    """The body of the RTM_NEWROUTE. Without `scope` it is the usual one; index 0 names no link."""
    if scope is None:
        scope = _LINK if gateway is None and destination.version == 4 else _UNIVERSE
    kind = 0 if scope == _NOWHERE else _UNICAST
    made = _HEADER.pack(_family(destination), destination.prefixlen, 0, 0, _short(table), protocol, scope, kind, flags)
    if destination.prefixlen:
        made += attribute(_RTA_DST, destination.network_address.packed)
    if gateway is not None:
        made += attribute(_RTA_GATEWAY, gateway.packed)
    if index:
        made += attribute(_RTA_OIF, u32(index))
    if source is not None:
        made += attribute(_RTA_PREFSRC, source.packed)
    return made + _long(table)


def preferred_source(sockets: RouteSocket, destination: Address) -> str:
    """The address that the namespace would send from; empty when it has no way there.

    Raises:
        KernelRefused: the kernel does not say.
    """
    packed = destination.packed
    body = _HEADER.pack(_family(destination), 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, packed)
    try:
        answer = sockets.query(RTM_GETROUTE, body)
    except Refusal as refusal:
        if refusal.number in _NO_WAY:
            return ""
        raise refusal.explain(f"look up the route to {destination}") from None
    source = message.attributes(memoryview(answer)[12:]).get(_RTA_PREFSRC)
    return message.read_ip(source)


def of_link(sockets: RouteSocket, *, index: int) -> tuple[list[tuple[str, str]], list[str]]:
    """A link's routes in the main table, in two lists.

    (destination, next hop or "") of those that the kernel did not make itself, and the destinations of those that it
    made with the link's addresses.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found = [one for _, one in everything(sockets, index=index, table=MAIN)]
    made = [(one.destination, one.gateway) for one in found if one.protocol not in _BY_KERNEL]
    return made, [one.destination for one in found if one.protocol == KERNEL]


def everything(sockets: RouteSocket, *, index: int = 0, table: int = 0) -> list[tuple[int, RoutePlan]]:
    """(link's index, route) of all tables but local, or of one; of one link, or of all.

    Each next hop is a route of its own. Those to IPv6 link-local and multicast addresses are left out, as is what is
    no ordinary route (blackhole and the like).

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found: list[tuple[int, RoutePlan]] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = _HEADER.pack(family, 0, 0, 0, _short(table), 0, 0, 0, 0) + _long(table)
        if index:
            asked += attribute(_RTA_OIF, u32(index))
        try:
            for routes in sockets.dump(RTM_GETROUTE, asked, _decode_all):
                found += routes
        except Refusal as refusal:
            if refusal.number not in {errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                raise refusal.explain("list routes") from None
    return [one for one in found if not index or one[0] == index]


def default_device(sockets: RouteSocket) -> int:
    """The index of the link that the default route goes through, IPv4 asked first; 0 when there is none.

    Raises:
        KernelRefused: the kernel does not list routes.
    """
    found = everything(sockets, table=MAIN)
    return next((index for index, one in found if one.is_default and index), 0)


def _family(network: Network | Address) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6


def _short(table: int) -> int:
    """What fits into the header of a table's number."""
    return table if table < 256 else 0


def _long(table: int) -> bytes:
    return attribute(_RTA_TABLE, u32(table)) if table > 255 else b""


def _decode_all(body: memoryview) -> list[tuple[int, RoutePlan]]:
    family, length, _, _, short, protocol, _, kind, flags = _HEADER.unpack_from(body)
    if kind != _UNICAST or short == _LOCAL:
        return []
    found = message.attributes(body[12:])
    table = message.read_u32(found.get(_RTA_TABLE)) or short
    to = found.get(_RTA_DST)
    if family == socket.AF_INET6 and to is not None and (to[0] == 0xFF or (to[0] == 0xFE and to[1] & 0xC0 == 0x80)):
        return []  # multicast, link-local
    destination = f"{message.read_ip(to) or _ANY[family]}/{length}"
    source = message.read_ip(found.get(_RTA_PREFSRC))

    def route(gateway: memoryview | None, hop_flags: int) -> RoutePlan:
        return RoutePlan(
            destination=destination,
            gateway=message.read_ip(gateway),
            source=source,
            table=table,
            onlink=bool(hop_flags & _ONLINK),
            metric=message.read_u32(found.get(_RTA_PRIORITY)),
            protocol=protocol,
            metrics=bytes(found.get(_RTA_METRICS, b"")),
        )

    hops = found.get(_RTA_MULTIPATH)
    if hops is None:
        return [(message.read_u32(found.get(_RTA_OIF)), route(found.get(_RTA_GATEWAY), flags))]
    routes = []
    while len(hops) >= _HOP.size:
        size, hop_flags, _, index = _HOP.unpack_from(hops)
        if not _HOP.size <= size <= len(hops):
            break
        gateway = message.attributes(hops[_HOP.size : size]).get(_RTA_GATEWAY)
        routes.append((index, route(gateway, hop_flags)))
        hops = hops[size + (-size % 4) :]
    return routes


def _words(plan: RoutePlan) -> str:
    return f"{plan.destination} via {plan.gateway}" if plan.gateway else plan.destination
