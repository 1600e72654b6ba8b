"""What the programs have in common: command line, settings, logs, traces, signals and an orderly end.

A setting that is wrong ends the program with one line on stderr and exit code 2, before anything is opened.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread
from msgspec import Struct

from api.configfile import DEFAULT_PATH
from api.settings import Flags, SettingsError
from runtime.actor import System
from runtime.memory import give_back_big_blocks, read_tls_in_small_blocks
from runtime.supervision import Supervisor
from telemetry import logs, metrics, traces
from telemetry.health import HealthTree, State
from telemetry.http import HttpServer, Route
from telemetry.metrics import Program
from telemetry.recorder import SpanRecorder

_log = logging.getLogger(__name__)

VERSION = version("spiderpool")


class Arguments(Struct, frozen=True):
    """The command line."""

    flags: Flags
    file_text: str | None


def parse_arguments(
    name: str, description: str, argv: Sequence[str] | None, *, tls: bool = False, others: Iterable[str] = ()
) -> Arguments:
    """Read flags and the ConfigMap file. Ends the process with code 2 when they are wrong.

    `others` are the sub-commands besides `daemon`, for the help: `dispatch` comes before.
    """
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument(
        "command",
        nargs="?",
        default="daemon",
        choices=["daemon", *others],
        help="daemon (the default) runs in the foreground; COMMAND --help says more of the others",
    )
    parser.add_argument(
        "--config-path", default="", metavar="FILE", help=f"the ConfigMap file (default {DEFAULT_PATH})"
    )
    parser.add_argument("--version", action="version", version=f"{name} {VERSION}")
    if tls:
        parser.add_argument("--tls-server-cert", default="", metavar="FILE", help="certificate of the server, PEM")
        parser.add_argument("--tls-server-key", default="", metavar="FILE", help="private key of the server, PEM")
    given = parser.parse_args(argv)
    path = Path(given.config_path or DEFAULT_PATH)
    text: str | None = None
    if given.config_path or path.exists():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            refuse(name, SettingsError(f"--config-path: {path}: {error}"))
    flags = Flags(
        config_path=str(path),
        tls_server_cert=given.tls_server_cert if tls else "",
        tls_server_key=given.tls_server_key if tls else "",
    )
    return Arguments(flags=flags, file_text=text)


def dispatch(argv: Sequence[str] | None, commands: Mapping[str, str]) -> int | None:
    """Run the sub-command that the first word names, and return its exit code; None when it names none of them.

    `commands` are modules by the command's name, each with a function `main` that takes the words behind the name. Only
    the one that is asked for is imported.
    """
    words = sys.argv[1:] if argv is None else argv
    module = commands.get(words[0]) if words else None
    if module is None:
        return None
    code: int = import_module(module).main(words[1:])
    return code


def refuse(name: str, error: Exception) -> NoReturn:
    """End the process because of its settings: one line on stderr, exit code 2."""
    sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
    raise SystemExit(2)


class Farewell:
    """How a program ends that others still ask: not ready at once, and serving on until they have heard of it."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds` from the signal until its parts are ended. A second signal ends them at once."""
        self._seconds = seconds
        self.begun = False

    async def take(self, root: Supervisor) -> None:
        """A signal has come: returns when the parts have been told to end."""
        hurry, self.begun = self.begun, True
        if not hurry and self._seconds:
            _log.info("asked to end: serving for another %g s", self._seconds)
            if root.system.health is not None:
                root.system.health.report(f"{root.name}/leaving", State.BLOCKED, "asked to end")
            await anyio.sleep(self._seconds)
        await root.stop()


def run(
    name: str,
    build: Callable[[System, Supervisor, AsyncExitStack], Awaitable[None]],
    *,
    log_level: str,
    node: str = "",
    health_port: int,
    probe_socket: str = "",
    metric_port: int | None,
    program: Program,
    trace_buffer: int = 0,
    notes: Sequence[str] = (),
    routes: Mapping[str, Route] | None = None,
    farewell: Farewell | None = None,
) -> int:
    """Run a supervision tree until SIGTERM or SIGINT; returns the exit code.

    `build` fills the root supervisor with children; what it pushes on the stack is closed behind them. Exit code 1
    means that the root gave up, and the platform is to start the process again. With `trace_buffer` that many finished
    spans are kept and shown at `/debug/traces` of the health port. `probe_socket` is the path of a unix socket that
    answers as that port does. `routes` are more of their paths, and `build` may add some.
    `farewell` says how long it serves on after a signal; without, it ends at once.
    """
    logs.setup(log_level)
    attributes = {"k8s.node.name": node} if node else {}
    recorder = SpanRecorder(capacity=trace_buffer) if trace_buffer else None
    traces.setup(service=name, version=VERSION, attributes=attributes, recorder=recorder)
    metrics.BUILD_INFO.labels(version=VERSION).set(1)
    for note in notes:
        _log.warning("%s", note)

    give_back_big_blocks()
    read_tls_in_small_blocks()

    async def main() -> int:
        health = HealthTree(name)
        system = System.real(health=health)
        root = Supervisor(name.removeprefix("spiderpool-"), system)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: loop.create_task((farewell or Farewell()).take(root)))
        unix = Path(probe_socket) if probe_socket else None
        root.add_service("probes", lambda: _http("", health_port, health, recorder=recorder, routes=routes, unix=unix))
        if metric_port is not None:
            root.add_service("metrics", lambda: _http("", metric_port, health, program=program))
        stack = AsyncExitStack()
        stack.callback(metrics.on_scrape(lambda: _measure_actors(root)))
        await build(system, root, stack)
        # What the imports and the set-up have made lives until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        try:
            await root.run()
        except Exception:  # noqa: BLE001 - the last line of defence: said, and the platform starts us again
            _log.critical("giving up", exc_info=True)
            return 1
        finally:
            await stack.aclose()
            await anyio.to_thread.run_sync(traces.shutdown)
        return 0

    return asyncio.run(main())


def _measure_actors(root: Supervisor) -> None:
    """Set the gauges of actors and mailboxes, by kind."""
    counts: Counter[str] = Counter()
    depths: dict[str, int] = {}
    ages: dict[str, float] = {}
    waiting = [root.status()]
    while waiting:
        status = waiting.pop()
        waiting += status.children
        if status.mailbox is not None and status.kind:
            counts[status.kind] += 1
            depths[status.kind] = max(depths.get(status.kind, 0), status.mailbox.depth)
            ages[status.kind] = max(ages.get(status.kind, 0.0), status.mailbox.oldest_age)
    for gauge in (metrics.ACTORS, metrics.MAILBOX_DEPTH, metrics.MAILBOX_OLDEST_AGE_SECONDS):
        gauge.clear()
    for kind, count in counts.items():
        metrics.ACTORS.labels(actor=kind).set(count)
        metrics.MAILBOX_DEPTH.labels(actor=kind).set(depths[kind])
        metrics.MAILBOX_OLDEST_AGE_SECONDS.labels(actor=kind).set(ages[kind])


async def _http(
    host: str,
    port: int,
    health: HealthTree,
    *,
    program: Program | None = None,
    recorder: SpanRecorder | None = None,
    routes: Mapping[str, Route] | None = None,
    unix: Path | None = None,
) -> None:
    async with HttpServer(host, port, health=health, program=program, recorder=recorder, routes=routes, unix=unix):
        await anyio.sleep_forever()


def environment() -> dict[str, str]:
    """The process's environment, the one place that reads it."""
    return dict(os.environ)
