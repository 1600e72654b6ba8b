"""The contents of one pool's book: records and withheld addresses by number, with what makes them quick to find.

No rules here, `ipam.ledger` has them. A change is one address becoming something else, noted as what it was before, so
that the latest changes can be taken back.
"""

import heapq
from collections.abc import Iterable, Mapping

from api.ippool import AllocationRecord, IPPoolStatus
from ipam.addresses import FreeAddresses
from ipam.ranges import Ranges
from ipam.records import WrittenRecords, read_records
from ipam.withheld import Withheld, read_withheld, withheld_bytes, write_withheld

type Before = tuple[int, AllocationRecord | None, Withheld | None]
"""What an address was: its record and why it was withheld."""


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
        "_written",
    )

    def __init__(
        self, version: int, records: dict[int, AllocationRecord], withheld: dict[int, Withheld], grantable: Ranges
    ) -> None:
        """Owns the two mappings from now on."""
        self._version = version
        self._records = records
        self._withheld = withheld
        self._uids: dict[str, list[int]] = {}
        self._pods: dict[str, list[int]] = {}
        for ip, record in records.items():
            self._index(ip, record)
        self._written = WrittenRecords(records, version)
        self._taken = records.keys() | withheld.keys()
        self._timeline = sorted((entry.until, ip) for ip, entry in withheld.items())
        self._expired: set[int] = set()
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
    def records(self) -> Mapping[int, AllocationRecord]:
        """By number. Not to be changed."""
        return self._records

    @property
    def withheld(self) -> Mapping[int, Withheld]:
        """By number, those whose time is over included until the next write. Not to be changed."""
        return self._withheld

    @property
    def bytes(self) -> int:
        """Bytes of the contents inside the encoded pool object; keys are counted as long as the family allows."""
        return self._written.bytes + self._withheld_bytes

    def texts(self) -> tuple[str | None, str | None]:
        """`status.allocatedIPs` and `status.withheldIPs`."""
        return self._written.text(), write_withheld(self._withheld, self._version)

    def of_uid(self, uid: str) -> list[int]:
        """Addresses that a pod's uid holds, in no order; none for an empty one. Not to be changed."""
        return self._uids.get(uid, [])

    def of_pod(self, pod: str) -> list[int]:
        """Addresses that pods of this name hold, in no order. Not to be changed."""
        return self._pods.get(pod, [])

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
                self._unless_recorded(ip)

    def expired(self) -> Iterable[int]:
        """Addresses whose time is over and that are still written down; this forgets which they were."""
        expired, self._expired = self._expired, set()
        return [ip for ip in expired if ip in self._withheld]

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
            if entry.until > now and not entry.resting and ip in self._grantable and ip not in self._records
        )

    def set(self, ip: int, record: AllocationRecord | None, entry: Withheld | None) -> Before:
        """Make this the record of an address and the reason why it is withheld; returns what they were."""
        old_record, old_entry = self._records.get(ip), self._withheld.get(ip)
        if record is not old_record:
            if old_record is not None:
                del self._records[ip]
                self._written.remove(ip)
                self._drop(ip, old_record)
            if record is not None:
                self._records[ip] = record
                self._written.put(ip, record)
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
        if record is not None or entry is not None:
            self._taken.add(ip)
            if record is None and entry is not None and self._may_rest(ip, entry):
                heapq.heappush(self._resting, (entry.until, ip))
        else:
            self._unless_recorded(ip)
        return ip, old_record, old_entry

    def _unless_recorded(self, ip: int) -> None:
        """An address is not withheld; without a record it is free."""
        if ip not in self._records and ip in self._taken:
            self._taken.discard(ip)
            self._free.released(ip)

    def _may_rest(self, ip: int, entry: Withheld) -> bool:
        return entry.resting and ip in self._grantable

    def _index(self, ip: int, record: AllocationRecord) -> None:
        if record.pod_uid:
            self._uids.setdefault(record.pod_uid, []).append(ip)
        self._pods.setdefault(record.pod, []).append(ip)

    def _drop(self, ip: int, record: AllocationRecord) -> None:
        for index, key in ((self._uids, record.pod_uid), (self._pods, record.pod)):
            found = index.get(key, [])
            if found == [ip]:
                del index[key]
            elif ip in found:
                found.remove(ip)
