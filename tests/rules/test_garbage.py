"""Which records go: every reason, and for each the case next to it that stays."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Taint
from api.ippool import AllocationRecord, IPPoolStatus, SpiderIPPool, encode_records
from api.meta import ObjectMeta
from api.wire import Attachment
from ipam.garbage import Held, Missing, NodeState, dead, held_in, orphaned, state_of, unknown

RECORD = Held(
    pool="v4", address="10.6.0.5", namespace="default", name="web", uid="u1", nic="eth0", node="n1", cid="c" * 12
)


def pod(*, uid: str = "u1", node: str = "n1", phase: str = "Running", restart: str = "Always", **meta: Any) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="web", namespace="default", uid=uid, **meta),
        spec=PodSpec(node_name=node, restart_policy=restart),
        status=PodStatus(phase=phase),
    )


@pytest.mark.parametrize(
    ("found", "known", "reason"),
    [
        (None, (), "pod gone"),
        (pod(uid="u2"), (), "pod replaced"),
        (pod(node="n2"), (), "pod elsewhere"),
        (pod(phase="Succeeded", restart="Never"), (), "pod ended"),
        (pod(), (Attachment(uid="u1", nic="eth0", cid="d" * 12),), "sandbox replaced"),
        (pod(), (), ""),
        (pod(), (Attachment(uid="u1", nic="net1", cid="d" * 12),), ""),
        (pod(), (Attachment(uid="u2", nic="eth0", cid="d" * 12),), ""),
        (pod(phase="Pending"), (), ""),
        (pod(deletion_timestamp="2025-01-01T00:00:00Z"), (), ""),
    ],
)
def test_a_record_that_its_agent_does_not_know(found: Pod | None, known: tuple[Attachment, ...], reason: str) -> None:
    assert unknown(RECORD, found, known) == reason


@pytest.mark.parametrize(
    ("found", "wall", "terminating", "reason"),
    [
        (None, 0.0, True, "node dead, pod gone"),
        (pod(uid="u2"), 0.0, True, "node dead, pod replaced"),
        (pod(deletion_timestamp="1970-01-01T00:01:00Z"), 71.0, True, "node dead, pod past its grace"),
        (pod(deletion_timestamp="1970-01-01T00:01:00Z"), 69.0, True, ""),
        (pod(deletion_timestamp="1970-01-01T00:01:00Z"), 71.0, False, ""),
        (pod(deletion_timestamp="soon"), 1e9, True, ""),
        (pod(), 1e9, True, ""),
        (pod(phase="Failed"), 1e9, True, ""),
    ],
)
def test_a_record_of_a_dead_node(found: Pod | None, wall: float, terminating: bool, reason: str) -> None:
    assert orphaned(RECORD, found, wall=wall, extra=10.0, terminating=terminating) == reason


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


def test_only_records_with_all_that_we_write_are_judged() -> None:
    full = AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="n1", cid="c" * 12)
    records = {
        "10.6.0.5": full,
        "10.6.0.6": AllocationRecord(pod="default/web", pod_uid="u1"),
        "10.6.0.7": AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", cid="c" * 12),
        "10.6.0.8": AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="n1"),
        "10.6.0.9": AllocationRecord(pod="nonsense", pod_uid="u1", nic="eth0", node="n1", cid="c" * 12),
    }
    pool = SpiderIPPool(metadata=ObjectMeta(name="v4"), status=IPPoolStatus(allocated_ips=encode_records(records)))
    assert held_in(pool) == (RECORD,)
    assert held_in(SpiderIPPool(status=IPPoolStatus(allocated_ips="{nonsense"))) == ()


@given(
    reports=st.lists(
        st.tuples(st.floats(min_value=1, max_value=90), st.booleans(), st.booleans()), min_size=1, max_size=20
    )
)
def test_a_record_is_due_only_after_a_minute_of_reports_that_all_lack_it(
    reports: list[tuple[float, bool, bool]],
) -> None:
    """Against the naive rule: look back over the reports. Each is (pause before it, record there, sandbox known)."""
    missing = Missing(patience=60.0)
    now = 0.0
    since: float | None = None
    for pause, there, known in reports:
        now += pause
        attachments = [Attachment(uid="u1", nic="eth0", cid="c" * 12)] if known else []
        due = missing.report([RECORD] if there else [], attachments, now=now)
        if not there or known:
            since = None
        elif since is None:
            since = now
        expected = since is not None and now - since >= 60.0
        assert due == ((RECORD,) if expected else ())
        if expected:
            since = now
