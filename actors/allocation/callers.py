"""Who may ask for what: a pod that asks for addresses has to be alive, and on the node whose agent asks for it.

Snapshots save reads; a pod that is missing in one, or has another uid or node there, is read before anything is
refused: kubelet acts the moment a pod is bound, and may be ahead of what a replica has seen.
"""

import logging
from collections.abc import Callable, Mapping

from msgspec import Struct

from api.annotations import STATIC_POD_HASH
from api.core import Namespace, Node, Pod
from api.ippool import SpiderIPPool
from api.kinds import NAMESPACE, NODE, POD, Kind
from api.meta import ObjectMeta
from api.wire import Coordination, PodRef, Rejected
from runtime.store.port import NotFound, Store
from runtime.transport.port import Peer

_audit = logging.getLogger("spiderpool.audit")


class View(Struct, frozen=True):
    """What a replica sees of the cluster, from snapshots that may lag: nothing is refused on their word alone."""

    pools: Callable[[], Mapping[str, SpiderIPPool]]
    pod: Callable[[str, str], Pod | None]
    namespace: Callable[[str], Namespace | None]
    node: Callable[[str], Node | None]
    coordination: Callable[[], Coordination] = Coordination


class Refusal(Exception):
    """Ends a request with an answer."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.message)
        self.rejected = rejected


class Callers:
    """The pods of a cluster as the agents that ask for them."""

    def __init__(self, store: Store, view: View, *, pods_exist: bool) -> None:
        """Without `pods_exist` nobody creates Pod objects: the runtime's word is taken."""
        self._store = store
        self._view = view
        self._pods_exist = pods_exist

    def __repr__(self) -> str:
        return f"<Callers{'' if self._pods_exist else ' without Pod objects'}>"

    async def live_pod(self, ref: PodRef, peer: Peer) -> Pod:
        """The pod that asks. Raises `Refusal` unless it is alive and on the node that asks, and `StoreError`."""
        pod = self._view.pod(ref.namespace, ref.name)
        if pod is None and not self._pods_exist:
            return Pod(metadata=ObjectMeta(name=ref.name, namespace=ref.namespace, uid=ref.uid or str(ref)))
        if pod is None or not same(pod, ref.uid) or pod.spec.node_name != peer.node:
            try:
                pod = await self._store.get(POD, ref.name, namespace=ref.namespace)
            except NotFound:
                missing = Rejected(message=f"pod {ref}: no such pod", retry=True, cause="wrong_input")
                raise Refusal(missing) from None
            if not same(pod, ref.uid):
                raise Refusal(
                    Rejected(
                        message=f"pod {ref}: K8S_POD_UID {ref.uid} has been replaced by {pod.metadata.uid}",
                        cause="wrong_input",
                    )
                )
        if pod.spec.node_name != peer.node:
            _audit.warning("refused: node %s asks for pod %s of node %s", peer.node, ref, pod.spec.node_name)
            raise Refusal(
                Rejected(
                    message=f"pod {ref} runs on node {pod.spec.node_name or '(none yet)'}, not on {peer.node}",
                    retry=not pod.spec.node_name,
                    cause="denied",
                )
            )
        if not pod.alive:
            raise Refusal(Rejected(message=f"pod {ref} is {pod.phase_text}: it needs no address", cause="wrong_input"))
        return pod

    def seen_pod(self, ref: PodRef) -> Pod | None:
        """The pod as last seen, if it is this one: a hint."""
        pod = self._view.pod(ref.namespace, ref.name)
        return pod if pod is not None and same(pod, ref.uid) else None

    async def find_pod(self, ref: PodRef) -> Pod | None:
        """The pod, wherever and however it is; None where it is gone for certain. Raises `StoreError`."""
        pod = self.seen_pod(ref)
        if pod is not None or not self._pods_exist:
            return pod
        try:
            pod = await self._store.get(POD, ref.name, namespace=ref.namespace)
        except NotFound:
            return None
        return pod if same(pod, ref.uid) else None

    async def namespace(self, name: str) -> Namespace | None:
        """A namespace. Raises `StoreError`."""
        return await self._object(NAMESPACE, name, self._view.namespace)

    async def node(self, name: str) -> Node | None:
        """A node. Raises `StoreError`."""
        return await self._object(NODE, name, self._view.node)

    async def _object[T](self, kind: Kind[T], name: str, cached: Callable[[str], T | None]) -> T | None:
        found = cached(name)
        if found is not None or not self._pods_exist:
            return found
        try:
            return await self._store.get(kind, name)
        except NotFound:
            return None


def same(pod: Pod, uid: str) -> bool:
    """Whether this is the pod that the runtime means. A static pod's runtime uid is its mirror's config hash."""
    return not uid or pod.metadata.uid == uid or pod.metadata.annotations.get(STATIC_POD_HASH) == uid
