"""The status of a SpiderCoordinator follows what the cluster says of itself, whatever goes wrong on the way.

Two controllers believe both to own it, over a store that fails, or one dies at every single request in turn. After each
step of a story the status is what that step's cluster makes of it; when all is quiet nothing is written.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest

from actors.controller import Controller
from actors.coordination.configurations import ConfigurationFile, Folder
from api.coordinator import CoordinatorSpec, SpiderCoordinator
from api.core import ConfigMap, Namespace, Node, Pod, PodSpec, ServiceCIDR, ServiceCIDRSpec
from api.extensions import CustomResourceDefinition
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import (
    CALICO_IPPOOL,
    CONFIGMAP,
    CONTROL_PLANE_POD,
    COORDINATOR,
    CUSTOMRESOURCEDEFINITION,
    EVENT,
    IPPOOL,
    NAMESPACE,
    NODE,
    POD,
    SERVICECIDR,
    Kind,
)
from api.meta import FINALIZER, ObjectMeta
from api.overlays import (
    CalicoIPPool,
    CalicoIPPoolSpec,
    ControlPlaneContainer,
    ControlPlanePod,
    ControlPlanePodSpec,
)
from api.settings import ControllerSettings
from api.wire import Allocate, Allocated, PodRef, Rejected, Response, decode_response, encode
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import NotFound
from runtime.testing import VirtualClock, run
from runtime.testing.store import Call, Chances, FaultyStore
from runtime.transport.port import Call as Request
from runtime.transport.port import Peer

type Told = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Phase, CIDRs of pods, CIDRs of Services."""
type Step = Callable[["Cluster"], Awaitable[Told]]

SERVICES = ("10.96.0.0/16",)
UNKNOWN: Told = ("NotReady", (), ())
LONG = 120.0
"""Seconds: longer than any pause of anybody."""


