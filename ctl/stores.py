"""Which store a verb works on: the embedded one of a state folder, or the API server that KUBECONFIG names."""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread

from ctl.errors import Failure, Misuse
from runtime.store.port import Store, StoreError
from runtime.store.sqlite import FILE_NAME, SQLiteStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flag by which people choose."""
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default="",
        help="the state folder of a spiderpool-standalone; without it, the API server of KUBECONFIG",
    )


@asynccontextmanager
async def opened(state_dir: str) -> AsyncIterator[Store]:
    """The store, closed behind the block; what it refuses inside the block becomes a `Failure`.

    Raises `Misuse` when there is none to open, `Failure`.
    """
    store = await (_cluster() if not state_dir else _embedded(Path(state_dir)))
    try:
        yield store
    except StoreError as error:
        msg = f"{_WORDS.get(type(error).__name__, type(error).__name__)}: {error}"
        raise Failure(msg) from error
    finally:
        await store.aclose()


_WORDS = {"Unavailable": "the store cannot be reached", "Denied": "not allowed", "Invalid": "refused"}


async def _embedded(folder: Path) -> Store:
    if not await anyio.Path(folder).is_dir():
        msg = f"--state-dir: {folder}: no such folder"
        raise Misuse(msg)
    return SQLiteStore(folder / FILE_NAME)


async def _cluster() -> Store:
    # Half a second of imports that the embedded store does without.
    from runtime.store.cluster_credentials import from_kubernetes_asyncio  # noqa: PLC0415
    from runtime.store.credentials import CredentialsError, from_kubeconfig  # noqa: PLC0415
    from runtime.store.kubernetes import KubernetesStore  # noqa: PLC0415

    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        msg = "no store is named: give --state-dir DIR, or set KUBECONFIG to a kubeconfig's path"
        raise Misuse(msg)
    if not await anyio.Path(kubeconfig).is_file():
        msg = f"KUBECONFIG: {kubeconfig}: no such file"
        raise Misuse(msg)
    try:
        credentials = await anyio.to_thread.run_sync(from_kubeconfig, kubeconfig)
    except CredentialsError:
        # A user that a plugin authenticates takes the client library; a broken file fails there again.
        try:
            credentials = await from_kubernetes_asyncio(kubeconfig)
        except CredentialsError as error:
            msg = f"KUBECONFIG: {error}"
            raise Misuse(msg) from None
    return KubernetesStore(credentials, agent="spiderpoolctl")
