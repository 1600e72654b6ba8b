"""Collecting in one replica: the collector with what it sees and does, what agents report, and who may set it off.

Where there are no pods (the embedded store alone), or with SPIDERPOOL_GC_IP_ENABLED off, nothing is collected: reports
are taken in and asked nothing.
"""

import logging
from contextlib import suppress
from http import HTTPStatus

from actors.allocation.endpoint import Endpoints
from actors.allocation.workloads import Workloads
from actors.collection.audit import EndpointAudit
from actors.collection.collector import CollectorActor, Message, Reported, Scan
from actors.collection.reclaim import Reclaimer
from actors.collection.reports import Reports
from actors.collection.sight import Rules, Sight
from actors.pools.peers import COLLECTOR, Chores, Heard, Peers, Sweep, Wanted
from actors.replica.cluster import Cluster
from api.settings import ControllerSettings
from api.wire import Noted
from ipam.garbage import Switches
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.store.port import Store
from runtime.supervision import Supervisor
from runtime.transport.port import TransportError
from telemetry.http import Response

_log = logging.getLogger(__name__)

_ASK_SECONDS = 5.0
"""For a question to reach the replica at whose end an agent waits."""


class Collecting:
    """Adds the collector to a replica's supervisor."""

    def __init__(
        self,
        system: System,
        store: Store,
        *,
        supervisor: Supervisor,
        cluster: Cluster,
        peers: Peers,
        endpoints: Endpoints,
        workloads: Workloads,
        settings: ControllerSettings,
        enabled: bool,
    ) -> None:
        """With `enabled` off there is no collector."""
        self._peers = peers
        self._collector: Ref[Message] | None = None
        self.reports = Reports(peers, clock=system.clock, collect=self._collect)
        peers.chores = Chores(heard=self._collect, wanted=self.reports.ask, sweep=self._sweep_here)
        if not enabled:
            return
        rules = _rules(settings)
        sight = self._sight(cluster, workloads, settings)

        def collector() -> CollectorActor:
            reclaimer = Reclaimer(
                store,
                pools=peers,
                endpoints=endpoints,
                workloads=workloads,
                switches=rules.switches,
                machines=cluster.may_have_machines,
                clock=system.clock,
            )
            audit = EndpointAudit(
                store,
                endpoints=endpoints,
                workloads=workloads,
                namespaces=lambda: tuple(cluster.namespaces.snapshot.objects),
                clean_outdated=settings.config.enable_clean_outdated_endpoint,
            )
            return CollectorActor(sight=sight, rules=rules, reclaimer=reclaimer, audit=audit)

        supervisor.add_service("reports", self.reports.follow)
        self._collector = supervisor.add_actor("collector", collector, capacity=CollectorActor.capacity)

    def __repr__(self) -> str:
        return f"<Collecting {'on' if self.enabled else 'off'}>"

    @property
    def enabled(self) -> bool:
        """Whether anything is collected."""
        return self._collector is not None

    def scan(self, query: str = "") -> Response:  # noqa: ARG002 - a route's signature
        """`POST /v1/ipam/gc_ips`: the replica that collects looks at everything, now or a moment later."""
        if self._collector is None:
            return Response(b"nothing is collected: SPIDERPOOL_GC_IP_ENABLED is false\n", HTTPStatus.CONFLICT)
        try:
            self._collector.tell(Scan())
        except ActorError as error:
            return Response(f"{error}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(b"everything is looked at\n")

    def _sweep_here(self) -> None:
        if self._collector is not None:
            with suppress(ActorError):  # it is stopping
                self._collector.tell(Scan(here=True))

    async def _sweep(self) -> None:
        async def here(deadline: float) -> Noted:  # noqa: ARG001 - told, not asked
            self._sweep_here()
            return Noted()

        try:
            await self._peers.ask(COLLECTOR, Sweep(), here, timeout=_ASK_SECONDS)
        except ActorError as error:
            _log.warning("the replica that collects was not told to look at everything: %s", error)

    async def _collect(self, heard: Heard, deadline: float) -> Noted:
        if self._collector is None:
            return Noted()
        reported = Reported(heard.node, heard.attachments, heard.looked, heard.round, heard.via)
        return await self._collector.ask(reported, deadline=deadline)

    async def _ask(self, replica: str, wanted: Wanted) -> None:
        try:
            await self._peers.tell(replica, wanted, timeout=_ASK_SECONDS)
        except (ActorError, TransportError) as error:
            _log.info("the agent of node %s is asked with its next report: %s", wanted.node, error)

    def _sight(self, cluster: Cluster, workloads: Workloads, settings: ControllerSettings) -> Sight:
        return Sight(
            pools=lambda: cluster.pools.snapshot.objects,
            pods=cluster.pods.snapshot,
            nodes=cluster.nodes.snapshot,
            statefulsets=cluster.statefulsets.snapshot,
            machines=cluster.machines.snapshot,
            keeps_statefulsets=settings.config.enable_stateful_set,
            keeps_machines=settings.config.enable_kubevirt_static_ip,
            agents=lambda: cluster.nodes_with(settings.pod_namespace, settings.agent_name),
            fixed=workloads.fixed,
            mine=lambda: self._peers.mine(COLLECTOR),
            complete=self._peers.complete,
            synced=cluster.synced,
            ask=self._ask,
            sweep=self._sweep,
        )


def _rules(settings: ControllerSettings) -> Rules:
    return Rules(
        switches=Switches(
            on_ready_node=settings.gc_terminating_pod_on_ready_node,
            on_not_ready_node=settings.gc_terminating_pod_on_not_ready_node,
            without_addresses=settings.gc_running_pod_without_addresses,
            extra_grace=settings.gc_additional_grace,
        ),
        node_grace=settings.gc_node_grace,
        interval=settings.gc_interval,
        scan_gap=settings.gc_request_gap,
    )
