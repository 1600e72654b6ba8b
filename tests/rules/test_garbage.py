"""Which records go: every row of the rules against a table written from the outside, and the cases next to them."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodIP, PodSpec, PodStatus, Taint
from api.ippool import AllocationRecord
from api.meta import ObjectMeta
from api.wire import Attachment, Fixed
from ipam.garbage import (
    Cause,
    Evidence,
    Held,
    Known,
    NodeState,
    Ruling,
    Switches,
    Verdict,
    cause_of,
    dead,
    judge,
    overdue_at,
    state_of,
    unused,
    wanting,
    witnesses,
)

CID = "c" * 12
RECORD = AllocationRecord(pod="default/web-0", pod_uid="u1", nic="eth0", node="n1", cid=CID)
LEGACY = AllocationRecord(pod="default/web-0", pod_uid="u1")
KEPT = AllocationRecord(pod="default/web-0", pod_uid="u1", nic="eth0", node="n1", cid=CID, kept=True)
DELETED = "1970-01-01T00:01:00Z"
"""60 s; the pod's grace period is in it."""


def held(record: AllocationRecord = RECORD, address: str = "10.6.0.5") -> Held:
    return Held("v4", address, record)


def pod(
    *,
    uid: str = "u1",
    node: str = "n1",
    phase: str = "Running",
    reason: str = "",
    restart: str = "Always",
    ips: tuple[str, ...] = ("10.6.0.5",),
    **meta: Any,
) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="web-0", namespace="default", uid=uid, **meta),
        spec=PodSpec(node_name=node, restart_policy=restart),
        status=PodStatus(phase=phase, reason=reason, pod_ips=[PodIP(ip) for ip in ips]),
    )


# ---------------------------------------------------------------- causes

PODS: dict[str, Pod | None] = {
    "none": None,
    "pending": pod(phase="Pending", ips=()),
    "running": pod(),
    "running, other addresses": pod(ips=("10.6.0.99",)),
    "running, no addresses": pod(ips=()),
    "unknown, no addresses": pod(phase="Unknown", ips=()),
    "unknown": pod(phase="Unknown"),
    "succeeded": pod(phase="Succeeded", restart="Never"),
    "succeeded, restarts": pod(phase="Succeeded"),
    "failed": pod(phase="Failed", restart="Never", ips=()),
    "evicted": pod(phase="Failed", reason="Evicted", ips=()),
    "terminating": pod(deletion_timestamp=DELETED),
    "terminating, no addresses": pod(ips=(), deletion_timestamp=DELETED),
    "terminating, date unreadable": pod(deletion_timestamp="soon"),
    "elsewhere": pod(node="n2", ips=("10.6.0.99",)),
    "successor": pod(uid="u2", ips=()),
    "successor runs": pod(uid="u2", ips=("10.6.0.99",)),
    "successor with the address": pod(uid="u2"),
    "successor terminating": pod(uid="u2", ips=(), deletion_timestamp=DELETED),
    "successor ended with the address": pod(uid="u2", phase="Succeeded", restart="Never"),
}


def expected_cause(name: str, *, stays: bool, early: bool, overdue: bool, without_addresses: bool) -> Cause | None:
    """The rules in other words: what the documentation says of each state of a pod."""
    if name == "none":
        return Cause.GONE
    if name in {"successor", "successor runs", "successor terminating"}:
        return Cause.REPLACED
    if name == "elsewhere":
        return Cause.ELSEWHERE
    if name in {"successor with the address", "successor ended with the address"} or stays:
        return None
    if name in {"terminating", "terminating, no addresses"}:
        return Cause.OVERDUE if early and overdue else None
    if name in {"succeeded", "failed"}:
        return Cause.ENDED if early else None
    if name == "evicted":
        return Cause.EVICTED if early else None
    if name == "unknown, no addresses" or (name == "running, no addresses" and without_addresses):
        return Cause.WITHOUT_ADDRESSES
    return None


def test_the_cause_of_every_state_of_a_pod_under_every_switch() -> None:
    rows = 0
    flags = product((False, True), repeat=5)
    for name, (stays, ready, on_ready, on_not_ready, without), wall in product(PODS, flags, (69.0, 71.0)):
        switches = Switches(
            on_ready_node=on_ready, on_not_ready_node=on_not_ready, without_addresses=without, extra_grace=10.0
        )
        expected = expected_cause(
            name,
            stays=stays,
            early=on_ready if ready else on_not_ready,
            overdue=wall > 70.0,
            without_addresses=without,
        )
        found = cause_of(held(), PODS[name], stays=stays, ready=ready, wall=wall, switches=switches)
        assert found == expected, (name, stays, ready, switches, wall)
        rows += 1
    assert rows == len(PODS) * 64


