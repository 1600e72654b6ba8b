"""Addresses as people ask for them: which pool an address belongs to, who has it, and why nobody gets it.

Read from pool objects alone, so it says what the authority says. Pure: the caller has read the objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

from api.configfile import shown
from api.ippool import AllocationRecord, SpiderIPPool
from api.reservedip import SpiderReservedIP
from ctl.errors import Misuse
from ipam.addresses import format_address, parse_address
from ipam.book import Book
from ipam.ranges import RangeError, Ranges, parse_ranges
from ipam.territory import PoolError, territory
from ipam.withheld import Withheld

"""More than any pool has: nothing is granted here."""
State = Literal["used", "kept", "withheld", "free", "reserved", "excluded", "outside"]


class Address(Struct, frozen=True, kw_only=True):
    """One address of one pool."""

    address: str
    """Canonical, without prefix length."""
    pool: str
    state: State
    """`used`: a link carries it or will; `kept`: it waits for the next pod of this name; `withheld`: nobody gets it
    before `until`; `free`; `reserved`: by a SpiderReservedIP; `excluded`: the pool's own; `outside` of its ranges."""
    pod: str = ""
    """``namespace/name``."""
    uid: str = ""
    nic: str = ""
    node: str = ""
    container: str = ""
    """First 12 hex digits of the sandbox's id."""
    until: str = ""
    reason: str = ""
    """Why it is withheld, or by what it is reserved."""


def book(pool: SpiderIPPool) -> Book:
    """The book of a pool. Raises `PoolError` for an object that cannot be read."""
    return Book(pool, Ranges(territory(pool).version))


def version_of(pool: SpiderIPPool) -> int:
    """The IP version of a pool, 4 or 6, also of one that cannot be read."""
    return pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)


def parse(text: str, *, field: str) -> tuple[int, int, str]:
    """An address as people write it: version, number and canonical text. Raises `Misuse`."""
    try:
        version, number = parse_address(text.partition("/")[0])
    except ValueError as error:
        msg = f"{field}: {shown(text)} {error}"
        raise Misuse(msg) from None
    return version, number, format_address(number, version)


def reserved_by(reserved: Iterable[SpiderReservedIP], version: int, number: int) -> str:
    """The name of a SpiderReservedIP that takes an address out of all pools; empty if none does."""
    for item in reserved:
        if item.metadata.deletion_timestamp is not None:
            continue
        try:
            if number in parse_ranges(item.spec.ips, version):
                return item.metadata.name
        except RangeError:
            continue  # of the other version, or malformed: neither takes anything out of the pools
    return ""


def ranges_of(reserved: Iterable[SpiderReservedIP], version: int) -> Ranges:
    """All addresses of an IP version that SpiderReservedIPs take out of the pools."""
    found = Ranges(version)
    for item in reserved:
        if item.metadata.deletion_timestamp is None:
            with suppress(RangeError):  # of the other version, or malformed: neither takes anything out of the pools
                found = found.union(parse_ranges(item.spec.ips, version))
    return found


def held(book: Book) -> tuple[Address, ...]:
    """The records of a pool, in the order of the addresses."""
    return tuple(of_record(book, ip, record) for ip, record in sorted(book.records.items()))


def waiting(book: Book) -> tuple[Address, ...]:
    """The withheld addresses of a pool that have no record, in their order."""
    return tuple(of_entry(book, ip, entry) for ip, entry in sorted(book.withheld.items()) if ip not in book.records)


def find(books: Iterable[Book], reserved: Sequence[SpiderReservedIP], version: int, number: int) -> tuple[Address, ...]:
    """What each pool says of one address; pools that neither contain nor record it say nothing."""
    found = []
    for book in books:
        if book.version != version:
            continue
        pool, text = book.pool, format_address(number, version)
        record, entry = book.records.get(number), book.withheld.get(number)
        if record is not None:
            found.append(of_record(book, number, record))
        elif number not in parse_ranges(pool.spec.ips, version):
            continue
        elif number not in territory(pool).addresses:
            found.append(Address(address=text, pool=pool.metadata.name, state="excluded", reason="spec.excludeIPs"))
        elif by := reserved_by(reserved, version, number):
            reason = f"SpiderReservedIP {by}"
            found.append(Address(address=text, pool=pool.metadata.name, state="reserved", reason=reason))
        elif entry is not None:
            found.append(of_entry(book, number, entry))
        else:
            found.append(Address(address=text, pool=pool.metadata.name, state="free"))
    return tuple(found)


def books(pools: Iterable[SpiderIPPool]) -> tuple[Mapping[str, Book], Mapping[str, str]]:
    """Pools by name, and by name why others cannot be read."""
    found: dict[str, Book] = {}
    problems: dict[str, str] = {}
    for pool in sorted(pools, key=lambda pool: pool.metadata.name):
        try:
            found[pool.metadata.name] = book(pool)
        except PoolError as error:
            problems[pool.metadata.name] = str(error)
    return found, problems


def of_record(book: Book, ip: int, record: AllocationRecord) -> Address:
    """An address that has a record."""
    entry = book.withheld.get(ip)
    return Address(
        address=format_address(ip, book.version),
        pool=book.pool.metadata.name,
        state="kept" if record.kept else "used",
        pod=record.pod,
        uid=record.pod_uid,
        nic=record.nic,
        node=record.node,
        container=record.cid,
        until=_time(entry.until) if entry is not None else "",
        reason=entry.reason if entry is not None else "",
    )


def of_entry(book: Book, ip: int, entry: Withheld) -> Address:
    """An address that is only withheld."""
    return Address(
        address=format_address(ip, book.version),
        pool=book.pool.metadata.name,
        state="withheld",
        until=_time(entry.until),
        reason=entry.reason,
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
