"""The reflector and its snapshot on a virtual clock, over stores that fail in every way the port knows."""

import asyncio
from random import Random
from typing import Any

import pytest

from api.core import ServiceCIDR
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL, SERVICECIDR, SERVICECIDR_BEFORE, Kind
from api.meta import ObjectMeta
from runtime.store.memory import MemoryStore
from runtime.store.port import Denied, Expired, Listing, NotFound, Store, StoreError, Unavailable
from runtime.store.reflector import Reflector
from runtime.store.snapshot import Change, Snapshot
from runtime.testing.loop import run
from runtime.testing.store import Chances, Decision, Fault, FaultyStore, Script


def pool(name: str, *, disable: bool = False) -> SpiderIPPool:
    return SpiderIPPool(metadata=ObjectMeta(name=name), spec=IPPoolSpec(subnet="10.0.0.0/8", disable=disable))


def synced(reflector: Reflector[SpiderIPPool]) -> bool:
    """A function, since mypy takes a property that was false to stay so."""
    return reflector.is_synced


def test_a_snapshot_shows_each_changed_object_once_and_as_it_is_now() -> None:
    snapshot: Snapshot[str] = Snapshot()
    for key, value in (("a", "1"), ("b", "1"), ("a", "2"), ("c", "1")):
        snapshot.put(key, value)
    snapshot.remove("c")
    snapshot.remove("never")
    changes, cursor = snapshot.changes(0)
    assert changes == [Change("b", "1"), Change("a", "2"), Change("c", None, "1")]
    assert snapshot.changes(cursor) == ([], cursor)
    snapshot.put("c", "2")
    assert snapshot.changes(cursor) == ([Change("c", "2")], cursor + 1)
    assert dict(snapshot.objects) == {"a": "2", "b": "1", "c": "2"}
    assert snapshot.get("a") == "2"
    assert snapshot.get("a", namespace="n") is None


def test_a_subscriber_that_slept_through_too_many_deletions_is_told() -> None:
    snapshot: Snapshot[int] = Snapshot(tombstones=2)
    for number in range(4):
        snapshot.put(str(number), number)
        snapshot.remove(str(number))
    with pytest.raises(Expired):
        snapshot.changes(0)
    changes, _ = snapshot.changes(4)
    assert [change.key for change in changes] == ["2", "3"]


def test_replacing_a_snapshot_changes_only_what_differs() -> None:
    snapshot: Snapshot[str] = Snapshot()
    for key in "abc":
        snapshot.put(key, "1")
    cursor = snapshot.revision
    snapshot.replace({"a": "1", "b": "2", "d": "1"}, equal=["a"])
    assert [(change.key, change.object) for change in snapshot.changes(cursor)[0]] == [
        ("c", None),
        ("b", "2"),
        ("d", "1"),
    ]


