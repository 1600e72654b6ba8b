"""What is in one pool: who holds which address, what is withheld, how big the object is. Nothing is changed here.

A holder is a pod's uid and a NIC of it. Records written by programs that know no NIC (the original's agents) are
recognised by uid alone, and only while that leaves no doubt.
"""

from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from msgspec import structs

from api.ippool import IPPoolStatus, SpiderIPPool
from ipam.addresses import format_address, parse_address
from ipam.history import Change
from ipam.operations import Held
from ipam.ranges import MAX_INT64, Ranges
from ipam.records import RecordError, Records, read_records
from ipam.table import Table
from ipam.territory import PoolError, territory
from ipam.withheld import Withheld, read_withheld


class Book:
    """One version of a pool object, read: O(pool) to make and for `status`, O(1) or O(answer) for the rest."""

    __slots__ = (
        "_allocatable",
        "_base_bytes",
        "_grantable",
        "_pool",
        "_prefix",
        "_records",
        "_table",
        "_total",
        "_version",
        "_withheld",
    )

    def __init__(self, pool: SpiderIPPool, reserved: Ranges) -> None:
        """Read a pool.

        Args:
            pool: the object as the store gave it.
            reserved: addresses that are not granted though they lie in the pool; who holds one keeps it.

        Raises:
            PoolError: a malformed subnet or range; a `status.allocatedIPs` or `status.withheldIPs` that is not the
                documented encoding, or has a key that is not the canonical text of an address of the pool's family.
            ValueError: reserved addresses of the other family.
        """
        land = territory(pool)
        field = "status.allocatedIPs"
        try:
            records = read_records(pool.status.allocated_ips, land.version)
            field = "status.withheldIPs"
            withheld = read_withheld(pool.status.withheld_ips, land.version)
        except RecordError as error:
            raise PoolError(
                pool=pool.metadata.name, field=field, content=error.content, problem=error.problem
            ) from None
        # The text of the records is the biggest of all, and the table has it in pieces.
        self._pool = structs.replace(pool, status=structs.replace(pool.status, allocated_ips=None, withheld_ips=None))
        self._version = land.version
        self._prefix = land.prefix
        self._allocatable = land.addresses
        self._total = land.addresses.size
        self._grantable = land.addresses.difference(reserved)
        self._table = Table(land.version, records, withheld, self._grantable)
        self._records = self._table.records
        self._withheld = self._table.withheld
        bare = structs.replace(self._pool.status, total_ip_count=None, allocated_ip_count=None)
        self._base_bytes = len(msgspec.json.encode(structs.replace(self._pool, status=bare)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name}, records={len(self._records)}, addresses={self._total})"

    @property
    def pool(self) -> SpiderIPPool:
        """The object this was loaded from; its status is that of then, without the contents."""
        return self._pool

    @property
    def version(self) -> int:
        """IP version, 4 or 6."""
        return self._version

    @property
    def counts(self) -> tuple[int, int]:
        """How many addresses the pool has, and how many are in use, as its status is to say it."""
        return min(self._total, MAX_INT64), len(self._records)

    @property
    def records(self) -> Records:
        """Live, for audits: address as a number to record, those outside the pool's ranges too. Not to be changed."""
        return self._records

    @property
    def withheld(self) -> Mapping[int, Withheld]:
        """Live read-only view: address as a number to why it is withheld; some whose time is over are still there."""
        return MappingProxyType(self._withheld)

    @property
    def debts(self) -> list[str]:
        """Addresses that a network provider has not released yet, canonical text. Costs as much as is withheld."""
        return [self._text(ip) for ip, entry in sorted(self._withheld.items()) if entry.owed is not None]

    @property
    def idle(self) -> bool:
        """Whether nobody has an address, and none is owed to a network provider."""
        return not self._records and not self.debts

    @property
    def object_bytes(self) -> int:
        """Size of the encoded pool object, rounded up."""
        return self._base_bytes + self._table.bytes

    def find(self, uid: str, nic: str) -> Held | None:
        """What a NIC of a pod holds here: what a claim would give again, unless the ranges no longer hold it."""
        held = self._matching(uid, nic)
        return self._held(held[0]) if held else None

    def held(self, uid: str) -> tuple[Held, ...]:
        """All that a pod holds here, over its NICs, by address."""
        return tuple(self._held(ip) for ip in sorted(self._table.of_uid(uid)))

    def holds(self, uid: str, nic: str) -> bool:
        """Whether a NIC of a pod has an address here that is not merely kept for its name."""
        return any(not self._records[ip].kept for ip in self._matching(uid, nic))

    def knows(self, pod: str) -> bool:
        """Whether a pod of this name, of whatever uid, has a record here."""
        return bool(self._table.of_pod(pod))

    def shows(self, change: Change) -> bool:
        """Whether the contents are what they were right after that change: it was written, or came to the same."""
        record = self._records.get(parse_address(change.ip)[1])
        match change.what:
            case "granted" | "taken over":
                return record is not None and (record.pod_uid, record.nic, record.cid) == (
                    change.uid,
                    change.nic,
                    change.cid,
                )
            case "kept":
                return record is not None and record.kept and record.pod_uid == change.uid
            case "released" | "quarantined":
                return record is None or record.pod_uid != change.uid

    def status(self) -> IPPoolStatus:
        """The status to write: records (None when there are none, never `{}`) and counts; the rest as loaded."""
        allocated, withheld = self._table.texts()
        total, in_use = self.counts
        return structs.replace(
            self._pool.status,
            allocated_ips=allocated,
            allocated_ip_count=in_use,
            total_ip_count=total,
            withheld_ips=withheld,
        )

    def _matching(self, uid: str, nic: str) -> list[int]:
        """Addresses of this holder, ascending; more than one only if another program wrote it so."""
        mine = self._table.of_uid(uid)
        exact = sorted(ip for ip in mine if self._records[ip].nic == nic)
        if exact and nic:
            return exact
        if len(mine) == 1 and not self._records[mine[0]].nic:
            return list(mine)
        return []

    def _held(self, ip: int) -> Held:
        return Held(ip=ip, address=f"{self._text(ip)}/{self._prefix}", record=self._records[ip])

    @property
    def _name(self) -> str:
        return self._pool.metadata.name

    def _text(self, ip: int) -> str:
        return format_address(ip, self._version)
