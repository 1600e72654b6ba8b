"""Time as a port: actors ask the clock they were given, so a test can make an hour pass in a millisecond."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds and nanoseconds, monotonic and wall."""

    def now(self) -> float:
        """Monotonic seconds on the loop's own scale: deadlines and timers are set in it."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        """Monotonic seconds of the running loop."""
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()
