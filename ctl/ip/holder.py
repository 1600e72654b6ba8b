"""Whether who has an address by the pool's record is still there: the Pod object, or the node's journal."""

from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from api.core import Pod
from api.ippool import AllocationRecord
from api.kinds import POD
from cni.journal import JournalEntry, State
from ctl import journal
from runtime.store.port import NotFound, Store


class Holder(Struct, frozen=True):
    """What is known of it."""

    live: bool
    """Whether it may use the address now."""
    text: str
    """In words."""


async def holder(store: Store, state_dir: str, record: AllocationRecord) -> Holder:
    """Look: with a state folder at its journal, else at the Pod object, uncached. Raises `StoreError`, `Failure`."""
    if state_dir:
        entries, _ = await anyio.to_thread.run_sync(journal.read, Path(state_dir))
        return by_journal(record, entries)
    namespace, _, name = record.pod.partition("/")
    if not (namespace and name):
        return Holder(live=False, text=f"{record.pod!r} is no pod's name")
    try:
        return by_pod(record, await store.get(POD, name, namespace=namespace))
    except NotFound:
        return by_pod(record, None)


def by_pod(record: AllocationRecord, pod: Pod | None) -> Holder:
    """What the Pod object says. One that is being deleted may still have its sandbox."""
    if pod is None:
        return Holder(live=False, text="there is no such pod any more")
    if pod.metadata.uid != record.pod_uid:
        return Holder(live=False, text=f"that pod has been replaced by one with uid {pod.metadata.uid}")
    where = f" on node {pod.spec.node_name}" if pod.spec.node_name else ""
    if record.kept:
        return Holder(live=False, text=f"the pod is {pod.phase_text}{where}, and no link carries the address")
    return Holder(live=True, text=f"the pod is {pod.phase_text}{where}")


def by_journal(record: AllocationRecord, entries: list[JournalEntry]) -> Holder:
    """What the journal of the node says."""
    for entry in entries:
        if entry.pod.uid == record.pod_uid and entry.container_id.startswith(record.cid) and entry.ifname == record.nic:
            what = f"container {entry.container_id[:12]} is in the journal as {entry.state}"
            return Holder(live=entry.state is not State.RELEASING, text=what)
    return Holder(live=False, text="the journal knows no such container")
