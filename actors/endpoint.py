"""The SpiderEndpoint of a pod: what it holds, for people and for programs that read the original's objects.

A projection. The authority over an address is its pool's status; this object is written after it, removed after it, and
nothing is decided from it alone. Where all goes well it costs one write when a pod comes, and two when it goes: one
takes the finalizer off, one deletes. Nothing is read for that: what this process wrote last is remembered, and the
resourceVersion says whether it still is what is there. Nor is the workload of a pod looked up for each of its pods.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from api.core import Pod
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.kinds import ENDPOINT, JOB, REPLICASET, Kind
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.wire import Address, Allocated, PodRef
from runtime.store.port import AlreadyExists, Conflict, NotFound, Store
from telemetry import traces

_ATTEMPTS = 5
_REMEMBERED = 16384
"""Objects; the oldest are forgotten first. About 500 bytes each."""
_OWNERS = 1024
"""ReplicaSets and Jobs whose own owner is remembered; the oldest are forgotten first."""


class EndpointContended(Exception):
    """Others rewrote the SpiderEndpoint each time we were about to: try again later."""


class _Written(Struct, frozen=True):
    """An object as we left it."""

    pod_uid: str
    nic: str
    """The only one in it."""
    meta: ObjectMeta
    """What `Endpoints._remove` needs of it."""


class Endpoints:
    """The SpiderEndpoints of a store, as one replica keeps them."""

    def __init__(self, store: Store) -> None:
        """Nothing is read."""
        self._store = store
        self._written: OrderedDict[tuple[str, str], _Written] = OrderedDict()
        self._owners: OrderedDict[str, tuple[str, str]] = OrderedDict()
        """By uid of what controls the pod: its own controller's kind and name."""

    def __repr__(self) -> str:
        return f"<Endpoints {len(self._written)} remembered>"

    async def write(self, *, pod: Pod, node: str, nic: str, granted: Allocated, clean_gateway: bool) -> None:
        """Record what one NIC of a pod holds: create the object, or put the NIC into the one that is there.

        An object of an earlier pod of the same name gives way. Raises `EndpointContended` and `StoreError`.
        """
        detail = _detail(nic, granted, clean_gateway=clean_gateway)
        name, namespace = pod.metadata.name, pod.metadata.namespace
        self._written.pop((namespace, name), None)
        with traces.span("endpoint.write"):
            kind, owner = await self._top_owner(pod)
            for _ in range(_ATTEMPTS):
                try:
                    made = _new(pod, node, [detail], owner_kind=kind, owner_name=owner)
                    self._remember(await self._store.create(ENDPOINT, made))
                except AlreadyExists:
                    pass
                else:
                    return
                try:
                    found = await self._store.get(ENDPOINT, name, namespace=namespace)
                    if found.metadata.deletion_timestamp is not None or found.status.current.uid != pod.metadata.uid:
                        await self._remove(found.metadata)
                        continue
                    ips = [d for d in found.status.current.ips if d.interface != nic] + [detail]
                    if msgspec.to_builtins(ips) == msgspec.to_builtins(found.status.current.ips):
                        return
                    await self._store.patch(
                        ENDPOINT,
                        name,
                        {"status": {"current": {"node": node, "ips": msgspec.to_builtins(ips)}}},
                        namespace=namespace,
                        resource_version=found.metadata.resource_version,
                    )
                except (Conflict, NotFound):
                    continue
                return
        msg = f"SpiderEndpoint {namespace}/{name} was rewritten by others {_ATTEMPTS} times in a row"
        raise EndpointContended(msg)

    async def pools(self, pod: PodRef, nic: str) -> frozenset[str]:
        """The pools that a pod's NIC holds addresses of, as its SpiderEndpoint says; empty where there is none."""
        try:
            found = await self._store.get(ENDPOINT, pod.name, namespace=pod.namespace)
        except NotFound:
            return frozenset()
        if pod.uid and found.status.current.uid != pod.uid:
            return frozenset()
        names = [n for d in found.status.current.ips if d.interface == nic for n in (d.ipv4_pool, d.ipv6_pool) if n]
        return frozenset(names)

    async def forget(self, pod: PodRef, nic: str) -> None:
        """Take one NIC out of a pod's SpiderEndpoint; with the last one the object goes. Nothing to do is no error."""
        with traces.span("endpoint.forget"):
            known = self._written.pop((pod.namespace, pod.name), None)
            if known is not None and known.pod_uid == pod.uid and known.nic == nic:
                try:
                    await self._remove(known.meta)
                except Conflict:
                    pass  # somebody has written it since
                else:
                    return
            for _ in range(_ATTEMPTS):
                try:
                    found = await self._store.get(ENDPOINT, pod.name, namespace=pod.namespace)
                    if pod.uid and found.status.current.uid != pod.uid:
                        return
                    left = [d for d in found.status.current.ips if d.interface != nic]
                    if not left:
                        await self._remove(found.metadata)
                    elif len(left) < len(found.status.current.ips):
                        await self._store.patch(
                            ENDPOINT,
                            pod.name,
                            {"status": {"current": {"ips": msgspec.to_builtins(left)}}},
                            namespace=pod.namespace,
                            resource_version=found.metadata.resource_version,
                        )
                except Conflict:
                    continue
                except NotFound:
                    return
                return
        msg = f"SpiderEndpoint {pod} was rewritten by others {_ATTEMPTS} times in a row"
        raise EndpointContended(msg)

    async def _remove(self, meta: ObjectMeta) -> None:
        """Finalizer off, then delete: a crash in between leaves an object that the pod's owner reference collects."""
        if meta.finalizers:
            left = [f for f in meta.finalizers if f != FINALIZER]
            try:
                await self._store.patch(
                    ENDPOINT,
                    meta.name,
                    {"metadata": {"finalizers": left or None}},
                    namespace=meta.namespace,
                    resource_version=meta.resource_version,
                )
            except NotFound:
                return
        try:
            await self._store.delete(ENDPOINT, meta.name, namespace=meta.namespace, uid=meta.uid)
        except NotFound:
            return

    async def _top_owner(self, pod: Pod) -> tuple[str, str]:
        """Kind and name of the workload that a pod belongs to in the end; the pod itself where it has no controller."""
        above: dict[str, Kind[Any]] = {"ReplicaSet": REPLICASET, "Job": JOB}
        owner = _controller(pod.metadata.owner_references)
        if owner is None:
            return "Pod", pod.metadata.name
        kind = above.get(owner.kind) if owner.api_version.partition("/")[0] in {"apps", "batch"} else None
        if kind is None:
            return owner.kind, owner.name
        if owner.uid in self._owners:
            return self._owners[owner.uid]
        try:
            holder = await self._store.get(kind, owner.name, namespace=pod.metadata.namespace)
        except NotFound:
            return owner.kind, owner.name
        top = _controller(holder.metadata.owner_references)
        found = (top.kind, top.name) if top is not None else (owner.kind, owner.name)
        if holder.metadata.uid == owner.uid:
            _put(self._owners, owner.uid, found, most=_OWNERS)
        return found

    def _remember(self, made: SpiderEndpoint) -> None:
        meta, current = made.metadata, made.status.current
        kept = ObjectMeta(
            name=meta.name,
            namespace=meta.namespace,
            uid=meta.uid,
            resource_version=meta.resource_version,
            finalizers=meta.finalizers,
        )
        written = _Written(pod_uid=current.uid, nic=current.ips[0].interface, meta=kept)
        _put(self._written, (meta.namespace, meta.name), written, most=_REMEMBERED)


