"""A pair of links, one end here and one in a container's namespace, made by one request."""

import errno
import struct

from msgspec import Struct

from cni.errors import InterfaceExists
from cni.netlink import link, message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Netns, Refusal, RouteSocket
from cni.plan import LinkState

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_INFO_KIND, _INFO_DATA, _PEER = 1, 2, 1
_UP = 1
_ALIAS_MAX = 254
_HEADER = struct.Struct("=BxHiII")


class End(Struct, frozen=True):
    """One end of a pair."""

    ifname: str
    mac: str
    """Given on both ends, so that no address policy of the node's init changes it later."""


def create(sockets: RouteSocket, near: End, far: End, *, mtu: int, netns: Netns) -> None:
    """Make the pair: `near` in the socket's namespace, up, and `far` in `netns`, down (no end can be up alone).

    Raises:
        InterfaceExists: one of the names is taken.
        KernelRefused: anything else.
    """
    body = create_body(near, far, mtu=mtu, descriptor=netns.descriptor)
    try:
        sockets.request(link.RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
    except Refusal as refusal:
        if refusal.number == errno.EEXIST:
            msg = f"{near.ifname} exists already on this node, or {far.ifname} in {netns.path}"
            raise InterfaceExists(msg, str(refusal)) from None
        raise refusal.explain(f"make veth {near.ifname} with {far.ifname} in {netns.path}") from None


def create_body(near: End, far: End, *, mtu: int, descriptor: int) -> bytes:
    """The body of the RTM_NEWLINK. `descriptor` is that of the namespace of `far`."""
    there = _HEADER.pack(0, 0, 0, 0, 0) + _end(far, mtu) + attribute(_IFLA_NET_NS_FD, u32(descriptor))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, nested(_PEER, there)))
    return _HEADER.pack(0, 0, 0, _UP, _UP) + _end(near, mtu) + info


def owner_alias(container_id: str) -> str:
    """What both ends of a container's pair carry as their alias."""
    return f"spiderpool {container_id}"[:_ALIAS_MAX]


def is_ours(found: LinkState, container_id: str) -> bool:
    """Whether a link is an end of that container's pair; a crash in the making, or the original, left it no alias."""
    return found.kind == "veth" and found.alias in {"", owner_alias(container_id)}


def _end(end: End, mtu: int) -> bytes:
    mac = bytes.fromhex(end.mac.replace(":", ""))
    return text(_IFLA_IFNAME, end.ifname) + attribute(_IFLA_ADDRESS, mac) + attribute(_IFLA_MTU, u32(mtu))
