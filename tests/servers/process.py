"""Processes that must not outlive the tests: started on loopback, logged to a file, stopped by id.

A test run that is killed cannot clean up, so the kernel does it: every server asks for a signal when the thread that
started it ends, and that thread lives exactly as long as the interpreter.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

STOP_SECONDS: Final = 10.0
"""How long a server may take to end by itself before it is killed."""

_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-starter")
_ports_given: set[int] = set()


class ServerFailed(RuntimeError):
    """A server ended or stayed unready; the message holds the end of its log."""


class CommandFailed(RuntimeError):
    """A client program such as kubectl exited non-zero.

    Attributes:
        code: its exit code.
        stdout: what it printed.
        stderr: what it complained.
    """

    def __init__(self, argv: Sequence[str], *, code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"{' '.join(argv)} exited {code}: {stderr.strip() or stdout.strip()}")
        self.code = code
        self.stdout = stdout
        self.stderr = stderr


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on, never the same twice in one run."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        if port not in _ports_given:
            _ports_given.add(port)
            return port


def run_command(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 180.0,
) -> str:
    """Runs a client program to its end.

    Args:
        argv: program and arguments.
        env: its whole environment (ours when None).
        stdin: text it may read; None gives it no input.
        timeout: seconds.

    Returns:
        What it wrote on standard output.

    Raises:
        CommandFailed: it exited non-zero.
        subprocess.TimeoutExpired: it was killed after `timeout`.
    """
    done = subprocess.run(
        argv,
        env=env,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise CommandFailed(argv, code=done.returncode, stdout=done.stdout, stderr=done.stderr)
    return done.stdout


class ServerProcess:
    """One server program; may be stopped and started again with the same arguments, its log appended.

    Args:
        name: for messages and the log's file name.
        argv: program and arguments.
        folder: where the log `<name>.log` is written.
        env: its whole environment (ours when None).
    """

    def __init__(
        self, name: str, argv: Sequence[str | Path], *, folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._argv = ["setpriv", "--pdeathsig", "KILL", "--", *(os.fspath(part) for part in argv)]
        self._env = dict(env) if env is not None else None
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<ServerProcess {self.name} {f'pid {self.pid}' if self.alive else 'stopped'}>"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id. Raises ServerFailed when it was never started."""
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Starts the process; does not wait for it to be ready. Does nothing while it runs."""
        if not self.alive:
            self._process = _starter.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._env
            )

    def wait_until(self, ready: Callable[[], bool], *, seconds: float = 180.0, interval: float = 0.05) -> None:
        """Polls `ready` until it is true; connection errors count as not yet.

        Raises:
            ServerFailed: the process ended, or `seconds` passed.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.alive:
                code = self._process.returncode if self._process is not None else None
                raise ServerFailed(f"{self.name} ended with {code}\n{self.tail()}")
            with contextlib.suppress(OSError):
                if ready():
                    return
            time.sleep(interval)
        raise ServerFailed(f"{self.name} was not ready after {seconds:.0f} s\n{self.tail()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the running process (SIGSTOP and SIGCONT make a server that hangs)."""
        if self.alive:
            os.kill(self.pid, number)

    def stop(self, *, kill: bool = False) -> None:
        """Ends the process, politely unless `kill`; returns when it is gone."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
