"""How a pod comes to its addresses: selection, claims on pools, the SpiderEndpoint. All of them or none.

An agent that makes several NICs of a pod asks for all of them at once. One that does not know of the others (they are
another meta plugin's business) asks for one at a time; where the pod names the pools of all its NICs, the first ADD is
granted for all even so, and the ADDs of the others find theirs.

Fixed addresses go with the name. The next pod of the name claims what the last one had: the pools keep it, and give it
over when no link carries it any more. Where the pools that may serve a NIC have changed so that the one that it had is
not named any more, what was kept there is given up first.

A failed allocation is undone by the agent, never here. The same request may be under way twice (doubled, or sent to
another replica when a connection broke), and both find the same records: the copy that fails would take away what the
other has answered with. The agent asks for one sandbox at a time and knows when no copy has answered.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address, ip_network

import anyio
from msgspec import Struct, structs

from actors.allocation.automatic import AutomaticPools
from actors.allocation.callers import Callers, Refusal, View
from actors.allocation.endpoint import Endpoints, Holder
from actors.allocation.networks import Networks
from actors.allocation.provided import Provided, Terms
from actors.allocation.workloads import Workloads
from actors.pools.claims import Claim, Granted, Peek, Refused, Surrender, Surrendered
from actors.pools.peers import Pool
from api import annotations
from api.annotations import AnnotationError
from api.bandwidth import pod_bandwidth
from api.core import Pod
from api.endpoint import SpiderEndpoint
from api.networks import FIRST_NIC, Bandwidth, networks
from api.reasons import Explanation, Reason, Verdict
from api.route import Route
from api.wire import Address, Allocate, Allocated, Networked, NicGrant, NicRequest, PodRef, Rejected
from ipam import autopool
from ipam.selection import NicSelection, Selection, SelectionError, SelectionRequest, select_together
from runtime.errors import first
from runtime.transport.port import Peer
from telemetry import attributes, traces

POOL_SECONDS = 60.0
"""The longest wait for a pool; the asker's own deadline is nearer."""
PATIENCE_SECONDS = 4.0
"""For how long a claim waits for an address where all pools are full. When a workload is rolled one is free sooner, as
a rule, and an ADD has 20 s."""
_MAY_WAIT = 128
"""So many claims of this replica may wait at once, the others are refused as before. Half of what a peer takes from one
connection, and of what the allocator takes without asking how fast it goes (`actors.allocation.pace`): nobody who wants
something of another pool is turned away because of those who wait."""
CONTAINER_PREFIX = 12
"""How much of a container id a record keeps (design of the record: 12 hex digits)."""

_LATER = frozenset({"conflict", "store", "held", "taken", "quarantine", "provider"})
"""Predicates that pass by themselves."""


class Early:
    """Is told of a grant that is committed, before the SpiderEndpoint is written."""

    def __init__(self, tell: Callable[[Allocated], None] | None = None) -> None:
        """`tell` may not raise and may not wait; without it nobody wants to know."""
        self._tell = tell

    def __repr__(self) -> str:
        return "<Early>" if self._tell else "<Early for nobody>"

    def say(self, granted: Allocated) -> None:
        """Tell whoever wants to know."""
        if self._tell is not None:
            self._tell(granted)


UNHEARD = Early()


class Policy(Struct, frozen=True):
    """The settings that decide."""

    enable_ipv4: bool = True
    enable_ipv6: bool = True
    enable_subnets: bool = True
    automatic_pools: bool = True
    """Whether applications that name a SpiderSubnet get pools of their own."""
    cluster_network: str = ""
    """The network attachment of first NICs that name none, ``namespace/name``."""
    namespace: str = ""
    """Where this program runs: network attachments without a namespace are there."""


class _Need(Struct, frozen=True):
    """One address that is wanted."""

    nic: str
    version: int
    pools: tuple[str, ...]
    address: str
    """This one and no other; empty: any."""


class _Won(Struct, frozen=True):
    """And had."""

    pool: str
    granted: Granted


