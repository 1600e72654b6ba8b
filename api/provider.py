"""The contract of a network provider: what it is asked over HTTP, and what its answers say. Pure.

A provider assigns addresses on a cloud's side: it attaches each to the NIC of a node and says with which MAC address
and VLAN id frames of it go there. Bodies are JSON; any status of 2xx is a success. IPv4 only.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Final

import msgspec
from msgspec import Struct

ALLOCATE: Final = "/v1/apis/network.iaas.io/ipam/allocate-ips"
RELEASE: Final = "/v1/apis/network.iaas.io/ipam/release-ip"
TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"
"""After so many milliseconds nobody waits for the answer any more: what is not done then is not to be done."""
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_VLANS: Final = range(1, 4095)
_SHOWN: Final = 200


class AnswerError(ValueError):
    """An answer of the provider cannot be used; the text names the field and the value."""


class Wanted(Struct, frozen=True, rename="camel"):
    """One address that a pod is to have."""

    ip_address: str
    """Canonical, without prefix length."""
    subnet: str
    """CIDR."""
    parent_nic_mac: str
    """Of the node's NIC below the pod's."""


class AllocateRequest(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Body of a POST to `ALLOCATE`. The same may be asked more than once."""

    node_name: str
    wanted: Sequence[Wanted] = msgspec.field(name="iaasIPsAllocationRequest")
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = msgspec.field(name="podUID", default="")


class ReleaseRequest(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Body of a POST to `RELEASE`. What the provider does not have is released."""

    node_name: str = msgspec.field()
    subnet: str = msgspec.field()
    ip_address: str = msgspec.field()
    parent_nic_mac: str = ""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = msgspec.field(name="podUID", default="")


class Assigned(Struct, frozen=True):
    """How frames of an address go on the node's NIC."""

    mac: str
    vlan: int


class _Item(Struct, frozen=True, rename="camel"):
    ip_address: str = ""
    mac_address: str = ""
    vlan_id: int = 0


class _AllocateResponse(Struct, frozen=True):
    items: list[_Item] = msgspec.field(name="iaasIPsAllocationResponse", default_factory=list)


_responses = msgspec.json.Decoder(_AllocateResponse)


def read_assigned(body: bytes, addresses: Collection[str]) -> Mapping[str, Assigned]:
    """What an answer to `AllocateRequest` says of these addresses (canonical, without prefix length): of all of them.

    Raises:
        AnswerError: it is no such answer; an address is missing, there twice or was not asked for; a MAC address or a
            VLAN id is none.
    """
    try:
        items = _responses.decode(body).items
    except ValueError as error:
        text = body[:_SHOWN].decode(errors="replace")
        raise AnswerError(f"the provider's answer cannot be read: {error}: {text!r}") from None
    found: dict[str, Assigned] = {}
    for item in items:
        address = _canonical(item.ip_address)
        if address not in addresses:
            raise AnswerError(f"the provider's answer: ipAddress: {item.ip_address!r} was not asked for")
        if address in found:
            raise AnswerError(f"the provider's answer: ipAddress: {address} is there twice")
        mac = item.mac_address.lower().replace("-", ":")
        if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not mac.strip("0:"):
            raise AnswerError(f"the provider's answer for {address}: macAddress: {item.mac_address!r} is none of a NIC")
        if item.vlan_id not in _VLANS:
            raise AnswerError(f"the provider's answer for {address}: vlanId: {item.vlan_id}: expected 1 to 4094")
        found[address] = Assigned(mac, item.vlan_id)
    missing = sorted(address for address in addresses if address not in found)
    if missing:
        raise AnswerError(f"the provider's answer has nothing for {', '.join(missing)}")
    return found


def subnet_of(text: str) -> str:
    """A pool's subnet as the provider is told it, without host bits; the text itself where it is none."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        return text


def _canonical(text: str) -> str:
    """The address without a prefix length; the text itself where it is none."""
    try:
        return str(ip_address(text.partition("/")[0]))
    except ValueError:
        return text
