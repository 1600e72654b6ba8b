"""Whether any link of this node carries an address, whichever namespace it is in.

A namespace is found by the processes that are in it and by the places where it is mounted, as container runtimes do. So
it is found too when its mount has gone and a process goes on in it. One that only an open descriptor keeps is not; nor
are processes that this one cannot see (another pid namespace, no right to look).
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

from cni.errors import InvalidNetns
from cni.netlink import address
from cni.netlink.socket import Netns, route_socket

_log = logging.getLogger(__name__)

_OWN = "/proc/thread-self/ns/net"
_MOUNTS = Path("/proc/self/mountinfo")
_ROOT = re.compile(r"net:\[(\d+)\]")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def carried(addresses: Sequence[str]) -> frozenset[str]:
    """Those of the addresses, given with or without prefix length, that a link has. Every namespace is asked once.

    Raises:
        CniError: the kernel does not list the addresses of a namespace that is there.
    """
    wanted: dict[IPv4Address | IPv6Address, list[str]] = {}
    for text in addresses:
        wanted.setdefault(ip_interface(text).ip, []).append(text)
    found: set[str] = set()
    for path in namespaces() if wanted else ():
        for listed in _listed(path):
            found.update(wanted.get(ip_interface(listed).ip, ()))
        if len(found) == len(set(addresses)):
            break
    return frozenset(found)


def namespaces() -> Iterator[str]:
    """A path for each network namespace of the node that can be seen, the own one first."""
    seen: set[int] = set()
    for path in _candidates():
        try:
            inode = os.stat(path).st_ino  # noqa: PTH116 - a thousand times in a row
        except OSError:
            continue  # the process has ended, or is closed to us
        if inode not in seen:
            seen.add(inode)
            yield path


def mounted(lines: Iterable[str]) -> Iterator[str]:
    """Where network namespaces are mounted, by the lines of a `mountinfo`."""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if after.startswith("nsfs ") and len(fields) > 4 and _ROOT.fullmatch(fields[3]):
            yield _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])


def _candidates() -> Iterator[str]:
    yield _OWN
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield f"/proc/{entry.name}/ns/net"
    yield from mounted(_MOUNTS.read_text(errors="surrogateescape").splitlines())


def _listed(path: str) -> list[str]:
    """The addresses in a namespace; none when it has gone meanwhile."""
    with ExitStack() as stack:
        try:
            netns = stack.enter_context(Netns.open(path))
            sockets = stack.enter_context(route_socket(netns))
        except InvalidNetns as error:
            if Path(path).exists():
                _log.warning("the addresses in %s cannot be seen: %s", path, error)
            return []
        return address.listed(sockets)
