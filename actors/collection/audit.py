"""The audit of SpiderEndpoints: compares them with the pools from time to time, and mends what a crash has left.

An endpoint is written after its pools and removed after them, so either may be interrupted. What differs at two looks
is read again from the store, pool, pod and endpoint, before anything is done about it:

* a pod that is there and holds addresses gets the endpoint that it lacks, or what is missing in it;
* an endpoint none of whose addresses any pool has for it goes if it is being deleted (only its finalizer is in the
  way), or if `enableCleanOutdatedEndpoint` says so; never while its pod is there;
* an address that a pod's endpoint shows and its pool does not have is reported, and left to people.

Every difference is counted and logged. Nothing is remembered between two audits.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

import anyio
from msgspec import Struct, field, structs

from actors.allocation.endpoint import Endpoints, Holder
from actors.allocation.workloads import Workloads
from api.annotations import AnnotationError, pod_routes
from api.core import Pod
from api.endpoint import SpiderEndpoint
from api.ippool import IPPoolStatus, SpiderIPPool
from api.kinds import ENDPOINT, IPPOOL, POD, Kind
from api.meta import FINALIZER
from api.route import Route
from api.wire import Address, NicGrant
from ipam.drift import Drift, Shown, compare
from ipam.garbage import Held, held_in
from runtime.store.port import AlreadyExists, Conflict, NotFound, Store, StoreError
from telemetry import metrics

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

SECOND_LOOK_SECONDS = 10.0
"""An ADD writes the endpoint, and a release takes it away, within this of the pool's write, or not at all."""


class _Nic(Struct, frozen=True, rename="camel", gc=False):
    interface: str = ""
    ipv4: str | None = None
    ipv6: str | None = None
    ipv4_pool: str | None = None
    ipv6_pool: str | None = None


class _Current(Struct, frozen=True):
    uid: str = ""
    ips: list[_Nic] = []


class _Status(Struct, frozen=True):
    current: _Current = field(default_factory=_Current)


class _Meta(Struct, frozen=True, rename="camel", gc=False):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Brief(Struct, frozen=True):
    """As much of a SpiderEndpoint as the comparison needs: a namespace may have ten thousands."""

    metadata: _Meta = field(default_factory=_Meta)
    status: _Status = field(default_factory=_Status)


_BRIEF = Kind(
    group=ENDPOINT.group,
    version=ENDPOINT.version,
    plural=ENDPOINT.plural,
    kind=ENDPOINT.kind,
    namespaced=True,
    status=False,
    type=_Brief,
)


class EndpointAudit:
    """Audits of one replica."""

    def __init__(
        self,
        store: Store,
        *,
        endpoints: Endpoints,
        workloads: Workloads,
        namespaces: Callable[[], Iterable[str]],
        clean_outdated: bool,
    ) -> None:
        """`namespaces` are those that there are, as far as known; `clean_outdated` is the setting of that name."""
        self._store = store
        self._endpoints = endpoints
        self._workloads = workloads
        self._namespaces = namespaces
        self._clean_outdated = clean_outdated

    async def run(self, records: Iterable[Held]) -> None:
        """Compare and mend. `records` are those of all pools, as last seen, and are not kept. Raises `StoreError`."""
        by_namespace: dict[str, dict[str, list[Held]]] = {}
        for held in records:
            if held.namespace:
                by_namespace.setdefault(held.namespace, {}).setdefault(held.name, []).append(held)
        suspects: list[tuple[str, str]] = []
        for namespace in sorted({*by_namespace, *self._namespaces()}):
            suspects += [(namespace, name) for name in await self._differ(namespace, by_namespace.pop(namespace, {}))]
        if not suspects:
            return
        await anyio.sleep(SECOND_LOOK_SECONDS)
        # In this order: what the pools have later than they were read, an endpoint is given later than it was read. Its
        # resourceVersion is another one then, and nothing is done.
        endpoints = [(namespace, name, await self._read(ENDPOINT, name, namespace)) for namespace, name in suspects]
        pools: dict[str, SpiderIPPool] = {}
        recorded: dict[str, list[Held]] = {f"{namespace}/{name}": [] for namespace, name in suspects}
        for pool in (await self._store.list(IPPOOL)).items:
            pools[pool.metadata.name] = structs.replace(pool, status=IPPoolStatus())
            for held in held_in(pool):
                if held.record.pod in recorded:
                    recorded[held.record.pod].append(held)
        for namespace, name, endpoint in endpoints:
            try:
                await self._look_again(namespace, name, endpoint, recorded[f"{namespace}/{name}"], pools)
            except (Conflict, AlreadyExists):
                _log.info("SpiderEndpoint %s/%s has changed meanwhile: the next audit looks at it", namespace, name)
            except StoreError as error:
                _log.warning(
                    "SpiderEndpoint %s/%s could not be mended: %s: %s", namespace, name, type(error).__name__, error
                )

    async def _differ(self, namespace: str, records: Mapping[str, Sequence[Held]]) -> list[str]:
        """The names in a namespace whose endpoint is not what the pools say."""
        found: list[str] = []
        seen: set[str] = set()
        for brief in (await self._store.list(_BRIEF, namespace=namespace)).items:
            name, current = brief.metadata.name, brief.status.current
            seen.add(name)
            if compare(current.uid, _shown(current.ips), records.get(name, ())) is not None:
                found.append(name)
        found += [name for name, held in records.items() if name not in seen and compare(None, (), held) is not None]
        return found

    async def _look_again(
        self,
        namespace: str,
        name: str,
        endpoint: SpiderEndpoint | None,
        records: Sequence[Held],
        pools: Mapping[str, SpiderIPPool],
    ) -> None:
        drift = compare(
            None if endpoint is None else endpoint.status.current.uid,
            () if endpoint is None else _shown(endpoint.status.current.ips),
            records,
        )
        if drift is None:
            return
        pod = await self._holder(namespace, name, records, endpoint)
        done = await self._mend(drift, endpoint, pod, records, pools)
        metrics.IPAM_DRIFT.labels(kind=drift.value).inc()
        _audit.info("SpiderEndpoint %s/%s: %s, %s", namespace, name, drift.value, done)

    async def _holder(
        self, namespace: str, name: str, records: Sequence[Held], endpoint: SpiderEndpoint | None
    ) -> Pod | None:
        """The pod of a name, or that of the virtual machine of this name; None where none is there, or it is over."""
        uids = {held.record.pod_uid for held in records if not held.kept}
        if endpoint is not None:
            uids.add(endpoint.status.current.uid)
        pod = await self._read(POD, name, namespace)
        if pod is None and endpoint is not None and endpoint.status.owner_controller_type != "VirtualMachineInstance":
            return None
        found = [pod] if pod is not None else list((await self._store.list(POD, namespace=namespace)).items)
        return next((one for one in found if one.metadata.uid in uids and one.alive), None)

    async def _mend(
        self,
        drift: Drift,
        endpoint: SpiderEndpoint | None,
        pod: Pod | None,
        records: Sequence[Held],
        pools: Mapping[str, SpiderIPPool],
    ) -> str:
        """Do what the module says; returns it in words."""
        if drift is Drift.UNRECORDED:
            return "left alone"
        if drift is Drift.OUTDATED:
            assert endpoint is not None
            if pod is not None:
                return "left alone, its pod is there"
            # Without our finalizer its removal had begun, and nobody's owner reference may be there to end it.
            meta = endpoint.metadata
            going = meta.deletion_timestamp is not None or FINALIZER not in meta.finalizers
            if not going and not self._clean_outdated:
                return "left alone, enableCleanOutdatedEndpoint is off"
            await self._endpoints.remove(endpoint)
            return "removed"
        if pod is None:
            return "left alone, no pod that is alive holds the addresses"
        own = [held for held in records if held.record.pod_uid == pod.metadata.uid and not held.kept]
        holder = Holder(pod=pod, workload=await self._workloads.top(pod), fixed=self._workloads.fixed(pod))
        await self._endpoints.mend(endpoint, holder, node=pod.spec.node_name, nics=_grants(pod, own, pools, endpoint))
        return "written anew"

    async def _read[T](self, kind: Kind[T], name: str, namespace: str) -> T | None:
        try:
            return await self._store.get(kind, name, namespace=namespace)
        except NotFound:
            return None


