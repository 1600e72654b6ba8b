"""The store in memory is deterministic, and its faulty wrapper does to a request exactly what it says."""

import asyncio
from random import Random

import pytest

from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL, POD
from api.meta import ObjectMeta
from runtime.store.memory import MemoryStore
from runtime.store.port import Ambiguous, Busy, Conflict, Expired, StoreError, Unavailable
from runtime.testing.loop import run
from runtime.testing.store import FOREIGN_ANNOTATION, Chances, Decision, Fault, FaultyStore, Script

POOL = SpiderIPPool(metadata=ObjectMeta(name="p"), spec=IPPoolSpec(subnet="10.0.0.0/8"))
CHANGE = {"status": {"totalIPCount": 1}}


async def scripted(*decisions: Decision | Fault) -> tuple[MemoryStore, FaultyStore, SpiderIPPool]:
    memory = MemoryStore()
    created = await memory.create(IPPOOL, POOL)
    return memory, FaultyStore(memory, policy=Script(*decisions), random=Random(1)), created


def total(memory: MemoryStore) -> int | None:
    return memory.peek(IPPOOL)[0].status.total_ip_count


@pytest.mark.parametrize(
    ("fault", "error", "applied"),
    [
        (Fault.NONE, None, True),
        (Fault.LOST_REQUEST, Ambiguous, False),
        (Fault.LOST_REPLY, Ambiguous, True),
        (Fault.UNAVAILABLE, Unavailable, False),
        (Fault.BUSY, Busy, False),
        (Fault.DUPLICATE, None, True),
        (Fault.CONFLICT, Conflict, False),
    ],
)
def test_a_fault_says_the_truth_about_a_write(fault: Fault, error: type[StoreError] | None, applied: bool) -> None:
    async def main() -> None:
        memory, faulty, created = await scripted(fault)
        version = created.metadata.resource_version
        seen: type[StoreError] | None = None
        try:
            await faulty.patch(IPPOOL, "p", CHANGE, subresource="status", resource_version=version)
        except StoreError as caught:
            seen = type(caught)
        assert seen is error
        assert (total(memory) == 1) is applied
        assert faulty.outcomes["patch", "spiderippools", fault.value] == 1
        foreign = memory.peek(IPPOOL)[0].metadata.annotations
        assert (FOREIGN_ANNOTATION in foreign) is (fault is Fault.CONFLICT)

    run(main, seed=1)


def test_a_late_write_lands_after_the_caller_has_gone_on() -> None:
    async def main() -> None:
        memory, faulty, created = await scripted(Decision(fault=Fault.LATE, late=5.0))
        with pytest.raises(Ambiguous):
            await faulty.patch(IPPOOL, "p", CHANGE, subresource="status")
        await asyncio.sleep(4.9)
        assert total(memory) is None
        await faulty.settle()
        assert total(memory) == 1
        fenced, faulty, created = await scripted(Decision(fault=Fault.LATE, late=5.0))
        version = created.metadata.resource_version
        with pytest.raises(Ambiguous):
            await faulty.patch(IPPOOL, "p", CHANGE, subresource="status", resource_version=version)
        other = {"status": {"totalIPCount": 2}}
        await faulty.patch(IPPOOL, "p", other, subresource="status", resource_version=version)
        await faulty.settle()
        assert total(fenced) == 2

    run(main, seed=1)


def test_a_duplicate_without_a_fence_is_applied_twice() -> None:
    async def main() -> None:
        memory, faulty, _ = await scripted(Fault.DUPLICATE)
        await faulty.delete(IPPOOL, "p")
        assert memory.requests["delete spiderippools"] == 2

    run(main, seed=1)


def test_a_cut_loses_the_reply_that_is_on_its_way() -> None:
    async def main() -> None:
        memory, faulty, _ = await scripted(Decision(after=2.0))
        task = asyncio.create_task(faulty.patch(IPPOOL, "p", CHANGE, subresource="status"))
        await asyncio.sleep(1)
        faulty.cut()
        with pytest.raises(Ambiguous):
            await task
        assert total(memory) == 1
        with pytest.raises(Unavailable):
            await faulty.get(IPPOOL, "p")
        faulty.heal()
        assert (await faulty.get(IPPOOL, "p")).status.total_ip_count == 1

    run(main, seed=1)


def test_a_cut_ends_a_quiet_watch() -> None:
    async def main() -> None:
        memory, faulty, _ = await scripted()
        async with faulty.watch(IPPOOL, since=str(memory.revision)) as events:
            asyncio.get_running_loop().call_later(3, faulty.cut)
            assert [event async for event in events] == []
        await faulty.aclose()

    run(main, seed=1)


def test_the_same_seed_gives_the_same_documents() -> None:
    async def main(seed: int) -> str:
        memory = MemoryStore()
        policy = Chances(lost_request=0.1, lost_reply=0.1, late=0.1, duplicate=0.1, conflict=0.1, before=(0, 1))
        stores = [FaultyStore(memory, policy=policy, random=Random(seed + n)) for n in range(3)]
        await memory.create(IPPOOL, POOL)

        async def work(store: FaultyStore) -> None:
            for _ in range(30):
                try:
                    pool = await store.get(IPPOOL, "p")
                    change = {"status": {"totalIPCount": (pool.status.total_ip_count or 0) + 1}}
                    version = pool.metadata.resource_version
                    await store.patch(IPPOOL, "p", change, subresource="status", resource_version=version)
                except StoreError:
                    await asyncio.sleep(0.1)
            await store.settle()

        await asyncio.gather(*(work(store) for store in stores))
        return f"{memory.revision} {memory.documents(IPPOOL)} {[sorted(store.outcomes.items()) for store in stores]}"

    first, again, other = (run(lambda seed=seed: main(seed), seed=seed) for seed in (5, 5, 6))  # type: ignore[misc]
    assert first == again
    assert first != other


def test_a_watch_that_is_not_read_expires_and_holds_nothing() -> None:
    async def main() -> None:
        memory = MemoryStore(history=5)
        await memory.create(IPPOOL, POOL)
        async with memory.watch(IPPOOL, since=str(memory.revision)) as events:
            for number in range(10):
                await memory.patch(IPPOOL, "p", {"status": {"totalIPCount": number}}, subresource="status")
            with pytest.raises(Expired):
                await anext(events)
        with pytest.raises(Expired):
            async with memory.watch(IPPOOL, since="2"):
                pass
        with pytest.raises(Expired):
            async with memory.watch(POD, since=str(memory.revision + 1)):
                pass

    run(main, seed=1)
