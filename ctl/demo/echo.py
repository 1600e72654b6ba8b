"""An ICMP echo request out of a namespace. A fresh Debian has no ping, and this one tells its time without parsing."""

import os
import select
import socket
import struct
import time
from ipaddress import ip_address

from cni.netlink.socket import Netns

_HEADER = struct.Struct("!BBHHH")
_PAYLOAD = b"spiderpool demonstration"
_KINDS = {4: (8, 0), 6: (128, 129)}
"""Types of request and reply (RFC 792, RFC 4443)."""
_ATTEMPTS = 3
_SECONDS = 1.0


def ping(netns: Netns, target: str) -> float | None:
    """Milliseconds until `target` answered, from within `netns`; None when it did not, asked three times."""
    version = ip_address(target).version
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    with netns.entered():
        raw = socket.socket(family, socket.SOCK_RAW, protocol)
    with raw:
        for sequence in range(1, _ATTEMPTS + 1):
            begun = time.perf_counter()
            try:
                raw.sendto(_request(version, sequence), (target, 0))
            except OSError:
                time.sleep(_SECONDS / 10)  # no route yet, or not any more
                continue
            if _answered(raw, version, sequence, target, until=begun + _SECONDS):
                return (time.perf_counter() - begun) * 1e3
    return None


def _request(version: int, sequence: int) -> bytes:
    kind, _ = _KINDS[version]
    identifier = os.getpid() & 0xFFFF
    unsummed = _HEADER.pack(kind, 0, 0, identifier, sequence) + _PAYLOAD
    # The kernel fills in the sum of ICMPv6, which covers addresses too, and leaves that of ICMP to us.
    return _HEADER.pack(kind, 0, checksum(unsummed) if version == 4 else 0, identifier, sequence) + _PAYLOAD


def _answered(raw: socket.socket, version: int, sequence: int, target: str, *, until: float) -> bool:
    _, wanted = _KINDS[version]
    while (left := until - time.perf_counter()) > 0:
        if not select.select([raw], [], [], left)[0]:
            return False
        packet, source = raw.recvfrom(2048)
        if version == 4:
            packet = packet[(packet[0] & 15) * 4 :]
        if len(packet) < _HEADER.size or source[0] != target:
            continue
        kind, _, _, identifier, answered = _HEADER.unpack_from(packet)
        if (kind, identifier, answered) == (wanted, os.getpid() & 0xFFFF, sequence):
            return True
    return False


def checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