def test_waiting_for_a_snapshot_ends_with_the_next_change() -> None:
    async def main() -> None:
        snapshot: Snapshot[str] = Snapshot()
        waiting = [asyncio.create_task(snapshot.wait(0)) for _ in range(3)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        snapshot.put("a", "1")
        assert await asyncio.gather(*waiting[1:]) == [1, 1]
        assert await snapshot.wait(0) == 1

    run(main, seed=1)


def test_who_waits_with_a_time_limit_leaves_nothing_behind() -> None:
    async def main() -> None:
        snapshot: Snapshot[str] = Snapshot()
        for _ in range(100):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(snapshot.wait(0), 1.0)
        assert snapshot.waiting == 0
        waits = [asyncio.create_task(snapshot.wait(0)) for _ in range(2)]
        await asyncio.sleep(1)
        waits[0].cancel()
        assert snapshot.waiting == 2
        snapshot.put("a", "1")
        assert await waits[1] == 1

    run(main, seed=1)


@pytest.mark.parametrize("seed", range(30))
def test_a_reflector_ends_up_with_what_is_stored_whatever_happens(seed: int) -> None:
    async def main() -> None:
        rng = Random(seed)
        memory = MemoryStore(history=20, bookmark_every=5)
        policy = Chances(unavailable=0.2, busy=0.1, watch_cut=0.3, lost_reply=0.1, before=(0, 0.5), after=(0, 0.2))
        faulty = FaultyStore(memory, policy=policy, random=rng)
        reflector = Reflector(faulty, IPPOOL, random=rng)
        task = asyncio.create_task(reflector.run())
        mirror: dict[str, SpiderIPPool] = {}
        cursor = 0
        for step in range(300):
            name = f"p{rng.randrange(6)}"
            try:
                if rng.random() < 0.3:
                    await memory.delete(IPPOOL, name)
                else:
                    await memory.patch(IPPOOL, name, {"spec": {"disable": bool(step % 2)}})
            except NotFound:
                await memory.create(IPPOOL, pool(name))
            await asyncio.sleep(rng.random() * 3)
            if step % 50 == 20:
                faulty.cut()
            if step % 50 == 30:
                memory.compact()
                faulty.heal()
            if rng.random() < 0.2:
                changes, cursor = reflector.snapshot.changes(cursor)
                for change in changes:
                    if change.object is None:
                        mirror.pop(change.key, None)
                    else:
                        mirror[change.key] = change.object
        faulty.policy = Chances()
        await asyncio.sleep(120)
        stored = {item.metadata.name: item for item in memory.peek(IPPOOL)}
        assert dict(reflector.snapshot.objects) == stored
        for change in reflector.snapshot.changes(cursor)[0]:
            if change.object is None:
                mirror.pop(change.key, None)
            else:
                mirror[change.key] = change.object
        assert mirror == stored
        assert reflector.error is None
        assert synced(reflector)
        assert reflector.contact_age() <= 125
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main, seed=seed)


def test_a_store_that_is_down_is_asked_less_and_less_often() -> None:
    async def main() -> None:
        faulty = FaultyStore(MemoryStore(), policy=Chances(), random=Random(1))
        faulty.cut()
        reflector = Reflector(faulty, IPPOOL, random=Random(1))
        task = asyncio.create_task(reflector.run())
        await asyncio.sleep(3600)
        asked = sum(faulty.outcomes.values())
        assert 100 < asked < 300
        assert not synced(reflector)
        assert reflector.error is not None
        assert reflector.contact_age() == float("inf")
        faulty.heal()
        await asyncio.sleep(31)
        assert synced(reflector)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main, seed=1)


def test_a_watch_that_ends_at_once_is_no_hot_loop() -> None:
    async def main() -> None:
        memory = MemoryStore()
        task = asyncio.create_task(Reflector(memory, IPPOOL, random=Random(1)).run())
        for _ in range(60_000):  # an API server behind a bad proxy
            await asyncio.sleep(0.01)
            memory.end_watches()
        assert memory.requests["watch spiderippools"] < 60
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main, seed=1)


def test_busy_is_given_the_time_it_asks_for() -> None:
    async def main() -> None:
        policy = Script(Decision(fault=Fault.BUSY), when=lambda call: call.verb == "list")
        faulty = FaultyStore(MemoryStore(), policy=policy, random=Random(1))
        reflector = Reflector(faulty, IPPOOL, random=Random(1))
        task = asyncio.create_task(reflector.run())
        await asyncio.sleep(0.99)
        assert not synced(reflector)
        await asyncio.sleep(0.6)
        assert synced(reflector)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main, seed=1)


def test_a_transform_trims_and_drops() -> None:
    def trim(item: SpiderIPPool) -> SpiderIPPool | None:
        return None if item.spec.disable else SpiderIPPool(metadata=item.metadata)

    async def main() -> None:
        memory: Store = MemoryStore()
        for name in ("a", "b"):
            await memory.create(IPPOOL, pool(name, disable=name == "b"))
        reflector = Reflector(memory, IPPOOL, random=Random(1), transform=trim)
        task = asyncio.create_task(reflector.run())
        await reflector.synced()
        assert [item.spec.subnet for item in reflector.snapshot.values()] == [""]
        await memory.patch(IPPOOL, "b", {"spec": {"disable": False}})
        await memory.patch(IPPOOL, "a", {"spec": {"disable": True}})
        await asyncio.sleep(1)
        assert list(reflector.snapshot.objects) == ["b"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main, seed=1)


