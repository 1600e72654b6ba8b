"""The ledger of one pool as a state machine against a naive model.

The model knows nothing of cursors, heaps, indexes or undo lists: it is a dict from address text to the fields of a
record, and every question is answered by looking at all of it.
"""

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from api.ippool import IPPoolStatus, SpiderIPPool
from ipam.ledger import Ledger
from ipam.operations import Claim, Operation, Outcome, Surrender
from ipam.ranges import parse_ranges
from tests.rules.ipam_world import (
    batches,
    load,
    make_pool,
    one,
    plain,
    stored,
    uids,
)

type Records = dict[str, dict[str, Any]]


class Model:
    """What a ledger has to do, in the shortest way to say it."""

    def __init__(self, grantable: list[str], kept: list[str], max_records: int) -> None:
        self.grantable = grantable
        """Ascending."""
        self.kept = kept
        """What a holder may keep: reserved addresses too."""
        self.max_records = max_records
        self.disable = False
        self.records: Records = {}

    def matching(self, uid: str, nic: str) -> list[str]:
        mine = [ip for ip, record in self.records.items() if record["podUid"] == uid]
        exact = [ip for ip in mine if self.records[ip].get("nic") == nic]
        unnamed = [ip for ip in mine if "nic" not in self.records[ip]]
        return exact or (unnamed if len(mine) == len(unnamed) == 1 else [])

    def surrender(self, operation: Surrender) -> str | tuple[str, ...]:
        """The addresses, or the predicate that refuses."""
        gone = [
            ip
            for ip in self.matching(operation.uid, operation.nic)
            if operation.cid in ("", self.records[ip].get("cid", operation.cid))
        ]
        if any(operation.node not in ("", self.records[ip].get("node", operation.node)) for ip in gone):
            return "node"
        for ip in gone:
            del self.records[ip]
        return tuple(gone)

    def claim(self, operation: Claim) -> str:
        """The address, or the predicate that refuses."""
        ours = {"nic": operation.nic, "node": operation.node, "cid": operation.cid}
        held = self.matching(operation.uid, operation.nic)
        for ip in held:
            if ip in self.kept:
                self.records[ip] |= ours
                return ip
        if self.disable:
            return "disable"
        if len(self.records) - len(held) >= self.max_records:
            return "max-records"
        for ip in self.grantable:
            if ip not in self.records:
                for old in held:
                    del self.records[old]
                self.records[ip] = {"pod": operation.pod, "podUid": operation.uid, **ours}
                return ip
        return "full"

    def apply(self, operations: list[Operation]) -> list[str | tuple[str, ...]]:
        answers: dict[int, str | tuple[str, ...]] = {}
        for at, operation in enumerate(operations):
            if isinstance(operation, Surrender):
                answers[at] = self.surrender(operation)
        for at, operation in enumerate(operations):
            if isinstance(operation, Claim):
                answers[at] = self.claim(operation)
        return [answers[at] for at in range(len(operations))]


