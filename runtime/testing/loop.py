"""An event loop whose clock is virtual and whose order of callbacks is drawn from a seed.

Time stands still while anything can run and jumps to the next timer when nothing can. The callbacks that are ready at
the same moment run in an order that the seed decides: a real loop promises none either, so code that needs one is
wrong, and some seed will show it. Threads, sockets and subprocesses are refused: they would bring the real world's
order in.
"""

import asyncio
import heapq
import itertools
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

_EPOCH = 1_750_000_000.0
"""Where the virtual wall clock starts: any fixed moment serves."""


_MANY = 1000
"""Cancelled timers that are not worth a look at all of them."""


class Deadlock(Exception):
    """Nothing is ready, no timer runs, and the main coroutine has not ended."""


class _Selector(selectors.BaseSelector):
    """Waits for nothing: it advances the loop's clock instead."""

    def __init__(self) -> None:
        self._keys: dict[int, selectors.SelectorKey] = {}
        self.loop: VirtualLoop | None = None

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, fd, events, data)
        self._keys[fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj if isinstance(fileobj, int) else fileobj.fileno())

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return dict(self._keys)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[fileobj if isinstance(fileobj, int) else fileobj.fileno()]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.loop is not None
        if timeout is None:
            msg = f"at {self.loop.time():.6f} s nothing is left that could happen"
            raise Deadlock(msg)
        if timeout > 0:
            self.loop.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self, seed: int) -> None:
        """The same `seed` gives the same order."""
        self._now = 0.0
        self._order = random.Random(seed)  # noqa: S311
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._numbers: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._count = itertools.count(1)
        self.set_task_factory(self._numbered)
        # Timers that fall together within float error must be seen as due together.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let virtual time pass."""
        self._now += seconds

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002
        func: Callable[..., Any],
        *args: Any,  # noqa: ARG002
    ) -> NoReturn:
        """Refused: a thread would bring back the real world's order."""
        msg = f"{func!r} wants a thread inside the deterministic loop"
        raise RuntimeError(msg)

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        if len(ready) > 1:
            # Cancelling a group walks a set of tasks, whose order is that of their addresses: so first by number.
            handles = sorted(ready, key=self._number)
            self._order.shuffle(handles)
            ready.clear()
            ready.extend(handles)
        super()._run_once()  # type: ignore[misc]

    def _numbered(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        self._numbers[task] = next(self._count)
        return task

    def _number(self, handle: Any) -> int:
        owner = getattr(handle._callback, "__self__", None)  # noqa: SLF001 - asyncio has no other way to ask
        return self._numbers.get(owner, 0) if isinstance(owner, asyncio.Task) else 0


class SteadyLoop(VirtualLoop):
    """A virtual loop for big worlds: callbacks in asyncio's own order, first come, first served, at half the price.

    What is left of asyncio's loop is what it promises: nobody asks a selector, and timers are found by number.
    """

    def __init__(self, *, resolution: float = 1e-6) -> None:
        """Timers that fall together within `resolution` seconds are due together."""
        super().__init__(0)
        self.set_task_factory(None)
        self._resolution = resolution
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_numbers = itertools.count()
        self._dropped = 0

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._timer_numbers), timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:  # noqa: ARG002 - asyncio's signature
        """Cancelled timers stay until they are due, or are more than half of all."""
        self._dropped += 1
        if self._dropped > _MANY and self._dropped * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._dropped = 0

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        timers = self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
                self._dropped -= 1
            if not timers:
                msg = f"at {self._now:.6f} s nothing is left that could happen"
                raise Deadlock(msg)
            self._now = max(self._now, timers[0][0])
            due = self._now + self._resolution
            while timers and timers[0][0] <= due:
                timer = heapq.heappop(timers)[2]
                if timer.cancelled():
                    self._dropped -= 1
                else:
                    ready.append(timer)
        while ready and not self._stopping:  # type: ignore[attr-defined]
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001
                handle._run()  # noqa: SLF001


class VirtualClock:
    """The clock port on the running `VirtualLoop`."""

    def now(self) -> float:
        """Virtual monotonic seconds."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Virtual seconds since the Unix epoch."""
        return _EPOCH + asyncio.get_running_loop().time()


def run[T](main: Callable[[], Coroutine[Any, Any, T]], *, seed: int) -> T:
    """Run `main()` to its end in a new `VirtualLoop`. Raises what it raises, and `Deadlock`."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(seed)) as runner:
        return runner.run(main())
