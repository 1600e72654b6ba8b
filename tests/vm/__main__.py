"""Guests by hand: ``python -m tests.vm test|run|shell|fetch``."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.servers.provide import CHECKOUT, ServersUnavailable
from tests.vm.guest import Guest, GuestFailed
from tests.vm.parts import provide
from tests.vm.remote import KEPT

SECONDS = 3600.0


def show(line: str) -> None:
    """A line of progress."""
    print(f"vm: {line}", file=sys.stderr, flush=True)


def test(arguments: Sequence[str]) -> int:
    """pytest with these arguments, all tests in one guest; those in tests/vm by default."""
    named = any((CHECKOUT / one.partition("::")[0]).exists() for one in arguments if one)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.vm.remote",
        *arguments,
        *([] if named else ["tests/vm/inside"]),
    ]
    return subprocess.run(argv, cwd=CHECKOUT, check=False).returncode


def run(command: Sequence[str]) -> int:
    """One command in a guest, its output here when it has ended."""
    with Guest(provide(progress=show), command) as guest:
        try:
            return guest.wait(seconds=SECONDS) or 0
        finally:
            if guest.output.exists():
                shutil.copyfileobj(guest.output.open("rb"), sys.stdout.buffer)
            guest.keep(KEPT)


def main() -> int:
    """Does it, and exits with its exit code."""
    parser = argparse.ArgumentParser(prog="tests.vm", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("action", choices=("test", "run", "fetch"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of pytest, or the command with its arguments")
    options = parser.parse_args()
    try:
        parts = provide(progress=show)
        match options.action:
            case "test":
                return test(options.arguments)
            case "run":
                return run(options.arguments or ["uname", "-a"])
            case _:
                show(f"kernel {parts.release}, in {parts.system.parent}")
                return 0
    except (ServersUnavailable, GuestFailed) as problem:
        show(str(problem))
        return 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
