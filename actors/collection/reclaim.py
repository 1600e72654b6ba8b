"""The collector's hands: reads what a verdict needs, lets the rules decide, and has the pool's owner carry it out.

Everything is read from the store, now. The owner gives up exactly the record that was judged: one that was taken over
or written anew since stays. So two collectors at work at a time do the same thing twice, and nothing worse.

The SpiderEndpoint of what is freed forgets it afterwards, and that is tried for some seconds: once the records are gone
nobody comes back for it. A crash in between leaves one that shows too much, for the audit (`actors.collection.audit`).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import assert_never

import anyio
from msgspec import Struct

from actors.allocation.endpoint import EndpointContended, Endpoints
from actors.allocation.workloads import Workloads
from actors.pools.claims import Reclaim, Refused, Surrendered
from actors.pools.peers import Pool
from api.core import Node
from api.kinds import NODE, POD, Kind
from ipam.garbage import Evidence, Held, Ruling, Switches, Verdict, judge, wanting
from runtime.clock import Clock
from runtime.errors import ActorError
from runtime.store.port import NotFound, Store, StoreError
from telemetry import metrics

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

_POOL_SECONDS = 60.0
_PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between the tries to have a SpiderEndpoint forget what was freed."""
_AT_A_TIME = 16
"""Pods that are looked up at once: a node that dies, or a namespace, has many."""


class Case(Struct, frozen=True):
    """A record that may have to go, and why no link carries its address."""

    held: Held
    evidence: Evidence
    superseded: bool = False
    """Its agent knows a newer sandbox of the same pod and NIC."""


class Reclaimer:
    """Closes cases."""

    def __init__(
        self,
        store: Store,
        *,
        pools: Callable[[str], Pool],
        endpoints: Endpoints,
        workloads: Workloads,
        switches: Switches,
        machines: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`pools` gives the way to a pool's owner; `machines` says whether there may be virtual machines."""
        self._store = store
        self._pool = pools
        self._endpoints = endpoints
        self._workloads = workloads
        self._switches = switches
        self._machines = machines
        self._clock = clock

    async def close(self, cases: Iterable[Case], *, ready: Callable[[str], bool]) -> tuple[Held, ...]:
        """Decide about records and carry that out; returns those about which nothing could be decided.

        `ready` says whether a node is ready. Raises nothing of the store's or the pools'.
        """
        pods: dict[str, list[Case]] = {}
        for case in cases:
            pods.setdefault(case.held.record.pod, []).append(case)
        failed: list[Held] = []
        limit = anyio.CapacityLimiter(_AT_A_TIME)

        async def one(of_pod: Sequence[Case]) -> None:
            async with limit:
                try:
                    failed.extend(await self._close(of_pod, ready))
                except (StoreError, ActorError, EndpointContended) as error:
                    metrics.IP_GC_FAILURE_COUNTS.inc()
                    first = of_pod[0].held
                    _log.warning("%s could not be dealt with: %s: %s", first, type(error).__name__, error)
                    failed.extend(case.held for case in of_pod)

        async with anyio.create_task_group() as group:
            for of_pod in pods.values():
                group.start_soon(one, of_pod)
        return tuple(failed)

    async def node(self, name: str) -> Node | None:
        """A node, as it is now. Raises `StoreError`."""
        return await self._read(NODE, name)

    async def _close(self, cases: Sequence[Case], ready: Callable[[str], bool]) -> list[Held]:
        """Those of one pod; returns those whose record was another one already."""
        first = cases[0].held
        pod = await self._read(POD, first.name, namespace=first.namespace) if first.namespace else None
        wanted = await self._wanted(first)
        freed: dict[str, list[str]] = {}
        nics: dict[str, set[str]] = {}
        changed: list[Held] = []
        for case in cases:
            node = case.held.record.node or (pod.spec.node_name if pod is not None else "")
            verdict = judge(
                case.held,
                pod,
                evidence=case.evidence,
                superseded=case.superseded,
                fixed=pod is not None and self._workloads.fixed(pod) is not None,
                wanted=wanted,
                ready=ready(node),
                wall=self._clock.wall(),
                switches=self._switches,
            )
            if verdict.ruling is not Ruling.STAY:
                uid, nic = case.held.record.pod_uid, case.held.record.nic
                answer = await self._carry_out(case, verdict)
                if not (answer.addresses or answer.retained):
                    changed.append(case.held)
                freed.setdefault(uid, []).extend(answer.addresses)
                nics.setdefault(uid, set()).add(nic)
        for uid, addresses in freed.items():
            await self._forget(first, uid, addresses, nics[uid] if pod is None and not wanted else set())
        return changed

    async def _forget(self, held: Held, uid: str, addresses: Sequence[str], nics: Collection[str]) -> None:
        """Have the SpiderEndpoint of a pod forget addresses, and all that it shows of `nics`.

        A late copy of an ADD may have written what was freed before, and what was freed now may have been freed the
        last time, when the answer was lost.
        """
        for pause in (*_PAUSES, None):
            try:
                if nics:
                    await self._endpoints.drop(held.namespace, held.name, uid=uid, gone=nics.__contains__)
                if addresses:
                    await self._endpoints.withdraw(held.namespace, held.name, uid=uid, addresses=addresses)
            except (StoreError, EndpointContended):
                if pause is None:
                    raise
                await anyio.sleep(pause)
            else:
                return

    async def _wanted(self, held: Held) -> bool:
        for fixed in wanting(held, machines=self._machines()):
            if await self._workloads.wanted(held.namespace, fixed):
                return True
        return False

    async def _carry_out(self, case: Case, verdict: Verdict) -> Surrendered:
        """What was freed or kept now: nothing where the pool refuses, or has another record than the one judged."""
        held = case.held
        retain = verdict.ruling is Ruling.KEEP
        answer = await self._pool(held.pool).ask(
            Reclaim(address=held.address, record=held.record, retain=retain), timeout=_POOL_SECONDS
        )
        match answer:
            case Surrendered(addresses=addresses, retained=retained):
                if addresses or retained:
                    what = "collected" if addresses else "kept for the next pod of its name"
                    _audit.info("%s %s: %s, %s", held, what, verdict.cause, case.evidence)
                metrics.IP_GC_COUNTS.inc(len(addresses))
                return answer
            case Refused(reason=reason):
                metrics.IP_GC_FAILURE_COUNTS.inc()
                _log.warning("could not collect %s (%s): %s", held, verdict.cause, reason)
                return Surrendered()
            case _:
                assert_never(answer)

    async def _read[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T | None:
        try:
            return await self._store.get(kind, name, namespace=namespace)
        except NotFound:
            return None
