"""The device plugin against kubelet's side of its API, on real sockets: the actor, its servers, the watch."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from actors.devices.advertisement import Interface
from actors.devices.kubelet import NodeKubelet
from actors.devices.plugin import Changed, Deserted, DevicesActor, Message, Took, Touched
from api.configfile import ConfigFile, NetworkResourcePlugin, parse
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.supervision import Supervisor
from telemetry.health import HealthTree, State
from tests.servers.device_manager import CHECKPOINT, DeviceManager

pytestmark = pytest.mark.timeout(60)

NIC, ENI = "spidernet.io/eth0-nic", "spidernet.io/sub-eni"


def configuration(eni: int = 2, nics: int = 3, extra: str = "") -> ConfigFile:
    return parse(f"""
iaasNetworkProvider: {{serverUrl: "http://192.0.2.1"}}
agent:
  networkResourcePlugin:
    enabled: true
    devicePluginAffinity: {{nodeSelector: {{matchExpressions: [{{key: drained, operator: DoesNotExist}}]}}}}
    resourceAdvertisement:
      subENI: {{rules: [{{defaultMaxCount: {eni}, nodeSelector: {{matchLabels: {{cloud: "yes"}}}}}}, {extra}]}}
      masterNIC: {{rules: [{{defaultMaxCount: {nics}}}]}}
""")


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder with a short name, as paths of sockets have to be short."""
    with tempfile.TemporaryDirectory(prefix="kubelet-") as folder:
        yield Path(folder)


class Node:
    """What is known of it: stands in for the watches on Node object and kernel."""

    def __init__(self, *names: str, **labels: str) -> None:
        self.labels: Mapping[str, str] | None = {"cloud": "yes", **labels}
        self.interfaces: tuple[Interface, ...] | None = tuple(Interface(name, physical=True) for name in names)
        self.missing = ""


class Agent:
    """One agent's device plugin. `current` is whether it serves the node's CNI socket."""

    def __init__(self, root: Path, node: Node, config: ConfigFile, name: str) -> None:
        self.current = True
        self.health = HealthTree(name)
        self.node = node
        self.plugin: NetworkResourcePlugin = config.agent.network_resource_plugin
        self.supervisor = Supervisor(name, System.real(health=self.health))
        self.kubelet = NodeKubelet(root, current=lambda: self.current)
        self.supervisor.add_service("kubelet", self.kubelet.run)
        self.ref: Ref[Message] = self.supervisor.add_actor(
            "devices",
            lambda: DevicesActor(
                plugin=self.plugin, provider=True, kubelet=self.kubelet, surroundings=node, serving=lambda: False
            ),
        )
        self.kubelet.on_change = lambda: self._tell(Touched())
        self.kubelet.on_deserted = lambda resource: self._tell(Deserted(resource))

    def _tell(self, message: Message) -> None:
        with suppress(ActorError):
            self.ref.tell(message)

    def state(self) -> tuple[State, str]:
        found = self.health.get(f"{self.ref.name}/kubelet")
        return (found.state, found.detail) if found is not None else (State.STOPPED, "")


@asynccontextmanager
async def agent(root: Path, node: Node, config: ConfigFile | None = None, name: str = "agent") -> AsyncIterator[Agent]:
    made = Agent(root, node, config or configuration(), name)
    async with anyio.create_task_group() as group:
        group.start_soon(made.supervisor.run)
        made.ref.tell(Took())
        try:
            yield made
        finally:
            await made.supervisor.stop()


@asynccontextmanager
async def kubelet(root: Path) -> AsyncIterator[DeviceManager]:
    manager = DeviceManager(root)
    await manager.start()
    try:
        yield manager
    finally:
        await manager.stop()


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - the other side is seen by looking
            await anyio.sleep(0.02)


def counts(manager: DeviceManager) -> dict[str, int]:
    return {name: len(ids) for name, ids in manager.devices.items() if ids}


async def test_kubelet_is_told_of_everything_and_given_what_it_asks_for(root: Path) -> None:
    async with kubelet(root) as manager, agent(root, Node("eth0")) as plugin:
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        assert sorted(manager.devices[ENI]) == ["sub-eni-0", "sub-eni-1"]
        assert {path.name for path in manager.folder.iterdir()} == {
            *("kubelet.sock", "spiderpool-spidernet-io-eth0-nic.sock", "spiderpool-spidernet-io-sub-eni.sock")
        }
        options = await manager.options(ENI)
        assert not options.pre_start_required and not options.get_preferred_allocation_available
        assert await manager.allocate(ENI, ["sub-eni-1"]) == 1
        await manager.pre_start(ENI, ["sub-eni-1"])
        for strange in ("sub-eni-2", "eth0-nic-0", "sub-eni-01", "sub-eni-", "", "sub-eni-٣"):
            with pytest.raises(GRPCError, match=r"no device") as refused:
                await manager.allocate(ENI, [strange])
            assert refused.value.status is Status.INVALID_ARGUMENT
        await until(lambda: plugin.state() == (State.OK, f"{NIC}: 3, {ENI}: 2"))
    assert not list(manager.folder.glob("spiderpool-*")), "who ends in order leaves no socket"
    assert sorted(manager.registrations) == sorted([NIC, ENI]), "once each"


