"""What a test's process has open: no descriptor into a container's namespace may outlive the call that opened it."""

import asyncio
from contextlib import suppress
from pathlib import Path


def descriptors() -> list[str]:
    """Namespaces and sockets that this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(path.readlink()).partition(":")[0])
    return sorted(one for one in found if one in {"net", "socket"})


async def until_closed(before: list[str]) -> None:
    """Wait until no others are open than before: who asks for a removal has one until the kernel acknowledges it."""
    async with asyncio.timeout(5):
        while descriptors() != before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