def _detail(nic: str, granted: Allocated, *, clean_gateway: bool) -> IPAllocationDetail:
    by_version: dict[int, Address] = {address.version: address for address in granted.addresses}
    v4, v6 = by_version.get(4), by_version.get(6)
    return IPAllocationDetail(
        interface=nic,
        ipv4=v4.address if v4 else None,
        ipv4_pool=v4.pool if v4 else None,
        ipv4_gateway=(v4.gateway or None) if v4 else None,
        ipv6=v6.address if v6 else None,
        ipv6_pool=v6.pool if v6 else None,
        ipv6_gateway=(v6.gateway or None) if v6 else None,
        clean_gateway=clean_gateway or None,
        routes=[r for r in granted.routes if r.dst not in {"0.0.0.0/0", "::/0"}],
    )


def _new(pod: Pod, node: str, ips: Sequence[IPAllocationDetail], *, owner_kind: str, owner_name: str) -> SpiderEndpoint:
    return SpiderEndpoint(
        metadata=ObjectMeta(
            name=pod.metadata.name,
            namespace=pod.metadata.namespace,
            finalizers=[FINALIZER],
            owner_references=[
                OwnerReference(api_version="v1", kind="Pod", name=pod.metadata.name, uid=pod.metadata.uid)
            ],
        ),
        status=EndpointStatus(
            current=EndpointCurrent(uid=pod.metadata.uid, node=node, ips=list(ips)),
            owner_controller_type=owner_kind,
            owner_controller_name=owner_name,
        ),
    )


def _put[K, V](memory: OrderedDict[K, V], key: K, value: V, *, most: int) -> None:
    memory[key] = value
    if len(memory) > most:
        memory.popitem(last=False)


def _controller(references: Sequence[OwnerReference]) -> OwnerReference | None:
    return next((r for r in references if r.controller), None)