async def test_changes_of_the_node_are_followed(root: Path) -> None:
    node = Node("eth0")
    config = configuration(extra="{defaultMaxCount: 7}")
    async with kubelet(root) as manager, agent(root, node, config) as plugin:
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        node.labels = {}
        plugin.ref.tell(Changed())
        await until(lambda: counts(manager) == {NIC: 3, ENI: 7})
        assert sorted(manager.registrations) == sorted([NIC, ENI]), "another count is pushed, not registered"
        node.interfaces = (Interface("eth1", physical=True), Interface("br0", physical=False))
        plugin.ref.tell(Changed())
        await until(lambda: counts(manager) == {"spidernet.io/eth1-nic": 3, ENI: 7})
        node.labels = {"drained": ""}
        plugin.ref.tell(Changed())
        await until(lambda: counts(manager) == {})
        assert not list(manager.folder.glob("spiderpool-*"))
        node.labels = {"cloud": "yes"}
        plugin.ref.tell(Changed())
        await until(lambda: counts(manager) == {"spidernet.io/eth1-nic": 3, ENI: 2})


async def test_a_kubelet_that_starts_anew_is_told_at_once(root: Path) -> None:
    """Three times: it empties the folder, and an inode number may come back."""
    async with kubelet(root) as manager, agent(root, Node("eth0")):
        for _ in range(3):
            await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
            await manager.stop()
            assert counts(manager) == {}
            await anyio.sleep(0.1)
            await manager.start()
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})


async def test_an_agent_that_is_first_waits_for_the_kubelet(root: Path) -> None:
    async with agent(root, Node("eth0")) as plugin:
        await until(lambda: "No such file" in plugin.state()[1])
        assert plugin.state()[0] is State.DEGRADED, "no reason to be unready: pods run without"
        async with kubelet(root) as manager:
            await until(lambda: counts(manager) == {NIC: 3, ENI: 2}, 40)


async def test_a_socket_that_somebody_removes_comes_back(root: Path) -> None:
    async with kubelet(root) as manager, agent(root, Node("eth0")):
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        path = manager.folder / "spiderpool-spidernet-io-sub-eni.sock"
        path.unlink()
        await until(lambda: path.exists() and manager.registrations.count(ENI) == 2)
        assert await manager.allocate(ENI, ["sub-eni-0"]) == 1
        (manager.folder / CHECKPOINT).write_text("{}")
        (manager.folder / "other.sock").write_text("")
        await anyio.sleep(1.0)
        assert manager.registrations.count(NIC) == 1, "the control: what happens to other files is no news"


async def test_a_kubelet_that_stops_following_is_told_again(root: Path) -> None:
    async with kubelet(root) as manager, agent(root, Node("eth0")):
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        manager.drop(ENI)
        await until(lambda: manager.registrations.count(ENI) == 2 and counts(manager) == {NIC: 3, ENI: 2})
        assert manager.registrations.count(NIC) == 1


