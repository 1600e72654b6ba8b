"""What a link loses when it is set down, read and put back (`cni.belongings`)."""

import errno
import socket
import struct
from collections.abc import Sequence

from msgspec import Struct

from cni.belongings import AddressBack, HeldAddress, HeldRoute, RouteBack, addresses_back, routes_back
from cni.netlink import message, neighbour
from cni.netlink.address import RTM_GETADDR, RTM_NEWADDR
from cni.netlink.message import attribute, u32
from cni.netlink.route import RTM_GETROUTE, RTM_NEWROUTE
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS, _IFA_PROTO = 1, 2, 8, 11
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_TABLE, _RTA_VIA, _RTA_EXPIRES, _RTA_NH_ID = 9, 12, 15, 18, 23, 30
_NEXT_HOPS = frozenset({_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH})
_NOT_TO_BE_SAID = frozenset({_RTA_CACHEINFO, _RTA_NH_ID})
"""What is counted, and the number of a next hop that went with the link: the kernel lists what it was as well."""
_LOCAL = 255
"""The table that the kernel keeps by itself."""
_GIVEN = 0x2 | 0x4
"""Flags of a next hop that somebody gave (pervasive, onlink); the others say how it is."""
_F_APPEND = 0x800
_TICKS = 100
"""A second's, in which the kernel says how long a route still lives."""
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_HOP = struct.Struct("=HBBi")
_EXPIRES = struct.Struct("=8xi")
_NO_FAMILY = {errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT}


class Belongings(Struct, frozen=True):
    """What some links have."""

    links: tuple[LinkState, ...]
    addresses: tuple[HeldAddress, ...]
    routes: tuple[HeldRoute, ...]
    """All of the node."""
    neighbours: tuple[tuple[int, str, str], ...]
    """Link's index, address and MAC address of those that never age."""


def read(sockets: RouteSocket, links: Sequence[LinkState]) -> Belongings:
    """What the links have now.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        return Belongings(
            links=(*links,),
            addresses=tuple(held for one in links for held in _addresses(sockets, one.index)),
            routes=tuple(held for family in (socket.AF_INET, socket.AF_INET6) for held in _routes(sockets, family)),
            neighbours=tuple(
                (one.index, address, mac)
                for one in links
                for address, mac in neighbour.permanent(sockets, index=one.index).items()
            ),
        )
    except Refusal as refusal:
        raise refusal.explain(f"list what {', '.join(one.ifname for one in links)} has") from None


def requests(had: Belongings) -> list[Request]:
    """The requests that give the links, which are up again, what they had. What is there is fine, and so is no link."""
    names = {one.index: one for one in had.links}
    found = [
        request
        for one in addresses_back(had.addresses)
        for request in _address_requests(one, names[one.held.index].ifname)
    ]
    found += [_route_request(one) for one in routes_back(had.routes, frozenset(names))]
    return [*found, *(neighbour.put(names[index], address, mac) for index, address, mac in had.neighbours)]


def _address_requests(one: AddressBack, ifname: str) -> list[Request]:
    doing = f"give address {one.held.address} back to {ifname}"
    return [
        Request(
            RTM_NEWADDR,
            message.F_CREATE | (message.F_REPLACE if at else message.F_EXCL),
            one.held.body + attribute(_IFA_FLAGS, u32(flags)),
            doing,
            (errno.EEXIST, errno.ENODEV),
        )
        for at, flags in enumerate(one.flags)
    ]


def _route_request(one: RouteBack) -> Request:
    flags = message.F_CREATE | (_F_APPEND if one.last and one.held.version == 4 else 0)
    doing = f"put the route to {one.held.destination} in table {one.held.table} back"
    return Request(RTM_NEWROUTE, flags, one.held.body, doing, (errno.EEXIST, errno.ENODEV))


def _addresses(sockets: RouteSocket, index: int) -> list[HeldAddress]:
    try:
        found = sockets.dump(RTM_GETADDR, _ADDRESS.pack(socket.AF_INET6, 0, 0, 0, index), _decode_address)
    except Refusal as refusal:
        if refusal.number in _NO_FAMILY:
            return []
        raise
    return [one for one in found if one is not None and one.index == index]


def _decode_address(body: memoryview) -> HeldAddress | None:
    family, length, flags, _, index = _ADDRESS.unpack_from(body)
    if family != socket.AF_INET6:
        return None
    found = message.attributes(body[_ADDRESS.size :])
    address = message.read_ip(found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))
    return HeldAddress(
        index=index,
        address=f"{address}/{length}",
        flags=message.read_u32(found[_IFA_FLAGS]) if _IFA_FLAGS in found else flags,
        origin=found[_IFA_PROTO][0] if _IFA_PROTO in found else 0,
        body=bytes(body),
    )


def _routes(sockets: RouteSocket, family: int) -> list[HeldRoute]:
    try:
        found = sockets.dump(RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), decode_route)
    except Refusal as refusal:
        if refusal.number in _NO_FAMILY:
            return []
        raise
    return [one for one in found if one is not None]


def decode_route(body: memoryview) -> HeldRoute | None:
    """A route from the body of an RTM_NEWROUTE; None: the kernel keeps it by itself."""
    family, length, source_length, tos, short, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    found = message.attributes(body[_ROUTE.size :])
    table = message.read_u32(found.get(_RTA_TABLE)) or short
    if table == _LOCAL or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    indices = {message.read_u32(found[_RTA_OIF])} if _RTA_OIF in found else set()
    parts = [_ROUTE.pack(family, length, source_length, tos, short, protocol, scope, kind, flags & _GIVEN)]
    for number, value in found.items():
        if number == _RTA_MULTIPATH:
            hops, through = _hops(value)
            indices |= through
            parts.append(attribute(number, hops))
        elif number not in _NOT_TO_BE_SAID:
            parts.append(attribute(number, bytes(value)))
    left = _EXPIRES.unpack_from(found[_RTA_CACHEINFO])[0] if _RTA_CACHEINFO in found else 0
    if left > 0:
        parts.append(attribute(_RTA_EXPIRES, u32(-(-left // _TICKS))))
    return HeldRoute(
        indices=frozenset(indices),
        version=4 if family == socket.AF_INET else 6,
        destination=f"{message.read_ip(found[_RTA_DST])}/{length}" if _RTA_DST in found else "default",
        table=table,
        metric=message.read_u32(found.get(_RTA_PRIORITY)),
        tos=tos,
        protocol=protocol,
        via=not _NEXT_HOPS.isdisjoint(found),
        sourced=_RTA_PREFSRC in found,
        body=b"".join(parts),
    )


def _hops(value: memoryview) -> tuple[bytes, set[int]]:
    """Several next hops as they are to be said, and the links they go through."""
    said = bytearray(value)
    through: set[int] = set()
    begin = 0
    while begin + _HOP.size <= len(said):
        size, flags, weight, index = _HOP.unpack_from(said, begin)
        if size < _HOP.size:
            break
        _HOP.pack_into(said, begin, size, flags & _GIVEN, weight, index)
        through.add(index)
        begin += size + (-size % 4)
    return bytes(said), through
