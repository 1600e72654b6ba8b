"""SpiderMultusConfigs become definitions, and those stay as they should be: replicas, faults and rivals included."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Any

import anyio
import msgspec
import pytest

from actors.attachments.attachments import AttachmentsActor
from actors.attachments.following import Following, config_key
from api.annotations import MULTUS_CR_NAME
from api.kinds import MULTUSCONFIG, NETWORKATTACHMENT, Kind
from api.meta import ObjectMeta, OwnerReference
from api.multusconfig import MacvlanConfig, MultusConfigSpec, SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition, NetworkAttachmentSpec
from runtime.actor import System
from runtime.ownership import owner
from runtime.store.memory import MemoryStore
from runtime.store.port import Listing, NotFound, Store
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore

NS = "default"
GAVE_UP = {MULTUS_CR_NAME: None}


class WithoutKind(MemoryStore):
    """A cluster that does not know definitions before `known` is set."""

    known = True

    def _check(self, kind: Kind[Any]) -> None:
        if kind is NETWORKATTACHMENT and not self.known:
            msg = "the server could not find the requested resource"
            raise NotFound(msg)

    async def get[T](self, kind: Kind[T], name: str, *, namespace: str = "") -> T:
        self._check(kind)
        return await super().get(kind, name, namespace=namespace)

    async def list[T](
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        fields: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Listing[T]:
        self._check(kind)
        return await super().list(kind, namespace=namespace, fields=fields, labels=labels)

    async def create[T](self, kind: Kind[T], item: T) -> T:
        self._check(kind)
        return await super().create(kind, item)


class Stage:
    """One store, replicas that share the work, and what they say."""

    def __init__(self, replicas: Sequence[str] = ("c1",), *, seed: int = 1, chances: Chances | None = None) -> None:
        self.clock = VirtualClock()
        self.store = WithoutKind(wall=self.clock.wall)
        self.random = Random(seed)
        self.chances = chances
        self.members = set(replicas)
        self.said: list[tuple[str, str, str]] = []
        self.scopes: dict[str, anyio.CancelScope] = {}

    def start(self, group: anyio.abc.TaskGroup, name: str) -> None:
        system = System(clock=self.clock, random=Random(self.random.random()))
        store: Store = self.store
        if self.chances is not None:
            store = FaultyStore(self.store, policy=self.chances, random=Random(self.random.random()))
        supervisor = Supervisor(name, system)
        configs = Reflector(store, MULTUSCONFIG, random=system.random)
        attachments = Reflector(store, NETWORKATTACHMENT, random=system.random)
        following = Following(configs, attachments, mine=lambda key: owner(key, self.members) == name)
        ref = supervisor.add_actor(
            "attachments",
            lambda: AttachmentsActor(store, followed=following, say=self._say),
            capacity=AttachmentsActor.capacity,
        )
        for service, work in (("configs", configs.run), ("definitions", attachments.run)):
            supervisor.add_service(service, work)
        supervisor.add_service("follow", lambda: following.run(ref))
        scope = self.scopes[name] = anyio.CancelScope()

        async def live() -> None:
            with scope:
                await supervisor.run()

        group.start_soon(live)

    def kill(self, name: str) -> None:
        self.members.discard(name)
        self.scopes[name].cancel()

    def _say(self, config: SpiderMultusConfig, reason: str, text: str) -> None:
        self.said.append((config.metadata.name, reason, text))

    # -- objects -------------------------------------------------------------------------------------------------------

    async def config(self, name: str, master: str = "eth0", **notes: str) -> SpiderMultusConfig:
        keys = {"cr_name": MULTUS_CR_NAME}
        meta = ObjectMeta(
            name=name, namespace=NS, annotations={keys.get(key, key): text for key, text in notes.items()}
        )
        spec = MultusConfigSpec(cni_type="macvlan", macvlan=MacvlanConfig(master=[master] if master else []))
        return await self.store.create(MULTUSCONFIG, SpiderMultusConfig(metadata=meta, spec=spec))

    async def change(self, name: str, change: dict[str, Any]) -> None:
        await self.store.patch(MULTUSCONFIG, name, change, namespace=NS)

    async def edit(self, name: str, change: dict[str, Any]) -> None:
        await self.store.patch(NETWORKATTACHMENT, name, change, namespace=NS)

    async def remove(self, name: str) -> None:
        """As a user deletes it, and the cluster's garbage collector then its definitions."""
        await self.store.delete(MULTUSCONFIG, name, namespace=NS)
        await self.collect()

    async def collect(self) -> None:
        """What the garbage collector does all the time."""
        alive = {config.metadata.uid for config in self.store.peek(MULTUSCONFIG)}
        for item in self.store.peek(NETWORKATTACHMENT):
            owners = item.metadata.owner_references
            if owners and not any(one.uid in alive for one in owners):
                await self.store.delete(NETWORKATTACHMENT, item.metadata.name, namespace=NS)

    def made(self) -> dict[str, str]:
        """Definitions by name, with the interface that they stand on."""
        return {
            item.metadata.name: msgspec.json.decode(item.spec.config)["plugins"][0]["master"]
            for item in self.store.peek(NETWORKATTACHMENT)
        }

    def owner_of(self, name: str) -> str:
        (item,) = (one for one in self.store.peek(NETWORKATTACHMENT) if one.metadata.name == name)
        controller = item.metadata.controller
        return controller.name if controller is not None else ""

    def version_of(self, name: str) -> str:
        (item,) = (one for one in self.store.peek(NETWORKATTACHMENT) if one.metadata.name == name)
        return item.metadata.resource_version


