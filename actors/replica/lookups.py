"""What an agent may look up in the cluster for a pod of its own node, and has no right to read by itself.

No actor: nothing is kept and nothing changes. A pod is believed to be where the snapshot has it, for that is all that
such a question can reveal; one that the snapshot lacks or has elsewhere is read.
"""

import logging
from collections.abc import Callable

from msgspec import Struct

from api.annotations import DEFAULT_ROUTE_NIC
from api.core import Pod
from api.kinds import ENDPOINT, POD
from api.wire import FindCoordinator, FindEndpoint, Fixed, FoundCoordinator, FoundEndpoint, PodRef, Rejected
from runtime.store.port import NotFound, Store, StoreError
from runtime.transport.port import Peer

_audit = logging.getLogger("spiderpool.audit")


class Scene(Struct, frozen=True):
    """What lookups see of the cluster, from snapshots that may lag."""

    pod: Callable[[str, str], Pod | None]
    coordinator: Callable[[], FoundCoordinator]
    """The cluster's settings, whichever pod asks."""
    fixed: Callable[[Pod], Fixed | None]
    """The name that a pod's addresses belong to, where that is not the pod's own."""


class Lookups:
    """The lookups of one replica."""

    def __init__(self, store: Store, scene: Scene, *, pods_exist: bool = True) -> None:
        """Without `pods_exist` nobody creates Pod objects, and whoever asks is believed."""
        self._store = store
        self._scene = scene
        self._pods_exist = pods_exist

    def __repr__(self) -> str:
        return "<Lookups>"

    async def serve(
        self, request: FindEndpoint | FindCoordinator, peer: Peer
    ) -> FoundEndpoint | FoundCoordinator | Rejected:
        """Answer the agent of `peer.node`."""
        try:
            if isinstance(request, FindEndpoint):
                return await self._endpoint(request.pod, peer)
            return await self._coordinator(request.pod, peer)
        except StoreError as error:
            return Rejected(message=f"pod {request.pod}: {type(error).__name__}: {error}", retry=True, cause="internal")

    async def _endpoint(self, ref: PodRef, peer: Peer) -> FoundEndpoint | Rejected:
        name = ref.name
        if self._pods_exist:
            pod = await self._pod(ref, peer)
            if isinstance(pod, Rejected):
                return pod
            fixed = self._scene.fixed(pod)
            name = ref.name if fixed is None else fixed.holder
        try:
            found = await self._store.get(ENDPOINT, name, namespace=ref.namespace)
        except NotFound:
            return Rejected(message=f"pod {ref}: no SpiderEndpoint {ref.namespace}/{name}", cause="not_found")
        current = found.status.current
        if current.node != peer.node:
            return _elsewhere(ref, current.node, peer)
        return FoundEndpoint(uid=current.uid, node=current.node, nics=tuple(current.ips))

    async def _coordinator(self, ref: PodRef, peer: Peer) -> FoundCoordinator | Rejected:
        found = self._scene.coordinator()
        if not self._pods_exist:
            return found
        pod = await self._pod(ref, peer)
        if isinstance(pod, Rejected):
            # A DEL comes when the pod may be gone, and what all pods get is no secret.
            return found
        nic = pod.metadata.annotations.get(DEFAULT_ROUTE_NIC, "")
        return FoundCoordinator(found.coordination, found.tune_pod_routes, nic) if nic else found

    async def _pod(self, ref: PodRef, peer: Peer) -> Pod | Rejected:
        pod = self._scene.pod(ref.namespace, ref.name)
        if pod is None or pod.spec.node_name != peer.node:
            try:
                pod = await self._store.get(POD, ref.name, namespace=ref.namespace)
            except NotFound:
                return Rejected(message=f"pod {ref}: no such pod", cause="not_found")
        return pod if pod.spec.node_name == peer.node else _elsewhere(ref, pod.spec.node_name, peer)


def _elsewhere(ref: PodRef, node: str, peer: Peer) -> Rejected:
    _audit.warning("refused: node %s asks what pod %s of node %s has", peer.node, ref, node)
    return Rejected(message=f"pod {ref} is not on node {peer.node}", cause="not_found")
