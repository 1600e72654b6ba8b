"""Per-interface settings under /proc/sys/net, which shows the namespace of the thread that reads it."""

from pathlib import Path


def ipv6_setting(ifname: str, name: str) -> Path:
    """The file of one IPv6 setting of one interface; absent when the kernel runs without IPv6."""
    return Path("/proc/sys/net/ipv6/conf") / ifname / name
