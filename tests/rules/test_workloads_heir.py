"""Whose the addresses of a virtual machine are when one of its two pods goes."""

from actors.allocation.workloads import Workloads
from api.annotations import KUBEVIRT_MIGRATION_JOB
from api.core import Pod, PodSpec
from api.kinds import POD
from api.meta import ObjectMeta, OwnerReference
from api.wire import Fixed, PodRef
from ipam import identity
from ipam.operations import Heir
from runtime.store.memory import MemoryStore
from runtime.testing import run

VM = Fixed(kind=identity.VIRTUAL_MACHINE_INSTANCE, name="vm", holder="vm")


def launcher(name: str, machine: str, node: str, *, target: bool = False) -> Pod:
    owner = OwnerReference(
        api_version="kubevirt.io/v1", kind="VirtualMachineInstance", name=machine, uid=machine, controller=True
    )
    notes = {KUBEVIRT_MIGRATION_JOB: "move"} if target else {}
    meta = ObjectMeta(name=name, namespace="default", owner_references=[owner], annotations=notes)
    return Pod(metadata=meta, spec=PodSpec(node_name=node))


def test_the_source_of_a_migration_is_the_heir_of_its_target_and_nobody_elses() -> None:
    async def main() -> None:
        store = MemoryStore()
        workloads = Workloads(store, statefulset=True, kubevirt=True)
        target = await store.create(POD, launcher("target", "vm", "n2", target=True))
        gone = PodRef(namespace="default", name="target", uid=target.metadata.uid)
        await store.create(POD, launcher("other", "another", "n3"))
        await store.create(POD, launcher("unbound", "vm", ""))
        assert await workloads.heir(gone, VM) is None
        await store.create(POD, launcher("next", "vm", "n4", target=True))
        source = await store.create(POD, launcher("source", "vm", "n1"))
        assert await workloads.heir(gone, VM) == Heir(uid=source.metadata.uid, node="n1")
        named = Fixed(kind=identity.STATEFULSET, name="web", holder="web-0")
        assert await workloads.heir(gone, named) is None

    run(main, seed=1)
