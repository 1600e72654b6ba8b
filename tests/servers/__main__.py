"""Makes every executable that the tests start: ``python -m tests.servers``. Instant when they are all in the cache."""

from __future__ import annotations

import os
import sys
import time

from tests.servers.debian import debian_plugins, node_packages
from tests.servers.provide import LAB_NAMES, NAMES, ServersUnavailable, executable
from tests.vm.parts import provide


def show(line: str) -> None:
    """A line of progress."""
    print(f"servers: {line}", flush=True)


def make(name: str) -> None:
    """Makes one executable and names its path if that took time. Raises ServersUnavailable."""
    start = time.monotonic()
    path = executable(name, progress=show)
    if time.monotonic() - start > 1 or sys.stdout.isatty():
        show(f"{name:<14} {path}")


def main() -> int:
    """Prints a line per executable; exit code 1 and one message when one cannot be had."""
    try:
        for name in NAMES:
            make(name)
    except ServersUnavailable as problem:
        print(f"servers: {problem}", file=sys.stderr)
        return 1
    try:
        debian_plugins(progress=show)
    except ServersUnavailable as problem:
        show(f"{problem}; the test with Debian's plugin will be skipped")
    try:
        for name in LAB_NAMES:
            make(name)
        node_packages(progress=show)
    except ServersUnavailable as problem:
        print(f"servers: {problem}; the cluster lab cannot run", file=sys.stderr)
        if os.geteuid() == 0:
            return 1
    try:
        provide(progress=show)
    except ServersUnavailable as problem:
        show(f"{problem}; the tests in a guest will be skipped")
    show(f"{len(NAMES) + len(LAB_NAMES)} executables ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
