"""The ledger of one pool as a state machine against a naive model.

The model knows nothing of cursors, heaps, indexes or undo lists: it is a dict from address text to the fields of a
record and another of what is withheld, and every question is answered by looking at all of it.
"""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool
from ipam.addresses import parse_address
from ipam.ledger import Ledger
from ipam.operations import Claim, Disown, Operation, Outcome, Reclaim, Surrender
from ipam.overlap import Overlap
from ipam.ranges import parse_ranges
from ipam.withheld import rfc3339
from tests.rules.ipam_world import (
    any_nodes,
    cids,
    claim,
    disown,
    load,
    make_pool,
    nics,
    nodes,
    one,
    plain,
    stored,
    surrender,
    uids,
    withheld,
)

type Records = dict[str, dict[str, Any]]

COOLDOWN = 10
PODS = {"u1": "ns/web-0", "u2": "ns/web-0", "u3": "ns/web-1", "u4": "ns/alone"}
"""Two uids of one name, as a StatefulSet's pod has over time."""
ADDRESSES = tuple(f"10.0.0.{number}" for number in (1, 2, 3, 4, 5, 6, 9, 20))

claims = st.builds(
    lambda uid, nic, cid, node, fixed, moving, wanted: claim(
        uid, nic, cid, node, PODS[uid], fixed=fixed, moving=moving, address=wanted
    ),
    uids,
    nics,
    cids,
    nodes,
    st.sampled_from([True, True, False]),
    st.sampled_from([False, False, False, True]),
    st.just("") | st.just("") | st.sampled_from(ADDRESSES),
)
surrenders = st.builds(
    surrender,
    uids,
    nics,
    cids | st.just(""),
    any_nodes,
    keep=st.sampled_from([None, None, (), ("eth0",), ("net1",)]),
    retain=st.booleans(),
)
disowns = st.builds(
    lambda addresses, uid, nic, cid, node, seconds: disown(
        *sorted(addresses), uid=uid, nic=nic, cid=cid, node=node, seconds=seconds
    ),
    st.sets(st.sampled_from(ADDRESSES), max_size=8),
    uids,
    nics,
    cids | st.just(""),
    any_nodes,
    st.sampled_from([0.0, 40.5]),
)
batches: st.SearchStrategy[list[Operation]] = st.lists(
    st.one_of(claims, claims, claims, surrenders, disowns), min_size=1, max_size=8
)

some_addresses = st.sets(st.sampled_from(ADDRESSES), max_size=3)


