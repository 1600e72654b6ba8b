"""Neighbour entries: which MAC address an IP address has behind a link."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from cni.netlink import message
from cni.netlink.message import attribute
from cni.netlink.socket import Request
from cni.plan import LinkState

RTM_NEWNEIGH = 28
_NDA_DST, _NDA_LLADDR = 1, 2
_PERMANENT = 0x80
_HEADER = struct.Struct("=BxxxiHBB")


def put(link: LinkState, address: str, mac: str) -> Request:
    """The request for an entry that never ages, in place of any other of that address on the link."""
    return Request(
        RTM_NEWNEIGH,
        message.F_CREATE | message.F_REPLACE,
        put_body(ip_address(address), mac, index=link.index),
        f"add neighbour {address} {mac} to {link.ifname}",
    )


def put_body(address: IPv4Address | IPv6Address, mac: str, *, index: int) -> bytes:
    """The body of the RTM_NEWNEIGH."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    body = _HEADER.pack(family, index, _PERMANENT, 0, 0)
    return body + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))
