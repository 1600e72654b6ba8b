"""A controller and a network provider on a virtual clock: nothing leaks on either side, whatever the provider does."""

import json
from random import Random
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from actors.allocation import provided
from actors.controller import Controller
from actors.provider.provider import Provider
from api import wire
from api.configfile import ConfigFile
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import ENDPOINT, EVENT, IPPOOL, POD
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from api.wire import Allocate, Allocated, PodRef, Rejected, Release, Released
from runtime.actor import System
from runtime.testing import run
from tests.simulation.cloud import CONFIG as PROVIDER
from tests.simulation.cloud import FAULTS, PlayedWeb
from tests.simulation.stage import Scene, Stage
from tests.simulation.world import ROUGH_NETWORK, ROUGH_STORE, World, crashes, hangs, roll_overs

CONFIG = ConfigFile(iaas_network_provider=PROVIDER)
MAC = "02:aa:00:00:00:01"


class Pods:
    """An agent's part for pods with one NIC that a provider knows."""

    def __init__(self, stage: Stage, pool: str = "v4") -> None:
        self.stage = stage
        self.pool = pool
        self._number = 0

    async def add(self, name: str, uid: str, *, mac: str = MAC, patience: float = 20.0) -> wire.Response:
        self._number += 1
        request = Allocate(
            pod=PodRef("default", name, uid),
            nic="eth0",
            container_id=f"{self._number:064x}",
            default_ipv4=(self.pool,),
            parent_mac=mac,
        )
        self.last = request
        return await self.stage.ask(request)

    async def give_back(self, request: Allocate, *pools: str) -> None:
        release = Release(pod=request.pod, nic="eth0", container_id=request.container_id, pools=pools or (self.pool,))
        assert isinstance(await self.stage.ask(release), Released)


async def owed(stage: Stage, pool: str = "v4") -> dict[str, Any]:
    found = json.loads((await stage.store.get(IPPOOL, pool)).status.withheld_ips or "{}")
    return {address: entry["owed"] for address, entry in found.items() if "owed" in entry}


def act(scene: Scene, web: PlayedWeb, *, seed: int = 1, config: ConfigFile = CONFIG) -> None:
    async def main() -> None:
        stage = Stage(seed=seed)
        # The stage's controller asks nobody: one beside it, on the same store, does.
        stage.controller = Controller(
            System(clock=stage.clock, random=Random(seed)),
            stage.store,
            settings=ControllerSettings(pod_namespace="spiderpool", pod_name="c1", config=config, ip_cooldown=5.0),
            path="c1",
            web=web,
        )

        async def with_web(stage: Stage) -> None:
            async with anyio.create_task_group() as group:
                web.group = group
                await scene(stage)
                group.cancel_scope.cancel()

        await stage.play(with_web, ("n1",))

    run(main, seed=seed)


def test_granted_asked_answered_and_released() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        uid = await stage.pod("p")
        answer = await pods.add("p", uid)
        assert isinstance(answer, Allocated)
        (address,) = answer.addresses
        bare = address.address.partition("/")[0]
        assert (address.mac, address.vlan) == web.cloud.said[bare]
        (method, body, seconds, _), *others = web.requests
        assert others == []
        assert method == "allocate"
        assert body == {
            "nodeName": "n1",
            "podName": "p",
            "podNamespace": "default",
            "podUID": uid,
            "iaasIPsAllocationRequest": [{"ipAddress": bare, "subnet": "10.6.0.0/16", "parentNicMac": MAC}],
        }
        assert 9 < seconds <= 10
        record = (await stage.records())[bare]
        assert record.parent_mac == MAC
        assert record.provider_by > stage.clock.wall() * 1000
        endpoint = await stage.store.get(ENDPOINT, "p", namespace="default")
        (detail,) = endpoint.status.current.ips
        assert (detail.mac, detail.vlan) == (address.mac, address.vlan)
        request = pods.last
        # Again: the same, by the same request.
        assert (await stage.ask(request)) == answer
        await anyio.sleep(60)
        await pods.give_back(request)
        assert await stage.records() == {}
        await anyio.sleep(5)
        assert web.cloud.assigned == {}
        assert await owed(stage) == {}
        (release,) = [body for method, body, *_ in web.requests if method == "release"]
        assert release == {
            "nodeName": "n1",
            "parentNicMac": MAC,
            "podName": "p",
            "podNamespace": "default",
            "podUID": uid,
            "subnet": "10.6.0.0/16",
            "ipAddress": bare,
        }

    act(scene, web)
    assert web.cloud.violations == []


def test_a_pod_that_goes_at_once_is_released_at_once_and_again_when_nothing_can_be_under_way() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        await pods.add("p", await stage.pod("p"))
        await pods.give_back(pods.last)
        await anyio.sleep(1)
        assert web.cloud.assigned == {}
        assert await owed(stage), "what was asked for may still reach the provider"
        await anyio.sleep(20)
        assert await owed(stage) == {}
        assert [method for method, *_ in web.requests] == ["allocate", "release", "release"]

    act(scene, web)