class Grants:
    """What the allocator does for an `Allocate`."""

    def __init__(
        self,
        *,
        pools: Callable[[str], Pool],
        endpoints: Endpoints,
        workloads: Workloads,
        callers: Callers,
        networks: Networks,
        view: View,
        policy: Policy,
        failed: Callable[[Pod, Rejected], None] = lambda _pod, _rejected: None,
        automatic: AutomaticPools | None = None,
        provided: Provided,
    ) -> None:
        """`pools` gives the way to a pool's owner by name, whether the pool exists or not.

        `failed` is told of pods that are refused; it may not raise and may not wait. Without `automatic` a pod that
        names a SpiderSubnet is served from the automatic pools that its application has, whoever made them. `provided`
        asks the network provider.
        """
        self._pool = pools
        self._endpoints = endpoints
        self._workloads = workloads
        self._callers = callers
        self._networks = networks
        self._view = view
        self._policy = policy
        self._failed = failed
        self._automatic = automatic
        self._provided = provided
        self._patient = 0
        """Claims under way that wait where there is no room."""

    def __repr__(self) -> str:
        return "<Grants>"

    async def allocate(self, request: Allocate, peer: Peer, early: Early = UNHEARD) -> Allocated | Networked:
        """The answer to a request. Raises `Refusal`, `StoreError`, `ActorError` and `EndpointContended`."""
        pod = await self._callers.live_pod(request.pod, peer)
        try:
            if request.meta:
                found = await self._networks.of(pod)
                if found.default is not None or found.networks:
                    return found
            return await self._allocate(request, pod, peer, early)
        except Refusal as refusal:
            self._failed(pod, refusal.rejected)
            raise

    async def _allocate(self, request: Allocate, pod: Pod, peer: Peer, early: Early) -> Allocated:
        cluster = self._view.coordination()
        if request.coordinated and cluster.unready and cluster.mode != "disabled":
            text = f"pod {request.pod}: its way through the node cannot be made yet: {cluster.unready}"
            raise Refusal(Rejected(message=text, retry=True, cause="coordinator_not_ready"))
        routes, bandwidth = _routes(pod, request.pod), _bandwidth(pod, request.pod)
        holder = Holder(pod=pod, workload=await self._workloads.top(pod), fixed=self._workloads.fixed(pod))
        had = await self._endpoints.read(pod.metadata.namespace, holder.name) if holder.fixed is not None else None
        with traces.span("allocator.select") as span:
            every, selection = await self._select(request, holder, had, peer)
            span.set_attribute(attributes.SELECTION_SOURCE, selection.source)
            if span.is_recording():
                span.set_attribute(attributes.EXPLANATION, selection.explanation.summary())
        moving = holder.fixed is not None and await self._workloads.moving(pod)
        terms = self._provided.terms(request, (_first(request), *request.more), every, moving=moving)
        self._provided.check(terms, selection, request.pod)
        if had is not None:
            await self._move(holder, had, selection, request.pod)
        claim = Claim(
            pod=f"{pod.metadata.namespace}/{holder.name}",
            uid=pod.metadata.uid,
            nic=request.nic,
            node=peer.node,
            cid=request.container_id[:CONTAINER_PREFIX],
            fixed=holder.fixed is not None,
            begun=request.begun,
            disputed=request.disputed,
            moving=moving,
        )
        won, why, doubtful = await self._claim(claim, selection, terms, had, request.pod)
        specs = {winner.pool: winner.granted.spec for winner in won.values()}
        granted = [_grant(nic, won) for nic in selection.nics]
        ref = structs.replace(request.pod, uid=pod.metadata.uid)
        grants = await self._provided.ask(terms, granted, specs, ref=ref, node=peer.node)
        _direct(routes, grants, won)
        asked = next(grant for grant in grants if grant.nic == request.nic)
        coordinator = self._view.coordination()
        chosen = pod.metadata.annotations.get(annotations.DEFAULT_ROUTE_NIC)
        allocated = Allocated(
            addresses=asked.addresses,
            routes=asked.routes,
            explanation=why,
            pod_uid=pod.metadata.uid,
            doubtful=doubtful,
            coordinator=structs.replace(coordinator, pod_default_route_nic=chosen) if chosen else coordinator,
            others=tuple(grant for grant in grants if grant is not asked),
            fixed=holder.fixed,
            nics=_nics(pod),
            moving=claim.moving,
            bandwidth=bandwidth,
        )
        early.say(allocated)
        await self._endpoints.write(
            holder, node=peer.node, nics=grants, confirm=lambda: self._confirm(claim, won, request.pod)
        )
        return allocated

    async def _select(
        self, request: Allocate, holder: Holder, had: SpiderEndpoint | None, peer: Peer
    ) -> tuple[SelectionRequest, Selection]:
        asked = (_first(request), *request.more)
        twice = [nic for nic, count in Counter(one.nic for one in asked).items() if count > 1]
        if twice:
            text = f"pod {request.pod}: addresses for {twice[0]} are asked for more than once"
            raise Refusal(Rejected(message=text, cause="wrong_input"))
        every = SelectionRequest(
            pod=holder.pod,
            namespace=await self._callers.namespace(request.pod.namespace),
            node=await self._callers.node(peer.node),
            nic=request.nic,
            enable_ipv4=self._policy.enable_ipv4,
            enable_ipv6=self._policy.enable_ipv6,
            enable_subnets=self._policy.enable_subnets,
            automatic_pools=self._policy.automatic_pools,
            cluster_network=self._policy.cluster_network,
            agent_namespace=self._policy.namespace,
            workload=holder.workload,
            holds=frozenset() if had is None else _held(had),
        )
        pools = self._view.pools()
        if self._automatic is not None and every.enable_subnets and autopool.asks(holder.pod.metadata.annotations):
            pools = await self._automatic.prepare(every, request.pod, pools)
        try:
            return every, select_together([_asking(one, every) for one in asked], pools)
        except SelectionError as error:
            raise Refusal(
                Rejected(
                    message=f"pod {request.pod}: {error}",
                    retry=False,
                    cause=error.cause,
                    explanation=error.explanation,
                )
            ) from error

    async def _move(self, holder: Holder, had: SpiderEndpoint, selection: Selection, ref: PodRef) -> None:
        """Give up what is kept in pools that are not named any more."""
        named = {(nic.nic, pool) for nic in selection.nics for pool in (*nic.named_ipv4, *nic.named_ipv6)}
        chosen = {nic.nic for nic in selection.nics}
        for nic, pool in sorted(_held(had)):
            if (nic, pool) in named or (nic not in chosen and not selection.whole):
                continue
            answer = await self._pool(pool).ask(
                Surrender(uid=had.status.current.uid, nic=nic, cid="", kept_only=True), timeout=POOL_SECONDS
            )
            match answer:
                case Surrendered(held=True) if had.status.current.uid != holder.pod.metadata.uid:
                    raise Refusal(
                        Rejected(
                            message=f"pod {ref}: its pool for {nic} is not {pool} any more, but the sandbox of pod uid "
                            f"{had.status.current.uid} on node {had.status.current.node} still has the address there",
                            retry=True,
                            cause="internal",
                            held=True,
                        )
                    )
                case Refused(reason, retry=True):
                    raise Refusal(Rejected(message=f"pool {pool}: {reason}", retry=True, cause="internal", held=True))

    async def _claim(
        self, claim: Claim, selection: Selection, terms: Terms, had: SpiderEndpoint | None, ref: PodRef
    ) -> tuple[Mapping[tuple[str, int], _Won], Explanation, bool]:
        """Every address of the selection, by NIC and IP version; why; and whether copies may be under way."""
        needs = [need for nic in selection.nics for need in _needs(nic)]
        won: dict[tuple[str, int], _Won] = {}
        refused: list[Explanation] = [Explanation()] * len(needs)
        doubts: list[bool] = []

        async def one(at: int, need: _Need) -> None:
            mac = terms.mac(need.nic, need.version)
            mine = structs.replace(claim, nic=need.nic, address=need.address, parent_mac=mac, by=terms.by if mac else 0)
            winner, verdicts, doubtful = await self._claim_one(mine, need, had)
            if winner is not None:
                won[need.nic, need.version] = winner
            refused[at] = Explanation(considered=verdicts)
            doubts.append(doubtful)

        try:
            if len(needs) == 1:
                await one(0, needs[0])
            else:
                async with anyio.create_task_group() as group:
                    for at, need in enumerate(needs):
                        group.start_soon(one, at, need)
        except BaseExceptionGroup as error:
            raise first(error) from error
        why = selection.explanation.merged(*refused)
        missing = [need for need in needs if (need.nic, need.version) not in won]
        if missing:
            raise Refusal(_exhausted(ref, missing, why, several=len(selection.nics) > 1, held=bool(won) or any(doubts)))
        return won, why, any(doubts)

    async def _claim_one(
        self, claim: Claim, need: _Need, had: SpiderEndpoint | None
    ) -> tuple[_Won | None, tuple[Verdict, ...], bool]:
        """An address from the first candidate that has one; a candidate that already serves this NIC goes first.

        The last one may let the claim wait for an address to come back. Also why others had none, and whether a copy of
        a claim may still be under way.
        """
        verdicts: list[Verdict] = []
        doubtful = False
        names = await self._in_order(claim, need, had)
        for at, name in enumerate(names, start=1):
            answer = await self._ask(name, claim, patient=at == len(names))
            doubtful = doubtful or answer.doubtful
            match answer:
                case Granted():
                    return _Won(name, answer), tuple(verdicts), doubtful
                case Refused(reason):
                    verdicts.append(Verdict(pool=name, nic=need.nic, accepted=False, reason=reason))
                    if reason.predicate in {"held", "superseded"} or (claim.fixed and reason.predicate == "provider"):
                        break  # it has an address, which is not free yet: it is not to get a second one
        return None, tuple(verdicts), doubtful

    async def _ask(self, pool: str, claim: Claim, *, patient: bool) -> Granted | Refused:
        if not patient or self._patient >= _MAY_WAIT:
            return await self._pool(pool).ask(claim, timeout=POOL_SECONDS)
        self._patient += 1
        try:
            waiting = structs.replace(claim, patience=PATIENCE_SECONDS)
            return await self._pool(pool).ask(waiting, timeout=POOL_SECONDS)
        finally:
            self._patient -= 1

    async def _confirm(self, claim: Claim, won: Mapping[tuple[str, int], _Won], ref: PodRef) -> None:
        """Raise if not all that was won is this sandbox's still. Nothing is asked twice where all goes well."""
        for (nic, _), winner in won.items():
            question = structs.replace(claim, nic=nic, confirm=True)
            answer = await self._pool(winner.pool).ask(question, timeout=POOL_SECONDS)
            match answer:
                case Granted(address=address) if address == winner.granted.address:
                    pass
                case Refused(reason, retry=True):
                    raise Refusal(Rejected(message=f"pod {ref}: {reason}", retry=True, cause="internal", held=True))
                case _:
                    text = f"pod {ref}: sandbox {claim.cid} was overtaken by a newer one, or taken down, meanwhile"
                    raise Refusal(Rejected(message=text, retry=True, cause="internal", held=True))

    async def _in_order(self, claim: Claim, need: _Need, had: SpiderEndpoint | None) -> Sequence[str]:
        if len(need.pools) == 1:
            return need.pools
        recorded = set() if had is None else {pool for nic, pool in _held(had) if nic == need.nic}
        key = claim.pod if claim.fixed else ""
        peek = Peek(uid=claim.uid, nic=claim.nic, pod=key)
        # What an owner remembers may be older than what somebody has set by hand.
        pools = self._view.pools()
        recorded |= {n for n in need.pools if n in pools and claim.uid in (pools[n].status.allocated_ips or "")}
        holding = [
            name for name in need.pools if name in recorded or await self._pool(name).ask(peek, timeout=POOL_SECONDS)
        ]
        return (*holding, *(name for name in need.pools if name not in holding))


