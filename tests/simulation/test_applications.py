"""Applications and their automatic pools, with the real owners of subnets and pools, on the virtual clock.

The workloads are objects that a scene writes; their pods ask by the agents' protocol.
"""

from collections.abc import Mapping
from random import Random

import anyio
import pytest
from msgspec import structs

from actors.applications.application import Missing
from api import annotations as keys
from api import wire
from api.annotations import OWNER_APPLICATION_NAME
from api.configfile import ConfigFile
from api.core import Bare, Deployment, PodTemplate, ReplicatedSpec
from api.ippool import SpiderIPPool
from api.kinds import DEPLOYMENT, EVENT, IPPOOL, SUBNET, Kind
from api.meta import ObjectMeta, OwnerReference
from api.subnet import SpiderSubnet, SubnetSpec
from ipam.autopool import size
from ipam.identity import owned
from ipam.ranges import Ranges
from ipam.territory import territory
from runtime.store.discovery import Foreign
from runtime.testing.store import Chances, Script
from tests.simulation.stage import Stage, act

NOTES = {keys.POD_SUBNET: '{"ipv4":["lan"]}'}
CID = "c" * 64
CLONES = Kind(
    group="apps.example.io",
    version="v1alpha1",
    plural="clones",
    kind="Clone",
    namespaced=True,
    status=False,
    type=Bare,
)


class Played:
    """Discovery of one foreign kind, whose objects all have as many replicas."""

    replicas_of_all = 2

    async def find(self, api_version: str, kind: str) -> Foreign | None:
        known = (api_version, kind) == (CLONES.api_version, CLONES.kind)
        return Foreign(kind=CLONES, scales=True) if known else None

    async def replicas(self, foreign: Foreign, name: str, *, namespace: str) -> int:
        assert (foreign.kind, bool(name), bool(namespace)) == (CLONES, True, True)
        return self.replicas_of_all


async def subnet(stage: Stage, last: int = 30, name: str = "lan") -> None:
    spec = SubnetSpec(ip_version=4, subnet="10.9.0.0/24", ips=[f"10.9.0.1-10.9.0.{last}"])
    await stage.store.create(SUBNET, SpiderSubnet(metadata=ObjectMeta(name=name), spec=spec))
    await anyio.sleep(0.1)  # its owner has looked at it


async def deployment(stage: Stage, name: str, replicas: int, **notes: str) -> OwnerReference:
    said = {**NOTES, **{f"ipam.spidernet.io/ippool-{key.replace('_', '-')}": value for key, value in notes.items()}}
    made = await stage.store.create(
        DEPLOYMENT,
        Deployment(
            metadata=ObjectMeta(name=name, namespace="default"),
            spec=ReplicatedSpec(replicas=replicas, template=PodTemplate(metadata=ObjectMeta(annotations=said))),
        ),
    )
    return OwnerReference(api_version="apps/v1", kind="Deployment", name=name, uid=made.metadata.uid, controller=True)


async def scale(stage: Stage, name: str, replicas: int) -> None:
    await stage.store.patch(DEPLOYMENT, name, {"spec": {"replicas": replicas}}, namespace="default")


async def add(stage: Stage, pod: str, owner: OwnerReference | None, notes: Mapping[str, str] = NOTES) -> wire.Response:
    """A pod is made and asks at once."""
    uid = await stage.pod(pod, owner=owner, annotations=dict(notes))
    return await stage.ask(wire.Allocate(pod=wire.PodRef("default", pod, uid), nic="eth0", container_id=CID))


async def release(stage: Stage, pod: str, uid: str) -> None:
    await stage.ask(wire.Release(pod=wire.PodRef("default", pod, uid), nic="eth0", container_id=CID))
    await stage.delete(pod)


async def automatic(stage: Stage) -> dict[str, SpiderIPPool]:
    """By application."""
    pools = (await stage.store.list(IPPOOL)).items
    return {
        pool.metadata.labels[OWNER_APPLICATION_NAME]: pool
        for pool in pools
        if OWNER_APPLICATION_NAME in pool.metadata.labels
    }


async def sizes(stage: Stage) -> dict[str, int]:
    return {name: size(pool, Ranges(4)) for name, pool in (await automatic(stage)).items()}


async def given(stage: Stage) -> int:
    return (await stage.store.get(SUBNET, "lan")).status.allocated_ip_count or 0


def granted(answer: wire.Response) -> str:
    assert isinstance(answer, wire.Allocated), answer
    return answer.addresses[0].address


def refused(answer: wire.Response, match: str, *, retry: bool) -> None:
    assert isinstance(answer, wire.Rejected), answer
    assert match in answer.message
    assert answer.retry == retry


