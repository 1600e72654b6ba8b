"""Asking the segment who has an address before a link gets it, in both families at the same time.

The kernel asks: a neighbour entry that is to be used makes it send one frame at once, and a notification says who
answered (`cni.netlink.resolve`). No packet socket has to be opened and, for 16 ms, closed.

IPv4: as long as the namespace has no address the ARP request is sent from 0.0.0.0, which is the probe of RFC 5227: it
changes nobody's cache. Where another link has an address already (an interface that an overlay made), the kernel would
send from that one, and all who know it would look for it behind our link. Then the same frame goes out by a packet
socket, whose closing takes a part of the budget, and the kernel only receives.

IPv6: a solicitation needs a link-local address. The one that the kernel gives the link is of no use for one to two
seconds, so the link gets another one for the time of the probing. Its local route, without which no answer is
received, is made by a work queue of the kernel, and waited for: a fraction of a millisecond.

A namespace that never had an IPv4 address, not even on lo, has no local routing table either, and takes every address
for a broadcast address, which needs no resolving. A route to nowhere that comes and goes leaves a table behind.

What is left afterwards: the link is up, and the kernel knows the gateways that answered. Nobody sees more of it than
the segment does.
"""

import errno
import os
import socket
import struct
import time
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_address
from typing import Self

from cni import detection
from cni.detection import Findings, ProbePlan
from cni.errors import KernelRefused
from cni.netlink import address, link, local, message, resolve
from cni.netlink.socket import Netns, Request, RouteSocket
from cni.netlink.sysctl import prepare_ipv6
from cni.plan import LinkState
from telemetry import traces
from telemetry.attributes import NETLINK_STEP, NETWORK_INTERFACE_NAME

