"""A pod's networks and its network status on every store: on the real API server the kind comes while agents ask."""

import asyncio

import pytest

from actors.allocation.networks import Isolation, Networks
from actors.replica.lookups import Lookups, Scene
from api.annotations import MULTUS_NETWORKS, NETWORK_RESOURCE, NETWORK_STATUS
from api.core import Pod
from api.kinds import NETWORKATTACHMENT, POD
from api.meta import ObjectMeta
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from api.wire import (
    FindNetworks,
    FoundCoordinator,
    NetworkDefinition,
    Networked,
    PodRef,
    Rejected,
    SetNetworkStatus,
    Stored,
)
from runtime.store.port import Store
from runtime.transport.port import Peer
from tests.contract.conftest import Backend
from tests.contract.kinds import WIDE_POD, wide_pod
from tests.processes.networks import install_kind
from tests.servers import ControlPlane

HERE = Peer(account="agent", node="node-a", role="agent")


def lookups(store: Store, *, seen: Pod | None = None) -> Lookups:
    scene = Scene(pod=lambda *_: seen, coordinator=FoundCoordinator, fixed=lambda _: None)
    networks = Networks(store, seen=lambda *_: None, namespace="spiderpool", isolation=Isolation())
    return Lookups(store, scene, networks)


async def make_pod(backend: Backend, name: str, **annotations: str) -> Pod:
    wide = wide_pod(backend.namespace, name, node=HERE.node, annotations=annotations)
    await backend.store.create(WIDE_POD, wide)
    return await backend.store.get(POD, name, namespace=backend.namespace)


async def test_definitions_are_found_as_soon_as_there_are_any(backend: Backend, request: pytest.FixtureRequest) -> None:
    pod = await make_pod(backend, "web", **{MULTUS_NETWORKS: "lan"})
    ref = PodRef(backend.namespace, "web", pod.metadata.uid)
    missing = await lookups(backend.store).serve(FindNetworks(ref), HERE)
    assert isinstance(missing, Rejected) and missing.retry
    assert f"there is no NetworkAttachmentDefinition {backend.namespace}/lan" in missing.message
    if backend.name == "kubernetes":
        control_plane: ControlPlane = request.getfixturevalue("control_plane")
        await asyncio.to_thread(install_kind, control_plane)
    definition = NetworkAttachmentDefinition(
        metadata=ObjectMeta(name="lan", namespace=backend.namespace, annotations={NETWORK_RESOURCE: "example.org/vf"}),
        spec=NetworkAttachmentSpec(config='{"type":"sriov"}'),
    )
    await backend.store.create(NETWORKATTACHMENT, definition)
    found = await lookups(backend.other).serve(FindNetworks(ref), HERE)
    lan = NetworkDefinition(
        namespace=backend.namespace,
        name="lan",
        interface="net1",
        config='{"type":"sriov"}',
        resource="example.org/vf",
    )
    assert found == Networked(pod_uid=pod.metadata.uid, networks=(lan,))


async def test_the_network_status_stands_beside_what_else_the_pod_says(backend: Backend) -> None:
    pod = await make_pod(backend, "web", mine="stays")
    ref = PodRef(backend.namespace, "web", pod.metadata.uid)
    status = '[{"name":"lan","interface":"eth0","ips":["10.6.0.9"],"default":true}]'
    assert await lookups(backend.store).serve(SetNetworkStatus(ref, status), HERE) == Stored()
    after = await backend.other.get(POD, "web", namespace=backend.namespace)
    assert after.metadata.annotations == {"mine": "stays", NETWORK_STATUS: status}
    assert after.spec.node_name == HERE.node
    for again in (lookups(backend.store, seen=after), lookups(backend.store)):
        assert await again.serve(SetNetworkStatus(ref, status), HERE) == Stored()
    unchanged = await backend.store.get(POD, "web", namespace=backend.namespace)
    assert unchanged.metadata.resource_version == after.metadata.resource_version


async def test_a_pod_made_anew_under_the_name_is_left_alone(backend: Backend) -> None:
    """The snapshot has the old one still; the write demands its uid."""
    old = await make_pod(backend, "web")
    if backend.name == "kubernetes":
        await backend.store.delete(POD, "web", namespace=backend.namespace, grace=0)  # type: ignore[call-arg]
    else:
        await backend.store.delete(POD, "web", namespace=backend.namespace)
    new = await make_pod(backend, "web")
    assert new.metadata.uid != old.metadata.uid
    late = SetNetworkStatus(PodRef(backend.namespace, "web", old.metadata.uid), "[]")
    for looking in (lookups(backend.store, seen=old), lookups(backend.store)):
        refused = await looking.serve(late, HERE)
        assert isinstance(refused, Rejected)
        assert (refused.cause, refused.retry) == ("not_found", False)
    assert (await backend.store.get(POD, "web", namespace=backend.namespace)).metadata.annotations == {}


async def test_a_status_that_is_too_long_for_an_annotation_is_refused(backend: Backend) -> None:
    if backend.name != "kubernetes":
        pytest.skip("the limit is the API server's")
    pod = await make_pod(backend, "web")
    ref = PodRef(backend.namespace, "web", pod.metadata.uid)
    refused = await lookups(backend.store).serve(SetNetworkStatus(ref, f'[{{"name":"{"x" * 300_000}"}}]'), HERE)
    assert isinstance(refused, Rejected)
    assert (refused.cause, refused.retry) == ("wrong_input", False)
    assert NETWORK_STATUS in refused.message
    assert len(refused.message) < 2000
