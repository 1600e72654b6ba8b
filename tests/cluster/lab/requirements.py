"""What the lab needs of a machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.cluster.lab.plan import labs_folder

PROGRAMS: Final = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux", "mount": "mount"}
PROBES: Final = {
    "a bridge": "ip link add p0 type bridge",
    "veth pairs": "ip link add p1 type veth peer name p2",
    "macvlan": "ip link add p3 link p1 type macvlan mode bridge",
    "overlayfs on the cache folder": "mount -t overlay overlay -o lowerdir=/,upperdir=$1/upper,workdir=$1/work $1/root",
}
"""What a kernel or a container may refuse -> the command that tries it, in namespaces of its own."""


def is_root() -> bool:
    """Whether we are root, and not only in a user namespace, where cgroups are out of reach."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]


def missing() -> list[str]:
    """One line for each thing that the lab needs and this machine lacks; nothing where it can run."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return [f"Linux on x86_64 (this is {platform.system()} on {platform.machine()})"]
    if not is_root():
        return ["root (not in a user namespace)"]
    lacking = [f"{program}: apt-get install {package}" for program, package in PROGRAMS.items() if not _found(program)]
    if lacking:
        return lacking
    labs_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=labs_folder(), prefix=".probe-") as name:
        for folder in ("upper", "work", "root"):
            (Path(name) / folder).mkdir()
        unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup", "--fork"]
        script = "".join(f"{command} 2>/dev/null || echo '{what}'\n" for what, command in PROBES.items())
        done = subprocess.run([*unshare, "sh", "-c", script, "sh", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"namespaces: {' '.join(unshare)}: {done.stderr.strip()}"]
    return done.stdout.splitlines()


def _found(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin") is not None
