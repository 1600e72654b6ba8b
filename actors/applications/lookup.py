"""Applications as they are, read from the store when a watch is not to be believed, or there is none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import structs

from api.ippool import SpiderIPPool
from api.kinds import CRONJOB, DAEMONSET, DEPLOYMENT, JOB, REPLICASET, STATEFULSET, Kind
from ipam import autopool
from ipam.autopool import Application
from ipam.identity import Workload
from runtime.store.discovery import Discovery, Foreign
from runtime.store.port import Denied, NotFound, Store

BUILT_IN: Final[Mapping[tuple[str, str], Kind[Any]]] = {
    (kind.api_version, kind.kind): kind for kind in (DEPLOYMENT, REPLICASET, STATEFULSET, DAEMONSET, JOB, CRONJOB)
}


class Lookup:
    """How one replica reads applications."""

    def __init__(
        self,
        store: Store,
        *,
        discovery: Discovery | None,
        pools: Callable[[Workload], Sequence[SpiderIPPool]],
    ) -> None:
        """`pools` are those of an application's name, as last seen. Without `discovery` foreign kinds are not seen."""
        self._store = store
        self._discovery = discovery
        self._pools = pools
        self._foreign: dict[tuple[str, str], Foreign] = {}

    def __repr__(self) -> str:
        return f"<Lookup of {len(self._foreign)} foreign kinds>"

    async def find(self, workload: Workload, notes: Mapping[str, str]) -> Application | None:
        """An application; None where it is gone or asks for nothing. `notes`: see `Terms.find`. Raises `StoreError`."""
        kind = BUILT_IN.get((workload.api_version, workload.kind))
        if kind is None:
            return await self._find_foreign(workload, notes)
        try:
            item = await self._store.get(kind, workload.name, namespace=workload.namespace)
        except NotFound:
            return None
        return autopool.application(item)

    async def foreign(self, workload: Workload) -> Foreign | None:
        """What there is to know of a workload's kind; None where it is not served. Raises `StoreError`."""
        key = workload.api_version, workload.kind
        found = self._foreign.get(key)
        if found is None and self._discovery is not None:
            found = await self._discovery.find(*key)
            if found is not None:
                self._foreign[key] = found
        return found

    async def _find_foreign(self, workload: Workload, notes: Mapping[str, str]) -> Application | None:
        """One that may not be read is taken for what its pods say, with no replicas: so the original takes all."""
        foreign, replicas = await self.foreign(workload), 0
        if foreign is None:
            return None
        namespace = workload.namespace if foreign.kind.namespaced else ""
        try:
            item = await self._store.get(foreign.kind, workload.name, namespace=namespace)
        except NotFound:
            return None
        except Denied:
            pass
        else:
            if item.metadata.uid != workload.uid:
                workload, notes = structs.replace(workload, uid=item.metadata.uid), {}
        if foreign.scales and self._discovery is not None:
            try:
                replicas = await self._discovery.replicas(foreign, workload.name, namespace=namespace)
            except (NotFound, Denied):
                replicas = 0
        said = autopool.asking(notes) if autopool.asks(notes) else autopool.remembered(workload, self._pools(workload))
        return Application(workload, dict(said), replicas) if autopool.asks(said) else None
