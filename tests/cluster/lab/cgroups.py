"""The cgroups of the machines: below this process's own in version 1, so that its limits stay in force.

With cgroup version 2 they lie below the top folder, which alone may hold processes and controllers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from tests.cluster.inside.spec import Hierarchy
from tests.cluster.lab.state import Identity, LabFailed, LabUnavailable

WANTED: Final = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "name=systemd"})
TOP: Final = Path("/sys/fs/cgroup")


def version() -> int:
    """Of this machine's cgroups: 2 when they are unified."""
    return 2 if (TOP / "cgroup.controllers").exists() else 1


def folders(cluster: str, machine: str) -> list[Hierarchy]:
    """Where a machine's cgroups will be. Raises LabUnavailable."""
    name = f"spiderpool-{cluster}-{machine}"
    if version() == 2:
        return [Hierarchy(controllers="", folder=str(TOP / name))]
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[frozenset(controllers.split(","))] = path
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, mountpoint = before.split()[3:5]
        kind, _, options = after.split()[:3]
        held = next((names for names in own if names & WANTED and names <= set(options.split(","))), None)
        if kind != "cgroup" or held is None:
            continue
        path = own.pop(held)
        below = path.removeprefix(root) if root != "/" else path
        given = ",".join(sorted(held))
        found.append(Hierarchy(controllers=given, folder=str(Path(mountpoint) / below.strip("/") / name)))
    if not any("memory" in hierarchy.controllers for hierarchy in found):
        raise LabUnavailable("no cgroup hierarchy with a memory controller is mounted under /sys/fs/cgroup")
    return found


def make(hierarchies: list[Hierarchy]) -> None:
    """Makes the cgroups. Raises LabUnavailable."""
    for hierarchy in hierarchies:
        folder = Path(hierarchy.folder)
        try:
            folder.mkdir(exist_ok=True)
            if "cpuset" in hierarchy.controllers.split(","):
                # A new cpuset is empty and takes no process.
                for name in ("cpuset.cpus", "cpuset.mems"):
                    (folder / name).write_text((folder.parent / name).read_text())
            if not hierarchy.controllers:
                _delegate(folder)
        except OSError as problem:
            raise LabUnavailable(f"cannot make the cgroup {folder}: {problem}") from problem


def _delegate(folder: Path) -> None:
    for controller in ("cpu", "cpuset", "io", "memory", "pids"):
        with contextlib.suppress(OSError):
            (folder.parent / "cgroup.subtree_control").write_text(f"+{controller}")
    lacking = {"cpu", "memory", "pids"} - set((folder / "cgroup.controllers").read_text().split())
    if lacking:
        raise LabUnavailable(f"cgroup v2: {folder.parent} delegates no {', '.join(sorted(lacking))}")


def kill(hierarchies: list[Hierarchy]) -> None:
    """Kills every process that is still in one of them."""
    for hierarchy in hierarchies:
        for listing in Path(hierarchy.folder).glob("**/cgroup.procs"):
            for line in _lines(listing):
                with contextlib.suppress(ProcessLookupError):
                    if int(line) not in {0, os.getpid()}:
                        Identity.of(int(line)).send(signal.SIGKILL)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def remove(hierarchies: list[Hierarchy], *, seconds: float = 15.0) -> None:
    """Removes them with all below. Raises LabFailed when one stays."""
    deadline = time.monotonic() + seconds
    left = [Path(hierarchy.folder) for hierarchy in hierarchies]
    while left:
        for folder in left:
            for path in sorted((entry.parent for entry in folder.glob("**/cgroup.procs")), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
        left = [folder for folder in left if folder.exists()]
        if left and time.monotonic() > deadline:
            raise LabFailed(f"cgroups left: {', '.join(map(str, left))}")
        if left:
            time.sleep(0.05)


def cpu_seconds(hierarchies: list[Hierarchy], below: str = "") -> float:
    """CPU time that a machine (or the cgroups that the pattern `below` names) has used so far."""
    for hierarchy in hierarchies:
        names = hierarchy.controllers.split(",")
        folder = Path(hierarchy.folder)
        chosen = [folder] if not below else sorted(folder.glob(below))
        if "cpuacct" in names:
            return sum(int((path / "cpuacct.usage").read_text()) for path in chosen) / 1e9
        if not hierarchy.controllers:
            lines = [line for path in chosen for line in (path / "cpu.stat").read_text().splitlines()]
            return sum(int(line.split()[1]) for line in lines if line.startswith("usage_usec")) / 1e6
    return 0.0


def processes(hierarchies: list[Hierarchy], below: str) -> list[Identity]:
    """The processes in the cgroups that the pattern `below` names, and in those below them."""
    found = {}
    # A process is in every hierarchy; to read them all takes a second of CPU where there are a hundred pods.
    one = next((it for it in hierarchies if "memory" in it.controllers), hierarchies[0])
    for listing in Path(one.folder).glob(f"{below}/**/cgroup.procs"):
        for line in _lines(listing):
            with contextlib.suppress(ProcessLookupError):
                found[int(line)] = Identity.of(int(line))
    return [found[pid] for pid in sorted(found)]
