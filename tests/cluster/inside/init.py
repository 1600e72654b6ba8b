"""The first process of a machine of the lab: ``python -m tests.cluster.inside.init SPEC``.

It joins the machine's cgroups, unshares every namespace and forks; the child is PID 1 in there and the parent ends at
once. PID 1 builds the root, waits until the host has plugged the links in, starts the services, starts them again when
they end, and reaps orphans. Killing it ends the machine: its processes, mounts and links go with its namespaces.

All that is imported is imported before the root changes, as the interpreter's files are not in the new one.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from tests.cluster.inside.mounts import enter_root, make_private, mount
from tests.cluster.inside.spec import Hierarchy, Service, Spec

NAMESPACES: Final = (
    os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWUTS | os.CLONE_NEWIPC | os.CLONE_NEWPID | os.CLONE_NEWCGROUP
)
POLL_SECONDS: Final = 0.1
RESTART_SECONDS: Final = 1.0
READY_SECONDS: Final = 60.0


def log(text: str) -> None:
    """A line in the machine's init.log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def join(cgroups: list[Hierarchy]) -> None:
    """Moves this process into the machine's cgroups."""
    for hierarchy in cgroups:
        (Path(hierarchy.folder) / "cgroup.procs").write_text(str(os.getpid()))


def make_leaf(cgroups: list[Hierarchy]) -> None:
    """cgroup v2 only: processes move to a leaf, since a cgroup that has controllers for its children holds none."""
    for hierarchy in cgroups:
        if not hierarchy.controllers:
            top = Path("/sys/fs/cgroup") if not Path(hierarchy.folder).exists() else Path(hierarchy.folder)
            leaf = top / "init"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
            for controller in (top / "cgroup.controllers").read_text().split():
                _enable(top / "cgroup.subtree_control", controller)


def _enable(control: Path, controller: str) -> None:
    """Some controllers cannot be given on; all are refused while the process that started us has not ended yet."""
    for _ in range(50):
        try:
            control.write_text(f"+{controller}")
        except OSError as problem:
            if problem.errno != errno.EBUSY:
                return
            time.sleep(0.02)
        else:
            return


def hold_networks(names: list[str]) -> dict[str, int]:
    """Forks a process per name that does nothing but keep a network namespace of its own alive."""
    held = {}
    for name in names:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.unshare(os.CLONE_NEWNET)
            os.write(writer, b".")
            while True:
                signal.pause()
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        held[name] = pid
    return held


class Supervisor:
    """Starts services again when they end, except those for which a file in `hold/` exists."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._shared = Path(spec.shared_inside)
        self._environment = {"HOME": "/root", **spec.environment}
        self._pids: dict[str, int] = hold_networks(spec.networks)
        self._due: dict[str, float] = {}

    def run(self) -> NoReturn:
        """Never returns: the end of PID 1 is the end of the machine."""
        self._publish()
        self._wait_for_links()
        for argv in self._spec.prepare:
            self._command(argv)
        for service in self._spec.services:
            self._start(service)
            self._until_ready(service)
        log("started")
        while True:
            self._reap()
            now = time.monotonic()
            for service in self._spec.services:
                due = self._due.get(service.name)
                if due is not None and now >= due and not (self._shared / "hold" / service.name).exists():
                    self._start(service)
            time.sleep(POLL_SECONDS)

    def _wait_for_links(self) -> None:
        while not (self._shared / "go").exists():
            time.sleep(0.02)

    def _start(self, service: Service) -> None:
        self._due.pop(service.name, None)
        try:
            with Path(service.log).open("ab") as output:
                child = subprocess.Popen(
                    service.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as problem:
            log(f"{service.name}: {problem}")
            self._due[service.name] = time.monotonic() + RESTART_SECONDS
            return
        self._pids[service.name] = child.pid
        # The supervisor reaps by pid; the object must not complain that nobody waited for its process.
        child.returncode = 0
        self._publish()

    def _until_ready(self, service: Service) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while service.ready and time.monotonic() < deadline and not self._command(service.ready, quiet=True):
            time.sleep(0.1)
        for argv in service.then:
            self._command(argv)

    def _command(self, argv: list[str], *, quiet: bool = False) -> bool:
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=self._environment
            )
        except OSError as problem:
            log(f"{argv}: {problem}")
            return False
        if done.returncode and not quiet:
            log(f"{argv} exited {done.returncode}: {done.stdout}{done.stderr}")
        return done.returncode == 0

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, known in list(self._pids.items()):
                if known == pid:
                    log(f"{name} ended: {os.waitstatus_to_exitcode(status)}")
                    del self._pids[name]
                    self._due[name] = time.monotonic() + RESTART_SECONDS
                    self._publish()

    def _publish(self) -> None:
        path = self._shared / "pids.json"
        scratch = path.with_suffix(".new")
        scratch.write_bytes(msgspec.json.encode(self._pids))
        scratch.rename(path)


def first_process(spec: Spec) -> NoReturn:
    """What PID 1 does."""
    make_private()
    if spec.root is not None:
        enter_root(spec.root, spec.cgroups)
    else:
        mount("proc", "/proc", "proc")
    make_leaf(spec.cgroups)
    socket.sethostname(spec.hostname)
    if spec.hosts:
        Path("/etc/hosts").write_text("".join(f"{line}\n" for line in spec.hosts))
    Supervisor(spec).run()


def start_time(pid: int) -> str:
    """Of a process, in clock ticks since boot: with the pid it names one process for ever."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def main() -> int:
    """Starts the machine and returns when its first process exists."""
    spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Spec)
    join(spec.cgroups)
    os.unshare(NAMESPACES)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(reader, 1)
        try:
            first_process(spec)
        except BaseException:  # noqa: BLE001 - nobody else will say it
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    path = Path(spec.pid_file)
    scratch = path.with_suffix(".new")
    scratch.write_text(f"{pid} {start_time(pid)}\n")
    scratch.rename(path)
    os.write(writer, b".")
    return 0


if __name__ == "__main__":
    sys.exit(main())
