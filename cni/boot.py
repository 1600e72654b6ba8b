"""Which life of the kernel this is. What was noted in another one says nothing of namespaces, links and devices."""

from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""The same in every container of the node."""


@cache
def boot_id() -> str:
    """Another one after each start of the kernel."""
    return _BOOT_ID.read_text().strip()
