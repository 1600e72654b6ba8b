"""The controller's supervision tree.

A replica sees the cluster through reflectors, owns pools, and serves agents over TLS (`actors.replica.daemon` is the
program, and makes what is below `peers`):

    controller
      cluster      reflectors of pools, pods, namespaces, nodes, reserved addresses
      events       what there is to say about pods and pools
      history      who had which address when; its last pages are written when all below have ended
      ippools      one actor per pool that this replica owns, made when first asked for
      subnets      the same for SpiderSubnets, where they are switched on
      applications the same for workloads with automatic pools, where those are switched on
      allocator    selection, and claims on pools, all or nothing
      attachments  the NetworkAttachmentDefinitions of this replica's SpiderMultusConfigs
      coordination which addresses are the cluster's own, kept in the status of the SpiderCoordinators
      collector    gives up records that nobody needs any more
      provider     tells the network provider which addresses are released, where there is one
      peers        one channel per other replica
      rpc          the connections of agents and of other replicas
      certificates makes and renews the certificate, where that is the controller's business
      bundle       keeps the webhook configurations to the certificate's authority
      webhooks     what the API server asks before it stores an object
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import msgspec
from prometheus_client import Counter, Histogram

from actors import program
from actors.allocation.allocator import AllocatorActor, Serve
from actors.allocation.automatic import AutomaticPools
from actors.allocation.callers import Callers
from actors.allocation.endpoint import Endpoints
from actors.allocation.grants import Early, Grants, Policy
from actors.allocation.networks import Isolation, Networks
from actors.allocation.provided import Provided
from actors.allocation.returns import Returns
from actors.allocation.workloads import Workloads
from actors.applications.assembly import Running, assemble
from actors.attachments.attachments import AttachmentsActor
from actors.attachments.following import Following
from actors.collection.collecting import Collecting
from actors.coordination.coordinating import Coordinating
from actors.coordination.folder import Configurations, DiskConfigurations
from actors.events.notices import Notices
from actors.events.recorder import EventsActor
from actors.events.recorder import Message as EventsMessage
from actors.pools.governor import Governor
from actors.pools.history import DRAIN_SECONDS, Histories, HistoryActor, keep_swept
from actors.pools.ippools import IPPools
from actors.pools.peers import Peers, pool_key, subnet_key
from actors.pools.terms import Terms, Witnesses
from actors.pools.throughput import Throughput, work
from actors.provider import assembly as provider
from actors.replica.activity import Activity
from actors.replica.cluster import Cluster
from actors.replica.lookups import Lookups, Scene
from actors.subnets.subnets import Subnets
from api import wire
from api.core import ObjectReference
from api.settings import ControllerSettings
from api.status import Budget, ReplicaStatus
from ipam.history import Change
from runtime.actor import Ref, System
from runtime.errors import ActorError, MailboxFull
from runtime.store.discovery import Discovery
from runtime.store.port import Store
from runtime.supervision import Intensity, Supervisor
from runtime.transport.port import Call, Overloaded
from runtime.web import Web
from telemetry import metrics, traces

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

NAME = "spiderpool-controller"


class Controller:
    """The part of the tree that does not depend on how agents connect."""

    def __init__(
        self,
        system: System,
        store: Store,
        *,
        settings: ControllerSettings,
        pods_exist: bool = True,
        grants_only: bool = False,
        configurations: Configurations | None = None,
        discovery: Discovery | None = None,
        web: Web | None = None,
        path: str,
    ) -> None:
        """Nothing runs before `supervise` and the supervisor.

        Args:
            system: the ports.
            store: where all objects are.
            settings: of the program.
            pods_exist: whether there are Pod objects; without them there is no cluster to look at either.
            grants_only: from the pools and by the statuses that there are; it makes no pool and keeps no status.
            configurations: the folder of CNI configurations; the one that the settings name, unless given.
            discovery: of foreign kinds; without it, workloads of those have no automatic pools.
            web: how the network provider that the settings name is asked; None: there is none.
            path: the name of the subtree.
        """
        self.store = store
        self.subnets: Subnets | None = None
        self.supervisor = Supervisor(path, system, intensity=Intensity(failures=10, seconds=10.0))
        discovered = pods_exist and settings.coordinator_enabled
        self.cluster = Cluster(
            store,
            system,
            coordinator=settings.coordinator_name,
            service_cidr=settings.service_cidr,
            discovered=discovered,
        )
        reflectors = Supervisor(f"{path}/cluster", system, intensity=Intensity(failures=50, seconds=10.0))
        self.cluster.supervise(reflectors, multusconfigs=settings.multus_config_enabled and pods_exist)
        self.supervisor.add_supervisor(reflectors)
        self._notices = Notices(
            self._make_events(settings.pod_name) if pods_exist else None,
            pool=self.cluster.pools.snapshot.get,
            subnet=self.cluster.subnets.snapshot.get,
        )
        self.throughput = Throughput()
        self._histories = self._keep_histories(settings.pod_namespace, collected=pods_exist)
        self.pools = IPPools(
            f"{path}/ippools",
            system,
            store,
            terms=Terms(
                reserved=self.cluster.reserved,
                max_records=settings.ippool_max_allocated_ips,
                cooldown=settings.ip_cooldown,
            ),
            governor=Governor(system.clock, rate=settings.pool_write_rate, replicas=lambda: self.peers.replicas),
            snapshot=self.cluster.pools.snapshot,
            witnesses=Witnesses(
                noted=self._noted,
                exhausted=self._notices.exhausted,
                overlapping=self._notices.overlapping,
                waits=self._notices.pool_waits,
            ),
        )
        self.supervisor.add_supervisor(self.pools.supervisor)
        self.peers = Peers(settings.pod_name, clock=system.clock, local=self.pools)
        self.pools.supervise(self.supervisor, lambda name: self.peers.mine(pool_key(name)))
        if settings.multus_config_enabled and pods_exist:
            self._make_attachments()
        config = settings.config
        provides = not grants_only and pods_exist and config.enable_spider_subnet
        if provides:
            self.cluster.supervise_subnets(reflectors)
            self.subnets = self._own_subnets(f"{path}/subnets", system)
        self.applications: Running | None = None
        if provides and config.enable_auto_pool_for_application:
            self.applications = assemble(
                f"{path}/applications",
                system,
                store,
                cluster=self.cluster,
                peers=self.peers,
                said=self._notices.application,
                config=config,
                discovery=discovery,
            )
            self.applications.supervise(self.supervisor, reflectors)
        endpoints = Endpoints(store)
        self._workloads = Workloads(
            store,
            statefulset=settings.config.enable_stateful_set,
            kubevirt=settings.config.enable_kubevirt_static_ip,
        )
        self.collecting = Collecting(
            system,
            store,
            supervisor=self.supervisor,
            cluster=self.cluster,
            peers=self.peers,
            endpoints=endpoints,
            workloads=self._workloads,
            settings=settings,
            enabled=pods_exist and settings.gc_ip_enabled,
        )
        self._coordinating: Coordinating | None = None
        if discovered and not grants_only:
            self._coordinating = Coordinating(
                system,
                store,
                path=path,
                supervisor=self.supervisor,
                cluster=self.cluster,
                settings=settings,
                configurations=configurations or DiskConfigurations(settings.cni_config_dir),
                mine=self.peers.mine,
                notice=self._notices.coordinator,
            )
        self.isolation = Isolation(
            enabled=settings.multus_namespace_isolation,
            shared=tuple(settings.multus_global_namespaces.split(",")),
        )
        self._networks = Networks(
            store,
            seen=lambda namespace, name: self.cluster.attachments.snapshot.get(name, namespace=namespace),
            namespace=settings.pod_namespace,
            isolation=self.isolation,
        )
        self._lookups = Lookups(
            store, self._scene(), self._networks, pods_exist=pods_exist, failed=self._notices.failed
        )
        self._clock = system.clock
        self._activity = Activity()
        self._replica = settings.pod_name
        self._started = system.clock.wall()
        self._provider = provider.assemble(
            config.iaas_network_provider,
            web,
            clock=self._clock,
            supervisor=self.supervisor,
            pools=self.cluster.pools.snapshot,
            peers=self.peers,
            say=self._notices.not_released,
        )
        self._allocator = self.supervisor.add_actor(
            "allocator",
            self._make_allocator(settings, endpoints, pods_exist=pods_exist),
            capacity=AllocatorActor.capacity,
        )

    def _make_events(self, replica: str) -> Ref[EventsMessage]:
        return self.supervisor.add_actor(
            "events",
            lambda: EventsActor(store=self.store, component=NAME, host=replica),
            capacity=EventsActor.capacity,
        )

    def say_of_certificate(self, secret: ObjectReference, text: str) -> None:
        """The certificate that is made here is not as it should be."""
        self._notices.certificate(secret, text)

    def _make_attachments(self) -> None:
        """See to the NetworkAttachmentDefinitions of this replica's SpiderMultusConfigs."""
        following = Following(self.cluster.multusconfigs, self.cluster.attachments, mine=self.peers.mine)
        ref = self.supervisor.add_actor(
            "attachments",
            lambda: AttachmentsActor(self.store, followed=following, say=self._notices.network),
            capacity=AttachmentsActor.capacity,
        )
        self.supervisor.add_service("multusconfigs", lambda: following.run(ref))

    def _own_subnets(self, path: str, system: System) -> Subnets:
        subnets = Subnets(
            path,
            system,
            self.store,
            subnets=self.cluster.subnets.snapshot,
            pools=self.cluster.pools.snapshot,
            reserved=self.cluster.reserved,
            waits=self._notices.subnet_waits,
        )

        # What is not seen yet is no reason to change anything.
        subnets.supervise(
            self.supervisor, mine=lambda name: self.peers.mine(subnet_key(name)), ready=self.cluster.synced
        )
        self.peers.subnets = subnets
        return subnets

    def _noted(self, pool: str, changes: tuple[Change, ...]) -> None:
        self.throughput.noted(pool, changes)
        self._histories.noted(pool, changes)

    def _keep_histories(self, namespace: str, *, collected: bool) -> Histories:
        """`collected`: the store itself removes what belongs to an object that goes."""
        histories = Histories()

        def make() -> HistoryActor:
            spend = self.pools.governor.spend
            return HistoryActor(self.store, namespace=namespace, spend=spend, missed=histories.missed)

        histories.ref = self.supervisor.add_actor("history", make, capacity=HistoryActor.capacity)
        self.supervisor.add_service("drain", histories.run, shutdown=DRAIN_SECONDS + 0.5)
        if not collected:
            self.supervisor.add_service("sweep", lambda: keep_swept(self.store, namespace))
        return histories

    def _make_allocator(
        self, settings: ControllerSettings, endpoints: Endpoints, *, pods_exist: bool
    ) -> Callable[[], AllocatorActor]:
        config, view = settings.config, self.cluster.view()
        callers = Callers(self.store, view, pods_exist=pods_exist)
        grants = Grants(
            pools=self.peers,
            endpoints=endpoints,
            workloads=self._workloads,
            callers=callers,
            networks=self._networks,
            view=view,
            policy=Policy(
                enable_ipv4=config.enable_ipv4,
                enable_ipv6=config.enable_ipv6,
                enable_subnets=config.enable_spider_subnet,
                automatic_pools=config.enable_auto_pool_for_application,
                cluster_network=settings.multus_cluster_network,
                namespace=settings.pod_namespace,
            ),
            failed=self._notices.failed,
            automatic=None
            if self.applications is None
            else AutomaticPools(self.store, ask=lambda ask, seconds: self.peers.application(ask, timeout=seconds)),
            provided=Provided(
                self._provider,
                clock=self._clock,
                elsewhere=bool(config.iaas_network_provider.server_url),
                master=self.cluster.provided_master,
            ),
        )
        returns = Returns(
            pools=self.peers,
            endpoints=endpoints,
            workloads=self._workloads,
            callers=callers,
            view=view,
            quarantine=settings.ip_quarantine if settings.enabled_release_conflict_ips else None,
            conflict=self._notices.conflict,
        )
        return lambda: AllocatorActor(grants, returns)

    def measure(self, *, debug: bool) -> None:
        """Set the gauges of pools; those of single pools only with `debug`."""
        pools = self.cluster.pools.snapshot.objects
        metrics.TOTAL_IPPOOL_COUNTS.set(len(pools))
        self.pools.measure()
        self.throughput.measure()
        if self._coordinating is not None:
            self._coordinating.measure()
        if self.subnets is not None:
            self.subnets.measure(debug=debug)
        # A pool that is gone has no addresses, not the last ones that it had.
        metrics.DEBUG_IPPOOL_TOTAL_IP_COUNTS.clear()
        metrics.DEBUG_IPPOOL_AVAILABLE_IP_COUNTS.clear()
        for pool in pools.values() if debug else ():
            total, used = pool.status.total_ip_count or 0, pool.status.allocated_ip_count or 0
            metrics.DEBUG_IPPOOL_TOTAL_IP_COUNTS.labels(SpiderIPPool=pool.metadata.name).set(total)
            metrics.DEBUG_IPPOOL_AVAILABLE_IP_COUNTS.labels(SpiderIPPool=pool.metadata.name).set(total - used)

    async def serve(self, call: Call) -> bytes:
        """The transport's handler: one request of an agent or of another replica, by its role. Raises `Overloaded`."""
        match call.peer.role:
            case "controller":
                return await self.peers.serve(call)
            case "agent":
                return await self._serve_agent(call)
            case role:
                _audit.warning("refused: %s, whose role is %r, asks for something", call.peer.account, role)
                return wire.encode(wire.Rejected(message=f"{call.peer.account} is no agent", cause="denied"))

    async def _serve_agent(self, call: Call) -> bytes:
        try:
            request = wire.decode_request(call.payload)
        except msgspec.DecodeError as error:
            _audit.warning("refused: node %s sent what is no message of an agent: %s", call.peer.node, error)
            return wire.encode(wire.Rejected(message=f"not a message of an agent: {error}", cause="wrong_input"))
        method = type(request).__name__
        begun = self._clock.now()
        answer: wire.Response
        with traces.attach(traces.extract(call.traceparent)), traces.span(f"serve {method}"):
            try:
                if isinstance(request, wire.Report):
                    answer = await self.collecting.reports.take(call.peer.node, request, deadline=call.deadline)
                elif isinstance(request, wire.Lookup):
                    answer = await self._lookups.serve(request, call.peer)
                else:
                    answer = await self._allocator.ask(
                        Serve(request, call.peer, Early(lambda granted: call.interim(wire.encode(granted)))),
                        deadline=call.deadline,
                    )
            except MailboxFull as error:
                raise Overloaded(str(error)) from error
            except ActorError as error:
                answer = wire.Rejected(message=str(error), retry=True, cause="internal")
        outcome = answer.cause or "rejected" if isinstance(answer, wire.Rejected) else "ok"
        _counted(method, outcome).inc()
        _timed(method).observe(self._clock.now() - begun)
        self._activity.record(request, answer, call.peer, at=self._clock.wall())
        if isinstance(request, wire.Report) and answer == wire.Noted() and self.collecting.enabled:
            answer = await self.collecting.reports.hold(call.peer.node, request, deadline=call.deadline)
        return wire.encode(answer)

    def _scene(self) -> Scene:
        return Scene(
            pod=lambda namespace, name: self.cluster.pods.snapshot.get(name, namespace=namespace),
            coordinator=self.cluster.coordinator,
            fixed=self._workloads.fixed,
        )

    def status(self) -> ReplicaStatus:
        """What `spiderpoolctl status` asks every replica."""
        return ReplicaStatus(
            replica=self._replica,
            version=program.VERSION,
            started=self._started,
            pools={name: self.peers.owner(pool_key(name)) for name in self.cluster.pools.snapshot.objects},
            nodes=self._activity.nodes(),
            problems=self._activity.problems(now=self._clock.wall()),
            work=work(self.pools.supervisor.status().children),
            budget=Budget(rate=self.pools.governor.rate, balance=self.pools.governor.balance),
            writes=self.throughput.writes,
            granted=self.throughput.granted,
        )


@lru_cache(maxsize=256)
def _counted(method: str, outcome: str) -> Counter:
    """To find a series by its labels takes longer than to count. Both are words of our own: they are few."""
    return metrics.RPC_REQUESTS.labels(side="server", method=method, outcome=outcome)


@lru_cache(maxsize=64)
def _timed(method: str) -> Histogram:
    return metrics.RPC_REQUEST_SECONDS.labels(side="server", method=method)