def play(stage: Stage, scene: Callable[[Stage], Awaitable[None]], *, seed: int = 1) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            for name in sorted(stage.members):
                stage.start(group, name)
            await scene(stage)
            group.cancel_scope.cancel()

    run(main, seed=seed)


def test_made_repaired_changed_and_renamed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.config("lan")
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0"}
        version = stage.version_of("lan")
        await anyio.sleep(60)
        assert stage.version_of("lan") == version, "what is right is not written"
        await stage.store.delete(NETWORKATTACHMENT, "lan", namespace=NS)
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0"}
        await stage.edit("lan", {"spec": {"config": "{}"}, "metadata": {"annotations": {"a": "b"}}})
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0"}
        assert stage.store.peek(NETWORKATTACHMENT)[0].metadata.annotations == {}
        await stage.edit("lan", {"metadata": {"ownerReferences": None, "labels": {"mine": "x"}}})
        await anyio.sleep(1)
        assert stage.owner_of("lan") == "lan"
        assert stage.store.peek(NETWORKATTACHMENT)[0].metadata.labels == {"mine": "x"}
        await stage.change("lan", {"spec": {"macvlan": {"master": ["eth1"]}}})
        await anyio.sleep(5)
        assert stage.made() == {"lan": "eth1"}
        await stage.change("lan", {"metadata": {"annotations": {MULTUS_CR_NAME: "other"}}})
        await anyio.sleep(20)
        assert stage.made() == {"other": "eth1"}
        await stage.change("lan", {"metadata": {"annotations": {MULTUS_CR_NAME: None}}})
        await anyio.sleep(60)
        assert stage.made() == {"lan": "eth1"}
        assert stage.said == []
        await stage.remove("lan")
        await anyio.sleep(60)
        assert stage.made() == {}

    play(Stage(), scene)


def test_an_invalid_one_is_said_and_what_was_made_of_it_stays() -> None:
    async def scene(stage: Stage) -> None:
        await stage.config("bad", master="")
        await stage.config("lan")
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0"}
        ((name, reason, text),) = stage.said
        assert (name, reason) == ("bad", "InvalidNetwork")
        assert "spec.macvlan.master: Required value" in text
        await stage.change("lan", {"spec": {"macvlan": {"mtu": 70000}}})
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0"}
        assert stage.said[-1][:2] == ("lan", "InvalidNetwork")
        await stage.change("bad", {"spec": {"macvlan": {"master": ["eth2"]}}})
        await anyio.sleep(1)
        assert stage.made() == {"bad": "eth2", "lan": "eth0"}

    play(Stage(), scene)


