"""Entries that come while the disk is waited for are written together, whoever of those that wait is cancelled."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.node.disk import DiskJournal
from api.wire import PodRef
from cni.claims import Claims
from cni.errors import IoFailure
from cni.journal import Journal, JournalEntry, State


class SlowJournal(Journal):
    """Writes when it is let, and notes what was written together."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.batches: list[list[str]] = []
        self.writing = threading.Event()
        self.let = threading.Event()

    def put_all(self, entries: Sequence[JournalEntry]) -> list[IoFailure | None]:
        self.batches.append([entry.container_id for entry in entries])
        self.writing.set()
        assert self.let.wait(10)
        return super().put_all(entries)


def entry(container_id: str) -> JournalEntry:
    return JournalEntry(
        container_id=container_id, ifname="eth0", pod=PodRef(namespace="default", name="web"), state=State.ADDED
    )


async def opened(folder: Path) -> tuple[SlowJournal, DiskJournal]:
    slow = SlowJournal(folder / "journal")
    disk = DiskJournal(slow, Claims(folder / "locks"))
    await disk.load()
    return slow, disk


async def until_writing(slow: SlowJournal) -> None:
    while not slow.writing.is_set():  # noqa: ASYNC110 - another thread sets it
        await asyncio.sleep(0.001)
    slow.writing.clear()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("cancelled", ["", "c0", "c1", "c2"])
async def test_who_waits_is_written_together_and_may_be_cancelled(tmp_path: Path, cancelled: str) -> None:
    slow, disk = await opened(tmp_path)
    first = asyncio.create_task(disk.put(entry("c0")))
    await until_writing(slow)
    tasks = {"c0": first, **{name: asyncio.create_task(disk.put(entry(name))) for name in ("c1", "c2")}}
    await asyncio.sleep(0.01)
    if cancelled:
        tasks[cancelled].cancel()
    slow.let.set()
    ended = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert [type(it) for it in ended if it is not None] == ([asyncio.CancelledError] if cancelled else [])
    waiting = [name for name in ("c1", "c2") if name != cancelled]
    assert slow.batches == [["c0"], waiting]
    assert {one.container_id for one in await disk.load()} == {"c0", *waiting}


async def test_who_is_cancelled_while_another_writes_his_entry_too(tmp_path: Path) -> None:
    slow, disk = await opened(tmp_path)
    first = asyncio.create_task(disk.put(entry("c0")))
    await until_writing(slow)
    leader, follower = (asyncio.create_task(disk.put(entry(name))) for name in ("c1", "c2"))
    await asyncio.sleep(0.01)
    slow.let.set()
    await first
    slow.let.clear()
    await until_writing(slow)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    slow.let.set()
    await leader
    assert slow.batches == [["c0"], ["c1", "c2"]]
    await disk.put(entry("c3"))
    assert {one.container_id for one in await disk.load()} == {"c0", "c1", "c2", "c3"}


async def test_where_there_is_no_thread_nobody_is_told_that_his_entry_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, disk = await opened(tmp_path)
    first = asyncio.create_task(disk.put(entry("c0")))
    await until_writing(slow)
    others = [asyncio.create_task(disk.put(entry(name))) for name in ("c1", "c2")]
    await asyncio.sleep(0.01)

    async def refused(*_: object) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(disk._worker, "run", refused)
        slow.let.set()
        await first
        ended = await asyncio.gather(*others, return_exceptions=True)
    assert [type(it) for it in ended] == [RuntimeError, RuntimeError]
    assert [one.container_id for one in await disk.load()] == ["c0"]
