"""Telling the segment where an address is now, so that nobody keeps a former holder's MAC address in a cache.

IPv4: the kernel sends a gratuitous ARP request per address when a link with arp_notify comes up
(`cni.netlink.link.announce_on_up`). It costs nothing; a packet socket of our own would take 16 ms to close, and until
then keep the container's namespace alive. Where the link was up before it had its addresses, the kernel is made to
resolve the address itself (`announce`): what it sends then is the very same frame.

IPv6: Linux 6.18 does the same for a link with ndisc_notify. That setting has no netlink message, and a read-only
/proc/sys keeps it off, so we send the unsolicited neighbour advertisement (RFC 4861, section 7.2.6) ourselves, from an
ICMPv6 socket in the namespace. Twice is harmless.
"""

import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Self

from cni.errors import KernelRefused
from cni.netlink import resolve
from cni.netlink.socket import RouteSocket
from cni.plan import LinkState

_ADVERTISEMENT = 136
_OVERRIDE = 0x20000000
_TARGET_LINK_ADDRESS = 2
_ALL_NODES = "ff02::1"
_HOPS = 255
"""What receivers insist on: it proves that no router passed the packet on."""


def announce(sockets: RouteSocket, link: LinkState, addresses: Iterable[str]) -> None:
    """Send a gratuitous ARP for each IPv4 address of a link that is up. With or without prefix length.

    The sender is the first address of a network on the link, so further ones of the same network are not announced.

    Raises:
        KernelRefused: it could not be sent.
    """
    four = [text for one in addresses if ":" not in (text := one.partition("/")[0])]
    if four:
        steps = (resolve.forget, resolve.ask, resolve.forget)
        sockets.pipeline([step(link, text) for text in four for step in steps])


class Advertiser:
    """An ICMPv6 socket. Close it, best with `with`."""

    def __init__(self) -> None:
        """It lives in the namespace that the calling thread is in now."""
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def advertise(self, link: LinkState, address: IPv6Address) -> None:
        """Send one advertisement from `address` out of `link`, which must be up.

        Raises:
            KernelRefused: it could not be sent.
        """
        source = struct.pack("=16sI", address.packed, link.index)
        control = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)]
        try:
            self._socket.sendmsg([advertisement(address, link.mac)], control, 0, (_ALL_NODES, 0, 0, link.index))
        except OSError as error:
            number = error.errno or 0
            raise KernelRefused(
                f"{address} could not be announced on {link.ifname}", str(error), errno=number
            ) from None


def advertisement(address: IPv6Address, mac: str) -> bytes:
    """The ICMPv6 message; its checksum is the kernel's business."""
    head = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE)
    return head + address.packed + bytes((_TARGET_LINK_ADDRESS, 1)) + bytes.fromhex(mac.replace(":", ""))
