"""The store of a simulated world, with eyes on it."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from api.ippool import AllocationRecord, SpiderIPPool, decode_records
from api.kinds import IPPOOL, Kind
from ipam.addresses import format_address
from ipam.ranges import parse_ranges
from runtime.store.memory import MemoryStore
from runtime.store.port import Store
from tests.simulation.node import Point


class Ages:
    """Watches the pools' records come and go: what rests is not given away while there is something better."""

    def __init__(self, truth: MemoryStore) -> None:
        self._truth = truth
        self._before: dict[str, dict[str, AllocationRecord]] = {}
        self._freed: dict[str, float] = {}
        self.closed: dict[str, float] = {}
        """Addresses that nobody may get before this time."""
        self.frozen: set[str] = set()
        """Pools that give out nothing now."""
        self.violations: list[str] = []
        """What was seen that may not be. Not raised there and then: the store's caller would take it for its own."""
        self.rest = 0.0
        """Seconds for which an address that was given back has to rest; 0: it is not looked at."""

    def look(self) -> None:
        """Compare with the last look."""
        now = anyio.current_time()
        for pool in self._truth.peek(IPPOOL):
            name, records = pool.metadata.name, decode_records(pool.status.allocated_ips)
            before, self._before[name] = self._before.get(name, {}), records
            for ip in before.keys() - records.keys():
                self._freed[ip] = now
            for ip in sorted(records.keys() - before.keys()):
                self._judge(pool, ip, records, now)

    def _judge(self, pool: SpiderIPPool, ip: str, records: dict[str, AllocationRecord], now: float) -> None:
        if pool.metadata.name in self.frozen:
            self.violations.append(f"{ip} was given out by pool {pool.metadata.name}, which gives out nothing")
        if now < self.closed.get(ip, now):
            self.violations.append(f"{ip} was given to {records[ip].pod}, though it is in quarantine")
        if now - self._freed.get(ip, float("-inf")) < self.rest:
            span = parse_ranges(pool.spec.ips, pool.spec.ip_version or 4)
            rested = sum(
                now - self._freed.get(format_address(one, span.version), float("-inf")) >= self.rest
                and now >= self.closed.get(format_address(one, span.version), now)
                and format_address(one, span.version) not in records
                for first, last in span.spans
                for one in range(first, last + 1)
            )
            if rested:
                ago = now - self._freed[ip]
                self.violations.append(f"{ip} was given to {records[ip].pod} {ago:.1f} s after it was given back")


class Watched:
    """A store that tells of every request before it is carried out, and before its answer is given."""

    def __init__(self, store: Store, point: Point, *, fenced: bool, seen: Callable[[], None]) -> None:
        """Without `fenced`, writes demand no resourceVersion: the negative control. `seen` is told of every answer."""
        self._store = store
        self._point = point
        self._fenced = fenced
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"get {kind.plural}", self._store.get(kind, *args, **options))

    async def create(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"create {kind.plural}", self._store.create(kind, *args, **options))

    async def delete(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"delete {kind.plural}", self._store.delete(kind, *args, **options))

    async def patch(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        if not self._fenced:
            options.pop("resource_version", None)
        return await self._tell(f"patch {kind.plural}", self._store.patch(kind, *args, **options))

    async def replace_status(self, kind: Kind[Any], item: Any, status: Any) -> Any:
        written = self._store.replace_status(kind, item, status)
        if not self._fenced:
            written.close()  # nobody may write a whole one without a version
            written = self._store.patch(kind, item.metadata.name, {"status": status}, subresource="status")
        return await self._tell(f"update {kind.plural}", written)

    async def _tell(self, what: str, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            await self._point(f"before {what}")
        except BaseException:
            work.close()
            raise
        answer = await work
        self._seen()
        await self._point(f"after {what}")
        return answer
