"""The lab by hand: ``python -m tests.cluster up|down|status|shell|node|logs``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.lab import Cluster, LabFailed, LabUnavailable, take_down
from tests.cluster.lab.plan import CNIS, DEFAULT_NAME
from tests.servers.process import CommandFailed
from tests.servers.provide import ServersUnavailable


def show(line: str) -> None:
    """A line of progress."""
    print(f"cluster: {line}", flush=True)


def up(options: argparse.Namespace) -> int:
    """Brings the cluster up unless it is."""
    try:
        cluster = Cluster.attach(options.name)
    except LabUnavailable:
        cluster = None
    if cluster is not None and cluster.state.ready and cluster.state.owner is None:
        show(f"{cluster!r} is up already")
        return 0
    cluster = Cluster.start(
        name=options.name, nodes=options.nodes, cni=options.cni, images=options.image, progress=show
    )
    show(f"{cluster!r}; make cluster-shell, make cluster-down")
    return 0


def down(options: argparse.Namespace) -> int:
    """Takes it down, whoever made it."""
    show(f"{options.name} is down" if take_down(options.name) else f"{options.name} was not up")
    return 0


def status(options: argparse.Namespace) -> int:
    """What runs."""
    cluster = Cluster.attach(options.name)
    show(repr(cluster))
    for machine in (cluster.plane, *cluster.nodes.values()):
        show(f"{machine.name:<6} {'on  ' + ', '.join(machine.services()) if machine.is_on else 'off'}")
    return 0


def shell(options: argparse.Namespace) -> int:
    """A shell on the LAN with kubectl and helm; or one command in it."""
    cluster = Cluster.attach(options.name)
    prompt = {"PS1": f"[{options.name}] \\w \\$ "}
    # A login shell would set another PATH.
    argv = ["sh", "-c", options.command] if options.command else ["bash", "--norc", "-i"]
    return subprocess.run(cluster.plane.argv(argv), env={**cluster.environment, **prompt}, check=False).returncode


def node(options: argparse.Namespace) -> int:
    """Something with one node."""
    subject = Cluster.attach(options.name).node(options.node)
    match options.action:
        case "off":
            subject.power_off()
        case "on":
            subject.power_on()
        case "restart":
            for service in options.argument:
                subject.restart(service)
        case "add-nic":
            Cluster.attach(options.name).add_nic(options.node, *options.argument[:1], segment=options.segment)
        case "load":
            for archive in options.argument:
                subject.load_image(Path(archive))
        case _:
            argv = options.argument or ["bash", "--norc", "-i"]
            return subprocess.run(subject.argv(argv), env=subject.environment, check=False).returncode
    return 0


def logs(options: argparse.Namespace) -> int:
    """Collects all logs."""
    Cluster.attach(options.name).logs_to(options.folder)
    show(f"logs in {options.folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real cluster on this machine.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default=DEFAULT_NAME, help="of the cluster (default %(default)s)")
    commands = top.add_subparsers(required=True)

    one = commands.add_parser("up", parents=[common], help="bring it up")
    one.add_argument("--nodes", type=int, default=2)
    one.add_argument("--cni", choices=CNIS, default="none")
    one.add_argument("--image", type=Path, action="append", default=[], help="an OCI archive that every node has")
    one.set_defaults(do=up)
    commands.add_parser("down", parents=[common], help="take it down").set_defaults(do=down)
    commands.add_parser("status", parents=[common], help="what runs").set_defaults(do=status)
    one = commands.add_parser("shell", parents=[common], help="a shell with kubectl and helm on the LAN")
    one.add_argument("command", nargs="?", default="", help="run this and no shell")
    one.set_defaults(do=shell)
    one = commands.add_parser("node", parents=[common], help="run a command in a node, or change it")
    one.add_argument("--segment", default="lan", help="that add-nic plugs the new NIC into")
    one.add_argument("node")
    one.add_argument("action", choices=("run", "off", "on", "restart", "add-nic", "load"), nargs="?", default="run")
    one.add_argument("argument", nargs=argparse.REMAINDER, help="command; services; NIC; archives")
    one.set_defaults(do=node)
    one = commands.add_parser("logs", parents=[common], help="collect all logs in a folder")
    one.add_argument("folder", type=Path)
    one.set_defaults(do=logs)
    return top


def main() -> int:
    """Exit code 1 with one message when it cannot be done."""
    options = parser().parse_args()
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        return int(options.do(options))
    except (LabUnavailable, LabFailed, ServersUnavailable, CommandFailed) as problem:
        print(f"cluster: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
