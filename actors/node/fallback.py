"""An agent that allocates by itself while no controller answers. Only where the operator has switched that on.

No actor: a channel of last resort (`runtime.transport.port.Channel`) and a service that puts the controller's own
subtree behind it. That subtree is the one that a replica runs, on the agent's store and with the agent's rights, and
serves this one node. It owns no pool more than anybody else does: its writes demand the resourceVersion that it read,
so a controller that works all the same, or another node's agent, costs conflicts and never a duplicate. It collects
nothing: what is left over waits for a controller.

Nothing is kept here. When a controller answers again the subtree gets some seconds for what it has begun, and goes.
"""

import logging
from collections.abc import Callable

import anyio
from msgspec import structs

from actors.controller import Controller
from actors.node.controllers import Controllers
from api.settings import AgentSettings, ControllerSettings
from runtime.actor import System
from runtime.store.port import Store
from runtime.supervision import Intensity, Supervisor
from runtime.transport.local import LocalChannel
from runtime.transport.port import Interim, Peer, Unreachable
from telemetry.health import State

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_SYNC_SECONDS = 20.0
"""For reading the cluster. Without an API server nobody can allocate anything; it is tried again."""
_END_SECONDS = 10.0
"""For what was begun, once a controller answers again."""


def prepare(
    system: System,
    root: Supervisor,
    *,
    controllers: Controllers,
    store: Store,
    agent: AgentSettings,
    controller: ControllerSettings,
) -> None:
    """Have the tree below `root` watch the replicas. `controller` are the settings that a replica here would have."""
    supervisor = Supervisor("agent/fallback", system, intensity=Intensity(failures=50, seconds=10.0))
    settings = structs.replace(controller, gc_ip_enabled=False)
    fallback = Fallback(
        system,
        controllers=controllers,
        supervisor=supervisor,
        make=lambda path: Controller(system, store, settings=settings, grants_only=True, path=path),
        peer=Peer(account=f"pod {agent.pod_namespace}/{agent.pod_name}", node=agent.node_name, role="agent"),
        patience=agent.fallback_after,
    )
    root.add_supervisor(supervisor)
    root.add_service("last-resort", fallback.run)


class Fallback:
    """The channel, and `run` for a supervisor."""

    def __init__(
        self,
        system: System,
        *,
        controllers: Controllers,
        supervisor: Supervisor,
        make: Callable[[str], Controller],
        peer: Peer,
        patience: float,
    ) -> None:
        """Nothing is served yet.

        Args:
            system: the ports.
            controllers: the replicas; this becomes their last resort.
            supervisor: gets the subtree while it is needed.
            make: a controller's tree, under the path that it is given.
            peer: who asks, as the tree sees it.
            patience: seconds without any replica until it is needed.
        """
        self._system = system
        self._controllers = controllers
        self._supervisor = supervisor
        self._make = make
        self._peer = peer
        self._patience = patience
        self._channel: LocalChannel | None = None
        self._lives = 0
        controllers.resort_to(self)

    def __repr__(self) -> str:
        return f"<Fallback {'serving' if self.connected else 'idle'}>"

    @property
    def connected(self) -> bool:
        """See the port."""
        return self._channel is not None

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,
        patient: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        """See the port."""
        if self._channel is None:
            raise Unreachable("no controller answers, and this node does not allocate by itself yet")
        return await self._channel.request(
            payload, deadline=deadline, traceparent=traceparent, hurry=hurry, patient=patient, interim=interim
        )

    async def run(self) -> None:
        """Watch the replicas, for ever."""
        since = self._system.clock.now()
        while True:
            await anyio.sleep(_LOOK_SECONDS)
            if self._controllers.connections:
                since = self._system.clock.now()
            elif self._system.clock.now() - since >= self._patience:
                await self._live()
                since = self._system.clock.now()

    async def _live(self) -> None:
        """Allocate here until a replica answers."""
        self._lives += 1
        name = f"life-{self._lives}"
        controller = self._make(f"{self._supervisor.name}/{name}")
        self._supervisor.add_supervisor(controller.supervisor)
        try:
            with anyio.move_on_after(_SYNC_SECONDS) as limit:
                await controller.cluster.synced()
            if limit.cancelled_caught:
                _log.warning("no controller answers, and the cluster cannot be read: nobody allocates for this node")
                return
            _log.warning("no controller has answered for %g s: this node allocates by itself", self._patience)
            self._report(State.DEGRADED, "no controller answers: this node allocates by itself")
            self._channel = LocalChannel(controller.serve, self._peer)
            self._controllers.connected()
            while not self._controllers.connections:  # noqa: ASYNC110 - channels have no event
                await anyio.sleep(_LOOK_SECONDS)
            _log.warning("a controller answers again: this node leaves allocation to it")
            await anyio.sleep(_END_SECONDS)
        finally:
            self._channel = None
            self._report(State.OK, "")
            with anyio.CancelScope(shield=True):
                await self._supervisor.remove(name)

    def _report(self, state: State, detail: str) -> None:
        if self._system.health is not None:
            self._system.health.report(f"{self._supervisor.name}/allocation", state, detail)
