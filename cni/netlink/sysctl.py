"""Settings under /proc/sys/net, which shows the namespace of the thread that reads it."""

import ctypes
import logging
import os
from functools import cache
from pathlib import Path

from cni.errors import KernelRefused

_log = logging.getLogger(__name__)

_MOUNTED = Path("/host/proc/sys/net")
"""Where a container that is not privileged has the same files writable: it finds its own /proc/sys read-only."""

_OWN = Path("/proc/sys/net")
_MS_BIND = 4096
_libc = ctypes.CDLL(None, use_errno=True)

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
    return _MOUNTED if _MOUNTED.is_dir() else _OWN


def ipv6_setting(ifname: str, name: str) -> Path:
    """The file of one IPv6 setting of one interface; absent when the kernel runs without IPv6."""
    return _root() / "ipv6/conf" / ifname / name


def ipv4_setting(ifname: str, name: str) -> Path:
    """The file of one IPv4 setting of one interface, or of "all"."""
    return _root() / "ipv4/conf" / ifname / name


def prepare_ipv6(ifname: str) -> None:
    """Let an interface of the namespace that the calling thread is in have IPv6 addresses.

    Raises:
        KernelRefused: runtimes switch IPv6 off, and here it stays off.
    """
    disabled = ipv6_setting(ifname, "disable_ipv6")
    try:
        if disabled.read_text().strip() != "0":
            disabled.write_text("0")
    except OSError as error:
        raise KernelRefused(f"IPv6 cannot be enabled on {ifname}", str(error), errno=error.errno or 0) from None
    for name in ("ndisc_notify", "keep_addr_on_down"):
        try:
            ipv6_setting(ifname, name).write_text("1")
        except OSError as error:
            # Both only matter when the link goes down or changes its MAC address later; /proc/sys may be read-only.
            _log.debug("%s of %s stays as it is: %s", name, ifname, error)


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


def open_to_programs(mounted: Path = _MOUNTED) -> str:
    """Lay the writable files over /proc/sys/net where that is read-only; why that cannot be, empty when it need not.

    For plugins of other people that this process executes: they know no other path, and fail for a pod with IPv6.
    The mount is the container's own, and goes with it.
    """
    try:
        if not os.statvfs(_OWN).f_flag & os.ST_RDONLY or not mounted.is_dir():
            return ""
    except OSError as error:
        return f"{_OWN}: {error.strerror}"
    if _libc.mount(os.fsencode(mounted), os.fsencode(_OWN), None, _MS_BIND, None):
        return f"{_OWN} stays read-only: {os.strerror(ctypes.get_errno())}"
    return ""


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
