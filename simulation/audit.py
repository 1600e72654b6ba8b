"""What must hold when all is quiet, looked for in what the store has and what the pods were told. Pure.

It shares no code with what it judges but the encoding of records, and believes no count.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct

from api.endpoint import SpiderEndpoint
from api.ippool import AllocationRecord, SpiderIPPool, decode_records
from ipam.addresses import parse_address
from ipam.ranges import Ranges, parse_ranges


class Finding(Struct, frozen=True):
    """Something that is wrong."""

    check: str
    """duplicate, lost, leak, endpoint, outside, count or unreadable."""
    subject: str
    text: str


def audit(
    pools: Iterable[SpiderIPPool], endpoints: Iterable[SpiderEndpoint], held: Mapping[str, tuple[str, ...]]
) -> tuple[Finding, ...]:
    """Everything that is wrong.

    Args:
        pools: all of them, as stored.
        endpoints: all SpiderEndpoints, as stored.
        held: by the uid of every pod that lives, the addresses that it was told to have, with prefix length.
    """
    findings: list[Finding] = []
    records: list[tuple[str, str, AllocationRecord]] = []
    for pool in pools:
        try:
            found = decode_records(pool.status.allocated_ips)
        except msgspec.DecodeError as error:
            findings.append(Finding("unreadable", pool.metadata.name, str(error)))
            continue
        findings += _of_pool(pool, found)
        records += [(pool.metadata.name, address, record) for address, record in found.items()]
    findings += _duplicates(records, held)
    findings += _losses(records, held)
    findings += _of_endpoints(endpoints, held)
    return tuple(findings)


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many there are of each check."""
    return dict(sorted(Counter(finding.check for finding in findings).items()))


def _of_pool(pool: SpiderIPPool, records: Mapping[str, AllocationRecord]) -> Iterator[Finding]:
    name, counted = pool.metadata.name, pool.status.allocated_ip_count or 0
    if counted != len(records):
        yield Finding("count", name, f"allocatedIPCount is {counted}, and there are {len(records)} records")
    version = 6 if ":" in pool.spec.subnet else 4
    land: Ranges = parse_ranges(pool.spec.ips, version).difference(parse_ranges(pool.spec.exclude_ips, version))
    for address in records:
        try:
            family, number = parse_address(address)
        except ValueError as error:
            yield Finding("unreadable", name, f"{address!r} {error}")
            continue
        if family != version or number not in land:
            yield Finding("outside", name, f"{address} is none of the pool's addresses")


def _duplicates(
    records: Iterable[tuple[str, str, AllocationRecord]], held: Mapping[str, tuple[str, ...]]
) -> Iterator[Finding]:
    """An address that two pools have given, and one that two pods were told to have."""
    pools: dict[str, str] = {}
    for pool, address, _ in records:
        other = pools.setdefault(address, pool)
        if other is not pool:
            yield Finding("duplicate", address, f"pools {other} and {pool} both have a record of it")
    holders: dict[str, str] = {}
    for uid, addresses in held.items():
        for address in addresses:
            bare = address.partition("/")[0]
            other = holders.setdefault(bare, uid)
            if other != uid:
                yield Finding("duplicate", bare, f"pods {other} and {uid} were both told to have it")


def _losses(
    records: Iterable[tuple[str, str, AllocationRecord]], held: Mapping[str, tuple[str, ...]]
) -> Iterator[Finding]:
    """Records without a pod that knows of them, and what pods were told that is in no record."""
    missing = {(uid, address.partition("/")[0]) for uid, addresses in held.items() for address in addresses}
    for pool, address, record in records:
        known = (record.pod_uid, address)
        if known in missing:
            missing.discard(known)
        else:
            yield Finding("leak", address, f"pool {pool} has it for pod {record.pod}, which does not have it")
    for uid, address in sorted(missing):
        yield Finding("lost", address, f"pod {uid} was told to have it, and no record says so")


def _of_endpoints(endpoints: Iterable[SpiderEndpoint], held: Mapping[str, tuple[str, ...]]) -> Iterator[Finding]:
    """A SpiderEndpoint of nobody, one that says something else than its pod was told, a pod that has none."""
    missing = set(held)
    for endpoint in endpoints:
        current = endpoint.status.current
        shown = {address for detail in current.ips for address in (detail.ipv4, detail.ipv6) if address}
        told = held.get(current.uid)
        missing.discard(current.uid)
        if told is None:
            yield Finding("endpoint", endpoint.metadata.name, f"it is of pod {current.uid}, which has nothing")
        elif shown != set(told):
            text = f"it shows {', '.join(sorted(shown))}; its pod was told {', '.join(sorted(told))}"
            yield Finding("endpoint", endpoint.metadata.name, text)
    for uid in sorted(missing):
        yield Finding("endpoint", uid, "the pod has addresses and no SpiderEndpoint")
