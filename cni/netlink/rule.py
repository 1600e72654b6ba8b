"""Routing rules: which table is asked for which packets."""

import errno
import socket
import struct

from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Request

RTM_NEWRULE, RTM_DELRULE = 32, 33
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 6, 10, 15
_TO_TABLE = 1
_HEADER = struct.Struct("=BBBBBBBBI")


def add(version: int, *, priority: int, table: int, mark: int = 0) -> Request:
    """The request for a rule; one that is there already is fine. With `mark`, for packets that carry it only."""
    return Request(
        RTM_NEWRULE,
        message.F_CREATE | message.F_EXCL,
        body(version, priority=priority, table=table, mark=mark),
        f"add IPv{version} rule {priority} lookup {table}",
        (errno.EEXIST,),
    )


def remove(version: int, *, priority: int, table: int, mark: int = 0) -> Request:
    """The request to remove that rule; one that is not there is fine."""
    return Request(
        RTM_DELRULE,
        0,
        body(version, priority=priority, table=table, mark=mark),
        f"remove IPv{version} rule {priority} lookup {table}",
        (errno.ENOENT, errno.EAFNOSUPPORT),
    )


def body(version: int, *, priority: int, table: int, mark: int) -> bytes:
    """The body of the RTM_NEWRULE or RTM_DELRULE."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    made = _HEADER.pack(family, 0, 0, 0, table if table < 256 else 0, 0, 0, _TO_TABLE, 0)
    made += attribute(_FRA_PRIORITY, u32(priority))
    if mark:
        made += attribute(_FRA_FWMARK, u32(mark))
    return made + attribute(_FRA_TABLE, u32(table))