def test_a_definition_of_nobody_is_adopted_and_one_of_somebody_is_not() -> None:
    async def scene(stage: Stage) -> None:
        meta = ObjectMeta(name="lan", namespace=NS, labels={"a": "b"}, annotations={"old": "x"})
        old = NetworkAttachmentDefinition(metadata=meta, spec=NetworkAttachmentSpec(config="{}"))
        await stage.store.create(NETWORKATTACHMENT, old)
        operator = OwnerReference(api_version="v1", kind="Operator", name="op", uid="1", controller=True)
        for name, owners in (("theirs", [operator]), ("own", [])):
            meta = ObjectMeta(name=name, namespace=NS, owner_references=owners)
            spec = NetworkAttachmentSpec(config='{"plugins":[{"master":"x"}]}')
            await stage.store.create(NETWORKATTACHMENT, NetworkAttachmentDefinition(metadata=meta, spec=spec))
        await stage.config("lan")
        await stage.config("theirs")
        await anyio.sleep(1)
        assert stage.made() == {"lan": "eth0", "theirs": "x", "own": "x"}
        (adopted,) = (one for one in stage.store.peek(NETWORKATTACHMENT) if one.metadata.name == "lan")
        assert (adopted.metadata.labels, adopted.metadata.annotations) == ({"a": "b"}, {})
        ((name, reason, text),) = stage.said
        assert (name, reason) == ("theirs", "NetworkTaken")
        assert text == f"NetworkAttachmentDefinition {NS}/theirs is Operator op's, and stays as it is"
        await stage.store.delete(NETWORKATTACHMENT, "theirs", namespace=NS)
        await anyio.sleep(1)
        assert stage.made()["theirs"] == "eth0"

    play(Stage(), scene)


def test_two_of_one_name() -> None:
    """The first one has it; when it goes, or gives the name up, the second one gets it."""

    async def scene(stage: Stage) -> None:
        await stage.config("first", cr_name="lan")
        await anyio.sleep(1)
        await stage.config("second", "eth1", cr_name="lan")
        await anyio.sleep(30)
        assert (stage.made(), stage.owner_of("lan")) == ({"lan": "eth0"}, "first")
        assert [(name, reason) for name, reason, _ in stage.said] == [("second", "NetworkTaken")]
        await stage.change("first", {"metadata": {"annotations": GAVE_UP}})
        await anyio.sleep(5)
        assert (stage.made(), stage.owner_of("lan")) == ({"first": "eth0", "lan": "eth1"}, "second")
        await stage.change("first", {"metadata": {"annotations": {MULTUS_CR_NAME: "lan"}}})
        await anyio.sleep(5)
        assert stage.owner_of("lan") == "second"
        await stage.remove("second")
        await anyio.sleep(10)
        assert stage.owner_of("lan") == "first"
        assert stage.made() == {"lan": "eth0"}

    play(Stage(), scene)


def test_a_definition_whose_owner_is_no_more_is_free() -> None:
    """Made again under the same name, before the cluster has collected what the last one left."""

    async def scene(stage: Stage) -> None:
        await stage.config("lan")
        await anyio.sleep(1)
        await stage.store.delete(MULTUSCONFIG, "lan", namespace=NS)
        new = await stage.config("lan", "eth1")
        await anyio.sleep(5)
        assert stage.made() == {"lan": "eth1"}
        (item,) = stage.store.peek(NETWORKATTACHMENT)
        assert [one.uid for one in item.metadata.owner_references] == [new.metadata.uid]

    play(Stage(), scene)


def test_a_cluster_that_does_not_know_definitions_yet() -> None:
    async def scene(stage: Stage) -> None:
        stage.store.known = False
        for number in range(20):
            await stage.config(f"lan{number}")
        await anyio.sleep(300)
        assert stage.store.peek(NETWORKATTACHMENT) == []
        stage.store.known = True
        await anyio.sleep(3)
        assert len(stage.made()) == 20
        await anyio.sleep(40)
        await stage.store.delete(NETWORKATTACHMENT, "lan7", namespace=NS)
        await anyio.sleep(1)
        assert len(stage.made()) == 20
        assert stage.said == []

    play(Stage(), scene)


