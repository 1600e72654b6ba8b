"""Which of two agents on a node works on a container now.

While one agent replaces another both run, on one journal. What one of them does to a container (an ADD under way, a
release that is owed) the other must neither repeat nor undo, so a container is claimed before it is touched.

A claim is a lock on one byte of one file, at an offset drawn from the container's id: nothing piles up, two containers
do not meet, and the kernel drops the claims of a process that dies. The locks belong to the open file (Linux's "open
file description locks"), so within a process a claim excludes nobody: its actors have their own order.
"""

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path

from cni.errors import IoFailure

_FLOCK = struct.Struct("@hhqqi0q")
"""struct flock of 64-bit Linux: type, whence, start, length, pid (must be 0)."""


class Claims:
    """The claims of this process. Calls take microseconds and never wait, except `open`."""

    def __init__(self, path: Path) -> None:
        """`path` is a file that all agents of the node share; it is made when missing and stays."""
        self._path = path
        self._descriptor = -1

    def __repr__(self) -> str:
        return f"<Claims {self._path}{'' if self._descriptor >= 0 else ' closed'}>"

    def open(self) -> None:
        """Open the file; a second time does nothing.

        Raises:
            IoFailure: it cannot be opened.
        """
        if self._descriptor < 0:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise IoFailure(f"lock file {self._path} cannot be opened", str(error)) from error

    def close(self) -> None:
        """Give up all claims."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def take(self, container_id: str) -> bool:
        """Claim a container; False while another process has it. It may be taken again by who has it already.

        Raises:
            IoFailure: the file system keeps no locks.
        """
        try:
            self._set(fcntl.F_WRLCK, container_id)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise IoFailure(f"lock file {self._path} cannot be locked", str(error)) from error
        return True

    def drop(self, container_id: str) -> None:
        """Give a claim up; one that is not held is fine."""
        if self._descriptor >= 0:
            self._set(fcntl.F_UNLCK, container_id)

    def _set(self, kind: int, container_id: str) -> None:
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "it is not open")
        digest = hashlib.sha256(container_id.encode()).digest()
        offset = int.from_bytes(digest[:8]) >> 2
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0))