class Model:
    """What a ledger has to do, in the shortest way to say it."""

    def __init__(self, grantable: list[str], kept: list[str], max_records: int) -> None:
        self.grantable = grantable
        """Ascending."""
        self.kept = kept
        """What a holder may keep: reserved addresses too."""
        self.max_records = max_records
        self.disable = False
        self.overlaps = False
        self.shared: set[str] = set()
        """With other pools."""
        self.records: Records = {}
        self.withheld: dict[str, tuple[float, str]] = {}
        self.now = 0.0
        self.touched = False

    # -- looking

    def matching(self, uid: str, nic: str) -> list[str]:
        mine = [ip for ip, record in self.records.items() if record["podUid"] == uid]
        exact = [ip for ip in mine if self.records[ip].get("nic") == nic]
        unnamed = [ip for ip in mine if "nic" not in self.records[ip]]
        return exact or (unnamed if len(mine) == len(unnamed) == 1 else [])

    def left(self, operation: Claim) -> list[str]:
        others = {
            ip: record
            for ip, record in self.records.items()
            if record["pod"] == operation.pod and record["podUid"] != operation.uid
        }
        exact = [ip for ip, record in others.items() if record.get("nic") == operation.nic]
        unnamed = [ip for ip, record in others.items() if "nic" not in record]
        return sorted(exact, key=number) or (unnamed if len(others) == len(unnamed) == 1 else [])

    def resting(self, ip: str) -> bool:
        return ip in self.withheld and self.withheld[ip][1] == "cool-down"

    def blocked(self, ip: str) -> bool:
        return ip in self.withheld and self.withheld[ip][0] > self.now

    # -- changing

    def put(self, ip: str, record: dict[str, Any]) -> None:
        if self.records.get(ip) != record:
            self.touched = True
            self.records[ip] = record

    def free(self, ip: str, quarantine: tuple[float, str] | None = None) -> None:
        self.touched = True
        del self.records[ip]
        if quarantine is not None:
            self.withheld[ip] = quarantine
        elif self.resting(ip) or not self.blocked(ip):
            self.withheld[ip] = (math.ceil(self.now + COOLDOWN), "cool-down")

    def release(self, ips: list[str], *, retain: bool) -> tuple[str, ...]:
        """The addresses that went; who keeps one nobody could get again lets it go."""
        freed = []
        for ip in ips:
            record = self.records[ip]
            newer = any(
                other["pod"] == record["pod"] and other["podUid"] != record["podUid"] and other.get("nic") == nic
                for other in self.records.values()
                if (nic := record.get("nic"))
            )
            if retain and ip in self.kept and not newer:
                self.put(ip, record | {"kept": True})
            else:
                freed.append(ip)
                self.free(ip)
        return tuple(freed)

    def surrender(self, operation: Surrender | Disown) -> str | tuple[str, ...]:
        """The addresses, or the predicate that refuses."""
        keep = operation.keep if isinstance(operation, Surrender) else None
        found = self.matching(operation.uid, operation.nic)
        if keep is not None:
            found = [
                ip
                for ip, record in self.records.items()
                if record["podUid"] == operation.uid and record.get("nic", operation.nic) not in keep
                and ("nic" in record or ip in found)
            ]  # fmt: skip
        if isinstance(operation, Disown):
            found = [ip for ip in found if ip in operation.addresses]
        gone = [ip for ip in found if operation.cid in ("", self.records[ip].get("cid", operation.cid))]
        gone.sort(key=number)
        if any(operation.node not in ("", self.records[ip].get("node", operation.node)) for ip in gone):
            return "node"
        if isinstance(operation, Surrender):
            return self.release(gone, retain=operation.retain)
        for ip in gone:
            end = math.ceil(self.now + operation.seconds)
            self.free(ip, (end, f"conflict: {operation.seen}") if operation.seconds else None)
        return tuple(gone)

    def reclaim(self, operation: Reclaim) -> tuple[str, ...]:
        record = self.records.get(operation.address)
        return self.release([operation.address], retain=operation.retain) if is_it(record, operation.record) else ()

    def claim(self, operation: Claim) -> str:
        """The address, or the predicate that refuses."""
        ours = {"podUid": operation.uid, "nic": operation.nic, "node": operation.node, "cid": operation.cid}
        if operation.fixed:
            ours["pod"] = operation.pod
        held = self.matching(operation.uid, operation.nic)
        for ip in held:
            if ip in self.kept:
                if operation.address not in ("", ip):
                    return "held"
                self.put(ip, without(self.records[ip], "kept") | ours)
                return ip
        left = self.left(operation) if operation.fixed else []
        usable = [ip for ip in left if ip in self.kept]
        heirs = [
            ip
            for ip in usable
            if operation.address in ("", ip) and (operation.moving or "kept" in self.records[ip])
        ]  # fmt: skip
        if not heirs and any("kept" not in self.records[ip] for ip in usable):
            return "held"
        gone = held + [ip for ip in left if "kept" in self.records[ip] and not (heirs and ip in usable)]
        if heirs:
            self.put(heirs[0], without(self.records[heirs[0]], "kept") | ours)
            for old in gone:
                self.free(old)
            return heirs[0]
        return self.grant(operation, ours, gone)

    def grant(self, operation: Claim, ours: dict[str, Any], gone: list[str]) -> str:
        """One that nobody has, or the predicate that refuses."""
        if self.disable:
            return "disable"
        if len(self.records) - len(gone) >= self.max_records:
            return "max-records"
        unheld = [ip for ip in self.grantable if ip not in self.records]
        free = [ip for ip in unheld if not self.blocked(ip)]
        free += sorted((ip for ip in unheld if self.resting(ip)), key=lambda ip: (self.withheld[ip][0], number(ip)))
        if operation.address:
            why = self.unavailable(operation.address)
            if why:
                return why
            free = [operation.address]
        if not free:
            return "overlap" if self.overlaps else "full"
        self.put(free[0], {"pod": operation.pod, **ours})
        self.withheld.pop(free[0], None)
        for old in gone:
            self.free(old)
        return free[0]

    def unavailable(self, ip: str) -> str:
        """The predicate that refuses one address, whoever asks for it."""
        if ip not in self.kept:
            return "ips"
        if ip in self.records:
            return "taken"
        if ip not in self.grantable:
            return "overlap" if ip in self.shared else "ips"
        return "quarantine" if self.blocked(ip) and not self.resting(ip) else ""

    def apply(self, operations: Sequence[Operation]) -> list[str | tuple[str, ...]]:
        answers: dict[int, str | tuple[str, ...]] = {}
        self.touched = False
        for at, operation in enumerate(operations):
            if isinstance(operation, Surrender | Disown):
                answers[at] = self.surrender(operation)
            elif isinstance(operation, Reclaim):
                answers[at] = self.reclaim(operation)
        for at, operation in enumerate(operations):
            if isinstance(operation, Claim):
                answers[at] = self.claim(operation)
        if self.touched:
            self.withheld = {ip: entry for ip, entry in self.withheld.items() if entry[0] > self.now}
        return [answers[at] for at in range(len(operations))]


