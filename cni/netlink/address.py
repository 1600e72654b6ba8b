"""Addresses of a link.

IPv6 addresses are added without duplicate address detection (IFA_F_NODAD): the pool's ledger guarantees that nobody
else has them, and a tentative address could not be used for one to two seconds.
"""

import errno
import socket
import struct
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_NODAD = 2
_SCOPE_LINK = 253
_HEADER = struct.Struct("=BBBBI")


def add(sockets: RouteSocket, link: LinkState, address: str) -> None:
    """Give the link an address with its prefix length.

    Raises:
        KernelRefused: it has it already, or the kernel does not want it.
    """
    try:
        body = add_body(ip_interface(address), index=link.index)
        sockets.request(RTM_NEWADDR, message.F_CREATE | message.F_EXCL, body)
    except Refusal as refusal:
        raise refusal.explain(f"add address {address} to {link.ifname}") from None


def request(link: LinkState, address: str) -> Request:
    """The request for an address with its prefix length; one that is there already is fine."""
    body = add_body(ip_interface(address), index=link.index)
    doing = f"add address {address} to {link.ifname}"
    return Request(RTM_NEWADDR, message.F_CREATE | message.F_EXCL, body, doing, (errno.EEXIST,))


def removal(link: LinkState, address: str) -> Request:
    """The request to take an address away; one that is not there is fine, and so is no link."""
    body = add_body(ip_interface(address), index=link.index)
    doing = f"remove address {address} from {link.ifname}"
    return Request(RTM_DELADDR, 0, body, doing, (errno.EADDRNOTAVAIL, errno.ENODEV))


def add_body(interface: IPv4Interface | IPv6Interface, *, index: int) -> bytes:
    """The body of the RTM_NEWADDR."""
    packed = interface.ip.packed
    length = interface.network.prefixlen
    if isinstance(interface, IPv6Interface):
        header = _HEADER.pack(socket.AF_INET6, length, 0, 0, index)
        return header + attribute(_IFA_ADDRESS, packed) + attribute(_IFA_FLAGS, u32(_NODAD))
    body = _HEADER.pack(socket.AF_INET, length, 0, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    if length < 31:
        body += attribute(_IFA_BROADCAST, interface.network.broadcast_address.packed)
    return body


def listed(sockets: RouteSocket, *, index: int = 0) -> list[str]:
    """The addresses of one link, or with index 0 of the whole namespace; link-local ones left out.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    return [address for at, address in by_link(sockets, index=index) if index in (0, at)]


def by_link(sockets: RouteSocket, *, index: int = 0) -> list[tuple[int, str]]:
    """(index of the link, address with prefix length) of one link or the whole namespace; link-local ones left out.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    try:
        found = sockets.dump(RTM_GETADDR, _HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, index), _decode)
    except Refusal as refusal:
        raise refusal.explain("list addresses") from None
    return [one for one in found if one is not None]


def _decode(body: memoryview) -> tuple[int, str] | None:
    _, length, _, scope, index = _HEADER.unpack_from(body)
    if scope >= _SCOPE_LINK:
        return None  # of these a node has many: one for each end of somebody else's pairs
    found = message.attributes(body[8:])
    address = message.read_ip(found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS))
    return index, f"{address}/{length}" if address else ""
