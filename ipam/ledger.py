"""What a batch of claims and releases does to a pool.

The truth is the pool object in the API server. A `Ledger` is the owning actor's working copy of one version of it: the
actor applies a batch, writes `status()` with the object's resourceVersion, and answers when that write succeeded. When
another writer was first it loads the newer object and applies the same batch again; when the write surely did not
happen it calls `revert`. What `apply` answers depends on nothing but the loaded object and the operations, so a replay
is as good as a first try.

An address that is fixed belongs to a pod's name: its record stays behind as `kept` when the sandbox is gone, and passes
to the next uid of that name.

Addresses that are freed rest before anybody else gets them, those that strangers were found to use are in quarantine
(`ipam.withheld`), and those that lie in two pools are granted by neither (`ipam.overlap`).

An address that a network provider was asked for is owed to it when its sandbox is gone, in the same write that ends the
record: nobody gets it before the provider has released it, neither anybody else nor the next pod of a name.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from msgspec import structs

from api.ippool import AllocationRecord, SpiderIPPool
from api.reasons import Reason
from ipam.addresses import parse_address
from ipam.book import Book
from ipam.history import Change
from ipam.operations import (
    Answer,
    Chase,
    Claim,
    Disown,
    Granted,
    Heir,
    Operation,
    Outcome,
    Reclaim,
    Refused,
    Settle,
    Surrender,
    Surrendered,
)
from ipam.overlap import Overlap
from ipam.ranges import Ranges
from ipam.records import same_record, stripped
from ipam.refusals import another_held, exhausted, still_held, still_owed, taken
from ipam.table import Before
from ipam.withheld import CONFLICT, COOL_DOWN, Withheld, freed, owing, settled, withhold

MAX_OBJECT_BYTES: Final = 1_200_000
"""A pool grants while its encoded object stays below this: etcd refuses 1.5 MB, and unmodelled fields must fit too."""
LATE_MS: Final = 60_000
"""No copy of a claim is under way for longer: an ADD has 45 s at most, a write to the store 10. A bigger difference
between two sandboxes of a pod is a node's clock that was set back."""
_NEEDED: Final = ("pod", "uid", "nic", "node", "cid")
"""What a claim has to say."""


