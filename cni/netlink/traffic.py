"""Traffic control: token buckets on links, and the way of incoming packets through an ifb, where they can wait.

Messages of linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h. Only what is in the smallest kernels is
used: tbf, clsact, u32 (matchall came later) and mirred.
"""

import errno
import socket
import struct
from contextlib import ExitStack, suppress

from msgspec import Struct

from cni.bandwidth import Bucket, LimitPlan, buckets
from cni.errors import CniError, InterfaceExists, InvalidNetns, KernelRefused
from cni.netlink import link, message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Netns, Refusal, Request, RouteSocket, route_socket
from cni.plan import LinkState
from telemetry import traces
from telemetry.attributes import NETLINK_STEP, NETWORK_INTERFACE_NAME

IFB = "ifb"
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
ROOT, CLSACT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF2
"""Parents: of a link's own queue, of the hooks beside it, of the filters of what comes in."""

_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_AF_SPEC, _INFO_KIND = 3, 4, 18, 26, 1
_INET6_ADDR_GEN_MODE, _NO_ADDRESS = 8, 1
_LINK = struct.Struct("=BxHiII")
_TC = struct.Struct("=BxxxiIII")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_RATE = struct.Struct("=BBHhHI")
_TBF = struct.Struct("=12s12sIII")
_ETHERNET = 1
"""TC_LINKLAYER_ETHERNET: the kernel needs no table of transmission times."""
_U32_SEL, _U32_ACT = 5, 7
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
_TERMINAL = 1
_ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 1, 2, 2
_MIRRED = struct.Struct("=IIiiiiI")
_STOLEN, _EGRESS_REDIRECT = 4, 1
_CLSACT_HANDLE = 0xFFFF0000
_FILTER_HANDLE = 0x80000800
"""The first of the first table: made again it replaces the one that is there."""
_ALL_PROTOCOLS = socket.htons(3)
_PRIORITY = 1


class Queue(Struct, frozen=True):
    """What a link's packets wait in, as the kernel shows it."""

    kind: str
    rate: int = 0
    """Bytes a second, of a tbf."""
    limit: int = 0
    """Bytes, of a tbf."""

    def holds(self, bucket: Bucket) -> bool:
        """Whether it is that bucket."""
        return (self.kind, self.rate, self.limit) == ("tbf", bucket.rate, bucket.limit)


def limit(plan: LimitPlan) -> None:
    """See `cni.kernel.Kernel.limit`."""
    attributes = {NETLINK_STEP: "newqdisc", NETWORK_INTERFACE_NAME: plan.ifname}
    with ExitStack() as stack:
        pod = stack.enter_context(route_socket(stack.enter_context(Netns.open(plan.netns))))
        stack.enter_context(traces.span("netlink limit", attributes=attributes))
        nic = _need(pod, plan.ifname, plan.netns)
        between = _make_ifb(pod, plan, mtu=nic.mtu) if plan.ingress is not None else None
        try:
            requests = [
                set_bucket(nic if name == nic.ifname else _need(pod, name, plan.netns), bucket)
                for name, bucket in buckets(plan)
            ]
            if between is not None:
                requests += [*_set_up(between), add_hooks(nic), redirect(nic, between)]
            pod.pipeline(requests)
            if plan.ingress is not None and plan.host_veth:
                node = stack.enter_context(route_socket())
                node.pipeline([set_bucket(_need(node, plan.host_veth, "this node"), plan.ingress)])
        except BaseException:
            # What hangs on the NIC goes with it, this does not.
            if between is not None:
                with suppress(CniError):
                    link.delete(pod, between)
            raise


def lifted(plan: LimitPlan) -> list[str]:
    """See `cni.kernel.Kernel.lifted`."""
    with ExitStack() as stack:
        try:
            pod = stack.enter_context(route_socket(stack.enter_context(Netns.open(plan.netns))))
        except InvalidNetns as error:
            return [str(error)]
        found = [words for name, bucket in buckets(plan) if (words := _lacks(pod, name, bucket))]
        if plan.ingress is not None:
            nic, between = link.get(pod, plan.ifname), link.get(pod, plan.ifb)
            if between is not None and not between.up:
                found.append(f"{plan.ifb} is down")
            if nic is not None and between is not None and between.index not in redirected(pod, nic):
                found.append(f"what comes to {plan.ifname} does not go through {plan.ifb}")
            if plan.host_veth:
                node = stack.enter_context(route_socket())
                found += filter(None, [_lacks(node, plan.host_veth, plan.ingress)])
        return found


