"""Puts the device plugin into an agent's supervision tree. Only agents that are one import this: gRPC takes 8 MiB."""

from contextlib import suppress
from pathlib import Path

from actors.devices.kubelet import NodeKubelet
from actors.devices.plugin import Changed, Deserted, DevicesActor, Message, Took, Touched
from actors.devices.surroundings import NodeSurroundings
from actors.node.residence import Residence
from api.settings import AgentSettings
from runtime.actor import System
from runtime.errors import ActorError
from runtime.store.port import Store
from runtime.supervision import Supervisor


def add(supervisor: Supervisor, system: System, settings: AgentSettings, store: Store, residence: Residence) -> None:
    """Have the actor, and what tells it of node and kubelet, run below `supervisor`."""
    plugin = settings.config.agent.network_resource_plugin
    kubelet = NodeKubelet(Path(plugin.kubelet_root_dir), current=residence.is_current)
    surroundings = NodeSurroundings(settings.node_name, system, store)
    # The sockets go last: until then the actor may still close one.
    supervisor.add_service("kubelet", kubelet.run, shutdown=5.0)
    devices = supervisor.add_actor(
        "devices",
        lambda: DevicesActor(
            plugin=plugin,
            provider=bool(settings.config.iaas_network_provider.server_url),
            kubelet=kubelet,
            surroundings=surroundings,
            serving=lambda: residence.serving,
        ),
        capacity=DevicesActor.capacity,
    )
    supervisor.add_service("surroundings", surroundings.run)

    def tell(message: Message) -> None:
        with suppress(ActorError):  # it is stopping, or has more of these than it needs
            devices.tell(message)

    kubelet.on_change = lambda: tell(Touched())
    kubelet.on_deserted = lambda resource: tell(Deserted(resource))
    surroundings.on_change = lambda: tell(Changed())
    residence.on_serving(lambda: tell(Took()))
