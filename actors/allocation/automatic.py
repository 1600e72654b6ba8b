"""The automatic pools of a pod's application, had before pools are selected for it.

The application's owner makes them, and a pod that comes before its pools waits for the owner's answer. What the
snapshot of pools does not show yet is read: nobody is refused because a watch is late.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from actors.allocation.callers import Refusal
from actors.applications.messages import Prepare, Prepared, Unprepared
from api.annotations import OWNER_APPLICATION_UID
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL
from api.wire import PodRef, Rejected
from ipam import autopool
from ipam.candidates import SelectionRequest, no_automatic_pools
from runtime.store.port import NotFound, Store

_SECONDS: Final = 60.0
"""The longest wait for the owner; the asker's own deadline is nearer."""


class AutomaticPools:
    """See the module."""

    def __init__(self, store: Store, *, ask: Callable[[Prepare, float], Awaitable[Prepared | Unprepared]]) -> None:
        """`ask` has the application's owner prepare, within so many seconds; raises `ActorError`."""
        self._store = store
        self._ask = ask

    def __repr__(self) -> str:
        return "<AutomaticPools>"

    async def prepare(
        self, request: SelectionRequest, ref: PodRef, pools: Mapping[str, SpiderIPPool]
    ) -> Mapping[str, SpiderIPPool]:
        """All pools, among them those of the pod's application. Raises `Refusal`, `StoreError` and `ActorError`."""
        workload = request.workload
        if workload is None or no_automatic_pools(workload, enabled=request.automatic_pools):
            return pools  # selection says so
        notes = autopool.asking(request.pod.metadata.annotations)
        answer = await self._ask(Prepare(workload, notes), _SECONDS)
        if isinstance(answer, Unprepared):
            cause = "wrong_input" if answer.lasting else "no_available_pool"
            text = f"pod {ref}: {answer.reason}"
            raise Refusal(Rejected(message=text, retry=not answer.lasting, cause=cause))
        late: dict[str, SpiderIPPool] = {}
        for name in answer.pools:
            seen = pools.get(name)
            if seen is None or seen.metadata.labels.get(OWNER_APPLICATION_UID) != workload.uid:
                try:
                    late[name] = await self._store.get(IPPOOL, name)
                except NotFound:
                    continue
        return {**pools, **late} if late else pools
