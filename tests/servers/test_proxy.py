"""The proxy does to a client what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import Ambiguous, NotFound, Unavailable
from tests.servers import ControlPlane, Proxy

pytestmark = pytest.mark.blocking


@pytest.fixture
def proxy(control_plane: ControlPlane) -> Iterator[Proxy]:
    with Proxy(control_plane) as running:
        yield running


def store(control_plane: ControlPlane, proxy: Proxy, *, deadline: float = 10.0) -> KubernetesStore:
    config = control_plane.kubeconfig_for(token=control_plane.admin_token, name="proxied", server=proxy.url)
    return KubernetesStore(from_kubeconfig(config), deadline=deadline)


def pool(name: str) -> SpiderIPPool:
    spec = IPPoolSpec(subnet="10.7.0.0/16", ips=["10.7.0.1-10.7.0.9"])
    return SpiderIPPool(metadata=ObjectMeta(name=name), spec=spec)


async def test_without_a_fault_it_is_not_noticed(control_plane: ControlPlane, proxy: Proxy, namespace: str) -> None:
    client = store(control_plane, proxy)
    made = await client.create(IPPOOL, pool(namespace))
    assert (await client.get(IPPOOL, namespace)) == made
    assert namespace in {item.metadata.name for item in (await client.list(IPPOOL)).items}
    with pytest.raises(NotFound):
        await client.get(IPPOOL, f"{namespace}-none")
    await client.delete(IPPOOL, namespace)
    await client.aclose()
    assert not proxy.met


@pytest.mark.parametrize("committed", [True, False], ids=["after commit", "before commit"])
async def test_a_lost_reply_and_a_lost_request_look_alike(
    control_plane: ControlPlane, proxy: Proxy, namespace: str, committed: bool
) -> None:
    client = store(control_plane, proxy)
    if committed:
        proxy.drop_replies(when=lambda request: request.method == "POST")
    else:
        proxy.lose_requests(when=lambda request: request.method == "POST")
    with pytest.raises(Ambiguous):
        await client.create(IPPOOL, pool(namespace))
    there = control_plane.request("GET", IPPOOL.path("", namespace), check=False).status == 200
    assert there is committed
    assert sum(proxy.met.values()) == 1
    await client.aclose()
    control_plane.request("DELETE", IPPOOL.path("", namespace), check=False)


async def test_a_reply_that_is_refused_is_no_commit(control_plane: ControlPlane, proxy: Proxy, namespace: str) -> None:
    client = store(control_plane, proxy)
    proxy.drop_replies(when=lambda request: request.method == "DELETE")
    with pytest.raises(NotFound):
        await client.delete(IPPOOL, namespace)
    assert not proxy.met
    await client.aclose()


async def test_a_reply_that_is_held_back_comes_too_late(
    control_plane: ControlPlane, proxy: Proxy, namespace: str
) -> None:
    client = store(control_plane, proxy, deadline=0.5)
    proxy.hold_replies(seconds=5, when=lambda request: request.method == "POST")
    with pytest.raises(Ambiguous):
        await client.create(IPPOOL, pool(namespace))
    assert control_plane.request("GET", IPPOOL.path("", namespace)).status == 200
    await client.delete(IPPOOL, namespace)
    await client.aclose()


async def test_a_cut_ends_watches_and_the_next_request_works(
    control_plane: ControlPlane, proxy: Proxy, namespace: str
) -> None:
    client = store(control_plane, proxy)
    since = (await client.list(IPPOOL)).revision
    seen: list[str] = []

    async def follow() -> None:
        async with client.watch(IPPOOL, since=since) as events:
            await client.create(IPPOOL, pool(namespace))
            async for event in events:
                assert event.object is not None
                seen.append(event.object.metadata.name)
                assert proxy.cut() == 2

    with pytest.raises(Unavailable):
        await follow()
    assert seen == [namespace]
    await client.delete(IPPOOL, namespace)
    await client.aclose()
