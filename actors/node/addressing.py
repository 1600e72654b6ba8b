"""How an ADD asks the controller for addresses, and what its failures mean: to the runtime, and for what is held."""

from actors.node.controllers import Controllers
from api.wire import Allocate, Allocated, PodRef, Rejected
from cni.errors import AllocationRefused, CniError, InternalError, TryAgainLater
from cni.protocol import Invocation, PodArgs
from runtime.errors import ActorError
from runtime.transport.port import TransportError, Unreachable
from telemetry import metrics

ALLOCATE_SECONDS = 20.0
"""How long an ADD waits for addresses. kubelet gives the whole sandbox 2 minutes and then tries again anyway."""


class LinkFailed(Exception):
    """The addresses were granted, and the link could not be made."""

    def __init__(self, error: CniError, allocated: Allocated, *, doubtful: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.allocated = allocated
        self.doubtful = doubtful


class _Rejected(Exception):
    """The controller said no."""

    def __init__(self, error: CniError, *, held: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.held = held


def pod_ref(args: PodArgs) -> PodRef:
    """The pod, as the runtime names it."""
    return PodRef(namespace=args.namespace, name=args.name, uid=args.uid)


def allocate(invocation: Invocation, *, begun: int, disputed: bool, masters: tuple[str, ...] | None) -> Allocate:
    """The request of an ADD. `masters`: the networks of the parent NIC; None where nobody wants them matched."""
    ipam = invocation.conf.ipam
    return Allocate(
        pod=pod_ref(invocation.args),
        nic=invocation.ifname,
        container_id=invocation.container_id,
        default_ipv4=ipam.default_ipv4_ippool,
        default_ipv6=ipam.default_ipv6_ippool,
        clean_gateway=ipam.clean_gateway,
        begun=begun,
        disputed=disputed,
        master_subnets=masters,
    )


async def ask(controllers: Controllers, request: Allocate, *, deadline: float) -> tuple[Allocated, bool]:
    """The answer, and whether a copy of the request may still be under way. What it raises, `as_cni` understands."""
    answered = await controllers.ask(request, deadline=deadline)
    match answered.response:
        case Allocated() as allocated:
            return allocated, answered.doubtful
        case Rejected(message, retry, cause, explanation, held):
            _count_failure(cause)
            details = "" if explanation is None else explanation.summary()
            error = TryAgainLater(message, details) if retry else AllocationRefused(message, details)
            raise _Rejected(error, held=held or answered.doubtful)
        case _:
            msg = f"a controller answered an allocation with {type(answered.response).__name__}"
            raise InternalError(msg)


def holds_nothing(error: BaseException) -> bool:
    """Whether the controller surely holds nothing because of this failure."""
    if isinstance(error, BaseExceptionGroup):
        return any(holds_nothing(inner) for inner in error.exceptions)
    return isinstance(error, Unreachable) or (isinstance(error, _Rejected) and not error.held)


def as_cni(error: BaseException, invocation: Invocation) -> BaseException:
    """What the runtime is told."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case _Rejected() | LinkFailed():
            return error.error
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
