"""What is wrong with a store: the invariants of allocation, checked over what was read. Pure.

Every address has one holder; every record is explained, by a pod or by the node's journal, or it is kept for a name;
what shows records elsewhere (SpiderEndpoints, counts, the journal) shows the same; no address lies in two pools; and
a pool's object stays below what can be stored.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from api.configfile import shown
from api.core import Pod
from api.endpoint import SpiderEndpoint
from api.ippool import AllocationRecord, SpiderIPPool
from api.reservedip import SpiderReservedIP
from cni.journal import JournalEntry, State
from ctl import addresses
from ctl.ip.set import NO_CONTAINER
from ipam.addresses import format_address, parse_address
from ipam.book import Book
from ipam.ledger import MAX_OBJECT_BYTES
from ipam.overlap import Atlas
from ipam.territory import territory

_NEAR = 0.8
"""Of the size at which a pool gives no more."""
_PREFIX = 12


class Finding(Struct, frozen=True, order=True):
    """One thing that was found."""

    check: str
    """One word: unreadable, overlap, duplicate, orphan, endpoint, journal, size, count, gateway, reserved, outside,
    withheld, kept, owed."""
    subject: str
    """The pool, address, pod or file that it is about."""
    text: str
    wrong: bool = True
    """False: worth to know, and as it should be."""


class Facts(Struct, frozen=True):
    """What was read. Of pods and journal one is None: there is no Kubernetes, or it is not this program's node."""

    pools: Sequence[SpiderIPPool]
    reserved: Sequence[SpiderReservedIP]
    endpoints: Sequence[SpiderEndpoint]
    pods: Sequence[Pod] | None = None
    journal: Sequence[JournalEntry] | None = None
    problems: Sequence[str] = ()
    """Of reading the journal."""


class _Held(Struct, frozen=True):
    pool: str
    address: str
    record: AllocationRecord

    @property
    def by_hand(self) -> bool:
        """Whether it waits for its first sandbox."""
        return self.record.cid == NO_CONTAINER

    def __str__(self) -> str:
        record = self.record
        return f"{self.address} of pool {self.pool} (pod {record.pod}, uid {record.pod_uid}, {record.nic or 'no NIC'})"


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """All that was found, sorted: what is wrong first."""
    books, unreadable = addresses.books(facts.pools)
    held = [
        _Held(name, format_address(ip, book.version), record)
        for name, book in books.items()
        for ip, record in book.records.items()
    ]
    found = [Finding("unreadable", name, text) for name, text in unreadable.items()]
    found += _overlaps(facts.pools)
    found += _duplicates(held)
    for book in books.values():
        found += _of_pool(book, facts.reserved)
    if facts.pods is not None:
        found += _orphans(held, facts.pods)
        found += _endpoints(held, facts.endpoints)
    if facts.journal is not None:
        found += _journal(held, facts.journal)
    found += [Finding("unreadable", "journal", text) for text in facts.problems]
    return tuple(sorted(found, key=lambda finding: (not finding.wrong, finding)))


def _overlaps(pools: Sequence[SpiderIPPool]) -> Iterator[Finding]:
    atlas = Atlas()
    atlas.replace(pools)
    told: set[frozenset[str]] = set()
    for pool in sorted(pools, key=lambda pool: pool.metadata.name):
        overlap = atlas.overlap(pool.metadata.name)
        for other, ranges in overlap.shares if overlap is not None else ():
            pair = frozenset({pool.metadata.name, other})
            if pair not in told:
                told.add(pair)
                text = f"shares {','.join(ranges.format()[:3])} with {other}: neither gives these to anybody"
                yield Finding("overlap", pool.metadata.name, text)


def _duplicates(held: Sequence[_Held]) -> Iterator[Finding]:
    by_address: dict[str, list[_Held]] = defaultdict(list)
    by_nic: dict[tuple[str, str, int], list[_Held]] = defaultdict(list)
    for one in held:
        by_address[one.address].append(one)
        if one.record.pod_uid and one.record.nic:
            version, _ = parse_address(one.address)
            by_nic[one.record.pod_uid, one.record.nic, version].append(one)
    for address, several in by_address.items():
        if len(several) > 1:
            yield Finding("duplicate", address, f"has two holders: {'; '.join(map(str, several))}")
    for (_, nic, version), several in by_nic.items():
        if len(several) > 1:
            which = ", ".join(f"{one.address} of pool {one.pool}" for one in several)
            yield Finding("duplicate", several[0].record.pod, f"{nic} has several IPv{version} addresses: {which}")


