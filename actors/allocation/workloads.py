"""What stands above pods, read from the store: whose pod it is, and whether a workload still wants a name's addresses.

`ipam.identity` decides, this module reads. The workload of a pod is looked up once for all pods of the same ReplicaSet
or Job. Whether a name is still wanted is asked only before something is freed, and never of a cache.
"""

from collections import OrderedDict
from typing import Any

from api.annotations import KUBEVIRT_MIGRATION_JOB
from api.core import Pod
from api.kinds import (
    JOB,
    POD,
    REPLICASET,
    STATEFULSET,
    VIRTUALMACHINE,
    VIRTUALMACHINEINSTANCE,
    VIRTUALMACHINEINSTANCEMIGRATION,
    Kind,
)
from api.wire import Fixed, PodRef
from ipam import identity
from ipam.identity import Workload
from ipam.operations import Heir
from runtime.store.port import NotFound, Store

_ABOVE: dict[str, Kind[Any]] = {"ReplicaSet": REPLICASET, "Job": JOB}
_REMEMBERED = 1024
"""ReplicaSets and Jobs whose own owner is remembered; the oldest are forgotten first."""


class Workloads:
    """The workloads of a store, as one replica asks for them."""

    def __init__(self, store: Store, *, statefulset: bool, kubevirt: bool) -> None:
        """`statefulset` and `kubevirt` say whether pods of these kinds have fixed addresses."""
        self._store = store
        self._statefulset = statefulset
        self._kubevirt = kubevirt
        self._above: OrderedDict[str, Workload] = OrderedDict()
        """By uid of what controls a pod: its own controller."""

    def __repr__(self) -> str:
        return f"<Workloads {len(self._above)} remembered>"

    def fixed(self, pod: Pod) -> Fixed | None:
        """The name that a pod's addresses belong to, None where they are the pod's own."""
        return identity.fixed(pod, statefulset=self._statefulset, kubevirt=self._kubevirt)

    async def top(self, pod: Pod) -> Workload:
        """What a pod belongs to in the end. Raises `StoreError`."""
        owner = pod.metadata.controller
        if owner is None:
            return identity.own(pod)
        direct = identity.owned(pod.metadata.namespace, owner)
        if not identity.may_be_owned(direct):
            return direct
        known = self._above.get(owner.uid)
        if known is not None:
            return known
        holder = await self._read(_ABOVE[direct.kind], direct.namespace, direct.name)
        if holder is None or holder.metadata.uid != owner.uid:
            return direct
        above = holder.metadata.controller
        found = direct if above is None else identity.owned(direct.namespace, above)
        self._above[owner.uid] = found
        if len(self._above) > _REMEMBERED:
            self._above.popitem(last=False)
        return found

    async def wanted(self, namespace: str, fixed: Fixed) -> bool:
        """Whether the workload is to have its holder again, by a read that begins now. Raises `StoreError`."""
        match fixed.kind:
            case identity.STATEFULSET:
                statefulset = await self._read(STATEFULSET, namespace, fixed.name)
                return self._statefulset and identity.wants_pod(statefulset, fixed.holder)
            case identity.VIRTUAL_MACHINE_INSTANCE:
                instance = await self._read(VIRTUALMACHINEINSTANCE, namespace, fixed.holder)
                machine = await self._read(VIRTUALMACHINE, namespace, fixed.holder)
                return self._kubevirt and identity.wants_instance(instance, machine)
            case _:
                return False

    async def heir(self, pod: PodRef, fixed: Fixed) -> Heir | None:
        """The other pod of the name of one that goes: its are the addresses then. Only virtual machines have two.

        While one migrates both carry them: the target of a migration that fails goes first, and the source goes on with
        what was the target's by then. Without a migration it is the next pod, which waits for them.

        Raises `StoreError`.
        """
        if fixed.kind != identity.VIRTUAL_MACHINE_INSTANCE:
            return None
        others = [
            one
            for one in (await self._store.list(POD, namespace=pod.namespace)).items
            if one.alive and one.spec.node_name and one.metadata.uid != pod.uid and self.fixed(one) == fixed
        ]
        if not others:
            return None
        # A target is one that says so; whatever is left of two of them is settled by the addresses on their links.
        found = min(others, key=lambda one: KUBEVIRT_MIGRATION_JOB in one.metadata.annotations)
        return Heir(uid=found.metadata.uid, node=found.spec.node_name)

    async def moving(self, pod: Pod) -> bool:
        """Whether a pod is the target of a live migration that runs: until it ends two pods have the same addresses.

        Raises `StoreError`.
        """
        name = pod.metadata.annotations.get(KUBEVIRT_MIGRATION_JOB)
        if not name:
            return False
        migration = await self._read(VIRTUALMACHINEINSTANCEMIGRATION, pod.metadata.namespace, name)
        return migration is not None and not migration.over

    async def _read[T](self, kind: Kind[T], namespace: str, name: str) -> T | None:
        try:
            return await self._store.get(kind, name, namespace=namespace)
        except NotFound:
            return None
