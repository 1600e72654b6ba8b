"""The LAN: a switch (a bridge), a router as its gateway, and a node whose NIC is on it; namespaces for pods.

The node's NIC is the parent of the pods' macvlan links, which are on the LAN themselves.
"""

import struct
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from cni.netlink import address, link, message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import Netns, RouteSocket, route_socket
from ctl.demo.isolation import make_netns, unmount

GATEWAYS = {4: "10.77.0.1/24", 6: "fd00::1/64"}
NODES = {4: "10.77.0.2/24", 6: "fd00::2/64"}
"""The node's own addresses."""
NIC = "eth0"
"""Of the router, the node and the pods."""

_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_HEADER = struct.Struct("=BxHiII")
_NO_LINK = _HEADER.pack(0, 0, 0, 0, 0)
_MAKE = message.F_CREATE | message.F_EXCL


class Segment:
    """The namespaces by name: switch, router, node, and the pods. They last as long as the `with` block."""

    def __init__(self, folder: Path, *, pods: tuple[str, ...]) -> None:
        """`folder` exists and is empty: the namespaces are mounted in it."""
        self._folder = folder
        self._names = ("switch", "router", "node", *pods)
        self._stack = ExitStack()
        self.namespaces: dict[str, Netns] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for name in self._names:
                path = self._folder / name
                stack.callback(unmount, path)
                self.namespaces[name] = stack.enter_context(make_netns(path))
                with route_socket(self.namespaces[name]) as sockets:
                    _up(sockets, "lo")
            self._wire()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def path(self, name: str) -> str:
        """Where a namespace is mounted: what a runtime gives as CNI_NETNS."""
        return str(self._folder / name)

    def links(self, name: str) -> set[str]:
        """The links in a namespace."""
        with route_socket(self.namespaces[name]) as sockets:
            found = sockets.dump(link.RTM_GETLINK, _NO_LINK, link.decode)
        return {state.ifname for state in found}

    def _wire(self) -> None:
        with route_socket(self.namespaces["switch"]) as sockets:
            sockets.request(link.RTM_NEWLINK, _MAKE, _bridge("br0"))
            master = _up(sockets, "br0")
            for name in ("router", "node"):
                port, far = f"to-{name}", self.namespaces[name].descriptor
                sockets.request(link.RTM_NEWLINK, _MAKE, _veth(port, master=master, peer=NIC, peer_netns=far))
                _up(sockets, port)
        for name in ("router", "node"):
            with route_socket(self.namespaces[name]) as sockets:
                _up(sockets, NIC)
                state = link.get(sockets, NIC)
                assert state is not None
                for one in (GATEWAYS if name == "router" else NODES).values():
                    address.add(sockets, state, one)


def _up(sockets: RouteSocket, ifname: str) -> int:
    state = link.get(sockets, ifname)
    assert state is not None, ifname
    link.set_up(sockets, state)
    return state.index


def _bridge(ifname: str) -> bytes:
    return _NO_LINK + text(_IFLA_IFNAME, ifname) + nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"))


def _veth(ifname: str, *, master: int, peer: str, peer_netns: int) -> bytes:
    far = _NO_LINK + text(_IFLA_IFNAME, peer) + attribute(_IFLA_NET_NS_FD, u32(peer_netns))
    kind = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, nested(_VETH_PEER, far)))
    return _NO_LINK + text(_IFLA_IFNAME, ifname) + attribute(_IFLA_MASTER, u32(master)) + kind
