"""What the kernel tells of folders: a thin layer over inotify, on the event loop.

It works on the folder itself, not on a path: it sees what another program does to it in another mount namespace.
"""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16
CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
OVERFLOW, IGNORED = 0x4000, 0x8000
ONLYDIR = 0x1000000
"""Bits of a mask, inotify(7)."""


class Inotify:
    """One instance. Made, used and closed on the event loop."""

    def __init__(self, take: Callable[[int, int, str], None]) -> None:
        """`take` gets every event: the watch's number, the mask, and the file's name in the folder.

        Raises `OSError` when the kernel has no instance left.
        """
        self._take = take
        self._descriptor = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def __repr__(self) -> str:
        return f"<Inotify {self._descriptor}>"

    def add(self, path: str, mask: int) -> int:
        """Watch a folder and return the watch's number, the same for two names of one folder. Raises `OSError`."""
        return _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask))

    def remove(self, watch: int) -> None:
        """End a watch; one that has ended is none."""
        _libc.inotify_rm_watch(self._descriptor, watch)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _BUFFER)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            self._take(watch, mask, name)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
