"""The byte budget: how fast this replica's pools may write, so that etcd never fills up because of us.

A pool is written as a whole, so each write of a pool with thousands of records costs etcd hundreds of kilobytes, which
stay until it compacts. The budget is the cluster's; every ready replica spends its share of it.

A write is never refused and never waits. A pool that has overdrawn the account takes no new batch until the debt is
paid off. Meanwhile its mailbox fills, so the next write serves more requests, releases among them: under the cap
batches grow, and nothing fails or starves. A pool that was idle writes at once, whatever the others owe.
"""

from collections.abc import Callable

from runtime.clock import Clock
from telemetry import metrics

BURST_SECONDS = 1.0
"""What an account may save up: after a second of quiet, that much is written without a pause."""


class Governor:
    """The account of one replica."""

    def __init__(self, clock: Clock, *, rate: float, replicas: Callable[[], int]) -> None:
        """`rate` is the cluster's, in bytes a second, 0: no limit; `replicas` says how many share it."""
        self._clock = clock
        self._cluster_rate = rate
        self._replicas = replicas
        self._at = clock.now()
        self._balance = rate * BURST_SECONDS

    def __repr__(self) -> str:
        return f"<Governor {self._balance:.0f} of {self.rate:.0f} B/s>"

    @property
    def rate(self) -> float:
        """This replica's share, bytes a second."""
        return self._cluster_rate / max(1, self._replicas())

    @property
    def balance(self) -> float:
        """Bytes that may be written now; negative while a debt is paid off."""
        rate, now = self.rate, self._clock.now()
        self._balance = min(rate * BURST_SECONDS, self._balance + (now - self._at) * rate)
        self._at = now
        return self._balance

    def spend(self, size: int) -> float:
        """Note a write of `size` bytes. Returns for how many seconds its pool is to take no new batch."""
        if self._cluster_rate <= 0:
            return 0.0
        self._balance = self.balance - size
        pause = max(0.0, -self._balance / self.rate)
        if pause:
            metrics.POOL_WRITE_PAUSE_SECONDS.observe(pause)
        return pause
