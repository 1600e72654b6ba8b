"""What an agent may look up in the cluster, or note there, for a pod of its own node, and has no right to by itself.

No actor: nothing is kept, and what is noted is the pod's annotation, which says the same however often it is written. A
pod is believed to be where the snapshot has it, for that is all that such a question can reveal; one that the snapshot
lacks or has elsewhere is read.
"""

import logging
from collections.abc import Callable
from typing import Any, assert_never

import msgspec
from msgspec import Struct

from actors.allocation.callers import Refusal, same
from actors.allocation.networks import Networks
from api.annotations import DEFAULT_ROUTE_NIC, NETWORK_STATUS
from api.core import Pod
from api.kinds import ENDPOINT, POD
from api.wire import (
    FindCoordinator,
    FindEndpoint,
    FindNetworks,
    Fixed,
    FoundCoordinator,
    FoundEndpoint,
    Lookup,
    Networked,
    PodRef,
    Rejected,
    Response,
    SetNetworkStatus,
    Stored,
)
from runtime.store.port import Conflict, Invalid, NotFound, Store, StoreError
from runtime.transport.port import Peer

_audit = logging.getLogger("spiderpool.audit")
_SHOWN = 200
"""Characters of a value in an error."""


class Scene(Struct, frozen=True):
    """What lookups see of the cluster, from snapshots that may lag."""

    pod: Callable[[str, str], Pod | None]
    coordinator: Callable[[], FoundCoordinator]
    """The cluster's settings, whichever pod asks."""
    fixed: Callable[[Pod], Fixed | None]
    """The name that a pod's addresses belong to, where that is not the pod's own."""


class Lookups:
    """The lookups of one replica."""

    def __init__(
        self,
        store: Store,
        scene: Scene,
        networks: Networks,
        *,
        pods_exist: bool = True,
        failed: Callable[[Pod, Rejected], None] = lambda _pod, _rejected: None,
    ) -> None:
        """Without `pods_exist` nobody creates Pod objects, and whoever asks is believed.

        `failed` is told of pods whose networks cannot be; it may not raise and may not wait.
        """
        self._store = store
        self._scene = scene
        self._networks = networks
        self._pods_exist = pods_exist
        self._failed = failed

    def __repr__(self) -> str:
        return "<Lookups>"

    async def serve(self, request: Lookup, peer: Peer) -> Response:
        """Answer the agent of `peer.node`."""
        try:
            match request:
                case FindEndpoint(pod):
                    return await self._endpoint(pod, peer)
                case FindCoordinator(pod):
                    return await self._coordinator(pod, peer)
                case FindNetworks(pod):
                    return await self._attached(pod, peer)
                case SetNetworkStatus(pod, status):
                    return await self._set_status(pod, status, peer)
                case _:
                    assert_never(request)
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

    async def _attached(self, ref: PodRef, peer: Peer) -> Networked | Rejected:
        if not self._pods_exist:
            return Networked(pod_uid=ref.uid)
        pod = await self._pod(ref, peer)
        if isinstance(pod, Rejected):
            return pod
        try:
            return await self._networks.of(pod)
        except Refusal as refusal:
            self._failed(pod, refusal.rejected)
            return refusal.rejected

    async def _set_status(self, ref: PodRef, status: str, peer: Peer) -> Stored | Rejected:
        """Nothing is written where it says that already."""
        problem = _malformed(status)
        if problem:
            return Rejected(message=f"pod {ref}: annotation {NETWORK_STATUS}: {problem}", cause="wrong_input")
        if not self._pods_exist:
            return Stored()
        pod = await self._pod(ref, peer)
        if isinstance(pod, Rejected):
            return pod
        meta = pod.metadata
        if meta.annotations.get(NETWORK_STATUS) == status:
            return Stored()
        change = {"metadata": {"annotations": {NETWORK_STATUS: status}}}
        try:
            await self._store.patch(POD, ref.name, change, namespace=ref.namespace, uid=meta.uid)
        except NotFound:
            return Rejected(message=f"pod {ref}: no such pod", cause="not_found")
        except Conflict:
            return _replaced(ref, "another one")
        except Invalid as error:
            return Rejected(message=f"pod {ref}: annotation {NETWORK_STATUS}: {error}", cause="wrong_input")
        return Stored()

    async def _pod(self, ref: PodRef, peer: Peer) -> Pod | Rejected:
        pod = self._scene.pod(ref.namespace, ref.name)
        if pod is None or pod.spec.node_name != peer.node or not same(pod, ref.uid):
            try:
                pod = await self._store.get(POD, ref.name, namespace=ref.namespace)
            except NotFound:
                return Rejected(message=f"pod {ref}: no such pod", cause="not_found")
        if not same(pod, ref.uid):
            return _replaced(ref, pod.metadata.uid)
        return pod if pod.spec.node_name == peer.node else _elsewhere(ref, pod.spec.node_name, peer)


def _elsewhere(ref: PodRef, node: str, peer: Peer) -> Rejected:
    _audit.warning("refused: node %s asks what pod %s of node %s has", peer.node, ref, node)
    return Rejected(message=f"pod {ref} is not on node {peer.node}", cause="not_found")


def _replaced(ref: PodRef, uid: str) -> Rejected:
    return Rejected(message=f"pod {ref}: uid {ref.uid} has been replaced by {uid}", cause="not_found")


def _malformed(status: str) -> str:
    """What is wrong with the annotation's value; empty where nothing is."""
    try:
        msgspec.json.decode(status, type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        return f"want a JSON list of objects ({error}); the value is {status[:_SHOWN]!r}"
    return ""
