"""Routes of a link, in the main table or another."""

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cni.coordination import RoutePlan
from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

RTM_NEWROUTE, RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_TABLE = 1, 4, 5, 7, 15
MAIN = 254
_BOOT = 3
"""What `ip route add` and Go's netlink use, shown by `ip route` as nothing."""
_UNICAST = 1
_UNIVERSE, _LINK = 0, 253
_BY_KERNEL = (2, 9)
"""RTPROT_KERNEL, RTPROT_RA."""
_NO_WAY = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}
"""No route, or one of type unreachable, prohibit or blackhole."""
_HEADER = struct.Struct("=BBBBBBBBI")

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
    destination = ip_network(plan.destination)
    gateway = ip_address(plan.gateway) if plan.gateway else None
    source = ip_address(plan.source) if plan.source else None
    via = f" via {gateway}" if gateway else ""
    return Request(
        RTM_NEWROUTE,
        message.F_CREATE | (message.F_REPLACE if replace else message.F_EXCL),
        add_body(destination, gateway, index=link.index, table=plan.table, source=source),
        f"add route {destination}{via} to {link.ifname} in table {plan.table}",
        () if replace else (errno.EEXIST,),
    )


def add_body(
    destination: Network, gateway: Address | None, *, index: int, table: int = MAIN, source: Address | None = None
) -> bytes:
    """The body of the RTM_NEWROUTE."""
    scope = _LINK if gateway is None and destination.version == 4 else _UNIVERSE
    body = _HEADER.pack(_family(destination), destination.prefixlen, 0, 0, _short(table), _BOOT, scope, _UNICAST, 0)
    if destination.prefixlen:
        body += attribute(_RTA_DST, destination.network_address.packed)
    if gateway is not None:
        body += attribute(_RTA_GATEWAY, gateway.packed)
    body += attribute(_RTA_OIF, u32(index))
    if source is not None:
        body += attribute(_RTA_PREFSRC, source.packed)
    return body + _long(table)


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
    return str(ip_address(bytes(source))) if source is not None else ""


def listed(sockets: RouteSocket, *, index: int, table: int = MAIN) -> list[tuple[str, str]]:
    """(destination, next hop or "") of the link's routes in a table that the kernel did not make itself.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found = [
        one for family in (socket.AF_INET, socket.AF_INET6) for one in _dump(sockets, family, index=index, table=table)
    ]
    return [(destination, gateway) for oif, destination, gateway in found if oif == index and destination]


def default_device(sockets: RouteSocket) -> int:
    """The index of the link that the default route goes through, IPv4 asked first; 0 when there is none.

    Raises:
        KernelRefused: the kernel does not list routes.
    """
    for family, default in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
        for oif, destination, _ in _dump(sockets, family, index=0, kept_by_kernel=True):
            if destination == default and oif:
                return oif
    return 0


def _dump(
    sockets: RouteSocket, family: int, *, index: int, table: int = MAIN, kept_by_kernel: bool = False
) -> list[tuple[int, str, str]]:
    body = _HEADER.pack(family, 0, 0, 0, _short(table), 0, 0, 0, 0) + _long(table)
    if index:
        body += attribute(_RTA_OIF, u32(index))
    try:
        found = sockets.dump(RTM_GETROUTE, body, _decode)
    except Refusal as refusal:
        if refusal.number in {errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
            return []  # the table does not exist yet, or the kernel has no IPv6
        raise refusal.explain("list routes") from None
    return [(oif, dst, gw) for oif, protocol, dst, gw in found if kept_by_kernel or protocol not in _BY_KERNEL]


def _family(network: Network | Address) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6


def _short(table: int) -> int:
    """What fits into the header of a table's number."""
    return table if table < 256 else 0


def _long(table: int) -> bytes:
    return attribute(_RTA_TABLE, u32(table)) if table > 255 else b""


def _decode(body: memoryview) -> tuple[int, int, str, str]:
    family, length, _, _, _, protocol, _, kind, _ = _HEADER.unpack_from(body)
    found = message.attributes(body[12:])
    destination = found.get(_RTA_DST)
    packed = bytes(destination) if destination is not None else bytes(4 if family == socket.AF_INET else 16)
    gateway = found.get(_RTA_GATEWAY)
    return (
        message.read_u32(found.get(_RTA_OIF)),
        protocol,
        f"{ip_address(packed)}/{length}" if kind == _UNICAST else "",
        str(ip_address(bytes(gateway))) if gateway is not None else "",
    )
