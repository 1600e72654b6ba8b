"""What every store does with lists and watches: consistency, order, selectors, resumption, expiry."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from api.core import Pod
from api.endpoint import SpiderEndpoint
from api.ippool import SpiderIPPool
from api.kinds import ENDPOINT, IPPOOL, POD
from api.meta import ObjectMeta
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import Event, EventType, Expired, Invalid, NotFound, Store, StoreError
from tests.contract.conftest import Backend
from tests.contract.kinds import WIDE_POD, wide_pod


async def take[T](events: AsyncIterator[Event[T]], count: int) -> list[Event[T]]:
    """The next `count` changes; bookmarks are passed over."""
    found: list[Event[T]] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            event = await anext(events)
            if event.type is not EventType.BOOKMARK:
                found.append(event)
    return found


def names(pods: Any) -> list[str]:
    return sorted(pod.metadata.name for pod in pods)


async def test_a_list_is_of_one_kind_and_one_namespace(backend: Backend) -> None:
    for name in ("b", "a"):
        await backend.store.create(WIDE_POD, wide_pod(backend.namespace, name))
    await backend.store.create(ENDPOINT, SpiderEndpoint(metadata=ObjectMeta(name="e", namespace=backend.namespace)))
    listing = await backend.store.list(POD, namespace=backend.namespace)
    assert [pod.metadata.name for pod in listing.items] == ["a", "b"]
    assert listing.revision
    assert {"a", "b"} <= {pod.metadata.name for pod in (await backend.other.list(POD)).items}
    assert (await backend.store.list(POD, namespace="nobody-made-this")).items == []


async def test_lists_select_by_fields_and_labels(backend: Backend) -> None:
    for name, node, labels in (("a", "n1", {"app": "x"}), ("b", "n1", {"app": "y"}), ("c", "n2", {"app": "x"})):
        await backend.store.create(WIDE_POD, wide_pod(backend.namespace, name, node=node, labels=labels))
    await backend.store.create(WIDE_POD, wide_pod(backend.namespace, "d"))

    async def found(fields: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None) -> list[str]:
        return names((await backend.store.list(POD, namespace=backend.namespace, fields=fields, labels=labels)).items)

    assert await found({"spec.nodeName": "n1"}) == ["a", "b"]
    assert await found({"spec.nodeName": ""}) == ["d"]
    assert await found({"spec.nodeName": "n1", "metadata.name": "b"}) == ["b"]
    assert await found({"spec.nodeName": "n1"}, {"app": "x"}) == ["a"]
    assert await found(None, {"app": "x"}) == ["a", "c"]
    assert await found({"metadata.namespace": "elsewhere"}) == []
    for kind, path in ((POD, "spec.priority"), (IPPOOL, "spec.subnet")):
        with pytest.raises(Invalid):
            await backend.store.list(kind, fields={path: "1"})


async def test_a_read_after_an_acknowledged_write_sees_it(backend: Backend) -> None:
    await backend.store.create(IPPOOL, backend.pool())
    name = backend.pool().metadata.name
    for number in range(20):
        change = {"status": {"totalIPCount": number}}
        written = await backend.store.patch(IPPOOL, name, change, subresource="status")
        assert await backend.other.get(IPPOOL, name) == written
        listed = await backend.other.list(IPPOOL)
        assert written in listed.items


async def test_a_watch_tells_what_happens_to_one_object(backend: Backend) -> None:
    since = (await backend.store.list(IPPOOL)).revision
    name = (await backend.store.create(IPPOOL, backend.pool(finalizers=("example.org/held",)))).metadata.name
    patched = await backend.store.patch(IPPOOL, name, {"status": {"totalIPCount": 3}}, subresource="status")
    await backend.store.patch(IPPOOL, name, {"status": {"totalIPCount": 3}}, subresource="status")
    await backend.store.delete(IPPOOL, name)
    async with backend.store.watch(IPPOOL, since=since, fields={"metadata.name": name}) as events:
        seen = await take(events, 3)
        await backend.other.patch(IPPOOL, name, {"metadata": {"finalizers": None}})
        seen += await take(events, 1)
    assert [event.type.value for event in seen] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]
    pools = [event.object for event in seen if event.object is not None]
    assert pools[1] == patched
    assert pools[2].metadata.deletion_timestamp
    assert pools[3].metadata.uid == pools[0].metadata.uid
    assert [event.revision for event in seen] == [pool.metadata.resource_version for pool in pools]


async def test_list_and_watch_together_miss_nothing_and_keep_the_order(backend: Backend) -> None:
    rng = random.Random(7)
    prefix = backend.prefix
    writes: list[str] = []

    async def write(store: Store, number: int) -> None:
        for step in range(12):
            name = f"{prefix}-{number}"
            try:
                change = {"status": {"totalIPCount": step}}
                stored = await store.patch(IPPOOL, name, change, subresource="status")
                writes.append(stored.metadata.resource_version)
                if rng.random() < 0.3:
                    await store.delete(IPPOOL, name)
            except NotFound:
                pool = SpiderIPPool(metadata=ObjectMeta(name=name), spec=backend.pool().spec)
                writes.append((await store.create(IPPOOL, pool)).metadata.resource_version)
            await asyncio.sleep(rng.random() / 200)

    async def follow(start: asyncio.Event, done: asyncio.Event) -> None:
        await start.wait()
        listing = await backend.store.list(IPPOOL)
        known = {pool.metadata.name: pool for pool in listing.items}
        revisions: list[str] = []
        async with asyncio.timeout(30):
            async with backend.store.watch(IPPOOL, since=listing.revision) as events:
                async for event in events:
                    if event.object is None:
                        continue
                    revisions.append(event.revision)
                    pool = event.object
                    assert (event.type is EventType.ADDED) == (pool.metadata.name not in known)
                    if event.type is EventType.DELETED:
                        del known[pool.metadata.name]
                    else:
                        known[pool.metadata.name] = pool
                    if done.is_set() and pool.metadata.name == f"{prefix}-last":
                        break
        assert known == {pool.metadata.name: pool for pool in (await backend.store.list(IPPOOL)).items}
        order = [int(revision) for revision in revisions]  # opaque to programs, but etcd's are numbers
        assert order == sorted(set(order))
        late = {int(revision) for revision in writes if int(revision) > int(listing.revision)}
        assert late <= set(order)

    start, done = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow(start, done)) for _ in range(3)]
        writers = [group.create_task(write((backend.store, backend.other)[n % 2], n)) for n in range(6)]
        await asyncio.sleep(0.02)
        start.set()
        await asyncio.wait(writers)
        done.set()
        last = SpiderIPPool(metadata=ObjectMeta(name=f"{prefix}-last"), spec=backend.pool().spec)
        await backend.store.create(IPPOOL, last)
    assert all(follower.done() for follower in followers)


async def test_a_watch_with_a_selector_shows_coming_and_going(backend: Backend) -> None:
    async def phase(name: str, value: str) -> Pod:
        change = {"status": {"phase": value}}
        return await backend.store.patch(POD, name, change, namespace=backend.namespace, subresource="status")

    for name in ("a", "b"):
        await backend.store.create(WIDE_POD, wide_pod(backend.namespace, name))
        await phase(name, "Pending")
    since = (await backend.store.list(POD, namespace=backend.namespace)).revision
    running = {"status.phase": "Running"}
    async with backend.store.watch(POD, since=since, namespace=backend.namespace, fields=running) as events:
        await phase("a", "Running")
        await phase("b", "Failed")
        labelled = {"metadata": {"labels": {"x": "y"}}}
        await backend.store.patch(POD, "a", labelled, namespace=backend.namespace)
        await phase("a", "Succeeded")
        await phase("b", "Running")
        live = await take(events, 4)
    async with backend.store.watch(POD, since=since, namespace=backend.namespace, fields=running) as events:
        replayed = await take(events, 4)
    shown = [(event.type.value, event.object.metadata.name) for event in live if event.object]
    assert shown == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b")]
    assert [(event.type, event.revision) for event in replayed] == [(event.type, event.revision) for event in live]


async def test_a_watch_of_one_namespace_or_node_is_not_disturbed_by_others(backend: Backend) -> None:
    since = (await backend.store.list(POD)).revision
    mine = {"spec.nodeName": f"{backend.prefix}-n1"}
    async with backend.store.watch(POD, since=since, fields=mine) as events:
        await backend.other.create(WIDE_POD, wide_pod(backend.namespace, "other", node="n2"))
        await backend.other.create(WIDE_POD, wide_pod(backend.namespace, "mine", node=f"{backend.prefix}-n1"))
        (event,) = await take(events, 1)
    assert event.object is not None
    assert event.object.metadata.name == "mine"


async def test_a_watch_goes_on_where_the_last_one_ended(backend: Backend) -> None:
    since = (await backend.store.list(IPPOOL)).revision
    seen: list[str] = []
    for number in range(6):
        await backend.store.create(IPPOOL, backend.pool(f"p{number}"))
    for _ in range(3):
        async with backend.store.watch(IPPOOL, since=since) as events:
            for event in await take(events, 2):
                assert event.object is not None
                seen.append(event.object.metadata.name)
                since = event.revision
    assert seen == [f"{backend.prefix}-p{number}" for number in range(6)]


async def test_a_quiet_watch_learns_how_far_the_store_is(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    since = (await backend.store.list(IPPOOL)).revision
    store = backend.store
    if isinstance(store, KubernetesStore):  # its bookmarks come each minute, and shortly before it ends a watch
        store = KubernetesStore(store.server.credentials, watch_seconds=(4.0, 4.0))
    try:
        async with store.watch(IPPOOL, since=since, fields={"metadata.name": "nothing"}) as events:
            for number in range(120):
                change = {"status": {"totalIPCount": number}}
                await backend.store.patch(IPPOOL, created.metadata.name, change, subresource="status")
            async with asyncio.timeout(20):
                event = await anext(events)
        assert event.type is EventType.BOOKMARK
        assert event.object is None
        assert int(event.revision) > int(since)
        async with store.watch(IPPOOL, since=event.revision) as events:
            await backend.store.delete(IPPOOL, created.metadata.name)
            async with asyncio.timeout(20):
                while (event := await anext(events)).type is not EventType.DELETED:
                    pass
    finally:
        if store is not backend.store:
            await store.aclose()


async def test_a_revision_that_is_gone_has_expired(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    await backend.store.patch(IPPOOL, created.metadata.name, {"spec": {"disable": True}})
    since = await backend.expired()
    with pytest.raises(Expired):
        async with backend.store.watch(IPPOOL, since=since) as events:
            await take(events, 1)
    async with backend.store.watch(IPPOOL, since=(await backend.store.list(IPPOOL)).revision) as events:
        await backend.store.delete(IPPOOL, created.metadata.name)
        assert [event.type.value for event in await take(events, 1)] == ["DELETED"]


async def test_a_watch_needs_a_revision(backend: Backend) -> None:
    with pytest.raises(Invalid):
        async with backend.store.watch(IPPOOL, since=""):
            pass


async def test_an_event_of_a_megabyte_arrives(backend: Backend) -> None:
    name = (await backend.store.create(IPPOOL, backend.pool())).metadata.name
    since = (await backend.store.list(IPPOOL)).revision
    text = '"' * 700_000  # each quote takes two bytes on the wire
    async with backend.store.watch(IPPOOL, since=since) as events:
        await backend.store.patch(IPPOOL, name, {"status": {"allocatedIPs": text}}, subresource="status")
        await backend.store.patch(IPPOOL, name, {"status": {"allocatedIPs": None}}, subresource="status")
        big, small = await take(events, 2)
    assert big.object is not None
    assert big.object.status.allocated_ips == text
    assert small.object is not None
    assert small.object.status.allocated_ips is None


async def test_closing_the_store_ends_its_watches(backend: Backend) -> None:
    since = (await backend.store.list(IPPOOL)).revision
    opened = asyncio.Event()

    async def follow() -> None:
        async with backend.store.watch(IPPOOL, since=since) as events:
            opened.set()
            async for _ in events:
                pass

    task = asyncio.create_task(follow())
    await opened.wait()
    await asyncio.sleep(0.01)
    await backend.store.aclose()
    async with asyncio.timeout(5):
        with contextlib.suppress(StoreError):
            await task
    await backend.store.aclose()
