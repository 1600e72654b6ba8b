"""One link of one namespace on which addresses are asked for, and what its kernel hears of them."""

import errno
import socket
import struct
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import ip_address

from cni.errors import KernelRefused
from cni.netlink import link, message, resolve
from cni.netlink.socket import Netns, RouteSocket

_GROUPS = 1 << 0 | 1 << 2 | 1 << 10
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV6_ROUTE."""
_DATAGRAM = 1 << 16
_ETH_P_ARP = 0x0806
_ARP_REQUEST = bytes.fromhex("0001080006040001")
"""Ethernet, IPv4, their lengths, request."""


class NoSuchLink(Exception):
    """The link is not there."""


class Asker:
    """See the module. What it opens is closed by the stack that it is made with."""

    def __init__(self, stack: ExitStack, netns: Netns, *, ifname: str = "", index: int = 0) -> None:
        """The link is named by `ifname`, or by an `index`.

        Raises:
            InvalidNetns: the namespace cannot be entered.
            NoSuchLink: see there.
        """
        self._path = netns.path
        with netns.entered():
            self.sockets = stack.enter_context(RouteSocket())
            self._ear = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            )
        self._ear.bind((0, _GROUPS))
        found = link.get_index(self.sockets, index) if index else link.get(self.sockets, ifname)
        if found is None:
            raise NoSuchLink
        self.link = found

    def __repr__(self) -> str:
        return f"<Asker {self.link.ifname} in {self._path}>"

    def fileno(self) -> int:
        """For whoever waits until there is something to hear."""
        return self._ear.fileno()

    def look(self) -> None:
        """See how the link is now."""
        self.link = link.get_index(self.sockets, self.link.index) or self.link

    def by_kernel(self, questions: Sequence[str]) -> None:
        """Have the kernel ask for addresses, by one frame each that leaves now. Raises `KernelRefused`."""
        steps = (resolve.forget, resolve.ask)
        self.sockets.pipeline([step(self.link, one) for step in steps for one in questions])

    def by_frames(self, questions: Sequence[str], *, keep: Container[str] = ()) -> None:
        """Ask for IPv4 addresses from nobody's address, by a packet socket that is closed before this returns.

        Entries of addresses in `keep` may be there already, and somebody else's. Raises `InvalidNetns` and
        `KernelRefused`.
        """
        steps = [resolve.forget(self.link, one) for one in questions if one not in keep]
        self.sockets.pipeline([*steps, *(resolve.expect(self.link, one) for one in questions)])
        with Netns.open(self._path) as netns:
            with netns.entered():
                sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            with sender:
                for one in questions:
                    try:
                        sender.sendto(arp_probe(self.link.mac, one), (self.link.ifname, _ETH_P_ARP))
                    except OSError as error:
                        words = f"{one} could not be asked for on {self.link.ifname}"
                        raise KernelRefused(words, str(error), errno=error.errno or 0) from None

    def forget(self, addresses: Iterable[str]) -> None:
        """Remove their entries; it does no harm where the link is gone. Raises `KernelRefused`."""
        steps = [resolve.forget(self.link, one) for one in addresses]
        if steps:
            self.sockets.pipeline(steps)

    def hear(self, *, seconds: float = 0.0) -> list[tuple[int, memoryview]]:
        """(type, body) of what the kernel has said, after waiting for something for at most so many seconds."""
        self._ear.settimeout(seconds)
        try:
            datagram = self._ear.recv(_DATAGRAM)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return self.hear(seconds=seconds)  # something was lost; what is asked for again is said again
        return [(kind, body) for kind, _, _, body in message.messages(memoryview(datagram))]

    def heard(self) -> Iterator[tuple[str, str]]:
        """Addresses and who has them, as far as the kernel has said so since; does not wait."""
        while said := self.hear():
            for kind, body in said:
                somebody = resolve.heard(body, index=self.link.index) if kind == resolve.RTM_NEWNEIGH else None
                if somebody is not None:
                    yield somebody


def arp_probe(mac: str, wanted: str) -> bytes:
    """The frame: a request to all for an address, from nobody's address."""
    own = bytes.fromhex(mac.replace(":", ""))
    head = b"\xff" * 6 + own + struct.pack("!H", _ETH_P_ARP) + _ARP_REQUEST
    return head + own + bytes(4) + bytes(6) + ip_address(wanted).packed