def test_a_grace_period_is_waited_for_once() -> None:
    """A deletionTimestamp is when the pod is to be gone: the grace period is in it already."""
    terminating = pod(deletion_timestamp=DELETED, deletion_grace_period_seconds=30)
    assert overdue_at(terminating, Switches()) == 60.0
    assert overdue_at(pod(), Switches()) is None


@pytest.mark.parametrize("stays", [False, True])
def test_a_pod_without_a_record_of_its_container_statuses_is_recognised_when_it_is_evicted(stays: bool) -> None:
    evicted = pod(phase="Failed", reason="Evicted", ips=())
    found = cause_of(held(), evicted, stays=stays, ready=True, wall=0.0, switches=Switches())
    assert found == (None if stays else Cause.EVICTED)


# ---------------------------------------------------------------- verdicts


def expected_verdict(
    record: AllocationRecord, name: str, *, evidence: Evidence, superseded: bool, fixed: bool, wanted: bool
) -> tuple[Ruling, Cause | None]:
    """Under the default switches, past every grace."""
    successor_runs = name == "successor runs"
    if record.kept != (evidence is Evidence.KEPT):
        return Ruling.STAY, None
    if record.kept:
        if successor_runs:
            return Ruling.FREE, Cause.UNUSED
        over = {
            "none", "succeeded", "failed", "evicted", "terminating", "terminating, no addresses",
            "terminating, date unreadable", "successor terminating", "successor ended with the address",
        }  # fmt: skip
        return (Ruling.FREE, Cause.UNWANTED) if not wanted and name in over else (Ruling.STAY, None)
    if superseded and evidence is Evidence.DENIED:
        cause: Cause | None = Cause.SUPERSEDED
    else:
        cause = expected_cause(name, stays=fixed and wanted, early=True, overdue=True, without_addresses=False)
        if cause is Cause.ELSEWHERE and not record.node:
            cause = None
        if cause is Cause.WITHOUT_ADDRESSES and evidence is Evidence.DEAD:
            cause = None
    if cause is None:
        return Ruling.STAY, None
    return (Ruling.KEEP if wanted and not successor_runs else Ruling.FREE), cause


def test_the_verdict_on_every_record_in_every_state() -> None:
    flags = product((False, True), repeat=3)
    for record, name, evidence, (superseded, fixed, wanted) in product((RECORD, LEGACY, KEPT), PODS, Evidence, flags):
        ruling, cause = expected_verdict(
            record, name, evidence=evidence, superseded=superseded, fixed=fixed, wanted=wanted
        )
        found = judge(
            held(record),
            PODS[name],
            evidence=evidence,
            superseded=superseded,
            fixed=fixed,
            wanted=wanted,
            ready=True,
            wall=1000.0,
            switches=Switches(),
        )
        assert found == Verdict(ruling, cause), (record, name, evidence, superseded, fixed, wanted)


@given(
    name=st.sampled_from(sorted(PODS)),
    evidence=st.sampled_from(Evidence),
    superseded=st.booleans(),
    fixed=st.booleans(),
    ready=st.booleans(),
    wall=st.floats(0, 1e6),
    switches=st.builds(Switches, on_ready_node=st.booleans(), without_addresses=st.booleans()),
)
def test_a_name_that_is_wanted_loses_its_address_only_to_a_sandbox_that_does_without_it(
    *, name: str, evidence: Evidence, superseded: bool, fixed: bool, ready: bool, wall: float, switches: Switches
) -> None:
    verdict = judge(
        held(),
        PODS[name],
        evidence=evidence,
        superseded=superseded,
        fixed=fixed,
        wanted=True,
        ready=ready,
        wall=wall,
        switches=switches,
    )
    assert verdict.ruling is not Ruling.FREE or unused(held(), PODS[name])


def test_a_fixed_pod_that_terminates_without_addresses_keeps_what_it_has() -> None:
    found = judge(
        held(),
        PODS["terminating, no addresses"],
        evidence=Evidence.DENIED,
        superseded=False,
        fixed=True,
        wanted=True,
        ready=True,
        wall=1e9,
        switches=Switches(),
    )
    assert found.ruling is Ruling.STAY


