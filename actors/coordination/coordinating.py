"""Coordination in one replica: the owner of the SpiderCoordinators' status, with what it looks at and says.

Only where the operator wants it (SPIDERPOOL_COORDINATOR_ENABLED) and where there is a cluster to look at.
"""

from collections.abc import Callable
from contextlib import suppress

from actors.coordination.coordinators import CoordinatorsActor, Look, Notice
from actors.coordination.folder import Configurations
from actors.coordination.sources import Sources
from actors.coordination.status import SYNCED
from actors.replica.cluster import Cluster
from api.settings import ControllerSettings
from runtime.actor import System
from runtime.errors import ActorError
from runtime.store.port import Store
from runtime.supervision import Intensity, Supervisor
from telemetry import metrics


class Coordinating:
    """Adds the actor and its sources to a replica's supervisor."""

    def __init__(
        self,
        system: System,
        store: Store,
        *,
        path: str,
        supervisor: Supervisor,
        cluster: Cluster,
        settings: ControllerSettings,
        configurations: Configurations,
        mine: Callable[[str], bool],
        notice: Callable[[Notice], None],
    ) -> None:
        """`path` is the supervisor's; `mine` says of a key whether this replica deals with it."""
        self._cluster = cluster
        self._sources = Sources(
            store,
            random=system.random,
            coordinators=cluster.coordinators.snapshot,
            pods=cluster.pods.snapshot,
            service_cidrs=cluster.service_cidrs.snapshot,
            configurations=configurations,
            cilium=settings.cilium_configmap,
            configured=settings.service_cidr,
        )
        below = Supervisor(f"{path}/coordination", system, intensity=Intensity(failures=50, seconds=10.0))
        self._sources.supervise(below)
        self._actor = below.add_actor(
            "coordinators",
            lambda: CoordinatorsActor(
                store,
                sources=self._sources,
                ready=cluster.synced,
                mine=lambda name: mine(f"coordinator/{name}"),
                notice=notice,
            ),
            capacity=CoordinatorsActor.capacity,
        )
        below.add_service("news", lambda: self._sources.follow(self._look))
        supervisor.add_supervisor(below)

    def __repr__(self) -> str:
        return f"<Coordinating {self._sources!r}>"

    def measure(self) -> None:
        """Set the gauge of coordinators that are not ready, as this replica sees them."""
        metrics.COORDINATOR_NOT_READY.clear()
        for name, one in self._cluster.coordinators.snapshot.objects.items():
            metrics.COORDINATOR_NOT_READY.labels(coordinator=name).set(one.status.phase != SYNCED)

    def _look(self) -> None:
        with suppress(ActorError):  # it is stopping, or looks soon anyway
            self._actor.tell(Look())
