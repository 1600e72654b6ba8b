"""`spiderpoolctl apply`: make the store hold what a YAML file says.

An object that is not there is created. Of one that is there, the spec becomes what the file says: a field that the file
does not have is taken out. Labels and annotations are added or changed, never taken out, and a status is not written:
that belongs to its owner. All objects of a file are read before the first is written.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ctl import stores
from ctl.errors import Failure, Misuse
from ctl.objects import Manifest, read
from runtime.store.port import AlreadyExists, Conflict, NotFound, Store

_ATTEMPTS = 5


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
    manifests = read(_text(given.filename), source="stdin" if given.filename == "-" else given.filename)
    if not manifests:
        msg = f"{given.filename}: no object in it"
        raise Misuse(msg)
    asyncio.run(_apply_all(given.state_dir, manifests))
    return 0


async def _apply_all(state_dir: str, manifests: Sequence[Manifest]) -> None:
    async with stores.opened(state_dir) as store:
        for manifest in manifests:
            print(f"{manifest} {await apply(store, manifest)}", flush=True)


async def apply(store: Store, manifest: Manifest) -> str:
    """Create or change one object; returns "created", "changed" or "unchanged". Raises `StoreError`, `Failure`."""
    kind, metadata = manifest.kind, manifest.metadata
    for _ in range(_ATTEMPTS):
        try:
            await store.create(kind, manifest.item)
        except AlreadyExists:
            pass
        else:
            return "created"
        try:
            found = await store.get(kind, metadata.name, namespace=metadata.namespace)
            after = await store.patch(
                kind,
                metadata.name,
                difference(msgspec.to_builtins(found), msgspec.to_builtins(manifest.item)),
                namespace=metadata.namespace,
                resource_version=found.metadata.resource_version,
            )
        except (Conflict, NotFound):
            continue
        same = after.metadata.resource_version == found.metadata.resource_version
        return "unchanged" if same else "changed"
    msg = f"{manifest}: others changed it {_ATTEMPTS} times in a row"
    raise Failure(msg)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch from one object to another: the spec replaced, labels and annotations added."""
    metadata = {key: after["metadata"][key] for key in ("labels", "annotations") if key in after.get("metadata", {})}
    change: dict[str, Any] = {"metadata": metadata} if metadata else {}
    return change | {"spec": _replaced(before.get("spec", {}), after["spec"])} if "spec" in after else change


def _replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        there = before.get(key)
        patch[key] = _replaced(there, value) if isinstance(there, Mapping) and isinstance(value, Mapping) else value
    return patch


def _text(filename: str) -> str:
    try:
        return sys.stdin.read() if filename == "-" else Path(filename).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        msg = f"--filename: {filename}: {error.strerror if isinstance(error, OSError) else error}"
        raise Misuse(msg) from None