def _of_pool(book: Book, reserved: Sequence[SpiderReservedIP]) -> Iterator[Finding]:
    pool, name = book.pool, book.pool.metadata.name
    size = book.object_bytes
    if size >= _NEAR * MAX_OBJECT_BYTES:
        yield Finding("size", name, f"its object has {size} bytes and gives no more from {MAX_OBJECT_BYTES} on")
    count = pool.status.allocated_ip_count or 0
    if count != len(book.records):
        yield Finding("count", name, f"status.allocatedIPCount is {count}, there are {len(book.records)} records")
    land = territory(pool)
    kept_out = addresses.ranges_of(reserved, land.version)
    if pool.spec.gateway:
        try:
            _, gateway = parse_address(pool.spec.gateway)
        except ValueError as error:
            yield Finding("gateway", name, f"spec.gateway: {shown(pool.spec.gateway)} {error}")
        else:
            if gateway in land.addresses and gateway not in kept_out:
                text = f"its gateway {pool.spec.gateway} is among its addresses: a pod may get it"
                yield Finding("gateway", name, text)
    for ip, record in sorted(book.records.items()):
        text = format_address(ip, book.version)
        if ip not in land.addresses:
            yield Finding("outside", text, f"pod {record.pod} has it, and pool {name} contains it no more", wrong=False)
        elif ip in kept_out:
            by = addresses.reserved_by(reserved, land.version, ip)
            yield Finding(
                "reserved", text, f"pod {record.pod} has it, and SpiderReservedIP {by} reserves it", wrong=False
            )
        if record.kept:
            yield Finding("kept", text, f"of pool {name}: for the next pod {record.pod}", wrong=False)
    for entry in addresses.waiting(book):
        yield Finding("withheld", entry.address, f"of pool {name} until {entry.until}: {entry.reason}", wrong=False)


def _orphans(held: Sequence[_Held], pods: Sequence[Pod]) -> Iterator[Finding]:
    by_uid = {pod.metadata.uid: pod for pod in pods}
    for one in held:
        if one.record.kept:
            continue
        pod = by_uid.get(one.record.pod_uid)
        if pod is None:
            yield Finding("orphan", one.address, f"{one}: there is no such pod")
        elif not pod.alive and pod.metadata.deletion_timestamp is None:
            yield Finding("orphan", one.address, f"{one}: the pod is {pod.phase_text}")


def _endpoints(held: Sequence[_Held], endpoints: Sequence[SpiderEndpoint]) -> Iterator[Finding]:
    records = {(one.address, one.record.pod_uid) for one in held}
    shown: dict[tuple[str, str], str] = {}
    for endpoint in endpoints:
        name = f"{endpoint.metadata.namespace}/{endpoint.metadata.name}"
        for address in _shown(endpoint):
            key = (address, endpoint.status.current.uid)
            shown[key] = name
            if key not in records:
                who = next((one.record.pod for one in held if one.address == address), "")
                text = f"shows {address}, which {f'pod {who} has' if who else 'no pool has given to it'}"
                yield Finding("endpoint", name, text)
    for one in held:
        if not (one.record.kept or one.by_hand) and (one.address, one.record.pod_uid) not in shown:
            yield Finding("endpoint", one.record.pod, f"no SpiderEndpoint shows {one}")


def _shown(endpoint: SpiderEndpoint) -> Iterator[str]:
    for detail in endpoint.status.current.ips:
        for text in (detail.ipv4, detail.ipv6):
            if text:
                yield text.partition("/")[0]


def _journal(held: Sequence[_Held], entries: Sequence[JournalEntry]) -> Iterator[Finding]:
    known: dict[tuple[str, str], JournalEntry] = {}
    carried: dict[str, list[JournalEntry]] = defaultdict(list)
    for entry in entries:
        cid = entry.container_id[:_PREFIX]
        known |= dict.fromkeys([(entry.ifname, cid), *((other.nic, cid) for other in entry.others)], entry)
        for address in entry.addresses if entry.state is State.ADDED else ():
            carried[address.partition("/")[0]].append(entry)
    records = {(one.address, one.record.nic, one.record.cid) for one in held}
    for one in held:
        if not one.by_hand and (one.record.nic, one.record.cid) not in known:
            yield Finding("orphan", one.address, f"{one}: the journal knows no container {one.record.cid or 'of it'}")
    for address, several in carried.items():
        if len(several) > 1:
            which = " and ".join(f"{entry.ifname} of {entry.container_id[:_PREFIX]}" for entry in several)
            yield Finding("duplicate", address, f"two containers carry it: {which}")
        for entry in several:
            if (address, entry.ifname, entry.container_id[:_PREFIX]) not in records:
                text = (
                    f"container {entry.container_id[:_PREFIX]} (pod {entry.pod}) carries it, without a record of that"
                )
                yield Finding("journal", address, text)
    yield from _owed(entries)


def _owed(entries: Iterable[JournalEntry]) -> Iterator[Finding]:
    for entry in entries:
        if entry.state is State.RELEASING:
            text = f"{entry.ifname} of {entry.container_id[:_PREFIX]} is gone, its addresses are still to be given back"
            yield Finding("owed", str(entry.pod), text, wrong=False)


def lasting(before: Sequence[Finding], after: Sequence[Finding]) -> tuple[Finding, ...]:
    """Of two looks what both have found, as the second one saw it: things under way are no finding."""
    seen = {(finding.check, finding.subject) for finding in before}
    return tuple(f for f in after if not f.wrong or (f.check, f.subject) in seen)


def counts(findings: Iterable[Finding]) -> Mapping[str, int]:
    """How many of each check."""
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.check] = found.get(finding.check, 0) + 1
    return found
