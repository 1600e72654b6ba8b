"""Tells when a namespace's mount goes: inotify on the folders where container runtimes mount them.

A sandbox that goes without a DEL would otherwise be noticed by the next look only. The event says that a file went,
which is more than that nobody finds it now and less than that the namespace is dead: a process may go on in it. So an
event makes somebody look, and frees nothing.

inotify works on the folder itself, not on a path: it sees what a runtime does in another mount namespace. Namespaces
that are named below /proc have no file that goes; they are left to the look.
"""

import asyncio
import ctypes
import errno
import logging
import os
import struct
from collections import deque
from pathlib import PurePosixPath
from typing import Self

_log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("=iIII")
_BUFFER = 1 << 16
_CLOEXEC, _NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_MOVED_FROM, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x40, 0x200, 0x400, 0x800
_OVERFLOW, _IGNORED = 0x4000, 0x8000
_ONLYDIR = 0x1000000
_MASK = _MOVED_FROM | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
_QUEUED = 4096
"""Departures that nobody has taken yet; beyond that they are forgotten, and the look finds them."""


class NetnsWatch:
    """Iterates over the paths that went, for ever. Made, used and closed on the event loop."""

    def __init__(self) -> None:
        """Nothing is watched. Raises `OSError` when the kernel has no inotify instance left."""
        self._descriptor = _checked(_libc.inotify_init1(_CLOEXEC | _NONBLOCK))
        self._folders: dict[int, set[str]] = {}
        """By watch descriptor: two names of one folder (/run, /var/run) share one."""
        self._gone: deque[str] = deque(maxlen=_QUEUED)
        self._arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def __repr__(self) -> str:
        return f"<NetnsWatch {', '.join(sorted(self.folders)) or 'nothing'}>"

    @property
    def folders(self) -> frozenset[str]:
        """What is watched."""
        return frozenset(name for names in self._folders.values() for name in names)

    def cover(self, path: str) -> None:
        """Watch the folder that holds this namespace from now on; one that is missing, or below /proc, is left out."""
        folder = str(PurePosixPath(path).parent)
        if not path.startswith("/") or folder.startswith("/proc/") or folder in self.folders:
            return
        try:
            watch = _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _MASK))
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("%s cannot be watched, namespaces that go from there are noticed late: %s", folder, error)
            return
        self._folders.setdefault(watch, set()).add(folder)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._folders.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._gone:
            self._arrived.clear()
            await self._arrived.wait()
        return self._gone.popleft()

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
        if self._gone:
            self._arrived.set()

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            _log.warning("more namespaces went at once than the kernel could tell: the next look finds them")
        elif mask & (_DELETE_SELF | _MOVE_SELF | _IGNORED):
            # The folder itself: what is made in its place is another one, and covered when somebody names it.
            if mask & _MOVE_SELF:
                _libc.inotify_rm_watch(self._descriptor, watch)
            self._folders.pop(watch, None)
        elif mask & (_MOVED_FROM | _DELETE):
            self._gone.extend(f"{folder}/{name}" for folder in sorted(self._folders.get(watch, ())))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