def _first(request: Allocate) -> NicRequest:
    """The first NIC of a request, as the further ones are."""
    return NicRequest(
        nic=request.nic,
        default_ipv4=request.default_ipv4,
        default_ipv6=request.default_ipv6,
        clean_gateway=request.clean_gateway,
        master_subnets=request.master_subnets,
        multus=request.multus,
        ips=request.ips,
        parent_mac=request.parent_mac,
    )


def _asking(one: NicRequest, every: SelectionRequest) -> SelectionRequest:
    """What a NIC asks for, beside what is so of every NIC of the pod."""
    return structs.replace(
        every,
        nic=one.nic,
        default_ipv4=one.default_ipv4,
        default_ipv6=one.default_ipv6,
        clean_gateway=one.clean_gateway,
        master_subnets=one.master_subnets,
        multus=one.multus,
        ips=one.ips,
    )


def _nics(pod: Pod) -> tuple[str, ...]:
    """All that the pod will have, in order; empty where nobody can read that."""
    try:
        made = networks(pod.metadata.annotations, namespace=pod.metadata.namespace)
    except AnnotationError:
        return ()
    return (FIRST_NIC, *(network.interface for network in made))


def _needs(nic: NicSelection) -> list[_Need]:
    wanted = ((4, nic.ipv4, nic.wished_ipv4), (6, nic.ipv6, nic.wished_ipv6))
    return [_Need(nic.nic, version, pools, address) for version, pools, address in wanted if pools]


