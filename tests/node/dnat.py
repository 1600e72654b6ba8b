"""What kube-proxy does to a node, as far as replies are concerned: DNAT without SNAT, and what is no connection goes.

In the words of `nft`, which this machine does not have:

    table ip lab {
      chain nat     { type nat hook prerouting priority dstnat; ip daddr <at> dnat to <to> }
      chain forward { type filter hook forward priority filter; ct state invalid drop }
    }
"""

import struct
from ipaddress import ip_address

from cni.netlink import message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.nftables import NEWCHAIN, NEWRULE, NEWTABLE, FilterSocket

_REGISTER = 1
_VERDICT = 0
_FAMILY = {4: 2, 6: 10}


def translate(at: str, to: str) -> None:
    """Have packets for one address go to another; in the thread's namespace."""
    version = ip_address(at).version
    start, length = (16, 4) if version == 4 else (24, 16)
    header = struct.pack("!BBH", _FAMILY[version], 0, 0)

    def number(kind: int, value: int) -> bytes:
        return attribute(kind, struct.pack("!I", value))

    def expression(name: str, *data: bytes) -> bytes:
        return nested(1, text(1, name), nested(2, *data))

    def value(kind: int, data: bytes) -> bytes:
        return nested(kind, attribute(1, data))

    def chain(name: str, kind: str, hook: int, priority: int) -> tuple[int, int, bytes]:
        place = nested(4, number(1, hook), number(2, priority & 0xFFFFFFFF))
        return NEWCHAIN, message.F_CREATE, header + text(1, "lab") + text(3, name) + place + text(7, kind)

    def rule(name: str, *expressions: bytes) -> tuple[int, int, bytes]:
        return NEWRULE, message.F_CREATE, header + text(1, "lab") + text(2, name) + nested(4, *expressions)

    frame = struct.pack("!BBH", 0, 0, 10)
    destination = expression("payload", number(1, _REGISTER), number(2, 1), number(3, start), number(4, length))
    equal = expression("cmp", number(1, _REGISTER), number(2, 0), value(3, ip_address(at).packed))
    load = expression("immediate", number(1, _REGISTER), value(2, ip_address(to).packed))
    nat = expression("nat", number(1, 1), number(2, _FAMILY[version]), number(3, _REGISTER))
    state = expression("ct", number(1, _REGISTER), number(2, 0))
    invalid = expression(
        "bitwise", number(1, _REGISTER), number(2, _REGISTER), number(3, 4), value(4, u32(1)), value(5, u32(0))
    )
    some = expression("cmp", number(1, _REGISTER), number(2, 1), value(3, u32(0)))
    drop = expression("immediate", number(1, _VERDICT), nested(2, nested(2, number(1, 0))))
    with FilterSocket() as sockets:
        sockets.transaction(
            [
                (0x10, 0, frame),
                (NEWTABLE, message.F_CREATE, header + text(1, "lab")),
                chain("nat", "nat", 0, -100),
                chain("forward", "filter", 2, 0),
                rule("nat", destination, equal, load, nat),
                rule("forward", state, invalid, some, drop),
                (0x11, 0, frame),
            ]
        )
