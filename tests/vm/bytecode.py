"""Bytecode for guests, in a folder of the cache: a guest takes a minute to compile what a test imports.

Python looks there and nowhere else, so what a guest imports has to have been imported, or compiled, here before.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.servers.provide import CHECKOUT, cache_folder

ROOMS: Final = ("api", "ipam", "telemetry", "runtime", "cni", "admission", "actors", "simulation", "ctl", "tests")
_PREFIX: Final = "PYTHONPYCACHEPREFIX"
_SILENT: Final = "PYTHONDONTWRITEBYTECODE"


def folder() -> Path:
    """Where it is."""
    return cache_folder() / "vm" / "bytecode"


def reading() -> dict[str, str]:
    """The environment of a Python in a guest."""
    return {_PREFIX: str(folder()), _SILENT: "1"}


def compile_for_guests(tests: Sequence[str]) -> None:
    """All of ours, and all that these files of tests import, by collecting them in a process of its own.

    pytest makes bytecode of tests in its own way, so only pytest can do that. Errors are told when the tests run.
    """
    environment = {name: value for name, value in os.environ.items() if name != _SILENT}
    environment[_PREFIX] = str(folder())
    for arguments in (
        ["compileall", "-q", *ROOMS],
        ["pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests],
    ):
        subprocess.run(
            [sys.executable, "-m", *arguments], cwd=CHECKOUT, env=environment, check=False, capture_output=True
        )
