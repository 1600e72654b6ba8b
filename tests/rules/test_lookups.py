"""What an agent may look up or note: for pods of its own node, as they are stored now, whatever the snapshots say."""

from collections.abc import Coroutine
from typing import Any

import pytest

from actors.allocation.networks import Isolation, Networks
from actors.replica.lookups import Lookups, Scene
from api import wire
from api.annotations import (
    DEFAULT_ROUTE_NIC,
    MULTUS_DEFAULT_NETWORK,
    MULTUS_NETWORKS,
    NETWORK_RESOURCE,
    NETWORK_STATUS,
)
from api.core import Pod, PodSpec
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.kinds import ENDPOINT, NETWORKATTACHMENT, POD
from api.meta import ObjectMeta, OwnerReference
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from api.wire import (
    Coordination,
    FindCoordinator,
    FindEndpoint,
    FindNetworks,
    FoundCoordinator,
    FoundEndpoint,
    Lookup,
    NetworkDefinition,
    Networked,
    PodRef,
    Rejected,
    SetNetworkStatus,
    Stored,
)
from ipam import identity
from runtime.store.memory import MemoryStore
from runtime.testing import run
from runtime.transport.port import Peer

REF = PodRef("default", "web-0")
OPEN = Isolation()
HERE, ELSEWHERE = (Peer(account="agent", node=node, role="agent") for node in ("n1", "n2"))
VALUES = FoundCoordinator(Coordination(service_cidr=("10.96.0.0/12",)), default_route_nic="eth0")


def pod(node: str = "n1", **meta: Any) -> Pod:
    return Pod(metadata=ObjectMeta(name="web-0", namespace="default", uid="u", **meta), spec=PodSpec(node_name=node))


def endpoint(name: str = "web-0", node: str = "n1") -> SpiderEndpoint:
    current = EndpointCurrent(uid="u", node=node, ips=[IPAllocationDetail(interface="eth0", ipv4="10.6.0.5/16")])
    return SpiderEndpoint(metadata=ObjectMeta(name=name, namespace="default"), status=EndpointStatus(current=current))


def network(
    name: str, namespace: str = "default", config: str = "{}", **annotations: str
) -> NetworkAttachmentDefinition:
    return NetworkAttachmentDefinition(
        metadata=ObjectMeta(name=name, namespace=namespace, annotations=annotations),
        spec=NetworkAttachmentSpec(config=config),
    )


_KINDS: dict[type, Any] = {Pod: POD, SpiderEndpoint: ENDPOINT, NetworkAttachmentDefinition: NETWORKATTACHMENT}


def ask(
    request: Lookup,
    peer: Peer = HERE,
    *,
    stored: tuple[Any, ...] = (),
    seen: Pod | None = None,
    known: tuple[NetworkAttachmentDefinition, ...] = (),
    isolation: Isolation = OPEN,
    pods_exist: bool = True,
    store: MemoryStore | None = None,
    failures: list[tuple[str, Rejected]] | None = None,
) -> Any:
    """`seen` and `known` are the snapshots; who is refused networks is put into `failures`."""
    told = [] if failures is None else failures

    async def main() -> Any:
        truth = store or MemoryStore()
        for thing in stored:
            await truth.create(_KINDS[type(thing)], thing)
        scene = Scene(
            pod=lambda *_: seen,
            coordinator=lambda: VALUES,
            fixed=lambda pod: identity.fixed(pod, statefulset=True, kubevirt=True),
        )
        by_name = {(one.metadata.namespace, one.metadata.name): one for one in known}
        networks = Networks(truth, seen=lambda *name: by_name.get(name), namespace="kube-system", isolation=isolation)
        lookups = Lookups(
            truth,
            scene,
            networks,
            pods_exist=pods_exist,
            failed=lambda pod, rejected: told.append((pod.metadata.name, rejected)),
        )
        return await lookups.serve(request, peer)

    body: Any = main
    answer: Coroutine[Any, Any, Any] = run(body, seed=1)
    return answer


@pytest.mark.parametrize("seen", [None, pod("n2"), pod("n1")])
def test_an_endpoint_of_the_own_node(seen: Pod | None) -> None:
    found = ask(FindEndpoint(REF), stored=(pod(), endpoint()), seen=seen)
    assert isinstance(found, FoundEndpoint)
    assert (found.uid, found.node, [nic.ipv4 for nic in found.nics]) == ("u", "n1", ["10.6.0.5/16"])


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        ((), "no such pod"),
        ((pod(),), "no SpiderEndpoint default/web-0"),
        ((pod("n2"), endpoint(node="n2")), "is not on node n1"),
        ((pod("n1"), endpoint(node="n2")), "is not on node n1"),
    ],
)
def test_what_is_not_this_nodes_is_not_found(stored: tuple[Any, ...], why: str) -> None:
    answer = ask(FindEndpoint(REF), stored=stored)
    assert isinstance(answer, Rejected)
    assert answer.cause == "not_found"
    assert why in answer.message
    assert "10.6.0.5" not in answer.message


