"""Which links stand on a parent, whichever namespace they are in.

A parent can take links of one kind, and of one mode, and one of each VLAN id; what is there already is mostly in some
pod. So this looks into every namespace that can be seen (see `cni.netlink.carriers`), which takes 0.1 ms for each: for
errors, and now and then for ipvlan.
"""

import errno
import struct
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager

from msgspec import Struct

from cni.errors import CniError, InvalidConfig
from cni.netlink import link, message
from cni.netlink.carriers import namespaces
from cni.netlink.message import attribute, u32
from cni.netlink.socket import Netns, Refusal, RouteSocket, route_socket
from cni.plan import LinkPlan, LinkState

OWN = "/proc/thread-self/ns/net"
_RTM_GETNSID = 90
_NSID, _NS_FD = 1, 3
_NOBODY = -1
_PAIRS = {"veth", "netkit", "vxcan"}
"""Kinds whose other end is shown where others show their parent."""
_NAMED = 3
"""So many of a parent's links are named in an error."""


class Holder(Struct, frozen=True):
    """A link on a parent."""

    netns: str
    """Path of its namespace; empty: that of the parent."""
    link: LinkState

    def __str__(self) -> str:
        what = " ".join(filter(None, (self.link.kind or "link", self.link.ifname, _detail(self.link))))
        return f"{what} in {self.netns}" if self.netns else what


def holders(parent: LinkState, *, where: str) -> Generator[Holder]:
    """The links on a parent, one namespace after the other, that of the parent first. `where` is the path of that one.

    What goes, or cannot be seen, is left out.
    """
    with Netns.open(where) as netns:
        with route_socket(netns) as sockets:
            for one in link.listed(sockets):
                if _is_on(one, parent, number=None):
                    yield Holder("", one)
        for path in namespaces():
            for one in _from_elsewhere(path, parent, netns):
                yield Holder(path, one)


def _from_elsewhere(path: str, parent: LinkState, netns: Netns) -> list[LinkState]:
    with ExitStack() as stack:
        try:
            sockets = stack.enter_context(route_socket(stack.enter_context(Netns.open(path))))
            number = _number(sockets, netns)
            found = link.listed(sockets) if number != _NOBODY else []
        except (Refusal, CniError):
            return []
        return [one for one in found if _is_on(one, parent, number=number)]


def described(parent: LinkState, *, where: str, vlan_id: int | None = None) -> str:
    """For an error: who has a parent, or a VLAN id on it; empty when nobody can be seen."""
    seen = [str(one) for one in holders(parent, where=where) if vlan_id is None or one.link.vlan_id == vlan_id]
    if parent.master_index:
        with Netns.open(where) as netns, route_socket(netns) as sockets:
            master = link.get_index(sockets, parent.master_index)
        if master is not None:
            seen.insert(0, f"{master.kind} {master.ifname}, whose port it is")
    more = f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
    return f"{parent.ifname} has {', '.join(seen[:_NAMED])}{more}" if seen else ""


class Modes:
    """Sees to it that the ipvlan links of one parent have one mode.

    The kernel has one for all of them: a new link with another would change those that are there. It tells the mode by
    a link only, and they are in pods. So the last one that was made on a parent is kept in mind and asked; only when it
    has gone are the others looked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[int, tuple[str, str, int]] = {}
        """By the parent's index: namespace, name and index of a link on it."""

    @contextmanager
    def keeping(self, plan: LinkPlan, parent: LinkState, *, where: str) -> Iterator[None]:
        """Make the link in the block; one at a time. `where` is the path of the parent's namespace.

        Raises:
            InvalidConfig: the parent's links have another mode.
        """
        with self._lock:
            witness = None if plan.link_in_container else self._witness(parent)
            if witness is None:
                with closing(holders(parent, where=where)) as found:
                    witness = next((one for one in found if one.link.kind == "ipvlan"), None)
            if witness is not None and witness.link.mode != plan.mode:
                there = f"the ipvlan links of master {parent.ifname} have mode {witness.link.mode}"
                raise InvalidConfig(f"mode: {plan.mode} is not possible, {there}", f"one is {witness}")
            yield

    def made(self, plan: LinkPlan, parent: LinkState, new: LinkState) -> None:
        """Keep a link in mind, in the block."""
        if not plan.link_in_container:
            self._last[parent.index] = plan.netns, plan.ifname, new.index

    def _witness(self, parent: LinkState) -> Holder | None:
        path, ifname, index = self._last.get(parent.index, ("", "", 0))
        if not path:
            return None
        try:
            with Netns.open(path) as netns, route_socket(netns) as sockets:
                found = link.get(sockets, ifname)
        except CniError:
            found = None
        if found is None or (found.kind, found.index, found.parent_index) != ("ipvlan", index, parent.index):
            del self._last[parent.index]
            return None
        return Holder(path, found)


def _is_on(one: LinkState, parent: LinkState, *, number: int | None) -> bool:
    return (one.parent_index, one.parent_netns) == (parent.index, number) and one.kind not in _PAIRS


def _number(sockets: RouteSocket, netns: Netns) -> int:
    """The number that a namespace has in the socket's; `_NOBODY`: none, so that no link in there stands on it."""
    body = bytes(4) + attribute(_NS_FD, u32(netns.descriptor))
    try:
        reply = sockets.query(_RTM_GETNSID, body)
    except Refusal as refusal:
        if refusal.number in {errno.ENOENT, errno.EINVAL}:
            return _NOBODY
        raise
    value = message.attributes(memoryview(reply)[4:]).get(_NSID)
    return _NOBODY if value is None else int(struct.unpack_from("=i", value)[0])


def _detail(found: LinkState) -> str:
    if found.vlan_id is not None:
        return f"(VLAN {found.vlan_id})"
    return f"({found.mode})" if found.mode else ""
