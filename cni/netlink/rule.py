"""Routing rules: which table is asked for which packets."""

import errno
import socket
import struct
from ipaddress import ip_network

from msgspec import Struct

from cni.coordination import RulePlan
from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Refusal, Request, RouteSocket

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_PROTOCOL = 2, 6, 10, 15, 21
_TO_TABLE = 1
_INHERENT = (253, 254, 255)
"""Tables of the rules that every namespace has."""
_SELECTORS = frozenset({1, 2, 3, 10, 12, 16, 17, 19, 20, 22, 23, 24})
"""FRA_* of linux/fib_rules.h that limit a rule to some packets."""
_THERE = (errno.EEXIST,)
_NOT_THERE = (errno.ENOENT, errno.EAFNOSUPPORT)
_HEADER = struct.Struct("=BBBBBBBBI")


class Listed(Struct, frozen=True, kw_only=True):
    """A rule as the kernel shows it."""

    plan: RulePlan
    protocol: int = 0
    everything: bool = False
    """Whether it holds for all packets."""


def add(plan: RulePlan, *, protocol: int = 0) -> Request:
    """The request for a rule; one that is there already is fine."""
    return Request(
        RTM_NEWRULE, message.F_CREATE | message.F_EXCL, body(plan, protocol=protocol), _doing("add", plan), _THERE
    )


def remove(plan: RulePlan, *, protocol: int = 0) -> Request:
    """The request to remove that rule; one that is not there is fine."""
    return Request(RTM_DELRULE, 0, body(plan, protocol=protocol), _doing("remove", plan), _NOT_THERE)


def body(plan: RulePlan, *, protocol: int = 0) -> bytes:
    """The body of the RTM_NEWRULE or RTM_DELRULE. No priority: the kernel's choice, or any to remove."""
    family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
    source = ip_network(plan.source) if plan.source else None
    length = 0 if source is None else source.prefixlen
    made = _HEADER.pack(family, 0, length, 0, plan.table if plan.table < 256 else 0, 0, 0, _TO_TABLE, 0)
    if source is not None:
        made += attribute(_FRA_SRC, source.network_address.packed)
    if plan.priority is not None:
        made += attribute(_FRA_PRIORITY, u32(plan.priority))
    if plan.mark:
        made += attribute(_FRA_FWMARK, u32(plan.mark))
    made += attribute(_FRA_TABLE, u32(plan.table))
    return made + attribute(_FRA_PROTOCOL, bytes((protocol,))) if protocol else made


def listed(sockets: RouteSocket) -> list[Listed]:
    """The rules of both IP versions that lead to a table, without those that every namespace has.

    Raises:
        KernelRefused: the kernel does not list them.
    """
    found: list[Listed | None] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += sockets.dump(RTM_GETRULE, _HEADER.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), _decode)
        except Refusal as refusal:
            if refusal.number not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:
                raise refusal.explain("list rules") from None
    return [one for one in found if one is not None]


def _decode(body: memoryview) -> Listed | None:
    family, _, length, _, short, _, _, action, _ = _HEADER.unpack_from(body)
    if action != _TO_TABLE or short in _INHERENT:
        return None
    found = message.attributes(body[12:])
    table = message.read_u32(found.get(_FRA_TABLE)) or short
    source = found.get(_FRA_SRC)
    return Listed(
        plan=RulePlan(
            version=4 if family == socket.AF_INET else 6,
            table=table,
            source=f"{message.read_ip(source)}/{length}" if source is not None else "",
            mark=message.read_u32(found.get(_FRA_FWMARK)),
            priority=message.read_u32(found.get(_FRA_PRIORITY)),
        ),
        protocol=bytes(found.get(_FRA_PROTOCOL, b"\0"))[0],
        everything=not _SELECTORS.intersection(found),
    )


def _doing(verb: str, plan: RulePlan) -> str:
    words = f"{verb} IPv{plan.version} rule"
    if plan.priority is not None:
        words += f" {plan.priority}"
    if plan.source:
        words += f" from {plan.source}"
    return f"{words} lookup {plan.table}"