def test_a_fight_gets_slow_and_is_never_given_up() -> None:
    async def scene(stage: Stage) -> None:
        await stage.config("lan")
        await anyio.sleep(1)
        right = 0
        for _ in range(600):
            if stage.made() == {"lan": "eth0"}:
                right += 1
                await stage.edit("lan", {"spec": {"config": '{"plugins":[{"master":"x"}]}'}})
            await anyio.sleep(0.5)
        assert 8 <= right < 30
        await anyio.sleep(120)
        assert stage.made() == {"lan": "eth0"}

    play(Stage(), scene)


def test_replicas_share_the_work_and_take_over() -> None:
    async def scene(stage: Stage) -> None:
        for number in range(12):
            await stage.config(f"lan{number}")
        await anyio.sleep(2)
        assert len(stage.made()) == 12
        owners = {owner(config_key(f"{NS}/lan{number}"), stage.members) for number in range(12)}
        assert owners == {"c1", "c2", "c3"}
        stage.kill("c2")
        for number in range(12):
            await stage.store.delete(NETWORKATTACHMENT, f"lan{number}", namespace=NS)
        await anyio.sleep(4)
        assert len(stage.made()) == 12

    play(Stage(("c1", "c2", "c3")), scene)


def test_who_no_longer_owns_an_object_leaves_it_alone() -> None:
    """What it waited for is the new owner's business."""

    async def scene(stage: Stage) -> None:
        stage.members = {"c1"}
        stage.store.known = False
        await stage.config("lan")
        await anyio.sleep(10)
        stage.members = {"somebody"}
        await anyio.sleep(10)
        stage.store.known = True
        await anyio.sleep(60)
        assert stage.made() == {}
        stage.members = {"c2"}
        await anyio.sleep(5)
        assert stage.made() == {"lan": "eth0"}

    play(Stage(("c1", "c2")), scene)


def test_nobody_who_owns_none_writes() -> None:
    """The control of the one above."""

    async def scene(stage: Stage) -> None:
        stage.members = {"somebody"}
        await stage.config("lan")
        await anyio.sleep(60)
        assert stage.made() == {}

    play(Stage(), scene)


FAULTS = Chances(
    lost_request=0.08,
    lost_reply=0.08,
    late=0.05,
    duplicate=0.05,
    conflict=0.1,
    unavailable=0.05,
    busy=0.05,
    watch_cut=0.1,
    before=(0.0, 0.2),
    after=(0.0, 0.2),
)


@pytest.mark.parametrize("seed", range(25))
def test_lost_writes_crashes_and_two_owners(seed: int) -> None:
    """Whatever happens in between, in the end there is one definition for each, as the last spec says."""

    async def scene(stage: Stage) -> None:
        random = Random(seed)
        wanted: dict[str, str] = {}
        names: dict[str, str] = {}
        for turn in range(30):
            name = f"lan{random.randrange(5)}"
            match random.randrange(7):
                case 0 if name in wanted:
                    await stage.remove(name)
                    del wanted[name], names[name]
                case 1 if name in wanted:
                    wanted[name] = f"eth{turn}"
                    await stage.change(name, {"spec": {"macvlan": {"master": [wanted[name]]}}})
                case 2 if name in wanted:
                    names[name] = f"{name}-{turn}" if names[name] == name else name
                    note = names[name] if names[name] != name else None
                    await stage.change(name, {"metadata": {"annotations": {MULTUS_CR_NAME: note}}})
                case 3:
                    for item in stage.store.peek(NETWORKATTACHMENT)[:1]:
                        await stage.store.delete(NETWORKATTACHMENT, item.metadata.name, namespace=NS)
                case 4:
                    # For a while both own everything, or nobody does.
                    stage.members = {random.choice(["c1", "c2", "nobody"])}
                case _ if name not in wanted:
                    await stage.config(name)
                    wanted[name], names[name] = "eth0", name
                case _:
                    pass
            await anyio.sleep(random.choice([0.0, 0.01, 1.0]))
        stage.members = {"c1", "c2"}
        for _ in range(20):
            await anyio.sleep(20)
            await stage.collect()
        await anyio.sleep(100)
        assert stage.made() == {names[name]: master for name, master in wanted.items()}
        assert all(stage.owner_of(names[name]) == name for name in wanted)

    play(Stage(("c1", "c2"), seed=seed, chances=FAULTS), scene, seed=seed)
