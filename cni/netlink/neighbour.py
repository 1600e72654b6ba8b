"""Neighbour entries: which MAC address an IP address has behind a link."""

import errno
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
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


def remove(index: int, address: str, *, where: str) -> Request:
    """The request to remove the entry of a link; one that is not there is fine. `where` is the link, for errors."""
    at = ip_address(address)
    body = _HEADER.pack(socket.AF_INET if at.version == 4 else socket.AF_INET6, index, 0, 0, 0)
    doing = f"remove neighbour {address} of {where}"
    fine = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EAFNOSUPPORT)
    return Request(RTM_DELNEIGH, 0, body + attribute(_NDA_DST, at.packed), doing, fine)


def permanent(sockets: RouteSocket, *, index: int) -> dict[str, str]:
    """The entries of a link that never age, as MAC address by address.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found: dict[str, str] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = _HEADER.pack(family, 0, 0, 0, 0) + attribute(_NDA_IFINDEX, u32(index))
        try:
            entries = sockets.dump(RTM_GETNEIGH, asked, _decode)
        except Refusal as refusal:
            if refusal.number in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                continue
            raise refusal.explain("list neighbours") from None
        found |= {address: mac for at, state, address, mac in entries if at == index and state & _PERMANENT}
    return found


def everywhere(sockets: RouteSocket, addresses: Sequence[str]) -> list[tuple[int, str]]:
    """(link's index, address) of each entry of these addresses, on whichever link, of whichever state.

    The kernel lists all entries there are: a node with a thousand pods has some thousands, half a microsecond each.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found: list[tuple[int, str]] = []
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        needles = [attribute(_NDA_DST, at.packed) for at in map(ip_address, addresses) if at.version == version]
        if not needles:
            continue
        try:
            entries = sockets.search(RTM_GETNEIGH, _HEADER.pack(family, 0, 0, 0, 0), needles, _decode)
        except Refusal as refusal:
            raise refusal.explain("list neighbours") from None
        found += [(index, address) for index, _, address, _ in entries if address in addresses]
    return found


def _decode(body: memoryview) -> tuple[int, int, str, str]:
    _, index, state, _, _ = _HEADER.unpack_from(body)
    found = message.attributes(body[12:])
    address, mac = found.get(_NDA_DST), found.get(_NDA_LLADDR)
    text = message.read_ip(address) if address is not None and len(address) in {4, 16} else ""
    return index, state, text, bytes(mac or b"").hex(":")
