"""How addresses come back: releases of sandboxes that are gone, and addresses that somebody else on the LAN uses.

A release frees what this pod uid and container have, and nothing of a newer sandbox. Addresses that belong to a name
are not freed as long as a workload wants that name: they are marked as carried by no link, and wait for the next pod.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import assert_never

import anyio
from msgspec import structs

from actors.allocation.callers import Callers, Refusal, View
from actors.allocation.endpoint import ATTEMPTS, EndpointContended, Endpoints
from actors.allocation.grants import CONTAINER_PREFIX, POOL_SECONDS
from actors.allocation.workloads import Workloads
from actors.pools.claims import Disown as PoolDisown
from actors.pools.claims import Refused, Surrender, Surrendered
from actors.pools.peers import Pool
from api.core import Pod
from api.endpoint import SpiderEndpoint
from api.ippool import SpiderIPPool
from api.wire import Disown, Fixed, PodRef, Rejected, Release, Released
from ipam import identity
from ipam.garbage import held_in
from runtime.errors import first
from runtime.store.port import Conflict
from runtime.transport.port import Peer

_audit = logging.getLogger("spiderpool.audit")


class Returns:
    """What the allocator does for a `Release` and a `Disown`."""

    def __init__(
        self,
        *,
        pools: Callable[[str], Pool],
        endpoints: Endpoints,
        workloads: Workloads,
        callers: Callers,
        view: View,
        quarantine: float | None,
        conflict: Callable[[Pod, Disown], None] = lambda _pod, _request: None,
    ) -> None:
        """`pools` gives the way to a pool's owner by name, whether the pool exists or not.

        `quarantine` is for how many seconds nobody gets an address that somebody else uses; None: it is not put aside.
        `conflict` is told of pods whose addresses are used by others; it may not raise and may not wait.
        """
        self._pool = pools
        self._endpoints = endpoints
        self._workloads = workloads
        self._callers = callers
        self._view = view
        self._quarantine = quarantine
        self._conflict = conflict

    def __repr__(self) -> str:
        return "<Returns>"

    async def release(self, request: Release, peer: Peer) -> Released:
        """The answer to a request. Raises `Refusal`, `StoreError`, `ActorError` and `EndpointContended`."""
        self._check(request)
        pod = self._identified(request.pod)
        if pod is None:
            return Released()
        fixed, names = request.fixed, frozenset(request.pools)
        if not names:
            # The agent has lost its memory of the grant.
            fixed, names = await self._search(pod)
        retain = fixed is not None and await self._workloads.wanted(pod.namespace, fixed)
        surrender = Surrender(
            uid=pod.uid,
            nic=request.nic,
            cid=request.container_id[:CONTAINER_PREFIX],
            node=peer.node,
            keep=request.keep,
            retain=retain,
            successor=request.successor[:CONTAINER_PREFIX],
            heir=await self._workloads.heir(pod, fixed) if retain and fixed is not None else None,
        )
        stays = surrender.retain or bool(surrender.successor)
        freed = await self._take_back(
            surrender, pod, fixed, names, peer, gone=lambda nic: nic not in request.keep, stays=stays
        )
        return Released(addresses=freed)

    async def disown(self, request: Disown, peer: Peer) -> Released:
        """The answer to a request. Raises `Refusal`, `StoreError`, `ActorError` and `EndpointContended`."""
        self._check(request)
        seen = self._callers.seen_pod(request.pod)
        if seen is not None and seen.spec.node_name == peer.node:
            self._conflict(seen, request)
        if self._quarantine is None:
            text = (
                f"pod {request.pod}: addresses in conflict are not put aside (SPIDERPOOL_ENABLED_RELEASE_CONFLICT_IPS)"
            )
            raise Refusal(Rejected(message=text, cause="forbidden"))
        pod = self._identified(request.pod)
        if pod is None:
            return Released()
        fixed, names = await self._search(pod)
        if fixed is not None:
            text = f"pod {request.pod}: its addresses belong to {fixed.kind} {fixed.name} and stay with it"
            raise Refusal(Rejected(message=text, cause="stateful"))
        disown = PoolDisown(
            uid=pod.uid,
            nic=request.nic,
            cid=request.container_id[:CONTAINER_PREFIX],
            node=peer.node,
            addresses=request.addresses,
            seen=request.seen,
            seconds=self._quarantine,
        )
        freed = await self._take_back(disown, pod, None, names | {*request.pools}, peer, gone=request.nic.__eq__)
        _audit.info("pod %s, %s: %s in conflict with %s", request.pod, request.nic, ", ".join(freed), request.seen)
        return Released(addresses=freed)

    def _check(self, request: Release | Disown) -> None:
        if not request.container_id:
            # It would match the records of every sandbox.
            raise Refusal(Rejected(message=f"pod {request.pod}: container_id is missing", cause="wrong_input"))

    def _identified(self, ref: PodRef) -> PodRef | None:
        """The pod with the uid that records have; None where nobody knows it any more: the collector finds what it had.

        The runtime knows a static pod by another uid than the API server does.
        """
        pod = self._callers.seen_pod(ref)
        if pod is not None:
            return structs.replace(ref, uid=pod.metadata.uid)
        return ref if ref.uid else None

    async def _search(self, pod: PodRef) -> tuple[Fixed | None, frozenset[str]]:
        """Whose addresses these are, and all pools that may hold some."""
        holding = {name: it for name, it in self._view.pools().items() if pod.uid in (it.status.allocated_ips or "")}
        found = await self._callers.find_pod(pod)
        fixed = self._workloads.fixed(found) if found is not None else _fixed_once(pod, holding.values())
        return fixed, frozenset(holding)

    async def _take_back(
        self,
        message: Surrender | PoolDisown,
        pod: PodRef,
        fixed: Fixed | None,
        names: frozenset[str],
        peer: Peer,
        *,
        gone: Callable[[str], bool],
        stays: bool = False,
    ) -> tuple[str, ...]:
        """Ask these pools, and those that the SpiderEndpoint names; it forgets the NICs that are `gone`; what is free.

        Asked once more after each change of the SpiderEndpoint: a newer sandbox of the pod may have been given
        addresses. Where it `stays` it forgets nothing.
        """
        holder = pod.name if fixed is None else fixed.holder
        freed: set[str] = set()
        for _ in range(ATTEMPTS):
            endpoint = await self._endpoints.known(pod.namespace, holder, uid=pod.uid, gone=gone)
            shown = frozenset[str]() if endpoint is None else _pools(endpoint)
            answers = await self._all(self._ask(name, message, peer) for name in sorted(names | shown))
            freed.update(address for answer in answers for address in answer.addresses)
            if endpoint is None or stays or any(answer.held for answer in answers):
                return tuple(sorted(freed))
            try:
                await self._endpoints.forget(endpoint, gone=gone)
            except Conflict:
                continue  # its memory of it is gone
            return tuple(sorted(freed))
        msg = f"SpiderEndpoint {pod.namespace}/{holder} was rewritten by others {ATTEMPTS} times in a row"
        raise EndpointContended(msg)

    async def _all(self, asks: Iterable[Awaitable[Surrendered]]) -> list[Surrendered]:
        answers: list[Surrendered] = []

        async def one(ask: Awaitable[Surrendered]) -> None:
            answers.append(await ask)

        try:
            async with anyio.create_task_group() as group:
                for ask in asks:
                    group.start_soon(one, ask)
        except BaseExceptionGroup as error:
            raise first(error) from error
        return answers

    async def _ask(self, name: str, message: Surrender | PoolDisown, peer: Peer) -> Surrendered:
        answer = await self._pool(name).ask(message, timeout=POOL_SECONDS)
        match answer:
            case Surrendered():
                return answer
            case Refused(reason):
                if reason.predicate == "exists":
                    return Surrendered()  # the pool is gone, and its records with it
                if reason.predicate == "node":
                    _audit.warning("refused: node %s releases pod uid %s: %s", peer.node, message.uid, reason)
                    raise Refusal(Rejected(message=f"pool {name}: {reason}", cause="denied"))
                # A release is never given up for what may be mended: an unreadable status, a store that refuses.
                raise Refusal(Rejected(message=f"pool {name}: {reason}", retry=True, cause="internal"))
            case _:
                assert_never(answer)


def _pools(endpoint: SpiderEndpoint) -> frozenset[str]:
    details = endpoint.status.current.ips
    return frozenset(pool for detail in details for pool in (detail.ipv4_pool, detail.ipv6_pool) if pool)


def _fixed_once(pod: PodRef, holding: Iterable[SpiderIPPool]) -> Fixed | None:
    """The name that the addresses of a pod that is gone may have belonged to: whether they did, the workload says."""
    statefulset = identity.statefulset_of(pod.name)
    if statefulset:
        return Fixed(kind=identity.STATEFULSET, name=statefulset, holder=pod.name)
    for pool in holding:
        for held in held_in(pool):
            if held.record.pod_uid == pod.uid and held.namespace == pod.namespace and held.name != pod.name:
                return Fixed(kind=identity.VIRTUAL_MACHINE_INSTANCE, name=held.name, holder=held.name)
    return None
