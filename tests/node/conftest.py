"""One Ethernet segment on this kernel: a bridge, two uplinks that pods' links are made on, a neighbour and containers.

All of it is in the test run's own network namespace and in namespaces that the test makes.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.netns import Netns


class Segment:
    """The bridge `lan` with the uplinks `up0` and `up1`; `neighbour` is a host on it, 10.77.0.1/24 and fd77::1/64."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.neighbour = self.container()
        with IPRoute() as route:
            route.link("add", ifname="lan", kind="bridge")
            stack.callback(_delete, "lan")
            lan = route.link_lookup(ifname="lan")[0]
            route.link("set", index=lan, state="up")
            for name in ("up0", "up1", "host"):
                route.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-port"})
                stack.callback(_delete, f"{name}-port")
                port, end = (route.link_lookup(ifname=one)[0] for one in (f"{name}-port", name))
                route.link("set", index=port, master=lan, state="up")
                if name == "host":
                    with self.neighbour.path.open() as namespace:
                        route.link("set", index=end, net_ns_fd=namespace.fileno())
                else:
                    route.link("set", index=end, state="up")
        self.neighbour.run(_configure_neighbour)

    def container(self) -> Netns:
        """An empty network namespace."""
        return self._stack.enter_context(Netns(self._folder))


def _delete(name: str) -> None:
    with IPRoute() as route:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)


def _configure_neighbour() -> None:
    with IPRoute() as route:
        host = route.link_lookup(ifname="host")[0]
        route.addr("add", index=host, address="10.77.0.1", prefixlen=24)
        route.addr("add", index=host, address="fd77::1", prefixlen=64, flags=2)
        route.link("set", index=host, state="up")


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with ExitStack() as stack:
        yield Segment(tmp_path, stack)


def talk(server: Netns, client: Netns, address: str, *, timeout: float = 2.0) -> bytes:
    """What a TCP client in one namespace gets from a server in the other; raises `OSError` when it gets nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        server.run(lambda: socket.socket(family, socket.SOCK_STREAM)) as listener,
        client.run(lambda: socket.socket(family, socket.SOCK_STREAM)) as caller,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a conversation before this one
        listener.bind((address, 8080))
        listener.listen()
        listener.settimeout(timeout)
        caller.settimeout(timeout)
        caller.connect((address, 8080))
        answering, peer = listener.accept()
        with answering:
            answering.sendall(str(peer[0]).encode())
        return caller.recv(100)
