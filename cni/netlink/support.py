"""What this node's kernel can do."""

import errno
import struct

from cni.netlink import message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Refusal, RouteSocket

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFLA_IFNAME, _IFLA_LINK, _IFLA_LINKINFO, _INFO_KIND = 3, 5, 18, 1
_HEADER = struct.Struct("=BxHiII")
_LOOPBACK = 1
_NAME = "spider-probe"


def knows_link_kind(kind: str) -> bool:
    """Whether links of this kind can be made; its module is loaded if there is one.

    Asked by a link on loopback, which every kind refuses, macvlan by EINVAL: nothing is made. A kind that the kernel
    does not know is EOPNOTSUPP.

    Raises:
        IoFailure: the kernel does not answer.
    """
    body = (
        _HEADER.pack(0, 0, 0, 0, 0)
        + text(_IFLA_IFNAME, _NAME)
        + attribute(_IFLA_LINK, u32(_LOOPBACK))
        + nested(_IFLA_LINKINFO, text(_INFO_KIND, kind))
    )
    with RouteSocket() as sockets:
        try:
            sockets.request(_RTM_NEWLINK, message.F_CREATE | message.F_EXCL, body)
        except Refusal as refusal:
            return refusal.number != errno.EOPNOTSUPP
        sockets.request(_RTM_DELLINK, 0, _HEADER.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, _NAME))
    return True
