"""The audit of SpiderEndpoints mends what it saw, and nothing that was written since."""

from random import Random

import anyio
import pytest

from actors.allocation.endpoint import Endpoints
from actors.allocation.workloads import Workloads
from actors.collection.audit import EndpointAudit
from api.core import Pod, PodSpec
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, encode_records
from api.kinds import ENDPOINT, IPPOOL, POD, Kind
from api.meta import ObjectMeta
from ipam.garbage import held_in
from runtime.store.memory import MemoryStore
from runtime.store.port import Listing
from runtime.testing import run
from runtime.testing.store import FaultyStore
from tests.rules.test_endpoints import Recorder, holder, nic

ON_A_NODE = PodSpec(node_name="n1")


async def record(truth: MemoryStore, pod: Pod, address: str, cid: str) -> None:
    found = AllocationRecord(pod="default/web", pod_uid=pod.metadata.uid, nic="eth0", node="n1", cid=cid)
    change = {"status": {"allocatedIPs": encode_records({address: found})}}
    await truth.patch(IPPOOL, "v4", change, subresource="status")


@pytest.mark.parametrize("shown", [True, False], ids=["outdated", "missing"])
@pytest.mark.parametrize("overtaken", [True, False])
def test_what_a_newer_sandbox_is_given_meanwhile_stays(shown: bool, overtaken: bool) -> None:
    class Overtaking(FaultyStore):
        """A newer sandbox is given another address right after the pools were read."""

        async def list[T](self, kind: Kind[T], **options: object) -> Listing[T]:
            found = await super().list(kind, **options)  # type: ignore[arg-type]
            if overtaken and kind is IPPOOL:
                await record(truth, pod, "10.0.0.3", "new")
                await Endpoints(truth).write(holder(pod), node="n1", nics=[nic(address="10.0.0.3/24")])
            return found

    truth = MemoryStore()
    pod = Pod(metadata=ObjectMeta(name="web", namespace="default"), spec=ON_A_NODE)
    addresses: list[str | None] = []

    async def main() -> None:
        nonlocal pod
        pod = await truth.create(POD, pod)
        spec = IPPoolSpec(subnet="10.0.0.0/24", ips=["10.0.0.2-10.0.0.9"], gateway="10.0.0.1")
        await truth.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="v4"), spec=spec))
        await record(truth, pod, "10.0.0.2", "old")
        if shown:
            await Endpoints(truth).write(holder(pod), node="n1", nics=[nic(address="10.0.0.9/24")])
        store = Overtaking(truth, policy=Recorder(), random=Random(1))
        audit = EndpointAudit(
            store,
            endpoints=Endpoints(store),
            workloads=Workloads(store, statefulset=True, kubevirt=True),
            namespaces=lambda: ["default"],
            clean_outdated=True,
        )
        before = anyio.current_time()
        await audit.run([held for pool in (await truth.list(IPPOOL)).items for held in held_in(pool)])
        assert anyio.current_time() > before, "it looks twice"
        (found,) = (await truth.list(ENDPOINT)).items
        addresses.extend(detail.ipv4 for detail in found.status.current.ips)

    run(main, seed=1)
    assert addresses == ["10.0.0.3/24" if overtaken else "10.0.0.2/24"]
