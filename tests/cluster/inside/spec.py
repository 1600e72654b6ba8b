"""What the first process of a machine is told: a JSON file, so that it needs nothing of the process that starts it."""

from __future__ import annotations

import msgspec


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is started again whenever it ends.

    Attributes:
        name: for pids.json and for holding it back.
        argv: program and arguments.
        log: path inside the machine that its output is appended to.
        ready: a command that succeeds when the next service may start; empty does not wait.
        then: commands that run once after that; their failure is logged.
    """

    name: str
    argv: list[str]
    log: str
    ready: list[str] = []
    then: list[list[str]] = []


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """A root file system of the machine's own: this machine's, with a layer over it that keeps what is written.

    Attributes:
        mountpoint: empty folder that it is mounted on.
        upper: layer with what is written; survives a power cycle.
        work: overlayfs' scratch folder beside it.
        binds: host folder -> path inside.
        read_only_binds: the same, not writable.
        hidden: top folders that show as empty.
        tunables: folder for files that stand in for machine-wide kernel settings.
    """

    mountpoint: str
    upper: str
    work: str
    binds: dict[str, str]
    read_only_binds: dict[str, str]
    hidden: list[str]
    tunables: str


class Hierarchy(msgspec.Struct, frozen=True, kw_only=True):
    """A cgroup hierarchy, and the machine's cgroup in it.

    Attributes:
        controllers: as the mount option says it (``cpu,cpuacct``, ``name=systemd``); "" is cgroup v2.
        folder: of the machine's cgroup.
    """

    controllers: str
    folder: str


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A machine.

    Attributes:
        hostname: of its UTS namespace.
        pid_file: gets `<pid> <start time>` of its first process, as this machine counts them.
        shared: host folder of `go` (written by the host when the links are there), `pids.json` and `hold/`.
        shared_inside: where the machine sees that folder.
        cgroups: that it lives in.
        services: in the order they start.
        root: None shares this machine's root.
        hosts: lines of its /etc/hosts.
        prepare: commands that run before the first service.
        networks: names of further network namespaces, each held by a process of its own.
        environment: of all that runs there.
    """

    hostname: str
    pid_file: str
    shared: str
    shared_inside: str
    cgroups: list[Hierarchy]
    services: list[Service]
    root: Root | None = None
    hosts: list[str] = []
    prepare: list[list[str]] = []
    networks: list[str] = []
    environment: dict[str, str] = {}