def test_a_pool_comes_grows_shrinks_and_goes() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 2)
        await anyio.sleep(0.5)
        assert await sizes(stage) == {"web": 3}  # one more by default
        assert granted(await add(stage, "web-0", owner)).startswith("10.9.0.")
        await scale(stage, "web", 9)
        await anyio.sleep(0.5)
        assert (await sizes(stage), await given(stage)) == ({"web": 10}, 10)
        await scale(stage, "web", 1)
        await anyio.sleep(0.5)
        assert (await sizes(stage), await given(stage)) == ({"web": 2}, 2)
        await stage.store.delete(DEPLOYMENT, "web", namespace="default")
        await anyio.sleep(0.5)
        uid = (await stage.store.get(IPPOOL, (await automatic(stage))["web"].metadata.name)).metadata.uid
        assert uid, "it waits for its pod"
        await stage.delete("web-0")
        await anyio.sleep(30.0)
        assert (await automatic(stage), await given(stage)) == ({}, 0)

    act(scene)


def test_a_pod_that_comes_before_its_pool_waits_for_the_owner() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 1)
        begun = anyio.current_time()
        granted(await add(stage, "web-0", owner))
        assert anyio.current_time() - begun < 1.0, "it waited for an answer, not for a turn"

    act(scene)


def test_what_is_in_use_is_not_taken_and_is_taken_when_it_is_free() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 3, ip_number="+0")
        for index in range(3):
            granted(await add(stage, f"web-{index}", owner))
        await scale(stage, "web", 1)
        await anyio.sleep(1.0)
        assert await sizes(stage) == {"web": 3}
        for index in range(2):
            await stage.delete(f"web-{index}")
        await anyio.sleep(5.0)
        assert (await sizes(stage), await given(stage)) == ({"web": 1}, 1)

    act(scene)


def test_who_finds_no_room_hears_it_and_is_served_when_there_is_some() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage, last=3)
        await deployment(stage, "first", 1, ip_number="2")
        await anyio.sleep(0.5)
        owner = await deployment(stage, "second", 1, ip_number="2")
        refused(await add(stage, "second-0", owner), "lan has 1 addresses left", retry=True)
        said = [event for event in (await stage.store.list(EVENT)).items if event.involved_object.name == "second"]
        assert [event.reason for event in said if event.involved_object.kind == "Deployment"] == ["AutomaticPoolFailed"]
        await stage.store.delete(DEPLOYMENT, "first", namespace="default")
        await anyio.sleep(1.0)
        assert await sizes(stage) == {"second": 2}
        granted(await add(stage, "second-1", owner))

    act(scene)


def test_the_same_application_made_again_has_its_pool_again_where_that_was_asked() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        await deployment(stage, "web", 2, ip_number="2", reclaim="false")
        await anyio.sleep(0.5)
        before = (await automatic(stage))["web"]
        await stage.store.delete(DEPLOYMENT, "web", namespace="default")
        await anyio.sleep(40.0)
        owner = await deployment(stage, "web", 2, ip_number="2")
        granted(await add(stage, "web-0", owner))
        after = (await automatic(stage))["web"]
        assert (after.metadata.uid, after.spec.ips) == (before.metadata.uid, before.spec.ips)
        assert after.metadata.labels[keys.IPPOOL_RECLAIM] == "true"
        assert after.metadata.labels[keys.OWNER_APPLICATION_UID] == owner.uid

    act(scene)


def test_another_subnet_is_refused_while_the_application_lives() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 1)
        await anyio.sleep(0.5)
        notes = {keys.POD_SUBNET: '{"ipv4":["other"]}'}
        change = {"spec": {"template": {"metadata": {"annotations": notes}}}}
        await stage.store.patch(DEPLOYMENT, "web", change, namespace="default")
        refused(await add(stage, "web-0", owner, notes), "is of SpiderSubnet lan, not other", retry=False)
        assert await sizes(stage) == {"web": 2}
        reasons = {event.reason for event in (await stage.store.list(EVENT)).items}
        assert "ApplicationSubnetChanged" in reasons

    act(scene)


def test_nobodys_pods_and_automatic_pools_that_are_off_are_refused() -> None:
    async def orphan(stage: Stage) -> None:
        await subnet(stage)
        refused(await add(stage, "alone", None), "no workload controls the pod", retry=False)
        assert await automatic(stage) == {}

    act(orphan)

    async def off(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 1)
        refused(await add(stage, "web-0", owner), "enableAutoPoolForApplication", retry=False)
        assert await automatic(stage) == {}

    act(off, config=structs.replace(ConfigFile(), enable_auto_pool_for_application=False))


