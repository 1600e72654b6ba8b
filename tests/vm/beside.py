"""What tests in a guest need and an emulated machine is too slow for: made on this machine, while the guest starts.

A test marked ``beside("some.module")`` has ``python -m some.module FOLDER`` run outside, once for all of a run; inside,
`made` waits for what that left in the folder. The module leaves a file `DONE`, or `FAILED` with the reason in it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pytest

from tests.servers.process import ServerProcess

VARIABLE: Final = "SPIDERPOOL_GUEST_BESIDE"
"""Names the folder that both sides see."""

DONE: Final = "done"
FAILED: Final = "failed"
_MARK: Final = "beside"
_SECONDS: Final = 120.0


def begin(items: Iterable[pytest.Item], job: Path) -> list[ServerProcess]:
    """Starts what the tests ask for; to be stopped by the caller, ended or not."""
    modules = dict.fromkeys(mark.args[0] for item in items for mark in item.iter_markers(_MARK))
    processes = [
        ServerProcess(module, [sys.executable, "-m", module, _folder(job, module)], folder=job) for module in modules
    ]
    for process in processes:
        process.start()
    return processes


def made(module: str) -> Path:
    """The folder with what a module has made. Raises RuntimeError where it failed, TimeoutError."""
    folder = _folder(Path(os.environ[VARIABLE]), module)
    deadline = time.monotonic() + _SECONDS
    while not (folder / DONE).exists():
        if (folder / FAILED).exists():
            raise RuntimeError(f"{module} failed outside:\n{(folder / FAILED).read_text()}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{module}: neither {DONE} nor {FAILED} in {folder} after {_SECONDS:.0f} s")
        time.sleep(0.2)
    return folder


def _folder(job: Path, module: str) -> Path:
    return job / module.rpartition(".")[2]