def _shown(ips: Iterable[Any]) -> list[Shown]:
    """The addresses of an endpoint, whichever of its two shapes it has here."""
    return [
        Shown(nic=ip.interface, address=address.partition("/")[0], pool=pool or "")
        for ip in ips
        for address, pool in ((ip.ipv4, ip.ipv4_pool), (ip.ipv6, ip.ipv6_pool))
        if address
    ]


def _grants(
    pod: Pod, records: Iterable[Held], pools: Mapping[str, SpiderIPPool], endpoint: SpiderEndpoint | None
) -> list[NicGrant]:
    """What those NICs of a pod have that its endpoint does not show right. What is no record's is the endpoint's."""
    nics: dict[str, list[Held]] = {}
    for held in records:
        if held.record.nic:
            nics.setdefault(held.record.nic, []).append(held)
    details = {detail.interface: detail for detail in endpoint.status.current.ips} if endpoint is not None else {}
    grants: list[NicGrant] = []
    for nic, found in nics.items():
        detail = details.get(nic)
        shown = _shown([detail]) if detail is not None else []
        if set(shown) == {Shown(nic, held.address, held.pool) for held in found}:
            continue
        if detail is not None:
            routes, clean = tuple(detail.routes), bool(detail.clean_gateway)
        else:
            routes, clean = _routes(pod, (pools[held.pool] for held in found)), False
        addresses = tuple(_address(held, pools[held.pool], detail) for held in found)
        grants.append(NicGrant(nic=nic, addresses=addresses, routes=routes, clean_gateway=clean))
    return grants


def _address(held: Held, pool: SpiderIPPool, detail: Any) -> Address:
    # What a network provider has said of an address stands nowhere else.
    same = detail is not None and (detail.ipv4 or "").partition("/")[0] == held.address
    return Address(
        version=6 if ":" in held.address else 4,
        address=f"{held.address}/{pool.spec.subnet.rpartition('/')[2]}",
        pool=held.pool,
        gateway=pool.spec.gateway or "",
        vlan=(detail.vlan or 0) if same else 0,
        mac=(detail.mac or "") if same else "",
    )


def _routes(pod: Pod, pools: Iterable[SpiderIPPool]) -> tuple[Route, ...]:
    """The pools', and the pod's own by way of their subnets."""
    own: Sequence[Route] = ()
    with suppress(AnnotationError):  # it was refused, and is not in force
        own = pod_routes(pod.metadata.annotations)
    routes: list[Route] = []
    for pool in pools:
        subnet = ip_network(pool.spec.subnet, strict=False)
        routes += pool.spec.routes or ()
        routes += [route for route in own if ip_address(route.gw) in subnet]
    return tuple(routes)