_READY_SECONDS = 0.2
"""The longest wait for a carrier, which a VF takes its time to get, and for the link-local address."""
_GROUPS = 1 << 0 | 1 << 2 | 1 << 10
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV6_ROUTE."""
_DATAGRAM = 1 << 16
_ETH_P_ARP = 0x0806
_ARP_REQUEST = bytes.fromhex("0001080006040001")
"""Ethernet, IPv4, their lengths, request."""


class Ear:
    """What the kernel says of links, neighbours and IPv6 routes of a namespace. Close it, best with `with`."""

    def __init__(self) -> None:
        """It lives in the namespace that the calling thread is in now."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, _GROUPS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """For whoever waits until there is something to hear."""
        return self._socket.fileno()

    def hear(self, *, seconds: float = 0.0) -> list[tuple[int, memoryview]]:
        """(type, body) of what was said since, after waiting for something for at most so many seconds."""
        self._socket.settimeout(seconds)
        try:
            datagram = self._socket.recv(_DATAGRAM)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return self.hear(seconds=seconds)  # something was lost, and what is asked again is said again
        return [(kind, body) for kind, _, _, body in message.messages(memoryview(datagram))]


class Prober:
    """The probing of one interface: `begin_probes`, then `repeat_probes` as wanted, then in any case `end_probes`.

    Meanwhile `fileno` is readable when there is something to `hear`. All but these two block.
    """

    def __init__(self, plan: ProbePlan) -> None:
        """Nothing is done yet."""
        self._plan = plan
        self._answers: dict[str, str] = {}
        self._stack = ExitStack()
        self._sockets: RouteSocket | None = None
        self._ear: Ear | None = None
        self._link = LinkState(ifname=plan.ifname, index=0)
        self._own: IPv6Address | None = None
        """The link-local address that the link has for the time being."""
        self._crowded = False
        """Whether the namespace has IPv4 addresses."""
        self._skipped = ""
        self._lowers = False
        self.asked_at = 0.0
        """When the last question left, by `time.monotonic`."""

    def __repr__(self) -> str:
        return f"<Prober {self._plan.ifname} {len(self._answers)} answers, {len(self.open_questions)} open>"

    @property
    def open_questions(self) -> tuple[str, ...]:
        """The addresses that nobody has answered for so far; none where nothing is asked."""
        return () if self._skipped else tuple(detection.open_questions(self._plan, self._answers))

    @property
    def findings(self) -> Findings:
        """What has come of it so far."""
        if self._skipped:
            return Findings(ifname=self._plan.ifname, skipped=self._skipped)
        return detection.findings(self._plan, self._answers, mac=self._link.mac, carrier=self._link.carrier)

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        assert self._ear is not None
        return self._ear.fileno()

    def begin_probes(self) -> None:
        """Set the link up, where it is down, and ask for everything.

        Raises:
            InvalidNetns: the plan's `netns` is no network namespace.
            KernelRefused: the link does not come up, or the kernel does not ask.
        """
        plan = self._plan
        questions = [ip_address(text) for text in self.open_questions]
        four = any(one.version == 4 for one in questions)
        six = any(one.version == 6 for one in questions)
        with Netns.open(plan.netns) as netns, netns.entered():
            sockets = self._sockets = self._stack.enter_context(RouteSocket())
            found = link.get(sockets, plan.ifname)
            if found is None:
                self._skipped = f"there is no interface {plan.ifname} yet"
            elif not found.arp:
                self._skipped = f"{plan.ifname} does not resolve addresses"
            if found is None or self._skipped:
                return
            self._link = found
            self._ear = self._stack.enter_context(Ear())
            if six:
                prepare_ipv6(plan.ifname)
        self._lowers = plan.restore and not found.up
        steps: list[Request] = []
        if four:
            self._crowded = any(":" not in text for text in address.listed(sockets))
            steps += local.make_table()
        if six:
            self._own = _link_local()
            steps.append(address.request(found, f"{self._own}/64"))
        steps.append(Request(link.RTM_SETLINK, 0, link.set_up_body(found.index), f"set {found.ifname} up"))
        with traces.span("netlink set link up", attributes=self._attributes("setlink")):
            sockets.pipeline(steps)
            self._wait_until_ready(sockets)
        self._ask(sockets)

    def repeat_probes(self) -> None:
        """Ask once more for what is open. Raises as `begin_probes` does."""
        if self._sockets is not None:
            self._ask(self._sockets)

    def end_probes(self) -> None:
        """Take away what the probing needed. It does no harm where nothing was begun, or the link is gone.

        Raises:
            KernelRefused: something stays.
        """
        with self._stack:
            if self._sockets is None or self._ear is None:
                return
            self.hear()
            kept = {one for one in self._plan.gateways if one in self._answers}
            asked = dict.fromkeys((*self._plan.addresses, *self._plan.gateways))
            steps = [resolve.forget(self._link, one) for one in asked if one not in kept]
            if self._own is not None:
                steps.append(address.removal(self._link, f"{self._own}/64"))
            if self._lowers:
                doing = f"set {self._link.ifname} down"
                steps.append(Request(link.RTM_SETLINK, 0, link.set_down_body(self._link.index), doing, (errno.ENODEV,)))
            with traces.span("netlink forget", attributes=self._attributes("delneigh")):
                self._sockets.pipeline(steps)

    def hear(self) -> bool:
        """Take in what was said, without waiting; whether anything is open still."""
        while self._ear is not None and (said := self._ear.hear()):
            for kind, body in said:
                if kind == resolve.RTM_NEWNEIGH:
                    somebody = resolve.heard(body, index=self._link.index)
                    if somebody is not None:
                        # The first counts: the kernel believes no other for a second.
                        self._answers.setdefault(*somebody)
        return bool(self.open_questions)

    def _wait_until_ready(self, sockets: RouteSocket) -> None:
        """Wait for the carrier and for the link-local address to be reachable."""
        assert self._ear is not None
        wanted = self._own
        until = time.monotonic() + _READY_SECONDS
        while True:
            if not self._link.carrier:
                self._link = link.get_index(sockets, self._link.index) or self._link
            left = until - time.monotonic()
            if (self._link.carrier and wanted is None) or left <= 0:
                return
            for kind, body in self._ear.hear(seconds=left):
                if kind == local.RTM_NEWROUTE and wanted is not None and local.is_for(body, wanted):
                    wanted = None

    def _ask(self, sockets: RouteSocket) -> None:
        questions = self.open_questions
        four = [one for one in questions if ":" not in one]
        direct = [one for one in questions if not (self._crowded and one in four)]
        steps = [resolve.forget(self._link, one) for one in questions]
        steps += [resolve.ask(self._link, one) for one in direct]
        steps += [resolve.expect(self._link, one) for one in questions if one not in direct]
        with traces.span("netlink ask", attributes=self._attributes("newneigh")):
            sockets.pipeline(steps)
            self.asked_at = time.monotonic()
            if len(direct) < len(questions):
                self._shout(four)

    def _attributes(self, step: str) -> dict[str, str]:
        return {NETLINK_STEP: step, NETWORK_INTERFACE_NAME: self._plan.ifname}

    def _shout(self, questions: list[str]) -> None:
        """ARP probes by a socket of our own."""
        with Netns.open(self._plan.netns) as netns:
            with netns.entered():
                sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            with sender:
                for one in questions:
                    try:
                        sender.sendto(arp_probe(self._link.mac, one), (self._link.ifname, _ETH_P_ARP))
                    except OSError as error:
                        words = f"{one} could not be asked for on {self._link.ifname}"
                        raise KernelRefused(words, str(error), errno=error.errno or 0) from None


def arp_probe(mac: str, wanted: str) -> bytes:
    """The frame: a request to all for an address, from nobody's address."""
    own = bytes.fromhex(mac.replace(":", ""))
    head = b"\xff" * 6 + own + struct.pack("!H", _ETH_P_ARP) + _ARP_REQUEST
    return head + own + bytes(4) + bytes(6) + ip_address(wanted).packed


def _link_local() -> IPv6Address:
    """Nobody else's: interfaces may share a MAC address, from which it is made otherwise."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + os.urandom(8))
