"""The node's kernel as the actors see it: a handful of asynchronous verbs, each idempotent or undone on failure."""

import time
from collections.abc import Callable, Sequence
from errno import errorcode
from functools import partial
from typing import Protocol, Self

import anyio

from cni.bandwidth import LimitPlan
from cni.coordination import CoordinationPlan, Pair, Survey
from cni.detection import Findings, ProbePlan
from cni.errors import KernelRefused
from cni.netlink import attachment, carriers, coordinator, differences, support, survey, traffic, vf
from cni.netlink.holders import Modes
from cni.netlink.parent import ensure_parent, parent_differences
from cni.netlink.probe import Prober
from cni.netlink.socket import requests_sent
from cni.netns_watch import NetnsWatch
from cni.parents import ParentPlan
from cni.plan import AddressPlan, Inspection, LinkPlan, LinkState
from cni.workers import Workers
from telemetry import attributes, metrics, traces


class Departures(Protocol):
    """Iterates over the paths of namespaces that went, as far as their folders are covered. To be closed."""

    def cover(self, path: str) -> None:
        """Watch the folder that holds the namespace at `path`, from now on."""
        ...

    def close(self) -> None:
        """Watch nothing any more."""
        ...

    def __aiter__(self) -> Self:
        """Itself."""
        ...

    async def __anext__(self) -> str:
        """Wait for the next one."""
        ...


