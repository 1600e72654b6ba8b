"""Makes every executable that the tests start: ``python -m tests.servers``. Instant when they are all in the cache."""

from __future__ import annotations

import sys
import time

from tests.servers.debian import debian_plugins
from tests.servers.provide import NAMES, ServersUnavailable, executable


def main() -> int:
    """Prints a line per executable; exit code 1 and one message when one cannot be had."""
    for name in NAMES:
        start = time.monotonic()
        try:
            path = executable(name, progress=lambda line: print(f"servers: {line}", flush=True))
        except ServersUnavailable as problem:
            print(f"servers: {problem}", file=sys.stderr)
            return 1
        if time.monotonic() - start > 1 or sys.stdout.isatty():
            print(f"servers: {name:<14} {path}", flush=True)
    try:
        debian_plugins(progress=lambda line: print(f"servers: {line}", flush=True))
    except ServersUnavailable as problem:
        print(f"servers: {problem}; the test with Debian's plugin will be skipped", flush=True)
    print(f"servers: {len(NAMES)} executables ready", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