class LedgerMachine(RuleBasedStateMachine):
    """Six addresses, of which one is excluded and one reserved, and eight possible holders: scarcity is normal."""

    MAX_RECORDS = 6
    KEPT = tuple(f"10.0.0.{number}" for number in (1, 3, 4, 5, 6, 20))

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(["10.0.0.1-10.0.0.6", "10.0.0.20"], exclude=["10.0.0.2"])
        self.reserved = parse_ranges(["10.0.0.4"], 4)
        self.ledger = self.load(self.pool)
        self.model = Model(
            grantable=[ip for ip in self.KEPT if ip != "10.0.0.4"], kept=list(self.KEPT), max_records=self.MAX_RECORDS
        )
        self.outcome: Outcome | None = None
        self.before: Records = {}

    def load(self, pool: SpiderIPPool) -> Ledger:
        return load(pool, reserved=self.reserved, max_records=self.MAX_RECORDS)

    def reload(self) -> None:
        self.ledger = self.load(structs.replace(self.pool, status=self.ledger.status()))
        self.outcome = None

    @rule(operations=batches)
    def a_batch(self, operations: list[Operation]) -> None:
        self.before = json.loads(json.dumps(self.model.records))
        replayed = self.load(structs.replace(self.pool, status=self.ledger.status())).apply(operations)
        self.outcome = self.ledger.apply(operations)
        assert [plain(answer) for answer in self.outcome.answers] == self.model.apply(operations)
        assert replayed.answers == self.outcome.answers, "a replay on a fresh load answers the same"
        if self.model.records != self.before:
            assert self.outcome.changed
        if not self.outcome.changed:
            assert self.outcome.undo == ()

    @rule(operations=batches)
    def one_by_one_is_the_same_as_a_batch(self, operations: list[Operation]) -> None:
        singly = self.load(structs.replace(self.pool, status=self.ledger.status()))
        order = [it for it in operations if isinstance(it, Surrender)] + [
            it for it in operations if isinstance(it, Claim)
        ]
        answers = [one(singly, operation) for operation in order]
        self.outcome = self.ledger.apply(order)
        self.before = json.loads(json.dumps(self.model.records))
        self.model.apply(order)
        assert list(self.outcome.answers) == answers
        assert singly.status() == self.ledger.status()

    @precondition(lambda self: self.outcome is not None)
    @rule()
    def the_write_failed(self) -> None:
        assert self.outcome is not None
        self.ledger.revert(self.outcome)
        self.model.records = self.before
        with pytest.raises(ValueError, match="only once"):
            self.ledger.revert(self.outcome)
        self.outcome = None

    @rule(texts=st.sets(st.sampled_from([*KEPT, "10.0.0.2", "10.9.9.9"]), max_size=3))
    def the_reserved_addresses_change(self, texts: set[str]) -> None:
        self.reserved = parse_ranges(sorted(texts), 4)
        self.model.grantable = [ip for ip in self.KEPT if ip not in texts]
        self.ledger.reserve(self.reserved)

    @rule()
    def the_owner_restarts(self) -> None:
        self.reload()

    @rule(number=st.sampled_from([1, 2, 3, 4, 5, 9]), uid=uids, extra=st.sampled_from([{}, {"vendor": {"a": [1]}}]))
    def a_foreign_program_writes_a_record(self, number: int, uid: str, extra: dict[str, Any]) -> None:
        ip = f"10.0.0.{number}"
        if ip in self.model.records:
            return
        self.model.records[ip] = {"pod": f"ns/{uid}", "podUid": uid, **extra}
        self.become(self.model.records)

    @rule()
    def a_foreign_program_drops_our_keys(self) -> None:
        for record in self.model.records.values():
            for key in ("nic", "node", "cid"):
                record.pop(key, None)
        self.become(self.model.records)

    @rule()
    def the_pool_is_switched_off_or_on(self) -> None:
        self.model.disable = not self.model.disable
        self.pool = make_pool(["10.0.0.1-10.0.0.6", "10.0.0.20"], exclude=["10.0.0.2"], disable=self.model.disable)
        self.reload()

    def become(self, records: Records) -> None:
        """Another version of the object came from the store."""
        text = json.dumps(records) if records else None
        self.ledger = self.load(structs.replace(self.pool, status=IPPoolStatus(allocated_ips=text)))
        self.outcome = None

    @invariant()
    def what_is_stored_is_what_the_model_says(self) -> None:
        assert stored(self.ledger) == self.model.records
        status = self.ledger.status()
        assert status.allocated_ip_count == len(self.model.records)
        assert status.total_ip_count == 6
        fresh = self.load(structs.replace(self.pool, status=status))
        assert fresh.records == self.ledger.records
        assert fresh.object_bytes == self.ledger.object_bytes

    @invariant()
    def holders_are_found(self) -> None:
        for uid in ("u1", "u2", "u3", "u4", ""):
            held = {it.address.partition("/")[0] for it in self.ledger.held(uid)}
            assert held == {ip for ip, record in self.model.records.items() if record["podUid"] == uid}
            for nic in ("eth0", "net1"):
                found = self.ledger.find(uid, nic)
                assert ([found.address.partition("/")[0]] if found else []) == self.model.matching(uid, nic)[:1]


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
