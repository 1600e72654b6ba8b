"""What a controller replica has to say about pods, pools and networks, as events (`actors.events.recorder`).

Called from the path of an allocation: a call costs a message, and where the events' mailbox is full it is counted and
forgotten. Without Kubernetes there is nobody who would read events: then nothing is said.
"""

from collections.abc import Callable

from actors.coordination.coordinators import Notice
from actors.events.recorder import Message, Say
from api.core import ObjectReference, Pod
from api.ippool import SpiderIPPool
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, SUBNET
from api.multusconfig import SpiderMultusConfig
from api.reasons import Reason
from api.subnet import SpiderSubnet
from api.wire import Disown, Rejected
from ipam.identity import Workload
from ipam.overlap import Overlap
from runtime.actor import Ref
from runtime.errors import ActorError
from telemetry import metrics

FAILED_ALLOCATE = "FailedAllocate"
IP_CONFLICT = "IPConflict"
POOL_EXHAUSTED = "PoolExhausted"
POOL_OVERLAP = "PoolOverlap"
NOT_RELEASED = "ProviderNotReleased"
DELETION_BLOCKED = "DeletionBlocked"
CERTIFICATE_NOT_KEPT = "CertificateNotKept"

_OTHERS = 5
"""Pools that an overlap is said about, besides the one that found it."""

_lost = metrics.EVENTS_DROPPED.labels(why="overload")


class Notices:
    """The words for what happens. None of these raises, none waits."""

    def __init__(
        self,
        events: Ref[Message] | None,
        *,
        pool: Callable[[str], SpiderIPPool | None],
        subnet: Callable[[str], SpiderSubnet | None] = lambda _name: None,
    ) -> None:
        """`pool` and `subnet` give one by name, as last seen. Without `events` nothing is said."""
        self._events = events
        self._pool = pool
        self._subnet = subnet

    def __repr__(self) -> str:
        return f"<Notices{'' if self._events else ', unheard'}>"

    def failed(self, pod: Pod, rejected: Rejected) -> None:
        """A pod does not get its addresses."""
        # Not one event for every wording: the numbers in it change from one try to the next.
        self._say(Say(FAILED_ALLOCATE, rejected.message, about=_of_pod(pod), key=FAILED_ALLOCATE))

    def conflict(self, pod: Pod, disown: Disown) -> None:
        """Somebody else on the network has what a pod was to get."""
        addresses = ", ".join(disown.addresses)
        text = f"{disown.nic}: {addresses} is used by somebody else on the network: {disown.seen}"
        self._say(Say(IP_CONFLICT, text, about=_of_pod(pod), key=addresses))

    def application(self, workload: Workload, reason: str, text: str) -> None:
        """An application does not have the automatic pools that it asks for."""
        about = ObjectReference(
            api_version=workload.api_version,
            kind=workload.kind,
            namespace=workload.namespace,
            name=workload.name,
            uid=workload.uid,
        )
        self._say(Say(reason, text, about=about, key=reason))

    def exhausted(self, pool: str, reason: Reason) -> None:
        """A pool has no address for somebody who wants one."""
        self._say(Say(POOL_EXHAUSTED, str(reason), about=self._of_pool(pool), key=POOL_EXHAUSTED))

    def not_released(self, pool: str, text: str) -> None:
        """The network provider does not release an address of a pool."""
        self._say(Say(NOT_RELEASED, text, about=self._of_pool(pool), key=NOT_RELEASED))

    def overlapping(self, pool: str, overlap: Overlap) -> None:
        """Pools share addresses: said about each of them."""
        for other, ranges in overlap.shares[:_OTHERS]:
            for one, another in ((pool, other), (other, pool)):
                text = f"addresses that lie in two pools are granted by neither: {Overlap(((another, ranges),))}"
                self._say(Say(POOL_OVERLAP, text, about=self._of_pool(one), key=another))

    def network(self, config: SpiderMultusConfig, reason: str, text: str) -> None:
        """A SpiderMultusConfig has no definition, or not the one that it describes."""
        meta = config.metadata
        about = ObjectReference(
            api_version=MULTUSCONFIG.api_version,
            kind=MULTUSCONFIG.kind,
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
        )
        self._say(Say(reason, text, about=about, key=reason))

    def coordinator(self, notice: Notice) -> None:
        """What became of looking for the cluster's addresses."""
        meta = notice.coordinator.metadata
        about = ObjectReference(
            api_version=COORDINATOR.api_version, kind=COORDINATOR.kind, name=meta.name, uid=meta.uid
        )
        self._say(Say(notice.reason, notice.text, warning=notice.warning, about=about))

    def certificate(self, secret: ObjectReference, text: str) -> None:
        """The certificate that the controller makes itself is not as it should be."""
        self._say(Say(CERTIFICATE_NOT_KEPT, text, about=secret, key=CERTIFICATE_NOT_KEPT))

    def pool_waits(self, pool: str, text: str) -> None:
        """A pool is being deleted and cannot go."""
        self._say(Say(DELETION_BLOCKED, text, about=self._of_pool(pool), warning=False, key=DELETION_BLOCKED))

    def subnet_waits(self, subnet: str, text: str) -> None:
        """A subnet is being deleted and cannot go."""
        seen = self._subnet(subnet)
        uid = seen.metadata.uid if seen is not None else ""
        about = ObjectReference(api_version=SUBNET.api_version, kind=SUBNET.kind, name=subnet, uid=uid)
        self._say(Say(DELETION_BLOCKED, text, about=about, warning=False, key=DELETION_BLOCKED))

    def _say(self, say: Say) -> None:
        if self._events is None:
            return
        try:
            self._events.tell(say)
        except ActorError:
            _lost.inc()

    def _of_pool(self, name: str) -> ObjectReference:
        seen = self._pool(name)
        uid = seen.metadata.uid if seen is not None else ""
        return ObjectReference(api_version=IPPOOL.api_version, kind=IPPOOL.kind, name=name, uid=uid)


def _of_pod(pod: Pod) -> ObjectReference:
    meta = pod.metadata
    return ObjectReference(api_version="v1", kind="Pod", namespace=meta.namespace, name=meta.name, uid=meta.uid)
