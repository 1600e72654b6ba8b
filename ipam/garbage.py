"""Which records nobody needs any more: pure decisions, from what was looked up.

A record goes for a cause and on evidence. The cause is in the API: the pod is gone or over, its name belongs to another
pod, its workload wants it no more. The evidence is that no link carries the address: the agent of its node has looked
at the kernel and does not know the sandbox, or the node is dead. A cause without evidence is only a reason to look.

A record whose name is still wanted by its workload is not freed but kept for the next pod of that name; no link carries
it then. It goes when the workload wants it no more.

Nothing is decided from caches alone: for a verdict Pod, Node and workload are to be read from the store.
"""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

import msgspec
from msgspec import Struct

from api.core import Node, Pod
from api.ippool import AllocationRecord, SpiderIPPool, decode_records
from api.wire import Attachment, Fixed
from ipam.identity import STATEFULSET, VIRTUAL_MACHINE_INSTANCE, statefulset_of


class Held(Struct, frozen=True, gc=False):
    """One record of a pool, exactly as it was seen."""

    pool: str
    address: str
    """Canonical, without prefix length."""
    record: AllocationRecord

    @property
    def namespace(self) -> str:
        """Of the pod; empty where the record names none."""
        return self.record.pod.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Of the pod, or of the virtual machine whose addresses are fixed."""
        return self.record.pod.rpartition("/")[2]

    @property
    def kept(self) -> bool:
        """No link carries the address; it waits for the next pod of the same name."""
        return self.record.kept

    @property
    def placed(self) -> bool:
        """Whether the record says which node's kernel may carry it."""
        return bool(self.record.node)

    def __str__(self) -> str:
        record = self.record
        place = f"node {record.node}" if record.node else "node unknown"
        return f"{self.address} of pool {self.pool} (pod {record.pod}, {record.nic or 'interface unknown'}, {place})"


def held_in(pool: SpiderIPPool) -> list[Held]:
    """The records of a pool; none where its status cannot be read."""
    return [Held(pool.metadata.name, address, record) for address, record in _records(pool).items()]


def _records(pool: SpiderIPPool) -> dict[str, AllocationRecord]:
    try:
        return decode_records(pool.status.allocated_ips)
    except msgspec.DecodeError:
        return {}


# ---------------------------------------------------------------- causes


class Cause(StrEnum):
    """Why a record may not be needed any more."""

    GONE = "pod gone"
    REPLACED = "pod replaced"
    ELSEWHERE = "pod elsewhere"
    ENDED = "pod ended"
    EVICTED = "pod evicted"
    OVERDUE = "pod past its grace"
    WITHOUT_ADDRESSES = "pod runs without addresses"
    SUPERSEDED = "sandbox replaced"
    UNUSED = "pod runs without it"
    UNWANTED = "workload gone or smaller"


class Switches(Struct, frozen=True, kw_only=True):
    """The settings that decide, of the same names as the original's."""

    on_ready_node: bool = True
    """Whether a pod on a ready node loses its addresses before its object is gone: ended, evicted, past its grace."""
    on_not_ready_node: bool = True
    """The same on a node that is not ready."""
    without_addresses: bool = False
    """Whether a running pod without any address in its status loses what is recorded for it."""
    extra_grace: float = 0.0
    """Seconds that are added to a pod's own grace period."""


def overdue_at(pod: Pod, switches: Switches) -> float | None:
    """When a pod that is being deleted should have ended, in Unix seconds; None where it is not being deleted.

    The deletionTimestamp includes the pod's grace period.
    """
    text = pod.metadata.deletion_timestamp
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp() + switches.extra_grace
    except ValueError:
        return float("inf")


def cause_of(held: Held, pod: Pod | None, *, stays: bool, ready: bool, wall: float, switches: Switches) -> Cause | None:
    """What speaks for giving up a record that is not kept; None where its pod still speaks for it.

    Args:
        held: the record.
        pod: the pod of the record's name.
        stays: the pod's addresses are fixed, and its workload wants its name.
        ready: whether the pod's node is ready; it decides which switch holds.
        wall: Unix seconds.
        switches: the settings.
    """
    record = held.record
    if pod is None:
        return Cause.GONE
    if any(ip.ip == held.address for ip in pod.status.pod_ips):
        # Whatever the uids say (a static pod's mirror gets a new one): the pod of that name uses the address.
        own = pod.metadata.uid == record.pod_uid
        return _over(pod, ready=ready, wall=wall, switches=switches) if own and not stays else None
    if pod.metadata.uid != record.pod_uid:
        return Cause.REPLACED
    if record.node and pod.spec.node_name != record.node:
        return Cause.ELSEWHERE
    return None if stays else _over(pod, ready=ready, wall=wall, switches=switches)


def _over(pod: Pod, *, ready: bool, wall: float, switches: Switches) -> Cause | None:
    """Whether a pod that has its record is over though its object is there."""
    early = switches.on_ready_node if ready else switches.on_not_ready_node
    deadline = overdue_at(pod, switches)
    if deadline is not None:
        return Cause.OVERDUE if early and deadline < wall else None
    if not pod.alive:
        if not early:
            return None
        return Cause.EVICTED if pod.status.reason == "Evicted" else Cause.ENDED
    if not pod.status.pod_ips and (
        pod.status.phase == "Unknown" or (pod.status.phase == "Running" and switches.without_addresses)
    ):
        return Cause.WITHOUT_ADDRESSES
    return None


