"""A network of the test run's own: nothing that a test sends can reach the machine's network.

As root the whole run moves into new namespaces before the first server starts. Servers, programs, parent interfaces and
bridges of the tests are all made in there, and go with the process. So do the mounts by which the tests keep their
network namespaces, however a run ends: an agent looks for an address wherever a namespace is mounted, and would find
what another run left, or has right now.
"""

import ctypes
import fcntl
import os
import re
import socket
import struct
from pathlib import Path
from typing import Final

GUEST_VARIABLE: Final = "SPIDERPOOL_GUEST"
"""Set in a guest of `tests.vm`, which has no network but its own, and NICs that are in its first namespace."""

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_ESCAPE = re.compile(rb"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


def isolate() -> bool:
    """Move this process into namespaces of its own, with loopback up. Returns whether it could (root only).

    In a guest there is nothing to be isolated from.

    Threads that run already stay where they are: call it first.
    """
    if os.geteuid() != 0 or GUEST_VARIABLE in os.environ:
        return False
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "/")
    _leave_namespaces_of_others()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    return True


def _leave_namespaces_of_others() -> None:
    """Our copies of their mounts would keep them alive, and be looked into."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        if after.startswith(b"nsfs "):
            path = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), before.split(b" ")[4])
            _libc.umount2(path, _MNT_DETACH)
