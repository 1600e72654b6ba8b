"""The SpiderEndpoint of a pod: what it holds, for people and for programs that read the original's objects.

A projection. The authority over an address is its pool's status; this object is written after it, removed after it, and
nothing is decided from it alone. Where all goes well it costs one write when a pod comes, and two when it goes: one
takes the finalizer off, one deletes. Nothing is read for that: what this process wrote last is remembered, and the
resourceVersion says whether it still is what is there.

The object of a pod is owned by the pod. Where addresses are fixed it is owned by nobody and stays when the pod goes:
the next pod of that name is written into it.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Any

import anyio
import msgspec
from msgspec import Struct, structs

from api.core import Pod
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.kinds import ENDPOINT
from api.meta import FINALIZER, ObjectMeta, OwnerReference
from api.wire import Address, Fixed, NicGrant
from ipam.identity import Workload
from runtime.store.port import AlreadyExists, Conflict, NotFound, Store
from telemetry import traces

ATTEMPTS = 5
"""Of a change that others overtake."""
_REMOVALS = 8
"""Objects that releases take away at a time. A release costs the API server ten times as much for the SpiderEndpoint as
for its part of a pool's write: more at once would make the pools' writes wait, and with them whoever needs an address.
"""
_REMEMBERED = 8192
"""Objects; the oldest are forgotten first. About a kilobyte each."""


class EndpointContended(Exception):
    """Others rewrote the SpiderEndpoint each time we were about to: try again later."""


class Holder(Struct, frozen=True, kw_only=True):
    """Whose SpiderEndpoint it is.

    Attributes:
        pod: the pod that has the addresses now.
        workload: what it belongs to in the end.
        fixed: the name that the addresses belong to; None: to the pod.
    """

    pod: Pod
    workload: Workload
    fixed: Fixed | None

    @property
    def name(self) -> str:
        """Of the SpiderEndpoint, and in the pools' records."""
        return self.pod.metadata.name if self.fixed is None else self.fixed.holder


