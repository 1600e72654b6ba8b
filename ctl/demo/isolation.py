"""Namespaces of our own, so that the demonstration needs no rights and leaves no trace.

Whoever is not root becomes root of a new user namespace; everybody gets a mount namespace. The network namespaces are
files that are mounted in there only: when the process ends, however it ends, the kernel takes them all away.
"""

import ctypes
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from cni.netlink.socket import Netns
from ctl.errors import Failure

_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_NET_ADMIN, _NET_RAW, _SYS_ADMIN = 12, 13, 21
_WANTED = 1 << _NET_ADMIN | 1 << _NET_RAW | 1 << _SYS_ADMIN
_LIMITS = {
    "kernel/unprivileged_userns_clone": "0",
    "user/max_user_namespaces": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}
"""Settings below /proc/sys that forbid user namespaces, with the value that does."""

_libc = ctypes.CDLL(None, use_errno=True)


class Isolation(Struct, frozen=True):
    """What `enter` did."""

    is_user: bool
    """Whether it took a user namespace."""
    outside: ThreadPoolExecutor
    """One thread in the network namespace that we came from: what it opens reaches the world."""


def enter() -> Isolation:
    """Move this process, which must have one thread, into namespaces of its own.

    The network namespace is a new and empty one as well: whoever has entered another as root of a user namespace could
    not come back to the machine's own.

    Raises:
        Failure: the kernel does not allow it.
    """
    needs_user = os.geteuid() != 0 or (_capabilities() & _WANTED) != _WANTED
    uid, gid = os.geteuid(), os.getegid()
    try:
        os.unshare(os.CLONE_NEWNS | (os.CLONE_NEWUSER if needs_user else 0))
        if needs_user:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
        _mount("none", "/", _MS_REC | _MS_PRIVATE)
        outside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outside")
        outside.submit(os.getpid).result()  # the thread exists from here, and stays where it is
        os.unshare(os.CLONE_NEWNET)
    except OSError as error:
        raise Failure(_refusal(error, uid)) from error
    return Isolation(is_user=needs_user, outside=outside)


def make_netns(path: Path) -> Netns:
    """A new network namespace, mounted at `path`. Close it, and `unmount` the path.

    Raises:
        Failure: the kernel does not allow it.
    """
    path.touch()
    errors: list[OSError] = []

    def make() -> None:
        try:
            os.unshare(os.CLONE_NEWNET)
            _mount("/proc/thread-self/ns/net", str(path), _MS_BIND)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if errors:
        raise Failure(_refusal(errors[0], os.geteuid())) from errors[0]
    return Netns.open(str(path))


def unmount(path: Path) -> None:
    """Take the mount off a path; one that is not mounted is fine."""
    _libc.umount2(os.fsencode(path), _MNT_DETACH)


def _mount(source: str, target: str, flags: int) -> None:
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def _capabilities() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def _refusal(error: OSError, uid: int) -> str:
    guilty = [name.replace("/", ".") + f"={value}" for name, value in _LIMITS.items() if _is(name, value)]
    why = f" ({', '.join(guilty)})" if guilty else ""
    if error.errno in {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS}:
        return f"user {uid} may not make namespaces here{why}: {error.strerror}{'; run it as root' if uid else ''}"
    return f"namespaces cannot be made{why}: {error}"


def _is(name: str, value: str) -> bool:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip() == value
    except OSError:
        return False
