"""Which records nobody needs any more: pure decisions, from what was looked up.

A record is given up only for one of two reasons, and each needs two independent witnesses. Either the agent of its
node, which journals everything before it asks for it, does not know the sandbox, and the Pod object does not speak for
it; or the node is dead, and the Pod object is gone too. Nothing is decided from caches alone: `Pod` and `Node` are to
be read from the store for this.

Records without a node or a container are somebody else's, or of the original's making, and never judged here.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum

import msgspec
from msgspec import Struct

from api.core import Node, Pod
from api.ippool import SpiderIPPool, decode_records
from api.wire import Attachment


class Held(Struct, frozen=True):
    """One record of a pool, as far as it can be judged."""

    pool: str
    address: str
    namespace: str
    name: str
    uid: str
    nic: str
    node: str
    cid: str

    def __str__(self) -> str:
        return f"{self.address} of pool {self.pool} (pod {self.namespace}/{self.name}, {self.nic}, node {self.node})"


def held_in(pool: SpiderIPPool) -> tuple[Held, ...]:
    """The records of a pool that can be judged; none where the pool's status cannot be read."""
    try:
        records = decode_records(pool.status.allocated_ips)
    except msgspec.DecodeError:
        return ()
    found = []
    for address, record in records.items():
        namespace, slash, name = record.pod.partition("/")
        if slash and record.pod_uid and record.nic and record.node and record.cid:
            found.append(
                Held(
                    pool=pool.metadata.name,
                    address=address,
                    namespace=namespace,
                    name=name,
                    uid=record.pod_uid,
                    nic=record.nic,
                    node=record.node,
                    cid=record.cid,
                )
            )
    return tuple(found)


class Missing:
    """Of one node: the records that its agent's reports do not know, since when. In memory only."""

    def __init__(self, *, patience: float) -> None:
        """`patience` is how many seconds lie between the first and the last report that both lack a record, at least.

        It has to be longer than an ADD and a store's write take together: a report is older than the records that it
        is compared with.
        """
        self._patience = patience
        self._since: dict[Held, float] = {}

    def __repr__(self) -> str:
        return f"<Missing {len(self._since)} records>"

    def report(self, held: Iterable[Held], known: Iterable[Attachment], *, now: float) -> tuple[Held, ...]:
        """Compare a report with what the pools hold for its node; returns what has been missing for long enough.

        A record must be missing in every report in between, and be there all the time. What is returned starts anew:
        it is returned again only after as long a time.
        """
        attached = {(attachment.nic, attachment.cid) for attachment in known}
        missing = [record for record in held if (record.nic, record.cid) not in attached]
        since = {record: self._since.get(record, now) for record in missing}
        due = tuple(record for record, first in since.items() if now - first >= self._patience)
        self._since = {**since, **dict.fromkeys(due, now)}
        return due


def unknown(record: Held, pod: Pod | None, known: Iterable[Attachment]) -> str:
    """Why a record that its node's agent does not know can go; empty when it stays.

    A pod that is there speaks for its records: an agent that has lost its journal must not cost running pods their
    addresses. Except where the agent knows a newer sandbox of the same NIC: a pod has one at a time.
    """
    if pod is None:
        return "pod gone"
    if pod.metadata.uid != record.uid:
        return "pod replaced"
    if pod.spec.node_name != record.node:
        return "pod elsewhere"
    if any(a.uid == record.uid and a.nic == record.nic and a.cid != record.cid for a in known):
        return "sandbox replaced"
    if not pod.alive and pod.metadata.deletion_timestamp is None:
        return "pod ended"
    return ""


class NodeState(StrEnum):
    """What is known of a node."""

    ALIVE = "alive"
    NOT_READY = "not ready"
    """Perhaps cut off, with its pods running: to be waited for."""
    OUT_OF_SERVICE = "out of service"
    GONE = "gone"


def state_of(node: Node | None) -> NodeState:
    """Judge a node. The taint counts only together with NotReady: a node that is heard is not out of service."""
    if node is None:
        return NodeState.GONE
    if node.ready:
        return NodeState.ALIVE
    return NodeState.OUT_OF_SERVICE if node.out_of_service else NodeState.NOT_READY


def dead(state: NodeState, *, not_ready_for: float, silent_for: float, grace: float) -> bool:
    """Whether a node's kernel can be taken to carry no address any more. All in seconds.

    An operator's word is enough. Otherwise the agent must have been silent for the grace too: as long as it speaks, it
    knows better.
    """
    match state:
        case NodeState.ALIVE:
            return False
        case NodeState.OUT_OF_SERVICE:
            return True
        case NodeState.GONE:
            return silent_for >= grace
        case NodeState.NOT_READY:
            return not_ready_for >= grace and silent_for >= grace


def orphaned(record: Held, pod: Pod | None, *, wall: float, extra: float, terminating: bool) -> str:
    """Why a record of a dead node can go; empty when it stays.

    A pod that still exists there keeps its addresses: the node may only be rebooting. With `terminating`, one that
    should have ended `extra` seconds ago is given up as well (its deletionTimestamp includes its grace period).
    """
    if pod is None:
        return "node dead, pod gone"
    if pod.metadata.uid != record.uid:
        return "node dead, pod replaced"
    deadline = pod.metadata.deletion_timestamp
    if terminating and deadline is not None and _seconds(deadline) + extra < wall:
        return "node dead, pod past its grace"
    return ""


def by_interface(records: Iterable[Held]) -> Mapping[tuple[str, str, str, str], list[Held]]:
    """Group by pod and NIC: what is released together, for the pod's endpoint is changed once."""
    groups: dict[tuple[str, str, str, str], list[Held]] = {}
    for record in records:
        groups.setdefault((record.namespace, record.name, record.uid, record.nic), []).append(record)
    return groups


def _seconds(text: str) -> float:
    """Unix seconds of an API timestamp; the far future for what is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return float("inf")
