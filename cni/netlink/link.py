"""Links: made in the container's namespace by one request, found, set up and deleted.

One RTM_NEWLINK with IFLA_NET_NS_FD takes 0.2 to 0.7 ms; making the link here and moving it there would wait out an
RCU grace period, 16 ms.
"""

import errno
import hashlib
import struct
import sys
from collections.abc import Sequence

from msgspec.structs import replace

from cni.config import shown
from cni.errors import InterfaceExists, InvalidConfig, KernelRefused
from cni.netlink import kinds, message, route
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Netns, Refusal, Request, RouteSocket
from cni.plan import LinkPlan, LinkState

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
_RTNLGRP_LINK = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK = 1, 3, 4, 5
_IFLA_TXQLEN, _IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 13, 18, 20, 26, 28, 29
_IFLA_MASTER, _IFLA_GROUP, _IFLA_LINK_NETNSID, _IFLA_ALT_IFNAME = 10, 27, 37, 53
_NAME_BYTES, _ALT_NAME_BYTES = 15, 127
"""Of a link's name, and of an alternative one."""
_INFO_KIND, _INFO_DATA = 1, 2
_SKIP_STATS = 8
_DOOMED = 0x73706964
"""A group that nobody else uses."""
_AF_INET, _AF_INET6 = 2, 10
_ADDR_GEN_MODE, _NO_ADDRESS = 8, 1
"""IFLA_INET6_ADDR_GEN_MODE of linux/if_link.h, and that there is to be none."""
_INET_CONF = 1
_RP_FILTER, _ARP_NOTIFY = 8, 22
"""IPV4_DEVCONF_* of linux/ip.h."""
_UP, _NOARP, _PROMISC, _ALLMULTI, _LOWER_UP = 0x1, 0x80, 0x100, 0x200, 0x10000
_HEADER = struct.Struct("=BxHiII")


