"""The allocator: turns "addresses for this pod's NIC" into claims on pools, all or nothing.

Messages: `Serve` from the agents' connections, `Served` from its own work. State: none between requests. Persists:
nothing itself; pools persist their records, and the SpiderEndpoint is written last. Answers: when every address is
committed and the endpoint written; or with a rejection, which says whether records may be held.

A failed allocation is undone by the agent, never here. The same request may be under way twice (doubled, or sent to
another replica when a connection broke), and both find the same records: the copy that fails would take away what the
other has answered with. The agent asks for one sandbox at a time and knows when no copy has answered.

Each request is one coroutine beside the actor, so that one slow pool holds up nobody else. What a crash leaves: records
of a pod whose agent got no answer. That agent repeats the request elsewhere (it finds them) or releases by pod uid, NIC
and container; both need no memory of ours.
"""

import logging
from collections.abc import Callable, Mapping
from typing import assert_never

import anyio
from msgspec import Struct, structs

from actors.endpoint import EndpointContended, Endpoints
from actors.ippool import Claim, Granted, Peek, Refused, Surrender, Surrendered
from actors.peers import Pool
from api.core import Namespace, Node, Pod
from api.ippool import SpiderIPPool
from api.kinds import NAMESPACE, NODE, POD, Kind
from api.meta import ObjectMeta
from api.reasons import Explanation, Verdict
from api.route import Route
from api.wire import (
    Address,
    Allocate,
    Allocated,
    Coordination,
    Disown,
    FindCoordinator,
    FindEndpoint,
    Inquire,
    PodRef,
    Ready,
    Rejected,
    Release,
    Released,
    Report,
    Request,
    Response,
)
from ipam.selection import Selection, SelectionError, SelectionRequest, select
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope
from runtime.errors import ActorError
from runtime.store.port import NotFound, Store, StoreError
from runtime.transport.port import Peer
from telemetry import attributes, traces

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

_POOL_SECONDS = 60.0
"""The longest wait for a pool; the asker's own deadline is nearer."""
CONTAINER_PREFIX = 12
"""How much of a container id a record keeps (design of the record: 12 hex digits)."""


class Serve(Question[Response], frozen=True, tag=True):
    """A request and who sent it."""

    request: Request
    peer: Peer


class Served(Struct, frozen=True, tag=True):
    """A request's work has ended."""

    number: int
    response: Response


class Crashed(Struct, frozen=True, tag=True):
    """A request's work raised something that it should not have."""

    number: int
    error: Exception


class View(Struct, frozen=True):
    """What the allocator sees of the cluster, from snapshots that may lag: never refused on their word alone."""

    pools: Callable[[], Mapping[str, SpiderIPPool]]
    pod: Callable[[str, str], Pod | None]
    namespace: Callable[[str], Namespace | None]
    node: Callable[[str], Node | None]
    coordination: Callable[[], Coordination] = Coordination


class Policy(Struct, frozen=True):
    """The settings that decide."""

    enable_ipv4: bool = True
    enable_ipv6: bool = True
    pods_exist: bool = True
    """False on the embedded store without Kubernetes: nobody creates Pod objects, the runtime's word is taken."""


