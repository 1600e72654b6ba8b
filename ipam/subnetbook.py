"""What a subnet has, what its pools have of it, and what is left: the rules by which pools are cut, grown and shrunk.

`status.controlledIPPools` of a SpiderSubnet is the book (`api.subnet`). Sets of addresses are intervals and never
enumerated: a subnet may be a /48, and hold ten thousand pools.
"""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Final

import msgspec
from msgspec import Struct

from api.annotations import (
    OWNER_APPLICATION_GV,
    OWNER_APPLICATION_KIND,
    OWNER_APPLICATION_NAME,
    OWNER_APPLICATION_NAMESPACE,
)
from api.ippool import IPPoolSpec, SpiderIPPool
from api.subnet import SubnetSpec
from ipam.ranges import RangeError, Ranges, parse_ranges


class Entry(Struct, frozen=True):
    """What one pool has been given.

    Attributes:
        addresses: nobody else gets them.
        application: for whom an automatic pool is, in the original's spelling; empty for a pool made by hand.
        confirmed: resourceVersion of the pool for which an entry that was there already was confirmed; see
            `actors.subnets.change`.
    """

    addresses: Ranges
    application: str = ""
    confirmed: str = ""


class Controlled(Struct, frozen=True):
    """A pool of the subnet.

    Attributes:
        addresses: what it lists without what it excludes.
        automatic: whether it was made for an application.
        application: as in `Entry`.
    """

    addresses: Ranges
    automatic: bool = False
    application: str = ""


class _Stored(Struct, omit_defaults=True):
    ips: list[str] = msgspec.field(default_factory=list)
    application: str = ""
    confirmed: str = ""


_texts: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_entry: Final = msgspec.json.Decoder(_Stored)


def read_entries(text: str | None, version: int) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """Read `status.controlledIPPools`: what each pool has, and what is wrong with what was left out.

    An entry that cannot be read says nothing about any address, so it is as if it were not there; so is a text that is
    no JSON object.
    """
    if not text:
        return {}, ()
    try:
        raw = _texts.decode(text)
    except msgspec.DecodeError as error:
        return {}, (f"status.controlledIPPools: {error}",)
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for name, one in raw.items():
        try:
            stored = _entry.decode(one)
            addresses = parse_ranges(stored.ips, version)
        except (msgspec.DecodeError, RangeError) as error:
            problems.append(f"{name}: {error}")
        else:
            entries[name] = Entry(addresses, stored.application, stored.confirmed)
    return entries, tuple(problems)


def write_entries(entries: Mapping[str, Entry]) -> str | None:
    """Write `status.controlledIPPools`, sorted by name; None, hence absent, when there is no entry."""
    if not entries:
        return None
    stored = {
        name: {
            "ips": entry.addresses.format(),
            **({"application": entry.application} if entry.application else {}),
            **({"confirmed": entry.confirmed} if entry.confirmed else {}),
        }
        for name, entry in sorted(entries.items())
    }
    return msgspec.json.encode(stored).decode()


def ground(spec: SubnetSpec | IPPoolSpec) -> Ranges:
    """What a spec lists without what it excludes. Raises `ValueError` that names the field."""
    try:
        version = ip_network(spec.subnet, strict=False).version
    except ValueError as error:
        message = f"spec.subnet: {error}"
        raise ValueError(message) from None
    return parse_ranges(spec.ips, version, field="spec.ips").difference(
        parse_ranges(spec.exclude_ips, version, field="spec.excludeIPs")
    )


def excluded(spec: IPPoolSpec) -> Ranges:
    """What a pool's spec excludes. Raises `ValueError`."""
    return parse_ranges(spec.exclude_ips, ip_network(spec.subnet, strict=False).version, field="spec.excludeIPs")


def is_automatic(pool: SpiderIPPool) -> bool:
    """Whether a pool was made for an application."""
    return OWNER_APPLICATION_NAME in pool.metadata.labels


def application(labels: Mapping[str, str]) -> str:
    """For whom an automatic pool is, by its labels: ``apps_v1_Deployment_ns_name``. Empty for any other pool."""
    if OWNER_APPLICATION_NAME not in labels:
        return ""
    keys = (OWNER_APPLICATION_GV, OWNER_APPLICATION_KIND, OWNER_APPLICATION_NAMESPACE, OWNER_APPLICATION_NAME)
    return "_".join(labels.get(key, "") for key in keys)


def controlled(pool: SpiderIPPool) -> Controlled:
    """A pool as the book sees it. Raises `ValueError` for a spec that cannot be read."""
    return Controlled(ground(pool.spec), is_automatic(pool), application(pool.metadata.labels))


def lowest(addresses: Ranges, count: int) -> Ranges:
    """The lowest so many of the addresses; all of them where there are not as many."""
    taken: list[tuple[int, int]] = []
    for first, last in addresses.spans:
        if count <= 0:
            break
        end = min(last, first + count - 1)
        taken.append((first, end))
        count -= end - first + 1
    return Ranges(addresses.version, tuple(taken))


def held(version: int, entries: Iterable[Entry]) -> Ranges:
    """All that any pool has."""
    return Ranges.of(version, (span for entry in entries for span in entry.addresses.spans))


def free(whole: Ranges, entries: Mapping[str, Entry], reserved: Ranges) -> Ranges:
    """What a pool can still be given: of the whole, what no pool has and no SpiderReservedIP reserves."""
    return whole.difference(held(whole.version, entries.values())).difference(reserved)


def missing(have: Ranges, size: int, reserved: Ranges) -> int:
    """How many addresses a pool lacks; negative where it has too many. Reserved ones do not count."""
    return size - have.difference(reserved).size


def shrunk(have: Ranges, count: int, *, used: Iterable[int], reserved: Ranges) -> Ranges | None:
    """The pool without its lowest `count` addresses that nobody has; None where there are not as many.

    Reserved ones stay: they do not count, and who has one keeps it.
    """
    spare = have.difference(Ranges.of(have.version, ((ip, ip) for ip in used))).difference(reserved)
    return have.difference(lowest(spare, count)) if spare.size >= count else None


def grown(have: Ranges, count: int, *, own: Ranges, left: Ranges) -> Ranges | None:
    """The pool with `count` more addresses, the lowest; None where there are not as many.

    Args:
        have: what it has.
        count: how many more.
        own: what was put aside for it already, and comes first.
        left: what any pool can be given.
    """
    first = lowest(own, count)
    rest = lowest(left, count - first.size)
    return have.union(first).union(rest) if first.size + rest.size == count else None


def rebuilt(whole: Ranges, entries: Mapping[str, Entry], pools: Mapping[str, Controlled]) -> dict[str, Entry]:
    """The book as it has to be for these pools, which are all that the subnet has.

    An automatic pool keeps what was put aside for it, and has what it lists in any case. A pool made by hand has what
    it lists of the subnet, without what is an automatic one's. What is noted for pools that do not exist is dropped.
    """
    book: dict[str, Entry] = {}
    for name, pool in pools.items():
        if pool.automatic:
            before = entries.get(name)
            addresses = pool.addresses if before is None else before.addresses.union(pool.addresses)
            book[name] = Entry(addresses, pool.application, before.confirmed if before is not None else "")
    given = held(whole.version, book.values())
    for name, pool in pools.items():
        if not pool.automatic:
            share = pool.addresses.intersection(whole).difference(given)
            if share:
                book[name] = Entry(share)
    return book
