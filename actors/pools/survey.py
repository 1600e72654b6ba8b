"""Where all pools lie: so that no owner grants an address that another pool has too.

Two pools that overlap can come to be at the same moment, and each owner knows its own pool only. Before an owner grants
anything new under a spec it lists all pools, with a read that begins after it has seen that spec. Of two specs that
overlap one was stored later, and the owner of that one finds the other: it grants none of the shared addresses. The
other owner goes on for the moment that its replica's snapshot needs to show the newcomer, alone.

A list of all pools is big, for it has their records in it, so owners that want one at the same time share it. What the
snapshot shows is never taken for the truth, only for a reason to list again.
"""

from collections.abc import Iterable

import anyio

from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from ipam.overlap import Atlas, Overlap
from runtime.store.port import Expired, Store
from runtime.store.snapshot import Snapshot


class Survey:
    """What the pool actors of one replica know of all pools."""

    def __init__(self, store: Store, snapshot: Snapshot[SpiderIPPool]) -> None:
        """`snapshot` is of the pools, and may lag."""
        self._store = store
        self._snapshot = snapshot
        self._revision = -1
        self._edition = 0
        self._seen = Atlas()
        self._listed = Atlas()
        self._lock = anyio.Lock()
        self._begun = 0
        self._ended = 0

    def __repr__(self) -> str:
        return f"<Survey edition {self._edition}, {self._ended} lists>"

    def edition(self) -> int:
        """Another number whenever the snapshot shows another spec of any pool. Costs what has changed."""
        if self._revision != self._snapshot.revision:
            if self._refresh():
                self._edition += 1
            self._revision = self._snapshot.revision
        return self._edition

    def atlas(self) -> Atlas:
        """All pools, as the snapshot shows them now."""
        self.edition()
        return self._seen

    def glimpse(self, name: str) -> Overlap | None:
        """What the snapshot says that a pool shares with others, as of the last `edition`."""
        return self._seen.overlap(name)

    async def overlap(self, name: str) -> Overlap | None:
        """What a pool shares with others, by a list that begins after this call. Raises `StoreError`."""
        asked = self._begun
        async with self._lock:
            if self._ended <= asked:
                self._begun += 1
                begun = self._begun
                self._listed.replace((await self._store.list(IPPOOL)).items)
                self._ended = begun
        return self._listed.overlap(name)

    def _refresh(self) -> bool:
        try:
            changes, _ = self._snapshot.changes(max(self._revision, 0))
        except Expired:
            return self._seen.replace(self._snapshot.values())
        changed: Iterable[SpiderIPPool] = [it.object for it in changes if it.object is not None]
        return self._seen.learn(changed, gone=[it.key for it in changes if it.object is None])
