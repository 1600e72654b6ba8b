"""The collector of a host without Kubernetes: gives up records that neither its journal nor its kernel knows.

Messages: `Scan` from whoever wants it done now, `Due` from its timer, `Swept` and `SweepFailed` from its own work.
State: whether it is at work. Persists: nothing. Answers: nothing.

A container that goes without a DEL is noticed by the node actor, for its journal entry names a namespace that is gone.
What is left for here are records without an entry: the journal was lost, or the store was brought back from a copy. An
agent journals an interface before it asks for addresses and forgets it after they were given back. So the records are
read first, then the journal, then the kernel: a record that the journal does not know then and whose address no link
of any namespace carries belongs to nobody. The pool's owner releases exactly this pod uid, interface and container, and
nothing that a newer one has taken over.

Records that were made by hand and wait for their container (`spiderpoolctl ip set`) stay, and so do those of another
node: somebody has to say first that it is gone (`spiderpoolctl doctor` shows them, `ip release` gives them up).
"""

import logging
from collections.abc import Callable, Iterable
from typing import assert_never

from msgspec import Struct

from actors.allocation.endpoint import Endpoints
from actors.node.disk import Journal
from actors.pools.claims import Refused, Surrender, Surrendered
from actors.pools.peers import Pool
from api.ippool import AllocationRecord, SpiderIPPool, decode_records
from api.kinds import IPPOOL
from cni.journal import JournalEntry
from cni.kernel import Kernel
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import Store
from telemetry import metrics

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

NO_CONTAINER = "0" * 12
"""Stands in a record that was made by hand until the container's ADD takes it over."""
_FIRST_SECONDS = 5.0
_GAP_SECONDS = 1.0
"""Between two looks, at least: anybody who reaches the health port may ask for one."""
_POOL_SECONDS = 60.0


class Scan(Struct, frozen=True, tag=True):
    """Look now."""


class Due(Struct, frozen=True, tag=True):
    """Time to look."""


class Swept(Struct, frozen=True, tag=True):
    """Everything was looked at."""

    freed: int


class SweepFailed(Struct, frozen=True, tag=True):
    """It could not be; the next look begins anew."""

    error: Exception


Message = Scan | Due | Swept | SweepFailed


class Candidate(Struct, frozen=True):
    """A record that the journal does not know."""

    pool: str
    address: str
    record: AllocationRecord

    def __str__(self) -> str:
        record = self.record
        return f"{self.address} of pool {self.pool} (pod {record.pod}, {record.nic}, container {record.cid})"


def candidates(pools: Iterable[SpiderIPPool], entries: Iterable[JournalEntry], *, node: str) -> tuple[Candidate, ...]:
    """The records of this node that no entry explains. `entries` were read after the pools."""
    known: set[tuple[str, str]] = set()
    for entry in entries:
        cid = entry.container_id[: len(NO_CONTAINER)]
        known |= {(entry.ifname, cid), *((other.nic, cid) for other in entry.others)}
    found = []
    for pool in pools:
        try:
            records = decode_records(pool.status.allocated_ips)
        except ValueError:
            continue  # its owner says so
        for address, record in records.items():
            by_hand = record.cid in {"", NO_CONTAINER}
            if record.node == node and not by_hand and (record.nic, record.cid) not in known:
                found.append(Candidate(pool.metadata.name, address, record))
    return tuple(found)


class HostCollectorActor(Actor[Message]):
    """See the module."""

    capacity = 64

    def __init__(
        self,
        store: Store,
        *,
        pools: Callable[[str], Pool],
        journal: Journal,
        kernel: Kernel,
        node: str,
        interval: float,
        besides: Callable[[], None] = lambda: None,
    ) -> None:
        """`interval` is in seconds, between two looks that nobody asked for; `besides` is called with every look."""
        self._store = store
        self._pool = pools
        self._journal = journal
        self._kernel = kernel
        self._node = node
        self._interval = interval
        self._besides = besides
        self._busy = False
        self._asked = False
        """For another look, while one was under way: it may have come too late for that one."""
        self._ended = float("-inf")

    def __repr__(self) -> str:
        return f"<HostCollectorActor{' busy' if self._busy else ''}>"

    def started(self) -> None:
        """Look soon: what an earlier life has left is known by now."""
        self.timers.start("due", min(_FIRST_SECONDS, self._interval), Due())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Look, one time after the other."""
        match message:
            case Scan() if self._busy:
                self._asked = True
            case Scan() | Due():
                self._look()
            case Swept():
                self._over()
            case SweepFailed(error):
                metrics.IP_GC_FAILURE_COUNTS.inc()
                _log.warning("the records could not be looked at: %s: %s", type(error).__name__, error)
                self._over()
            case _:
                assert_never(message)
        return None

    def _look(self) -> None:
        rest = self._ended + _GAP_SECONDS - self.system.clock.now()
        if rest > 0:
            self.timers.start("due", rest, Due())
        elif not self._busy:
            self._busy, self._asked = True, False
            self._besides()
            self.pipe(self._sweep(), Swept, failed=SweepFailed)

    def _over(self) -> None:
        self._busy = False
        self._ended = self.system.clock.now()
        self.timers.start("due", _GAP_SECONDS if self._asked else self._interval, Due())

    async def _sweep(self) -> int:
        pools = (await self._store.list(IPPOOL)).items
        entries = await self._journal.load()
        found = candidates(pools, entries, node=self._node)
        carried = await self._kernel.carried([one.address for one in found]) if found else frozenset()
        freed = 0
        for one in found:
            if one.address in carried:
                _log.warning("%s: the journal does not know it, and a link carries it: it stays", one)
                continue
            freed += await self._release(one)
        return freed

    async def _release(self, one: Candidate) -> int:
        record = one.record
        answer = await self._pool(one.pool).ask(
            Surrender(uid=record.pod_uid, nic=record.nic, cid=record.cid, node=record.node), timeout=_POOL_SECONDS
        )
        match answer:
            case Surrendered(addresses=addresses):
                for address in addresses:
                    _audit.info(
                        "collected %s of pool %s (pod %s): no container, no link", address, one.pool, record.pod
                    )
                metrics.IP_GC_COUNTS.inc(len(addresses))
                if addresses:
                    namespace, _, name = record.pod.partition("/")
                    await Endpoints(self._store).withdraw(namespace, name, uid=record.pod_uid, addresses=addresses)
                return len(addresses)
            case Refused(reason=reason):
                metrics.IP_GC_FAILURE_COUNTS.inc()
                _log.warning("could not collect %s: %s", one, reason)
                return 0
            case _:
                assert_never(answer)
