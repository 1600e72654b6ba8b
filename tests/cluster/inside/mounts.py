"""The root file system of a node, made by its first process inside its own mount namespace.

Lower layer is this machine's root, upper layer the node's own: /opt/cni/bin, /etc/cni/net.d, /var/lib and every
hostPath belong to the node, and this machine sees none of it. containerd's folders are bind mounts from the real file
system, as overlayfs cannot lie on overlayfs.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Final

from tests.cluster.inside.spec import Hierarchy, Root

_libc = ctypes.CDLL(None, use_errno=True)
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_MACHINE: Final = platform.machine()

READ_ONLY: Final = 1
NO_SUID: Final = 2
NO_DEV: Final = 4
REMOUNT: Final = 32
BIND: Final = 4096
RECURSIVE: Final = 16384
PRIVATE: Final = 1 << 18
SHARED: Final = 1 << 20
DETACH: Final = 2

TUNABLES: Final = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What kubelet would write for the whole machine; a node shows it files that hold these values already."""


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or 'bind'} {source}: {os.strerror(number)}", str(target))


def make_private() -> None:
    """No mount made here reaches this machine's own mount table."""
    mount("none", "/", flags=PRIVATE | RECURSIVE)


def bind(source: str, target: Path, *, read_only: bool = False) -> None:
    """Shows a file or folder at a second place, made if missing."""
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    mount(source, target, flags=BIND)
    if read_only:
        mount(source, target, flags=BIND | REMOUNT | READ_ONLY)


def enter_root(root: Root, cgroups: list[Hierarchy]) -> None:
    """Builds the root and makes it this process's. Raises OSError."""
    top = Path(root.mountpoint)
    mount("overlay", top, "overlay", options=f"lowerdir=/,upperdir={root.upper},workdir={root.work}")
    mount("proc", top / "proc", "proc")
    mount("sysfs", top / "sys", "sysfs")
    _mount_cgroups(top / "sys/fs/cgroup", cgroups)
    mount("/dev", top / "dev", flags=BIND | RECURSIVE)
    mount("run", top / "run", "tmpfs", NO_SUID | NO_DEV, "mode=755")
    mount("tmp", top / "tmp", "tmpfs", NO_SUID | NO_DEV, "mode=1777")
    for name in root.hidden:
        if (top / name).is_dir():
            mount("hidden", top / name, "tmpfs", options="mode=700")
    for folder in ("lock", "netns"):
        (top / "run" / folder).mkdir()
    for source, target in root.binds.items():
        bind(source, top / target.lstrip("/"))
    for source, target in root.read_only_binds.items():
        bind(source, top / target.lstrip("/"), read_only=True)
    _stand_in_for_tunables(top, Path(root.tunables))
    old = top / ".old"
    old.mkdir(exist_ok=True)
    os.chdir(top)
    if _libc.syscall(_PIVOT_ROOT[_MACHINE], b".", b".old"):
        number = ctypes.get_errno()
        raise OSError(number, f"pivot_root: {os.strerror(number)}")
    os.chdir("/")
    _libc.umount2(b"/.old", DETACH)
    Path("/.old").rmdir()
    # hostPath volumes with mount propagation ask for a shared root.
    mount("none", "/", flags=SHARED | RECURSIVE)


def _mount_cgroups(folder: Path, cgroups: list[Hierarchy]) -> None:
    """Mounted inside the cgroup namespace, each hierarchy begins at the node's own cgroup."""
    if not all(hierarchy.controllers for hierarchy in cgroups):
        mount("cgroup2", folder, "cgroup2")
        return
    mount("cgroups", folder, "tmpfs", options="mode=755")
    for hierarchy in cgroups:
        name = hierarchy.controllers.removeprefix("name=")
        (folder / name).mkdir()
        named = hierarchy.controllers.startswith("name=")
        mount("cgroup", folder / name, "cgroup", options=f"none,{hierarchy.controllers}" if named else name)
        for controller in name.split(","):
            if controller != name:
                (folder / controller).symlink_to(name)


def _stand_in_for_tunables(top: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in TUNABLES.items():
        target = top / "proc/sys" / name
        if target.exists():
            source = folder / name.replace("/", ".")
            source.write_text(f"{value}\n")
            bind(str(source), target)
