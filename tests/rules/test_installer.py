"""The installer and the events actor on a virtual clock: when they act, what they say, and what they do not repeat."""

from collections.abc import Awaitable, Callable
from random import Random

import anyio
import anyio.lowlevel
import pytest

from actors.events.recorder import EventsActor
from actors.node.installer import InstallerActor, Report, Retire
from actors.node.ownpod import OwnPod
from api.core import Event, ObjectReference, Pod
from api.kinds import EVENT, POD
from api.meta import ObjectMeta
from api.retirement import LEFT, RETIRE, WITHDRAWN
from api.settings import load_agent
from cni.install import Installed, Withdrawn
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore
from telemetry.health import HealthTree, State

POD_REFERENCE = ObjectReference(api_version="v1", kind="Pod", namespace="spiderpool", name="agent-x", uid="u-1")
PLAIN = Report(installed=Installed(changed=("/opt/cni/bin/spiderpool", "/etc/cni/net.d/00-spiderpool.conflist")))
UNCHANGED = Report()
SHADOWED = Report(installed=Installed(shadow="/etc/cni/net.d/00-aaa.conf"))


class FakeFiles:
    """Answers with one outcome after another, the last one for ever."""

    def __init__(self, *outcomes: Report | Exception, withdrawn: Withdrawn | Exception | None = None) -> None:
        self.outcomes = list(outcomes)
        self.withdrawn: list[Withdrawn | Exception] = [
            withdrawn or Withdrawn(removed=("the conflist",), left=(), why="10-bridge.conflist takes over")
        ]
        self.calls: list[tuple[str, float]] = []

    async def install(self) -> Report:
        self.calls.append(("install", anyio.current_time()))
        await anyio.sleep(0.01)
        return _next(self.outcomes)

    async def withdraw(self) -> Withdrawn:
        self.calls.append(("withdraw", anyio.current_time()))
        await anyio.sleep(0.01)
        return _next(self.withdrawn)


def _next[T](outcomes: list[T | Exception]) -> T:
    outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class World:
    """An installer with its events, in a memory store."""

    def __init__(self, files: FakeFiles, *, chances: Chances | None = None) -> None:
        self.health = HealthTree("agent")
        self.system = System(clock=VirtualClock(), random=Random(1), health=self.health)
        self.supervisor = Supervisor("agent", self.system)
        self.truth = MemoryStore()
        self.store = FaultyStore(self.truth, policy=chances or Chances(), random=Random(1))
        self.ready = anyio.Event()
        self.retiring = False
        self.events = self.supervisor.add_actor(
            "events",
            lambda: EventsActor(store=self.store, component="spiderpool-agent", host="n1", about=lambda: POD_REFERENCE),
        )
        self.installer = self.supervisor.add_actor(
            "installer",
            lambda: InstallerActor(
                files=files, ready=self.ready.wait, retiring=lambda: self.retiring, events=self.events
            ),
        )

    def said(self) -> list[Event]:
        return sorted(self.truth.peek(EVENT), key=lambda event: event.metadata.uid)

    def state(self) -> State:
        found = self.health.get("agent/installer/files")
        assert found is not None
        return found.state

    def play(self, script: Callable[["World"], Awaitable[None]]) -> None:
        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.supervisor.run)
                await anyio.lowlevel.checkpoint()
                await script(self)
                await self.supervisor.stop()

        run(main, seed=1)


def test_nothing_is_installed_before_an_add_would_be_served() -> None:
    files = FakeFiles(PLAIN, UNCHANGED)

    async def script(world: World) -> None:
        await anyio.sleep(15)
        assert (files.calls, world.state()) == ([], State.STARTING), "kubelet asks every second whether it has started"
        await anyio.sleep(85)
        assert (files.calls, world.state()) == ([], State.BLOCKED), "it has started, and waits for a controller"
        world.ready.set()
        await anyio.sleep(1)
        assert [what for what, _ in files.calls] == ["install"]
        assert world.state() is State.OK
        await anyio.sleep(100)
        assert len(files.calls) == 4, "every half minute"
        assert [(event.reason, event.type) for event in world.said()] == [("CNIInstalled", "Normal")]

    World(files).play(script)


def test_what_somebody_changed_is_put_back_and_told() -> None:
    changed = Report(installed=Installed(changed=("/etc/cni/net.d/00-spiderpool.conflist",)))

    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(70)
        restored = world.said()[-1]
        assert (restored.reason, restored.type) == ("CNIRestored", "Warning")
        assert "/etc/cni/net.d/00-spiderpool.conflist" in restored.message

    World(FakeFiles(PLAIN, changed, UNCHANGED)).play(script)


def test_a_folder_that_cannot_be_written() -> None:
    why = OSError("cannot write /opt/cni/bin/spiderpool: Read-only file system, errno 30")
    files = FakeFiles(*[why] * 8, PLAIN, UNCHANGED)

    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(60)
        assert world.state() is State.BLOCKED, "not ready, and alive"
        assert [event.reason for event in world.said()] == ["CNIInstallFailed"], "said once, not with every try"
        assert "/opt/cni/bin/spiderpool: Read-only file system, errno 30" in world.said()[0].message
        pauses = [b - a for (_, a), (_, b) in zip(files.calls, files.calls[1:], strict=False)]
        assert pauses == sorted(pauses)
        await anyio.sleep(200)
        assert world.state() is State.OK
        assert world.said()[-1].reason == "CNIInstalled"

    World(files).play(script)


