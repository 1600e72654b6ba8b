"""The book of one pool: who holds which address, and what a batch of claims and releases does to it.

The truth is the pool object in the API server. A `Ledger` is the owning actor's working copy of one version of it: the
actor applies a batch, writes `status()` with the object's resourceVersion, and answers when that write succeeded. When
another writer was first it loads the newer object and applies the same batch again; when the write surely did not
happen it calls `revert`. What `apply` answers depends on nothing but the loaded object and the operations, so a replay
is as good as a first try.

A holder is a pod's uid and a NIC of it. Records written by programs that know no NIC (the original's agents) are
recognised by uid alone, and only while that leaves no doubt.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct, structs

from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool
from api.reasons import Reason
from ipam.addresses import BITS, FreeAddresses, format_address, parse_address
from ipam.ranges import MAX_INT64, RangeError, Ranges, parse_ranges
from ipam.records import RecordError, read_records, record_bytes, write_records

MAX_OBJECT_BYTES: Final = 1_200_000
"""A pool grants while its encoded object stays below this: etcd refuses 1.5 MB, and unmodelled fields must fit too."""


class LedgerError(Exception):
    """A pool object that cannot be trusted: nothing was granted or released, and nothing of it may be overwritten.

    Attributes:
        pool: name of the pool.
        field: where the problem is, e.g. `status.allocatedIPs`.
        content: what stands there, at most 200 characters of it.
    """

    def __init__(self, *, pool: str, field: str, content: str, problem: str) -> None:
        shown = content if len(content) <= 200 else f"{content[:200]}..."
        super().__init__(f"SpiderIPPool {pool}: {field}: {problem}: {shown!r}")
        self.pool = pool
        self.field = field
        self.content = shown


class Claim(Struct, frozen=True, tag="claim", kw_only=True):
    """Wanted: an address for one NIC of a pod. A repeated claim gets the same one.

    Attributes:
        pod: `namespace/name`.
        uid: the pod's uid.
        nic: name of the interface inside the pod.
        node: where the pod runs.
        cid: first 12 hex digits of the sandbox's container id. A claim with another cid than the record's is one of a
            newer sandbox and takes the record over.

    None of them may be empty, such a record could not be released by its holder: the ledger refuses the claim, alone,
    rather than raising, since the rest of the batch is other pods'.
    """

    pod: str
    uid: str
    nic: str
    node: str
    cid: str


class Surrender(Struct, frozen=True, tag="surrender", kw_only=True):
    """A NIC of a sandbox is gone: its address is free.

    Releases only what matches: the uid, the NIC and the cid. A pod has several sandboxes in its life and the deletion
    of an old one is repeated at any time, so a record that a newer sandbox took over stays.

    Attributes:
        uid: the pod's uid; an empty one matches nothing.
        nic: name of the interface inside the pod.
        cid: as in `Claim`; empty means any sandbox.
        node: the node that asks. A record that says another one is refused, not released; empty means any node.
    """

    uid: str
    nic: str
    cid: str = ""
    node: str = ""


type Operation = Claim | Surrender


class Granted(Struct, frozen=True, tag="granted", kw_only=True):
    """A claim's address.

    Attributes:
        ip: as a number; up to 128 bits, so not for msgpack.
        prefix: length of the pool's subnet.
        address: `10.0.0.5/16`.
        fresh: it was free before; False when the holder had it already.
        dropped: addresses (no prefix) that the holder had and lost because the pool's ranges no longer hold them.
    """

    ip: int
    prefix: int
    address: str
    fresh: bool
    dropped: tuple[str, ...] = ()


class Surrendered(Struct, frozen=True, tag="surrendered", kw_only=True):
    """What a `Surrender` set free.

    Attributes:
        ips: canonical addresses without prefix; empty when nothing matched.
    """

    ips: tuple[str, ...] = ()


class Refused(Struct, frozen=True, tag="refused", kw_only=True):
    """A claim that this pool cannot serve, or a release by a node that does not hold it. What there was stays.

    Attributes:
        reason: its predicate is one of `disable`, `terminating`, `max-records`, `object-size`, `full`, and `claim` for
            one that lacks something; for a release it is `node`.
    """

    reason: Reason


type Answer = Granted | Surrendered | Refused


class Held(Struct, frozen=True, kw_only=True):
    """One address and who holds it.

    Attributes:
        ip: as a number.
        address: `10.0.0.5/16`.
        record: as stored.
    """

    ip: int
    address: str
    record: AllocationRecord


class Outcome(Struct, frozen=True, eq=False, kw_only=True):
    """What one `apply` did.

    Attributes:
        answers: one per operation, in the order of the operations.
        changed: the records differ from before, so `status()` has to be written before anybody is told.
        undo: what `Ledger.revert` puts back: address and the record it had (None: it was free), oldest first.
    """

    answers: tuple[Answer, ...]
    changed: bool
    undo: tuple[tuple[int, AllocationRecord | None], ...]


class Ledger:
    """The records of one pool and the operations on them. Not thread-safe; one actor owns it.

    `apply` costs O(batch), not O(pool); `load` and `status` cost O(pool).
    """

    __slots__ = (
        "_allocatable",
        "_base_bytes",
        "_bytes",
        "_free",
        "_grantable",
        "_grantable_size",
        "_holders",
        "_last",
        "_max_records",
        "_pool",
        "_prefix",
        "_records",
        "_total",
        "_version",
    )

    def __init__(
        self,
        *,
        pool: SpiderIPPool,
        version: int,
        prefix: int,
        allocatable: Ranges,
        grantable: Ranges,
        records: dict[int, AllocationRecord],
        max_records: int,
    ) -> None:
        """Use `Ledger.load`."""
        self._pool = pool
        self._version = version
        self._prefix = prefix
        self._allocatable = allocatable
        self._total = allocatable.size
        self._grantable = grantable
        self._grantable_size = grantable.size
        self._records = records
        self._max_records = max_records
        self._holders: dict[str, list[int]] = {}
        self._base_bytes = len(msgspec.json.encode(structs.replace(pool, status=IPPoolStatus())))
        self._bytes = 0
        for ip, record in records.items():
            self._index(ip, record)
        self._free = FreeAddresses(grantable.spans, records)
        self._last: Outcome | None = None

    def __repr__(self) -> str:
        return f"Ledger({self._pool.metadata.name}, records={len(self._records)}, addresses={self._total})"

    @classmethod
    def load(cls, pool: SpiderIPPool, reserved: Ranges, max_records: int) -> "Ledger":
        """Read one version of a pool object.

        Args:
            pool: the object as the store gave it.
            reserved: addresses that are not granted though they lie in the pool; who holds one keeps it.
            max_records: how many records the pool may hold.

        Raises:
            LedgerError: a malformed subnet or range; a `status.allocatedIPs` that is not the documented encoding, or
                has a key that is not the canonical text of an address of the pool's family.
            ValueError: reserved addresses of the other family.
        """
        name = pool.metadata.name
        version, prefix = _subnet(pool)
        try:
            allocatable = parse_ranges(pool.spec.ips or (), version, field="spec.ips").difference(
                parse_ranges(pool.spec.exclude_ips or (), version, field="spec.excludeIPs")
            )
        except RangeError as error:
            raise LedgerError(pool=name, field=error.field, content=error.value, problem=error.problem) from None
        try:
            records = read_records(pool.status.allocated_ips, version)
        except RecordError as error:
            raise LedgerError(
                pool=name, field="status.allocatedIPs", content=error.content, problem=error.problem
            ) from None
        return cls(
            pool=pool,
            version=version,
            prefix=prefix,
            allocatable=allocatable,
            grantable=allocatable.difference(reserved),
            records=records,
            max_records=max_records,
        )

    @property
    def pool(self) -> SpiderIPPool:
        """The object this was loaded from; its status is that of then."""
        return self._pool

    @property
    def version(self) -> int:
        """IP version, 4 or 6."""
        return self._version

    @property
    def records(self) -> Mapping[int, AllocationRecord]:
        """Live read-only view for audits: address as a number to record, those outside the pool's ranges too."""
        return MappingProxyType(self._records)

    def find(self, uid: str, nic: str) -> Held | None:
        """What a NIC of a pod holds here: what a claim would give again, unless the ranges no longer hold it."""
        held = self._matching(uid, nic)
        return self._held(held[0]) if held else None

    def held(self, uid: str) -> tuple[Held, ...]:
        """All that a pod holds here, over its NICs, by address."""
        return tuple(self._held(ip) for ip in sorted(self._holders.get(uid, ())))

    def status(self) -> IPPoolStatus:
        """The status to write: records (None when there are none, never `{}`) and counts; the rest as loaded."""
        return structs.replace(
            self._pool.status,
            allocated_ips=write_records(self._records, self._version),
            allocated_ip_count=len(self._records),
            total_ip_count=min(self._total, MAX_INT64),
        )

    def apply(self, operations: Sequence[Operation]) -> Outcome:
        """Carry out a batch: all releases, then the claims, each group in its order.

        A claim is answered with what its holder has already. That is rewritten where another sandbox had it (`cid`,
        `node`) or no NIC was noted, and given up for a new address where the ranges no longer hold it. Otherwise it
        gets the lowest free address, unless the pool is disabled, terminating or full: that concerns new addresses,
        what is in use stays in use.

        Returns:
            The answers, and what `revert` needs. Every other record and every other field stays as it was.
        """
        answers: dict[int, Answer] = {}
        undo: list[tuple[int, AllocationRecord | None]] = []
        for at, operation in enumerate(operations):
            if isinstance(operation, Surrender):
                answers[at] = self._surrender(operation, undo)
        for at, operation in enumerate(operations):
            if isinstance(operation, Claim):
                answers[at] = self._claim(operation, undo)
        self._last = Outcome(
            answers=tuple(answers[at] for at in range(len(operations))), changed=bool(undo), undo=tuple(undo)
        )
        return self._last

    def revert(self, outcome: Outcome) -> None:
        """Take back the latest `apply`, whose write is known not to have happened. O(batch).

        Raises:
            ValueError: it is not the latest one, or was taken back already. Nothing was changed.
        """
        if outcome is not self._last:
            raise ValueError("only the latest outcome can be reverted, and only once")
        for ip, record in reversed(outcome.undo):
            self._put(ip, record)
        self._last = None

    def reserve(self, reserved: Ranges) -> None:
        """From now on grant all but these: reserved addresses change while the pool's object does not.

        Costs as much as the intervals are many, and nothing where it makes no difference. Whoever holds such an
        address keeps it.

        Raises:
            ValueError: reserved addresses of the other family. Nothing was changed.
        """
        grantable = self._allocatable.difference(reserved)
        if grantable != self._grantable:
            self._grantable = grantable
            self._grantable_size = grantable.size
            self._free = FreeAddresses(grantable.spans, self._records)

    def _surrender(self, wanted: Surrender, undo: list[tuple[int, AllocationRecord | None]]) -> Surrendered | Refused:
        freed: list[int] = []
        for ip in self._matching(wanted.uid, wanted.nic):
            record = self._records[ip]
            if wanted.cid and record.cid and record.cid != wanted.cid:
                continue
            if wanted.node and record.node and record.node != wanted.node:
                seen = f"{record.node}, for {self._text(ip)}"
                return Refused(
                    reason=Reason(predicate="node", pool=self._pool.metadata.name, wanted=wanted.node, seen=seen)
                )
            freed.append(ip)
        for ip in freed:
            self._change(ip, None, undo)
        return Surrendered(ips=tuple(map(self._text, freed)))

    def _claim(self, claim: Claim, undo: list[tuple[int, AllocationRecord | None]]) -> Granted | Refused:
        missing = [name for name in claim.__struct_fields__ if not getattr(claim, name)]
        if missing:
            return self._refused("claim", wanted=", ".join(claim.__struct_fields__), seen=f"no {', no '.join(missing)}")
        held = self._matching(claim.uid, claim.nic)
        kept = next((ip for ip in held if ip in self._allocatable), None)
        if kept is not None:
            return self._renew(kept, claim, undo)
        granted = self._grant(claim, undo, replaced=len(held))
        if isinstance(granted, Refused) or not held:
            return granted
        for ip in held:
            self._change(ip, None, undo)
        return structs.replace(granted, dropped=tuple(map(self._text, held)))

    def _renew(self, ip: int, claim: Claim, undo: list[tuple[int, AllocationRecord | None]]) -> Granted | Refused:
        old = self._records[ip]
        new = structs.replace(old, nic=claim.nic, node=claim.node, cid=claim.cid)
        if new != old:
            growth = record_bytes(new, self._version) - record_bytes(old, self._version)
            if growth > 0 and self._object_bytes + growth >= MAX_OBJECT_BYTES:
                return self._too_big()
            self._change(ip, new, undo)
        return self._granted(ip, fresh=False)

    def _grant(
        self, claim: Claim, undo: list[tuple[int, AllocationRecord | None]], *, replaced: int
    ) -> Granted | Refused:
        """A new record; `replaced` is how many of the holder's go if this succeeds."""
        deleted = self._pool.metadata.deletion_timestamp
        if self._pool.spec.disable:
            return self._refused("disable", wanted="false", seen="true")
        if deleted is not None:
            return self._refused("terminating", wanted="no deletionTimestamp", seen=deleted)
        if len(self._records) - replaced >= self._max_records:
            return self._refused(
                "max-records", wanted=f"fewer than {self._max_records} records", seen=f"{len(self._records)}"
            )
        ip = self._free.lowest()
        if ip is None:
            size, reserved = self._grantable_size, self._total - self._grantable_size
            return self._refused("full", wanted="a free address", seen=f"all {size} taken, {reserved} more reserved")
        record = AllocationRecord(pod=claim.pod, pod_uid=claim.uid, nic=claim.nic, node=claim.node, cid=claim.cid)
        if self._object_bytes + record_bytes(record, self._version) >= MAX_OBJECT_BYTES:
            return self._too_big()
        self._change(ip, record, undo)
        return self._granted(ip, fresh=True)

    def _matching(self, uid: str, nic: str) -> list[int]:
        """Addresses of this holder, ascending; more than one only if another program wrote it so."""
        mine = self._holders.get(uid, ())
        exact = sorted(ip for ip in mine if self._records[ip].nic == nic)
        if exact and nic:
            return exact
        if len(mine) == 1 and not self._records[mine[0]].nic:
            return list(mine)
        return []

    def _change(
        self, ip: int, record: AllocationRecord | None, undo: list[tuple[int, AllocationRecord | None]]
    ) -> None:
        undo.append((ip, self._records.get(ip)))
        self._put(ip, record)

    def _put(self, ip: int, record: AllocationRecord | None) -> None:
        """Make `record` the record of `ip`, None: free it; keeps the indexes and the size in step."""
        old = self._records.get(ip)
        if old is not None:
            self._bytes -= record_bytes(old, self._version)
            mine = self._holders.get(old.pod_uid, [])
            if mine == [ip]:
                del self._holders[old.pod_uid]
            elif mine:
                mine.remove(ip)
        if record is not None:
            self._records[ip] = record
            self._index(ip, record)
        elif old is not None:
            del self._records[ip]
            self._free.released(ip)

    def _index(self, ip: int, record: AllocationRecord) -> None:
        self._bytes += record_bytes(record, self._version)
        if record.pod_uid:
            self._holders.setdefault(record.pod_uid, []).append(ip)

    @property
    def _object_bytes(self) -> int:
        return self._base_bytes + self._bytes

    def _held(self, ip: int) -> Held:
        return Held(ip=ip, address=f"{self._text(ip)}/{self._prefix}", record=self._records[ip])

    def _granted(self, ip: int, *, fresh: bool) -> Granted:
        return Granted(ip=ip, prefix=self._prefix, address=f"{self._text(ip)}/{self._prefix}", fresh=fresh)

    def _too_big(self) -> Refused:
        return self._refused(
            "object-size", wanted=f"an object below {MAX_OBJECT_BYTES} bytes", seen=f"{self._object_bytes} bytes"
        )

    def _refused(self, predicate: str, *, wanted: str, seen: str) -> Refused:
        return Refused(reason=Reason(predicate=predicate, pool=self._pool.metadata.name, wanted=wanted, seen=seen))

    def _text(self, ip: int) -> str:
        return format_address(ip, self._version)


def _subnet(pool: SpiderIPPool) -> tuple[int, int]:
    """IP version and prefix length of a pool.

    Raises:
        LedgerError: the subnet is no CIDR, or `spec.ipVersion` is another family.
    """
    name, subnet = pool.metadata.name, pool.spec.subnet
    address, slash, length = subnet.partition("/")
    try:
        version, _ = parse_address(address)
    except ValueError as error:
        raise LedgerError(pool=name, field="spec.subnet", content=subnet, problem=f"{address!r} {error}") from None
    if not (slash and length.isascii() and length.isdigit() and int(length) <= BITS[version]):
        raise LedgerError(pool=name, field="spec.subnet", content=subnet, problem="not a CIDR")
    if pool.spec.ip_version not in (None, version):
        raise LedgerError(
            pool=name, field="spec.ipVersion", content=str(pool.spec.ip_version), problem=f"spec.subnet is {subnet}"
        )
    return version, int(length)
