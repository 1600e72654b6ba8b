"""Compile the shim, statically, for every architecture: ``python -m cni.shim.build --output build/cni``.

The compiler is zig's, from PyPI: one wheel that compiles for both architectures on either, with musl. What is there
already and no older than the sources stays.
"""

import argparse
import subprocess
import sys
from pathlib import Path

TARGETS = {"amd64": "x86_64-linux-musl", "arm64": "aarch64-linux-musl"}
SOURCES = tuple(Path(__file__).with_name(name) for name in ("main.c", "probe.c", "probe.h"))
PROGRAM = "spiderpool"
MAX_BYTES = 64 * 1024


def build(output: Path) -> list[Path]:
    """Compile what is missing or older than its sources; returns the executables of all architectures.

    Raises `subprocess.CalledProcessError` when the compiler fails, `ValueError` when an executable is too large.
    """
    made = []
    for architecture, target in TARGETS.items():
        path = output / architecture / PROGRAM
        made.append(path)
        if path.exists() and path.stat().st_mtime >= max(one.stat().st_mtime for one in SOURCES):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        flags = ["-target", target, "-std=gnu11", "-Os", "-s", "-static", "-Wall", "-Wextra", "-Werror"]
        sources = [str(one) for one in SOURCES if one.suffix == ".c"]
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(temporary), *sources], check=True)
        if temporary.stat().st_size > MAX_BYTES:
            message = f"{temporary} has {temporary.stat().st_size} bytes, at most {MAX_BYTES} are allowed"
            raise ValueError(message)
        temporary.rename(path)
    return made


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/cni"), help="folder; one folder an architecture")
    for path in build(parser.parse_args(argv).output):
        print(f"{path}  {path.stat().st_size} bytes")  # noqa: T201 - a command prints
    return 0


if __name__ == "__main__":
    sys.exit(main())
