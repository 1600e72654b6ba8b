"""An agent's place on its node: the socket, the files that lead the container runtime there, and how it comes and goes.

It begins in this order: the journal is read, the socket is served (a rename takes it over from an agent before), a
controller answers, the files are installed. What is missing shows in `/healthz`, and the agent is not ready before. An
agent whose successor dies takes the socket back, for it may be minutes until that one is started again.

It ends in the opposite one. Calls that it accepted are carried through, for up to 25 seconds, with everything alive
that they need; without any it ends at once. Socket, files, links and pods stay as they are: whoever comes next goes on.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import anyio.to_thread

from actors.events.recorder import EventsActor, Say
from actors.events.recorder import Message as EventsMessage
from actors.node.installer import Files, InstallerActor, NodeFiles, NoFiles, Retire
from actors.node.ownpod import OwnPod
from api.settings import AgentSettings
from cni.errors import CniError
from cni.protocol import Invocation
from cni.server import CniServer, Door
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.store.port import Store
from runtime.supervision import Supervisor
from telemetry.health import State

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 25.0
"""For calls under way when the agent is told to end: an ADD takes 20 at most; the chart gives the pod 30."""
STOP_SECONDS = DRAIN_SECONDS + 3.0
"""For the agent's whole subtree."""
_ASK_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_LONELY_SECONDS = 10.0
"""Without a controller, until an event says it: replicas that are replaced take less."""
NO_CONTROLLER = "NoController"
"""Reason of that event."""
_WATCH_SECONDS = 1.0
"""Between two looks whether the socket is there, or its new owner is: less than a shim waits."""


class Residence:
    """Adds what it needs to the agent's supervisor, which runs it."""

    def __init__(
        self,
        system: System,
        supervisor: Supervisor,
        *,
        recovered: anyio.Event,
        invoke: Callable[[Invocation], Awaitable[bytes]],
        contact: Callable[[float], Awaitable[None]],
        connections: Callable[[], int],
        doors: Mapping[str, Mapping[str, Door]],
    ) -> None:
        """Serve nothing yet.

        Args:
            system: the ports.
            supervisor: the agent's.
            recovered: set when the journal has been read.
            invoke: carries a CNI call out.
            contact: whether a controller would serve an ADD, within so many seconds: returns, or raises `CniError`.
            connections: how many controllers are connected.
            doors: what the socket serves besides.
        """
        self._system = system
        self._supervisor = supervisor
        self._recovered = recovered
        self._invoke = invoke
        self._contact = contact
        self._connections = connections
        self._tells: Ref[EventsMessage] | None = None
        self._doors = doors
        self._server: CniServer | None = None
        self._serving = anyio.Event()
        self._usable = anyio.Event()
        self._on_serving: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Residence {self._server or 'not served'}>"

    def serve(self, socket: Path) -> None:
        """Have the shims served at `socket`, and the agent ready once a controller has answered."""

        async def serve() -> None:
            self._report("cni/socket", State.STARTING, "the journal is being read")
            await self._recovered.wait()
            async with AsyncExitStack() as servers:
                while True:
                    server = CniServer(socket, self._invoke, doors=self._doors, drain=DRAIN_SECONDS)
                    self._server = await servers.enter_async_context(server)
                    self._report("cni/socket", State.OK)
                    self._serving.set()
                    _log.info("serving CNI on %s", socket)
                    for call in self._on_serving:
                        call()
                    while not await anyio.to_thread.run_sync(server.is_lost):  # noqa: ASYNC110 - another process's
                        await anyio.sleep(_WATCH_SECONDS)
                    _log.warning("nobody serves on %s: taking it back", socket)

        self._supervisor.add_service("cni", serve, shutdown=DRAIN_SECONDS + 1.0)
        self._supervisor.add_service("contact", self._make_contact)

    def install(self, settings: AgentSettings, store: Store | None) -> None:
        """Have the node's files kept. Without a `store` only the log tells of them, and nobody can ask to withdraw."""
        events: Ref[EventsMessage] | None = None
        pod: OwnPod | None = None
        if store is not None:
            pod = OwnPod(settings, self._system, store)
            events = self._tells = self._events(settings, store, pod)
            self._supervisor.add_service("pod", pod.run)
        files: Files = NodeFiles(settings, current=self.is_current) if settings.cni_bin_dir else NoFiles()
        installer = self._supervisor.add_actor(
            "installer",
            lambda: InstallerActor(
                files=files,
                ready=lambda: self._ready(pod),
                retiring=lambda: pod is not None and pod.retiring,
                events=events,
            ),
            capacity=InstallerActor.capacity,
        )
        if pod is not None:
            pod.on_retire(lambda: installer.tell(Retire()))

    def _events(self, settings: AgentSettings, store: Store, pod: OwnPod) -> Ref[EventsMessage]:
        return self._supervisor.add_actor(
            "events",
            lambda: EventsActor(
                store=store, component="spiderpool-agent", host=settings.node_name, about=lambda: pod.reference
            ),
            capacity=EventsActor.capacity,
        )

    async def _ready(self, pod: OwnPod | None) -> None:
        await self._serving.wait()
        await self._usable.wait()
        if pod is not None:
            await pod.seen()

    def on_serving(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever the node's socket has become this agent's; it must not raise."""
        self._on_serving.append(call)

    @property
    def serving(self) -> bool:
        """Whether the node's socket has been this agent's."""
        return self._serving.is_set()

    def is_current(self) -> bool:
        """Whether it is still: no successor has taken it over. Blocks for a moment."""
        return self._server is None or self._server.is_current()

    async def _make_contact(self) -> None:
        """Be ready once an ADD would be served. A controller that goes away later makes no agent unready."""
        while True:
            try:
                await self._contact(_ASK_SECONDS)
            except CniError as error:
                self._report("contact/controller", State.BLOCKED, f"no ADD would be served: {error}")
                await anyio.sleep(_PAUSE_SECONDS)
            else:
                break
        self._report("contact/controller", State.OK)
        self._usable.set()
        lonely = 0.0
        while True:
            await anyio.sleep(_LONELY_SECONDS / 2)
            lonely = 0.0 if self._connections() else lonely + _LONELY_SECONDS / 2
            if lonely >= _LONELY_SECONDS:
                self._say_lonely()

    def _say_lonely(self) -> None:
        """The runtime is not told: it would take no pod at all. What says it again costs nothing."""
        message = (
            "no controller can be reached: pods that need addresses wait, and those that go give theirs back later"
        )
        if self._tells is not None:
            with suppress(ActorError):
                self._tells.tell(Say(NO_CONTROLLER, message))

    def _report(self, part: str, state: State, detail: str = "") -> None:
        if self._system.health is not None:
            self._system.health.report(f"{self._supervisor.name}/{part}", state, detail)
