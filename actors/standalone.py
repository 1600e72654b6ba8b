"""The program `spiderpool-standalone`: both supervision trees in one process, on the embedded store.

For a laptop, a CI job or a host without Kubernetes: the pools are objects in one SQLite file under the state folder,
and the CNI socket works as on a node. Nobody creates Pod objects there, so the runtime's word on a pod is taken; where
it names none, as nerdctl and cnitool do, the container's id is the pod's name. What there is besides the halves of a
cluster:

    standalone
      poolfiles    pools from a folder of YAML files, if one is named
      collector    gives up records that neither the journal nor the kernel knows
      http.sock    in the state folder: what the health port answers, for `spiderpoolctl --state-dir`
"""

import os
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from pathlib import Path

import msgspec
from msgspec import structs

from actors import program
from actors.agent import Agent, tune_node
from actors.collection.hostcollector import HostCollectorActor, Scan
from actors.collection.hostcollector import Message as CollectorMessage
from actors.controller import Controller
from actors.node.detection import terms_of
from actors.node.disk import open_journal
from actors.node.node import Audit
from actors.node.residence import STOP_SECONDS
from actors.poolfiles import DiskFolder, PoolFiles, PoolFilesActor
from api.settings import SettingsError, StandaloneSettings, load_standalone
from api.status import SOCKET_NAME, NodeActivity, ReplicaStatus
from cni.kernel import LinuxKernel
from cni.pods import named_somehow
from runtime.actor import Ref, System
from runtime.errors import ActorError
from runtime.store.sqlite import FILE_NAME, SQLiteStore
from runtime.supervision import Supervisor
from runtime.transport.local import LocalChannel
from runtime.transport.port import Call, Peer
from telemetry import metrics
from telemetry.http import Post, Response, Route

NAME = "spiderpool-standalone"
_SOCKET_PATH_LIMIT = 107
"""Bytes; the kernel's limit is 108 with the final zero."""


def main(argv: list[str] | None = None) -> int:
    """The program."""
    arguments = program.parse_arguments(NAME, "Agent and controller in one process, on an embedded store.", argv)
    try:
        settings = load_standalone(program.environment(), arguments.file_text, arguments.flags)
        socket = _prepare(settings)
    except SettingsError as error:
        program.refuse(NAME, error)

    routes: dict[str, Route] = {}

    async def build(system: System, root: Supervisor, stack: AsyncExitStack) -> None:
        await tune_node(settings.agent.config)
        state = Path(settings.agent.state_dir)
        store = SQLiteStore(state / FILE_NAME, wall=system.clock.wall)
        stack.push_async_callback(store.aclose)
        controller = Controller(
            system, store, settings=settings.controller, pods_exist=False, path="standalone/controller"
        )
        root.add_supervisor(controller.supervisor)
        routes["/debug/status"] = lambda _query: Response(
            msgspec.json.encode(_status(controller, settings)) + b"\n", content_type="application/json"
        )
        if settings.pool_dir:
            files = PoolFiles(DiskFolder(Path(settings.pool_dir)), store)
            await files.round()  # whoever is served finds the pools
            root.add_actor("poolfiles", lambda: PoolFilesActor(files), capacity=PoolFilesActor.capacity)
        peer = Peer(account=NAME, node=settings.agent.node_name, role="agent")

        async def serve(call: Call) -> bytes:
            await controller.cluster.synced()
            return await controller.serve(call)

        kernel, journal = LinuxKernel(), open_journal(state)
        agent = Agent(
            system,
            path="standalone/agent",
            kernel=kernel,
            journal=journal,
            channels=[LocalChannel(serve, peer)],
            node=settings.agent.node_name,
            named=named_somehow,
            terms=terms_of(settings.agent),
            vlan_id_per_parent=settings.agent.vlan_id_per_parent,
        )
        residence = agent.reside(settings.agent)
        residence.install(settings.agent, None)
        routes["/v1/ipam/gc_ips"] = Post(
            lambda _query: Response(b"nothing is collected: SPIDERPOOL_GC_IP_ENABLED is false\n", HTTPStatus.CONFLICT)
        )
        if settings.controller.gc_ip_enabled:
            collector = root.add_actor(
                "collector",
                lambda: HostCollectorActor(
                    store,
                    pools=controller.peers,
                    journal=journal,
                    kernel=kernel,
                    node=settings.agent.node_name,
                    interval=settings.controller.gc_interval,
                    besides=lambda: _audit(agent),
                ),
                capacity=HostCollectorActor.capacity,
            )
            routes["/v1/ipam/gc_ips"] = Post(lambda _query: _collect(collector))
        root.add_supervisor(agent.supervisor, shutdown=STOP_SECONDS)

    return program.run(
        NAME,
        build,
        log_level=settings.agent.log_level,
        node=settings.agent.node_name,
        health_port=settings.agent.health_port,
        probe_socket=socket,
        metric_port=settings.agent.metric_http_port if settings.agent.enabled_metric else None,
        program=metrics.Program.BOTH,
        trace_buffer=settings.agent.trace_buffer,
        notes=settings.notes,
        routes=routes,
    )


def _status(controller: Controller, settings: StandaloneSettings) -> ReplicaStatus:
    """As a controller's replica; the node is named before its first ADD too."""
    status = controller.status()
    return structs.replace(status, nodes=status.nodes or (NodeActivity(node=settings.agent.node_name),))


def _audit(agent: Agent) -> None:
    """Have the node actor look for containers that are gone."""
    with suppress(ActorError):  # it is stopping
        agent.node.tell(Audit())


def _collect(collector: Ref[CollectorMessage]) -> Response:
    """Look now for what nobody needs any more."""
    try:
        collector.tell(Scan())
    except ActorError as error:
        return Response(f"{error}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    return Response()


def _prepare(settings: StandaloneSettings) -> str:
    """Make the state folder; returns the path of the unix socket where HTTP is served besides the port.

    It is found in the state folder, wherever it was told to be; empty where the kernel takes no path that long. Raises
    `SettingsError`.
    """
    state = Path(settings.agent.state_dir)
    usual, told = state / SOCKET_NAME, settings.agent.probe_socket
    try:
        state.mkdir(parents=True, exist_ok=True)
        if told and Path(told) != usual:
            usual.unlink(missing_ok=True)
            usual.symlink_to(told)
    except OSError as error:
        msg = f"SPIDERPOOL_STATE_DIR={state}: {error.strerror}"
        raise SettingsError(msg) from error
    return told or (str(usual) if len(os.fsencode(usual)) <= _SOCKET_PATH_LIMIT else "")