class Endpoints:
    """The SpiderEndpoints of a store, as one replica keeps them."""

    def __init__(self, store: Store) -> None:
        """Nothing is read."""
        self._store = store
        self._written: OrderedDict[tuple[str, str], SpiderEndpoint] = OrderedDict()
        self._removals = anyio.CapacityLimiter(_REMOVALS)

    def __repr__(self) -> str:
        return f"<Endpoints {len(self._written)} remembered>"

    async def write(
        self,
        holder: Holder,
        *,
        node: str,
        nics: Sequence[NicGrant],
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Record what NICs of a pod hold: create the object, or put the NICs into the one that is there.

        An object of an earlier pod of the same name gives way, unless the addresses are fixed. Before what is written
        there is replaced, `confirm` raises if the pools have something newer than `nics`: that was written later than
        they were asked, and is not to be undone. Raises `EndpointContended` and `StoreError`.
        """
        namespace, name = holder.pod.metadata.namespace, holder.name
        details = [_detail(nic) for nic in nics]
        known = self._written.pop((namespace, name), None)
        with traces.span("endpoint.write"):
            for _ in range(ATTEMPTS):
                try:
                    if known is not None:
                        if confirm is not None and _is_at_odds(known, holder, details):
                            await confirm()
                        if _is_replaced(known, holder):
                            await self._remove(known.metadata)
                            known = None
                    await self._put(known, holder, node, details)
                except (AlreadyExists, Conflict):
                    known = await self.read(namespace, name)
                except NotFound:
                    known = None
                else:
                    return
        msg = f"SpiderEndpoint {namespace}/{name} was rewritten by others {ATTEMPTS} times in a row"
        raise EndpointContended(msg)

    async def mend(self, found: SpiderEndpoint | None, holder: Holder, *, node: str, nics: Sequence[NicGrant]) -> None:
        """As `write`, of an object that still is as it was `found`.

        Raises `Conflict` or `AlreadyExists` where it has changed since, and other `StoreError`s.
        """
        self._written.pop((holder.pod.metadata.namespace, holder.name), None)
        if found is not None and _is_replaced(found, holder):
            await self._remove(found.metadata)
            found = None
        await self._put(found, holder, node, [_detail(nic) for nic in nics])

    async def _put(
        self, known: SpiderEndpoint | None, holder: Holder, node: str, details: Sequence[IPAllocationDetail]
    ) -> None:
        if known is None:
            self._remember(await self._store.create(ENDPOINT, _new(holder, node, details)))
            return
        meta = known.metadata
        change = _change(known, holder, node, details)
        if change:
            known = await self._store.patch(
                ENDPOINT, meta.name, change, namespace=meta.namespace, resource_version=meta.resource_version
            )
        self._remember(known)

    async def read(self, namespace: str, name: str) -> SpiderEndpoint | None:
        """The object as the store has it. Raises `StoreError`."""
        try:
            return await self._store.get(ENDPOINT, name, namespace=namespace)
        except NotFound:
            return None

    async def known(self, namespace: str, name: str, *, uid: str, gone: Callable[[str], bool]) -> SpiderEndpoint | None:
        """The object of a pod uid, if it shows a NIC that is `gone`: as it was written last here, else as it is stored.

        A memory that shows nothing of it may be one that others have overtaken. Raises `StoreError`.
        """

        def shows(found: SpiderEndpoint | None) -> bool:
            current = None if found is None else found.status.current
            return current is not None and current.uid == uid and any(gone(detail.interface) for detail in current.ips)

        found = self._written.get((namespace, name))
        if not shows(found):
            found = await self.read(namespace, name)
        return found if shows(found) else None

    async def forget(self, found: SpiderEndpoint, *, gone: Callable[[str], bool]) -> None:
        """Take the NICs that are `gone` out of an object that still is as it was `found`; with the last one it goes.

        Whoever finds the object first and then learns that the pools have nothing for these NICs, cannot take what a
        newer sandbox is given meanwhile: that is written later than its records. Raises `Conflict` where the object
        has changed since, and other `StoreError`s.
        """
        async with self._removals:
            with traces.span("endpoint.forget"):
                await self._shrink(found, lambda detail: None if gone(detail.interface) else detail)

    async def drop(self, namespace: str, name: str, *, uid: str, gone: Callable[[str], bool]) -> None:
        """As `forget`, of a pod that is no more, however often the object changes meanwhile.

        Nothing to do is no error; an object of another pod uid is not touched. Raises `EndpointContended` and
        `StoreError`.
        """
        await self._reduce(namespace, name, uid=uid, left=lambda detail: None if gone(detail.interface) else detail)

    async def withdraw(self, namespace: str, name: str, *, uid: str, addresses: Container[str]) -> None:
        """As `drop`, by addresses without prefix length: a NIC goes with its last one."""

        def left(detail: IPAllocationDetail) -> IPAllocationDetail | None:
            if _is_among(detail.ipv4, addresses):
                detail = structs.replace(detail, ipv4=None, ipv4_pool=None, ipv4_gateway=None)
            if _is_among(detail.ipv6, addresses):
                detail = structs.replace(detail, ipv6=None, ipv6_pool=None, ipv6_gateway=None)
            return detail if detail.ipv4 or detail.ipv6 else None

        await self._reduce(namespace, name, uid=uid, left=left)

    async def remove(self, found: SpiderEndpoint) -> None:
        """Let an object go, as it was read. Raises `Conflict` where it has changed since, and other `StoreError`s."""
        self._written.pop((found.metadata.namespace, found.metadata.name), None)
        await self._remove(found.metadata)

    async def _reduce(
        self,
        namespace: str,
        name: str,
        *,
        uid: str,
        left: Callable[[IPAllocationDetail], IPAllocationDetail | None],
    ) -> None:
        """Keep what is `left` of each NIC."""
        with traces.span("endpoint.forget"):
            found = self._written.get((namespace, name))
            if found is not None and list(map(left, found.status.current.ips)) == found.status.current.ips:
                found = None  # others have written it since, or there is nothing to do
            if found is None or found.status.current.uid != uid:
                found = await self.read(namespace, name)
            for _ in range(ATTEMPTS):
                if found is None or (uid and found.status.current.uid != uid):
                    return
                try:
                    await self._shrink(found, left)
                except Conflict:
                    found = await self.read(namespace, name)
                else:
                    return
        msg = f"SpiderEndpoint {namespace}/{name} was rewritten by others {ATTEMPTS} times in a row"
        raise EndpointContended(msg)

    async def _shrink(
        self, found: SpiderEndpoint, left: Callable[[IPAllocationDetail], IPAllocationDetail | None]
    ) -> None:
        namespace, name, ips = found.metadata.namespace, found.metadata.name, found.status.current.ips
        self._written.pop((namespace, name), None)
        kept = [detail for detail in map(left, ips) if detail is not None]
        if not kept:
            await self._remove(found.metadata)
        elif kept != ips:
            try:
                changed = await self._store.patch(
                    ENDPOINT,
                    name,
                    {"status": {"current": {"ips": msgspec.to_builtins(kept)}}},
                    namespace=namespace,
                    resource_version=found.metadata.resource_version,
                )
            except NotFound:
                return
            self._remember(changed)

    async def _remove(self, meta: ObjectMeta) -> None:
        """Finalizer off, then delete: a crash in between leaves an object that the pod's owner reference collects.

        What somebody writes in between, he wrote for a pod that lives: it stays.
        """
        resource_version = meta.resource_version
        if meta.finalizers:
            left = [f for f in meta.finalizers if f != FINALIZER]
            try:
                changed = await self._store.patch(
                    ENDPOINT,
                    meta.name,
                    {"metadata": {"finalizers": left or None}},
                    namespace=meta.namespace,
                    resource_version=meta.resource_version,
                )
            except NotFound:
                return
            resource_version = changed.metadata.resource_version
        try:
            await self._store.delete(
                ENDPOINT, meta.name, namespace=meta.namespace, uid=meta.uid, resource_version=resource_version
            )
        except NotFound:
            return

    def _remember(self, made: SpiderEndpoint) -> None:
        meta = made.metadata
        kept = ObjectMeta(
            name=meta.name,
            namespace=meta.namespace,
            uid=meta.uid,
            resource_version=meta.resource_version,
            deletion_timestamp=meta.deletion_timestamp,
            finalizers=meta.finalizers,
            owner_references=meta.owner_references,
        )
        self._written[meta.namespace, meta.name] = structs.replace(made, metadata=kept)
        if len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)


def _is_replaced(found: SpiderEndpoint, holder: Holder) -> bool:
    """Whether an object has to go before one for this holder can be made."""
    if found.metadata.deletion_timestamp is not None:
        return True
    return holder.fixed is None and found.status.current.uid != holder.pod.metadata.uid


def _is_at_odds(found: SpiderEndpoint, holder: Holder, details: Sequence[IPAllocationDetail]) -> bool:
    """Whether it says something else of these NICs, or of another pod."""
    current = found.status.current
    shown = {detail.interface: (detail.ipv4, detail.ipv6) for detail in current.ips}
    return current.uid != holder.pod.metadata.uid or any(
        shown.get(detail.interface, (detail.ipv4, detail.ipv6)) != (detail.ipv4, detail.ipv6) for detail in details
    )


def _change(
    found: SpiderEndpoint, holder: Holder, node: str, details: Sequence[IPAllocationDetail]
) -> dict[str, Any] | None:
    """What has to be patched in an object that stays; None where it says all that already."""
    written = {detail.interface for detail in details}
    ips = [detail for detail in found.status.current.ips if detail.interface not in written] + list(details)
    current = EndpointCurrent(uid=holder.pod.metadata.uid, node=node, ips=ips)
    change: dict[str, Any] = {}
    if msgspec.to_builtins(current) != msgspec.to_builtins(found.status.current):
        change["status"] = {"current": msgspec.to_builtins(current)}
    meta: dict[str, Any] = {}
    if holder.fixed is not None and found.metadata.owner_references:
        meta["ownerReferences"] = None
    if FINALIZER not in found.metadata.finalizers:
        meta["finalizers"] = [*found.metadata.finalizers, FINALIZER]  # its removal had begun
    if meta:
        change["metadata"] = meta
    return change or None


def _is_among(address: str | None, addresses: Container[str]) -> bool:
    return address is not None and address.partition("/")[0] in addresses


def _detail(grant: NicGrant) -> IPAllocationDetail:
    by_version: dict[int, Address] = {address.version: address for address in grant.addresses}
    v4, v6 = by_version.get(4), by_version.get(6)
    return IPAllocationDetail(
        interface=grant.nic,
        ipv4=v4.address if v4 else None,
        ipv4_pool=v4.pool if v4 else None,
        ipv4_gateway=(v4.gateway or None) if v4 else None,
        ipv6=v6.address if v6 else None,
        ipv6_pool=v6.pool if v6 else None,
        ipv6_gateway=(v6.gateway or None) if v6 else None,
        vlan=v4.vlan if v4 else 0,
        mac=(v4.mac or None) if v4 else None,
        clean_gateway=grant.clean_gateway or None,
        routes=[r for r in grant.routes if r.dst not in {"0.0.0.0/0", "::/0"}],
    )


def _new(holder: Holder, node: str, ips: Sequence[IPAllocationDetail]) -> SpiderEndpoint:
    pod = holder.pod.metadata
    owner = OwnerReference(api_version="v1", kind="Pod", name=pod.name, uid=pod.uid)
    return SpiderEndpoint(
        metadata=ObjectMeta(
            name=holder.name,
            namespace=pod.namespace,
            finalizers=[FINALIZER],
            owner_references=[owner] if holder.fixed is None else [],
        ),
        status=EndpointStatus(
            current=EndpointCurrent(uid=pod.uid, node=node, ips=list(ips)),
            owner_controller_type=holder.workload.kind,
            owner_controller_name=holder.workload.name,
        ),
    )
