"""Local routes: what of a namespace's addresses its kernel takes for its own."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from cni.netlink import message
from cni.netlink.message import attribute
from cni.netlink.socket import Request

RTM_NEWROUTE, RTM_DELROUTE = 24, 25
_RTA_DST = 1
_TABLE = 255
_BOOT = 3
_LOCAL, _THROW = 2, 9
_PASSED_OVER = IPv4Address("127.255.255.254")
_HEADER = struct.Struct("=BBBBBBBBI")


def make_table() -> list[Request]:
    """The requests that leave a namespace with a table of local IPv4 routes, which it has since its first address.

    By a route that says "look elsewhere", for an address that nobody looks for, which comes and goes.
    """
    body = _HEADER.pack(socket.AF_INET, 32, 0, 0, _TABLE, _BOOT, 0, _THROW, 0)
    body += attribute(_RTA_DST, _PASSED_OVER.packed)
    return [
        Request(RTM_NEWROUTE, message.F_CREATE | message.F_EXCL, body, "make the table of local routes"),
        Request(RTM_DELROUTE, 0, body, "empty the table of local routes"),
    ]


def is_for(body: memoryview, address: IPv4Address | IPv6Address) -> bool:
    """Whether an RTM_NEWROUTE says that packets to an address are for this namespace."""
    _, length, _, _, _, _, _, kind, _ = _HEADER.unpack_from(body)
    packed = message.attributes(body[_HEADER.size :]).get(_RTA_DST)
    return kind == _LOCAL and length == address.max_prefixlen and packed is not None and bytes(packed) == address.packed
