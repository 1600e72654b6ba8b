"""Who talks to whom, and by which link: servers that tell the client who it is to them, counters of packets, ways gone.

Not of the lab's machines only: guests of `tests.vm` use it as well.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, Protocol, Self

from tests.netns import Netns

PORT: Final = 8081
_SECONDS: Final = 3.0
_SILENT_SECONDS: Final = 0.4
"""Who answers does so in a millisecond."""

_PKTINFO: Final = 20
"""Bytes: an address, and the index of a link."""
_TABLE: Final = "inet lab-watch"
_HOOKS: Final = {"in": "prerouting", "out": "postrouting"}


class Host(Protocol):
    """Who has a network namespace in which commands can be run, `nft` and `ip` among them."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def netns(self) -> Netns:
        """The namespace."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        input: str | None = None,  # noqa: A002 - as subprocess names it
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        ...


class Teller:
    """Answers every TCP connection and UDP packet with its name and the client's address, while it is entered."""

    def __init__(self, host: Host, name: str, *, port: int = PORT) -> None:
        self._host = host
        self._name = name
        self._port = port
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._host.netns().run(self._open)
        stream, packets = self._sockets
        for work in (lambda: self._streams(stream), lambda: self._packets(packets)):
            thread = threading.Thread(target=work, name=f"teller {self._name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for each in self._sockets:
            each.close()

    def _open(self) -> None:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            made = socket.socket(socket.AF_INET6, kind)
            self._sockets.append(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("::", self._port))
        self._sockets[0].listen(32)
        self._sockets[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)

    def _streams(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, peer = listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.sendall(self._answer(peer[0]))

    def _packets(self, packets: socket.socket) -> None:
        while True:
            try:
                received, asked, _, peer = packets.recvmsg(100, socket.CMSG_SPACE(_PKTINFO))
            except OSError:
                return
            if not received:
                return  # shut down
            with suppress(OSError):
                # As the address that was asked: of a host with several, the kernel would choose by who asks.
                source = [(level, kind, data[:16] + bytes(4)) for level, kind, data in asked]
                packets.sendmsg([self._answer(peer[0])], source, 0, peer)

    def _answer(self, peer: str) -> bytes:
        return f"{self._name} {peer.removeprefix('::ffff:')}".encode()


def ask(
    host: Host, address: str, *, port: int = PORT, udp: bool = False, source: str = "", seconds: float = _SECONDS
) -> tuple[str, str]:
    """Who answers at an address, and who we are to it. Raises OSError, TimeoutError among them.

    Args:
        host: that asks.
        address: asked.
        port: asked.
        udp: by UDP.
        source: address to ask from; empty: the kernel's choice.
        seconds: to wait.
    """

    def opened() -> socket.socket:
        made = socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        )
        made.settimeout(seconds)
        return made

    with host.netns().run(opened) as client:
        if source:
            client.bind((source, 0))
        client.connect((address, port))
        if udp:
            client.sendall(b"who")
        name, _, peer = client.recv(200).decode().partition(" ")
        if not name:
            raise ConnectionError(f"{address} port {port} hung up")
        return name, peer


def silent(host: Host, address: str, *, port: int = PORT, udp: bool = False, source: str = "") -> bool:
    """Whether nobody answers."""
    try:
        ask(host, address, port=port, udp=udp, source=source, seconds=_SILENT_SECONDS)
    except OSError:
        return True
    return False


class Watch:
    """Counts packets of a network namespace while it is entered; `packets()` tells how many matched so far.

    A key is a direction and a link, `("out", "veth0")`; what is looked for has the port `port` or is of `match`.
    """

    def __init__(self, host: Host, *links: str, match: str = f"th dport {PORT}", reply: str = "") -> None:
        """Counts on these links what matches an expression of nftables.

        Args:
            host: whose.
            *links: to count on.
            match: of what leaves; empty counts nothing.
            reply: of what comes in; empty: as `match`.
        """
        self._host = host
        self._rules = {
            (way, link): f'{"iif" if way == "in" else "oif"}name "{link}" meta l4proto {{ tcp, udp }} {expression}'
            for way, expression in (("out", match), ("in", reply or match))
            for link in links
        }

    def __enter__(self) -> Self:
        lines = [f"table {_TABLE} {{"]
        lines += [f"  counter {_name(key)} {{ }}" for key in self._rules]
        for way, hook in _HOOKS.items():
            priority = "-350" if way == "in" else "350"
            lines.append(f"  chain {way} {{ type filter hook {hook} priority {priority}; policy accept;")
            lines += [f"    {rule} counter name {_name(key)}" for key, rule in self._rules.items() if key[0] == way]
            lines.append("  }")
        lines.append("}")
        self._host.run(["nft", "-f", "-"], input="\n".join(lines) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._host.run(["nft", "delete", "table", *_TABLE.split()], check=False)

    def packets(self) -> Mapping[tuple[str, str], int]:
        """How many matched, by direction and link; those that did not are left out."""
        listed = json.loads(self._host.run(["nft", "--json", "list", "counters", "table", *_TABLE.split()]).stdout)
        found = {it["counter"]["name"]: it["counter"]["packets"] for it in listed["nftables"] if "counter" in it}
        return {key: found[_name(key)] for key in self._rules if found[_name(key)]}


def _name(key: tuple[str, str]) -> str:
    return f"{key[0]}-{key[1]}"


@contextmanager
def without_routes(host: Host, *destinations: str, table: str = "main") -> Iterator[None]:
    """All routes of a table to these destinations are taken away, and come back. Raises LookupError."""
    with ExitStack() as undo:
        for destination in destinations:
            family = "-6" if ":" in destination else "-4"
            words = ["ip", family, "route"]
            shown = host.run([*words, "show", destination, "table", table]).stdout.splitlines()
            if not shown:
                raise LookupError(f"{host.name} has no route to {destination} in table {table}")
            for line in shown:
                host.run([*words, "delete", *line.split(), "table", table])
                undo.callback(host.run, [*words, "add", *line.split(), "table", table])
        yield


@contextmanager
def without_rule(host: Host, selector: str, *, family: str = "-4") -> Iterator[None]:
    """The rule whose text has `selector` in it is taken away, and comes back. Raises LookupError."""
    words = ["ip", family, "rule"]
    for line in host.run([*words, "show"]).stdout.splitlines():
        priority, _, rule = line.partition(":")
        if selector in rule:
            what = [*rule.split(), "priority", priority]
            host.run([*words, "delete", *what])
            try:
                yield
            finally:
                host.run([*words, "add", *what])
            return
    raise LookupError(f"{host.name} has no rule {selector}")
