"""The agent's supervision tree, and the program `spiderpool-agent`.

agent
controllers  one channel per controller replica
outbox       releases that this node owes
reporter     tells the controller what this node knows of, and looks where it is asked to
pfs          one actor per SR-IOV NIC
departures   tells when a sandbox's namespace goes
pulse        measures how long the event loop is held up
parents      sees to VLANs and bonds that links of pods stand on
sandboxes    one actor per pod sandbox
node         takes CNI calls, keeps the sandboxes
cni          the unix socket that the shim, and the original's plugins, talk to
contact      whether a controller has answered
installer    keeps the shim and the CNI configuration on the node
events       what an operator has to know of this node
devices      has kubelet know which NICs there are, and how many sub-interfaces; where that is switched on
pod          the agent's own pod object
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.to_thread

from actors import program
from actors.node.controllers import Controllers
from actors.node.departures import NetnsDepartures
from actors.node.detection import Detection, Terms, terms_of
from actors.node.disk import Journal, open_journal
from actors.node.doors import Doors, Switches
from actors.node.meta import Meta
from actors.node.node import Departed, Disavow, Invoke, NodeActor
from actors.node.outbox import Connected, OutboxActor
from actors.node.outbox import Departed as NetnsGone
from actors.node.parent import ParentActor
from actors.node.pfs import PhysicalFunctions
from actors.node.pulse import Pulse
from actors.node.reporter import Connected as ControllerBack
from actors.node.reporter import ReporterActor
from actors.node.residence import STOP_SECONDS, Residence
from actors.replica.replicas import Replicas, named
from api.configfile import ConfigFile
from api.settings import AgentSettings, ControllerSettings, SettingsError, load_agent, load_controller
from api.wire import Inquire, Ready
from cni.delegate import ExecutedDelegates
from cni.errors import CniError, NotReady, TryAgainLater
from cni.kernel import Kernel, LinuxKernel
from cni.netlink import sysctl
from cni.pods import named_by_runtime
from cni.protocol import Invocation, Verb
from cni.result import encode_result
from cni.vfs import LinuxVfs, Vfs
from runtime.actor import System
from runtime.errors import ActorError
from runtime.store.credentials import CredentialsError, from_kubeconfig, in_cluster
from runtime.store.kubernetes import KubernetesStore
from runtime.supervision import Intensity, Supervisor
from runtime.transport.port import Channel, TransportError
from telemetry import attributes, metrics, traces

_log = logging.getLogger(__name__)

NAME = "spiderpool-agent"
_CALL_SECONDS = 65.0
"""A little longer than the node actor's own limit, whose error is the better one."""


