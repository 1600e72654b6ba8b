"""Addresses as integers, their one canonical text, and the next free one of a pool.

The text is a key in `status.allocatedIPs`, shared with programs written in Go, so it has to be letter for letter what
Go's `net.IP.String` prints. Two spellings of one address would be two records, that is two holders.
"""

import heapq
import ipaddress
import re
from bisect import bisect_right
from collections.abc import Container, Sequence
from functools import lru_cache
from typing import Final

BITS: Final = {4: 32, 6: 128}
"""Width of an address by IP version."""

MAPPED_FIRST: Final = 0xFFFF << 32
"""`::ffff:0.0.0.0`: Go takes the 2^32 addresses from here for IPv4 and prints them so."""
MAPPED_LAST: Final = MAPPED_FIRST | 0xFFFFFFFF

_BEYOND: Final = 1 << 129
_ZEROS: Final = re.compile(r"(?<![0-9a-f])0(?::0)+(?![0-9a-f])").findall
"""The runs of two or more groups that are zero."""
_REMEMBERED: Final = 2048
"""Texts kept: a batch has several uses for that of an address. More than a batch's would be memory for nothing."""
_IPV4: Final = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}").fullmatch
"""Five times as fast as `ipaddress`, and a big pool has thousands of these to read after every lost race."""


def parse_address(text: str) -> tuple[int, int]:
    """Read one address in any textual form that Go's `net.ParseIP` takes, except IPv4-mapped IPv6.

    Returns:
        IP version (4 or 6) and the number.

    Raises:
        ValueError: not an address; a zone (`%eth0`); an IPv4-mapped address, whose text would be that of an IPv4
            address. The message is a predicate without subject (`is not an IP address`): the caller knows what to name.
    """
    if ":" not in text:
        if not _IPV4(text):
            raise ValueError("is not an IP address")
        first, second, third, fourth = map(int, text.split("."))
        return 4, first << 24 | second << 16 | third << 8 | fourth
    if "%" in text:
        raise ValueError("has a zone")
    try:
        number = int(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError("is not an IP address") from None
    if MAPPED_FIRST <= number <= MAPPED_LAST:
        raise ValueError("is an IPv4-mapped address, write it as IPv4")
    return 6, number


def parse_cidr(text: str) -> tuple[int, int, int]:
    """Read a CIDR; bits behind the prefix may be set.

    Returns:
        IP version, the number of the address, the length of the prefix.

    Raises:
        ValueError: as `parse_address`, with a predicate for message.
    """
    address, slash, length = text.partition("/")
    version, number = parse_address(address)
    if not (slash and length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= BITS[version]):
        raise ValueError("is not a CIDR")
    return version, number, int(length)


def network_span(version: int, number: int, prefix: int) -> tuple[int, int]:
    """First and last address of the network in which an address lies."""
    hosts = (1 << (BITS[version] - prefix)) - 1
    return number & ~hosts, number | hosts


@lru_cache(maxsize=_REMEMBERED)
def format_address(number: int, version: int) -> str:
    """The canonical text, as Go's `net.IP.String` prints it.

    RFC 5952 (lower case, the first of the longest runs of two or more zero groups becomes `::`), except that an
    IPv4-mapped address is printed as IPv4.

    Raises:
        ValueError: the number is negative or too big for the version.
    """
    if number < 0 or number >> BITS[version]:
        message = f"{number} is not an IPv{version} address"
        raise ValueError(message)
    if version == 4 or MAPPED_FIRST <= number <= MAPPED_LAST:
        return f"{number >> 24 & 255}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    digits = f"{number:032x}"
    text = ":".join([digits[at : at + 4].lstrip("0") or "0" for at in range(0, 32, 4)])
    longest = max(_ZEROS(text), key=len, default="")
    if not longest:
        return text
    padded = f":{text}:"
    head, _, tail = padded.partition(f":{longest}:")
    return f"{head[1:]}::{tail[:-1]}"


class FreeAddresses:
    """The lowest free address of a pool, found without looking at the others.

    Every allocatable address below the cursor is either taken or in the heap of freed ones; nothing is known of those
    from the cursor on, and nothing needs to be. So a /64 costs no more than a /29, and what is handed out depends only
    on what is taken: a fresh instance over the same addresses answers the same. The structure does not own the taken
    addresses. It looks them up in the caller's mapping, and the caller calls `released` after removing one.

    Entries of the heap are checked when they surface (the caller may have taken such an address back meanwhile), so
    there is nothing to do when an address is taken.

    Args:
        spans: allocatable addresses as sorted, disjoint, inclusive intervals; excluded and reserved ones are not in.
        taken: the caller's mapping or set, by number; may hold addresses outside of `spans`.
    """

    __slots__ = ("_at", "_cursor", "_freed", "_heap", "_spans", "_taken")

    def __init__(self, spans: Sequence[tuple[int, int]], taken: Container[int]) -> None:
        self._spans = spans
        self._taken = taken
        self._at = 0
        self._cursor = spans[0][0] if spans else _BEYOND
        self._heap: list[int] = []
        self._freed: set[int] = set()

    def __repr__(self) -> str:
        return f"FreeAddresses(spans={len(self._spans)}, cursor={self._cursor:#x}, freed={len(self._heap)})"

    def lowest(self) -> int | None:
        """The lowest address that is not taken, or None. It stays free until the caller takes it.

        Amortised O(1) and O(log freed); the first call after a start walks over what is taken.
        """
        while self._heap:
            address = self._heap[0]
            if address not in self._taken:
                return address
            self._freed.discard(heapq.heappop(self._heap))
        while self._at < len(self._spans):
            last = self._spans[self._at][1]
            while self._cursor <= last:
                if self._cursor not in self._taken:
                    return self._cursor
                self._cursor += 1
            self._at += 1
            self._cursor = self._spans[self._at][0] if self._at < len(self._spans) else _BEYOND
        return None

    def released(self, address: int) -> None:
        """Tell that the caller no longer holds `address`. Ignored where it is not allocatable. O(log spans)."""
        if address >= self._cursor or address in self._freed:
            return
        at = bisect_right(self._spans, (address, _BEYOND)) - 1
        if at >= 0 and address <= self._spans[at][1]:
            self._freed.add(address)
            heapq.heappush(self._heap, address)
