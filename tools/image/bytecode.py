"""Compiled modules, made by the image's own Python so that every machine makes the same ones.

The Python is the one in the lowest layer for this machine's architecture, started by that layer's own loader: no
chroot, so no root. Bytecode does not depend on the architecture, so it compiles for the others too. A compiled module
is believed without a look at its source: the times of an image's files mean nothing, and its root is read-only.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from tools.image.debian import LOADERS, TRIPLETS

_PROGRAM: Final = """
import pathlib, py_compile, sys
root, folder = map(pathlib.Path, sys.argv[1:])
for path in sorted((root / folder).rglob("*.py")):
    py_compile.compile(
        str(path),
        dfile="/" + str(path.relative_to(root)),
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
"""


def compile_modules(root: Path, folder: str, *, python: Path, architecture: str) -> None:
    """Compile every module in a folder of a layer.

    Args:
        root: of the layer; paths in tracebacks start there.
        folder: relative to it.
        python: root of the lowest layer for this machine.
        architecture: of this machine.

    Raises `subprocess.CalledProcessError` when a module does not compile.
    """
    argv: list[str | Path] = [
        python / LOADERS[architecture],
        "--library-path",
        python / "usr/lib" / TRIPLETS[architecture],
    ]
    argv += [python / "usr/bin/python3.13", "-B", "-S", "-s", "-P", "-c", _PROGRAM, root, folder]
    environment = {"PYTHONHOME": str(python / "usr"), "PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")}
    subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, check=True)
