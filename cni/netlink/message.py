"""Netlink messages as bytes: headers, attributes and their decoding.

Written by hand because it is on the way of every ADD: a message costs microseconds this way and a quarter of a
millisecond with pyroute2, against whose encoder the tests check every message that is built from these parts.
Integers are in the machine's order, attributes are padded to four bytes (linux/netlink.h).
"""

import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv6Address

F_REQUEST = 0x1
F_ACK = 0x4
F_ECHO = 0x8
F_REPLACE = 0x100
F_EXCL = 0x200
F_DUMP = 0x300
F_CREATE = 0x400

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

u32 = struct.Struct("=I").pack


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length = 4 + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def text(kind: int, value: str) -> bytes:
    """An attribute with a zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute of attributes, with the flag that says so."""
    return attribute(kind | _NESTED, b"".join(attributes))


def message(kind: int, flags: int, sequence: int, *, body: bytes) -> bytes:
    """A whole message. `body` is the family's fixed header with the attributes behind it."""
    return HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body


def padded(kind: int, flags: int, sequence: int, *, body: bytes) -> bytes:
    """A whole message that another may follow."""
    made = message(kind, flags, sequence, body=body)
    return made + bytes(-len(made) % 4)


def attributes(buffer: memoryview) -> dict[int, memoryview]:
    """The attributes in `buffer` by type; of a repeated type the last. A cut one ends the reading."""
    found: dict[int, memoryview] = {}
    while len(buffer) >= 4:
        length, kind = _ATTRIBUTE.unpack_from(buffer)
        if length < 4 or length > len(buffer):
            break
        found[kind & _TYPE_MASK] = buffer[4:length]
        buffer = buffer[length + (-length % 4) :]
    return found


def items(buffer: memoryview, kind: int) -> Iterator[memoryview]:
    """Every attribute of one type in `buffer`, where a list is made of them. A cut one ends the reading."""
    while len(buffer) >= 4:
        length, found = _ATTRIBUTE.unpack_from(buffer)
        if length < 4 or length > len(buffer):
            break
        if found & _TYPE_MASK == kind:
            yield buffer[4:length]
        buffer = buffer[length + (-length % 4) :]


def messages(buffer: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Every message in one datagram as (type, flags, sequence, body)."""
    while len(buffer) >= 16:
        length, kind, flags, sequence, _ = HEADER.unpack_from(buffer)
        if length < 16 or length > len(buffer):
            break
        yield kind, flags, sequence, buffer[16:length]
        buffer = buffer[length + (-length % 4) :]


def read_text(value: memoryview | None) -> str:
    """A string attribute; empty when absent."""
    return bytes(value).rstrip(b"\0").decode(errors="replace") if value is not None else ""


def read_ip(value: memoryview | None) -> str:
    """An address, 4 or 16 bytes, as `ipaddress` writes it, which takes twenty times as long; empty when absent."""
    if value is None:
        return ""
    packed = bytes(value)
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    if packed[:10] == bytes(10):
        return str(IPv6Address(packed))  # the C library writes some of these with dots
    return socket.inet_ntop(socket.AF_INET6, packed)


def read_u32(value: memoryview | None) -> int:
    """A 32-bit attribute; 0 when absent."""
    return int.from_bytes(value[:4], sys.byteorder) if value is not None else 0
