"""How an ADD asks the controller for addresses, and what its failures mean: to the runtime, and for what is held."""

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from actors.node.controllers import Controllers
from api.wire import (
    Allocate,
    Allocated,
    Coordination,
    FindCoordinator,
    FoundCoordinator,
    Networked,
    NicRequest,
    NodeLink,
    PodRef,
    Rejected,
    Response,
)
from cni.coordination import needs_cluster
from cni.errors import AllocationRefused, CniError, InternalError, TryAgainLater
from cni.protocol import Invocation, PodArgs
from runtime.errors import ActorError
from runtime.transport.port import TransportError, Unreachable
from telemetry import metrics

ALLOCATE_SECONDS = 20.0
"""How long an ADD waits for addresses. kubelet gives the whole sandbox 2 minutes and then tries again anyway."""


PROVIDED_SECONDS = 45.0
"""The same where a network provider is asked too. It may wait 30 s for its own limits and 16 s for the cloud (spec of
the original): what it has not done in this time, it is asked for again."""


class HasNetworks(Exception):
    """The pod names networks. Nothing was granted; the link that was made meanwhile waits for the next try."""

    def __init__(self, networked: Networked) -> None:
        super().__init__(f"{len(networked.networks)} further networks")
        self.networked = networked


class Wanted(Struct, frozen=True, kw_only=True):
    """An interface that is to have addresses."""

    invocation: Invocation
    masters: tuple[str, ...] | None = None
    """The networks of the parent NIC; None where nobody wants them matched."""
    parent_mac: str = ""
    """Of the parent NIC; empty where no network provider wants to know it."""
    links: tuple[NodeLink, ...] = ()
    """Of the node, where nobody has said which of them the parent NIC is."""


class _Rejected(Exception):
    """The controller said no."""

    def __init__(self, error: CniError, *, held: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.held = held


class NotAgain(Exception):
    """Addresses were granted, and a further request of the same ADD failed: something may be held."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def pod_ref(args: PodArgs) -> PodRef:
    """The pod, as the runtime names it."""
    return PodRef(namespace=args.namespace, name=args.name, uid=args.uid)


def allocate(wanted: Sequence[Wanted], *, begun: int, disputed: bool, meta: bool) -> Allocate:
    """The request for the addresses of interfaces of one sandbox.

    Args:
        wanted: at least one; the pod is the first one's.
        begun: see `Allocate`.
        disputed: see `Allocate`.
        meta: see `Allocate`.
    """
    first, *more = wanted
    invocation = first.invocation
    mine = _request(first)
    return Allocate(
        pod=pod_ref(invocation.args),
        nic=mine.nic,
        container_id=invocation.container_id,
        default_ipv4=mine.default_ipv4,
        default_ipv6=mine.default_ipv6,
        clean_gateway=mine.clean_gateway,
        begun=begun,
        disputed=disputed,
        master_subnets=mine.master_subnets,
        multus=mine.multus,
        ips=mine.ips,
        parent_mac=mine.parent_mac,
        links=first.links,
        more=tuple(_request(one) for one in more),
        meta=meta,
        coordinated=any(needs_cluster(one.invocation) for one in wanted),
    )


def _request(wanted: Wanted) -> NicRequest:
    conf = wanted.invocation.conf
    return NicRequest(
        nic=wanted.invocation.ifname,
        default_ipv4=conf.ipam.default_ipv4_ippool,
        default_ipv6=conf.ipam.default_ipv6_ippool,
        clean_gateway=conf.ipam.clean_gateway,
        master_subnets=wanted.masters,
        multus=wanted.invocation.multus,
        ips=conf.runtime_config.ips or conf.args.cni.ips,
        parent_mac=wanted.parent_mac,
    )


async def ask(
    controllers: Controllers, request: Allocate, *, deadline: float, interim: Callable[[Response], None] | None = None
) -> tuple[Allocated, bool]:
    """The answer, and whether a copy of the request may still be under way. What it raises, `as_cni` understands.

    With `interim`, which is told what a replica says ahead, the answer is wanted early.
    """
    answered = await controllers.ask(replace(request, early=interim is not None), deadline=deadline, interim=interim)
    match answered.response:
        case Allocated() as allocated:
            return allocated, answered.doubtful
        case Networked() as networked:
            raise HasNetworks(networked)
        case Rejected(message, retry, cause, explanation, held):
            _count_failure(cause)
            details = "" if explanation is None else explanation.summary()
            error = TryAgainLater(message, details) if retry else AllocationRefused(message, details)
            raise _Rejected(error, held=held or answered.doubtful)
        case _:
            msg = f"a controller answered an allocation with {type(answered.response).__name__}"
            raise InternalError(msg)


async def cluster_settings(controllers: Controllers, invocation: Invocation, *, deadline: float) -> Coordination:
    """How the cluster wants its pods to reach their node. Raises `TryAgainLater`."""
    pod = pod_ref(invocation.args)
    try:
        answered = await controllers.ask(FindCoordinator(pod), deadline=deadline)
    except TransportError as error:
        msg = f"pod {pod}: no controller could be asked for the coordinator's settings"
        raise TryAgainLater(msg, str(error)) from error
    match answered.response:
        case FoundCoordinator(coordination, tune_pod_routes, default_route_nic):
            return replace(coordination, tune_pod_routes=tune_pod_routes, pod_default_route_nic=default_route_nic)
        case other:
            msg = f"pod {pod}: the coordinator's settings are not known"
            raise TryAgainLater(msg, str(other))


def holds_nothing(error: BaseException) -> bool:
    """Whether the controller surely holds nothing because of this failure."""
    if isinstance(error, BaseExceptionGroup):
        return any(holds_nothing(inner) for inner in error.exceptions)
    return isinstance(error, Unreachable | HasNetworks) or (isinstance(error, _Rejected) and not error.held)


def as_cni(error: BaseException, invocation: Invocation) -> BaseException:
    """What the runtime is told."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case _Rejected():
            return error.error
        case NotAgain():
            return as_cni(error.error, invocation)
        case TransportError():
            metrics.IPAM_ALLOCATION_ERR_RETRIES_EXHAUSTED_COUNTS.inc()
            text = f"pod {pod_ref(invocation.args)}: no controller could be asked for addresses"
            return TryAgainLater(text, str(error))
        case ActorError():
            return TryAgainLater(f"pod {pod_ref(invocation.args)}: the agent is overloaded or stopping", str(error))
        case _:
            return error


def _count_failure(cause: str) -> None:
    match cause:
        case "no_available_pool":
            metrics.IPAM_ALLOCATION_ERR_NO_AVAILABLE_POOL_COUNTS.inc()
        case "ip_used_out":
            metrics.IPAM_ALLOCATION_ERR_IP_USED_OUT_COUNTS.inc()
        case "internal":
            metrics.IPAM_ALLOCATION_ERR_INTERNAL_COUNTS.inc()
