"""How long the agent's event loop was held up while it worked for somebody.

A netlink request that ran on the loop, or a JSON document that was too long for it, would hold up every call of the
node. Nobody wakes up for this while no call is under way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from runtime.clock import Clock
from telemetry import metrics

_BEAT_SECONDS = 0.01
"""A beat costs a fifth of a millisecond of CPU."""


class Pulse:
    """See the module. `run` is a service of the agent."""

    def __init__(self, clock: Clock) -> None:
        """Nothing is under way."""
        self._clock = clock
        self._calls = 0
        self._begun = anyio.Event()

    def __repr__(self) -> str:
        return f"<Pulse {self._calls} calls>"

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A call is under way in the block."""
        self._calls += 1
        self._begun.set()
        try:
            yield
        finally:
            self._calls -= 1

    async def run(self) -> None:
        """Measure, for ever."""
        while True:
            await self._begun.wait()
            while self._calls:
                before = self._clock.now()
                await anyio.sleep(_BEAT_SECONDS)
                metrics.LOOP_LAG_SECONDS.observe(max(0.0, self._clock.now() - before - _BEAT_SECONDS))
            self._begun = anyio.Event()
