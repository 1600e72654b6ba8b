"""What a kind of link has beyond what all links have: the attribute IFLA_INFO_DATA, written and read."""

import struct
from collections.abc import Mapping

from msgspec import Struct

from cni.netlink import message
from cni.netlink.message import attribute, u32
from cni.plan import LinkPlan

_MACVLAN_MODE, _MACVLAN_BC_QUEUE_LEN = 1, 7
_IPVLAN_MODE = 1
_VLAN_ID, _VLAN_PROTOCOL = 1, 5
_MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
_VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
_u16 = struct.Struct("=H").pack
_u16_of_network = struct.Struct("!H").pack


class Particulars(Struct, frozen=True):
    """What was read; empty where the kind has no such thing."""

    mode: str = ""
    vlan_id: int | None = None
    vlan_protocol: str = ""


def data(plan: LinkPlan) -> list[bytes]:
    """The attributes in the IFLA_INFO_DATA of a new link."""
    match plan.kind:
        case "macvlan":
            attributes = [attribute(_MACVLAN_MODE, u32(_MACVLAN_MODES[plan.mode]))]
            if plan.broadcast_queue_length:
                attributes.append(attribute(_MACVLAN_BC_QUEUE_LEN, u32(plan.broadcast_queue_length)))
            return attributes
        case "ipvlan":
            # Without it the kernel would take l3, and without flags it leaves those of the parent's other links alone.
            return [attribute(_IPVLAN_MODE, _u16(_IPVLAN_MODES[plan.mode]))]
        case "vlan":
            return vlan(plan.vlan_id or 0, protocol=plan.vlan_protocol)
        case _:
            return []


def vlan(number: int, *, protocol: str = "") -> list[bytes]:
    """The attributes of a VLAN."""
    attributes = [attribute(_VLAN_ID, _u16(number))]
    if protocol:
        attributes.append(attribute(_VLAN_PROTOCOL, _u16_of_network(_VLAN_PROTOCOLS[protocol])))
    return attributes


def particulars(kind: str, info: Mapping[int, memoryview]) -> Particulars:
    """What the IFLA_INFO_DATA of a link says. A mode or protocol that has no name here is a number."""
    match kind:
        case "macvlan":
            return Particulars(mode=_name(_MACVLAN_MODES, message.read_u32(info.get(_MACVLAN_MODE))))
        case "ipvlan":
            return Particulars(mode=_name(_IPVLAN_MODES, message.read_u32(info.get(_IPVLAN_MODE))))
        case "vlan":
            protocol = int.from_bytes(info.get(_VLAN_PROTOCOL, b""))
            return Particulars(
                vlan_id=message.read_u32(info.get(_VLAN_ID)), vlan_protocol=_name(_VLAN_PROTOCOLS, protocol)
            )
        case _:
            return Particulars()


def _name(names: Mapping[str, int], number: int) -> str:
    return next((name for name, value in names.items() if value == number), str(number))
