"""What the kernel says of a pod and of its node, as far as a plan depends on it."""

from msgspec import Struct

from cni.coordination.plan import MAIN_TABLE, POD_VETH, RoutePlan, RulePlan


class PodLink(Struct, frozen=True, kw_only=True):
    """A link in the pod's namespace."""

    ifname: str
    index: int = 0
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = True
    loopback: bool = False
    counted: bool = True
    """Whether it is up, and does broadcast and multicast: what a NIC of the pod's does."""
    peer_index: int = 0
    """Of the other end of a pair, in the namespace of that end."""
    tx_queue_len: int = 0
    rp_filter: int = -1
    """Of its own; negative: not known."""
    addresses: tuple[str, ...] = ()
    """With prefix lengths, as `ipaddress` writes them; those from router advertisements included, link-local ones left
    out."""

    def hosts(self, version: int = 0) -> tuple[str, ...]:
        """The addresses without prefix lengths, of one IP version or of both."""
        return tuple(one.partition("/")[0] for one in self.addresses if version in (0, 6 if ":" in one else 4))


class PodView(Struct, frozen=True, kw_only=True):
    """What is in a pod's namespace."""

    links: tuple[PodLink, ...] = ()
    """In the kernel's order."""
    routes: tuple[RoutePlan, ...] = ()
    """Of all tables but local, each next hop a route of its own, those to link-local and multicast left out."""
    rules: tuple[RulePlan, ...] = ()
    """Without the three that every namespace has."""

    def link(self, ifname: str) -> PodLink | None:
        """The link of that name."""
        return next((one for one in self.links if one.ifname == ifname), None)

    @property
    def nics(self) -> tuple[PodLink, ...]:
        """All links but loopback and the way to the node that we made."""
        return tuple(one for one in self.links if not one.loopback and one.ifname != POD_VETH)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all NICs, without prefix lengths."""
        return tuple(dict.fromkeys(address for nic in self.nics for address in nic.hosts()))

    @property
    def tables(self) -> frozenset[int]:
        """That have a route, or are named by a rule."""
        return frozenset({one.table for one in self.routes} | {one.table for one in self.rules})

    def main(self, version: int) -> tuple[RoutePlan, ...]:
        """The main table's routes of one IP version."""
        return tuple(one for one in self.routes if one.table == MAIN_TABLE and one.version == version)


class NodeLink(Struct, frozen=True, kw_only=True):
    """A link on the node that is the other end of one of the pod's."""

    ifname: str
    index: int
    mac: str = ""
    peer_index: int = 0


class NodeView(Struct, frozen=True, kw_only=True):
    """What the node's kernel says."""

    addresses: tuple[tuple[str, str], ...] = ()
    """(link name, address without prefix length), in the kernel's order."""
    sources: tuple[str, ...] = ()
    """Where the node would send to the pod's addresses from, in their order; none where it has no way."""
    peers: tuple[NodeLink, ...] = ()
    """Other ends of the pod's links."""


class Survey(Struct, frozen=True, kw_only=True):
    """A pod and its node at one moment."""

    pod: PodView
    node: NodeView
