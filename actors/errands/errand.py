"""What the programs that do one thing and end have in common: a store, lines on stdout, one line about what went wrong.

Exit codes: 0 done, 1 it could not be done, 2 it was asked for in a wrong way.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread

from actors import program
from runtime.store.cluster_credentials import credentials_of
from runtime.store.credentials import CredentialsError
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import Ambiguous, Busy, StoreError, Unavailable

PAUSE = 1.0
"""Seconds between two looks at something that is waited for."""

TRANSIENT = (Unavailable, Busy, Ambiguous)
"""Errors after which the same request may succeed."""


class CannotBeDone(Exception):
    """The errand failed; the text is for the user, one line for each thing that is wrong."""


def say(text: str) -> None:
    """A line for whoever reads the log of a hook, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(name: str, errand: Callable[[KubernetesStore], Awaitable[None]], *, kubeconfig: str) -> int:
    """Do it with the API server of the kubeconfig, or with the pod's own account; returns the exit code."""

    async def main() -> None:
        store = KubernetesStore(await credentials_of(kubeconfig), agent=f"{name.replace(' ', '-')}/{program.VERSION}")
        try:
            await errand(store)
        finally:
            await store.aclose()

    try:
        asyncio.run(main())
    except CredentialsError as error:
        program.refuse(name, error)
    except (CannotBeDone, StoreError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"{name}: {line}\n")
        return 1
    return 0


async def persistently[T](request: Callable[[], Awaitable[T]], *, until: float) -> T:
    """Repeat a request while the API server cannot be reached, until that time of the loop.

    Raises what the last try raised; errors that no repetition mends at once.
    """
    told = ""
    while True:
        try:
            return await request()
        except TRANSIENT as error:
            pause = max(PAUSE, error.retry_after) if isinstance(error, Busy) else PAUSE
            if anyio.current_time() + pause > until:
                raise
            if str(error) != told:
                say(f"trying again: {error}")
                told = str(error)
            await anyio.sleep(pause)