def test_a_wrong_annotation_makes_no_pool_and_is_named() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 1, ip_number="many")
        notes = {**NOTES, keys.IPPOOL_IP_NUMBER: "many"}
        refused(await add(stage, "web-0", owner, notes), "'many'", retry=False)
        assert await automatic(stage) == {}

    act(scene)


def test_a_foreign_kind_is_served_when_a_pod_comes_and_its_pool_goes_with_it() -> None:
    discovery = Played()

    async def scene(stage: Stage) -> None:
        await subnet(stage)
        made = await stage.store.create(
            CLONES,
            Bare(api_version=CLONES.api_version, kind=CLONES.kind, metadata=ObjectMeta(name="c", namespace="default")),
        )
        owner = OwnerReference(
            api_version=CLONES.api_version, kind=CLONES.kind, name="c", uid=made.metadata.uid, controller=True
        )
        granted(await add(stage, "c-0", owner, {**NOTES, keys.IPPOOL_IP_NUMBER: "+1"}))
        assert await sizes(stage) == {"c": 3}
        # From now on it is followed, without waiting for the next look at everything.
        discovery.replicas_of_all = 4
        await stage.store.patch(CLONES, "c", {"metadata": {"labels": {"seen": "yes"}}}, namespace="default")
        await anyio.sleep(1.0)
        assert await sizes(stage) == {"c": 5}
        await anyio.sleep(40.0)
        assert await sizes(stage) == {"c": 5}
        await stage.delete("c-0")
        await stage.store.delete(CLONES, "c", namespace="default")
        await anyio.sleep(40.0)
        assert (await automatic(stage), await given(stage)) == ({}, 0)

    act(scene, discovery=discovery)


def test_what_was_deleted_while_nobody_looked_is_found() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        await deployment(stage, "web", 2)
        await anyio.sleep(0.5)
        pool = (await automatic(stage))["web"]
        # As if a controller came that has never seen the application.
        labels = {keys.OWNER_APPLICATION_NAME: "lost", keys.OWNER_APPLICATION_UID: "lost"}
        lost = SpiderIPPool(
            metadata=ObjectMeta(
                name="lost",
                labels={**pool.metadata.labels, **labels},
                owner_references=pool.metadata.owner_references,
            ),
            spec=structs.replace(pool.spec, ips=[]),
        )
        await stage.store.create(IPPOOL, lost)
        await anyio.sleep(40.0)
        assert set(await automatic(stage)) == {"web"}

    act(scene)


STORM = Chances(
    lost_request=0.05,
    lost_reply=0.05,
    late=0.05,
    conflict=0.05,
    unavailable=0.05,
    before=(0.0, 0.02),
    after=(0.0, 0.02),
    late_by=(0.0, 1.0),
    watch_cut=0.05,
)


@pytest.mark.parametrize("seed", range(6))
def test_a_storm_of_changes_over_a_bad_store_ends_with_what_was_asked_for(seed: int) -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage, last=60)
        random = Random(seed)
        wanted: dict[str, int] = {}
        for _ in range(40):
            name = f"d{random.randrange(5)}"
            replicas = random.randrange(9)
            if name not in wanted:
                await deployment(stage, name, replicas)
            elif random.random() < 0.25:
                await stage.store.delete(DEPLOYMENT, name, namespace="default")
                del wanted[name]
                continue
            else:
                await scale(stage, name, replicas)
            wanted[name] = replicas + 1
            await anyio.sleep(random.uniform(0.0, 0.4))
        stage.connection.policy = Script()
        with anyio.fail_after(120):
            while await sizes(stage) != wanted or await given(stage) != sum(wanted.values()):  # noqa: ASYNC110 - virtual
                await anyio.sleep(0.5)
        pools = [territory(pool).addresses for pool in (await automatic(stage)).values()]
        assert Ranges.of(4, [span for land in pools for span in land.spans]).size == sum(land.size for land in pools)

    act(scene, seed=seed, policy=STORM)


def test_no_pool_goes_on_the_word_of_a_watch() -> None:
    async def scene(stage: Stage) -> None:
        await subnet(stage)
        owner = await deployment(stage, "web", 1)
        await anyio.sleep(0.5)
        running = stage.controller.applications
        assert running is not None
        workload = owned("default", owner)
        running.applications(workload).tell(Missing())
        await anyio.sleep(1.0)
        assert await sizes(stage) == {"web": 2}
        # The control: it goes when that is true.
        await stage.store.delete(DEPLOYMENT, "web", namespace="default")
        running.applications(workload).tell(Missing())
        await anyio.sleep(1.0)
        assert await sizes(stage) == {}

    act(scene)
