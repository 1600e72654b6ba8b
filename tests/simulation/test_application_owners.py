"""Two controllers that both believe to own every application, subnet and pool, while applications are scaled.

Each of them may end before and after any of its writes; it comes back with nothing but what the store has.
"""

from random import Random
from typing import Any

import anyio
import pytest

from actors.controller import Controller
from api import annotations as keys
from api.configfile import ConfigFile
from api.core import Deployment, Namespace, PodTemplate, ReplicatedSpec
from api.kinds import DEPLOYMENT, EVENT, IPPOOL, NAMESPACE
from api.meta import ObjectMeta
from api.settings import ControllerSettings
from ipam.autopool import size
from ipam.ranges import Ranges
from ipam.subnetbook import application, is_automatic
from runtime.actor import System
from runtime.testing import VirtualClock
from runtime.testing.store import Chances, FaultyStore
from tests.simulation.subnets import Points, Subnetting
from tests.simulation.subnets import act as play

NOTES = {keys.POD_SUBNET: '{"ipv4":["lan"]}', keys.IPPOOL_IP_NUMBER: "+0"}
ROUGH = Chances(
    lost_request=0.04,
    lost_reply=0.04,
    late=0.04,
    conflict=0.04,
    unavailable=0.04,
    watch_cut=0.04,
    before=(0.0, 0.02),
    after=(0.0, 0.02),
    late_by=(0.0, 1.0),
)


class WithoutEvents(Points):
    """Whoever ends while it says something leaves nothing half done."""

    def __getattr__(self, name: str) -> Any:
        counted, call = super().__getattr__(name), getattr(self._store, name)

        def chosen(*args: Any, **options: Any) -> Any:
            return (call if args[:1] == (EVENT,) else counted)(*args, **options)

        return chosen if name in {"create", "patch", "replace_status", "delete"} else call


class Owner:
    """One controller."""

    def __init__(self, name: str, world: Subnetting) -> None:
        self.store = FaultyStore(WithoutEvents(world.store, world, name), policy=world.chances, random=world.random)
        self._controller = Controller(
            System(clock=VirtualClock(), random=world.random),
            self.store,
            settings=ControllerSettings(pod_namespace="spiderpool", pod_name=name, config=ConfigFile()),
            path=name,
        )
        self.scope = anyio.CancelScope()

    async def run(self) -> None:
        with self.scope:
            await self._controller.supervisor.run()


class Applying(Subnetting):
    """Controllers, and the applications that they serve."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.wanted: dict[tuple[str, str], int] = {}
        self._whose: dict[str, str] = {}

    async def replica(self, name: str) -> Any:
        made = Owner(name, self)
        self.replicas[name] = made  # type: ignore[assignment]  # of which the world uses what both have
        self.group.start_soon(made.run)
        return made

    async def begin(self, *namespaces: str) -> None:
        for name in namespaces:
            await self.store.create(NAMESPACE, Namespace(metadata=ObjectMeta(name=name)))
        await self.subnet("lan", "10.6.0.1-10.6.0.30", "10.6.0.60-10.6.0.99")
        await self.replica("c1")
        await self.replica("c2")

    async def deploy(self, name: str, replicas: int, *, namespace: str = "default") -> None:
        template = PodTemplate(metadata=ObjectMeta(annotations=NOTES))
        made = Deployment(
            metadata=ObjectMeta(name=name, namespace=namespace),
            spec=ReplicatedSpec(replicas=replicas, template=template),
        )
        await self.store.create(DEPLOYMENT, made)
        self.wanted[namespace, name] = replicas

    async def scale(self, name: str, replicas: int) -> None:
        await self.store.patch(DEPLOYMENT, name, {"spec": {"replicas": replicas}}, namespace="default")
        self.wanted["default", name] = replicas

    async def delete(self, name: str) -> None:
        await self.store.delete(DEPLOYMENT, name, namespace="default")
        del self.wanted["default", name]

    def sizes(self) -> dict[tuple[str, str], int]:
        """Addresses of each application's only pool; a second one of it is another key."""
        found: dict[tuple[str, str], int] = {}
        for pool in self.store.peek(IPPOOL):
            if is_automatic(pool):
                labels = pool.metadata.labels
                key = labels[keys.OWNER_APPLICATION_NAMESPACE], labels[keys.OWNER_APPLICATION_NAME]
                found[key if key not in found else (*key[:1], pool.metadata.name)] = size(pool, Ranges(4))
        return found

    def check(self) -> None:
        """And a pool never becomes another application's."""
        super().check()
        for pool in self.store.peek(IPPOOL):
            meta = pool.metadata
            whose = application(meta.labels)
            if (before := self._whose.setdefault(meta.uid, whose)) != whose:
                self.violations.append(f"pool {meta.name} was that of {before}, and is that of {whose}")

    def settled(self) -> bool:
        return super().settled() and self.sizes() == self.wanted


def act(scene: Any, **options: Any) -> Applying:
    world = play(scene, world=Applying, **options)
    assert isinstance(world, Applying)
    return world


async def storm(world: Any, *, applications: int, changes: int) -> None:
    await world.begin("default")
    random: Random = world.random
    for _ in range(changes):
        name, replicas = f"d{random.randrange(applications)}", random.randrange(7)
        if ("default", name) not in world.wanted:
            await world.deploy(name, replicas)
        elif random.random() < 0.25:
            await world.delete(name)
        else:
            await world.scale(name, replicas)
        await anyio.sleep(random.uniform(0.0, 0.3))
    await world.calm()


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_storm_with_faults(seed: int) -> None:
    act(lambda world: storm(world, applications=5, changes=30), seed=seed, chances=ROUGH)


@pytest.mark.parametrize("part", range(4))
def test_a_crash_at_every_write(part: int) -> None:
    """Before each write, and between it and its answer."""

    async def small(world: Any) -> None:
        await storm(world, applications=3, changes=12)

    points = act(small, seed=5).points
    assert points > 100
    for at in range(1 + part, points, 4):
        act(small, seed=5, crash_at=at)


def test_two_applications_whose_pools_would_have_the_same_name() -> None:
    """The same name in two namespaces, uids with the same piece in their pools' names, at the same moment."""

    async def scene(world: Any) -> None:
        await world.begin("one", "two")
        for namespace in "one", "two":
            await world.deploy("web", 3, namespace=namespace)
        await world.calm()
        assert world.sizes() == {("one", "web"): 3, ("two", "web"): 3}
        uids = [found.metadata.uid for found in world.store.peek(DEPLOYMENT)]
        (piece,) = {uid.rpartition("-")[2][:5] for uid in uids}
        short, long = sorted(world.names(), key=len)
        assert short == f"auto4-web-eth0-{piece}", "one of them was first"
        assert long.removeprefix("auto4-web-eth0-") in uids

    act(scene)
