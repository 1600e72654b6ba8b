"""Debian's own CNI plugins, unpacked into the cache and not installed: what a distribution's user has on the node."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.servers.provide import Progress, ServersUnavailable, cache_folder, silent

PACKAGE: Final = "containernetworking-plugins"
PLUGINS: Final = Path("usr/lib/cni")


def debian_plugins(*, progress: Progress = silent) -> Path:
    """The folder with Debian's plugins, a CNI_PATH.

    Raises:
        ServersUnavailable: this is no Debian, or its package index has no such package.
    """
    folder = cache_folder() / "debian" / PACKAGE
    if (folder / PLUGINS / "macvlan").exists():
        return folder / PLUGINS
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ServersUnavailable(f"{PACKAGE}: neither apt-get nor dpkg-deb here, this is no Debian")
    progress(f"{PACKAGE}: from Debian's archive")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        try:
            if _run(["apt-get", "download", PACKAGE], scratch).returncode and os.geteuid() == 0:
                _run(["apt-get", "update"], scratch, check=True)
                _run(["apt-get", "download", PACKAGE], scratch, check=True)
            package = next(scratch.glob("*.deb"), None)
            if package is None:
                raise ServersUnavailable(f"{PACKAGE}: apt-get download brought nothing; is there a package index?")
            _run(["dpkg-deb", "--extract", str(package), str(scratch / "root")], scratch, check=True)
        except subprocess.CalledProcessError as problem:
            raise ServersUnavailable(f"{PACKAGE}: {problem.stderr.strip().splitlines()[-1:]}") from problem
        shutil.rmtree(folder, ignore_errors=True)
        (scratch / "root").rename(folder)
    return folder / PLUGINS


def _run(argv: list[str], folder: Path, *, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL)
