"""What a PF is told of its VFs, and what it says of them: the attribute IFLA_VFINFO_LIST of linux/if_link.h.

Each setting is a message of its own, so that a refusal says which one it was.
"""

import struct
import sys
from collections.abc import Mapping, Sequence

from cni.errors import InvalidConfig
from cni.netlink import message
from cni.netlink.link import RTM_GETLINK, RTM_SETLINK
from cni.netlink.message import attribute, nested, u32
from cni.netlink.socket import Refusal, RouteSocket
from cni.sriov import LINK_STATES, Setting, VfSettings, VfVlan, described

IN_ORDER = ("vlan", "mac", "rates", "spoofchk", "trust", "link_state")
BACK_IN_ORDER = ("vlan", "spoofchk", "mac", "trust", "rates", "link_state")
"""Drivers refuse some changes of a VF that is not trusted (any more)."""

_IFLA_VFINFO_LIST, _IFLA_EXT_MASK, _IFLA_VF_INFO = 22, 29, 1
_VF_MAC, _VF_VLAN, _VF_SPOOFCHK, _VF_LINK_STATE, _VF_RATE, _VF_TRUST, _VF_VLAN_LIST = 1, 2, 4, 5, 6, 9, 12
_VF_VLAN_INFO = 1
_WITH_VFS_WITHOUT_STATISTICS = 1 | 8
_LINK = struct.Struct("=BxHiII")
_MAC = struct.Struct("=I32s")
_VLAN = struct.Struct("=III")
_PROTOCOL = struct.Struct("!H")
_RATE = struct.Struct("=III")
_NUMBER = struct.Struct("=II")
_UNKNOWN = 0xFFFFFFFF
_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
_WORDS = {
    "vlan": "vlan, vlanQoS, vlanProto",
    "mac": "mac",
    "rates": "min_tx_rate, max_tx_rate",
    "spoofchk": "spoofchk",
    "trust": "trust",
    "link_state": "link_state",
}
"""The keys of the configuration that a setting is from."""


def read(sockets: RouteSocket, index: int) -> dict[int, VfSettings]:
    """The settings of all VFs of the PF with that index, by number.

    Raises:
        KernelRefused: it does not say.
    """
    body = _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_EXT_MASK, u32(_WITH_VFS_WITHOUT_STATISTICS))
    try:
        return decode(memoryview(sockets.query(RTM_GETLINK, body)))
    except Refusal as refusal:
        raise refusal.explain(f"show the virtual functions of link #{index}") from None


def write(
    sockets: RouteSocket, index: int, number: int, settings: VfSettings, *, who: str, order: Sequence[str] = IN_ORDER
) -> None:
    """Set what `settings` says; `who` is the VF, for messages.

    Raises:
        KernelRefused: the driver does not want to; what was set before is set.
    """
    said = settings.said
    for name in order:
        if name in said:
            try:
                sockets.request(RTM_SETLINK, 0, body(index, number, name, said[name]))
            except Refusal as refusal:
                raise refusal.explain(f"set {_WORDS[name]} of {who} to {described(said[name])}") from None


def body(index: int, number: int, name: str, value: Setting) -> bytes:
    """The body of the RTM_SETLINK that sets one field of `VfSettings`."""
    match name, value:
        case "vlan", VfVlan(id=tag, qos=qos, protocol=protocol):
            tagged = _VLAN.pack(number, tag, qos) + _PROTOCOL.pack(_PROTOCOLS[protocol]) + bytes(2)
            part = nested(_VF_VLAN_LIST, attribute(_VF_VLAN_INFO, tagged))
        case "mac", str(mac):
            part = attribute(_VF_MAC, _MAC.pack(number, bytes.fromhex(mac.replace(":", ""))))
        case "rates", (int(least), int(most)):
            part = attribute(_VF_RATE, _RATE.pack(number, least, most))
        case "spoofchk", bool(on):
            part = attribute(_VF_SPOOFCHK, _NUMBER.pack(number, on))
        case "trust", bool(on):
            part = attribute(_VF_TRUST, _NUMBER.pack(number, on))
        case "link_state", str(state):
            part = attribute(_VF_LINK_STATE, _NUMBER.pack(number, LINK_STATES.index(state)))
        case _:
            raise InvalidConfig(f"{name}: {value} is no setting of a virtual function")
    return _LINK.pack(0, 0, index, 0, 0) + nested(_IFLA_VFINFO_LIST, nested(_IFLA_VF_INFO, part))


def decode(body: memoryview) -> dict[int, VfSettings]:
    """The settings by VF from the body of a PF's RTM_NEWLINK."""
    listed = message.attributes(body[_LINK.size :]).get(_IFLA_VFINFO_LIST, memoryview(b""))
    found = {}
    for part in message.items(listed, _IFLA_VF_INFO):
        fields = message.attributes(part)
        mac = fields.get(_VF_MAC, memoryview(b""))
        if len(mac) >= _NUMBER.size:
            found[message.read_u32(mac)] = VfSettings(
                vlan=_vlan(fields),
                mac=bytes(mac[4:10]).hex(":"),
                rates=_rates(fields),
                spoofchk=_switch(fields, _VF_SPOOFCHK),
                trust=_switch(fields, _VF_TRUST),
                link_state=_link_state(fields),
            )
    return found


def _vlan(fields: Mapping[int, memoryview]) -> VfVlan | None:
    for tagged in message.items(fields.get(_VF_VLAN_LIST, memoryview(b"")), _VF_VLAN_INFO):
        if len(tagged) >= _VLAN.size + _PROTOCOL.size:
            _, tag, qos = _VLAN.unpack_from(tagged)
            (number,) = _PROTOCOL.unpack_from(tagged, _VLAN.size)
            protocol = next((name for name, value in _PROTOCOLS.items() if value == number), "802.1q")
            return VfVlan(id=tag, qos=qos, protocol=protocol)
    plain = fields.get(_VF_VLAN, memoryview(b""))
    if len(plain) >= _VLAN.size:
        _, tag, qos = _VLAN.unpack_from(plain)
        return VfVlan(id=tag, qos=qos)
    return None


def _rates(fields: Mapping[int, memoryview]) -> tuple[int, int] | None:
    value = fields.get(_VF_RATE, memoryview(b""))
    if len(value) < _RATE.size:
        return None
    _, least, most = _RATE.unpack_from(value)
    return least, most


def _number(fields: Mapping[int, memoryview], kind: int) -> int:
    value = fields.get(kind, memoryview(b""))
    return int.from_bytes(value[4:8], sys.byteorder) if len(value) >= _NUMBER.size else _UNKNOWN


def _switch(fields: Mapping[int, memoryview], kind: int) -> bool | None:
    number = _number(fields, kind)
    return None if number == _UNKNOWN else bool(number)


def _link_state(fields: Mapping[int, memoryview]) -> str:
    number = _number(fields, _VF_LINK_STATE)
    return LINK_STATES[number] if number < len(LINK_STATES) else ""
