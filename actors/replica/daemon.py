"""The program `spiderpool-controller`: one replica, connected to the API server, to agents and to other replicas."""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import msgspec

from actors import program
from actors.controller import NAME, Controller
from actors.provider import assembly as provider
from actors.replica.replicas import PeerReplicas, Replicas, named
from actors.replica.rpc import serve_agents
from actors.webhooks import server as webhooks
from actors.webhooks.assembly import certify
from actors.webhooks.bundle import BundleActor
from actors.webhooks.registration import pod_webhook, rules
from api.settings import ControllerSettings, SettingsError, load_controller
from runtime.actor import System
from runtime.store.cluster_credentials import credentials_of
from runtime.store.credentials import Credentials, CredentialsError
from runtime.store.discovery import ServerDiscovery
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import Store
from runtime.supervision import Supervisor
from runtime.transport.server import is_own_address
from telemetry import metrics
from telemetry.http import Post, Response, Route

COMMANDS = {"crds": "actors.errands.crds", "clean": "actors.errands.clean"}
"""Besides `daemon`: what the chart's hooks run."""


async def _follow_peers(
    system: System, controller: Controller, settings: ControllerSettings, store: Store, supervisor: Supervisor
) -> None:
    """Keep to the replicas that are ready, or to those that were named."""
    channels = Replicas(settings, system, users=controller.peers, supervisor=supervisor)
    peers = PeerReplicas(channels, controller.peers, port=settings.rpc_port, is_local=is_own_address)
    if settings.controller_addresses:
        await peers.set(named(settings.controller_addresses))
        await anyio.sleep_forever()
    await channels.follow(store, peers.set)


async def _credentials(kubeconfig: str) -> Credentials:
    try:
        return await credentials_of(kubeconfig)
    except CredentialsError as error:
        program.refuse(NAME, error)


def main(argv: list[str] | None = None) -> int:
    """The program."""
    code = program.dispatch(argv, COMMANDS)
    if code is not None:
        return code
    arguments = program.parse_arguments(
        NAME, "Allocates addresses for the agents of a cluster.", argv, tls=True, others=COMMANDS
    )
    try:
        settings = load_controller(program.environment(), arguments.file_text, arguments.flags)
        web = provider.web_of(settings.config.iaas_network_provider)
    except SettingsError as error:
        program.refuse(NAME, error)
    if not settings.tls_server_cert:
        program.refuse(NAME, SettingsError("--tls-server-cert is missing: agents connect over TLS"))

    routes: dict[str, Route] = {}
    farewell = program.Farewell(settings.shutdown_delay)

    async def build(system: System, root: Supervisor, stack: AsyncExitStack) -> None:
        store = KubernetesStore(await _credentials(settings.kubeconfig), agent=f"{NAME}/{program.VERSION}")
        stack.push_async_callback(store.aclose)
        if web is not None:
            stack.push_async_callback(web.aclose)
        controller = Controller(
            system, store, settings=settings, path="controller", discovery=ServerDiscovery(store.server), web=web
        )
        stack.callback(metrics.on_scrape(lambda: controller.measure(debug=settings.enabled_debug_metric)))
        routes["/debug/status"] = lambda _query: Response(
            msgspec.json.encode(controller.status()) + b"\n", content_type="application/json"
        )
        routes["/v1/ipam/gc_ips"] = Post(controller.collecting.scan)
        root.add_supervisor(controller.supervisor)
        connections = Supervisor("controller/peers", system)
        root.add_supervisor(connections)
        root.add_service("replicas", lambda: _follow_peers(system, controller, settings, store, connections))
        certified = certify(
            root, store, settings, mine=lambda: controller.peers.mine("webhooks"), say=controller.say_of_certificate
        )

        async def ready() -> None:
            await controller.cluster.synced()
            await certified.there()

        root.add_service(
            "rpc", lambda: serve_agents(system, controller, settings, store, ready=ready, look=certified.look)
        )
        root.add_actor(
            "bundle",
            lambda: BundleActor(
                store,
                name=settings.controller_name,
                authority=certified.authority,
                mine=lambda: controller.peers.mine("webhooks"),
            ),
            capacity=BundleActor.capacity,
        )
        book = rules(controller.cluster, controller.pools, settings)
        pods = pod_webhook(controller.cluster, store, settings, controller.isolation)
        root.add_service(
            "webhooks",
            lambda: webhooks.serve(
                book,
                ready=ready,
                port=settings.webhook_port,
                cert_file=Path(settings.tls_server_cert),
                key_file=Path(settings.tls_server_key),
                ca_file=Path(settings.controller_ca_file),
                name=f"{settings.controller_name}.{settings.pod_namespace}.svc",
                system=system,
                pods=pods,
                leaving=lambda: farewell.begun,
                look=certified.look,
                soon=certified.soon,
            ),
        )

    return program.run(
        NAME,
        build,
        log_level=settings.log_level,
        health_port=settings.health_port,
        metric_port=settings.metric_http_port if settings.enabled_metric else None,
        program=metrics.Program.CONTROLLER,
        trace_buffer=settings.trace_buffer,
        notes=settings.notes,
        routes=routes,
        farewell=farewell,
    )
