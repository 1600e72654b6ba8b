"""Who has which address in the lab, and where it keeps its files.

Every cluster lives in network namespaces of its own, so that two of different names may have the same addresses.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Final, Literal, get_args

from tests.servers.provide import CHECKOUT, cache_folder

type Cni = Literal["none", "bridge", "ref"]
CNIS: Final[tuple[Cni, ...]] = get_args(Cni.__value__)

DEFAULT_NAME: Final = "lab"

GATEWAY: Final = ("10.89.0.1", "fd00:89::1")
"""The router's addresses on the LAN, the default gateway of everything there."""

API: Final = ("10.89.0.2", "fd00:89::2")
API_URL: Final = f"https://{API[0]}:6443"
LAN_PREFIX: Final = (16, 64)
WAN_GATEWAY: Final = ("10.90.0.1", "fd00:90::1")
OUTSIDE: Final = ("10.90.0.2", "fd00:90::2")
"""The client that is not on the LAN."""

WAN_PREFIX: Final = (24, 64)
SERVICE_CIDRS: Final = "10.96.0.0/16,fd00:10:96::/112"
API_SERVICE: Final = "10.96.0.1"
POD_CIDRS: Final = "10.244.0.0/16,fd00:10:244::/56"
"""Of the bridge CNI; kube-proxy masquerades what comes to a service from elsewhere, as the LAN's pods need it."""

LAN_SEGMENT: Final = "lan"
STORAGE_SEGMENT: Final = "storage"
"""A second LAN, with prefixes as the first; the router is its gateway, nodes have no address there."""

STORAGE_GATEWAY: Final = ("10.91.0.1", "fd00:91::1")
UPLINK: Final = "eth1"
"""The nodes' NIC in the second LAN."""

OTLP_PORT: Final = 4318
_NEEDED: Final = frozenset(
    {"bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "opt", "proc", "run", "sbin", "sys", "tmp", "usr", "var"}
)
HIDDEN: Final = tuple(sorted({"root", "home", CHECKOUT.parts[1]} - _NEEDED))
"""Top folders of this machine that a node has no use for."""


def node_index(name: str) -> int:
    """3 for n3."""
    return int(name.removeprefix("n"))


def node_addresses(name: str) -> tuple[str, str]:
    """The node's IPv4 and IPv6 address on the LAN: n1 has .11."""
    host = 10 + node_index(name)
    return f"10.89.0.{host}", f"fd00:89::{host}"


def on_a_lan(address: str) -> bool:
    """Whether an address is one of the first or the second LAN, and none of the overlay's or of Services."""
    return address.startswith(("10.89.", "10.91.", "fd00:89:", "fd00:91:"))


def probe_addresses(name: str) -> tuple[str, str]:
    """The addresses of the node's own macvlan link, which only the reference CNI has."""
    host = 110 + node_index(name)
    return f"10.89.0.{host}", f"fd00:89::{host}"


def reference_ranges(name: str) -> tuple[str, str]:
    """Where the reference CNI's pods of a node have their addresses, as CIDRs inside the LAN."""
    index = node_index(name)
    return f"10.89.{index}.0/24", f"fd00:89::{index}:0/112"


def mac_address(name: str, nic: str) -> str:
    """A NIC keeps its MAC address over a power cycle."""
    digest = zlib.crc32(nic.encode())
    return f"02:89:00:{node_index(name):02x}:{digest >> 8 & 255:02x}:{digest & 255:02x}"


def labs_folder() -> Path:
    """Where every cluster's folder lies."""
    return cache_folder() / "cluster"
