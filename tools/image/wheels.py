"""The middle layer: the packages that ``requirements/runtime.txt`` pins by hash, as wheels for the image's platform."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tools.image.debian import remove

SITE: Final = "usr/local/lib/python3.13/dist-packages"
"""Where Debian's Python looks for packages that are not Debian's."""

PLATFORMS: Final = {"amd64": "x86_64-manylinux_2_34", "arm64": "aarch64-manylinux_2_34"}
_UNREAD: Final = ("*.c", "*.cc", "*.h", "*.hpp", "*.pxd", "*.pyi", "*.pyx", "py.typed", "tests", "test", "__pycache__")
_INSTALLER: Final = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json")
"""An installer's notes on this machine; the list of files is wrong once some are left out."""


def install(requirements: Path, root: Path, architecture: str, *, checkout: Path, python: Path) -> None:
    """Unpack the wheels below `SITE`.

    Raises `subprocess.CalledProcessError` when a wheel is missing or is not the one that was locked.
    """
    site = root / SITE
    site.mkdir(parents=True)
    argv: list[str | Path] = [
        checkout / "tools" / "bootstrap",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--target",
        site,
        "--python",
        python,
    ]
    argv += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy"]
    argv += ["--python-platform", PLATFORMS[architecture], "--python-version", "3.13", "-r", requirements]
    # What an earlier build or make setup has fetched needs no network.
    if subprocess.run([*argv, "--offline"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
        subprocess.run(argv, stdin=subprocess.DEVNULL, check=True)
    trim(site)


def trim(site: Path) -> None:
    """Leave out what no program reads; licences stay."""
    for path in site.iterdir():
        if path.name in {"bin", ".lock"} or (path.is_file() and path.suffix not in {".py", ".so"}):
            remove(path)
    for pattern in _UNREAD:
        for path in sorted(site.rglob(pattern)):
            if ".dist-info" not in str(path.relative_to(site)):
                remove(path)
    for folder in site.glob("*.dist-info"):
        for name in _INSTALLER:
            (folder / name).unlink(missing_ok=True)