class Agent:
    """The part of the tree that does not depend on how the controller is reached."""

    def __init__(
        self,
        system: System,
        *,
        path: str,
        kernel: Kernel,
        journal: Journal,
        channels: Sequence[Channel],
        node: str = "",
        named: Callable[[Invocation], Invocation] = named_by_runtime,
        vlan_id_per_parent: bool = False,
        vfs: Vfs | None = None,
        meta: Meta | None = None,
        terms: Terms | None = None,
    ) -> None:
        """`path` is the name of the subtree. `node` decides which replica is asked first, `named` whose a call is.

        `vfs` are the node's virtual functions; None: those of this machine.
        `meta` is for pods with several networks; None: there is nothing but what the runtime says. `terms` says what is
        looked for on the network; None: nothing.
        """
        self.supervisor = Supervisor(path, system, intensity=Intensity(failures=10, seconds=10.0))
        self.controllers = Controllers(channels, clock=system.clock, node=node)
        self._system = system
        self._kernel = kernel
        self._journal = journal
        self._named = named
        self.recovered = anyio.Event()
        """Set when the journal has been read: calls can be served."""
        outbox = self.supervisor.add_actor(
            "outbox",
            lambda: OutboxActor(kernel=kernel, journal=journal, controllers=self.controllers),
            capacity=OutboxActor.capacity,
        )
        reporter = self.supervisor.add_actor(
            "reporter",
            lambda: ReporterActor(journal=journal, kernel=kernel, controllers=self.controllers),
            capacity=ReporterActor.capacity,
        )

        def departed(netns: str) -> None:
            with contextlib.suppress(ActorError):
                self.node.tell(Departed(netns))
                outbox.tell(NetnsGone(netns))

        departures = NetnsDepartures(kernel, departed)
        self.supervisor.add_service("departures", departures.run)
        self._pulse = Pulse(system.clock)
        self.supervisor.add_service("pulse", self._pulse.run)

        def connected() -> None:
            """Whoever waits for a controller need not wait any longer. While the agent stops nobody does."""
            with contextlib.suppress(ActorError):
                outbox.tell(Connected())
                reporter.tell(ControllerBack())

        self.controllers.on_connect(connected)
        functions = Supervisor(f"{path}/pfs", system)
        self.supervisor.add_supervisor(functions)
        pfs = PhysicalFunctions(functions, vfs=vfs or LinuxVfs(), kernel=kernel, journal=journal)
        sandboxes = Supervisor(f"{path}/sandboxes", system, intensity=Intensity(failures=50, seconds=10.0))
        self.supervisor.add_supervisor(sandboxes)
        parents = self.supervisor.add_actor(
            "parents",
            lambda: ParentActor(kernel=kernel, journal=journal, vlan_id_once=not vlan_id_per_parent),
            capacity=ParentActor.capacity,
        )
        self.node = self.supervisor.add_actor(
            "node",
            lambda: NodeActor(
                sandboxes=sandboxes,
                kernel=kernel,
                journal=journal,
                controllers=self.controllers,
                outbox=outbox,
                pfs=pfs,
                detection=Detection(terms or Terms(), kernel=kernel, controllers=self.controllers, clock=system.clock),
                parents=parents,
                meta=meta or Meta(delegates=ExecutedDelegates()),
                ready=self.recovered.set,
                cover=departures.cover,
            ),
            capacity=NodeActor.capacity,
        )

    def reside(self, settings: AgentSettings) -> Residence:
        """Have the shims and the original's plugins served at the socket that the settings name."""
        doors = Doors(
            invoke=self.invoke,
            renounce=self.renounce,
            journal=self._journal,
            kernel=self._kernel,
            controllers=self.controllers,
            clock=self._system.clock,
            health=self._system.health,
            switches=Switches(
                conflict_detection=settings.config.enable_ip_conflict_detection,
                gateway_detection=settings.config.enable_gateway_detection,
                release_conflicts=settings.enabled_release_conflict_ips,
            ),
        )
        residence = Residence(
            self._system,
            self.supervisor,
            recovered=self.recovered,
            invoke=self.invoke,
            contact=self.contact,
            connections=lambda: self.controllers.connections,
            doors=doors.routes(),
        )
        residence.serve(Path(settings.config.ipam_unix_socket_path))
        return residence

    async def contact(self, seconds: float) -> None:
        """Whether a controller would serve an ADD: returns, or raises `NotReady`."""
        try:
            answered = await self.controllers.ask(Inquire(), deadline=self._system.clock.now() + seconds)
        except TransportError as error:
            msg = "no controller answers"
            raise NotReady(msg, str(error)) from error
        if not isinstance(answered.response, Ready):
            msg = "the controller is not ready"
            raise NotReady(msg, str(answered.response))

    async def renounce(self, container_id: str, seen: str) -> None:
        """Somebody else, `seen`, uses an address of a container. Raises what `actors.node.sandbox.Renounce` does."""
        await self.node.ask(Disavow(container_id, seen), timeout=_CALL_SECONDS)

    async def invoke(self, invocation: Invocation) -> bytes:
        """One CNI call: the bytes for the plugin's stdout. Raises `CniError`.

        Its span begins where the shim was executed, and everything else of the call is below it.
        """
        clock = self._system.clock
        now_ns = int(clock.wall() * 1e9)
        start_ns = min(invocation.shim_start_ns or now_ns, now_ns)
        parent = traces.extract(invocation.traceparent) if invocation.traceparent else traces.ROOT
        code = 0
        with (
            self._pulse.counted(),
            traces.span(
                f"cni {invocation.verb}", parent=parent, start_time_ns=start_ns, attributes=_attributes(invocation)
            ),
        ):
            traces.record("shim exec", start_ns=start_ns, end_ns=now_ns)
            try:
                result = await self.node.ask(Invoke(self._named(invocation)), timeout=_CALL_SECONDS)
            except CniError as error:
                code = error.code
                raise
            except ActorError as error:
                code = 11
                msg = f"{invocation.verb}: the agent could not deal with it in time"
                raise TryAgainLater(msg, str(error)) from error
            finally:
                seconds = clock.wall() - start_ns / 1e9
                metrics.CNI_REQUESTS.labels(verb=invocation.verb, type=invocation.type, code=str(code)).inc()
                metrics.CNI_REQUEST_SECONDS.labels(verb=invocation.verb).observe(seconds)
                if invocation.verb is Verb.ADD:
                    metrics.IPAM_ALLOCATION_COUNTS.inc()
                    metrics.IPAM_ALLOCATION_DURATION.observe(seconds)
                    if code:
                        metrics.IPAM_ALLOCATION_FAILURE_COUNTS.inc()
        if result is None:
            return b""
        return encode_result(result.for_ipam() if invocation.role == "ipam" else result, invocation.version)


async def tune_node(config: ConfigFile) -> None:
    """Make the node fit for pods that are reached through it; what is refused is said, and pods go without."""
    if config.tune_sysctl_config:
        for problem in await anyio.to_thread.run_sync(sysctl.tune_node):
            _log.warning("tuneSysctlConfig: %s", problem)
    problem = await anyio.to_thread.run_sync(sysctl.open_to_programs)
    if problem:
        _log.info("other people's CNI plugins may fail for pods with IPv6: %s", problem)