def find_ifb(sockets: RouteSocket, name: str) -> LinkState | None:
    """The ifb of that name, None when there is none."""
    found = link.get(sockets, name)
    return found if found is not None and found.kind == IFB else None


def queue(sockets: RouteSocket, at: LinkState) -> Queue | None:
    """What the link's packets wait in; None when the link is gone.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        return decode_queue(memoryview(sockets.query(RTM_GETQDISC, body(at.index, parent=ROOT), flags=message.F_ECHO)))
    except Refusal as refusal:
        if refusal.number == errno.ENODEV:
            return None
        if refusal.number == errno.ENOENT:
            return Queue("")
        raise refusal.explain(f"show the queue of {at.ifname}") from None


def redirected(sockets: RouteSocket, at: LinkState) -> frozenset[int]:
    """The links, by index, to which all that comes in is led.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        found = sockets.dump(RTM_GETTFILTER, body(at.index, parent=INGRESS), decode_redirect)
    except Refusal as refusal:
        if refusal.number in {errno.ENODEV, errno.EINVAL, errno.ENOENT}:
            return frozenset()
        raise refusal.explain(f"show the filters of {at.ifname}") from None
    return frozenset(found) - {0}


# -- requests


def set_bucket(at: LinkState, bucket: Bucket) -> Request:
    """The request for a bucket in place of whatever the link's packets wait in."""
    return Request(
        RTM_NEWQDISC,
        message.F_CREATE | message.F_REPLACE,
        body(at.index, parent=ROOT) + bucket_attributes(bucket),
        f"limit {at.ifname} to {bucket.rate * 8} bits a second",
    )


def add_hooks(at: LinkState) -> Request:
    """The request for the place where filters are; one that is there is fine."""
    return Request(
        RTM_NEWQDISC,
        message.F_CREATE | message.F_EXCL,
        body(at.index, parent=CLSACT, handle=_CLSACT_HANDLE) + text(_TCA_KIND, "clsact"),
        f"add clsact to {at.ifname}",
        (errno.EEXIST,),
    )


def redirect(at: LinkState, target: LinkState) -> Request:
    """The request for a filter that leads all that comes in to another link, which gives it back."""
    return Request(
        RTM_NEWTFILTER,
        message.F_CREATE | message.F_REPLACE,
        body(at.index, parent=INGRESS, handle=_FILTER_HANDLE, info=_PRIORITY << 16 | _ALL_PROTOCOLS)
        + redirect_attributes(target.index),
        f"lead what comes to {at.ifname} through {target.ifname}",
    )


# -- messages


def body(index: int, *, parent: int, handle: int = 0, info: int = 0) -> bytes:
    """The header of everything about queues and filters."""
    return _TC.pack(0, index, handle, parent, info)


def bucket_attributes(bucket: Bucket) -> bytes:
    """A tbf. The kernel computes times from rate and burst, more exactly than one could hand them over."""
    rate = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, 0xFFFFFFFF))
    options = attribute(_TBF_PARMS, _TBF.pack(rate, bytes(_RATE.size), bucket.limit, 0, 0))
    if bucket.rate > 0xFFFFFFFF:
        options += attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate))
    return text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options, attribute(_TBF_BURST, u32(bucket.burst)))


def redirect_attributes(target: int) -> bytes:
    """A u32 filter with one key that everything matches, and its action."""
    selector = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    mirred = attribute(_MIRRED_PARMS, _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target))
    action = nested(1, text(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, mirred))
    return text(_TCA_KIND, "u32") + nested(_TCA_OPTIONS, attribute(_U32_SEL, selector), nested(_U32_ACT, action))


