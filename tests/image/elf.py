"""What an executable says of itself: its machine and the libraries it wants. Enough of ELF for that."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import msgspec

MACHINES: Final = {62: "amd64", 183: "arm64"}
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRTAB = 1, 5


class Elf(msgspec.Struct, frozen=True):
    """A 64-bit little-endian executable or library."""

    machine: str
    needed: list[str]


def read(path: Path) -> Elf | None:
    """Reads a file; None when it is no ELF file."""
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
    data = path.read_bytes()
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, table + number * size) for number in range(count)]
    loads = [(virtual, offset, length) for kind, _, offset, virtual, _, length, _, _ in headers if kind == _LOAD]
    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length, _, _ in headers:
        if kind == _DYNAMIC:
            entries += struct.iter_unpack("<qQ", data[offset : offset + length])
    strings = [value for tag, value in entries if tag == _STRTAB]
    needed = []
    if strings:
        start = next(strings[0] - at + offset for at, offset, length in loads if at <= strings[0] < at + length)
        for tag, value in entries:
            if tag == _NEEDED:
                needed.append(data[start + value : data.index(0, start + value)].decode())
    return Elf(machine=MACHINES.get(machine, str(machine)), needed=needed)
