"""Bonds: made, given options and slaves, and read."""

import errno
import socket
import struct
from collections.abc import Mapping
from ipaddress import IPv4Address

from cni.bond import DELAYS, MODES, SLAVES, BondPlan, BondState, Value, said
from cni.netlink import link, message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Refusal, Request, RouteSocket
from cni.plan import LinkState

_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_MASTER = 3, 18, 10
_INFO_KIND, _INFO_DATA = 1, 2
_UP = 1
_HEADER = struct.Struct("=BxHiII")
_MODE = 1
_NUMBERS = {
    "active_slave": (2, 4),
    "miimon": (3, 4),
    "updelay": (4, 4),
    "downdelay": (5, 4),
    "use_carrier": (6, 1),
    "arp_interval": (7, 4),
    "arp_validate": (9, 4),
    "arp_all_targets": (10, 4),
    "primary": (11, 4),
    "primary_reselect": (12, 1),
    "fail_over_mac": (13, 1),
    "xmit_hash_policy": (14, 1),
    "resend_igmp": (15, 4),
    "num_peer_notif": (16, 1),
    "all_slaves_active": (17, 1),
    "min_links": (18, 4),
    "lp_interval": (19, 4),
    "packets_per_slave": (20, 4),
    "lacp_rate": (21, 1),
    "ad_select": (22, 1),
    "ad_actor_sys_prio": (24, 2),
    "ad_user_port_key": (25, 2),
    "tlb_dynamic_lb": (27, 1),
    "peer_notif_delay": (28, 4),
}
"""IFLA_BOND_* of linux/if_link.h: type and size of each number; slaves are given by their index."""
_ARP_IP_TARGET, _AD_ACTOR_SYSTEM = 8, 26
_ORDER = (
    "miimon",
    "arp_interval",
    *sorted({*_NUMBERS, "arp_ip_target", "ad_actor_system"} - {"miimon", "arp_interval"}),
)
"""What others depend on comes first."""
_SIZES = {1: struct.Struct("=B").pack, 2: struct.Struct("=H").pack, 4: u32}


def create_body(plan: BondPlan) -> bytes:
    """The body of the RTM_NEWLINK that makes a bond, down and without slaves, with its mode."""
    mode = attribute(_MODE, _SIZES[1](plan.mode))
    return _HEADER.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, plan.name) + _linkinfo(mode)


def settings(index: int, plan: BondPlan, *, slaves: Mapping[str, int]) -> list[Request]:
    """Give a bond that is down and has no slaves its mode and options. `slaves` are the indices of its slaves-to-be.

    One request each, so that an error names the one that it is about: the kernel has no words for most of them.
    """
    given = {"mode": attribute(_MODE, _SIZES[1](plan.mode))}
    given |= {
        name: _option(name, value, slaves)
        for name, value in sorted(plan.options, key=lambda option: _ORDER.index(option[0]))
        if name != "active_slave" and not _is_so_already(plan, name, value)
    }
    values = {"mode": MODES[plan.mode]} | {name: said(value) for name, value in plan.options}
    return [
        Request(link.RTM_NEWLINK, 0, _change(index, data), f"set {name}={values[name]} of bond {plan.name}")
        for name, data in given.items()
    ]


def activate(index: int, *, slave: int, doing: str) -> Request:
    """Make a slave the active one."""
    number, _ = _NUMBERS["active_slave"]
    return Request(link.RTM_NEWLINK, 0, _change(index, attribute(number, u32(slave))), doing)


def enslave(slave: int, *, bond: int, doing: str) -> list[Request]:
    """Take a link down, and make it a slave, which sets it up; `bond` 0 frees one, and leaves it down."""
    master = attribute(_IFLA_MASTER, u32(bond))
    down = Request(link.RTM_SETLINK, 0, _HEADER.pack(0, 0, slave, 0, _UP), doing)
    take = Request(link.RTM_SETLINK, 0, _HEADER.pack(0, 0, slave, 0, 0) + master, doing)
    return [down, take] if bond else [take]


def slaves(sockets: RouteSocket, index: int) -> list[LinkState]:
    """The slaves of a bond.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        found = sockets.dump(
            link.RTM_GETLINK, _HEADER.pack(0, 0, 0, 0, 0) + attribute(_IFLA_MASTER, u32(index)), link.decode
        )
    except Refusal as refusal:
        raise refusal.explain(f"list the slaves of bond #{index}") from None
    return [one for one in found if one.master_index == index]


def state(sockets: RouteSocket, index: int, *, names: Mapping[int, str]) -> BondState | None:
    """A bond by its index; None when there is none. `names` are those of its slaves, by index.

    Raises:
        KernelRefused: the kernel does not say.
    """
    try:
        reply = sockets.query(link.RTM_GETLINK, _HEADER.pack(0, 0, index, 0, 0))
    except Refusal as refusal:
        if refusal.number == errno.ENODEV:
            return None
        raise refusal.explain(f"show bond #{index}") from None
    info = message.attributes(message.attributes(memoryview(reply)[16:]).get(_IFLA_LINKINFO, memoryview(b"")))
    if message.read_text(info.get(_INFO_KIND)) != "bond":
        return None
    return decode(info.get(_INFO_DATA, memoryview(b"")), names=names)


def decode(data: memoryview, *, names: Mapping[int, str]) -> BondState:
    """A bond from its IFLA_INFO_DATA."""
    found = message.attributes(data)
    options: dict[str, Value] = {}
    for name, (number, _) in _NUMBERS.items():
        if number in found:
            value = message.read_u32(found[number])
            if name not in SLAVES:
                options[name] = value
            elif value in names:
                options[name] = names[value]
    if _ARP_IP_TARGET in found:
        targets = message.attributes(found[_ARP_IP_TARGET])
        options["arp_ip_target"] = tuple(str(IPv4Address(bytes(targets[at][:4]))) for at in sorted(targets))
    if _AD_ACTOR_SYSTEM in found:
        options["ad_actor_system"] = bytes(found[_AD_ACTOR_SYSTEM][:6]).hex(":")
    return BondState(mode=message.read_u32(found.get(_MODE)), options=options)


def _is_so_already(plan: BondPlan, name: str, value: Value) -> bool:
    """A delay of 0 without monitoring, which the kernel refuses to set."""
    return name in DELAYS and not value and not dict(plan.options).get("miimon")


def _option(name: str, value: Value, slaves: Mapping[str, int]) -> bytes:
    if isinstance(value, tuple):
        targets = (attribute(at, socket.inet_aton(one)) for at, one in enumerate(value))
        return nested(_ARP_IP_TARGET, *targets)
    if name == "ad_actor_system":
        return attribute(_AD_ACTOR_SYSTEM, bytes.fromhex(str(value).replace(":", "")))
    number, size = _NUMBERS[name]
    return attribute(number, _SIZES[size](slaves[value] if isinstance(value, str) else value))


def _change(index: int, data: bytes) -> bytes:
    return _HEADER.pack(0, 0, index, 0, 0) + _linkinfo(data)


def _linkinfo(data: bytes) -> bytes:
    return nested(_IFLA_LINKINFO, text(_INFO_KIND, "bond"), nested(_INFO_DATA, data))
