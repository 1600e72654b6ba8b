"""What a guest is made of: QEMU, a kernel with its modules, a busybox. All of Debian, unpacked into the cache.

Nothing is installed: QEMU runs with the C library that it was built for, by that library's own loader, so it does not
matter which Debian this machine is. The kernel is the newest that the backports have when their index is asked, once a
day; its version is known only then, as the mirror keeps no older ones for long. Without a network the last one serves.
"""

from __future__ import annotations

import lzma
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.servers.debian import node_packages
from tests.servers.provide import Progress, ServersUnavailable, cache_folder, made_once, silent
from tools.image.apt import BACKPORTS, Apt, AptError

PACKAGES: Final = ("qemu-system-x86", "busybox-static", "kmod")
KERNEL: Final = "linux-image-amd64"
ASK_SECONDS: Final = 24 * 3600.0
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
ROOT_MODULES: Final = ("9pnet_virtio", "9p", "overlay")
"""What a guest cannot have a root file system without."""

NIC_MODULES: Final = ("igb", "igbvf")
LINK_MODULES: Final = (
    *("veth", "dummy", "bridge", "macvlan", "macvtap", "ipvlan", "8021q", "bonding", "vrf", "ifb", "tun", "vxlan"),
    *("nf_tables", "nft_ct", "nft_masq", "nft_nat", "nft_limit", "nft_fib_inet", "nft_reject_inet"),
    *("nft_redir", "nft_hash", "nft_numgen", "nft_meta_bridge", "nft_reject_bridge", "nf_conntrack_bridge"),
    *("sch_tbf", "sch_ingress", "sch_htb", "cls_u32", "cls_matchall", "cls_flower", "act_police"),
    *("act_mirred", "fou"),
)
"""Kept unpacked, since a guest takes long to unpack them. Every other module of the kernel is there as well."""


class Parts(msgspec.Struct, frozen=True):
    """Folders of the cache that hold what a guest needs.

    Attributes:
        tools: tree of QEMU, busybox and kmod with their libraries.
        system: tree of the kernel; what of it is needed inside lies in ``usr/lib/modules``.
        node: tree of programs that a node has and this machine may lack.
        release: of the kernel, as ``uname -r`` says it.
    """

    tools: Path
    system: Path
    node: Path
    release: str

    @property
    def kernel(self) -> Path:
        """The image that boots."""
        return self.modules / "vmlinuz"

    @property
    def modules(self) -> Path:
        """Folder of the modules."""
        return self.system / "usr/lib/modules" / self.release

    @property
    def busybox(self) -> Path:
        """One program for all that is done before there is a root file system; static."""
        return self.tools / "usr/bin/busybox"

    def qemu(self) -> list[str]:
        """The start of a command line of QEMU."""
        share = self.tools / "usr/share"
        command = run_by_loader(self.tools, "usr/bin/qemu-system-x86_64")
        return [*command, "-L", str(share / "qemu"), "-L", str(share / "seabios")]

    def module_files(self, names: Iterable[str]) -> list[Path]:
        """The files of modules and of all that they need, in an order to load them."""
        return [self.modules / one for one in in_order(read_dependencies(self.modules), names)]