async def test_a_kubelet_that_takes_the_registration_and_never_connects(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.devices.plugin._FOLLOW_SECONDS", 0.3)
    async with kubelet(root) as manager:
        manager.deaf = True
        async with agent(root, Node()) as plugin:
            await until(lambda: "does not follow it" in plugin.state()[1])
            manager.deaf = False
            await until(lambda: counts(manager) == {ENI: 2})
            await until(lambda: plugin.state()[0] is State.OK)


async def test_a_socket_that_goes_while_kubelet_is_told_comes_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet that starts empties the folder; one that answers after that looks for a socket that is not there."""
    monkeypatch.setattr("actors.devices.plugin._FOLLOW_SECONDS", 0.3)
    async with kubelet(root) as manager:
        manager.answering.clear()
        async with agent(root, Node()):
            await until(lambda: manager.registrations == [ENI])
            (manager.folder / "spiderpool-spidernet-io-sub-eni.sock").unlink()
            await anyio.sleep(0.3)  # the agent looks into the folder, and is not answered yet
            assert manager.registrations == [ENI], "the control: it waits for its answer"
            manager.answering.set()
            await until(lambda: counts(manager) == {ENI: 2})


async def test_a_kubelet_that_refuses(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kubelet(root) as manager:
        manager.refuse = "the resource is odd"
        async with agent(root, Node()) as plugin:
            await until(lambda: len(manager.registrations) >= 3)
            assert plugin.state() == (
                State.DEGRADED,
                f"{ENI}: kubelet refuses {ENI}: UNKNOWN: the resource is odd",
            )
            manager.refuse = ""
            await until(lambda: counts(manager) == {ENI: 2})
    assert sum("is odd" in record.message for record in caplog.records) == 1, "said once, however often it is tried"
    assert not any(record.exc_info for record in caplog.records if record.name.startswith("actors"))


async def test_agents_that_replace_each_other(root: Path) -> None:
    """In a roll-out two are there: the new one takes over, the old one yields, and takes back what is left."""
    async with kubelet(root) as manager, agent(root, Node("eth0"), name="old") as old:
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        old.current = False
        async with agent(root, Node("eth0"), configuration(eni=5), name="new"):
            await until(lambda: counts(manager) == {NIC: 3, ENI: 5})
            await until(lambda: not old.kubelet.offers)
            assert old.state() == (State.OK, "this agent does not serve the node")
            manager.drop(ENI)
            await until(lambda: counts(manager) == {NIC: 3, ENI: 5})
        await until(lambda: counts(manager) == {})
        await anyio.sleep(0.5)
        assert counts(manager) == {}, "the control: nobody serves while nobody is the node's agent"
        old.current = True
        old.ref.tell(Took())
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})


async def test_a_stranger_on_our_socket_is_replaced(root: Path) -> None:
    """Somebody took the name who is not the node's agent."""
    async with kubelet(root) as manager, agent(root, Node()) as plugin:
        await until(lambda: counts(manager) == {ENI: 2})
        path = manager.folder / "spiderpool-spidernet-io-sub-eni.sock"
        other = path.with_name("other")
        other.write_text("")
        other.rename(path)
        await until(lambda: path.is_socket() and manager.registrations.count(ENI) == 2)
        await until(lambda: counts(manager) == {ENI: 2} and plugin.kubelet.watched(ENI))


async def test_what_is_not_known_changes_nothing(root: Path) -> None:
    node = Node("eth0")
    async with kubelet(root) as manager:
        known, node.labels, node.missing = node.labels, None, "Node n1 has not been read: forbidden"
        async with agent(root, node) as plugin:
            await until(lambda: plugin.state() == (State.DEGRADED, node.missing))
            assert counts(manager) == {}
            node.labels, node.missing = known, ""
            plugin.ref.tell(Changed())
            await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
            node.labels = None
            plugin.ref.tell(Changed())
            await asyncio.sleep(0.2)
            assert counts(manager) == {NIC: 3, ENI: 2}


async def test_an_interface_whose_name_is_no_resource_is_named(root: Path) -> None:
    async with kubelet(root) as manager, agent(root, Node("eth0", "lan@2")) as plugin:
        await until(lambda: counts(manager) == {NIC: 3, ENI: 2})
        state, detail = plugin.state()
        assert state is State.DEGRADED and "interface 'lan@2' is not advertised" in detail


async def test_bytes_that_are_no_message_are_refused_and_make_no_noise(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from grpclib.client import Channel, UnaryUnaryMethod

    from actors.devices import messages

    async with kubelet(root) as manager, agent(root, Node()):
        await until(lambda: counts(manager) == {ENI: 2})
        channel = Channel(path=str(manager.folder / "spiderpool-spidernet-io-sub-eni.sock"))
        try:
            # A string field with bytes that are no UTF-8, sent as another message of the same number.
            call = UnaryUnaryMethod(channel, messages.ALLOCATE, Raw, messages.AllocateResponse)
            with pytest.raises(GRPCError) as refused:
                await call(Raw(), timeout=5)
            assert refused.value.status is Status.INVALID_ARGUMENT
        finally:
            channel.close()
        assert await manager.allocate(ENI, ["sub-eni-0"]) == 1
    assert not [record for record in caplog.records if record.exc_info]


class Raw:
    """No message."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return b"\x0a\xff"


async def test_ten_thousand_devices_and_the_most_that_may_be(root: Path) -> None:
    node = Node("eth0")
    config = configuration(nics=10_000, extra="{defaultMaxCount: 100000}")
    async with kubelet(root) as manager, agent(root, node, config) as plugin:
        await until(lambda: counts(manager) == {NIC: 10_000, ENI: 2})
        node.labels = {}
        plugin.ref.tell(Changed())
        await until(lambda: counts(manager) == {NIC: 10_000, ENI: 100_000}, 40)
