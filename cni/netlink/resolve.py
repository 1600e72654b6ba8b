"""Having the kernel find out who has an address on a link.

It asks at once when a neighbour entry is made "to be used" (NTF_USE), by one ARP request or neighbour solicitation, and
tells by a notification who answered. No packet socket is needed, which would take 16 ms to close.
"""

import errno
import socket
import struct
from ipaddress import ip_address

from cni.netlink import message
from cni.netlink.message import attribute
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
_NDA_DST, _NDA_LLADDR = 1, 2
_HEARD = 0x02 | 0x04 | 0x08 | 0x10
"""NUD_REACHABLE, STALE, DELAY, PROBE."""
_CERTAIN = 0x02 | 0x40 | 0x80
"""NUD_REACHABLE, NOARP, PERMANENT."""
_USE = 1
_HEADER = struct.Struct("=BxxxiHBB")


def ask(link: LinkState, address: str) -> Request:
    """The request to find out who has an address, by one frame that leaves now. There must be no entry of it.

    An ARP request is sent from an address of the link that is in the same network, else from another of the namespace,
    else from 0.0.0.0; a neighbour solicitation from the link's link-local address, which must be there.
    """
    return Request(RTM_NEWNEIGH, message.F_CREATE, _body(link, address, _USE), f"resolve {address} on {link.ifname}")


def expect(link: LinkState, address: str) -> Request:
    """The request for an entry of an address that somebody else asks for: an answer goes into it. One may be there."""
    doing = f"expect {address} on {link.ifname}"
    return Request(RTM_NEWNEIGH, message.F_CREATE | message.F_EXCL, _body(link, address, 0), doing, (errno.EEXIST,))


def forget(link: LinkState, address: str) -> Request:
    """The request to remove the entry of an address; none is fine, and so is no link."""
    doing = f"forget {address} on {link.ifname}"
    return Request(RTM_DELNEIGH, 0, _body(link, address, 0), doing, (errno.ENOENT, errno.ENODEV, errno.ENXIO))


def known(sockets: RouteSocket, link: LinkState, address: str) -> str | None:
    """Who has an address, where the kernel heard from there just now or was told for good, and otherwise nothing.

    None where there is no entry at all.

    Raises:
        KernelRefused: it does not say.
    """
    try:
        body = memoryview(sockets.query(RTM_GETNEIGH, _body(link, address, 0)))
    except Refusal as refusal:
        if refusal.number == errno.ENOENT:
            return None
        raise refusal.explain(f"show neighbour {address} on {link.ifname}") from None
    state = _HEADER.unpack_from(body)[2]
    mac = message.attributes(body[_HEADER.size :]).get(_NDA_LLADDR)
    return bytes(mac).hex(":") if mac is not None and state & _CERTAIN else ""


def heard(body: memoryview, *, index: int) -> tuple[str, str] | None:
    """The address and the link-layer address of an RTM_NEWNEIGH on a link, where it says that somebody was heard."""
    _, at, state, _, _ = _HEADER.unpack_from(body)
    if at != index or not state & _HEARD:
        return None
    found = message.attributes(body[_HEADER.size :])
    packed, mac = found.get(_NDA_DST), found.get(_NDA_LLADDR)
    if packed is None or mac is None:
        return None
    return message.read_ip(packed), bytes(mac).hex(":")


def _body(link: LinkState, address: str, flags: int) -> bytes:
    at = ip_address(address)
    family = socket.AF_INET if at.version == 4 else socket.AF_INET6
    return _HEADER.pack(family, link.index, 0, flags, 0) + attribute(_NDA_DST, at.packed)