def _attributes(invocation: Invocation) -> dict[str, str]:
    return {
        attributes.K8S_POD_NAME: invocation.args.name,
        attributes.K8S_NAMESPACE_NAME: invocation.args.namespace,
        attributes.K8S_POD_UID: invocation.args.uid,
        attributes.CONTAINER_ID: invocation.container_id,
        attributes.NETWORK_INTERFACE_NAME: invocation.ifname,
        attributes.CNI_TYPE: invocation.type,
    }


def main(argv: list[str] | None = None) -> int:
    """The program."""
    arguments = program.parse_arguments(NAME, "Gives pods of this node their interfaces and addresses.", argv)
    try:
        settings = load_agent(program.environment(), arguments.file_text, arguments.flags)
        store = _store(settings)
        as_controller = _as_controller(settings, store, arguments)
        if settings.config.agent.network_resource_plugin.enabled and store is None:
            _needs_store()
    except (SettingsError, CredentialsError) as error:
        program.refuse(NAME, error)
    if as_controller is not None:
        from actors.node import fallback  # noqa: PLC0415 - most of a controller, for nodes that want it
    if settings.config.agent.network_resource_plugin.enabled:
        from actors.devices import tree  # noqa: PLC0415 - gRPC, for nodes that want it

    async def build(system: System, root: Supervisor, stack: AsyncExitStack) -> None:
        await tune_node(settings.config)
        agent = Agent(
            system,
            path="agent",
            kernel=LinuxKernel(),
            journal=open_journal(Path(settings.state_dir)),
            channels=[],
            node=settings.node_name,
            vlan_id_per_parent=settings.vlan_id_per_parent,
            terms=terms_of(settings),
            meta=Meta(
                delegates=ExecutedDelegates(
                    settings.cni_bin_dir,
                    socket=settings.config.ipam_unix_socket_path,
                    mounts=Path(settings.node_mounts) if settings.node_mounts else None,
                ),
                conf_dir=Path(settings.cni_conf_dir) if settings.cni_conf_dir else None,
            ),
        )
        connections = Supervisor("agent/controllers", system)
        replicas = Replicas(
            settings,
            system,
            users=agent.controllers,
            supervisor=connections,
            on_connect=agent.controllers.connected,
        )
        if store is not None:
            stack.push_async_callback(store.aclose)
        if store is None or settings.controller_addresses:
            await replicas.set(named(settings.controller_addresses))
        else:
            root.add_service("replicas", lambda: replicas.follow(store))
        if as_controller is not None and store is not None:
            fallback.prepare(
                system, root, controllers=agent.controllers, store=store, agent=settings, controller=as_controller
            )
        gauge = metrics.RPC_CONNECTIONS.labels(side="client")
        stack.callback(metrics.on_scrape(lambda: gauge.set(agent.controllers.connections)))
        residence = agent.reside(settings)
        residence.install(settings, store)
        if settings.config.agent.network_resource_plugin.enabled and store is not None:
            tree.add(agent.supervisor, system, settings, store, residence)
        root.add_supervisor(connections)
        root.add_supervisor(agent.supervisor, shutdown=STOP_SECONDS)

    return program.run(
        NAME,
        build,
        log_level=settings.log_level,
        node=settings.node_name,
        health_port=settings.health_port,
        probe_socket=settings.probe_socket,
        metric_port=settings.metric_http_port if settings.enabled_metric else None,
        program=metrics.Program.AGENT,
        trace_buffer=settings.trace_buffer,
        notes=[note for note in settings.notes if as_controller is None or note in as_controller.notes],
    )


def _needs_store() -> NoReturn:
    msg = "agent.networkResourcePlugin.enabled: True: there are no credentials for the API server to read the Node with"
    raise SettingsError(msg)


def _as_controller(
    settings: AgentSettings, store: KubernetesStore | None, arguments: program.Arguments
) -> ControllerSettings | None:
    """How this node allocates while no controller answers; None where it is not to. Raises `SettingsError`."""
    if not settings.fallback_enabled:
        return None
    if store is None:
        msg = "SPIDERPOOL_AGENT_FALLBACK_ENABLED=true: there are no credentials for the API server"
        raise SettingsError(msg)
    return load_controller(program.environment(), arguments.file_text, arguments.flags)


def _store(settings: AgentSettings) -> KubernetesStore | None:
    """The API server: the EndpointSlices of the controller's Service, the agent's own pod, its events.

    None when none is found and the settings name the controllers. Raises `CredentialsError` and `SettingsError`.
    """
    if settings.kubeconfig:
        credentials = from_kubeconfig(settings.kubeconfig)
    else:
        try:
            credentials = in_cluster()
        except CredentialsError as error:
            if settings.controller_addresses:
                return None
            msg = f"no controller is known: SPIDERPOOL_CONTROLLER_ADDRESSES and KUBECONFIG are not set, and {error}"
            raise SettingsError(msg) from error
    # Every watch keeps one: the agent's own are few, those of a controller many.
    connections = 64 if settings.fallback_enabled else 5
    return KubernetesStore(credentials, connections=connections, agent=f"{NAME}/{program.VERSION}")
