"""Packages of the machine's own Debian, unpacked into the cache and not installed.

Debian's CNI plugins are what a distribution's user has on the node; the cluster lab's nodes get the tools that a node
has and this machine may lack.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.servers.provide import Progress, ServersUnavailable, cache_folder, made_once, silent

PACKAGE: Final = "containernetworking-plugins"
PLUGINS: Final = Path("usr/lib/cni")
NODE_PACKAGES: Final = (
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libjansson4", "libgmp10", "libedit2", "libbsd0", "libmd0"),
    *("libxtables12", "conntrack", "libnetfilter-conntrack3", "libnfnetlink0"),
    *("ethtool", "kmod", "socat", "busybox-static", "iptables", "libip4tc2", "libip6tc2"),
)
"""Programs of the lab's nodes with the libraries that a small machine lacks."""


def debian_plugins(*, progress: Progress = silent) -> Path:
    """The folder with Debian's plugins, a CNI_PATH.

    Raises:
        ServersUnavailable: this is no Debian, or its package index has no such package.
    """
    return unpacked((PACKAGE,), progress=progress) / PLUGINS


def node_packages(*, progress: Progress = silent) -> Path:
    """A tree of `NODE_PACKAGES`, to be laid over a node's root. Raises ServersUnavailable."""
    return unpacked(NODE_PACKAGES, progress=progress)


def unpacked(packages: Sequence[str], *, progress: Progress = silent) -> Path:
    """A folder that holds what the packages would install: nothing but their ``usr``, with /bin, /sbin, /lib merged in.

    Raises:
        ServersUnavailable: this is no Debian, or its package index has no such package.
    """
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    folder = cache_folder() / "debian" / (packages[0] if len(packages) == 1 else f"{packages[0]}-{key}")
    with made_once(folder) as scratch:
        if scratch is not None:
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                raise ServersUnavailable(f"{packages[0]}: neither apt-get nor dpkg-deb here, this is no Debian")
            progress(f"{', '.join(packages)}: from Debian's archive")
            try:
                _unpack(packages, scratch)
            except subprocess.CalledProcessError as problem:
                raise ServersUnavailable(f"{packages[0]}: {problem.stderr.strip().splitlines()[-1:]}") from problem
    return folder


def _unpack(packages: Sequence[str], folder: Path) -> None:
    downloads, root = folder / "downloads", folder / "root"
    downloads.mkdir()
    if _run(["apt-get", "download", *packages], downloads).returncode and os.geteuid() == 0:
        _run(["apt-get", "update"], downloads, check=True)
        _run(["apt-get", "download", *packages], downloads, check=True)
    found = sorted(downloads.glob("*.deb"))
    if len(found) < len(packages):
        raise ServersUnavailable(f"{packages[0]}: apt-get download brought too little; is there a package index?")
    for package in found:
        _run(["dpkg-deb", "--extract", str(package), str(root)], downloads, check=True)
    # A real /bin in a layer over a merged-usr root would hide the symlink /bin.
    for name in ("bin", "sbin", "lib"):
        if (root / name).is_dir():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(root / "usr" / "share", ignore_errors=True)
    (root / "usr").rename(folder / "usr")
    shutil.rmtree(root)
    shutil.rmtree(downloads)


def _run(argv: list[str], folder: Path, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL)
