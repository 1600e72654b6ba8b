"""Per-interface settings under /proc/sys/net, which shows the namespace of the thread that reads it."""

from functools import cache
from pathlib import Path

_MOUNTED = Path("/host/proc/sys/net")
"""Where a container that is not privileged has the same files writable: it finds its own /proc/sys read-only."""


@cache
def _root() -> Path:
    return _MOUNTED if _MOUNTED.is_dir() else Path("/proc/sys/net")


def ipv6_setting(ifname: str, name: str) -> Path:
    """The file of one IPv6 setting of one interface; absent when the kernel runs without IPv6."""
    return _root() / "ipv6/conf" / ifname / name


def ipv4_setting(ifname: str, name: str) -> Path:
    """The file of one IPv4 setting of one interface, or of "all"."""
    return _root() / "ipv4/conf" / ifname / name