class Kernel(Protocol):
    """Links in containers' namespaces. Every method opens the namespace anew and closes it before it returns."""

    async def attach_link(self, plan: LinkPlan) -> LinkState:
        """Make the link, down and without addresses. On failure nothing is left.

        Raises:
            InvalidNetns: `plan.netns` is no network namespace, or the node's own.
            InvalidConfig: the parent is missing, down, or smaller than the wanted MTU, or has ipvlan links of another
                mode.
            InterfaceExists: the namespace has an interface of that name, or the parent has the VLAN id.
            KernelRefused: anything else that the kernel said no to, in its own words.
        """
        ...

    async def parent_mac(self, plan: LinkPlan) -> str:
        """The MAC address of the interface that the plan names as its parent.

        Raises:
            InvalidConfig: as above.
            KernelRefused: the kernel does not say.
        """
        ...

    async def possible_parents(self) -> tuple[tuple[str, str], ...]:
        """Names and MAC addresses of the node's interfaces, those left out that lead into namespaces.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def configure(self, netns: str, ifname: str, plan: AddressPlan) -> None:
        """Addresses, up, routes, announcement, in this order. On failure the link keeps what it got: detach it.

        Raises:
            InvalidNetns: `netns` is no network namespace.
            KernelRefused: the link is missing, or an address or route was refused, in the kernel's own words.
        """
        ...

    async def direct(self, netns: str, ifname: str, gateways: Sequence[str]) -> None:
        """Have the main table's default routes by a link go to these next hops, and to no others.

        What a router has told of stays. On failure some of it may be done.

        Raises:
            InvalidNetns: `netns` is no network namespace.
            KernelRefused: the link is missing, or a route was refused, in the kernel's own words.
        """
        ...

    async def detach_link(
        self, netns: str, ifname: str, *, kind: str = "", mac: str = "", pair: Pair | None = None
    ) -> bool:
        """Remove the link with all that is on it, what `limit` made included; say whether there was one.

        A missing namespace or link is fine. With `kind` or `mac`, a link that differs in them is somebody else's: it
        stays, and the answer is False. With `pair`, the veth pair of `coordinate` goes too, and with it the routes and
        neighbours of both ends; one that is another container's, or no veth, stays.

        Raises:
            KernelRefused: it is there and cannot be removed.
        """
        ...

    async def inspect(self, netns: str, ifname: str) -> Inspection | None:
        """The link and what is configured on it; None when the namespace or the link is missing."""
        ...

    async def link_differences(self, plan: LinkPlan) -> list[str]:
        """What of a link, its addresses and MAC address left out, is not as planned, in words; empty when all is.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def parent_differences(self, plan: ParentPlan, who: str) -> list[str]:
        """What of the node's parents is not as planned, in words; empty when all is. Changes nothing.

        Raises:
            InvalidConfig: an interface is missing, or must not become a slave.
            InterfaceExists: the node has something else there, or a VLAN of that id; `who` wants the parent, the
                message names both.
            KernelRefused: the kernel does not say.
        """
        ...

    async def ensure_parent(self, plan: ParentPlan, who: str) -> None:
        """Have the parent on the node, up. What is there and as planned is left alone, what is unfinished is completed.

        On failure the node is as before. What is made carries `who` as its alias.

        Raises:
            InvalidConfig: as above.
            InterfaceExists: as above, or a pod has the VLAN id, or a link on what is to become a slave.
            KernelRefused: anything else, in the kernel's own words.
        """
        ...

    async def knows(self, kind: str) -> bool:
        """Whether links of this kind can be made here. Raises `IoFailure`."""
        ...

    async def netns_exists(self, netns: str) -> bool:
        """Whether the path is a network namespace now."""
        ...

    async def vanished(self, paths: Sequence[str]) -> frozenset[str]:
        """Those of the paths that are no network namespaces now. One look at many costs a few microseconds each."""
        ...

    async def carries(self, netns: str, ifname: str, addresses: Sequence[str] = ()) -> bool:
        """Whether the namespace still has the link; with `addresses`, whether any link in it carries one of them.

        Addresses are with or without prefix length.
        """
        ...

    async def paired(self, pair: Pair) -> bool:
        """Whether the node's end of a container's veth pair is there.

        It goes with the namespace of the other end: as long as it is there so is that one, whoever can see it.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def carried(self, addresses: Sequence[str]) -> frozenset[str]:
        """Those of the addresses that a link of this node carries, whichever namespace it is in.

        Addresses are with or without prefix length. A few milliseconds on a node with many processes.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    def departures(self) -> Departures:
        """A watch for namespaces that go.

        Raises:
            OSError: the kernel has none left.
        """
        ...

    async def probe(self, plan: ProbePlan) -> Findings:
        """Set the link up and ask the segment for addresses and gateways.

        It answers when all have answered, or at the end of the budget. The link stays up, and the kernel remembers the
        gateways that answered; nothing else is left, of a cancelled one neither.

        Raises:
            InvalidNetns: the plan's `netns` is no network namespace.
            KernelRefused: the link does not come up, or the kernel does not ask.
        """
        ...

    async def master_networks(self, netns: str, ifname: str) -> tuple[str, ...]:
        """The addresses, with prefix lengths, of the physical NIC behind an SR-IOV interface; none for any other.

        Raises:
            InvalidNetns: `netns` is no network namespace.
            KernelRefused: the interface is missing.
        """
        ...

    async def survey(self, netns: str) -> Survey:
        """What a plan for the way between a pod and its node depends on.

        Raises:
            InvalidNetns: `netns` is no network namespace, or the node's own.
            KernelRefused: the kernel does not say.
        """
        ...

    async def coordinate(self, plan: CoordinationPlan) -> None:
        """Connect a pod, whose NIC is configured, with its node. What an earlier try left is replaced.

        On failure nothing of the plan is left, and routes that it took away are back.

        Raises:
            InvalidNetns: `plan.netns` is no network namespace, or the node's own.
            InterfaceExists: somebody else's link has one of the names.
            KernelRefused: anything else, in the kernel's own words.
        """
        ...

    async def uncoordinate(self, plan: CoordinationPlan, *, pair: bool = True) -> None:
        """Undo `coordinate`: what is of this NIC alone, and what it shared with others that have gone.

        Default routes of other NICs that had made room come back. Without `pair`, the veth pair of a first NIC stays
        for `detach_link`, which removes it together with the NIC. What is gone already is fine, the namespace as well.

        Raises:
            KernelRefused: something is there and cannot be removed.
        """
        ...

    async def differences(self, plan: CoordinationPlan) -> list[str]:
        """What of the plan is not as it was built, in words; empty when all is.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def limit(self, plan: LimitPlan) -> None:
        """Hold back what a NIC, and its pair to the node, send and receive. A limit that is there is replaced.

        A virtual function's own rate (`LimitPlan.vf_rate`) is not set here. `detach_link` takes everything away. On
        failure nothing is left but what goes with the NIC.

        Raises:
            InvalidNetns: `plan.netns` is no network namespace.
            InterfaceExists: another link has the name of the NIC's ifb.
            KernelRefused: a link is missing, or anything else, in the kernel's own words.
        """
        ...

    async def lifted(self, plan: LimitPlan) -> list[str]:
        """What of the plan does not hold any more, in words; empty when all does.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...


