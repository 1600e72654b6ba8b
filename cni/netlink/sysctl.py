"""Settings under /proc/sys/net, which shows the namespace of the thread that reads it."""

from functools import cache
from pathlib import Path

_MOUNTED = Path("/host/proc/sys/net")
"""Where a container that is not privileged has the same files writable: it finds its own /proc/sys read-only."""

_AT_LEAST = (
    # The neighbour tables of all namespaces share one limit, 1024 entries by default.
    ("ipv4/neigh/default/gc_thresh3", 28160),
    ("ipv6/neigh/default/gc_thresh3", 28160),
)
_EXACTLY = (
    # Pods are reached through the node: by Services, and by whatever comes from its other networks.
    ("ipv4/conf/all/forwarding", 1),
    ("ipv6/conf/all/forwarding", 1),
    # A pod has two ways; the larger of this and an interface's own value counts.
    ("ipv4/conf/all/rp_filter", 0),
    # A namespace starts with the node's IPv4 values: pods announce their addresses.
    ("ipv4/conf/all/arp_notify", 1),
)


@cache
def _root() -> Path:
    return _MOUNTED if _MOUNTED.is_dir() else Path("/proc/sys/net")


def ipv6_setting(ifname: str, name: str) -> Path:
    """The file of one IPv6 setting of one interface; absent when the kernel runs without IPv6."""
    return _root() / "ipv6/conf" / ifname / name


def ipv4_setting(ifname: str, name: str) -> Path:
    """The file of one IPv4 setting of one interface, or of "all"."""
    return _root() / "ipv4/conf" / ifname / name


def tune_node(root: Path | None = None) -> list[str]:
    """Set what a node needs for pods that are reached through it; what could not be set, and why, in words.

    A setting that this kernel lacks is passed over. `root` is for tests.
    """
    root = root or _root()
    problems: list[str] = []
    if _read(root / "ipv6/conf/all/forwarding") == 0:
        # A router does not listen to routers unless told so: a node that has its default route from one would lose it.
        for accept in sorted((root / "ipv6/conf").glob("*/accept_ra")):
            if accept.parent.name not in {"all", "lo"} and _read(accept) == 1:
                _set(accept, 2, problems)
    for name, value in (*_AT_LEAST, *_EXACTLY):
        now = _read(root / name)
        if now is not None and (now < value if (name, value) in _AT_LEAST else now != value):
            _set(root / name, value, problems)
    return problems


def _read(setting: Path) -> int | None:
    """A number; None where there is none."""
    try:
        return int(setting.read_text())
    except (OSError, ValueError):
        return None


def _set(setting: Path, value: int, problems: list[str]) -> None:
    try:
        setting.write_text(str(value))
    except OSError as error:
        problems.append(f"{setting} cannot be set to {value}: {error.strerror}")