class PlayedFolder:
    """The CNI configurations of the controllers' node."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._news = cluster.news

    async def read(self) -> Folder:
        self._news = self._cluster.news
        await anyio.sleep(0.001)
        return self._cluster.folder

    async def changed(self) -> None:
        await self._news.wait()


class Watchful(MemoryStore):
    """Sees every status that is written: over a version that was read, and whole or empty."""

    async def patch[T](self, kind: Kind[T], name: str, change: Mapping[str, Any], **options: Any) -> T:
        if kind.plural == COORDINATOR.plural and options.get("subresource") == "status":
            assert options.get("resource_version"), "a write without the fence"
            assert options.get("uid")
            status = change["status"]
            assert (status["phase"] == "Synced") == bool(status["serviceCIDR"]) == (status["reason"] is None)
            assert status["phase"] == "Synced" or status["overlayPodCIDR"] == []
        return await super().patch(kind, name, change, **options)


class Mortal(FaultyStore):
    """A connection whose owner may die at any of its requests: before it is sent, or before its answer is heard."""

    def __init__(self, cluster: "Cluster", die: Callable[[], None]) -> None:
        super().__init__(cluster.store, policy=cluster.chances, random=cluster.random)
        self._cluster = cluster
        self._die = die

    async def _pass[R](self, call: Call, send: Callable[[], Awaitable[R]], kind: Kind[Any] | None = None) -> R:
        watched = call.verb in {"get", "patch", "create"}
        if watched and self._cluster.is_last_moment():
            await self._end()
        answer = await super()._pass(call, send, kind)
        if watched and self._cluster.is_last_moment():
            await self._end()
        return answer

    async def _end(self) -> None:
        self._die()
        await anyio.sleep_forever()


class Cluster:
    """One store, and the controllers over it."""

    def __init__(
        self,
        seed: int,
        *,
        replicas: int = 2,
        chances: Chances | None = None,
        crash_at: int = 0,
        settle: float = 1.0,
        discovers: bool = True,
    ) -> None:
        """A controller dies at the moment `crash_at`, and the next one comes; `settle` is a step's patience."""
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.store = Watchful(wall=self.clock.wall)
        self.chances = chances or Chances()
        self.folder = Folder("/cni")
        self.news = anyio.Event()
        self.moments = 0
        self.settle = settle
        self._discovers = discovers
        self._crash_at = crash_at
        self._replicas = replicas
        self.controllers: dict[str, Controller] = {}
        self._group: Any = None

    def is_last_moment(self) -> bool:
        self.moments += 1
        return self.moments == self._crash_at

    async def play(self, *steps: Step) -> None:
        await self.store.create(
            SERVICECIDR, ServiceCIDR(metadata=ObjectMeta(name="kubernetes"), spec=ServiceCIDRSpec(cidrs=[*SERVICES]))
        )
        async with anyio.create_task_group() as group:
            self._group = group
            for number in range(self._replicas):
                group.start_soon(self._live, f"c{number}")
            await anyio.sleep(0.5)
            for step in steps:
                await self.expect(await step(self))
            before = (await self.store.get(COORDINATOR, "default")).metadata.resource_version
            await anyio.sleep(LONG)
            after = await self.store.get(COORDINATOR, "default")
            assert after.metadata.resource_version == before, "nothing has changed, and it was written"
            group.cancel_scope.cancel()

    async def _live(self, name: str) -> None:
        """A replica, and after its death the next."""
        while True:
            scope = anyio.CancelScope()
            controller = Controller(
                System(clock=self.clock, random=self.random),
                Mortal(self, scope.cancel),
                settings=ControllerSettings(
                    pod_namespace="spiderpool", pod_name=name, coordinator_enabled=True, gc_ip_enabled=False
                ),
                configurations=PlayedFolder(self),
                grants_only=not self._discovers,
                path=name,
            )
            self.controllers[name] = controller
            with scope:
                await controller.supervisor.run()
            await anyio.sleep(0.05)

    # -- what is and what is said --------------------------------------------------------------------------------------

    async def told(self) -> Told:
        try:
            status = (await self.store.get(COORDINATOR, "default")).status
        except NotFound:
            return ("", (), ())
        return status.phase, tuple(status.overlay_pod_cidr), tuple(status.service_cidr)

    async def expect(self, wanted: Told) -> None:
        await anyio.sleep(self.settle)
        assert await self.told() == wanted
        if wanted[0] != "":
            await self.expect_answers(wanted)

    async def expect_answers(self, wanted: Told) -> None:
        """Every replica tells agents the same, owner or not."""
        for controller in self.controllers.values():
            found = controller.cluster.coordinator()
            assert bool(found.coordination.unready) == (wanted[0] != "Synced")
            assert (found.coordination.overlay_pod_cidr, found.coordination.service_cidr) == wanted[1:]

    async def read(self, kind: str) -> None:
        await self.store.patch(COORDINATOR, "default", {"spec": {"podCIDRType": kind}})

    def file(self, name: str, text: str) -> None:
        self.folder = Folder("/cni", (ConfigurationFile(name, text.encode()),))
        self.news.set()
        self.news = anyio.Event()

    async def config_map(self, name: str, data: Mapping[str, str]) -> None:
        meta = ObjectMeta(name=name, namespace="kube-system")
        await self.store.create(CONFIGMAP, ConfigMap(metadata=meta, data=dict(data)))


# ---------------------------------------------------------------- the story


async def nothing_says_it(cluster: Cluster) -> Told:
    spec = CoordinatorSpec(pod_cidr_type="cluster")
    await cluster.store.create(COORDINATOR, SpiderCoordinator(metadata=ObjectMeta(name="default"), spec=spec))
    return UNKNOWN


