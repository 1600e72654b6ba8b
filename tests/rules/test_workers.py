"""Blocking calls on threads of their own: order, errors, context, cancelling, and threads that come and go."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable

import anyio
import pytest

from cni import workers
from cni.workers import Workers


async def test_gives_and_raises_what_the_function_does() -> None:
    pool = Workers("test", threads=2)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 7, 0)
    assert await pool.run(lambda: threading.current_thread().name) != threading.current_thread().name
    assert "0 calls" in repr(pool)


async def test_one_thread_keeps_the_order() -> None:
    pool = Workers("test", threads=1)
    seen: list[int] = []
    await asyncio.gather(*(pool.run(seen.append, number) for number in range(200)))
    assert seen == list(range(200))


@pytest.mark.parametrize("threads", [1, 3])
async def test_so_many_at_a_time_and_no_more(threads: int) -> None:
    pool = Workers("test", threads=threads)
    lock, now, most = threading.Lock(), [0], [0]
    meet = threading.Barrier(threads)

    def count() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meet.wait(10)
        with lock:
            now[0] -= 1

    await asyncio.gather(*(pool.run(count) for _ in range(4 * threads)))
    assert most == [threads]


async def test_the_caller_s_context_comes_along() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    variable.set("mine")
    assert await Workers("test", threads=1).run(variable.get) == "mine"


async def test_who_is_cancelled_waits_until_the_function_has_ended() -> None:
    pool = Workers("test", threads=1)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(pool.run, work)
        while not begun.is_set():  # noqa: ASYNC110 - another thread sets it
            await anyio.sleep(0.001)
        group.cancel_scope.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert ended.is_set()
    assert await pool.run(lambda: 1) == 1


async def test_threads_that_are_not_needed_end_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.01)
    pool = Workers("passing", threads=4)

    def alive() -> int:
        return sum(thread.name.startswith("passing") for thread in threading.enumerate())

    for _ in range(20):
        await asyncio.gather(*(pool.run(time.sleep, 0.001) for _ in range(8)))
        assert 0 < alive() <= 4
        # Sometimes just before they end, sometimes after.
        await anyio.sleep(0.011)
    await until(lambda: alive() == 0)
    assert await pool.run(lambda: 1) == 1


async def test_where_there_is_no_thread_left_nothing_is_called_later(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, called = Workers("test", threads=2), list[int]()

    def none_left(_: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError, match="new thread"):
            await pool.run(called.append, 1)
    await pool.run(called.append, 2)
    assert called == [2]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        await asyncio.gather(*(pool.run(called.append, number) for number in (3, 4)))
    assert called == [2, 3, 4], "who is there does all of it"


def test_two_loops_one_after_the_other() -> None:
    pool = Workers("test", threads=1)
    for _ in range(3):
        assert asyncio.run(pool.run(lambda: 1)) == 1


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not holds():  # noqa: ASYNC110 - another thread's
            await anyio.sleep(0.005)