_QUICK = 2
"""Threads for what the kernel does at once. It does it one after the other, under its rtnl lock, and each thread more
takes the interpreter from the loop: with eight a hundred ADDs at once took a fifth longer (two cores)."""
_SLOW = 8
"""Threads for what waits: removals for RCU grace periods, which they share, others for whatever they look through."""


class LinuxKernel:
    """The kernel of this machine. Implements `Kernel` on worker threads.

    A netlink request runs inside `sendmsg` under the kernel's rtnl lock and would hold up the loop for as long as
    anybody else has it. A caller that is cancelled is released when its request has ended.
    """

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self._quick = Workers("netlink", threads=_QUICK)
        self._slow = Workers("netlink-slow", threads=_SLOW)
        self._known: set[str] = set()
        """Kinds of links that the kernel has been found to know: it does not unlearn them."""
        self._modes = Modes()

    def __repr__(self) -> str:
        return f"<LinuxKernel {self._quick} {self._slow}>"

    async def attach_link(self, plan: LinkPlan) -> LinkState:
        """See `Kernel.attach_link`."""
        return await self._run(attachment.make_link, plan, self._modes)

    async def parent_mac(self, plan: LinkPlan) -> str:
        """See `Kernel.parent_mac`."""
        return await self._run(attachment.parent_mac, plan)

    async def possible_parents(self) -> tuple[tuple[str, str], ...]:
        """See `Kernel.possible_parents`."""
        return await self._run(attachment.possible_parents)

    async def configure(self, netns: str, ifname: str, plan: AddressPlan) -> None:
        """See `Kernel.configure`."""
        await self._run(attachment.configure_link, netns, ifname, plan)

    async def direct(self, netns: str, ifname: str, gateways: Sequence[str]) -> None:
        """See `Kernel.direct`."""
        await self._run(attachment.direct_link, netns, ifname, gateways)

    async def detach_link(
        self, netns: str, ifname: str, *, kind: str = "", mac: str = "", pair: Pair | None = None
    ) -> bool:
        """See `Kernel.detach_link`."""
        return await self._run_slow(partial(attachment.delete_link, netns, ifname, kind=kind, mac=mac, pair=pair))

    async def inspect(self, netns: str, ifname: str) -> Inspection | None:
        """See `Kernel.inspect`."""
        return await self._run(attachment.inspect_link, netns, ifname)

    async def link_differences(self, plan: LinkPlan) -> list[str]:
        """See `Kernel.link_differences`."""
        return await self._run(attachment.link_differences, plan)

    async def parent_differences(self, plan: ParentPlan, who: str) -> list[str]:
        """See `Kernel.parent_differences`."""
        return await self._run(parent_differences, plan, who)

    async def ensure_parent(self, plan: ParentPlan, who: str) -> None:
        """See `Kernel.ensure_parent`."""
        await self._run_slow(ensure_parent, plan, who)

    async def knows(self, kind: str) -> bool:
        """See `Kernel.knows`."""
        if kind not in self._known and await self._run(support.knows_link_kind, kind):
            self._known.add(kind)
        return kind in self._known

    async def netns_exists(self, netns: str) -> bool:
        """See `Kernel.netns_exists`."""
        return await self._run(attachment.is_netns, netns)

    async def vanished(self, paths: Sequence[str]) -> frozenset[str]:
        """See `Kernel.vanished`."""
        return await self._run(attachment.vanished, paths)

    async def carries(self, netns: str, ifname: str, addresses: Sequence[str] = ()) -> bool:
        """See `Kernel.carries`."""
        return await self._run(attachment.carries, netns, ifname, addresses)

    async def paired(self, pair: Pair) -> bool:
        """See `Kernel.paired`."""
        return await self._run(attachment.is_paired, pair)

    async def carried(self, addresses: Sequence[str]) -> frozenset[str]:
        """See `Kernel.carried`."""
        return await self._run_slow(carriers.carried, addresses)

    def departures(self) -> Departures:
        """See `Kernel.departures`."""
        return NetnsWatch()

    async def probe(self, plan: ProbePlan) -> Findings:
        """See `Kernel.probe`. No thread waits with it."""
        prober = Prober(plan)
        try:
            await self._run(prober.begin_probes)
            for number in range(plan.probes):
                if number:
                    await self._run(prober.repeat_probes)
                left = prober.asked_at + plan.budget / plan.probes - time.monotonic()
                with anyio.move_on_after(max(left, 0.0)):
                    while prober.hear():
                        await anyio.wait_readable(prober)
                if not prober.hear():
                    break
        finally:
            with anyio.CancelScope(shield=True):
                await self._run(prober.end_probes)
        return prober.findings

    async def master_networks(self, netns: str, ifname: str) -> tuple[str, ...]:
        """See `Kernel.master_networks`."""
        return await self._run(vf.master_networks, netns, ifname)

    async def survey(self, netns: str) -> Survey:
        """See `Kernel.survey`."""
        return await self._run(survey.survey, netns)

    async def coordinate(self, plan: CoordinationPlan) -> None:
        """See `Kernel.coordinate`."""
        await self._run(coordinator.coordinate, plan)

    async def uncoordinate(self, plan: CoordinationPlan, *, pair: bool = True) -> None:
        """See `Kernel.uncoordinate`."""
        await self._run_slow(partial(coordinator.uncoordinate, plan, pair=pair))

    async def differences(self, plan: CoordinationPlan) -> list[str]:
        """See `Kernel.differences`."""
        return await self._run(differences.differences, plan)

    async def limit(self, plan: LimitPlan) -> None:
        """See `Kernel.limit`."""
        await self._run(traffic.limit, plan)

    async def lifted(self, plan: LimitPlan) -> list[str]:
        """See `Kernel.lifted`."""
        return await self._run(traffic.lifted, plan)

    async def _run[*Args, T](self, function: Callable[[*Args], T], *args: *Args) -> T:
        return await timed(self._quick, function, *args)

    async def _run_slow[*Args, T](self, function: Callable[[*Args], T], *args: *Args) -> T:
        return await timed(self._slow, function, *args)


async def timed[*Args, T](workers: Workers, function: Callable[[*Args], T], *args: *Args) -> T:
    """Call a function that asks the kernel, on a thread; count its requests, how long it takes and what is refused."""
    step = getattr(function, "func", function).__name__
    begun = time.perf_counter()
    try:
        return await workers.run(_counted, step, function, *args)
    except KernelRefused as error:
        metrics.NETLINK_ERRORS.labels(step=step, errno=errorcode.get(error.errno, str(error.errno))).inc()
        raise
    finally:
        metrics.NETLINK_STEP_SECONDS.labels(step=step).observe(time.perf_counter() - begun)


def _counted[*Args, T](step: str, function: Callable[[*Args], T], *args: *Args) -> T:
    before = requests_sent()
    with traces.span(f"kernel {step}", attributes={attributes.NETLINK_STEP: step}) as span:
        try:
            return function(*args)
        finally:
            sent = requests_sent() - before
            span.set_attribute(attributes.NETLINK_REQUESTS, sent)
            metrics.NETLINK_REQUESTS.labels(step=step).inc(sent)
