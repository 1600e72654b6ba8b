"""The API server's adapter on a network that fails: what the error says about the write must be true."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import pytest

from api.core import Pod
from api.ippool import SpiderIPPool
from api.kinds import IPPOOL, NETWORKATTACHMENT, POD
from api.meta import ObjectMeta
from api.networkattachment import NetworkAttachmentDefinition
from runtime.store.apiserver import Call
from runtime.store.credentials import Credentials, FileToken, FixedToken
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import (
    AlreadyExists,
    Ambiguous,
    Conflict,
    Denied,
    EventType,
    NotFound,
    Unavailable,
)
from runtime.store.reflector import Reflector
from runtime.store.tokens import NODE_NAME, POD_UID, create_token, review_token
from tests.contract.conftest import Backend
from tests.contract.kinds import WIDE_POD, wide_pod
from tests.contract.wire import Fault, Relay
from tests.servers import ControlPlane

pytestmark = pytest.mark.parametrize("backend", ["kubernetes"], indirect=True)


def real(backend: Backend) -> KubernetesStore:
    assert isinstance(backend.store, KubernetesStore)
    return backend.store


@pytest.fixture
async def relayed(backend: Backend) -> AsyncIterator[tuple[Relay, KubernetesStore]]:
    """A store whose only way to the API server is a relay, with one connection that is already open."""
    credentials = real(backend).server.credentials
    async with Relay(*credentials.address).run() as relay:
        near = msgspec.structs.replace(credentials, url=f"https://127.0.0.1:{relay.port}")
        store = KubernetesStore(near, deadline=1.5, watch_silence=0.5)
        await store.list(IPPOOL)
        yield relay, store
        await store.aclose()


async def created(backend: Backend) -> SpiderIPPool:
    return await backend.store.create(IPPOOL, backend.pool())


async def test_a_lost_reply_leaves_a_write_that_happened(
    backend: Backend, relayed: tuple[Relay, KubernetesStore]
) -> None:
    relay, store = relayed
    pool = await created(backend)
    name, version = pool.metadata.name, pool.metadata.resource_version
    relay.fault = Fault.LOSE_REPLY
    with pytest.raises(Ambiguous):
        await store.patch(IPPOOL, name, {"status": {"totalIPCount": 5}}, subresource="status", resource_version=version)
    assert (await backend.store.get(IPPOOL, name)).status.total_ip_count == 5
    with pytest.raises(Conflict):
        await store.patch(IPPOOL, name, {"status": {"totalIPCount": 6}}, subresource="status", resource_version=version)

    await store.get(IPPOOL, name)
    relay.fault = Fault.LOSE_REPLY
    with pytest.raises(Ambiguous):
        await store.delete(IPPOOL, name, uid=pool.metadata.uid)
    with pytest.raises(NotFound):
        await backend.store.get(IPPOOL, name)

    await store.list(IPPOOL)
    relay.fault = Fault.LOSE_REPLY
    with pytest.raises(Ambiguous):
        await store.create(IPPOOL, backend.pool())
    with pytest.raises(AlreadyExists):
        await store.create(IPPOOL, backend.pool())
    assert store.requests["patch", "spiderippools/status", "Ambiguous"] == 1


async def test_a_lost_request_is_ambiguous_too(backend: Backend, relayed: tuple[Relay, KubernetesStore]) -> None:
    relay, store = relayed
    pool = await created(backend)
    relay.fault = Fault.LOSE_REQUEST
    with pytest.raises(Ambiguous):
        await store.patch(IPPOOL, pool.metadata.name, {"spec": {"disable": True}})
    assert await backend.store.get(IPPOOL, pool.metadata.name) == pool


async def test_silence_ends_at_the_deadline(backend: Backend, relayed: tuple[Relay, KubernetesStore]) -> None:
    relay, store = relayed
    pool = await created(backend)
    relay.fault = Fault.SILENCE
    with pytest.raises(Ambiguous, match=r"no answer within 1.5 s"):
        await store.patch(IPPOOL, pool.metadata.name, {"spec": {"disable": True}})
    with pytest.raises(Unavailable, match=r"no answer within 1.5 s"):
        await store.get(IPPOOL, pool.metadata.name)
    relay.fault = Fault.NONE
    assert (await store.get(IPPOOL, pool.metadata.name)).spec.disable


async def test_a_read_survives_a_connection_that_died_while_it_was_kept(
    backend: Backend, relayed: tuple[Relay, KubernetesStore]
) -> None:
    relay, store = relayed
    pool = await created(backend)
    for fault in (Fault.LOSE_REPLY, Fault.LOSE_REQUEST):
        relay.fault = fault
        assert await store.get(IPPOOL, pool.metadata.name) == pool
    relay.cut()
    assert await store.get(IPPOOL, pool.metadata.name) == pool


async def test_nothing_was_sent_where_nothing_listens(backend: Backend) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        store = KubernetesStore(msgspec.structs.replace(real(backend).server.credentials, url=url), deadline=2.0)
        try:
            with pytest.raises(Unavailable):
                await store.get(IPPOOL, "p")
            with pytest.raises(Unavailable):
                await store.patch(IPPOOL, "p", {})
            with pytest.raises(Unavailable):
                await store.create(IPPOOL, backend.pool())
            with pytest.raises(Unavailable):
                await store.delete(IPPOOL, "p")
            with pytest.raises(Unavailable):
                async with store.watch(IPPOOL, since="1"):
                    pass
        finally:
            await store.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await store.patch(IPPOOL, "p", {})


async def test_a_write_on_a_connection_that_is_refused_was_not_sent(
    backend: Backend, relayed: tuple[Relay, KubernetesStore]
) -> None:
    relay, store = relayed
    pool = await created(backend)
    relay.fault = Fault.REFUSE
    relay.cut()
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await store.patch(IPPOOL, pool.metadata.name, {"spec": {"disable": True}})
    assert await backend.store.get(IPPOOL, pool.metadata.name) == pool


async def test_a_half_open_watch_is_noticed(backend: Backend, relayed: tuple[Relay, KubernetesStore]) -> None:
    relay, store = relayed
    since = (await store.list(IPPOOL)).revision
    async with store.watch(IPPOOL, since=since) as events:
        relay.fault = Fault.SILENCE
        with pytest.raises(Unavailable, match="stream broke"):
            async with asyncio.timeout(3):
                await anext(events)


async def test_the_api_server_ends_a_watch_in_its_time(backend: Backend) -> None:
    store = KubernetesStore(real(backend).server.credentials, watch_seconds=(1.0, 1.0), random=Random(1))
    since = (await store.list(IPPOOL)).revision
    async with asyncio.timeout(10), store.watch(IPPOOL, since=since) as events:
        assert [event.type async for event in events if event.type is not EventType.BOOKMARK] == []
    await store.aclose()


async def test_a_reflector_comes_through_cuts(backend: Backend, relayed: tuple[Relay, KubernetesStore]) -> None:
    relay, store = relayed
    pool = await created(backend)
    name = pool.metadata.name
    reflector = Reflector(store, IPPOOL, random=Random(3), fields={"metadata.name": name})
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(20):
            await reflector.synced()
            for number in range(5):
                relay.cut()
                change = {"status": {"totalIPCount": number}}
                await backend.store.patch(IPPOOL, name, change, subresource="status")
                seen = 0
                while (found := reflector.snapshot.get(name)) is None or found.status.total_ip_count != number:
                    seen = await reflector.snapshot.wait(seen)
        assert reflector.error is None
        assert store.requests["list", "spiderippools", "200"] <= 3
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_may_not_is_denied(backend: Backend, control_plane: ControlPlane) -> None:
    name, namespace = (await created(backend)).metadata.name, backend.namespace
    await asyncio.to_thread(control_plane.create_service_account, namespace, "nobody")
    server = real(backend).server
    token = await create_token(server, service_account="nobody", namespace=namespace, audiences=())
    wrong = Credentials(url=server.credentials.url, tls=server.credentials.tls, tokens=FixedToken("wrong"))
    for credentials in (msgspec.structs.replace(wrong, tokens=FixedToken(token)), wrong):
        store = KubernetesStore(credentials)
        try:
            with pytest.raises(Denied):
                await store.get(IPPOOL, name)
            with pytest.raises(Denied):
                await store.patch(IPPOOL, name, {"spec": {"disable": True}})
            with pytest.raises(Denied):
                async with store.watch(IPPOOL, since="1"):
                    pass
        finally:
            await store.aclose()


async def test_a_token_that_was_renewed_in_its_file_is_taken_at_once(backend: Backend, tmp_path: Path) -> None:
    credentials = real(backend).server.credentials
    assert credentials.tokens is not None
    path = tmp_path / "token"
    await asyncio.to_thread(path.write_text, "of yesterday\n")
    store = KubernetesStore(msgspec.structs.replace(credentials, tokens=FileToken(path)))
    try:
        with pytest.raises(Denied):
            await store.list(IPPOOL)
        await asyncio.to_thread(path.write_text, f"{await credentials.tokens.token()}\n")
        listing = await store.list(IPPOOL)
        async with store.watch(IPPOOL, since=listing.revision):
            pass
    finally:
        await store.aclose()


async def test_a_bound_token_says_whose_pod_on_which_node(backend: Backend, control_plane: ControlPlane) -> None:
    server, namespace = real(backend).server, backend.namespace
    await asyncio.to_thread(control_plane.create_service_account, namespace, "agent")
    wide = wide_pod(namespace, "agent-0", node="node-a")
    wide.spec["serviceAccountName"] = "agent"
    await backend.store.create(WIDE_POD, wide)
    pod: Pod = await backend.store.get(POD, "agent-0", namespace=namespace)
    token = await create_token(
        server, service_account="agent", namespace=namespace, audiences=("spiderpool-controller",), pod=pod
    )
    review = await review_token(server, token, audiences=("spiderpool-controller",))
    assert review.authenticated
    assert review.user.username == f"system:serviceaccount:{namespace}:agent"
    assert review.user.one(NODE_NAME) == "node-a"
    assert review.user.one(POD_UID) == pod.metadata.uid
    assert review.audiences == ["spiderpool-controller"]
    assert not (await review_token(server, token, audiences=("another",))).authenticated
    assert not (await review_token(server, "nonsense", audiences=("another",))).authenticated
    with pytest.raises(NotFound):
        await create_token(server, service_account="missing", namespace=namespace, audiences=())


async def test_a_pod_can_be_removed_at_once(backend: Backend) -> None:
    await backend.store.create(WIDE_POD, wide_pod(backend.namespace, "p", node="n1"))
    await backend.store.delete(POD, "p", namespace=backend.namespace)
    assert (await backend.store.get(POD, "p", namespace=backend.namespace)).metadata.deletion_timestamp
    await real(backend).delete(POD, "p", namespace=backend.namespace, grace=0)
    with pytest.raises(NotFound):
        await backend.store.get(POD, "p", namespace=backend.namespace)


async def test_a_long_list_comes_in_pages_of_one_revision(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.store.kubernetes.PAGE", 2)
    for number in range(5):
        await backend.store.create(WIDE_POD, wide_pod(backend.namespace, f"p{number}"))
    before = real(backend).requests["list", "pods", "200"]
    listing = await backend.store.list(POD, namespace=backend.namespace)
    assert [pod.metadata.name for pod in listing.items] == [f"p{number}" for number in range(5)]
    assert real(backend).requests["list", "pods", "200"] == before + 3
    async with backend.store.watch(POD, since=listing.revision, namespace=backend.namespace) as events:
        await backend.store.delete(POD, "p3", namespace=backend.namespace)
        while (event := await anext(events)).type is not EventType.DELETED:  # a pod is marked first
            assert event.object is not None
            assert event.object.metadata.name == "p3"


async def test_closing_the_store_ends_what_is_under_way(
    backend: Backend, relayed: tuple[Relay, KubernetesStore]
) -> None:
    relay, store = relayed
    store.server.deadline = 30.0
    pool = await created(backend)
    relay.fault = Fault.SILENCE
    write = asyncio.create_task(store.patch(IPPOOL, pool.metadata.name, {"spec": {"disable": True}}))
    read = asyncio.create_task(store.get(IPPOOL, pool.metadata.name))
    await asyncio.sleep(0.2)
    await store.aclose()
    async with asyncio.timeout(2):
        assert [type(error) for error in await asyncio.gather(write, read, return_exceptions=True)] == [
            Ambiguous,
            Unavailable,
        ]


async def test_a_stream_that_is_left_lets_go_of_its_connection_at_once(backend: Backend) -> None:
    """Whoever ends its loop right after it would leave it open otherwise: TLS says goodbye and waits for an answer."""
    store = KubernetesStore(real(backend).server.credentials)
    revision = (await real(backend).list(IPPOOL)).revision
    path = f"/apis/{IPPOOL.group}/{IPPOOL.version}/{IPPOOL.plural}"
    query = {"watch": "true", "resourceVersion": revision}  # nothing comes: data that nobody reads would end it, too
    call = Call(method="GET", path=path, query=query, what="watch pools")
    before = sockets()
    async with store.server.stream(call, silence=10.0):
        assert len(sockets()) == len(before) + 1
    await asyncio.sleep(0)  # less time than an answer takes
    assert sockets() == before
    await store.aclose()


def sockets() -> set[str]:
    """The descriptors of this process that are sockets."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                found.add(entry.name)
    return found


async def test_a_kind_that_the_server_does_not_know(backend: Backend) -> None:
    """Whoever is told that an object is not there, and finds no collection of its kind either, knows why."""
    kind = msgspec.structs.replace(NETWORKATTACHMENT, group="nobody.example.com")
    item = NetworkAttachmentDefinition(
        api_version=kind.api_version, metadata=ObjectMeta(name="lan", namespace=backend.namespace)
    )
    with pytest.raises(NotFound):
        await backend.store.create(kind, item)
    with pytest.raises(NotFound):
        await backend.store.get(kind, "lan", namespace=backend.namespace)
    with pytest.raises(NotFound):
        await backend.store.list(kind, namespace=backend.namespace)
    assert (await backend.store.list(POD, namespace="no-such-namespace")).items == []