def run_by_loader(tree: Path, program: str, *, name: str = "") -> list[str]:
    """The start of a command line that runs a program of an unpacked tree with the libraries of that tree."""
    command = [str(tree / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(tree / LIBRARIES)]
    return [*command, *(["--argv0", name] if name else []), str(tree / program)]


def cached() -> Parts:
    """The parts as the cache has them.

    Raises:
        ServersUnavailable: it does not have them all, or no guest can run here.
    """
    _require_machine()
    folder = _folder()
    tools, newest = folder / _tools_name(), folder / "kernel"
    if not newest.exists() or not tools.exists():
        raise ServersUnavailable(f"{folder} holds no QEMU and kernel yet: `make servers` fetches them, or says why not")
    release = newest.read_text().strip()
    return Parts(tools=tools, system=folder / f"kernel-{release}", node=node_packages(), release=release)


def provide(*, progress: Progress = silent) -> Parts:
    """The parts, fetched first if the cache lacks them or there may be a newer kernel.

    Raises:
        ServersUnavailable: no guest can run here, or there are neither cached parts nor a mirror that has them.
    """
    _require_machine()
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    node_packages(progress=progress)
    newest = folder / "kernel"
    known = newest.exists() and (folder / _tools_name()).exists()
    if known and time.time() - newest.stat().st_mtime < ASK_SECONDS:
        return cached()
    try:
        apt = Apt(folder / "apt", "amd64", backports=True)
        _make_tools(apt, folder / _tools_name(), progress)
        release, packages = _newest_kernel(apt)
        _make_kernel(apt, packages, folder, release, progress)
    except (AptError, OSError, subprocess.CalledProcessError) as problem:
        if not known:
            detail = problem.stderr.strip() if isinstance(problem, subprocess.CalledProcessError) else problem
            raise ServersUnavailable(f"QEMU and a kernel for it: {detail}") from problem
        progress(f"kernel {newest.read_text().strip()}, as the mirror cannot be asked for a newer one")
        return cached()
    newest.write_text(release)
    for old in folder.glob("kernel-*"):
        if old.name != f"kernel-{release}":
            shutil.rmtree(old)
    return cached()


def read_dependencies(modules: Path) -> dict[str, tuple[str, Sequence[str]]]:
    """From modules.dep: the file of each module by its name, and the files that it needs, the last one first."""
    found: dict[str, tuple[str, Sequence[str]]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        found[_module_name(path)] = (path, needs.split())
    return found


def in_order(dependencies: dict[str, tuple[str, Sequence[str]]], names: Iterable[str]) -> list[str]:
    """The files of modules and of all that they need, each once, after what it needs.

    A name that is no module's is left out: what is built into one kernel is a module of another.
    """
    files: dict[str, None] = {}
    for name in names:
        if name in dependencies:
            path, needs = dependencies[name]
            files |= dict.fromkeys([*reversed(needs), path])
    return list(files)


def _module_name(path: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.rpartition("/")[2]).replace("-", "_")


def _folder() -> Path:
    return cache_folder() / "vm"


def _tools_name() -> str:
    return "-".join(("tools", *PACKAGES))


def _require_machine() -> None:
    if platform.machine() != "x86_64":
        raise ServersUnavailable(
            f"a guest runs this machine's programs, and its kernel is for x86_64, this is {platform.machine()}"
        )


def _make_tools(apt: Apt, target: Path, progress: Progress) -> None:
    with made_once(target) as scratch:
        if scratch is None:
            return
        progress(f"{', '.join(PACKAGES)}: from Debian's archive")
        with tempfile.TemporaryDirectory() as downloads:
            for package in apt.download(PACKAGES, Path(downloads)):
                _unpack(package, scratch)
        for unread in ("doc", "locale", "man"):
            shutil.rmtree(scratch / "usr/share" / unread, ignore_errors=True)


def _newest_kernel(apt: Apt) -> tuple[str, list[str]]:
    """Its release, and the packages that it is in: one, or one each for the image, the modules and their list."""
    releases = [re.fullmatch(r"linux-image-(\d.*)", name) for name in apt.depends(KERNEL, suite=BACKPORTS)]
    release = next((match[1] for match in releases if match), None)
    if release is None:
        raise AptError(f"{KERNEL} of {BACKPORTS} names no kernel")
    image = f"linux-image-{release}"
    return release, [name for name in apt.depends(image, suite=BACKPORTS) if name.endswith(f"-{release}")] or [image]


def _make_kernel(apt: Apt, packages: Sequence[str], folder: Path, release: str, progress: Progress) -> None:
    with made_once(folder / f"kernel-{release}") as scratch:
        if scratch is None:
            return
        progress(f"kernel {release}: from Debian's archive")
        with tempfile.TemporaryDirectory() as downloads:
            for package in apt.download(packages, Path(downloads), suite=BACKPORTS, alone=True):
                _unpack(package, scratch)
        modules = scratch / "usr/lib/modules" / release
        if not modules.exists():
            shutil.move(scratch / "lib/modules" / release, modules)
        if not (modules / "vmlinuz").exists():
            shutil.move(scratch / f"boot/vmlinuz-{release}", modules / "vmlinuz")
        shutil.rmtree(scratch / "usr/share", ignore_errors=True)
        _list_modules(folder / _tools_name(), scratch, release)
        for path in in_order(read_dependencies(modules), (*ROOT_MODULES, *NIC_MODULES, *LINK_MODULES)):
            file = modules / path
            if file.suffix == ".xz":
                file.with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
                file.unlink()
        _list_modules(folder / _tools_name(), scratch, release)


def _list_modules(tools: Path, system: Path, release: str) -> None:
    depmod = run_by_loader(tools, "usr/bin/kmod", name="depmod")
    subprocess.run([*depmod, "-b", system / "usr", release], check=True, capture_output=True, text=True)


def _unpack(package: Path, tree: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tree], check=True, capture_output=True, text=True)
