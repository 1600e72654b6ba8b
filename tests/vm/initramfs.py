"""The archive that a kernel unpacks as its first file system: cpio, "newc", which is simple enough to write here."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INIT: Final = Path(__file__).with_name("init")
_ALIGNMENT: Final = 4
_TRAILER: Final = "TRAILER!!!"


def archive(*, busybox: Path, modules: Sequence[Path]) -> bytes:
    """An archive with a busybox, `init` and modules, whose names sort in the order to load them."""
    entries = [
        *(_entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "proc", "modules", "layers")),
        _entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        _entry("init", stat.S_IFREG | 0o755, INIT.read_bytes()),
        *(
            _entry(f"modules/{number:03d}-{path.name}", stat.S_IFREG | 0o644, path.read_bytes())
            for number, path in enumerate(modules)
        ),
        _entry(_TRAILER, 0),
    ]
    return b"".join(entries)


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """One file: thirteen numbers in hex, the name, the content, each filled up to a multiple of four bytes."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _filled(header + path) + _filled(content)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
