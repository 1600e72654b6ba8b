"""`spiderpoolctl apply`: make the store hold what a YAML file says; see `actors.manifest` for what that means.

All objects of a file are read before the first is written.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.manifest import Contended, Manifest, ManifestError, apply, read
from ctl import stores
from ctl.errors import Failure, Misuse


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl apply", description="Create Spiderpool's objects from YAML, or change them to what it says."
    )
    parser.add_argument(
        "-f", "--filename", metavar="FILE", required=True, help="YAML, one or more documents; - reads stdin"
    )
    stores.add_arguments(parser)
    given = parser.parse_args(argv)
    try:
        manifests = read(_text(given.filename), source="stdin" if given.filename == "-" else given.filename)
    except ManifestError as error:
        raise Misuse(str(error)) from None
    if not manifests:
        msg = f"{given.filename}: no object in it"
        raise Misuse(msg)
    asyncio.run(_apply_all(given.state_dir, manifests))
    return 0


async def _apply_all(state_dir: str, manifests: Sequence[Manifest]) -> None:
    async with stores.opened(state_dir) as store:
        for manifest in manifests:
            try:
                print(f"{manifest} {await apply(store, manifest)}", flush=True)
            except (ManifestError, Contended) as error:
                raise Failure(str(error)) from None


def _text(filename: str) -> str:
    try:
        return sys.stdin.read() if filename == "-" else Path(filename).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        msg = f"--filename: {filename}: {error.strerror if isinstance(error, OSError) else error}"
        raise Misuse(msg) from None