class Occupied(Exception):
    """The parent cannot take the link: it has one of another kind, of another mode, or of the same VLAN id."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def create(sockets: RouteSocket, plan: LinkPlan, *, parent: LinkState, netns: Netns, inside: RouteSocket) -> None:
    """Make the link in `netns`, down. `sockets` is in the namespace of the parent, `inside` in `netns`.

    Raises:
        InterfaceExists: the name is taken there.
        Occupied: the parent is, perhaps.
        KernelRefused: anything else.
    """
    body = create_body(plan, parent_index=parent.index, descriptor=netns.descriptor)
    doing = making(plan, parent)
    try:
        sockets.request(RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
    except Refusal as refusal:
        if refusal.number in {errno.EBUSY, errno.EINVAL}:
            raise Occupied(refusal) from None
        if refusal.number != errno.EEXIST:
            raise refusal.explain(doing) from None
        if get(inside, plan.ifname) is not None:
            raise InterfaceExists(f"CNI_IFNAME: {plan.ifname} exists already in {plan.netns}", str(refusal)) from None
        _create_elsewhere_named(sockets, plan, parent=parent, netns=netns, inside=inside, doing=doing)


def making(plan: LinkPlan, parent: LinkState) -> str:
    """What `create` does, for errors: with all that the configuration says."""
    given = {"mode": plan.mode, "mtu": plan.mtu, "mac": plan.mac, "bcqueuelen": plan.broadcast_queue_length}
    said = "".join(f", {field} {value}" for field, value in given.items() if value)
    return f"make {plan.kind} {plan.ifname} in {plan.netns} on master {parent.ifname}{said}"


def temporary_name(ifname: str) -> str:
    """What a link is called until it gets its name. A process that dies in between leaves it so."""
    return f"sp{hashlib.sha256(ifname.encode()).hexdigest()[:13]}"


def _create_elsewhere_named(
    sockets: RouteSocket, plan: LinkPlan, *, parent: LinkState, netns: Netns, inside: RouteSocket, doing: str
) -> None:
    """Kernels before 6.15 look for the name in the namespace of the parent, too, where another link may have it."""
    temporary = replace(plan, ifname=temporary_name(plan.ifname))
    body = create_body(temporary, parent_index=parent.index, descriptor=netns.descriptor)
    left = get(inside, temporary.ifname)
    if left is not None:
        delete(inside, left)
    try:
        sockets.request(RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
    except Refusal as refusal:
        if refusal.number in {errno.EEXIST, errno.EBUSY, errno.EINVAL}:
            raise Occupied(refusal) from None
        raise refusal.explain(doing) from None
    made = get(inside, temporary.ifname)
    if made is None:
        raise KernelRefused(f"{plan.kind} {temporary.ifname} was made in {plan.netns} and is not there")
    try:
        inside.request(RTM_SETLINK, 0, _HEADER.pack(0, 0, made.index, 0, 0) + text(_IFLA_IFNAME, plan.ifname))
    except Refusal as refusal:
        delete(inside, made)
        raise refusal.explain(doing) from None


def create_body(plan: LinkPlan, *, parent_index: int, descriptor: int) -> bytes:
    """The body of the RTM_NEWLINK. `descriptor` is that of the namespace to make it in."""
    parts = [_HEADER.pack(0, 0, 0, 0, 0), text(_IFLA_IFNAME, plan.ifname)]
    if plan.mac:
        parts.append(attribute(_IFLA_ADDRESS, bytes.fromhex(plan.mac.replace(":", ""))))
    if plan.mtu:
        parts.append(attribute(_IFLA_MTU, u32(plan.mtu)))
    parts += [
        attribute(_IFLA_LINK, u32(parent_index)),
        attribute(_IFLA_NET_NS_FD, u32(descriptor)),
        nested(_IFLA_LINKINFO, text(_INFO_KIND, plan.kind), nested(_INFO_DATA, *kinds.data(plan))),
    ]
    return b"".join(parts)


def find_parent(sockets: RouteSocket, plan: LinkPlan) -> LinkState:
    """The link that `plan.master` names in the socket's namespace.

    Raises:
        InvalidConfig: it is missing or down, there is no default route to take it from, or its MTU is too small.
    """
    if plan.master:
        found = get(sockets, plan.master)
        if found is None:
            where = plan.netns if plan.link_in_container else "this node"
            raise InvalidConfig(f"master: there is no interface {shown(plan.master)} on {where}")
    else:
        index = route.default_device(sockets)
        found = get_index(sockets, index) if index else None
        if found is None:
            raise InvalidConfig("master: missing from the network configuration, and there is no default route")
    # In a container it may be another link of the same pod, which comes up a moment later.
    if not found.up and not plan.link_in_container:
        problem = f"a {plan.kind} link on it would be dead; whoever manages the node's interfaces sets it up"
        raise InvalidConfig(f"master: interface {shown(found.ifname)} on this node is down", problem)
    if plan.mtu > found.mtu:
        problem = f"it is larger than {found.mtu}, the MTU of master {found.ifname}"
        raise InvalidConfig(f"mtu: {plan.mtu} is not possible", problem)
    return found


def get(sockets: RouteSocket, ifname: str) -> LinkState | None:
    """The link of that name, or with that alternative name; None when there is none."""
    length = len(ifname.encode())
    if not 0 < length <= _ALT_NAME_BYTES or "\0" in ifname:
        return None
    name = text(_IFLA_IFNAME if length <= _NAME_BYTES else _IFLA_ALT_IFNAME, ifname)
    body = _HEADER.pack(0, 0, 0, 0, 0) + name + attribute(_IFLA_EXT_MASK, u32(_SKIP_STATS))
    return _get(sockets, body, ifname)


def get_index(sockets: RouteSocket, index: int) -> LinkState | None:
    """The link of that index, None when there is none."""
    body = _HEADER.pack(0, 0, index, 0, 0) + attribute(_IFLA_EXT_MASK, u32(_SKIP_STATS))
    return _get(sockets, body, f"#{index}")


def all_body() -> bytes:
    """The body of an RTM_GETLINK for all links."""
    return _HEADER.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, u32(_SKIP_STATS))


def listed(sockets: RouteSocket, *, kind: str = "") -> list[LinkState]:
    """All links in the socket's namespace, or those of one kind.

    Raises:
        KernelRefused: it does not say.
    """
    body = all_body()
    if kind:
        body += nested(_IFLA_LINKINFO, text(_INFO_KIND, kind))
    try:
        return [one for one in sockets.dump(RTM_GETLINK, body, decode) if not kind or one.kind == kind]
    except Refusal as refusal:
        raise refusal.explain("list links") from None


def delete(sockets: RouteSocket, link: LinkState) -> bool:
    """Remove the link; whether it was still there. See `delete_together`.

    Raises:
        KernelRefused: it cannot be removed.
    """
    body = _HEADER.pack(0, 0, link.index, 0, 0)
    return _delete(sockets, body, [link.index], f"delete {link.kind} {link.ifname}")


def delete_together(sockets: RouteSocket, links: Sequence[LinkState]) -> bool:
    """Remove links, at least one; whether any was still there.

    A link is gone, with its addresses, about a millisecond after it was asked for, and the kernel announces that. Then
    it waits out an RCU grace period, about 20 ms, before it acknowledges the removal, and nobody here waits with it.
    Links of one group are removed by one request that waits once, so they are put into one first.

    Raises:
        KernelRefused: they cannot be removed.
    """
    if len(links) == 1:
        return delete(sockets, links[0])
    group = attribute(_IFLA_GROUP, u32(_DOOMED))
    shown = " and ".join(one.ifname for one in links)
    sockets.pipeline(
        [
            Request(RTM_SETLINK, 0, _HEADER.pack(0, 0, one.index, 0, 0) + group, f"group {one.ifname}", (errno.ENODEV,))
            for one in links
        ]
    )
    return _delete(sockets, _HEADER.pack(0, 0, 0, 0, 0) + group, [one.index for one in links], f"delete {shown}")


def _delete(sockets: RouteSocket, body: bytes, indices: Sequence[int], doing: str) -> bool:
    left = set(indices)

    def gone(kind: int, body: memoryview) -> bool:
        if kind == RTM_DELLINK:
            family, _, index, _, _ = _HEADER.unpack_from(body)
            if not family:  # not that it has left a bridge
                left.discard(index)
        return not left

    try:
        sockets.request_until(RTM_DELLINK, 0, body, group=_RTNLGRP_LINK, made=gone)
    except Refusal as refusal:
        if refusal.number == errno.ENODEV:
            return False
        raise refusal.explain(doing) from None
    return True


def announce_on_up(sockets: RouteSocket, link: LinkState) -> None:
    """Have the kernel send a gratuitous ARP for each IPv4 address whenever the link comes up or changes its MAC.

    That is the sysctl arp_notify, set by netlink since /proc/sys may be read-only.

    Raises:
        KernelRefused: it does not want to.
    """
    try:
        sockets.request(RTM_SETLINK, 0, announce_on_up_body(link.index))
    except Refusal as refusal:
        raise refusal.explain(f"set arp_notify on {link.ifname}") from None


def announce_on_up_body(index: int) -> bytes:
    """The body of that RTM_SETLINK."""
    conf = nested(_INET_CONF, attribute(_ARP_NOTIFY, u32(1)))
    return _HEADER.pack(0, 0, index, 0, 0) + nested(_IFLA_AF_SPEC, nested(_AF_INET, conf))


def set_up(sockets: RouteSocket, link: LinkState) -> None:
    """Set the link administratively up.

    Raises:
        KernelRefused: it does not come up.
    """
    try:
        sockets.request(RTM_SETLINK, 0, set_up_body(link.index))
    except Refusal as refusal:
        doing = f"set {link.ifname} up"
        if refusal.number == errno.EADDRINUSE:
            doing += f": another link on its parent, or that itself, has the MAC address {link.mac}"
        raise refusal.explain(doing) from None


def set_up_body(index: int) -> bytes:
    """The body of that RTM_SETLINK."""
    return _HEADER.pack(0, 0, index, _UP, _UP)


def set_down_body(index: int) -> bytes:
    """The body of the RTM_SETLINK that sets a link down."""
    return _HEADER.pack(0, 0, index, 0, _UP)


def settings_body(
    index: int, *, up: bool = False, mac: str = "", alias: str = "", tx_queue_len: int = 0, rp_filter: int = -1
) -> bytes:
    """The body of an RTM_SETLINK that changes what is given: not empty, not 0, not negative."""
    flag = _UP if up else 0
    parts = [_HEADER.pack(0, 0, index, flag, flag)]
    if mac:
        parts.append(attribute(_IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))))
    if tx_queue_len:
        parts.append(attribute(_IFLA_TXQLEN, u32(tx_queue_len)))
    if alias:
        parts.append(text(_IFLA_IFALIAS, alias))
    if rp_filter >= 0:
        conf = nested(_INET_CONF, attribute(_RP_FILTER, u32(rp_filter)))
        parts.append(nested(_IFLA_AF_SPEC, nested(_AF_INET, conf)))
    return b"".join(parts)


def without_link_local(link: LinkState) -> Request:
    """The request that keeps the kernel from giving a link that is not up yet an IPv6 link-local address."""
    ipv6 = nested(_AF_INET6, attribute(_ADDR_GEN_MODE, bytes((_NO_ADDRESS,))))
    body = _HEADER.pack(0, 0, link.index, 0, 0) + nested(_IFLA_AF_SPEC, ipv6)
    # Where the kernel has no IPv6 there is nothing to keep it from.
    return Request(
        RTM_SETLINK, 0, body, f"change the settings of {link.ifname}", (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
    )


def _get(sockets: RouteSocket, body: bytes, name: str) -> LinkState | None:
    try:
        return decode(memoryview(sockets.query(RTM_GETLINK, body)))
    except Refusal as refusal:
        if refusal.number == errno.ENODEV:
            return None
        raise refusal.explain(f"show link {name}") from None


def decode(body: memoryview) -> LinkState:
    """A link from the body of an RTM_NEWLINK."""
    _, _, index, flags, _ = _HEADER.unpack_from(body)
    found = message.attributes(body[16:])
    info = message.attributes(found.get(_IFLA_LINKINFO, memoryview(b"")))
    kind = message.read_text(info.get(_INFO_KIND))
    more = kinds.particulars(kind, message.attributes(info.get(_INFO_DATA, memoryview(b""))))
    netns = found.get(_IFLA_LINK_NETNSID)
    return LinkState(
        ifname=message.read_text(found.get(_IFLA_IFNAME)),
        index=index,
        kind=kind,
        mac=bytes(found.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=message.read_u32(found.get(_IFLA_MTU)),
        up=bool(flags & _UP),
        carrier=bool(flags & _LOWER_UP),
        arp=not flags & _NOARP,
        parent_index=message.read_u32(found.get(_IFLA_LINK)),
        parent_netns=int.from_bytes(netns[:4], sys.byteorder, signed=True) if netns is not None else None,
        master_index=message.read_u32(found.get(_IFLA_MASTER)),
        mode=more.mode,
        vlan_id=more.vlan_id,
        vlan_protocol=more.vlan_protocol,
        alias=message.read_text(found.get(_IFLA_IFALIAS)),
        tx_queue_len=message.read_u32(found.get(_IFLA_TXQLEN)),
        promisc=bool(flags & _PROMISC),
        allmulti=bool(flags & _ALLMULTI),
        rp_filter=_rp_filter(found.get(_IFLA_AF_SPEC, memoryview(b""))),
    )


def _rp_filter(families: memoryview) -> int:
    """From an IFLA_AF_SPEC: there IPv4's settings are an array of numbers; negative where there is none."""
    ipv4 = message.attributes(message.attributes(families).get(_AF_INET, memoryview(b"")))
    numbers = ipv4.get(_INET_CONF, memoryview(b""))
    place = 4 * (_RP_FILTER - 1)
    return int.from_bytes(numbers[place : place + 4], sys.byteorder) if len(numbers) >= place + 4 else -1