@pytest.mark.parametrize("error", [NotFound, Denied])
def test_a_kind_that_there_need_not_be(error: type[StoreError]) -> None:
    class Without(MemoryStore):
        missing = True

        async def list(self, *args: Any, **options: Any) -> Any:
            if self.missing:
                msg = "no such kind"
                raise error(msg)
            return await super().list(*args, **options)

    async def main() -> None:
        store = Without()
        reflector = Reflector(store, IPPOOL, random=Random(1))
        task = asyncio.create_task(reflector.run())
        await reflector.answered()
        assert not synced(reflector)
        await store.create(IPPOOL, pool("a"))
        store.missing = False  # the cluster was upgraded
        await reflector.synced()
        assert [one.metadata.name for one in reflector.snapshot.values()] == ["a"]
        task.cancel()

    run(main, seed=1)


def test_a_store_that_is_away_has_not_answered() -> None:
    class Away(MemoryStore):
        async def list(self, *_: Any, **__: Any) -> Any:
            msg = "connection refused"
            raise Unavailable(msg)

    async def main() -> None:
        reflector = Reflector(Away(), IPPOOL, random=Random(1))
        task = asyncio.create_task(reflector.run())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await reflector.answered()
        task.cancel()

    run(main, seed=1)


class Versions(MemoryStore):
    """A store that serves a kind in some versions only, and counts the questions."""

    def __init__(self, *served: str) -> None:
        super().__init__()
        self.served = set(served)
        self.asked: list[str] = []

    async def list[T](self, kind: Kind[T], **options: Any) -> Listing[T]:
        self.asked.append(kind.version)
        if kind.version not in self.served:
            msg = f"no {kind.version}"
            raise NotFound(msg)
        return await super().list(kind, **options)


def test_an_older_version_of_a_kind_serves_where_the_newest_is_not_there() -> None:
    async def main() -> None:
        store = Versions("v1beta1")
        await store.create(SERVICECIDR, ServiceCIDR(metadata=ObjectMeta(name="a")))
        reflector = Reflector(store, SERVICECIDR, before=SERVICECIDR_BEFORE, random=Random(1))
        task = asyncio.create_task(reflector.run())
        await reflector.synced()
        assert store.asked == ["v1", "v1beta1"]
        assert list(reflector.snapshot.objects) == ["a"]
        task.cancel()

    run(main, seed=1)


def test_a_kind_that_is_not_there_is_asked_for_seldom_and_at_once_when_it_is_said_to_come() -> None:
    async def main() -> None:
        store = Versions()
        reflector = Reflector(store, SERVICECIDR, before=SERVICECIDR_BEFORE, random=Random(1), topic="cidrs")
        task = asyncio.create_task(reflector.run())
        await reflector.answered()
        assert store.asked == ["v1", "v1beta1", "v1alpha1"]
        assert isinstance(reflector.error, NotFound)
        await asyncio.sleep(600)
        assert len(store.asked) / 3 < 600 / 15 + 10, "no hot loop"
        asked = len(store.asked)
        store.served.add("v1")
        await store.create(SERVICECIDR, ServiceCIDR(metadata=ObjectMeta(name="a")))
        reflector.hurry()
        await asyncio.sleep(0.01)
        assert synced_objects(reflector) == ["a"]
        assert len(store.asked) - asked <= 3
        # Nobody's hurry outlasts the one question that it is for.
        await asyncio.sleep(1)
        assert len(store.asked) - asked <= 3
        task.cancel()

    run(main, seed=1)


def synced_objects(reflector: Reflector[ServiceCIDR]) -> list[str]:
    return list(reflector.snapshot.objects) if reflector.is_synced else []
