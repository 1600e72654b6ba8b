"""What only a file can get wrong: other processes, power cuts, cancelled callers, growth."""

import asyncio
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from runtime.store.port import Busy, Conflict, EventType, Expired, Unavailable
from runtime.store.sqlite import SQLiteStore
from runtime.store.sqlite_file import SQLiteFile

POOL = SpiderIPPool(metadata=ObjectMeta(name="p"), spec=IPPoolSpec(subnet="10.0.0.0/8"))

INCREMENT = """
import asyncio, sys
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from api.ippool import SpiderIPPool, IPPoolSpec
from runtime.store.port import AlreadyExists, Conflict
from runtime.store.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    try:
        await store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="p"), spec=IPPoolSpec(subnet="10.0.0.0/8")))
    except AlreadyExists:
        pass
    for _ in range(int(sys.argv[2])):
        while True:
            pool = await store.get(IPPOOL, "p")
            change = {"status": {"totalIPCount": (pool.status.total_ip_count or 0) + 1}}
            version = pool.metadata.resource_version
            try:
                await store.patch(IPPOOL, "p", change, subresource="status", resource_version=version)
                break
            except Conflict:
                await asyncio.sleep(0.001)
    await store.aclose()

asyncio.run(main())
"""


async def test_processes_share_a_new_file_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    command = (sys.executable, "-c", INCREMENT, str(path), "25")
    processes = [await asyncio.create_subprocess_exec(*command, cwd=Path.cwd()) for _ in range(4)]
    assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * 4
    store = SQLiteStore(path)
    assert (await store.get(IPPOOL, "p")).status.total_ip_count == 100
    listing = await store.list(IPPOOL)
    assert listing.revision == "102"
    await store.aclose()


@pytest.mark.parametrize("poll", [0.05, 3600.0])
async def test_a_watch_hears_of_another_connections_write_by_looking_and_of_its_own_at_once(
    tmp_path: Path, poll: float
) -> None:
    one, two = SQLiteStore(tmp_path / "s", poll=poll), SQLiteStore(tmp_path / "s")
    await one.create(IPPOOL, POOL)
    since = (await one.list(IPPOOL)).revision
    async with one.watch(IPPOOL, since=since) as events:
        for number, store in enumerate((one, two) * 3 if poll < 1 else (one, one, one)):
            await store.patch(IPPOOL, "p", {"status": {"totalIPCount": number}}, subresource="status")
            async with asyncio.timeout(30):
                event = await anext(events)
            assert event.object is not None
            assert event.object.status.total_ip_count == number
        if poll > 1:
            await two.patch(IPPOOL, "p", {"status": {"totalIPCount": 99}}, subresource="status")
            with pytest.raises(TimeoutError):  # the control: nobody looks
                async with asyncio.timeout(0.5):
                    await anext(events)
    await one.aclose()
    await two.aclose()


async def test_what_was_acknowledged_is_on_the_disk(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s")
    await store.create(IPPOOL, POOL)
    file = store._file
    assert file is not None

    def pragmas() -> list[object]:
        names = ("journal_mode", "synchronous")
        return [file._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await asyncio.get_running_loop().run_in_executor(store._thread, pragmas) == ["wal", 2]
    await store.aclose()


async def test_a_cancelled_write_is_still_told_to_watches(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", poll=3600)
    await store.create(IPPOOL, POOL)
    since = (await store.list(IPPOOL)).revision
    async with store.watch(IPPOOL, since=since) as events:
        holder = sqlite3.connect(tmp_path / "s", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(store.patch(IPPOOL, "p", {"spec": {"disable": True}}))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        holder.execute("ROLLBACK")
        holder.close()
        async with asyncio.timeout(5):
            event = await anext(events)
        assert event.type is EventType.MODIFIED
    await store.aclose()


async def test_a_writer_that_never_lets_go_makes_others_busy(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", patience=0.1)
    await store.create(IPPOOL, POOL)
    holder = sqlite3.connect(tmp_path / "s", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        await store.patch(IPPOOL, "p", {"spec": {"disable": True}})
    assert not (await store.get(IPPOOL, "p")).spec.disable
    holder.execute("ROLLBACK")
    assert (await store.patch(IPPOOL, "p", {"spec": {"disable": True}})).spec.disable
    holder.close()
    await store.aclose()


async def test_the_history_is_bounded_in_changes_and_in_bytes(tmp_path: Path) -> None:
    for limits in ({"history": 10}, {"history_bytes": 5_000}):
        path = tmp_path / next(iter(limits))
        store = SQLiteStore(path, **limits)  # type: ignore[arg-type]
        await store.create(IPPOOL, POOL)
        first = (await store.list(IPPOOL)).revision
        for number in range(30):
            change = {"status": {"totalIPCount": number, "allocatedIPs": "x" * 100}}
            await store.patch(IPPOOL, "p", change, subresource="status")
        with pytest.raises(Expired):
            async with store.watch(IPPOOL, since=first):
                pass
        last = int((await store.list(IPPOOL)).revision)
        async with store.watch(IPPOOL, since=str(last - 3)) as events:
            assert [int((await anext(events)).revision) for _ in range(3)] == [last - 2, last - 1, last]
        await store.aclose()
        with sqlite3.connect(path) as look:
            rows, size = look.execute("SELECT count(*), sum(length(document)) FROM history").fetchone()
        look.close()
        assert rows <= limits.get("history", rows)
        assert size <= limits.get("history_bytes", size)


async def test_a_big_object_alone_is_more_than_the_history_may_hold(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", history_bytes=1000)
    created = await store.create(IPPOOL, POOL)
    await store.patch(IPPOOL, "p", {"status": {"allocatedIPs": "x" * 5000}}, subresource="status")
    with pytest.raises(Conflict):
        await store.delete(IPPOOL, "p", resource_version=created.metadata.resource_version)
    async with store.watch(IPPOOL, since=(await store.list(IPPOOL)).revision) as events:
        await store.patch(IPPOOL, "p", {"status": {"allocatedIPs": None}}, subresource="status")
        assert (await anext(events)).type is EventType.MODIFIED
    await store.aclose()


async def test_a_file_that_is_none_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, " * 100)
    with sqlite3.connect(tmp_path / "newer") as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    for path in (tmp_path / "text", tmp_path / "missing" / "s", tmp_path / "newer"):
        store = SQLiteStore(path)
        with pytest.raises(Unavailable, match=path.name):
            await store.list(IPPOOL)
        await store.aclose()
        with pytest.raises(Unavailable, match="closed"):
            await store.list(IPPOOL)


def test_a_new_file_can_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """SQLite refuses one of two that switch a new file's journal, without waiting: about one round in thirty."""

    def open_it(path: Path, barrier: threading.Barrier) -> None:
        barrier.wait()
        SQLiteFile(path, patience=30.0, history_changes=10, history_bytes=1000).close()

    with ThreadPoolExecutor(4) as threads:
        for number in range(60):
            barrier = threading.Barrier(4)
            for opened in [threads.submit(open_it, tmp_path / f"{number}.db", barrier) for _ in range(4)]:
                opened.result()
