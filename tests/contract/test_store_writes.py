"""What every store does with writes: preconditions, subresources, foreign fields, finalizers, refusals."""

import asyncio

import pytest
from msgspec import structs

from api.endpoint import EndpointStatus, SpiderEndpoint
from api.ippool import SpiderIPPool
from api.kinds import ENDPOINT, IPPOOL, POD
from api.meta import ObjectMeta
from runtime.store.port import AlreadyExists, Conflict, Invalid, NotFound, Store
from tests.contract.conftest import Backend
from tests.contract.kinds import WIDE_POD, WIDE_POOL, Wide, wide_pod

FINALIZER = "example.org/held"


async def test_what_is_created_is_read_back_with_what_the_store_fills_in(backend: Backend) -> None:
    given = backend.pool()
    created = await backend.store.create(IPPOOL, given)
    assert created.spec == given.spec
    assert created.metadata.name == given.metadata.name
    assert created.metadata.uid
    assert created.metadata.resource_version
    assert created.metadata.generation == 1
    assert created.metadata.creation_timestamp
    assert created.metadata.creation_timestamp.endswith("Z")
    assert await backend.store.get(IPPOOL, given.metadata.name) == created
    assert await backend.other.get(IPPOOL, given.metadata.name) == created


async def test_metadata_of_the_store_is_not_the_creators_to_choose(backend: Backend) -> None:
    mine = ObjectMeta(name=f"{backend.prefix}-a", uid="mine", resource_version="7", generation=9)
    created = await backend.store.create(IPPOOL, SpiderIPPool(metadata=mine, spec=backend.pool().spec))
    assert created.metadata.uid != "mine"
    assert created.metadata.generation == 1


async def test_a_name_is_taken_once(backend: Backend) -> None:
    first = await backend.store.create(IPPOOL, backend.pool())
    with pytest.raises(AlreadyExists, match=first.metadata.name):
        await backend.other.create(IPPOOL, backend.pool())
    assert await backend.store.get(IPPOOL, first.metadata.name) == first


async def test_equal_names_in_two_namespaces_or_of_two_kinds_do_not_meet(backend: Backend) -> None:
    await backend.store.create(WIDE_POD, wide_pod(backend.namespace, "same"))
    meta = ObjectMeta(name="same", namespace=backend.namespace)
    endpoint = await backend.store.create(ENDPOINT, SpiderEndpoint(metadata=meta))
    assert endpoint.kind == "SpiderEndpoint"
    assert (await backend.store.get(POD, "same", namespace=backend.namespace)).kind == "Pod"


async def test_what_is_not_there_is_not_found(backend: Backend) -> None:
    name = backend.pool().metadata.name
    with pytest.raises(NotFound, match=name):
        await backend.store.get(IPPOOL, name)
    with pytest.raises(NotFound):
        await backend.store.patch(IPPOOL, name, {"spec": {"disable": True}})
    with pytest.raises(NotFound):
        await backend.store.patch(IPPOOL, name, {"status": {}}, subresource="status", resource_version="1")
    with pytest.raises(NotFound):
        await backend.store.delete(IPPOOL, name)


