"""Tells when a namespace's mount goes: inotify on the folders where container runtimes mount them.

A sandbox that goes without a DEL would otherwise be noticed by the next look only. The event says that a file went,
which is more than that nobody finds it now and less than that the namespace is dead: a process may go on in it. So an
event makes somebody look, and frees nothing.

Namespaces that are named below /proc have no file that goes; they are left to the look.
"""

import asyncio
import errno
import logging
from collections import deque
from pathlib import PurePosixPath
from typing import Self

from cni.inotify import DELETE, DELETE_SELF, IGNORED, MOVE_SELF, MOVED_FROM, ONLYDIR, OVERFLOW, Inotify

_log = logging.getLogger(__name__)

_MASK = MOVED_FROM | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR
_QUEUED = 4096
"""Departures that nobody has taken yet; beyond that they are forgotten, and the look finds them."""


class NetnsWatch:
    """Iterates over the paths that went, for ever. Made, used and closed on the event loop."""

    def __init__(self) -> None:
        """Nothing is watched. Raises `OSError` when the kernel has no inotify instance left."""
        self._inotify = Inotify(self._take)
        self._folders: dict[int, set[str]] = {}
        """By watch descriptor: two names of one folder (/run, /var/run) share one."""
        self._gone: deque[str] = deque(maxlen=_QUEUED)
        self._arrived = asyncio.Event()

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
            watch = self._inotify.add(folder, _MASK)
        except OSError as error:
            if error.errno != errno.ENOENT:
                _log.warning("%s cannot be watched, namespaces that go from there are noticed late: %s", folder, error)
            return
        self._folders.setdefault(watch, set()).add(folder)

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()
        self._folders.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._gone:
            self._arrived.clear()
            await self._arrived.wait()
        return self._gone.popleft()

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & OVERFLOW:
            _log.warning("more namespaces went at once than the kernel could tell: the next look finds them")
        elif mask & (DELETE_SELF | MOVE_SELF | IGNORED):
            # The folder itself: what is made in its place is another one, and covered when somebody names it.
            if mask & MOVE_SELF:
                self._inotify.remove(watch)
            self._folders.pop(watch, None)
        elif mask & (MOVED_FROM | DELETE):
            self._gone.extend(f"{folder}/{name}" for folder in sorted(self._folders.get(watch, ())))
            self._arrived.set()