@pytest.mark.parametrize("fault", ["500", "lost", "late", "garbage", "another address", "missing", "no vlan"])
def test_a_failed_allocation_leaks_nothing(fault: str) -> None:
    web = PlayedWeb(1, faults={fault: 1.0})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        refused = await pods.add("p", await stage.pod("p"))
        assert isinstance(refused, Rejected)
        assert refused.held
        assert refused.retry
        assert refused.cause == "provider"
        assert (await stage.store.list(ENDPOINT)).items == []
        web.faults = {}
        await pods.give_back(pods.last)
        assert await stage.records() == {}
        await anyio.sleep(60)
        assert web.cloud.assigned == {}
        assert await owed(stage) == {}

    act(scene, web)
    assert web.cloud.violations == []


def test_a_provider_that_is_down_keeps_nobody_up_and_no_address_is_reused() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        await stage.store.patch(IPPOOL, "v4", {"spec": {"ips": ["10.6.0.1"]}})
        pods = Pods(stage)
        await anyio.sleep(1)
        await pods.add("p", await stage.pod("p"))
        await anyio.sleep(60)
        web.down = True
        begun = anyio.current_time()
        await pods.give_back(pods.last)
        assert anyio.current_time() - begun < 0.1, "a DEL does not wait for the provider"
        await anyio.sleep(600)
        uid = await stage.pod("q")
        refused = await pods.add("q", uid)
        assert isinstance(refused, Rejected)
        assert "1 not released by the network provider yet" in refused.message
        events = [one for one in (await stage.store.list(EVENT)).items if one.reason == "ProviderNotReleased"]
        (event,) = events
        assert event.involved_object.name == "v4"
        assert "10.6.0.1 is withheld until it is released" in event.message
        assert 8 < sum(method == "release" for method, *_ in web.requests) < 40, "with growing pauses"
        web.down = False
        await anyio.sleep(70)
        assert web.cloud.assigned == {}
        assert isinstance(await pods.add("q", uid), Allocated)

    act(scene, web)
    assert web.cloud.violations == []


def test_a_fixed_address_is_kept_and_its_provider_is_told_before_the_next_pod_has_it() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        owner = await stage.statefulset("web", 1)
        pods = Pods(stage)
        first = await pods.add("web-0", await stage.pod("web-0", owner=owner))
        assert isinstance(first, Allocated)
        await anyio.sleep(60)
        web.down = True
        await stage.delete("web-0")
        assert first.fixed is not None
        release = Release(
            pod=pods.last.pod, nic="eth0", container_id=pods.last.container_id, pools=("v4",), fixed=first.fixed
        )
        await stage.ask(release)
        (record,) = (await stage.records()).values()
        assert record.kept
        uid = await stage.pod("web-0", owner=owner)
        refused = await pods.add("web-0", uid, mac="02:aa:00:00:00:02")
        assert isinstance(refused, Rejected)
        assert "released by the network provider" in refused.message
        assert refused.retry
        web.down = False
        await anyio.sleep(70)
        again = await pods.add("web-0", uid, mac="02:aa:00:00:00:02")
        assert isinstance(again, Allocated)
        assert again.addresses[0].address == first.addresses[0].address
        assert [holder[2] for holder in web.cloud.assigned.values()] == ["02:aa:00:00:00:02"]

    act(scene, web)
    assert web.cloud.violations == []


def test_the_collector_gives_up_a_record_and_the_provider_is_told() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        await pods.add("p", await stage.pod("p"))
        await anyio.sleep(60)
        await stage.delete("p")
        await stage.freed_within("10.6.0.1", 120)
        await anyio.sleep(5)
        assert web.cloud.assigned == {}
        assert await owed(stage) == {}

    act(scene, web)


def test_addresses_of_others_are_none_of_its_business() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        answer = await pods.add("p", await stage.pod("p"), mac="")
        assert isinstance(answer, Allocated)
        assert (answer.addresses[0].vlan, answer.addresses[0].mac) == (0, "")
        await pods.give_back(pods.last)
        await anyio.sleep(60)

    act(scene, web)
    assert web.requests == []


def test_of_two_families_the_provider_hears_of_one() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        pods = Pods(stage)
        uid = await stage.pod("p")
        request = Allocate(
            pod=PodRef("default", "p", uid), nic="eth0", container_id="c" * 64,
            default_ipv4=("v4",), default_ipv6=("v6",), parent_mac=MAC,
        )  # fmt: skip
        answer = await stage.ask(request)
        assert isinstance(answer, Allocated)
        four, six = answer.addresses
        assert four.vlan > 0
        assert (six.vlan, six.mac) == (0, "")
        ((_, body, *_),) = web.requests
        assert len(body["iaasIPsAllocationRequest"]) == 1
        await pods.give_back(request, "v4", "v6")
        await anyio.sleep(60)
        assert web.cloud.assigned == {}
        refused = await stage.ask(replace(request, default_ipv4=(), container_id="d" * 64))
        assert isinstance(refused, Rejected)
        assert "by its IPv4 address, and gets none" in refused.message
        assert await stage.records("v6") == {}

    act(scene, web)