async def test_a_patch_changes_what_it_names(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name = created.metadata.name
    patched = await backend.store.patch(
        IPPOOL, name, {"spec": {"disable": True, "ips": ["10.1.0.7"]}, "metadata": {"labels": {"a": "b"}}}
    )
    assert patched.spec.disable
    assert patched.spec.ips == ["10.1.0.7"]
    assert patched.spec.subnet == created.spec.subnet
    assert patched.metadata.labels == {"a": "b"}
    assert patched.metadata.uid == created.metadata.uid
    assert patched.metadata.generation == 2
    assert patched.metadata.resource_version != created.metadata.resource_version
    removed = await backend.store.patch(IPPOOL, name, {"metadata": {"labels": {"a": None}}})
    assert removed.metadata.labels == {}
    assert removed.metadata.generation == 2
    assert await backend.other.get(IPPOOL, name) == removed


async def test_a_patch_demands_a_resource_version(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name, old = created.metadata.name, created.metadata.resource_version
    moved = await backend.other.patch(IPPOOL, name, {"metadata": {"labels": {"moved": "on"}}}, resource_version=old)
    with pytest.raises(Conflict, match=name):
        await backend.store.patch(IPPOOL, name, {"spec": {"disable": True}}, resource_version=old)
    with pytest.raises(Conflict):
        await backend.store.patch(
            IPPOOL, name, {"status": {"totalIPCount": 1}}, subresource="status", resource_version=old
        )
    assert await backend.store.get(IPPOOL, name) == moved


async def test_a_patch_demands_a_uid(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name, uid = created.metadata.name, created.metadata.uid
    other = f"{uid[:-1]}{'1' if uid[-1] == '0' else '0'}"
    status = {"status": {"totalIPCount": 9}}
    with pytest.raises(Conflict):
        await backend.store.patch(IPPOOL, name, {"spec": {"disable": True}}, uid=other)
    with pytest.raises(Conflict):
        await backend.store.patch(IPPOOL, name, status, subresource="status", uid=other)
    with pytest.raises(Conflict):
        await backend.store.patch(
            IPPOOL, name, status, subresource="status", uid=other, resource_version=created.metadata.resource_version
        )
    assert await backend.store.get(IPPOOL, name) == created
    patched = await backend.store.patch(IPPOOL, name, status, subresource="status", uid=uid)
    assert patched.status.total_ip_count == 9


async def test_an_object_of_the_same_name_is_another_object(backend: Backend) -> None:
    first = await backend.store.create(IPPOOL, backend.pool())
    await backend.store.delete(IPPOOL, first.metadata.name)
    second = await backend.store.create(IPPOOL, backend.pool())
    assert second.metadata.uid != first.metadata.uid
    for change, subresource in (({"spec": {"disable": True}}, ""), ({"status": {"totalIPCount": 1}}, "status")):
        with pytest.raises(Conflict):
            await backend.store.patch(
                IPPOOL,
                first.metadata.name,
                change,
                subresource=subresource,
                resource_version=first.metadata.resource_version,
            )
        with pytest.raises(Conflict):
            await backend.store.patch(
                IPPOOL, first.metadata.name, change, subresource=subresource, uid=first.metadata.uid
            )
    assert await backend.store.get(IPPOOL, first.metadata.name) == second


async def test_status_and_the_rest_do_not_touch_each_other(backend: Backend) -> None:
    pool = backend.pool()
    with_status = await backend.store.create(
        WIDE_POOL,
        Wide(metadata={"name": pool.metadata.name}, spec={"subnet": "10.1.0.0/16"}, status={"totalIPCount": 5}),
    )
    assert with_status.status == {}
    name = pool.metadata.name
    both = {"spec": {"disable": True}, "status": {"totalIPCount": 7}, "metadata": {"labels": {"x": "y"}}}
    status = await backend.store.patch(IPPOOL, name, both, subresource="status")
    assert status.status.total_ip_count == 7
    assert not status.spec.disable
    assert status.metadata.labels == {}
    assert status.metadata.generation == 1
    main = await backend.store.patch(IPPOOL, name, {**both, "status": {"totalIPCount": 8}})
    assert main.status.total_ip_count == 7
    assert main.spec.disable
    assert main.metadata.labels == {"x": "y"}


async def test_a_kind_without_a_status_subresource_has_one_document(backend: Backend) -> None:
    meta = ObjectMeta(name="ep", namespace=backend.namespace)
    status = EndpointStatus(owner_controller_type="Pod", owner_controller_name="ep")
    created = await backend.store.create(ENDPOINT, SpiderEndpoint(metadata=meta, status=status))
    assert created.status.owner_controller_type == "Pod"
    patched = await backend.store.patch(
        ENDPOINT, "ep", {"status": {"ownerControllerName": "x"}}, namespace=backend.namespace
    )
    assert patched.status.owner_controller_name == "x"
    assert patched.status.owner_controller_type == "Pod"
    with pytest.raises(Invalid):
        await backend.store.patch(ENDPOINT, "ep", {"status": {}}, namespace=backend.namespace, subresource="status")


async def test_fields_that_our_structs_do_not_know_survive_every_write(backend: Backend) -> None:
    pod = wide_pod(backend.namespace, "p", node="n1")
    pod.spec["tolerations"] = [{"key": "a", "operator": "Exists"}]
    pod.metadata["annotations"] = {"foreign": "kept"}
    before = await backend.store.create(WIDE_POD, pod)
    condition = {"type": "Ready", "status": "True"}
    await backend.store.patch(
        WIDE_POD, "p", {"status": {"conditions": [condition]}}, namespace=backend.namespace, subresource="status"
    )
    await backend.store.patch(POD, "p", {"metadata": {"annotations": {"ours": "1"}}}, namespace=backend.namespace)
    ours = {"status": {"phase": "Running", "reason": "Testing"}}
    narrow = await backend.store.patch(POD, "p", ours, namespace=backend.namespace, subresource="status")
    assert narrow.status.reason == "Testing"
    after = await backend.store.get(WIDE_POD, "p", namespace=backend.namespace)
    assert {"key": "a", "operator": "Exists"} in after.spec["tolerations"]
    assert after.spec == before.spec
    assert after.metadata["annotations"] == {"foreign": "kept", "ours": "1"}
    assert condition.items() <= after.status["conditions"][0].items()
    assert after.status["phase"] == "Running"


async def test_a_patch_that_changes_nothing_still_checks(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name = created.metadata.name
    change = {"status": {"allocatedIPs": '{"10.1.0.1":{"pod":"a/b","podUid":"c"}}', "allocatedIPCount": 1}}
    set_once = await backend.store.patch(IPPOOL, name, change, subresource="status")
    now = set_once.metadata.resource_version
    again = await backend.store.patch(IPPOOL, name, change, subresource="status", resource_version=now)
    assert again == set_once
    assert await backend.store.patch(IPPOOL, name, {}, resource_version=now) == set_once
    assert await backend.store.patch(IPPOOL, name, {"spec": {"subnet": "10.1.0.0/16"}}) == set_once
    for subresource, nothing in (("status", change), ("", {}), ("", {"spec": {"subnet": "10.1.0.0/16"}})):
        with pytest.raises(Conflict):
            await backend.store.patch(
                IPPOOL,
                name,
                nothing,
                subresource=subresource,
                resource_version=created.metadata.resource_version,
            )
        with pytest.raises(Conflict):
            await backend.store.patch(IPPOOL, name, nothing, subresource=subresource, uid="another")


async def test_finalizers_hold_an_object_until_the_last_one_goes(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool(finalizers=(FINALIZER, "example.org/two")))
    name = created.metadata.name
    await backend.store.delete(IPPOOL, name)
    marked = await backend.store.get(IPPOOL, name)
    assert marked.metadata.deletion_timestamp
    assert marked.metadata.uid == created.metadata.uid
    assert marked.metadata.generation == 2
    await backend.store.delete(IPPOOL, name)
    assert await backend.store.get(IPPOOL, name) == marked
    with pytest.raises(AlreadyExists):
        await backend.store.create(IPPOOL, backend.pool())
    with pytest.raises(Invalid):
        await backend.store.patch(IPPOOL, name, {"metadata": {"finalizers": [FINALIZER, "example.org/new"]}})
    await backend.store.patch(IPPOOL, name, {"status": {"totalIPCount": 1}}, subresource="status")
    held = await backend.store.patch(IPPOOL, name, {"metadata": {"finalizers": [FINALIZER]}})
    assert held.metadata.finalizers == [FINALIZER]
    await backend.store.patch(IPPOOL, name, {"metadata": {"finalizers": None}})
    with pytest.raises(NotFound):
        await backend.store.get(IPPOOL, name)


async def test_a_delete_demands_a_resource_version_and_a_uid(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name, old = created.metadata.name, created.metadata.resource_version
    with pytest.raises(Conflict):
        await backend.store.delete(IPPOOL, name, uid="another")
    moved = await backend.store.patch(IPPOOL, name, {"spec": {"disable": True}})
    with pytest.raises(Conflict):
        await backend.store.delete(IPPOOL, name, resource_version=old)
    assert await backend.store.get(IPPOOL, name) == moved
    await backend.store.delete(IPPOOL, name, resource_version=moved.metadata.resource_version, uid=created.metadata.uid)
    with pytest.raises(NotFound):
        await backend.store.delete(IPPOOL, name, uid=created.metadata.uid)


async def test_what_the_schema_forbids_is_invalid_and_nothing_is_written(backend: Backend) -> None:
    created = await backend.store.create(IPPOOL, backend.pool())
    name = created.metadata.name
    for wrong in ({"spec": {"ips": "10.1.0.1"}}, {"spec": {"ips": [1]}}, {"metadata": {"uid": "mine"}}):
        with pytest.raises(Invalid):
            await backend.store.patch(IPPOOL, name, wrong)
    with pytest.raises(Invalid):
        await backend.store.patch(IPPOOL, name, {"status": {"totalIPCount": "many"}}, subresource="status")
    assert await backend.store.get(IPPOOL, name) == created


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "a/b", "x" * 254])
async def test_a_name_is_a_dns_name(backend: Backend, name: str) -> None:
    with pytest.raises(Invalid):
        await backend.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name), spec=backend.pool().spec))