async def a_controller_manager_comes(cluster: Cluster) -> Told:
    command = ["kube-controller-manager", "--cluster-cidr=10.31.0.0/16"]
    labels = {"component": "kube-controller-manager"}
    for namespace, cidr in (("default", "10.66.0.0/16"), ("kube-system", "10.31.0.0/16")):
        flags = [*command[:1], f"--cluster-cidr={cidr}"]
        pod = ControlPlanePod(
            metadata=ObjectMeta(name="kcm", namespace=namespace, labels=labels),
            spec=ControlPlanePodSpec(containers=[ControlPlaneContainer(command=flags)]),
        )
        await cluster.store.create(CONTROL_PLANE_POD, pod)
    return "Synced", ("10.31.0.0/16",), SERVICES


async def kubeadm_says_it_better(cluster: Cluster) -> Told:
    await cluster.config_map("kubeadm-config", {"ClusterConfiguration": "networking: {podSubnet: 10.30.0.0/16}"})
    return "Synced", ("10.30.0.0/16",), SERVICES


async def calico_is_asked_and_not_there(cluster: Cluster) -> Told:
    await cluster.read("calico")
    return UNKNOWN


async def calico_comes(cluster: Cluster) -> Told:
    definition = CustomResourceDefinition(metadata=ObjectMeta(name="ippools.crd.projectcalico.org"))
    await cluster.store.create(CUSTOMRESOURCEDEFINITION, definition)
    pool = CalicoIPPool(metadata=ObjectMeta(name="a"), spec=CalicoIPPoolSpec(cidr="10.40.0.0/16"))
    await cluster.store.create(CALICO_IPPOOL, pool)
    return "Synced", ("10.40.0.0/16",), SERVICES


async def its_pool_is_switched_off(cluster: Cluster) -> Told:
    await cluster.store.patch(CALICO_IPPOOL, "a", {"spec": {"disabled": True}})
    return UNKNOWN


async def a_file_says_which(cluster: Cluster) -> Told:
    await cluster.config_map("cilium-config", {"ipam": "cluster-pool", "cluster-pool-ipv4-cidr": "10.50.0.0/16"})
    cluster.file("05-cilium.conflist", '{"name": "cilium"}')
    await cluster.read("auto")
    return "Synced", ("10.50.0.0/16",), SERVICES


async def two_changes_at_once(cluster: Cluster) -> Told:
    await cluster.store.create(
        SERVICECIDR, ServiceCIDR(metadata=ObjectMeta(name="more"), spec=ServiceCIDRSpec(cidrs=["10.97.0.0/16"]))
    )
    await cluster.store.patch(CONFIGMAP, "cilium-config", {"data": {"ipam": "kubernetes"}}, namespace="kube-system")
    return "Synced", ("10.30.0.0/16",), (*SERVICES, "10.97.0.0/16")


async def it_goes_though_the_original_held_it(cluster: Cluster) -> Told:
    await cluster.store.patch(COORDINATOR, "default", {"metadata": {"finalizers": [FINALIZER]}})
    await cluster.store.delete(COORDINATOR, "default")
    return "", (), ()


async def it_comes_again(cluster: Cluster) -> Told:
    spec = CoordinatorSpec(pod_cidr_type="none")
    await cluster.store.create(COORDINATOR, SpiderCoordinator(metadata=ObjectMeta(name="default"), spec=spec))
    return "Synced", (), (*SERVICES, "10.97.0.0/16")


STORY: tuple[Step, ...] = (
    nothing_says_it,
    a_controller_manager_comes,
    kubeadm_says_it_better,
    calico_is_asked_and_not_there,
    calico_comes,
    its_pool_is_switched_off,
    a_file_says_which,
    two_changes_at_once,
    it_goes_though_the_original_held_it,
    it_comes_again,
)
FAULTS = Chances(
    lost_request=0.05,
    lost_reply=0.1,
    late=0.05,
    duplicate=0.05,
    conflict=0.1,
    unavailable=0.05,
    busy=0.05,
    before=(0.0, 0.02),
    after=(0.0, 0.02),
    late_by=(0.0, 2.0),
    watch_cut=0.05,
    verbs=("patch", "get", "watch"),
)


