"""How a cluster comes up and goes: what is made, in which order, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.cluster.inside.spec import Spec
from tests.cluster.lab import cgroups, control_plane, images, kubeconfig, network, node_files, plan
from tests.cluster.lab.machine import Machine, environment_of, spawn
from tests.cluster.lab.node import PLANE, Node
from tests.cluster.lab.requirements import missing
from tests.cluster.lab.state import ClusterState, Identity, LabFailed, LabUnavailable, StateFolder
from tests.servers.debian import node_packages
from tests.servers.provide import Progress, executable

PROGRAMS: Final = (*control_plane.COMPONENTS, *node_files.PROGRAMS, *node_files.CNI_PLUGINS, "helm")


def claim(folder: StateFolder, *, seconds: float, progress: Progress) -> None:
    """Makes sure that no cluster of this name is up, and takes down one whose owner is dead.

    The caller holds the folder's lock.

    Raises:
        LabUnavailable: it is in use and still was after `seconds`.
    """
    deadline = time.monotonic() + seconds
    told = False
    while folder.exists:
        state = folder.read()
        if state is None or not state.ready or (state.owner is not None and not state.owner.alive):
            progress(f"cluster {folder.name} was left behind; taking it down")
            remove(folder)
            return
        whose = f"by process {state.owner.pid}" if state.owner else "until it is taken down"
        if time.monotonic() >= deadline:
            raise LabUnavailable(
                f"cluster {folder.name} is up, used {whose}: make cluster-down, or python -m tests.cluster down"
                f" --name {folder.name}"
            )
        if not told:
            progress(f"cluster {folder.name} is used {whose}; waiting")
            told = True
        time.sleep(1)


def create(
    folder: StateFolder,
    *,
    nodes: int,
    cni: plan.Cni,
    owner: Identity | None,
    prepare: Mapping[str, Sequence[Sequence[str]]],
    archives: Sequence[Path],
    durable: bool,
    progress: Progress,
) -> None:
    """Starts all machines of a cluster; returns when their processes exist, not when they are ready."""
    lacking = missing()
    if lacking:
        raise LabUnavailable(f"the cluster lab cannot run here, it needs: {'; '.join(lacking)}")
    programs = {name: executable(name, progress=progress) for name in PROGRAMS}
    tools = node_packages(progress=progress)
    archives = [*images.lab_images(progress=progress), *archives]
    names = [f"n{index}" for index in range(1, nodes + 1)]
    state = ClusterState(
        name=folder.name,
        cni=cni,
        nodes=names,
        owner=owner,
        cgroups={machine: cgroups.folders(folder.name, machine) for machine in (PLANE, *names)},
        prepare={name: [list(argv) for argv in commands] for name, commands in prepare.items()},
    )
    path = folder.path
    for name in ("log", "pids", "programs", "images", "bin", "home", f"{PLANE}/shared"):
        (path / name).mkdir(parents=True, mode=0o755)
    (path / "etcd").mkdir(mode=0o700)
    folder.write(state)
    for name in node_files.PROGRAMS:
        (path / "programs" / name).hardlink_to(programs[name])
    for archive in archives:
        _link_or_copy(archive, path / "images" / archive.name)
    for name in ("kubectl", "helm"):
        (path / "bin" / name).symlink_to(programs[name])
    kubeconfig.make_keys(path / "pki", names)
    (path / "kubeconfig").symlink_to("pki/admin.kubeconfig")
    _start_plane(folder, state, programs, durable=durable)
    for name in names:
        node_files.make_files(path / name, name, cni=cni, programs=programs, tools=tools, pki=path / "pki")
        Node(name, folder).power_on()


def _start_plane(folder: StateFolder, state: ClusterState, programs: dict[str, Path], *, durable: bool) -> None:
    plane = Machine(PLANE, folder)
    cgroups.make(state.cgroups[PLANE])
    spec = Spec(
        hostname="api",
        pid_file=str(folder.path / "pids" / PLANE),
        shared=str(plane.folder),
        shared_inside=str(plane.folder),
        cgroups=state.cgroups[PLANE],
        services=control_plane.services(programs, folder.path, durable=durable),
        networks=[network.ROUTER, network.OUTSIDE],
        environment=environment_of({}),
    )
    first = spawn(spec, folder.path, PLANE)
    deadline = time.monotonic() + 10
    while not {network.ROUTER, network.OUTSIDE} <= plane.services().keys():
        if time.monotonic() > deadline:
            raise LabFailed(f"the control plane's machine does not start; see {folder.path / 'log'}")
        time.sleep(0.01)
    network.make_lan(first.pid, plane.pid_of(network.ROUTER), plane.pid_of(network.OUTSIDE))
    plane.plugged_in()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy(source, target)


def mark_ready(folder: StateFolder) -> None:
    """The cluster came up whole: it is not taken for a wreck any more."""
    state = folder.read()
    if state is not None:
        folder.write(msgspec.structs.replace(state, ready=True))


def remove(folder: StateFolder) -> None:
    """Ends every process of a cluster and removes what it made; safe to repeat, and without a cluster does nothing.

    Raises:
        LabFailed: something would not go; the message names it.
    """
    if not folder.exists:
        return
    state = folder.read()
    machines = sorted((folder.path / "pids").glob("*"), key=lambda path: path.name == PLANE)
    first = [identity for path in machines if (identity := Identity.read(path)) is not None]
    for identity in first:
        identity.send(signal.SIGKILL)
    for identity in first:
        identity.wait_gone()
    hierarchies = [hierarchy for found in (state.cgroups if state else {}).values() for hierarchy in found]
    cgroups.kill(hierarchies)
    cgroups.remove(hierarchies)
    mounted = mounts_below(folder.path)
    if mounted:
        raise LabFailed(f"mounts left: {', '.join(mounted)}")
    trash = folder.path.with_name(f"trash-{time.monotonic_ns()}")
    folder.path.rename(trash)
    for old in folder.parent.glob("trash-*"):
        shutil.rmtree(old, ignore_errors=True)


def mounts_below(path: Path) -> list[str]:
    """What is mounted in this process' mount namespace below a folder."""
    mountpoints = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mountpoint for mountpoint in mountpoints if mountpoint.startswith(f"{path}/")]


def processes_of(folder: StateFolder) -> list[int]:
    """Processes in the cluster's cgroups."""
    state = folder.read()
    found: set[int] = set()
    for hierarchies in (state.cgroups if state else {}).values():
        for hierarchy in hierarchies:
            for listing in Path(hierarchy.folder).glob("**/cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in listing.read_text().split())
    return sorted(found)