async def test_eight_writers_lose_nothing(backend: Backend) -> None:
    name = (await backend.store.create(IPPOOL, backend.pool())).metadata.name

    async def increment(store: Store, times: int) -> int:
        conflicts = 0
        for _ in range(times):
            while True:
                pool = await store.get(IPPOOL, name)
                change = {"status": {"totalIPCount": (pool.status.total_ip_count or 0) + 1}}
                try:
                    await store.patch(
                        IPPOOL,
                        name,
                        change,
                        subresource="status",
                        resource_version=pool.metadata.resource_version,
                    )
                    break
                except Conflict:
                    conflicts += 1
                    await asyncio.sleep(0)
        return conflicts

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(increment(backend.other if number % 2 else backend.store, 10))
    assert (await backend.store.get(IPPOOL, name)).status.total_ip_count == 80


async def test_a_megabyte_of_status_goes_there_and_back(backend: Backend) -> None:
    name = (await backend.store.create(IPPOOL, backend.pool())).metadata.name
    text = (
        "{" + ",".join(f'"10.1.{i // 256}.{i % 256}":{{"pod":"n/p","podUid":"{i:036d}"}}' for i in range(14_000)) + "}"
    )
    assert 1_000_000 < len(text) < 1_200_000
    stored = await backend.store.patch(IPPOOL, name, {"status": {"allocatedIPs": text}}, subresource="status")
    assert stored.status.allocated_ips == text
    assert (await backend.other.get(IPPOOL, name)).status.allocated_ips == text
    gone = await backend.store.patch(IPPOOL, name, {"status": {"allocatedIPs": None}}, subresource="status")
    assert gone.status.allocated_ips is None


