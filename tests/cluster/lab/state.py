"""What is known of a cluster on disk, so that any process can use it or take it down, its maker dead or not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from tests.cluster.inside.init import start_time
from tests.cluster.inside.spec import Hierarchy
from tests.cluster.lab.plan import Cni, labs_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


class LabUnavailable(RuntimeError):
    """The lab cannot run here or now; the message says what is missing or in the way."""


class LabFailed(AssertionError):
    """Something of the lab did not come about in time."""


class Identity(msgspec.Struct, frozen=True):
    """A process for ever: a pid is given again, a pid with its start time is not."""

    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Raises ProcessLookupError."""
        try:
            return cls(pid, start_time(pid))
        except (OSError, IndexError) as problem:
            raise ProcessLookupError(f"no process {pid}") from problem

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """From a file `<pid> <start time>`; None without one."""
        try:
            pid, start = path.read_text().split()
        except (OSError, ValueError):
            return None
        return cls(int(pid), start)

    @property
    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return fields[19] == self.start and fields[0] not in {"Z", "X"}

    @property
    def command_line(self) -> list[str]:
        """Its arguments, the program's name first; empty when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            return []

    @property
    def cpu_seconds(self) -> float:
        """CPU time that it has used so far, children that have ended not counted; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int:
        """Bytes of memory that it has; 0 when it is gone."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0

    def send(self, number: int) -> None:
        """Sends a signal if it is still this process."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float = 20.0) -> None:
        """Raises LabFailed when it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                raise LabFailed(f"process {self.pid} still runs {seconds:.0f} s after it was killed")
            time.sleep(0.01)


class Nic(msgspec.Struct, frozen=True):
    """A link of a node, plugged into a segment."""

    name: str
    segment: str


class ClusterState(msgspec.Struct, kw_only=True):
    """The state of a cluster.

    Attributes:
        name: of its folder and cgroups.
        cni: what its nodes were given.
        nodes: their names.
        owner: the process that the cluster is for; None keeps it until it is taken down.
        cgroups: every cgroup folder that was made.
        nics: per node, besides eth0.
        segments: further LANs -> the router's addresses there, as address/prefix.
        prepare: per node, commands that run before its services.
        ready: it came up whole.
    """

    name: str
    cni: Cni
    nodes: list[str]
    owner: Identity | None
    cgroups: dict[str, list[Hierarchy]] = {}
    nics: dict[str, list[Nic]] = {}
    segments: dict[str, list[str]] = {}
    prepare: dict[str, list[list[str]]] = {}
    ready: bool = False


class StateFolder:
    """The folder of one cluster: `<cache>/cluster/<name>/run`, with a lock beside it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parent = labs_folder() / name
        self.path = self.parent / "run"

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> ClusterState | None:
        """None when there is no cluster, or one whose maker died before it said anything."""
        try:
            return msgspec.json.decode((self.path / "state.json").read_bytes(), type=ClusterState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, state: ClusterState) -> None:
        scratch = self.path / "state.new"
        scratch.write_bytes(msgspec.json.encode(state))
        scratch.rename(self.path / "state.json")

    def process(self, machine: str) -> Identity | None:
        """The first process of a machine, if it was ever started."""
        return Identity.read(self.path / "pids" / machine)

    @contextlib.contextmanager
    def locked(self, *, seconds: float = 0.0) -> Iterator[None]:
        """Nobody else brings this cluster up or down meanwhile. Raises LabUnavailable."""
        self.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + seconds
        with (self.parent / "lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LabUnavailable(
                            f"cluster {self.name} is just being brought up or down by another process"
                        ) from None
                    time.sleep(0.2)
            yield