def ifb_body(name: str, *, mtu: int) -> bytes:
    """The body of the RTM_NEWLINK for an ifb."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, IFB))
    return _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + attribute(_IFLA_MTU, u32(mtu)) + info


def silent_body(index: int) -> bytes:
    """The body of the RTM_SETLINK that keeps a link from getting the address that IPv6 gives to every link."""
    mode = attribute(_INET6_ADDR_GEN_MODE, bytes([_NO_ADDRESS]))
    return _LINK.pack(0, 0, index, 0, 0) + nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, mode))


def decode_queue(found: memoryview) -> Queue:
    """From the body of an RTM_NEWQDISC."""
    attributes = message.attributes(found[_TC.size :])
    kind = message.read_text(attributes.get(_TCA_KIND))
    options = message.attributes(attributes.get(_TCA_OPTIONS, memoryview(b"")))
    parameters = options.get(_TBF_PARMS, memoryview(b""))
    if kind != "tbf" or len(parameters) < _TBF.size:
        return Queue(kind)
    rate, _, most, _, _ = _TBF.unpack_from(parameters)
    wide = options.get(_TBF_RATE64)
    return Queue(kind, struct.unpack_from("=Q", wide)[0] if wide is not None else _RATE.unpack(rate)[-1], most)


def decode_redirect(found: memoryview) -> int:
    """The index of the link that a filter leads all packets to, from the body of an RTM_NEWTFILTER; 0 for none."""
    options = message.attributes(message.attributes(found[_TC.size :]).get(_TCA_OPTIONS, memoryview(b"")))
    selector = bytes(options.get(_U32_SEL, memoryview(b"")))
    actions = message.attributes(options.get(_U32_ACT, memoryview(b"")))
    action = message.attributes(actions.get(1, memoryview(b"")))
    parameters = message.attributes(action.get(_ACT_OPTIONS, memoryview(b""))).get(_MIRRED_PARMS, memoryview(b""))
    if message.read_text(action.get(_ACT_KIND)) != "mirred" or len(parameters) < _MIRRED.size:
        return 0
    _, _, verdict, _, _, how, target = _MIRRED.unpack_from(parameters)
    everything = len(selector) >= _SELECTOR.size + _KEY.size and not any(selector[_SELECTOR.size :][:4])
    return target if everything and (verdict, how) == (_STOLEN, _EGRESS_REDIRECT) else 0


def _make_ifb(pod: RouteSocket, plan: LimitPlan, *, mtu: int) -> LinkState:
    """The ifb of a NIC, down; one that an earlier try left is used."""
    try:
        pod.request(link.RTM_NEWLINK, message.F_CREATE | message.F_EXCL, ifb_body(plan.ifb, mtu=mtu))
    except Refusal as refusal:
        if refusal.number != errno.EEXIST:
            raise refusal.explain(f"make ifb {plan.ifb} in {plan.netns}") from None
        found = find_ifb(pod, plan.ifb)
        if found is None:
            msg = f"{plan.ifb} exists already in {plan.netns}"
            raise InterfaceExists(msg, f"what comes to {plan.ifname} would be limited by an ifb of that name") from None
        return found
    return _need(pod, plan.ifb, plan.netns)


def _set_up(between: LinkState) -> list[Request]:
    # In this order: in one request the link would be up first.
    no_ipv6 = (errno.EAFNOSUPPORT, errno.EINVAL)
    return [
        Request(link.RTM_SETLINK, 0, silent_body(between.index), f"set addrgenmode of {between.ifname}", no_ipv6),
        Request(link.RTM_SETLINK, 0, link.set_up_body(between.index), f"set {between.ifname} up"),
    ]


def _lacks(sockets: RouteSocket, name: str, bucket: Bucket) -> str:
    at = link.get(sockets, name)
    found = queue(sockets, at) if at is not None else None
    if found is None:
        return f"{name}, limited to {bucket.rate * 8} bits a second, is missing"
    return "" if found.holds(bucket) else f"{name} is not limited to {bucket.rate * 8} bits a second"


def _need(sockets: RouteSocket, ifname: str, where: str) -> LinkState:
    found = link.get(sockets, ifname)
    if found is None:
        raise KernelRefused(f"there is no interface {ifname} in {where}")
    return found