class _Refusal(Exception):
    """Ends an allocation with an answer."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.message)
        self.rejected = rejected


class AllocatorActor(Actor[Serve | Served | Crashed]):
    """See the module."""

    capacity = 8192

    def __init__(
        self, store: Store, *, pools: Callable[[str], Pool], endpoints: Endpoints, view: View, policy: Policy
    ) -> None:
        """`pools` gives the way to a pool's owner by name, whether the pool exists or not."""
        self._store = store
        self._endpoints = endpoints
        self._pool = pools
        self._view = view
        self._policy = policy
        self._asks: dict[int, Envelope] = {}
        self._number = 0

    def __repr__(self) -> str:
        return f"<AllocatorActor {len(self._asks)} under way>"

    def handle(self, message: Serve | Served | Crashed, envelope: Envelope) -> object:
        """Start a request's work, or pass on its result."""
        match message:
            case Serve(request, peer):
                self._number += 1
                number = self._number
                self._asks[number] = envelope
                self.pipe(
                    self._serve(request, peer),
                    lambda response: Served(number, response),
                    failed=lambda error: Crashed(number, error),
                    on_behalf=envelope,
                )
                return LATER
            case Served(number, response):
                reply = self._asks.pop(number).reply
                if reply is not None:
                    reply.resolve(response)
            case Crashed(number, error):
                _log.error("a request failed", exc_info=error)
                reply = self._asks.pop(number).reply
                if reply is not None:
                    reply.fail(error)
            case _:
                assert_never(message)
        return None

    async def _serve(self, request: Request, peer: Peer) -> Response:
        try:
            match request:
                case Allocate():
                    return await self._allocate(request, peer)
                case Release():
                    return await self._release(request, peer)
                case Inquire():
                    return Ready()
                case Disown():
                    return Rejected(message="quarantine is not served", cause="internal")
                case Report() | FindEndpoint() | FindCoordinator():
                    # Others' business; see `actors.controller`.
                    return Rejected(message=f"{type(request).__name__} is not for the allocator", cause="internal")
                case _:
                    assert_never(request)
        except _Refusal as refusal:
            return refusal.rejected
        except (StoreError, ActorError, EndpointContended) as error:
            return Rejected(message=f"{type(error).__name__}: {error}", retry=True, cause="internal", held=True)

    # -- allocate ------------------------------------------------------------------------------------------------------

    async def _allocate(self, request: Allocate, peer: Peer) -> Allocated:
        pod = await self._live_pod(request.pod, peer)
        with traces.span("allocator.select") as span:
            selection = await self._select(request, pod, peer)
            span.set_attribute(attributes.SELECTION_SOURCE, selection.source)
            span.set_attribute(attributes.EXPLANATION, selection.explanation.summary())
        asked = selection.asked
        candidates = {version: names for version, names in ((4, asked.ipv4), (6, asked.ipv6)) if names}
        granted: dict[int, tuple[str, Granted]] = {}
        refused: dict[int, Explanation] = {}
        doubts: list[bool] = []

        async def claim(version: int, names: tuple[str, ...]) -> None:
            won, verdicts, doubtful = await self._claim_one(request, pod, peer, names)
            if won is not None:
                granted[version] = won
            refused[version] = Explanation(considered=verdicts)
            doubts.append(doubtful)

        try:
            async with anyio.create_task_group() as group:
                for version, names in candidates.items():
                    group.start_soon(claim, version, names)
            why = selection.explanation.merged(*refused.values())
            missing = [version for version in candidates if version not in granted]
            if missing:
                raise _Refusal(_exhausted(request.pod, missing, why, held=bool(granted) or any(doubts)))
            answer = _allocated(granted, why, pod, clean_gateway=asked.clean_gateway, doubtful=any(doubts))
            answer = structs.replace(answer, coordinator=self._view.coordination())
            await self._endpoints.write(
                pod=pod,
                node=peer.node,
                nic=request.nic,
                granted=answer,
                clean_gateway=asked.clean_gateway,
            )
        except BaseExceptionGroup as error:
            raise _first(error) from error
        return answer

    async def _claim_one(
        self, request: Allocate, pod: Pod, peer: Peer, names: tuple[str, ...]
    ) -> tuple[tuple[str, Granted] | None, tuple[Verdict, ...], bool]:
        """An address from the first candidate that has one; a candidate that already serves this NIC goes first.

        Also why others had none, and whether a copy of a claim may still be under way.
        """
        if len(names) > 1:
            holding = [
                name
                for name in names
                if await self._pool(name).ask(Peek(uid=pod.metadata.uid, nic=request.nic), timeout=_POOL_SECONDS)
            ]
            names = (*holding, *(name for name in names if name not in holding))
        verdicts: list[Verdict] = []
        doubtful = False
        for name in names:
            answer = await self._pool(name).ask(
                Claim(
                    pod=str(request.pod),
                    uid=pod.metadata.uid,
                    nic=request.nic,
                    node=peer.node,
                    cid=request.container_id[:CONTAINER_PREFIX],
                ),
                timeout=_POOL_SECONDS,
            )
            doubtful = doubtful or answer.doubtful
            match answer:
                case Granted():
                    return (name, answer), tuple(verdicts), doubtful
                case Refused(reason):
                    verdicts.append(Verdict(pool=name, accepted=False, reason=reason, nic=request.nic))
        return None, tuple(verdicts), doubtful

    async def _select(self, request: Allocate, pod: Pod, peer: Peer) -> Selection:
        selection_request = SelectionRequest(
            pod=pod,
            namespace=await self._object(NAMESPACE, request.pod.namespace, self._view.namespace),
            node=await self._object(NODE, peer.node, self._view.node),
            nic=request.nic,
            default_ipv4=request.default_ipv4,
            default_ipv6=request.default_ipv6,
            enable_ipv4=self._policy.enable_ipv4,
            enable_ipv6=self._policy.enable_ipv6,
            clean_gateway=request.clean_gateway,
            master_subnets=request.master_subnets,
        )
        try:
            return select(selection_request, self._view.pools())
        except SelectionError as error:
            raise _Refusal(
                Rejected(
                    message=f"pod {request.pod}: {error}",
                    retry=False,
                    cause=error.cause,
                    explanation=error.explanation,
                )
            ) from error

    async def _object[T](self, kind: Kind[T], name: str, cached: Callable[[str], T | None]) -> T | None:
        found = cached(name)
        if found is not None or not self._policy.pods_exist:
            return found
        try:
            return await self._store.get(kind, name)
        except NotFound:
            return None

    async def _live_pod(self, ref: PodRef, peer: Peer) -> Pod:
        """The pod that asks: from the snapshot if it is there with this uid, else read.

        Refused unless it is alive and on the node that asks.
        """
        pod = self._view.pod(ref.namespace, ref.name)
        if pod is None and not self._policy.pods_exist:
            return Pod(metadata=ObjectMeta(name=ref.name, namespace=ref.namespace, uid=ref.uid or str(ref)))
        if pod is None or not _same(pod, ref.uid):
            try:
                pod = await self._store.get(POD, ref.name, namespace=ref.namespace)
            except NotFound:
                missing = Rejected(message=f"pod {ref}: no such pod", retry=True, cause="wrong_input")
                raise _Refusal(missing) from None
            if not _same(pod, ref.uid):
                raise _Refusal(
                    Rejected(
                        message=f"pod {ref}: K8S_POD_UID {ref.uid} has been replaced by {pod.metadata.uid}",
                        cause="wrong_input",
                    )
                )
        if pod.spec.node_name != peer.node:
            _audit.warning("refused: node %s asks for pod %s of node %s", peer.node, ref, pod.spec.node_name)
            raise _Refusal(
                Rejected(
                    message=f"pod {ref} runs on node {pod.spec.node_name or '(none yet)'}, not on {peer.node}",
                    retry=not pod.spec.node_name,
                    cause="denied",
                )
            )
        if not pod.alive:
            raise _Refusal(Rejected(message=f"pod {ref} is {pod.phase_text}: it needs no address", cause="wrong_input"))
        return pod

    # -- release -------------------------------------------------------------------------------------------------------

    async def _release(self, request: Release, peer: Peer) -> Released:
        if not request.container_id:
            # It would match the records of every sandbox.
            raise _Refusal(Rejected(message=f"pod {request.pod}: container_id is missing", cause="wrong_input"))
        uid = request.pod.uid
        if not uid:
            pod = self._view.pod(request.pod.namespace, request.pod.name)
            uid = pod.metadata.uid if pod is not None else ""
        if not uid:
            return Released()
        pod_ref = PodRef(namespace=request.pod.namespace, name=request.pod.name, uid=uid)
        names = set(request.pools)
        if not names:
            # The agent has lost its memory of the grant: ask the endpoint, and every pool that names the pod.
            names |= await self._endpoints.pools(pod_ref, request.nic)
            names |= {n for n, pool in self._view.pools().items() if uid in (pool.status.allocated_ips or "")}
        surrendered: list[Surrendered] = []

        async def surrender(name: str) -> None:
            surrendered.append(await self._surrender(name, uid, request.nic, request.container_id, peer))

        try:
            async with anyio.create_task_group() as group:
                for name in sorted(names):
                    group.start_soon(surrender, name)
        except BaseExceptionGroup as error:
            raise _first(error) from error
        freed = sorted(address for s in surrendered for address in s.addresses)
        held = any(s.held for s in surrendered)
        if not held:
            await self._endpoints.forget(pod_ref, request.nic)
        return Released(addresses=tuple(freed))

    async def _surrender(self, name: str, uid: str, nic: str, container_id: str, peer: Peer) -> Surrendered:
        answer = await self._pool(name).ask(
            Surrender(uid=uid, nic=nic, cid=container_id[:CONTAINER_PREFIX], node=peer.node), timeout=_POOL_SECONDS
        )
        match answer:
            case Surrendered():
                return answer
            case Refused(reason):
                if reason.predicate == "exists":
                    return Surrendered()  # the pool is gone, and its records with it
                if reason.predicate == "node":
                    _audit.warning("refused: node %s releases pod uid %s: %s", peer.node, uid, reason)
                    raise _Refusal(Rejected(message=f"pool {name}: {reason}", cause="denied"))
                # A release is never given up for what may be mended: an unreadable status, a store that refuses.
                raise _Refusal(Rejected(message=f"pool {name}: {reason}", retry=True, cause="internal"))
            case _:
                assert_never(answer)


