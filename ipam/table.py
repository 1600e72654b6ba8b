"""The contents of one pool's book: records and withheld addresses by number, with what makes them quick to find.

No rules here, `ipam.ledger` has them. A change is one address becoming something else, noted as what it was before, so
that the latest changes can be taken back.
"""

import heapq
from collections.abc import Container, Iterable, Mapping

from api.ippool import AllocationRecord, IPPoolStatus
from ipam.addresses import FreeAddresses
from ipam.index import Index
from ipam.ranges import Ranges
from ipam.records import Records, read_records
from ipam.withheld import Withheld, read_withheld, withheld_bytes, write_withheld

type Before = tuple[int, AllocationRecord | None, Withheld | None]
"""What an address was: its record and why it was withheld."""


class _Taken:
    """The addresses that are not free: what has a record, and what is withheld and not over. Views, no copies."""

    __slots__ = ("_expired", "_recorded", "_withheld")

    def __init__(self, recorded: Container[int], withheld: Container[int], expired: Container[int]) -> None:
        self._recorded = recorded
        self._withheld = withheld
        self._expired = expired

    def __contains__(self, ip: object) -> bool:
        return ip in self._recorded or (ip in self._withheld and ip not in self._expired)


class Table:
    """Records and withheld addresses of one family. Changes cost O(log), reading and writing O(contents).

    An address may have a record and be withheld as well: a program that does not know of withholding granted it. The
    record counts, and the rest of the time is for afterwards.
    """

    __slots__ = (
        "_expired",
        "_free",
        "_grantable",
        "_pods",
        "_records",
        "_resting",
        "_taken",
        "_timeline",
        "_uids",
        "_version",
        "_withheld",
        "_withheld_bytes",
    )

    def __init__(self, version: int, records: Records, withheld: dict[int, Withheld], grantable: Ranges) -> None:
        """Owns the two mappings from now on."""
        self._version = version
        self._records = records
        self._withheld = withheld
        self._uids = Index()
        self._pods = Index()
        for ip, record in records.items():
            self._index(ip, record)
        self._timeline = sorted((entry.until, ip) for ip, entry in withheld.items())
        self._expired: set[int] = set()
        """Their time is over, and they are still written down."""
        self._taken = _Taken(records.addresses(), withheld, self._expired)
        self._withheld_bytes = sum(withheld_bytes(entry, version) for entry in withheld.values())
        self.grant_only(grantable)

    def __repr__(self) -> str:
        return f"Table(records={len(self._records)}, withheld={len(self._withheld)}, {self._free!r})"

    @classmethod
    def read(cls, status: IPPoolStatus, version: int, grantable: Ranges) -> "Table":
        """What a status says. Raises `RecordError`."""
        return cls(
            version,
            read_records(status.allocated_ips, version),
            read_withheld(status.withheld_ips, version),
            grantable,
        )

    @property
    def records(self) -> Records:
        """By number. Not to be changed."""
        return self._records

    @property
    def withheld(self) -> Mapping[int, Withheld]:
        """By number, those whose time is over included until the next write. Not to be changed."""
        return self._withheld

    @property
    def bytes(self) -> int:
        """Bytes of the contents inside the encoded pool object; keys are counted as long as the family allows."""
        return self._records.bytes + self._withheld_bytes

    def texts(self) -> tuple[str | None, str | None]:
        """`status.allocatedIPs` and `status.withheldIPs`."""
        return self._records.text(), write_withheld(self._withheld, self._version)

    def of_uid(self, uid: str) -> list[int]:
        """Addresses that a pod's uid holds, in no order; none for an empty one."""
        return [ip for ip in self._uids.of(uid) if self._records[ip].pod_uid == uid] if uid else []

    def of_pod(self, pod: str) -> list[int]:
        """Addresses that pods of this name hold, in no order."""
        return [ip for ip in self._pods.of(pod) if self._records[ip].pod == pod]

    def grant_only(self, grantable: Ranges) -> None:
        """From now on the next free address is one of these."""
        self._grantable = grantable
        self._free = FreeAddresses(grantable.spans, self._taken)
        self._resting = [(entry.until, ip) for ip, entry in self._withheld.items() if self._may_rest(ip, entry)]
        heapq.heapify(self._resting)

    def expire(self, now: float) -> None:
        """Addresses whose time is over are free. They stay written down until something else has to be written."""
        while self._timeline and self._timeline[0][0] <= now:
            until, ip = heapq.heappop(self._timeline)
            entry = self._withheld.get(ip)
            if entry is not None and entry.until == until:
                self._expired.add(ip)
                if ip not in self._records:
                    self._free.released(ip)

    def expired(self) -> Iterable[int]:
        """Addresses whose time is over and that are still written down; this forgets which they were."""
        expired = [ip for ip in self._expired if ip in self._withheld]
        self._expired.clear()
        return expired

    def lowest(self) -> int | None:
        """The lowest address that is neither held nor withheld, or None."""
        return self._free.lowest()

    def longest_rested(self) -> int | None:
        """Of the addresses that rest and may be granted the one whose time is over first, the lowest of several."""
        while self._resting:
            until, ip = self._resting[0]
            entry = self._withheld.get(ip)
            if entry is not None and entry.until == until and entry.resting and ip not in self._records:
                return ip
            heapq.heappop(self._resting)
        return None

    def quarantined(self, *, now: float) -> int:
        """How many addresses could be granted but for a quarantine. Costs as much as is withheld."""
        return sum(
            1
            for ip, entry in self._withheld.items()
            if entry.until > now and not entry.resting and entry.owed is None
            and ip in self._grantable and ip not in self._records
        )  # fmt: skip

    @property
    def owed(self) -> int:
        """How many addresses could be granted but that a network provider has not released them. Costs the same."""
        return sum(
            1
            for ip, entry in self._withheld.items()
            if entry.owed is not None and ip in self._grantable and ip not in self._records
        )

    def set(self, ip: int, record: AllocationRecord | None, entry: Withheld | None) -> Before:
        """Make this the record of an address and the reason why it is withheld; returns what they were."""
        old_record, old_entry = self._records.get(ip), self._withheld.get(ip)
        if record != old_record:
            if old_record is not None:
                self._records.remove(ip)
                self._drop(ip, old_record)
            if record is not None:
                self._records.put(ip, record)
                self._index(ip, record)
        if entry is not old_entry:
            self._expired.discard(ip)  # that was another entry; this one's time is on the timeline
            if old_entry is not None:
                del self._withheld[ip]
                self._withheld_bytes -= withheld_bytes(old_entry, self._version)
            if entry is not None:
                self._withheld[ip] = entry
                self._withheld_bytes += withheld_bytes(entry, self._version)
                heapq.heappush(self._timeline, (entry.until, ip))
        if record is None and entry is None:
            self._free.released(ip)
        elif record is None and entry is not None and self._may_rest(ip, entry):
            heapq.heappush(self._resting, (entry.until, ip))
        return ip, old_record, old_entry

    def _may_rest(self, ip: int, entry: Withheld) -> bool:
        return entry.resting and ip in self._grantable

    def _index(self, ip: int, record: AllocationRecord) -> None:
        if record.pod_uid:
            self._uids.add(record.pod_uid, ip)
        self._pods.add(record.pod, ip)

    def _drop(self, ip: int, record: AllocationRecord) -> None:
        if record.pod_uid:
            self._uids.drop(record.pod_uid, ip)
        self._pods.drop(record.pod, ip)
