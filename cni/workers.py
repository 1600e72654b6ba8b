"""Blocking calls, on threads of their own: what the kernel and the disk are asked for.

An ADD or a DEL makes four to eight such calls of some microseconds each. On a thread pool for everything the way there
and back costs more than they do (0.1 ms of CPU: a scope, a limiter, a lock with a condition, a wake-up of the loop for
every result), a third of what a node's agent spends. Here a call is put into a queue that is written in C, and results
that come while the loop is busy wake it once.
"""

import asyncio
import contextvars
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio

_IDLE_SECONDS = 10.0
"""After that a thread that was not needed ends."""

type _Call = tuple[_Answers, asyncio.Future[Any], contextvars.Context, Callable[..., Any], tuple[Any, ...]]


class Workers:
    """A few threads that share one queue: calls begin in the order in which they were made.

    To be used from event loops, one at a time. Nothing has to be closed: idle threads end by themselves, and none keeps
    the process from ending.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        """So many calls run at a time; the threads are called ``<name>-<number>``."""
        self._name = name
        self._limit = threads
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._under_way = 0
        """Calls that were made and have not been answered. Touched by loops only."""
        self._numbers = itertools.count(1)
        self._answers: _Answers | None = None

    def __repr__(self) -> str:
        return f"<Workers {self._name}: {self._under_way} calls for {self._limit} threads>"

    async def run[*Args, T](self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Call a function on one of the threads, in the caller's context; gives and raises what it does.

        Cancelling does not stop the function: the cancelled caller is released when it has ended, so that what the
        caller undoes afterwards is really there to be undone. Raises `RuntimeError` where the system has no thread
        left: then the function is not called.
        """
        loop = asyncio.get_running_loop()
        answers = self._answers
        if answers is None or answers.loop is not loop:
            answers = self._answers = _Answers(loop)
        future: asyncio.Future[T] = loop.create_future()
        self._under_way += 1
        try:
            self._calls.put((answers, future, contextvars.copy_context(), function, args))
            if self._alive < min(self._under_way, self._limit):
                self._hire(future)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                with anyio.CancelScope(shield=True):
                    while not future.done():
                        with suppress(asyncio.CancelledError):
                            await asyncio.wait([future])
                future.exception()  # nobody is left to be told
                raise
        finally:
            self._under_way -= 1

    def _hire(self, future: asyncio.Future[Any]) -> None:
        """One thread more. Where there can be none, the others do the work; without others the call is withdrawn."""
        with self._lock:
            self._alive += 1
        name = f"{self._name}-{next(self._numbers)}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._alive -= 1
            if not self._alive:
                future.cancel()
                raise

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    # Whoever calls after this sees one thread less.
                    self._alive -= 1
                if self._calls.empty():
                    return
                with self._lock:
                    self._alive += 1
                continue
            answers, future, context, function, args = call
            if future.cancelled():
                continue
            try:
                result, error = context.run(function, *args), None
            except BaseException as raised:  # noqa: BLE001 - the caller's, whatever it is
                result, error = None, raised
            answers.give(future, result, error)
            del call, answers, future, context, function, args, result, error


class _Answers:
    """The way back to one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._given: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._calling = False
        """Whether the loop has been called and has not looked yet."""

    def give(self, future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        """From a thread."""
        self._given.append((future, result, error))
        if not self._calling:
            self._calling = True
            with suppress(RuntimeError):  # the loop was closed: nobody waits
                self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._calling = False  # before looking: what comes from now on calls again
        while self._given:
            future, result, error = self._given.popleft()
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
