"""Addresses that a pod asks for by name, and which pools have them. Pure.

Multus' networks annotation has a key for that (`ips`). With the address a prefix length may be written; it has to be
that of the pool's subnet, or that of the address alone.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from api.ippool import SpiderIPPool
from api.reasons import Reason
from ipam.addresses import BITS, format_address, parse_address
from ipam.territory import PoolError, territory

_SHOWN: Final = 3
"""Ranges of a pool that a reason names."""


class WishError(ValueError):
    """What is asked for cannot be. The text names it."""


class Wish(Struct, frozen=True):
    """One address of a NIC."""

    version: int
    number: int
    length: int | None
    """Of the prefix, where one was written."""

    @property
    def address(self) -> str:
        """Canonical, without prefix length."""
        return format_address(self.number, self.version)

    def __str__(self) -> str:
        return self.address if self.length is None else f"{self.address}/{self.length}"


def wishes(ips: Iterable[str]) -> Mapping[int, Wish]:
    """By IP version what a NIC asks for. Raises `WishError`: no address, or two of a family."""
    found: dict[int, Wish] = {}
    for text in ips:
        address, slash, length = text.partition("/")
        try:
            version, number = parse_address(address)
        except ValueError as error:
            msg = f"ips: {text!r}: {address!r} {error}"
            raise WishError(msg) from error
        if slash and not (length.isascii() and length.isdigit() and int(length) <= BITS[version]):
            msg = f"ips: {text!r}: {length!r} is no prefix length"
            raise WishError(msg)
        if version in found:
            msg = f"ips: {text!r}: a NIC has one IPv{version} address, and {found[version]} is asked for too"
            raise WishError(msg)
        found[version] = Wish(version, number, int(length) if slash else None)
    return found


def unfit(wish: Wish, pool: SpiderIPPool) -> Reason | None:
    """Why a pool does not have what is asked for; None where it does."""
    name = pool.metadata.name
    try:
        land = territory(pool)
    except PoolError as error:
        return Reason(predicate="ips", pool=name, wanted=str(wish), seen=str(error))
    if wish.version != land.version or wish.number not in land.addresses:
        ranges = land.addresses.format()
        more = f" and {len(ranges) - _SHOWN} more" if len(ranges) > _SHOWN else ""
        return Reason(predicate="ips", pool=name, wanted=str(wish), seen=f"{', '.join(ranges[:_SHOWN])}{more}")
    if wish.length not in {None, land.prefix, BITS[land.version]}:
        return Reason(predicate="ips", pool=name, wanted=str(wish), seen=f"subnet {pool.spec.subnet}")
    return None
