"""What the collector sees of the cluster from the reflectors' snapshots, and the settings that it decides by.

Snapshots lag. They say where to look, and never that something goes.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from msgspec import Struct

from actors.pools.peers import Wanted
from api.core import Node, Pod, StatefulSet
from api.ippool import SpiderIPPool
from api.kubevirt import VirtualMachine
from api.wire import Fixed
from ipam import identity
from ipam.garbage import Held, NodeState, Switches, state_of
from runtime.store.snapshot import Snapshot

_ONCE = frozenset({"ReplicaSet", "DaemonSet", "Job"})
"""Kinds that give every pod a name of its own."""


class Rules(Struct, frozen=True):
    """The settings that decide. All in seconds."""

    switches: Switches = Switches()
    node_grace: float = 120.0
    interval: float = 600.0
    """Between two looks at everything."""
    scan_gap: float = 1.0
    """Between two looks at everything that somebody asks for, at least."""


class Sight(Struct, frozen=True, kw_only=True):
    """The snapshots, and the ways to agents."""

    pools: Callable[[], Mapping[str, SpiderIPPool]]
    pods: Snapshot[Pod]
    nodes: Snapshot[Node]
    statefulsets: Snapshot[StatefulSet]
    machines: Snapshot[VirtualMachine]
    keeps_statefulsets: bool
    keeps_machines: bool
    """Whether pods of these have fixed addresses."""
    agents: Callable[[], frozenset[str]]
    """The nodes on which an agent's pod is, as far as such pods are known."""
    fixed: Callable[[Pod], Fixed | None]
    """The name that a pod's addresses belong to."""
    mine: Callable[[], bool]
    """Whether collecting is this replica's chore."""
    complete: Callable[[], bool]
    """Whether all replicas can be heard, and through them all agents."""
    synced: Callable[[], Awaitable[None]]
    """Returns when the snapshots are filled."""
    ask: Callable[[str, Wanted], Coroutine[Any, Any, None]]
    """Puts a question to an agent by way of a replica."""
    sweep: Callable[[], Coroutine[Any, Any, None]]
    """Has the replica whose chore it is look at everything."""

    def snapshots(self) -> Mapping[str, Snapshot[Any]]:
        """Those whose changes matter."""
        return {"pods": self.pods, "nodes": self.nodes, "sets": self.statefulsets, "machines": self.machines}

    def state(self, node: str) -> NodeState:
        """What is known of a node."""
        return state_of(self.nodes.get(node))

    def pod(self, held: Held) -> Pod | None:
        """The pod of a record's name."""
        return self.pods.get(held.name, namespace=held.namespace)

    def wants(self, held: Held) -> bool:
        """Whether a workload that is known wants a record's name. One that is not known is read before that counts."""
        namespace, name = held.namespace, held.name
        above = identity.statefulset_of(name)
        statefulset = self.statefulsets.get(above, namespace=namespace) if above else None
        if self.keeps_statefulsets and identity.wants_pod(statefulset, name):
            return True
        return self.keeps_machines and identity.wants_instance(None, self.machines.get(name, namespace=namespace))

    def stays(self, held: Held, pod: Pod | None) -> bool:
        """Whether a pod's addresses are fixed, and its name is wanted."""
        return pod is not None and self.fixed(pod) is not None and self.wants(held)

    def misnamed(self, records: Iterable[Held]) -> set[Held]:
        """Those that name no node, and the uid of a pod whose addresses go by another name."""
        suspects = [held for held in records if not held.placed and not held.kept and self.pod(held) is None]
        uids = {held.record.pod_uid for held in suspects}
        if not uids:
            return set()
        names: dict[str, str] = {}
        for pod in self.pods.values():
            if pod.metadata.uid in uids:
                fixed = self.fixed(pod)
                holder = pod.metadata.name if fixed is None else fixed.holder
                names[pod.metadata.uid] = f"{pod.metadata.namespace}/{holder}"
        return {held for held in suspects if names.get(held.record.pod_uid, held.record.pod) != held.record.pod}


def may_end_something(pod: Pod) -> bool:
    """Whether a pod's change may be the end of a record: its own, or that of an earlier pod of its name."""
    if not pod.alive or (pod.status.phase == "Running" and not pod.status.pod_ips):
        return True
    owner = pod.metadata.controller
    return owner is None or owner.kind not in _ONCE


def workloads_above(pod: str) -> tuple[str, ...]:
    """The keys of the workloads that could want a name: the virtual machine of that name, and its StatefulSet."""
    namespace, _, name = pod.rpartition("/")
    above = identity.statefulset_of(name)
    return (pod, f"{namespace}/{above}") if above else (pod,)