def test_a_configuration_that_comes_first_is_told_and_waited_for() -> None:
    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(70)
        assert world.state() is State.DEGRADED, "ready, with a note"
        assert [event.reason for event in world.said()] == ["CNIShadowed"]
        assert "/etc/cni/net.d/00-aaa.conf" in world.said()[0].message
        await anyio.sleep(60)
        assert world.state() is State.OK
        assert "00-aaa.conf is gone" in world.said()[-1].message

    World(FakeFiles(SHADOWED, SHADOWED, SHADOWED, UNCHANGED)).play(script)


def test_a_kernel_without_macvlan() -> None:
    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(70)
        assert world.state() is State.DEGRADED
        assert [event.reason for event in world.said()] == ["KernelLacksMacvlan"]

    World(FakeFiles(Report(kernel=False))).play(script)


def test_an_agent_that_was_replaced_leaves_the_files_alone() -> None:
    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(100)
        assert world.state() is State.OK
        assert [event.reason for event in world.said()] == ["CNIInstalled"]

    World(FakeFiles(PLAIN, Report(current=False))).play(script)


@pytest.mark.parametrize("before", [True, False])
def test_withdrawal(before: bool) -> None:
    """While it waits for a controller as well as after it installed."""
    files = FakeFiles(PLAIN, UNCHANGED)

    async def script(world: World) -> None:
        if not before:
            world.ready.set()
            await anyio.sleep(40)
        world.installer.tell(Retire())
        world.installer.tell(Retire())
        await anyio.sleep(1)
        world.ready.set()
        done = len(files.calls)
        await anyio.sleep(1000)
        assert len(files.calls) == done, "it installs no more"
        assert [what for what, _ in files.calls].count("withdraw") == 1
        answer = world.said()[-1]
        assert (answer.reason, answer.involved_object) == (WITHDRAWN, POD_REFERENCE)
        assert answer.message == "removed the conflist; left nothing: 10-bridge.conflist takes over"

    World(files).play(script)


def test_something_is_left() -> None:
    left = Withdrawn(removed=(), left=("/opt/cni/bin/spiderpool",), why="no other CNI configuration is there")

    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(1)
        world.installer.tell(Retire())
        await anyio.sleep(1)
        assert (world.said()[-1].reason, world.said()[-1].type) == (LEFT, "Warning")
        assert world.state() is State.DEGRADED

    World(FakeFiles(PLAIN, UNCHANGED, withdrawn=left)).play(script)


def test_a_withdrawal_that_fails_is_answered_in_time_and_goes_on() -> None:
    files = FakeFiles(PLAIN, UNCHANGED)
    files.withdrawn = [OSError("cannot remove /etc/cni/net.d/x: errno 30")] * 8 + files.withdrawn

    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(1)
        world.installer.tell(Retire())
        await anyio.sleep(40)
        assert world.said()[-1].reason == LEFT, "the hook waits a minute"
        assert "errno 30" in world.said()[-1].message
        await anyio.sleep(200)
        assert world.said()[-1].reason == WITHDRAWN

    World(files).play(script)


def test_a_new_life_of_the_actor_does_not_install_again() -> None:
    files = FakeFiles(PLAIN, UNCHANGED)
    world = World(files)
    world.retiring = True

    async def script(world: World) -> None:
        world.ready.set()
        await anyio.sleep(100)
        assert [what for what, _ in files.calls] == ["withdraw"]

    world.play(script)


# -- the own pod -------------------------------------------------------------------------------------------------------


def test_the_annotation_on_the_own_pod_and_on_no_other() -> None:
    settings = load_agent(
        {"SPIDERPOOL_POD_NAMESPACE": "spiderpool", "SPIDERPOOL_POD_NAME": "agent-x", "SPIDERPOOL_NODE_NAME": "n1"}
    )
    asked: list[bool] = []

    async def main() -> None:
        store = MemoryStore()
        for name in ("agent-x", "agent-y"):
            await store.create(POD, Pod(metadata=ObjectMeta(name=name, namespace="spiderpool")))
        change = {"metadata": {"annotations": {RETIRE: "true"}}}
        await store.patch(POD, "agent-y", change, namespace="spiderpool")
        pod = OwnPod(settings, System(clock=VirtualClock(), random=Random(1)), store)
        pod.on_retire(lambda: asked.append(True))
        async with anyio.create_task_group() as group:
            group.start_soon(pod.run)
            await pod.seen()
            await anyio.sleep(5)
            assert not asked
            assert pod.reference.uid == (await store.get(POD, "agent-x", namespace="spiderpool")).metadata.uid
            await store.patch(POD, "agent-x", change, namespace="spiderpool")
            await anyio.sleep(5)
            assert asked
            assert pod.retiring
            group.cancel_scope.cancel()

    run(main, seed=1)
