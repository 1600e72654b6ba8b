"""The program `spiderpool-standalone`: both supervision trees in one process, on the embedded store.

For a laptop, a CI job or a host without Kubernetes: the pools are objects in one SQLite file under the state folder,
and the CNI socket works as on a node. Nobody creates Pod objects there, so the runtime's word on a pod is taken.
"""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from actors import program
from actors.agent import Agent, tune_node
from actors.controller import Controller
from actors.disk import open_journal
from actors.residence import STOP_SECONDS
from api.settings import SettingsError, load_standalone
from cni.kernel import LinuxKernel
from runtime.actor import System
from runtime.store.sqlite import FILE_NAME, SQLiteStore
from runtime.supervision import Supervisor
from runtime.transport.local import LocalChannel
from runtime.transport.port import Peer
from telemetry import metrics

NAME = "spiderpool-standalone"


def main(argv: list[str] | None = None) -> int:
    """The program."""
    arguments = program.parse_arguments(NAME, "Agent and controller in one process, on an embedded store.", argv)
    try:
        settings = load_standalone(program.environment(), arguments.file_text, arguments.flags)
    except SettingsError as error:
        program.refuse(NAME, error)

    async def build(system: System, root: Supervisor, stack: AsyncExitStack) -> None:
        await tune_node(settings.agent.config)
        state = Path(settings.agent.state_dir)
        await anyio.Path(state).mkdir(parents=True, exist_ok=True)
        store = SQLiteStore(state / FILE_NAME, wall=system.clock.wall)
        stack.push_async_callback(store.aclose)
        controller = Controller(
            system, store, settings=settings.controller, pods_exist=False, path="standalone/controller"
        )
        root.add_supervisor(controller.supervisor)
        peer = Peer(account=NAME, node=settings.agent.node_name, role="agent")
        agent = Agent(
            system,
            path="standalone/agent",
            kernel=LinuxKernel(),
            journal=open_journal(state),
            channels=[LocalChannel(controller.serve, peer)],
            node=settings.agent.node_name,
        )
        agent.reside(Path(settings.agent.config.ipam_unix_socket_path))
        root.add_supervisor(agent.supervisor, shutdown=STOP_SECONDS)

    return program.run(
        NAME,
        build,
        log_level=settings.agent.log_level,
        node=settings.agent.node_name,
        health_port=settings.agent.health_port,
        probe_socket=settings.agent.probe_socket,
        metric_port=settings.agent.metric_http_port if settings.agent.enabled_metric else None,
        program=metrics.Program.BOTH,
        trace_buffer=settings.agent.trace_buffer,
        notes=settings.notes,
    )