def test_another_node_is_told_nothing() -> None:
    assert ask(FindEndpoint(REF), ELSEWHERE, stored=(pod(), endpoint()), seen=pod()).cause == "not_found"


def test_the_endpoint_of_a_virtual_machine_has_the_machines_name() -> None:
    owner = OwnerReference(
        api_version="kubevirt.io/v1", kind="VirtualMachineInstance", name="vm", uid="v", controller=True
    )
    found = ask(FindEndpoint(REF), stored=(pod(owner_references=[owner]), endpoint("vm")))
    assert isinstance(found, FoundEndpoint)


def test_where_nobody_creates_pods_the_endpoint_says_where_it_is() -> None:
    assert isinstance(ask(FindEndpoint(REF), stored=(endpoint(),), pods_exist=False), FoundEndpoint)
    assert ask(FindEndpoint(REF), ELSEWHERE, stored=(endpoint(),), pods_exist=False).cause == "not_found"
    assert ask(FindCoordinator(REF), pods_exist=False) == VALUES


def test_a_pods_own_word_on_its_default_route_counts_on_its_own_node_only() -> None:
    annotated = pod(annotations={DEFAULT_ROUTE_NIC: "net1"})
    assert ask(FindCoordinator(REF), stored=(annotated,)).default_route_nic == "net1"
    assert ask(FindCoordinator(REF), stored=(annotated,), seen=annotated).coordination == VALUES.coordination
    assert ask(FindCoordinator(REF), ELSEWHERE, stored=(annotated,), seen=annotated) == VALUES
    assert ask(FindCoordinator(REF), stored=(pod(),)) == VALUES
    assert ask(FindCoordinator(REF)) == VALUES, "a pod that is gone"


def test_the_networks_of_a_pod_with_their_definitions() -> None:
    text = """[{"name":"lan","ips":["10.6.0.9"],"cni-args":{"a":1},"bandwidth":{"egressRate":5}},
               {"name":"vf","namespace":"ops","interface":"rdma0","mac":"02:00:00:00:00:01","default-route":["10.7.0.1"],
                "portMappings":[{"hostPort":80,"containerPort":8080}],"deviceID":"0000:03:02.1"}]"""
    annotated = pod(annotations={MULTUS_NETWORKS: text, MULTUS_DEFAULT_NETWORK: "first"})
    stored = (annotated, network("lan", config='{"type":"macvlan"}'), network("first", "kube-system", config=""))
    found = ask(FindNetworks(REF), stored=stored, known=(network("vf", "ops", **{NETWORK_RESOURCE: "intel.com/vf"}),))
    assert found == Networked(
        pod_uid=found.pod_uid,
        default=NetworkDefinition(namespace="kube-system", name="first", interface="eth0"),
        networks=(
            NetworkDefinition(
                namespace="default",
                name="lan",
                interface="net1",
                config='{"type":"macvlan"}',
                ips=("10.6.0.9",),
                cni_args='{"a":1}',
                bandwidth='{"egressRate":5}',
            ),
            NetworkDefinition(
                namespace="ops",
                name="vf",
                interface="rdma0",
                config="{}",
                resource="intel.com/vf",
                mac="02:00:00:00:00:01",
                default_route=("10.7.0.1",),
                port_mappings='[{"hostPort":80,"containerPort":8080}]',
                device_id="0000:03:02.1",
            ),
        ),
    )
    assert found.pod_uid


def test_a_pod_without_networks() -> None:
    assert ask(FindNetworks(REF), stored=(pod(),)).networks == ()
    assert ask(FindNetworks(REF), pods_exist=False) == Networked(pod_uid="")
    assert ask(FindNetworks(REF), ELSEWHERE, stored=(pod(),)).cause == "not_found"
    assert ask(FindNetworks(PodRef("default", "web-0", "other")), stored=(pod(),)).cause == "not_found"


