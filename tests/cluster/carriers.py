"""Who carries which address, asked of the kernels and not of what anybody wrote down; nobody shares one."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from tests.cluster.lab import Cluster, LabFailed, plan
from tests.cluster.lab.node import Node

_LOOK_SECONDS: Final = 1.5
_AGAIN_SECONDS: Final = 0.2
_LOCAL: Final = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
_POD: Final = re.compile(r"/pod([0-9a-f-]{32,36})")
"""A static pod's uid has no dashes."""


class Holder(msgspec.Struct, frozen=True, order=True):
    """A network namespace of a pod.

    Attributes:
        node: where it is.
        space: the kernel's name of it.
        uid: of the pod, as kubelet names its cgroup; of a static pod that of its file, not of its mirror.
    """

    node: str
    space: str
    uid: str

    def __str__(self) -> str:
        return f"{self.node} {self.space} pod {self.uid}"


class Conflicts:
    """Looks again and again while it is entered; `found` has a line for every address that two pods carried."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conflicts", daemon=True)
        self.found: list[str] = []
        self.looks = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            twice = doubles(carried(self._cluster))
            if twice:
                # Two looks at two namespaces are not one moment: an address may have moved between them.
                time.sleep(_AGAIN_SECONDS)
                again = doubles(carried(self._cluster))
                self.found += [
                    f"{address} is carried by {' and '.join(map(str, sorted(holders)))}"
                    for address, holders in again.items()
                    if len(holders & twice.get(address, set())) > 1
                ]
            self.looks += 1


def doubles[T](held: Mapping[str, set[T]]) -> dict[str, set[T]]:
    """The addresses with more than one holder."""
    return {address: holders for address, holders in held.items() if len(holders) > 1}


def carried(cluster: Cluster) -> dict[str, set[Holder]]:
    """Who carries each LAN address, on all nodes that are on."""
    found: dict[str, set[Holder]] = {}
    for node in cluster.nodes.values():
        for holder, addresses in _on(node).items():
            for address in addresses:
                found.setdefault(address, set()).add(holder)
    return found


def _on(node: Node) -> dict[Holder, list[str]]:
    found: dict[Holder, list[str]] = {}
    try:
        own = Path(f"/proc/{node.first.pid}/ns/net").readlink()
        processes = node.processes_below("kubepods")
    except (LabFailed, OSError):
        return found
    seen = set()
    for process in processes:
        home = Path(f"/proc/{process.pid}")
        try:
            space = (home / "ns" / "net").readlink()
            if space == own or space in seen:
                continue
            pod = _POD.search((home / "cgroup").read_text())
            addresses = lan_addresses(home)
        except OSError:
            continue
        seen.add(space)
        found[Holder(node.name, str(space), pod[1] if pod else "?")] = addresses
    return found


def lan_addresses(home: Path) -> list[str]:
    """Addresses of both LANs in the network namespace of a process. Raises OSError when it is gone."""
    ipv4 = {it for it in _LOCAL.findall((home / "net" / "fib_trie").read_text()) if plan.on_a_lan(it)}
    ipv6 = set()
    for line in (home / "net" / "if_inet6").read_text().splitlines():
        text = str(ipaddress.IPv6Address(int(line.split()[0], 16)))
        if plan.on_a_lan(text):
            ipv6.add(text)
    return sorted(ipv4 | ipv6)
