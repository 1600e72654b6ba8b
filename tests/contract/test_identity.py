"""Who speaks, proved by tokens that the real API server made and judges: the right pod, and every wrong one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from runtime.clock import SystemClock
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import StoreError
from runtime.store.tokens import NODE_NAME, Review, review_token
from runtime.transport.identity import TokenAuthenticator
from runtime.transport.port import Call, Disconnected, Peer, Refused
from tests.rules.transport_world import World, soon, until
from tests.servers import ControlPlane

AUDIENCE = "spiderpool-controller"


class Cluster:
    """One namespace with the agent's account, and the authenticator of a controller in it."""

    def __init__(self, control_plane: ControlPlane, namespace: str, store: KubernetesStore) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.store = store
        self.agent = f"system:serviceaccount:{namespace}:agent"
        self.authenticator = TokenAuthenticator(
            self.review, accounts={self.agent: "agent"}, clock=SystemClock(), keep=0.0, keep_refusal=0.0
        )

    async def review(self, token: str) -> Review:
        return await review_token(self.store.server, token, audiences=(AUDIENCE,))

    async def account(self, name: str) -> None:
        await asyncio.to_thread(self.control_plane.create_service_account, self.namespace, name)

    async def pod(self, name: str, *, account: str = "agent", node: str = "node-a") -> str:
        spec = {"serviceAccountName": account, "containers": [{"name": "main", "image": "none"}]}
        if node:
            spec["nodeName"] = node
        body = {"metadata": {"name": name}, "spec": spec}
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        answer = await asyncio.to_thread(self.control_plane.request, "POST", path, body)
        return str(answer.body["metadata"]["uid"])

    async def delete_pod(self, name: str) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}?gracePeriodSeconds=0"
        await asyncio.to_thread(self.control_plane.request, "DELETE", path)

    async def token(self, *, account: str = "agent", pod: str = "", audience: str = AUDIENCE) -> str:
        return await asyncio.to_thread(
            self.control_plane.service_account_token, self.namespace, account, audience=audience, pod=pod
        )


@pytest.fixture
async def cluster(control_plane: ControlPlane, namespace: str) -> AsyncIterator[Cluster]:
    store = KubernetesStore(await asyncio.to_thread(from_kubeconfig, control_plane.admin_kubeconfig))
    cluster = Cluster(control_plane, namespace, store)
    await cluster.account("agent")
    yield cluster
    await store.aclose()


async def test_the_agents_token_names_its_pod_and_node(cluster: Cluster) -> None:
    uid = await cluster.pod("agent-0")
    peer = await cluster.authenticator(await cluster.token(pod="agent-0"))
    assert peer == Peer(
        account=cluster.agent, node="node-a", pod=f"{cluster.namespace}/agent-0", pod_uid=uid, role="agent"
    )


async def test_a_token_for_another_audience_is_refused(cluster: Cluster) -> None:
    await cluster.pod("agent-0")
    token = await cluster.token(pod="agent-0", audience="somebody-else")
    with pytest.raises(Refused, match=r"API server does not accept the token: .*audience"):
        await cluster.authenticator(token)


async def test_the_token_for_the_api_server_itself_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Refused, match="API server does not accept the token"):
        await cluster.authenticator(cluster.control_plane.admin_token)


async def test_another_account_is_refused_though_its_pod_may_project_our_audience(cluster: Cluster) -> None:
    await cluster.account("tenant")
    await cluster.pod("tenant-0", account="tenant")
    token = await cluster.token(account="tenant", pod="tenant-0")
    with pytest.raises(Refused, match=r"account system:serviceaccount:.*:tenant has no business here"):
        await cluster.authenticator(token)


async def test_an_unbound_token_of_the_agent_is_refused(cluster: Cluster) -> None:
    with pytest.raises(Refused, match=r"agent is not bound to a pod: .*/pod-name is missing"):
        await cluster.authenticator(await cluster.token())


async def test_a_deleted_pods_token_is_refused(cluster: Cluster) -> None:
    await cluster.pod("agent-0")
    token = await cluster.token(pod="agent-0")
    await cluster.authenticator(token)
    await cluster.delete_pod("agent-0")
    refusal = ""
    with anyio.fail_after(30):  # the API server itself remembers a token for some seconds
        while not refusal:
            try:
                await cluster.authenticator(token)
                await anyio.sleep(0.2)
            except Refused as error:
                refusal = str(error)
    assert "API server does not accept the token" in refusal


async def test_a_pod_without_a_node_is_refused(cluster: Cluster) -> None:
    await cluster.pod("agent-0", node="")
    with pytest.raises(Refused, match=f"does not say the node: {NODE_NAME} is missing"):
        await cluster.authenticator(await cluster.token(pod="agent-0"))


@pytest.mark.parametrize("token", ["rubbish", "a.b.c", "ü", "x" * 10_000])
async def test_what_is_no_token_is_refused(cluster: Cluster, token: str) -> None:
    with pytest.raises(Refused, match="API server does not accept the token"):
        await cluster.authenticator(token)


async def test_a_controller_without_the_right_to_review_refuses_nobody(cluster: Cluster) -> None:
    nobody = await asyncio.to_thread(cluster.control_plane.kubeconfig_for, user="nobody")
    store = KubernetesStore(await asyncio.to_thread(from_kubeconfig, nobody))

    async def review(token: str) -> Review:
        return await review_token(store.server, token, audiences=(AUDIENCE,))

    who = TokenAuthenticator(review, accounts={cluster.agent: "agent"}, clock=SystemClock())
    try:
        with pytest.raises(StoreError, match="tokenreviews"):
            await who("t")
    finally:
        await store.aclose()


async def test_over_tls_a_request_carries_the_node_and_ends_with_the_pod(cluster: Cluster, tmp_path: Path) -> None:
    async def handler(call: Call) -> bytes:
        if call.payload == b"wait":
            await asyncio.sleep(60)
        return call.peer.node.encode()

    await cluster.pod("agent-0")
    world = World(tmp_path, handler, authenticate=cluster.authenticator)
    world.token_path.write_text(await cluster.token(pod="agent-0"))
    async with world.serving(), world.connecting() as channel:
        assert await channel.request(b"", deadline=soon()) == b"node-a"
        waiting = asyncio.create_task(channel.request(b"wait", deadline=soon(60)))
        await until(lambda: world.server.statistics().in_flight == 1)
        await cluster.delete_pod("agent-0")
        with pytest.raises(Disconnected, match="API server does not accept the token"):
            await waiting
        with pytest.raises(Refused, match="API server does not accept the token"):
            await channel.request(b"", deadline=soon())