def _held(endpoint: SpiderEndpoint) -> frozenset[tuple[str, str]]:
    """NICs and their pools."""
    return frozenset(
        (detail.interface, pool)
        for detail in endpoint.status.current.ips
        for pool in (detail.ipv4_pool, detail.ipv6_pool)
        if pool
    )


def _grant(nic: NicSelection, won: Mapping[tuple[str, int], _Won]) -> NicGrant:
    addresses: list[Address] = []
    routes: list[Route] = []
    for version in (4, 6):
        winner = won.get((nic.nic, version))
        if winner is None:
            continue
        granted = winner.granted
        gateway = granted.spec.gateway or ""
        addresses.append(Address(version=version, address=granted.address, pool=winner.pool, gateway=gateway))
        routes += granted.spec.routes or []
        if gateway and not nic.clean_gateway:
            routes.append(Route(dst="0.0.0.0/0" if version == 4 else "::/0", gw=gateway))
    return NicGrant(nic=nic.nic, addresses=tuple(addresses), routes=tuple(routes), clean_gateway=nic.clean_gateway)


def _routes(pod: Pod, ref: PodRef) -> tuple[Route, ...]:
    """The pod's own routes. Raises `Refusal`."""
    try:
        return annotations.pod_routes(pod.metadata.annotations)
    except AnnotationError as error:
        raise Refusal(Rejected(message=f"pod {ref}: {error}", cause="wrong_input")) from error


