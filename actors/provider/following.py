"""Tells the actor of releases what the pools owe to the network provider, as their watch shows it.

Follows the snapshot, and the replicas that are there: what another one left is seen at the next look. What is seen may
be out of date; the pool's owner says so before anything is done about it.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Final

import anyio

from actors.provider.releases import Debt, Message, Owing
from api.ippool import SpiderIPPool
from ipam.addresses import format_address
from ipam.records import RecordError
from ipam.withheld import owed_in
from runtime.actor import Ref
from runtime.errors import ActorError
from runtime.store.port import Expired
from runtime.store.snapshot import Snapshot

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 10.0
"""Between two looks at all pools: they may have another owner, or an actor that began anew."""


class Following:
    """See the module. `run` does the work."""

    def __init__(self, pools: Snapshot[SpiderIPPool], *, mine: Callable[[str], bool]) -> None:
        """`mine` tells whether a pool, by name, is this replica's."""
        self._pools = pools
        self._mine = mine
        self._again = anyio.Event()

    def __repr__(self) -> str:
        return "<Following of debts>"

    def begin(self) -> None:
        """Tell of everything again, soon."""
        self._again.set()

    async def run(self, releases: Ref[Message]) -> None:
        """For as long as the replica lives."""
        revision = 0
        while True:
            changed, revision = self._changes(revision)
            debts = tuple(debt for pool in changed if self._mine(pool.metadata.name) for debt in debts_of(pool))
            if debts:
                try:
                    releases.tell(Owing(debts))
                except ActorError as error:
                    _log.warning("the network provider is told of releases later: %s", error)
            with anyio.move_on_after(_LOOK_SECONDS) as scope:
                await self._news(revision)
            if scope.cancelled_caught or self._again.is_set():
                self._again = anyio.Event()
                revision = 0

    async def _news(self, revision: int) -> None:
        async with anyio.create_task_group() as group:

            async def until(event: anyio.Event) -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(until, self._again)
            await self._pools.wait(revision)
            group.cancel_scope.cancel()

    def _changes(self, revision: int) -> tuple[Iterable[SpiderIPPool], int]:
        try:
            changes, revision = self._pools.changes(revision)
        except Expired:
            return self._pools.values(), self._pools.revision
        return [change.object for change in changes if change.object is not None], revision


def debts_of(pool: SpiderIPPool) -> list[Debt]:
    """What a pool owes; nothing where that cannot be read: its owner says so."""
    version = pool.spec.ip_version or (6 if ":" in pool.spec.subnet else 4)
    try:
        owed = owed_in(pool, version)
    except RecordError:
        return []
    subnet = pool.spec.subnet
    return [Debt(pool.metadata.name, format_address(ip, version), subnet, debt) for ip, debt in owed.items()]