def test_each_step_is_followed_within_a_second() -> None:
    async def main() -> None:
        cluster = Cluster(1, replicas=1)
        await cluster.play(*STORY)
        events = {event.reason for event in (await cluster.store.list(EVENT)).items}
        assert events == {"ClusterNotReady", "CalicoNotReady", "CoordinatorSynced", "PodCIDRTypeChanged"}

    run(main, seed=1)


@pytest.mark.parametrize("seed", range(6))
def test_two_owners_and_a_store_that_fails(seed: int) -> None:
    run(lambda: Cluster(seed, chances=FAULTS, settle=40.0).play(*STORY), seed=seed)


def test_a_controller_that_dies_at_any_request() -> None:
    async def main(crash_at: int) -> int:
        cluster = Cluster(2, replicas=1, crash_at=crash_at, settle=3.0)
        await cluster.play(*STORY)
        return cluster.moments

    total = run(lambda: main(0), seed=2)
    assert total > 30
    for moment in range(1, total + 1):
        assert run(lambda moment=moment: main(moment), seed=2) >= moment  # type: ignore[misc]


def test_a_pod_is_refused_before_it_costs_an_address_and_only_if_it_needs_the_cluster() -> None:
    async def main() -> None:
        cluster = Cluster(4, replicas=1)
        store = cluster.store

        async def asked(name: str, *, coordinated: bool) -> Response:
            await store.create(
                POD, Pod(metadata=ObjectMeta(name=name, namespace="default"), spec=PodSpec(node_name="n1"))
            )
            request = Allocate(PodRef("default", name), "eth0", "c" * 64, coordinated=coordinated)
            peer = Peer(account="agent", node="n1", role="agent")
            call = Request(encode(request), peer=peer, deadline=anyio.current_time() + 20)
            return decode_response(await cluster.controllers["c0"].serve(call))

        async def held() -> str | None:
            return (await store.get(IPPOOL, "lan")).status.allocated_ips

        async def unknown(_: Cluster) -> Told:
            told = await nothing_says_it(cluster)
            await cluster.expect(told)
            refused = await asked("a", coordinated=True)
            assert isinstance(refused, Rejected)
            assert (refused.retry, refused.cause, refused.held) == (True, "coordinator_not_ready", False)
            assert "SpiderCoordinator default is NotReady: the CIDRs of pods are not known" in refused.message
            assert await held() is None
            assert isinstance(await asked("b", coordinated=False), Allocated)
            assert await held() is not None
            return told

        async def known(_: Cluster) -> Told:
            told = await a_controller_manager_comes(cluster)
            await cluster.expect(told)
            granted = await asked("c", coordinated=True)
            assert isinstance(granted, Allocated)
            assert granted.coordinator.overlay_pod_cidr == ("10.31.0.0/16",)
            return told

        async def switched_off(_: Cluster) -> Told:
            await cluster.read("calico")
            await store.patch(COORDINATOR, "default", {"spec": {"mode": "disabled"}})
            await cluster.expect(UNKNOWN)
            assert isinstance(await asked("d", coordinated=True), Allocated), "nobody makes a way for it"
            return UNKNOWN

        await store.create(NODE, Node(metadata=ObjectMeta(name="n1")))
        await store.create(NAMESPACE, Namespace(metadata=ObjectMeta(name="default")))
        spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.0.9"], default=True)
        await store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="lan"), spec=spec))
        await cluster.play(unknown, known, switched_off)

    run(main, seed=4)


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_check_sees_a_status_that_nobody_keeps(replicas: int) -> None:
    """The control: without discovery, as in an agent that allocates by itself, the same story fails at its start."""

    async def main() -> None:
        cluster = Cluster(3, replicas=replicas, discovers=False)
        with pytest.raises(ExceptionGroup) as failed:
            await cluster.play(*STORY)
        assert failed.group_contains(AssertionError)
        assert await cluster.told() == ("", (), ())
        for controller in cluster.controllers.values():
            assert "not ready" in controller.cluster.coordinator().coordination.unready

    run(main, seed=3)