def _same(pod: Pod, uid: str) -> bool:
    """Whether this is the pod that the runtime means. A static pod's runtime uid is its mirror's config hash."""
    return not uid or pod.metadata.uid == uid or pod.metadata.annotations.get("kubernetes.io/config.hash") == uid


def _exhausted(pod: PodRef, versions: list[int], why: Explanation, *, held: bool) -> Rejected:
    families = " and ".join(f"IPv{version}" for version in sorted(versions))
    retry = any(v.reason is not None and v.reason.predicate in {"conflict", "store"} for v in why.considered)
    return Rejected(
        message=f"pod {pod}: no {families} address: {why}",
        retry=retry,
        cause="ip_used_out",
        explanation=why,
        held=held or retry,
    )


def _allocated(
    granted: Mapping[int, tuple[str, Granted]], why: Explanation, pod: Pod, *, clean_gateway: bool, doubtful: bool
) -> Allocated:
    addresses: list[Address] = []
    routes: list[Route] = []
    for version, (name, grant) in sorted(granted.items()):
        gateway = grant.spec.gateway or ""
        addresses.append(Address(version=version, address=grant.address, pool=name, gateway=gateway))
        routes += grant.spec.routes or []
        if gateway and not clean_gateway:
            routes.append(Route(dst="0.0.0.0/0" if version == 4 else "::/0", gw=gateway))
    return Allocated(
        addresses=tuple(addresses),
        routes=tuple(routes),
        explanation=why,
        pod_uid=pod.metadata.uid,
        doubtful=doubtful,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