async def test_a_whole_status_replaces_the_one_that_was_there_and_nothing_else(backend: Backend) -> None:
    pool = await backend.store.create(IPPOOL, backend.pool(finalizers=(FINALIZER,)))
    name = pool.metadata.name
    before = await backend.store.patch(
        IPPOOL, name, {"status": {"allocatedIPs": "{}", "allocatedIPCount": 3}}, subresource="status"
    )
    version = before.metadata.resource_version
    status = {"allocatedIPCount": 4, "withheldIPs": None}
    after = await backend.store.replace_status(IPPOOL, before, status)
    assert after.metadata.resource_version != version
    assert (after.status.allocated_ip_count, after.status.allocated_ips) == (4, None)
    assert after.spec == pool.spec
    assert after.metadata.finalizers == [FINALIZER]
    assert after.metadata.generation == pool.metadata.generation
    assert await backend.other.get(IPPOOL, name) == after
    with pytest.raises(Conflict):
        await backend.store.replace_status(IPPOOL, before, status)
    version = after.metadata.resource_version
    again = await backend.store.replace_status(IPPOOL, after, status)
    assert again.metadata.resource_version == version, "nothing has changed"
    await backend.store.patch(IPPOOL, name, {"metadata": {"finalizers": None}})


async def test_a_status_is_written_whole_only_over_a_known_version(backend: Backend) -> None:
    pool = await backend.store.create(IPPOOL, backend.pool())
    unread = structs.replace(pool, metadata=structs.replace(pool.metadata, resource_version=""))
    with pytest.raises(Invalid, match="whole"):
        await backend.store.replace_status(IPPOOL, unread, {"allocatedIPCount": 1})
    assert await backend.store.get(IPPOOL, pool.metadata.name) == pool
