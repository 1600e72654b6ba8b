"""Addresses as people ask for them: which pool an address belongs to, who has it, and why nobody gets it.

Read from pool objects alone, so it says what the authority says. Pure: the caller has read the objects.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from api.configfile import shown
from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool
from api.reservedip import SpiderReservedIP
from ctl.errors import Misuse
from ipam.addresses import format_address, parse_address
from ipam.ranges import RangeError, Ranges, parse_ranges
from ipam.records import RecordError, read_records

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


class Withheld(Struct, frozen=True):
    """An entry of `status.withheldIPs`."""

    until: str = ""
    reason: str = ""


_withheld = msgspec.json.Decoder(dict[str, Withheld])


def withheld(status: IPPoolStatus) -> dict[str, Withheld]:
    """What a pool gives to nobody for a while. Raises `ValueError` for what is not the documented encoding."""
    return _withheld.decode(status.withheld_ips) if status.withheld_ips else {}


def version_of(pool: SpiderIPPool) -> int:
    """The IP version of a pool, 4 or 6."""
    return pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)


def ranges_of(pool: SpiderIPPool) -> Ranges:
    """The addresses of a pool without its exclusions. Raises `RangeError`."""
    version = version_of(pool)
    return parse_ranges(pool.spec.ips, version, field="spec.ips").difference(
        parse_ranges(pool.spec.exclude_ips, version, field="spec.excludeIPs")
    )


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


def held(pool: SpiderIPPool) -> tuple[Address, ...]:
    """The records of a pool, in the order of the addresses. Raises `RecordError`."""
    version = version_of(pool)
    return tuple(
        _of_record(pool, format_address(ip, version), record)
        for ip, record in sorted(read_records(pool.status.allocated_ips, version).items())
    )


def waiting(pool: SpiderIPPool) -> tuple[Address, ...]:
    """The withheld addresses of a pool, in their order. Raises `ValueError`."""
    found = sorted(withheld(pool.status).items(), key=lambda item: parse_address(item[0]))
    return tuple(
        Address(address=ip, pool=pool.metadata.name, state="withheld", until=entry.until, reason=entry.reason)
        for ip, entry in found
    )


def find(
    pools: Iterable[SpiderIPPool], reserved: Sequence[SpiderReservedIP], version: int, number: int
) -> tuple[Address, ...]:
    """What each pool says of one address; pools that neither contain nor record it say nothing.

    Raises `RecordError`, `RangeError` and `ValueError` for a pool that cannot be read.
    """
    found = []
    for pool in pools:
        if version_of(pool) != version:
            continue
        text = format_address(number, version)
        record = read_records(pool.status.allocated_ips, version).get(number)
        entry = withheld(pool.status).get(text)
        name = pool.metadata.name
        if record is not None:
            found.append(_of_record(pool, text, record))
        elif number not in parse_ranges(pool.spec.ips, version):
            continue
        elif number not in ranges_of(pool):
            found.append(Address(address=text, pool=name, state="excluded", reason="spec.excludeIPs"))
        elif by := reserved_by(reserved, version, number):
            found.append(Address(address=text, pool=name, state="reserved", reason=f"SpiderReservedIP {by}"))
        elif entry is not None:
            found.append(
                Address(address=text, pool=name, state="withheld", until=entry.until, reason=entry.reason),
            )
        else:
            found.append(Address(address=text, pool=name, state="free"))
    return tuple(found)


def problems(pools: Iterable[SpiderIPPool]) -> Mapping[str, str]:
    """The pools whose object cannot be read, and why."""
    found = {}
    for pool in pools:
        try:
            held(pool), waiting(pool), ranges_of(pool)
        except (RecordError, RangeError, ValueError) as error:
            found[pool.metadata.name] = f"SpiderIPPool {pool.metadata.name}: {_field(error)}{error}"
    return found


def _field(error: ValueError) -> str:
    match error:
        case RecordError():
            return "status.allocatedIPs: "
        case RangeError():
            return ""  # it names its field
        case _:
            return "status.withheldIPs: "


def _of_record(pool: SpiderIPPool, text: str, record: AllocationRecord) -> Address:
    return Address(
        address=text,
        pool=pool.metadata.name,
        state="kept" if record.kept else "used",
        pod=record.pod,
        uid=record.pod_uid,
        nic=record.nic,
        node=record.node,
        container=record.cid,
    )
