"""What a link loses when it is set down, and what of that is put back when it is the node's own again.

A link is set down to become the slave of a bond. That takes its IPv6 addresses, its routes and the neighbours that
somebody has entered; IPv4 addresses stay. When the bond fails the link comes up again, and the kernel makes some of it
anew: routes to the networks of the addresses, link-local addresses, and, when the router has been heard again, what it
advertises. The rest is put back as the kernel had listed it, so that nothing is lost that is not understood here.

Pure: `cni.netlink.belongings` reads, and asks for what is decided here.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

NODAD, TENTATIVE = 0x02, 0x40
"""IFA_F_* of linux/if_addr.h: no duplicate address detection; it has not ended, or not well."""
_TEMPORARY = 0x01
_MADE_BY_KERNEL = frozenset({2, 3})
"""IFAPROT_KERNEL_RA, IFAPROT_KERNEL_LL; kernels before 5.18 do not say."""
_ADVERTISED = 9
"""RTPROT_RA. The kernel takes no advertisement of a router whose route somebody else has entered."""


class HeldAddress(Struct, frozen=True, kw_only=True):
    """An IPv6 address of a link."""

    index: int
    """The link's."""
    address: str
    flags: int
    origin: int = 0
    """IFA_PROTO: who gave it; 0 a person or a program."""
    body: bytes = b""
    """As the kernel lists it."""


class AddressBack(Struct, frozen=True):
    """An address to give back."""

    held: HeldAddress
    flags: tuple[int, ...]
    """To add it with, and then to change it to."""


class HeldRoute(Struct, frozen=True, kw_only=True):
    """A route of the node."""

    indices: frozenset[int]
    """The links it goes through: several when it has several next hops."""
    version: int
    destination: str
    table: int
    metric: int = 0
    tos: int = 0
    protocol: int = 0
    via: bool = False
    """Whether it has a next hop, which another route must lead to."""
    sourced: bool = False
    """Whether it names an address of the node, which must be there."""
    body: bytes = b""
    """As the kernel takes it."""

    @property
    def place(self) -> tuple[int, int, str, int, int]:
        """Routes of one place are told apart by their order only."""
        return self.version, self.table, self.destination, self.tos, self.metric


class RouteBack(Struct, frozen=True):
    """A route to enter again."""

    held: HeldRoute
    last: bool
    """Whether it comes behind the others of its place, else before them."""


def addresses_back(held: Iterable[HeldAddress]) -> list[AddressBack]:
    """The addresses to give back, in this order; `held` is in the kernel's, the newest first.

    What was in use is so again at once: it had been looked for on the segment, and has been nobody else's since. What
    was not, is looked for again.
    """
    back = []
    for one in reversed([*held]):
        if one.flags & _TEMPORARY or one.origin in _MADE_BY_KERNEL:
            continue
        fresh = one.flags & (TENTATIVE | NODAD)
        back.append(AddressBack(one, (one.flags,) if fresh else (one.flags | NODAD, one.flags)))
    return back


def routes_back(held: Sequence[HeldRoute], indices: frozenset[int]) -> list[RouteBack]:
    """The routes of links to enter again, in this order; `held` are all of the node, in the kernel's order.

    Those that lead to the next hops of others come first. What the kernel has made anew it refuses as a double.
    """
    back: list[RouteBack] = []
    seen: set[tuple[int, int, str, int, int]] = set()
    for one in held:
        if one.indices & indices and one.protocol != _ADVERTISED:
            back.append(RouteBack(one, one.place in seen))
        seen.add(one.place)
    return sorted(back, key=lambda one: (one.held.via, one.held.sourced))