def number(ip: str) -> int:
    return parse_address(ip)[1]


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def is_it(record: dict[str, Any] | None, wanted: AllocationRecord) -> bool:
    if record is None:
        return False
    fields = ("pod", record["pod"]), ("pod_uid", record["podUid"]), ("kept", "kept" in record)
    return all(getattr(wanted, name) == value for name, value in fields) and all(
        getattr(wanted, name) == record.get(name, "") for name in ("nic", "node", "cid")
    )


class LedgerMachine(RuleBasedStateMachine):
    """Six addresses, of which one is excluded and one reserved, and eight possible holders: scarcity is normal."""

    MAX_RECORDS = 6
    KEPT = tuple(f"10.0.0.{number}" for number in (1, 3, 4, 5, 6, 20))

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(["10.0.0.1-10.0.0.6", "10.0.0.20"], exclude=["10.0.0.2"])
        self.reserved = parse_ranges(["10.0.0.4"], 4)
        self.overlap: Overlap | None = None
        self.model = Model(
            grantable=[ip for ip in self.KEPT if ip != "10.0.0.4"], kept=list(self.KEPT), max_records=self.MAX_RECORDS
        )
        self.ledger = self.load(self.pool)
        self.outcome: Outcome | None = None
        self.before = copy.deepcopy(self.model)

    def load(self, pool: SpiderIPPool) -> Ledger:
        ledger = load(pool, reserved=self.reserved, max_records=self.MAX_RECORDS, cooldown=COOLDOWN)
        ledger.reserve(self.reserved, self.overlap)
        return ledger

    def written(self) -> SpiderIPPool:
        return structs.replace(self.pool, status=self.ledger.status())

    def reload(self) -> None:
        self.ledger = self.load(self.written())
        self.outcome = None

    @rule(operations=batches)
    def a_batch(self, operations: list[Operation]) -> None:
        self.batch(operations)

    @rule(operations=batches)
    def another_batch(self, operations: list[Operation]) -> None:
        """Twice, so that half of all steps are batches."""
        self.batch(operations)

    def batch(self, operations: list[Operation]) -> None:
        self.before = copy.deepcopy(self.model)
        replayed = self.load(self.written()).apply(operations, now=self.model.now)
        holders = self.holders()
        self.outcome = self.ledger.apply(operations, now=self.model.now)
        assert [plain(answer) for answer in self.outcome.answers] == self.model.apply(operations)
        assert replayed.answers == self.outcome.answers, "a replay on a fresh load answers the same"
        assert self.outcome.changed == self.model.touched
        if not self.outcome.changed:
            assert (self.outcome.undo, self.outcome.changes) == ((), ())
        for change in self.outcome.changes:
            if change.what in ("released", "quarantined"):
                assert holders.pop(change.ip)[0] == change.uid
            else:
                assert (change.ip in holders) == (change.what != "granted")
                holders[change.ip] = (change.uid, change.nic, change.cid, change.what == "kept")
        assert holders == self.holders(), "what is told adds up"
        assert all(self.ledger.shows(it) for it in {it.ip: it for it in self.outcome.changes}.values())

    @rule(operations=batches)
    def one_by_one_is_the_same_as_a_batch(self, operations: list[Operation]) -> None:
        singly = self.load(self.written())
        order = [it for it in operations if not isinstance(it, Claim)] + [
            it for it in operations if isinstance(it, Claim)
        ]
        answers = [one(singly, operation, now=self.model.now) for operation in order]
        self.outcome = self.ledger.apply(order, now=self.model.now)
        self.before = copy.deepcopy(self.model)
        self.model.apply(order)
        assert list(self.outcome.answers) == answers
        assert singly.status() == self.ledger.status()

    @precondition(lambda self: self.model.records)
    @rule(data=st.data(), retain=st.booleans(), exactly=st.booleans())
    def a_record_is_reclaimed(self, data: st.DataObject, retain: bool, exactly: bool) -> None:
        ip = data.draw(st.sampled_from(sorted(self.model.records)))
        record = self.ledger.records[number(ip)]
        judged = AllocationRecord(record.pod, record.pod_uid, record.nic, record.node, record.cid, record.kept)
        if not exactly:
            judged = structs.replace(judged, cid=f"{judged.cid}x")
        self.before = copy.deepcopy(self.model)
        operation = Reclaim(address=ip, record=judged, retain=retain)
        self.outcome = self.ledger.apply([operation], now=self.model.now)
        assert plain(self.outcome.answers[0]) == self.model.apply([operation])[0]
        assert exactly or not self.outcome.changed

    @precondition(lambda self: self.outcome is not None)
    @rule()
    def the_write_failed(self) -> None:
        assert self.outcome is not None
        self.ledger.revert(self.outcome)
        self.model.records, self.model.withheld = self.before.records, self.before.withheld
        with pytest.raises(ValueError, match="only once"):
            self.ledger.revert(self.outcome)
        self.outcome = None

    @rule(seconds=st.sampled_from([0.25, 5.0, COOLDOWN, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(what=st.sampled_from(["reserved", "overlap", "restart", "switch"]), texts=some_addresses)
    def something_else_happens(self, what: str, texts: set[str]) -> None:
        ranges = parse_ranges(sorted(texts), 4)
        match what:
            case "reserved":
                self.reserved = ranges
                self.grant_only()
            case "overlap":
                self.overlap = Overlap((("other", ranges),)) if texts else None
                self.grant_only()
            case "switch":
                self.model.disable = not self.model.disable
                spec = structs.replace(self.pool.spec, disable=self.model.disable)
                self.pool = structs.replace(self.pool, spec=spec)
                self.reload()
            case _:
                self.reload()

    def grant_only(self) -> None:
        self.ledger.reserve(self.reserved, self.overlap)
        self.model.overlaps = self.overlap is not None
        self.model.shared = {ip for ip in self.KEPT if self.overlap and number(ip) in self.overlap.addresses}
        without = (self.reserved, self.overlap.addresses if self.overlap else self.reserved)
        self.model.grantable = [ip for ip in self.KEPT if not any(number(ip) in it for it in without)]

    @rule(at=st.sampled_from([1, 2, 3, 4, 5, 9]), uid=uids, extra=st.sampled_from([{}, {"vendor": {"a": [1]}}]))
    def a_program_that_respects_us_writes_a_record(self, at: int, uid: str, extra: dict[str, Any]) -> None:
        ip = f"10.0.0.{at}"
        if ip not in self.model.records:
            self.model.records[ip] = {"pod": PODS[uid], "podUid": uid, **extra}
            status = structs.replace(self.ledger.status(), allocated_ips=json.dumps(self.model.records))
            self.ledger = self.load(structs.replace(self.pool, status=status))
            self.outcome = None

    @rule(remembered=st.booleans(), at=st.sampled_from([1, 2, 3, 4, 5, 9]), uid=uids, takes=st.booleans())
    def the_original_writes(self, remembered: bool, at: int, uid: str, takes: bool) -> None:
        """It adds a record or takes one away, and keeps of everything else only what it knows."""
        ip = f"10.0.0.{at}"
        if takes:
            self.model.records.pop(ip, None)
        elif ip not in self.model.records:
            self.model.records[ip] = {"pod": PODS[uid], "podUid": uid}
        bare = {
            ip: {"pod": record["pod"], "podUid": record["podUid"]} for ip, record in self.model.records.items()
        }  # fmt: skip
        before = self.ledger
        status = IPPoolStatus(allocated_ips=json.dumps(bare) if bare else None)
        self.ledger = self.load(structs.replace(self.pool, status=status))
        self.outcome = None
        if remembered:
            self.ledger.recall(before, now=self.model.now)
            self.model.withheld = {
                ip: entry
                for ip, entry in self.model.withheld.items()
                if entry[0] > self.model.now and not (self.model.resting(ip) and ip in self.model.records)
            }
        else:
            self.model.records, self.model.withheld = bare, {}

    def holders(self) -> dict[str, tuple[str, str, str, bool]]:
        return {
            ip: (it["podUid"], it.get("nic", ""), it.get("cid", ""), it.get("kept", False))
            for ip, it in self.model.records.items()
        }

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        assert stored(self.ledger) == self.model.records
        assert withheld(self.ledger) == {
            ip: {"reason": reason, "until": rfc3339(until)} for ip, (until, reason) in self.model.withheld.items()
        }
        status = self.ledger.status()
        assert status.allocated_ip_count == len(self.model.records)
        assert status.total_ip_count == 6
        fresh = self.load(structs.replace(self.pool, status=status))
        assert fresh.records == self.ledger.records
        assert fresh.withheld == self.ledger.withheld
        assert fresh.object_bytes == self.ledger.object_bytes

    @invariant()
    def holders_are_found(self) -> None:
        for uid in ("u1", "u2", "u3", "u4", ""):
            held = {it.address.partition("/")[0] for it in self.ledger.held(uid)}
            assert held == {ip for ip, record in self.model.records.items() if record["podUid"] == uid}
            for nic in ("eth0", "net1"):
                found = self.ledger.find(uid, nic)
                mine = sorted(self.model.matching(uid, nic), key=number)
                assert ([found.address.partition("/")[0]] if found else []) == mine[:1]
                assert self.ledger.holds(uid, nic) == any("kept" not in self.model.records[ip] for ip in mine)
        for pod in PODS.values():
            assert self.ledger.knows(pod) == any(record["pod"] == pod for record in self.model.records.values())


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
