"""What the kernel says of a pod and of its node, read before a plan is made."""

import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address

from msgspec.structs import replace

from cni.coordination import NodeLink, NodeView, PodLink, PodView, Survey
from cni.errors import InvalidNetns
from cni.netlink import address, link, message, route, rule
from cni.netlink.socket import Netns, Refusal, RouteSocket, route_socket
from telemetry import traces
from telemetry.attributes import NETLINK_STEP

_FLAGS = struct.Struct("=8xI")
_LOOPBACK = 0x8
_COUNTED = 0x1 | 0x2 | 0x1000
"""Up, broadcast, multicast."""
_IFLA_TXQLEN = 13
_PAIRED = ("veth", "netkit")
"""Kinds of links that have another end."""


def survey(netns_path: str) -> Survey:
    """See `cni.kernel.Kernel.survey`."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(netns_path))
        if netns.is_own:
            raise InvalidNetns(f"CNI_NETNS: {netns_path} is the node's own network namespace")
        with traces.span("netlink view pod", attributes={NETLINK_STEP: "getlink"}):
            pod = view_pod(stack.enter_context(route_socket(netns)))
        with traces.span("netlink view node", attributes={NETLINK_STEP: "getaddr"}):
            peers = [one.peer_index for one in pod.links if one.peer_index]
            node = view_node(stack.enter_context(route_socket()), pod.addresses, peers)
        return Survey(pod=pod, node=node)


def view_pod(sockets: RouteSocket) -> PodView:
    """The pod whose namespace the socket is in.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        links = sockets.dump(link.RTM_GETLINK, link.all_body(), _decode)
    except Refusal as refusal:
        raise refusal.explain("list links") from None
    held: dict[int, list[str]] = {}
    for index, text in address.by_link(sockets):
        held.setdefault(index, []).append(text)
    names = {one.index: one.ifname for one in links}
    return PodView(
        links=tuple(replace(one, addresses=tuple(held.get(one.index, ()))) for one in links),
        routes=tuple(
            replace(found, device=names[index]) for index, found in route.everything(sockets) if index in names
        ),
        rules=tuple(one.plan for one in rule.listed(sockets)),
    )


def view_node(sockets: RouteSocket, pod_addresses: Sequence[str], peers: Sequence[int]) -> NodeView:
    """The node whose namespace the socket is in. `peers` are indices of links.

    Raises:
        KernelRefused: the kernel does not say.
    """
    names: dict[int, str] = {}
    addresses = []
    for index, text in address.by_link(sockets):
        if index not in names:
            names[index] = _name(index)
        if names[index]:
            addresses.append((names[index], text.partition("/")[0]))
    sources = (route.preferred_source(sockets, ip_address(one)) for one in pod_addresses)
    found = (link.get_index(sockets, index) for index in peers)
    return NodeView(
        addresses=tuple(addresses),
        sources=tuple(filter(None, sources)),
        peers=tuple(
            NodeLink(ifname=one.ifname, index=one.index, mac=one.mac, peer_index=one.parent_index)
            for one in found
            if one is not None and one.kind in _PAIRED
        ),
    )


def _decode(body: memoryview) -> PodLink:
    state = link.decode(body)
    (flags,) = _FLAGS.unpack_from(body)
    queue = message.attributes(body[16:]).get(_IFLA_TXQLEN)
    return PodLink(
        ifname=state.ifname,
        index=state.index,
        kind=state.kind,
        mac=state.mac,
        mtu=state.mtu,
        up=state.up,
        loopback=bool(flags & _LOOPBACK),
        counted=flags & _COUNTED == _COUNTED,
        peer_index=state.parent_index if state.kind in _PAIRED else 0,
        tx_queue_len=message.read_u32(queue),
        rp_filter=state.rp_filter,
    )


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # gone in between