class Ledger(Book):
    """The records of one pool and the operations on them. Not thread-safe; one actor owns it.

    `apply` costs O(batch), not O(pool).
    """

    __slots__ = ("_changes", "_cooldown", "_last", "_max_records", "_now", "_overlap", "_undo")

    def __init__(self, pool: SpiderIPPool, reserved: Ranges, max_records: int, *, cooldown: float = 0.0) -> None:
        """Read a pool as `Book` does, with what it raises.

        Args:
            pool: the object as the store gave it.
            reserved: addresses that are not granted though they lie in the pool; who holds one keeps it.
            max_records: how many records the pool may hold.
            cooldown: for how many seconds an address that is freed rests; 0: it does not.
        """
        super().__init__(pool, reserved)
        self._overlap: Overlap | None = None
        self._max_records = max_records
        self._cooldown = cooldown
        self._now = 0.0
        self._undo: list[Before] = []
        self._changes: list[Change] = []
        self._last: Outcome | None = None

    def apply(self, operations: Sequence[Operation], *, now: float = 0.0) -> Outcome:
        """Carry out a batch: all releases, then the claims, each group in its order.

        A claim is answered with what its holder has already. That is rewritten where another sandbox had it (`cid`,
        `node`) or no NIC was noted, and given up for a new address where the ranges no longer hold it. A fixed one
        is answered with what the name has, once nothing carries that any more. A claim that asks for an address gets
        that one or none. Otherwise it gets the lowest free address, else the one that rests for longest, unless the
        pool is disabled, terminating or full: that concerns new addresses, what is in use stays in use.

        Args:
            operations: the batch.
            now: unix seconds. What was withheld until then is free; what is freed rests from then on.

        Returns:
            The answers, and what `revert` needs. Every other record and every other field stays as it was.
        """
        self._now, self._undo, self._changes = now, [], []
        self._table.expire(now)
        answers: dict[int, Answer] = {}
        for at, operation in enumerate(operations):
            match operation:
                case Surrender():
                    answers[at] = self._surrender(operation)
                case Disown():
                    answers[at] = self._disown(operation)
                case Reclaim():
                    answers[at] = self._reclaim(operation)
                case Chase():
                    answers[at] = self._chase(operation)
                case Settle():
                    answers[at] = self._settle(operation)
        for at, operation in enumerate(operations):
            if isinstance(operation, Claim):
                answers[at] = self._claim(operation)
        if self._undo:
            for ip in self._table.expired():
                self._set(ip, self._records.get(ip), None)
        self._last = Outcome(
            answers=tuple(answers[at] for at in range(len(operations))),
            changed=bool(self._undo),
            changes=tuple(self._changes),
            undo=tuple(self._undo),
        )
        return self._last

    def revert(self, outcome: Outcome) -> None:
        """Take back the latest `apply`, whose write is known not to have happened. O(batch).

        Raises:
            ValueError: it is not the latest one, or was taken back already. Nothing was changed.
        """
        if outcome is not self._last:
            raise ValueError("only the latest outcome can be reverted, and only once")
        for before in reversed(outcome.undo):
            self._table.set(*before)
        self._last = None

    @property
    def spare(self) -> bool:
        """Whether an address is left that a claim could be given."""
        return self._table.lowest() is not None or self._table.longest_rested() is not None

    def reserve(self, reserved: Ranges, overlap: Overlap | None = None) -> None:
        """From now on grant all but these: they change while the pool's object does not.

        Costs as much as the intervals are many, and nothing where it makes no difference. Whoever holds such an
        address keeps it.

        Args:
            reserved: by SpiderReservedIP.
            overlap: what other pools have as well.

        Raises:
            ValueError: addresses of the other family. Nothing was changed.
        """
        grantable = self._allocatable.difference(reserved)
        if overlap is not None:
            grantable = grantable.difference(overlap.addresses)
        self._overlap = overlap
        if grantable != self._grantable:
            self._grantable = grantable
            self._table.grant_only(grantable)

    def recall(self, before: "Ledger", *, now: float) -> None:
        """Put back what programs that know less than we do have dropped since another version of the pool was loaded.

        The original's programs rewrite the whole status and keep `pod` and `podUid` of a record, and of the status what
        they know. A record of the same pod and uid that has lost the rest gets it back, and what was withheld and is
        mentioned nowhere any more is withheld again. It is written down with the next change.

        Args:
            before: what the caller knew of the same pool, without anything that may not have been written.
            now: unix seconds.
        """
        for ip in before.records.other_than(self._records):
            old = before.records[ip]
            if stripped(self._records[ip], old):
                self._table.set(ip, old, self._withheld.get(ip))
        if self._withheld:
            return
        for ip, entry in before.withheld.items():
            if entry.until > now and not (entry.resting and ip in self._records):
                self._table.set(ip, self._records.get(ip), entry)

    # -- releases ------------------------------------------------------------------------------------------------------

    def _surrender(self, wanted: Surrender) -> Surrendered | Refused:
        found = self._sandboxes(wanted, self._going(wanted))
        if isinstance(found, Refused):
            return found
        if wanted.kept_only:
            found = [ip for ip in found if self._records[ip].kept]
        if wanted.heir is not None:
            for ip in found:
                self._inherit(ip, wanted.heir)
            return Surrendered()
        if wanted.successor:
            for ip in found:
                self._pass_on(ip, wanted.successor)
            return Surrendered()
        return self._release(found, retain=wanted.retain)

    def _inherit(self, ip: int, heir: Heir) -> None:
        """It is another pod's of the same name again, whose container its agent knows. The object does not grow."""
        new = structs.replace(self._records[ip], pod_uid=heir.uid, node=heir.node, cid="", begun=0, kept=False)
        self._set(ip, new, self._withheld.get(ip))
        self._note("taken over", ip, new)

    def _pass_on(self, ip: int, cid: str) -> None:
        """It is the newer sandbox's again. The texts are of one length, so the object does not grow."""
        new = structs.replace(self._records[ip], cid=cid, kept=False)
        self._set(ip, new, self._withheld.get(ip))
        self._note("taken over", ip, new)

    def _reclaim(self, wanted: Reclaim) -> Surrendered:
        try:
            family, ip = parse_address(wanted.address)
        except ValueError:
            return Surrendered()
        record = self._records.get(ip) if family == self._version else None
        if record is None or not same_record(record, wanted.record):
            return Surrendered()
        return self._release([ip], retain=wanted.retain)

    def _release(self, ips: Iterable[int], *, retain: bool) -> Surrendered:
        freed, retained = [], []
        for ip in ips:
            if retain and self._worth_keeping(ip):
                retained.append(ip)
                self._retain(ip)
            else:
                freed.append(ip)
                self._free(ip, "released")
        return Surrendered(ips=tuple(map(self._text, freed)), retained=tuple(map(self._text, retained)))

    def _disown(self, wanted: Disown) -> Surrendered | Refused:
        mine = (ip for ip in self._matching(wanted.uid, wanted.nic) if self._text(ip) in wanted.addresses)
        found = self._sandboxes(wanted, mine)
        if isinstance(found, Refused):
            return found
        entry = withhold(self._now + wanted.seconds, f"{CONFLICT}{wanted.seen}") if wanted.seconds > 0 else None
        for ip in found:
            self._free(ip, "quarantined", entry)
        return Surrendered(ips=tuple(map(self._text, found)))

    def _going(self, wanted: Surrender) -> list[int]:
        """What a release is about, whatever sandbox has it."""
        if wanted.keep is None:
            return self._matching(wanted.uid, wanted.nic)
        named = sorted(
            ip
            for ip in self._table.of_uid(wanted.uid)
            if self._records[ip].nic and self._records[ip].nic not in wanted.keep
        )
        return named or ([] if wanted.nic in wanted.keep else self._matching(wanted.uid, wanted.nic))

    def _sandboxes(self, wanted: Surrender | Disown, ips: Iterable[int]) -> list[int] | Refused:
        """Those of the addresses that the sandbox has; refused where one of them is on another node."""
        found: list[int] = []
        for ip in ips:
            record = self._records[ip]
            if wanted.cid and record.cid and record.cid != wanted.cid:
                continue
            if wanted.node and record.node and record.node != wanted.node:
                return self._refused("node", wanted=wanted.node, seen=f"{record.node}, for {self._text(ip)}")
            found.append(ip)
        return found

    def _worth_keeping(self, ip: int) -> bool:
        """Whether a claim could ever get it again: the ranges hold it, and no newer pod of the name has another."""
        old = self._records[ip]
        others = (self._records[other] for other in self._table.of_pod(old.pod) if other != ip)
        newer = any(it.nic == old.nic and it.pod_uid != old.pod_uid for it in others if old.nic)
        return ip in self._allocatable and not newer

    def _retain(self, ip: int) -> None:
        old = self._records[ip]
        if not old.kept:
            new = structs.replace(old, kept=True, parent_mac="", provider_by=0)
            self._set(ip, new, freed(old, self._withheld.get(ip)))
            self._note("kept", ip, new)

    def _free(self, ip: int, what: Literal["released", "quarantined"], quarantine: Withheld | None = None) -> None:
        """An address goes, and rests. A quarantine from before that is not over stays."""
        entry = self._withheld.get(ip)
        if entry is not None and entry.owed is not None:
            pass  # it is not settled by what becomes of the record
        elif quarantine is not None:
            entry = quarantine
        elif entry is None or entry.resting or entry.until <= self._now:
            entry = withhold(self._now + self._cooldown, COOL_DOWN) if self._cooldown > 0 else None
        self._note(what, ip, self._records[ip])
        self._set(ip, None, freed(self._records[ip], entry))

    def _owed(self, address: str, by: int) -> tuple[int, Withheld] | None:
        """The address and its entry, if it is owed to a provider since just then."""
        try:
            family, ip = parse_address(address)
        except ValueError:
            return None
        entry = self._withheld.get(ip) if family == self._version else None
        return None if entry is None or entry.owed is None or entry.owed.by != by else (ip, entry)

    def _chase(self, wanted: Chase) -> Surrendered:
        found = self._owed(wanted.address, wanted.by)
        if found is None:
            return Surrendered()
        ip, entry = found
        if entry.owed is not None and wanted.until != wanted.by:
            owed = structs.replace(entry.owed, by=wanted.until, tried=True)
            self._set(ip, self._records.get(ip), owing(owed, entry.reason))
        return Surrendered(ips=(self._text(ip),))

    def _settle(self, wanted: Settle) -> Surrendered:
        found = self._owed(wanted.address, wanted.by)
        if found is None:
            return Surrendered()
        ip, entry = found
        # An address that stays somebody's need not rest.
        rest = 0.0 if ip in self._records else self._cooldown
        self._set(ip, self._records.get(ip), settled(entry, now=self._now, cooldown=rest))
        return Surrendered(ips=(self._text(ip),))

    # -- claims --------------------------------------------------------------------------------------------------------

    def _claim(self, claim: Claim) -> Granted | Refused:
        if not (claim.pod and claim.uid and claim.nic and claim.node and claim.cid):
            missing = [name for name in _NEEDED if not getattr(claim, name)]
            return self._refused("claim", wanted=", ".join(_NEEDED), seen=f"no {', no '.join(missing)}")
        held = self._matching(claim.uid, claim.nic)
        mine = next((ip for ip in held if ip in self._allocatable), None)
        if claim.confirm:
            if mine is not None and self._records[mine].cid == claim.cid:
                return self._granted(mine, fresh=False)
            seen = "no record" if mine is None else f"one of sandbox {self._records[mine].cid}"
            return self._refused("superseded", wanted=f"a record of sandbox {claim.cid}", seen=seen)
        if mine is not None and not self._suits(mine, claim):
            text = self._text(mine)
            return Refused(reason=another_held(self._name, text, self._records[mine], wanted=claim.address), retry=True)
        if mine is not None:
            return self._renew(mine, claim)
        left = self._left(claim) if claim.fixed else []
        heritage = [ip for ip in left if ip in self._allocatable]
        ready = [ip for ip in heritage if self._suits(ip, claim)]
        heir = next((ip for ip in ready if claim.moving or self._records[ip].kept), None)
        carried = [ip for ip in heritage if not self._records[ip].kept]
        if heir is None and carried:
            return Refused(reason=still_held(self._name, self._text(carried[0]), self._records[carried[0]]), retry=True)
        spared = [] if heir is None else heritage
        gone = [*held, *(ip for ip in left if ip not in spared and self._records[ip].kept)]
        granted = self._renew(heir, claim) if heir is not None else self._grant(claim, replaced=len(gone))
        if isinstance(granted, Refused) or not gone:
            return granted
        for ip in gone:
            self._free(ip, "released")
        return structs.replace(granted, dropped=tuple(map(self._text, gone)))

    def _renew(self, ip: int, claim: Claim) -> Granted | Refused:
        """What the holder has, or the next one of its name gets."""
        old, entry = self._records[ip], self._withheld.get(ip)
        if entry is not None and entry.owed is not None:
            return Refused(reason=still_owed(self._name, self._text(ip), entry.owed), retry=True)
        noted = old.begun if old.pod_uid == claim.uid else 0
        if 0 < claim.begun < noted <= claim.begun + LATE_MS:
            return self._refused(
                "superseded", wanted=f"the claim of sandbox {old.cid}", seen="one of an earlier sandbox"
            )
        new = structs.replace(
            old,
            begun=claim.begun if claim.disputed else noted if claim.cid == old.cid else 0,
            pod=claim.pod if claim.fixed else old.pod,
            pod_uid=claim.uid,
            nic=claim.nic,
            node=claim.node,
            cid=claim.cid,
            kept=False,
            parent_mac=claim.parent_mac or old.parent_mac,
            provider_by=max(claim.by, old.provider_by),
        )
        if new != old:
            if not self._fitting(ip, new, self._withheld.get(ip), shrinks_from=self.object_bytes):
                return self._too_big()
            self._note("taken over", ip, new)
        return self._granted(ip, fresh=False)

    def _grant(self, claim: Claim, *, replaced: int) -> Granted | Refused:
        """A new record; `replaced` is how many others go if this succeeds."""
        deleted = self._pool.metadata.deletion_timestamp
        if self._pool.spec.disable:
            return self._refused("disable", wanted="false", seen="true")
        if deleted is not None:
            return self._refused("terminating", wanted="no deletionTimestamp", seen=deleted)
        if len(self._records) - replaced >= self._max_records:
            return self._refused(
                "max-records", wanted=f"fewer than {self._max_records} records", seen=f"{len(self._records)}"
            )
        if claim.address:
            found = self._named(claim.address)
            if isinstance(found, Refused):
                return found
            ip: int | None = found
        else:
            ip = self._table.lowest()
            if ip is None:
                ip = self._table.longest_rested()
        if ip is None:
            quarantined, owed = self._table.quarantined(now=self._now), self._table.owed
            return Refused(
                reason=exhausted(
                    self._name,
                    taken=self._grantable.size - quarantined - owed,
                    quarantined=quarantined,
                    owed=owed,
                    reserved=self._total - self._grantable.size,
                    overlap=self._overlap,
                )
            )
        record = AllocationRecord(
            pod=claim.pod,
            pod_uid=claim.uid,
            nic=claim.nic,
            node=claim.node,
            cid=claim.cid,
            begun=claim.begun if claim.disputed else 0,
            parent_mac=claim.parent_mac,
            provider_by=claim.by,
        )
        if not self._fitting(ip, record, None):
            return self._too_big()
        self._note("granted", ip, record)
        return self._granted(ip, fresh=True)

    def _suits(self, ip: int, claim: Claim) -> bool:
        return not claim.address or self._text(ip) == claim.address

    def _named(self, address: str) -> int | Refused:
        """The address that somebody asks for, if it can be had. One that rests can: nothing else would do."""
        try:
            family, ip = parse_address(address)
        except ValueError as error:
            return self._refused("ips", wanted=address, seen=f"it {error}")
        if family != self._version or ip not in self._allocatable:
            return self._refused("ips", wanted=address, seen="an address that is not of this pool")
        record, entry = self._records.get(ip), self._withheld.get(ip)
        if record is not None:
            return Refused(reason=taken(self._name, record, wanted=address), retry=True)
        if self._overlap is not None and ip in self._overlap.addresses:
            return self._refused("overlap", wanted=address, seen=f"it lies in more than one pool: {self._overlap}")
        if ip not in self._grantable:
            return self._refused("ips", wanted=address, seen="an address that a SpiderReservedIP has")
        if entry is not None and entry.owed is not None:
            return Refused(reason=still_owed(self._name, address, entry.owed), retry=True)
        if entry is not None and not entry.resting and entry.until > self._now:
            reason = Reason(predicate="quarantine", pool=self._name, wanted=address, seen=entry.reason)
            return Refused(reason=reason, retry=True)
        return ip

    def _fitting(self, ip: int, record: AllocationRecord, entry: Withheld | None, *, shrinks_from: int = 0) -> bool:
        """Change an address if the object stays small enough, or smaller than it was; else change nothing.

        What only rests is written down where there is room for it, and forgotten where something else needs that.
        """
        mark = len(self._undo)
        self._set(ip, record, entry)
        if self.object_bytes < MAX_OBJECT_BYTES or self.object_bytes <= shrinks_from:
            return True
        for expired in self._table.expired():
            self._set(expired, self._records.get(expired), None)
        while self.object_bytes >= MAX_OBJECT_BYTES:
            resting = self._table.longest_rested()
            if resting is None:
                while len(self._undo) > mark:
                    self._table.set(*self._undo.pop())
                return False
            self._set(resting, None, None)
        return True

    def _left(self, claim: Claim) -> list[int]:
        """What earlier pods of this name have here for the NIC, or for none where that leaves no doubt; ascending."""
        others = [
            ip for ip in self._table.of_pod(claim.pod) if self._records[ip].pod_uid not in ("", claim.uid)
        ]  # fmt: skip
        exact = sorted(ip for ip in others if self._records[ip].nic == claim.nic)
        if exact:
            return exact
        return others if len(others) == 1 and not self._records[others[0]].nic else []

    # -- changing, and saying so ---------------------------------------------------------------------------------------

    def _set(self, ip: int, record: AllocationRecord | None, entry: Withheld | None) -> None:
        self._undo.append(self._table.set(ip, record, entry))

    def _note(
        self, what: Literal["granted", "taken over", "released", "kept", "quarantined"], ip: int, it: AllocationRecord
    ) -> None:
        self._changes.append(Change(self._now, self._text(ip), what, it.pod, it.pod_uid, it.nic, it.node, it.cid))

    def _granted(self, ip: int, *, fresh: bool) -> Granted:
        return Granted(ip=ip, prefix=self._prefix, address=f"{self._text(ip)}/{self._prefix}", fresh=fresh)

    def _too_big(self) -> Refused:
        return self._refused(
            "object-size", wanted=f"an object below {MAX_OBJECT_BYTES} bytes", seen=f"{self.object_bytes} bytes"
        )

    def _refused(self, predicate: str, *, wanted: str, seen: str) -> Refused:
        return Refused(reason=Reason(predicate=predicate, pool=self._name, wanted=wanted, seen=seen))