def unused(held: Held, pod: Pod | None) -> bool:
    """Whether another pod of the record's name runs, and does so without this address.

    A pod has addresses in its status when all its interfaces are made. What it wanted of an earlier pod's it has taken
    over by then.
    """
    return (
        pod is not None
        and pod.alive
        and pod.metadata.uid != held.record.pod_uid
        and bool(pod.status.pod_ips)
        and all(ip.ip != held.address for ip in pod.status.pod_ips)
    )


def wanting(held: Held, *, machines: bool) -> tuple[Fixed, ...]:
    """The workloads that could want a record's name, whichever pod it was: their word decides whether it is kept.

    `machines` says whether there may be virtual machines.
    """
    namespace, name = held.namespace, held.name
    found: list[Fixed] = []
    above = statefulset_of(name)
    if namespace and above:
        found.append(Fixed(kind=STATEFULSET, name=above, holder=name))
    if namespace and machines:
        found.append(Fixed(kind=VIRTUAL_MACHINE_INSTANCE, name=name, holder=name))
    return tuple(found)


# ---------------------------------------------------------------- what agents say


class Known:
    """What the agent of a node knows of: everything that it builds, has built, or still has to give back.

    It journals an interface before it asks for addresses. So a report that was made after a record was seen, and does
    not know it, says that the record is nobody's.
    """

    __slots__ = ("_nameless", "_owners", "_sandboxes")

    def __init__(self, attachments: Iterable[Attachment]) -> None:
        """`attachments` are those of one report."""
        self._sandboxes: dict[str, set[str]] = {}
        """By container: its NICs."""
        self._owners: dict[tuple[str, str], set[str]] = {}
        """By pod uid and NIC: the containers."""
        self._nameless = False
        for one in attachments:
            self._sandboxes.setdefault(one.cid, set()).add(one.nic)
            self._owners.setdefault((one.uid, one.nic), set()).add(one.cid)
            self._nameless = self._nameless or not one.uid

    def __repr__(self) -> str:
        return f"<Known {len(self._sandboxes)} sandboxes>"

    def of(self, record: AllocationRecord) -> bool:
        """Whether the agent has, or may have, the sandbox that a record is of."""
        if record.cid:
            nics = self._sandboxes.get(record.cid, set())
            return record.nic in nics if record.nic else bool(nics)
        # Without a container only the pod's uid is left, which not every entry of a journal has.
        return self._nameless or any(
            uid == record.pod_uid and (not record.nic or nic == record.nic) for uid, nic in self._owners
        )

    def newer(self, record: AllocationRecord) -> bool:
        """Whether the agent has another sandbox with the pod's same NIC: a pod has one at a time."""
        cids = self._owners.get((record.pod_uid, record.nic), set())
        return bool(record.cid and record.pod_uid and record.nic and cids - {record.cid})


def witnesses(
    nodes: Iterable[str], *, agents: frozenset[str], heard: Iterable[str], dead: Iterable[str]
) -> frozenset[str]:
    """Whose agents have to deny a record that names no node.

    Args:
        nodes: all nodes that there are.
        agents: those on which an agent's pod is; empty where nothing is known of such pods.
        heard: those whose agents speak.
        dead: those whose kernels carry nothing any more.
    """
    heard = frozenset(heard)
    possible = frozenset(nodes)
    if agents:
        possible &= agents
    return (possible | heard) - frozenset(dead)


# ---------------------------------------------------------------- nodes


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


# ---------------------------------------------------------------- verdicts


class Evidence(StrEnum):
    """Why no link carries the address."""

    DENIED = "no link carries it"
    """The agent of its node, or all agents where it names no node, have looked and do not know its sandbox."""
    DEAD = "node dead"
    KEPT = "kept"
    """It was found so before, and noted in the record."""


class Ruling(StrEnum):
    """What becomes of a record."""

    STAY = "stay"
    FREE = "free"
    KEEP = "keep"
    """It stays for the next pod of its name."""


class Verdict(Struct, frozen=True):
    """A ruling, and why."""

    ruling: Ruling
    cause: Cause | None = None


_STAY = Verdict(Ruling.STAY)


def judge(
    held: Held,
    pod: Pod | None,
    *,
    evidence: Evidence,
    superseded: bool,
    fixed: bool,
    wanted: bool,
    ready: bool,
    wall: float,
    switches: Switches,
) -> Verdict:
    """What becomes of a record, from what the store says now.

    Args:
        held: the record.
        pod: the pod of the record's name.
        evidence: why no link carries the address.
        superseded: whether its agent knows a newer sandbox of the same pod and NIC.
        fixed: whether the pod's addresses are fixed.
        wanted: whether a workload wants the record's name.
        ready: whether the node is ready.
        wall: Unix seconds.
        switches: the settings.
    """
    if held.kept != (evidence is Evidence.KEPT):
        return _STAY  # it has become the other since it was looked at
    if held.kept:
        if unused(held, pod):
            return Verdict(Ruling.FREE, Cause.UNUSED)
        if wanted or (pod is not None and pod.alive):
            return _STAY
        return Verdict(Ruling.FREE, Cause.UNWANTED)
    if superseded and evidence is Evidence.DENIED:
        cause: Cause | None = Cause.SUPERSEDED
    else:
        cause = cause_of(held, pod, stays=fixed and wanted, ready=ready, wall=wall, switches=switches)
        if cause is Cause.WITHOUT_ADDRESSES and evidence is Evidence.DEAD:
            cause = None  # the node may only be rebooting
    if cause is None:
        return _STAY
    return Verdict(Ruling.KEEP if wanted and not unused(held, pod) else Ruling.FREE, cause)