@pytest.mark.parametrize(
    ("annotations", "isolation", "retry", "words"),
    [
        ({MULTUS_NETWORKS: "lan,wan"}, OPEN, True, "no NetworkAttachmentDefinition default/wan"),
        ({MULTUS_DEFAULT_NETWORK: "lan"}, OPEN, True, "no NetworkAttachmentDefinition kube-system/lan"),
        ({MULTUS_NETWORKS: "lan@eth0"}, OPEN, False, "interface eth0 is that of another network"),
        ({MULTUS_DEFAULT_NETWORK: "a,b"}, OPEN, False, "names 2 networks, want one"),
        ({MULTUS_NETWORKS: "ops/vf"}, Isolation(enabled=True), False, "network ops/vf is of another namespace"),
    ],
)
def test_networks_that_cannot_be(annotations: dict[str, str], isolation: Isolation, words: str, *, retry: bool) -> None:
    stored = (pod(annotations=annotations), network("lan"), network("vf", "ops"))
    failures: list[tuple[str, Rejected]] = []
    refused = ask(FindNetworks(REF), stored=stored, isolation=isolation, failures=failures)
    assert isinstance(refused, Rejected)
    assert failures == [("web-0", refused)]
    assert (refused.retry, refused.cause) == (retry, "wrong_input")
    (key, value) = next(iter(annotations.items()))
    assert words in refused.message and key in refused.message and repr(value) in refused.message


def test_isolation_leaves_the_own_namespace_and_those_for_all() -> None:
    annotated = pod(annotations={MULTUS_NETWORKS: "lan,ops/vf", MULTUS_DEFAULT_NETWORK: "first"})
    stored = (annotated, network("lan"), network("vf", "ops"), network("first", "kube-system"))
    isolation = Isolation(enabled=True, shared=("ops",))
    assert len(ask(FindNetworks(REF), stored=stored, isolation=isolation).networks) == 2


def test_the_network_status_is_written_once() -> None:
    store, status = MemoryStore(), '[{"name":"default/lan","interface":"net1","ips":["10.6.0.9"]}]'
    assert ask(SetNetworkStatus(REF, status), stored=(pod(annotations={"a": "b"}),), store=store) == Stored()
    (after,) = store.peek(POD)
    assert after.metadata.annotations == {"a": "b", NETWORK_STATUS: status}
    revision = store.revision
    assert ask(SetNetworkStatus(REF, status), store=store, seen=after) == Stored()
    assert ask(SetNetworkStatus(PodRef("default", "web-0", after.metadata.uid), status), store=store) == Stored()
    assert store.revision == revision
    assert store.requests["patch pods"] == 1


@pytest.mark.parametrize("seen", [None, pod("n1")])
def test_the_network_status_of_another_pod_is_not_written(seen: Pod | None) -> None:
    store = MemoryStore()
    for request, peer, words in (
        (SetNetworkStatus(REF, "[]"), ELSEWHERE, "is not on node n2"),
        (SetNetworkStatus(PodRef("default", "web-0", "older"), "[]"), HERE, "uid older has been replaced by"),
        (SetNetworkStatus(PodRef("default", "web-1"), "[]"), HERE, "no such pod"),
    ):
        stored = () if store.peek(POD) else (pod(),)
        refused = ask(request, peer, stored=stored, store=store, seen=None if request.pod.name == "web-1" else seen)
        assert refused.cause == "not_found" and words in refused.message
    assert NETWORK_STATUS not in store.peek(POD)[0].metadata.annotations
    assert ask(SetNetworkStatus(REF, "[]"), pods_exist=False) == Stored()


def test_a_pod_that_is_made_anew_meanwhile_keeps_what_it_says() -> None:
    store = MemoryStore()
    old = pod()
    refused = ask(SetNetworkStatus(REF, "[]"), stored=(pod(),), seen=old, store=store)
    assert (refused.cause, "replaced" in refused.message) == ("not_found", True)
    assert NETWORK_STATUS not in store.peek(POD)[0].metadata.annotations


@pytest.mark.parametrize("status", ["", "{}", "[1]", "[", "x" * 1000])
def test_a_network_status_that_nobody_could_read_is_refused(status: str) -> None:
    refused = ask(SetNetworkStatus(REF, status), stored=(pod(),))
    assert refused.cause == "wrong_input"
    assert NETWORK_STATUS in refused.message and repr(status[:200]) in refused.message
    assert len(refused.message) < 500


def test_they_travel() -> None:
    nics = (IPAllocationDetail(interface="eth0", ipv4="10.6.0.5/16", vlan=None),)
    for request in (FindEndpoint(REF), FindCoordinator(REF), FindNetworks(REF), SetNetworkStatus(REF, "[]")):
        assert wire.decode_request(wire.encode(request)) == request
    networked = Networked("u", None, (NetworkDefinition(namespace="a", name="b", interface="c"),))
    for answer in (FoundEndpoint(uid="u", node="n", nics=nics), VALUES, networked, Stored()):
        assert wire.decode_response(wire.encode(answer)) == answer