def test_without_a_provider_it_is_refused_by_name() -> None:
    async def main() -> None:
        stage = Stage()

        async def scene(stage: Stage) -> None:
            refused = await Pods(stage).add("p", await stage.pod("p"))
            assert isinstance(refused, Rejected)
            assert "iaasNetworkProvider.serverUrl is empty" in refused.message
            assert not refused.retry
            assert await stage.records() == {}

        await stage.play(scene, ("n1",))

    run(main, seed=1)


def test_a_pool_that_is_deleted_waits_for_the_provider() -> None:
    web = PlayedWeb(1, faults={})

    async def scene(stage: Stage) -> None:
        spec = IPPoolSpec(ip_version=4, subnet="10.7.0.0/16", ips=["10.7.0.1-10.7.0.9"])
        finalizers = ["spiderpool.spidernet.io"]
        await stage.store.create(
            IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="cloud", finalizers=finalizers), spec=spec)
        )
        await anyio.sleep(1)
        pods = Pods(stage, "cloud")
        await pods.add("p", await stage.pod("p"))
        web.down = True
        await stage.store.delete(IPPOOL, "cloud")
        await pods.give_back(pods.last)
        await anyio.sleep(60)
        pool = await stage.store.get(IPPOOL, "cloud")
        (condition,) = [one for one in pool.status.conditions if one.type == "DeletionBlocked"]
        assert "not released by the network provider" in condition.message or "in use" in condition.message
        web.down = False
        await anyio.sleep(100)
        assert "cloud" not in {one.metadata.name for one in (await stage.store.list(IPPOOL)).items}
        assert web.cloud.assigned == {}

    act(scene, web)


def churn(seed: int, web: PlayedWeb) -> None:
    """Pods come and go on a pool with hardly any room, and its controller restarts, while the provider fails."""

    async def scene(stage: Stage) -> None:
        random = Random(seed)
        await stage.store.patch(IPPOOL, "v4", {"spec": {"ips": ["10.6.0.1-10.6.0.4"]}})
        await anyio.sleep(1)

        async def pod(number: int) -> None:
            pods = Pods(stage)
            await anyio.sleep(random.uniform(0, 200))
            for life in range(3):
                name = f"p{number}-{life}"
                uid = await stage.pod(name)
                for _ in range(8):
                    answer = await pods.add(name, uid)
                    if isinstance(answer, Allocated):
                        (address,) = answer.addresses
                        bare = address.address.partition("/")[0]
                        assert web.cloud.assigned.get(bare, ("",))[0] == uid, "it works as long as the pod has it"
                        await anyio.sleep(random.choice([0.01, 5.0, 60.0]))
                        assert web.cloud.assigned.get(bare, ("",))[0] == uid, (seed, bare)
                        await pods.give_back(pods.last)
                        break
                    await pods.give_back(pods.last)
                    await anyio.sleep(random.uniform(1, 20))
                await stage.store.delete(POD, name, namespace="default")

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(pod, number)
        web.faults = {}
        await anyio.sleep(400)
        assert await stage.records() == {}
        assert await owed(stage) == {}
        assert web.cloud.assigned == {}
        assert web.cloud.violations == []

    act(scene, web, seed=seed)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_leaks_on_either_side(seed: int) -> None:
    churn(seed, PlayedWeb(seed, faults=FAULTS))


def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written down of requests that may be under way."""
    monkeypatch.setattr(Provider, "until", lambda *_: 1)


def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody remembers whom the provider was asked for."""
    monkeypatch.setattr(provided.Terms, "mac", lambda *_: "")


def _credulous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the provider says to a release, it is one."""

    async def release(*_: object, **__: object) -> None:
        return None

    monkeypatch.setattr(Provider, "release", release)


@pytest.mark.parametrize("mutation", [_hasty, _forgetful, _credulous])
def test_the_same_without_a_precaution_is_found_out(monkeypatch: pytest.MonkeyPatch, mutation: Any) -> None:
    mutation(monkeypatch)

    def all_seeds() -> None:
        for seed in range(12):
            churn(seed, PlayedWeb(seed, faults=FAULTS))

    with pytest.raises((AssertionError, BaseExceptionGroup)):
        all_seeds()


# ---------------------------------------------------------------- the whole cluster


def cluster(seed: int, **options: Any) -> World:
    return World(
        seed, chances=ROUGH_STORE, weather=ROUGH_NETWORK, pods=8, web=PlayedWeb(seed, faults=FAULTS), **options
    )


@pytest.mark.parametrize("disturb", [None, crashes, roll_overs])
@pytest.mark.parametrize("seed", range(1, 5))
def test_agents_and_two_owners_of_every_pool_that_die(seed: int, disturb: Any) -> None:
    run(lambda: cluster(seed).run(disturb), seed=seed)


@pytest.mark.parametrize("seed", range(1, 5))
def test_owners_that_hang_and_are_taken_over(seed: int) -> None:
    run(lambda: cluster(seed, replicas=("c1", "c2", "c3"), spread=True, forgetful=0.3).run(hangs), seed=seed)
