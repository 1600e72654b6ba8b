"""Asking the segment who has an address before a link gets it, in both families at the same time.

The kernel asks: a neighbour entry that is to be used makes it send one frame at once, and a notification says who
answered (`cni.netlink.resolve`). No packet socket has to be opened and, for 16 ms, closed.

IPv4: as long as the namespace has no address the ARP request is sent from 0.0.0.0, which is the probe of RFC 5227: it
changes nobody's cache. Where another link has an address already (an interface that an overlay made), the kernel would
send from that one, and all who know it would look for it behind our link. Then the same frame goes out by a packet
socket, whose closing takes a part of the budget, and the kernel only receives.

An ipvlan link takes in frames for its own addresses only; an answer to nobody's address is for its parent, which has
the same MAC address. There the frame is sent and the answer heard. The parent's kernel may know the gateway already.

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
import select
import time
from contextlib import ExitStack
from ipaddress import IPv6Address

from cni import detection
from cni.detection import Findings, ProbePlan
from cni.errors import KernelRefused
from cni.netlink import address, link, local, resolve
from cni.netlink.asking import Asker, NoSuchLink
from cni.netlink.socket import Netns, Request
from cni.netlink.sysctl import prepare_ipv6
from telemetry import traces
from telemetry.attributes import NETLINK_STEP, NETWORK_INTERFACE_NAME

_READY_SECONDS = 0.2
"""The longest wait for a carrier, which a VF takes its time to get, and for the link-local address."""
_NODE = "/proc/thread-self/ns/net"


class Prober:
    """The probing of one interface: `begin_probes`, then `repeat_probes` as wanted, then in any case `end_probes`.

    Meanwhile `fileno` is readable when there is something to `hear`. All but these two block.
    """

    def __init__(self, plan: ProbePlan) -> None:
        """Nothing is done yet."""
        self._plan = plan
        self._answers: dict[str, str] = {}
        self._stack = ExitStack()
        self._here: Asker | None = None
        self._parent: Asker | None = None
        """Where IPv4 addresses are asked for instead, on behalf of an ipvlan link."""
        self._others: dict[str, str] = {}
        """Gateways that the parent's kernel has entries of, whatever for; they are left alone."""
        self._aloud = False
        """Whether they are asked for by frames of our own."""
        self._own: IPv6Address | None = None
        """The link-local address that the link has for the time being."""
        self._lowers = False
        self._skipped = ""
        self._ready = -1
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
        if self._skipped or self._here is None:
            return Findings(ifname=self._plan.ifname, skipped=self._skipped)
        seen = self._here.link
        return detection.findings(self._plan, self._answers, mac=seen.mac, carrier=seen.carrier)

    def fileno(self) -> int:
        """Readable when there is something to hear."""
        return self._ready

    def begin_probes(self) -> None:
        """Set the link up, where it is down, and ask for everything.

        Raises:
            InvalidNetns: the plan's `netns` is no network namespace.
            KernelRefused: the link does not come up, or the kernel does not ask.
        """
        four, six = _families(self.open_questions)
        with Netns.open(self._plan.netns) as netns:
            try:
                here = self._here = Asker(self._stack, netns, ifname=self._plan.ifname)
            except NoSuchLink:
                self._skipped = f"there is no interface {self._plan.ifname} yet"
                return
            if six:
                with netns.entered():
                    prepare_ipv6(self._plan.ifname)
            self._set_up(here, four=bool(four), six=bool(six))
            if not here.link.arp:
                # Known only now: an ipvlan link says so when it comes up.
                self._skipped = f"{self._plan.ifname} does not resolve addresses"
                return
            if four and here.link.kind == "ipvlan":
                self._parent = self._ask_parent(here, netns)
            if four:
                self._aloud = self._parent is not None or any(":" not in text for text in address.listed(here.sockets))
        ready = self._stack.enter_context(select.epoll())
        for asker in self._askers():
            ready.register(asker.fileno(), select.EPOLLIN)
        self._ready = ready.fileno()
        self._ask(here)

    def repeat_probes(self) -> None:
        """Ask once more for what is open. Raises as `begin_probes` does."""
        if self._here is not None:
            self._ask(self._here)

    def end_probes(self) -> None:
        """Take away what the probing needed. It does no harm where nothing was begun, or the link is gone.

        Raises:
            KernelRefused: something stays.
        """
        with self._stack:
            here = self._here
            if here is None:
                return
            self.hear()
            wanted = set(self._plan.addresses)
            kept = self._answers.keys() | self._others.keys()
            going = [one for one in self._asked() if one in wanted or one not in kept]
            four, six = _families(going)
            steps = []
            if self._own is not None:
                steps.append(address.removal(here.link, f"{self._own}/64"))
            if self._lowers:
                body, doing = link.set_down_body(here.link.index), f"set {here.link.ifname} down"
                steps.append(Request(link.RTM_SETLINK, 0, body, doing, (errno.ENODEV,)))
            with traces.span("netlink forget", attributes=self._attributes("delneigh")):
                (self._parent or here).forget(four)
                here.forget(six)
                if steps:
                    here.sockets.pipeline(steps)

    def hear(self) -> bool:
        """Take in what was said, without waiting; whether anything is open still."""
        for asker in self._askers():
            for one, mac in asker.heard():
                # The first counts: the kernel believes no other for a second.
                self._answers.setdefault(one, mac)
        return bool(self.open_questions)

    def _askers(self) -> list[Asker]:
        return [asker for asker in (self._here, self._parent) if asker is not None]

    def _asked(self) -> list[str]:
        return list(dict.fromkeys((*self._plan.addresses, *self._plan.gateways)))

    def _ask_parent(self, here: Asker, netns: Netns) -> Asker:
        """The parent's link; a gateway that its kernel knows for certain need not be asked for.

        Raises:
            KernelRefused: it is in a namespace that is neither the node's nor the link's.
        """
        index = here.link.parent_index
        try:
            if here.link.parent_netns is None:
                parent = Asker(self._stack, netns, index=index)
            else:
                with Netns.open(_NODE) as node:
                    parent = Asker(self._stack, node, index=index)
        except NoSuchLink:
            parent = None
        if parent is None or parent.link.mac != here.link.mac:
            raise KernelRefused(f"the parent of {here.link.ifname} is not on this node: nobody can be asked for there")
        for gateway in self._plan.gateways:
            mac = resolve.known(parent.sockets, parent.link, gateway) if ":" not in gateway else None
            if mac is not None:
                self._others[gateway] = mac
        self._answers |= {gateway: mac for gateway, mac in self._others.items() if mac}
        return parent

    def _set_up(self, here: Asker, *, four: bool, six: bool) -> None:
        self._lowers = self._plan.restore and not here.link.up
        steps = local.make_table() if four else []
        if six:
            self._own = _link_local()
            steps.append(address.request(here.link, f"{self._own}/64"))
        doing = f"set {here.link.ifname} up"
        steps.append(Request(link.RTM_SETLINK, 0, link.set_up_body(here.link.index), doing))
        with traces.span("netlink set link up", attributes=self._attributes("setlink")):
            here.sockets.pipeline(steps)
            here.look()
            if here.link.arp:
                self._wait_until_ready(here)

    def _wait_until_ready(self, here: Asker) -> None:
        """Wait for the carrier and for the link-local address to be reachable."""
        wanted = self._own
        until = time.monotonic() + _READY_SECONDS
        while (wanted is not None or not here.link.carrier) and (left := until - time.monotonic()) > 0:
            for kind, body in here.hear(seconds=left):
                if kind == local.RTM_NEWROUTE and wanted is not None and local.is_for(body, wanted):
                    wanted = None
            if not here.link.carrier:
                here.look()

    def _ask(self, here: Asker) -> None:
        four, six = _families(self.open_questions)
        with traces.span("netlink ask", attributes=self._attributes("newneigh")):
            by_kernel = six if self._aloud else [*four, *six]
            if by_kernel:
                here.by_kernel(by_kernel)
            self.asked_at = time.monotonic()
            if four and self._aloud:
                (self._parent or here).by_frames(four, keep=self._others)

    def _attributes(self, step: str) -> dict[str, str]:
        return {NETLINK_STEP: step, NETWORK_INTERFACE_NAME: self._plan.ifname}


def _families(addresses: tuple[str, ...] | list[str]) -> tuple[list[str], list[str]]:
    """Those of IPv4, and those of IPv6."""
    return [one for one in addresses if ":" not in one], [one for one in addresses if ":" in one]


def _link_local() -> IPv6Address:
    """Nobody else's: interfaces may share a MAC address, from which it is made otherwise."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + os.urandom(8))