def _bandwidth(pod: Pod, ref: PodRef) -> Bandwidth | None:
    """What the pod's NICs may carry. Raises `Refusal`."""
    try:
        return pod_bandwidth(pod.metadata.annotations)
    except AnnotationError as error:
        raise Refusal(Rejected(message=f"pod {ref}: {error}", cause="wrong_input")) from error


def _direct(routes: Sequence[Route], grants: list[NicGrant], won: Mapping[tuple[str, int], _Won]) -> None:
    """Give each of the pod's own routes to the first NIC whose subnet holds its gateway.

    One that no subnet holds is for a NIC that another ADD asks for.
    """
    for route in routes:
        gateway = ip_address(route.gw)
        for at, grant in enumerate(grants):
            winner = won.get((grant.nic, gateway.version))
            if winner is not None and gateway in ip_network(winner.granted.spec.subnet, strict=False):
                grants[at] = structs.replace(grant, routes=(*grant.routes, route))
                break


def _exhausted(ref: PodRef, missing: Sequence[_Need], why: Explanation, *, several: bool, held: bool) -> Rejected:
    wanted = " and ".join(dict.fromkeys(f"IPv{need.version}{f' ({need.nic})' if several else ''}" for need in missing))
    reasons: list[Reason] = [verdict.reason for verdict in why.considered if verdict.reason is not None]
    retry = any(reason.predicate in _LATER for reason in reasons)
    return Rejected(
        message=f"pod {ref}: no {wanted} address: {why}",
        retry=retry,
        cause="ip_used_out",
        explanation=why,
        held=held or retry,
    )