@pytest.mark.parametrize(
    ("name", "machines", "expected"),
    [
        ("web-0", False, [("StatefulSet", "web", "web-0")]),
        ("web-0", True, [("StatefulSet", "web", "web-0"), ("VirtualMachineInstance", "web-0", "web-0")]),
        ("web", False, []),
        ("web", True, [("VirtualMachineInstance", "web", "web")]),
        ("web-01", False, []),
    ],
)
def test_who_could_want_a_name(name: str, machines: bool, expected: list[tuple[str, str, str]]) -> None:
    record = AllocationRecord(pod=f"default/{name}", pod_uid="u1")
    assert wanting(held(record), machines=machines) == tuple(
        Fixed(kind=kind, name=above, holder=holder) for kind, above, holder in expected
    )
    assert wanting(held(AllocationRecord(pod="nonsense-0", pod_uid="u1")), machines=True) == ()


# ---------------------------------------------------------------- what agents say

UIDS, NICS, CIDS = ("u1", "u2", ""), ("eth0", "net1"), (CID, "d" * 12)
ATTACHMENTS = [Attachment(uid, nic, cid) for uid, nic, cid in product(UIDS, NICS, CIDS)]
RECORDS = [
    AllocationRecord(pod="default/web-0", pod_uid=uid, nic=nic, node="n1", cid=cid)
    for uid, nic, cid in product(("u1", ""), (*NICS, ""), (*CIDS, ""))
]


@given(attachments=st.lists(st.sampled_from(ATTACHMENTS), max_size=4), record=st.sampled_from(RECORDS))
def test_what_an_agent_knows_against_the_plain_search(attachments: list[Attachment], record: AllocationRecord) -> None:
    known = Known(attachments)
    if record.cid:
        of = any(a.cid == record.cid and (not record.nic or a.nic == record.nic) for a in attachments)
    else:
        of = any(
            not a.uid or (a.uid == record.pod_uid and (not record.nic or a.nic == record.nic)) for a in attachments
        )
    newer = (
        bool(record.cid and record.pod_uid and record.nic)
        and any(a.uid == record.pod_uid and a.nic == record.nic and a.cid != record.cid for a in attachments)
    )  # fmt: skip
    assert known.of(record) is of
    assert known.newer(record) is newer


def test_who_has_to_deny_a_record_without_a_node() -> None:
    def who(agents: str = "", heard: str = "", dead: str = "") -> str:
        found = witnesses("abc", agents=frozenset(agents), heard=heard, dead=dead)
        return "".join(sorted(found))

    assert who() == "abc"
    assert who(agents="ab") == "ab"
    assert who(agents="ab", heard="c") == "abc"
    assert who(heard="x", dead="a") == "bcx"
    assert who(agents="z") == ""


# ---------------------------------------------------------------- nodes


def node(status: str | None, *taints: str) -> Node:
    conditions = [NodeCondition(type="MemoryPressure", status="False")]
    if status is not None:
        conditions.append(NodeCondition(type="Ready", status=status))
    return Node(spec=NodeSpec(taints=[Taint(key=key) for key in taints]), status=NodeStatus(conditions=conditions))


OUT = "node.kubernetes.io/out-of-service"


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (None, NodeState.GONE),
        (node("True"), NodeState.ALIVE),
        (node(None), NodeState.ALIVE),
        (node("True", OUT), NodeState.ALIVE),
        (node("False"), NodeState.NOT_READY),
        (node("Unknown", "node.kubernetes.io/unreachable"), NodeState.NOT_READY),
        (node("Unknown", OUT), NodeState.OUT_OF_SERVICE),
    ],
)
def test_what_is_known_of_a_node(seen: Node | None, state: NodeState) -> None:
    assert state_of(seen) is state


@pytest.mark.parametrize(
    ("state", "not_ready", "silent", "verdict"),
    [
        (NodeState.ALIVE, 1e9, 1e9, False),
        (NodeState.OUT_OF_SERVICE, 0.0, 0.0, True),
        (NodeState.GONE, 0.0, 119.0, False),
        (NodeState.GONE, 0.0, 120.0, True),
        (NodeState.NOT_READY, 119.0, 1e9, False),
        (NodeState.NOT_READY, 1e9, 119.0, False),
        (NodeState.NOT_READY, 120.0, 120.0, True),
    ],
)
def test_when_a_node_counts_as_dead(state: NodeState, not_ready: float, silent: float, verdict: bool) -> None:
    assert dead(state, not_ready_for=not_ready, silent_for=silent, grace=120.0) is verdict
