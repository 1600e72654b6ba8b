"""Machines of the lab as a test sees them: commands run in them, services stopped and started, processes found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.cluster.inside.spec import Spec
from tests.cluster.lab import cgroups
from tests.cluster.lab.state import Identity, LabFailed, LabUnavailable, StateFolder
from tests.netns import Netns
from tests.servers.debian import node_packages
from tests.servers.process import CommandFailed
from tests.servers.provide import CHECKOUT

SPAWN_SECONDS: Final = 30.0
APPLETS: Final = frozenset({"arping", "httpd", "nc", "ping", "traceroute", "wget"})
"""busybox has them where this machine has not."""

STANDARD_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def spawn(spec: Spec, folder: Path, machine: str) -> Identity:
    """Starts a machine and returns its first process. Raises LabUnavailable."""
    file = folder / "specs" / f"{machine}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(msgspec.json.encode(spec))
    log = folder / "log" / f"{machine}-init.log"
    with log.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.cluster.inside.init", str(file)],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            timeout=SPAWN_SECONDS,
            check=False,
        )
    first = Identity.read(Path(spec.pid_file))
    if done.returncode or first is None:
        raise LabUnavailable(f"{machine} did not start:\n{log.read_text(errors='replace')[-2000:]}")
    return first


def inner_pid(pid: int) -> tuple[str, int]:
    """A process' pid namespace, and its pid in there. Raises OSError."""
    space = str(Path(f"/proc/{pid}/ns/pid").readlink())
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return space, int(line.split()[-1])


