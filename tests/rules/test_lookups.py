"""What an agent may look up: for pods of its own node, as they are stored now, whatever the snapshots say."""

from collections.abc import Coroutine
from typing import Any

import pytest

from actors.replica.lookups import Lookups, Scene
from api import wire
from api.annotations import DEFAULT_ROUTE_NIC
from api.core import Pod, PodSpec
from api.endpoint import EndpointCurrent, EndpointStatus, IPAllocationDetail, SpiderEndpoint
from api.kinds import ENDPOINT, POD
from api.meta import ObjectMeta, OwnerReference
from api.wire import Coordination, FindCoordinator, FindEndpoint, FoundCoordinator, FoundEndpoint, PodRef, Rejected
from ipam import identity
from runtime.store.memory import MemoryStore
from runtime.testing import run
from runtime.transport.port import Peer

REF = PodRef("default", "web-0")
HERE, ELSEWHERE = (Peer(account="agent", node=node, role="agent") for node in ("n1", "n2"))
VALUES = FoundCoordinator(Coordination(service_cidr=("10.96.0.0/12",)), default_route_nic="eth0")


def pod(node: str = "n1", **meta: Any) -> Pod:
    return Pod(metadata=ObjectMeta(name="web-0", namespace="default", uid="u", **meta), spec=PodSpec(node_name=node))


def endpoint(name: str = "web-0", node: str = "n1") -> SpiderEndpoint:
    current = EndpointCurrent(uid="u", node=node, ips=[IPAllocationDetail(interface="eth0", ipv4="10.6.0.5/16")])
    return SpiderEndpoint(metadata=ObjectMeta(name=name, namespace="default"), status=EndpointStatus(current=current))


def ask(
    request: FindEndpoint | FindCoordinator,
    peer: Peer = HERE,
    *,
    stored: tuple[Any, ...] = (),
    seen: Pod | None = None,
    pods_exist: bool = True,
) -> Any:
    async def main() -> Any:
        store = MemoryStore()
        for thing in stored:
            await store.create(POD if isinstance(thing, Pod) else ENDPOINT, thing)
        scene = Scene(
            pod=lambda *_: seen,
            coordinator=lambda: VALUES,
            fixed=lambda pod: identity.fixed(pod, statefulset=True, kubevirt=True),
        )
        return await Lookups(store, scene, pods_exist=pods_exist).serve(request, peer)

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


def test_they_travel() -> None:
    nics = (IPAllocationDetail(interface="eth0", ipv4="10.6.0.5/16", vlan=None),)
    for request in (FindEndpoint(REF), FindCoordinator(REF)):
        assert wire.decode_request(wire.encode(request)) == request
    for answer in (FoundEndpoint(uid="u", node="n", nics=nics), VALUES):
        assert wire.decode_response(wire.encode(answer)) == answer
