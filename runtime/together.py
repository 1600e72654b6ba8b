"""Steps that need nothing of each other, done at the same time."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from runtime.errors import first

type Step = Callable[[], Coroutine[Any, Any, None]]


async def together(*steps: Step) -> None:
    """Return when all have ended; one alone costs no task.

    Raises the first failure; what else runs is cancelled then.
    """
    if len(steps) < 2:
        for step in steps:
            await step()
        return
    try:
        async with anyio.create_task_group() as group:
            for step in steps:
                group.start_soon(step)
    except BaseExceptionGroup as failures:
        raise first(failures) from failures