class Host:
    """A network namespace of the lab in which commands can be run, with this machine's files.

    Attributes:
        name: for messages.
    """

    def __init__(self, name: str, pid: Callable[[], int]) -> None:
        self.name = name
        self._pid = pid

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def namespaces(self) -> list[str]:
        """nsenter's options."""
        return ["--net"]

    @property
    def environment(self) -> dict[str, str]:
        tools = node_packages() / "usr"
        path = f"{os.environ.get('PATH', STANDARD_PATH)}:/usr/sbin:/sbin:{tools / 'sbin'}:{tools / 'bin'}"
        libraries = ":".join(str(folder) for folder in (tools / "lib").glob("*-linux-gnu"))
        return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries}

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs another command in here; for a Popen of your own."""
        command = list(argv)
        if command[0] in APPLETS and shutil.which(command[0]) is None:
            command = ["busybox", *command]
        return ["nsenter", f"--target={self._pid()}", *self.namespaces, "--", *command]

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as subprocess names it
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end.

        Raises:
            CommandFailed: it exited non-zero and `check` is set.
            subprocess.TimeoutExpired: it was killed after `timeout` seconds.
        """
        done = subprocess.run(
            self.argv(argv),
            input=input or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment,
        )
        if check and done.returncode:
            raise CommandFailed([f"{self.name}:", *argv], code=done.returncode, stdout=done.stdout, stderr=done.stderr)
        return done

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a command; its end is the caller's business (a machine's end ends it as well)."""
        return subprocess.Popen(self.argv(argv), text=True, env=self.environment, **options)

    def netns(self) -> Netns:
        """The network namespace: `.run(work)` calls a function on a thread in there, `.path` can be opened."""
        return Netns(Path(f"/proc/{self._pid()}/ns"), "net")

    def links(self) -> dict[str, dict[str, Any]]:
        """`ip -details -json address` by link name."""
        listed = json.loads(self.run(["ip", "-details", "-json", "address"]).stdout)
        return {link["ifname"]: link for link in listed if "ifname" in link}

    def ping(self, address: str, *, count: int = 1, seconds: int = 2) -> bool:
        """Whether an address answers."""
        argv = ["busybox", "ping", "-c", str(count), "-W", str(seconds), address]
        return self.run(argv, check=False, timeout=30 + count * seconds).returncode == 0

    def get(self, url: str, *, seconds: int = 5) -> str:
        """The body of an HTTP GET from here. Raises CommandFailed, also after `seconds`."""
        return self.run(["timeout", str(seconds), "busybox", "wget", "-q", "-O", "-", url], timeout=30 + seconds).stdout


class Machine(Host):
    """A host with services: the control plane.

    Attributes:
        folder: what its first process and we share: go, pids.json, hold/.
    """

    def __init__(self, name: str, state: StateFolder) -> None:
        super().__init__(name, lambda: self.first.pid)
        self._state = state
        self.folder = state.path / name / "shared"

    @property
    def first(self) -> Identity:
        """Its first process. Raises LabFailed when it is off."""
        first = self._state.process(self.name)
        if first is None or not first.alive:
            raise LabFailed(f"{self.name} is off")
        return first

    @property
    def is_on(self) -> bool:
        first = self._state.process(self.name)
        return first is not None and first.alive

    def services(self) -> dict[str, int]:
        """The running services with their pids in the machine's own counting."""
        try:
            return msgspec.json.decode((self.folder / "pids.json").read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}

    def identity_of(self, service: str) -> Identity:
        """A running service's process. Raises LabFailed when it does not run."""
        inner = self.services().get(service)
        space = str(Path(f"/proc/{self.first.pid}/ns/pid").readlink())
        for entry in Path("/proc").iterdir():
            if inner is None or not entry.name.isdigit():
                continue
            try:
                if inner_pid(int(entry.name)) == (space, inner):
                    return Identity.of(int(entry.name))
            except (OSError, StopIteration):
                continue
        raise LabFailed(f"{service} does not run on {self.name}; there are {sorted(self.services())}")

    def pid_of(self, service: str) -> int:
        """A running service's pid as this machine counts. Raises LabFailed."""
        return self.identity_of(service).pid

    def runs(self, service: str) -> bool:
        """Whether a service has a process now."""
        try:
            return self.identity_of(service).alive
        except LabFailed:
            return False

    def send(self, service: str, number: signal.Signals) -> None:
        """Sends a signal: SIGKILL makes it start anew after a second, SIGSTOP and SIGCONT make it hang and go on."""
        self.identity_of(service).send(number)

    def stop(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends a service and keeps it from being started again until `start`."""
        hold = self.folder / "hold"
        hold.mkdir(exist_ok=True)
        (hold / service).touch()
        if self.runs(service):
            process = self.identity_of(service)
            process.send(number)
            process.wait_gone()

    def start(self, service: str, *, seconds: float = 20.0) -> None:
        """Lets a stopped service run again and waits for its process. Raises LabFailed."""
        (self.folder / "hold" / service).unlink(missing_ok=True)
        deadline = time.monotonic() + seconds
        while not self.runs(service):
            if time.monotonic() > deadline:
                raise LabFailed(f"{service} did not start on {self.name} within {seconds:.0f} s")
            time.sleep(0.05)

    def restart(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends a service and waits for its new process (not until it is ready). Raises LabFailed."""
        self.stop(service, number)
        self.start(service)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that each running service has used, children that have ended not counted."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = {}
        for service in self.services():
            fields = Path(f"/proc/{self.pid_of(service)}/stat").read_text().rpartition(")")[2].split()
            used[service] = (int(fields[11]) + int(fields[12])) / ticks
        return used

    def cgroup_cpu_seconds(self, below: str = "") -> float:
        """CPU time of the whole machine, or of the cgroups that a glob below it names (`kubepods/*/pod<uid>`)."""
        state = self._state.read()
        if state is None:
            raise LabFailed(f"cluster {self._state.name} is down")
        return cgroups.cpu_seconds(state.cgroups[self.name], below)

    def power_off(self) -> None:
        """Ends every process at once, as a power failure does."""
        first = self._state.process(self.name)
        if first is not None:
            first.send(signal.SIGKILL)
            first.wait_gone()

    def plugged_in(self) -> None:
        """Lets the services start: the links are there."""
        (self.folder / "go").touch()

    def held(self, network_name: str) -> Host:
        """A network namespace that this machine's first process keeps."""
        return Host(network_name, lambda: self.pid_of(network_name))


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Of programs that run in a machine; how Go collects garbage is what it is here."""
    inherited = {name: os.environ[name] for name in ("GOGC",) if name in os.environ}
    return {"PATH": STANDARD_PATH, "HOME": "/root", "LANG": "C.UTF-8", **inherited, **variables}
