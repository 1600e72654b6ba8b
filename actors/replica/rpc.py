"""The port at which agents and other replicas come in: TLS, tokens, and what they ask passed on."""

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import anyio

from actors.collection.collecting import Collecting
from api.kinds import POD
from api.settings import ControllerSettings
from runtime.actor import System
from runtime.store.kubernetes import KubernetesStore
from runtime.store.port import NotFound, Store
from runtime.store.tokens import review_token
from runtime.transport.identity import TokenAuthenticator
from runtime.transport.port import Call
from runtime.transport.server import ServerTiming, TlsServer
from telemetry import metrics

_log = logging.getLogger(__name__)

_IN_FLIGHT = 16384
"""Requests that a replica has in hand. Most are the reports of nodes, held until there is something to ask."""

AUDIENCE = "spiderpool-controller"
"""Of the tokens that agents show."""


class Served(Protocol):
    """What of a controller is behind the port."""

    collecting: Collecting

    async def serve(self, call: Call) -> bytes:
        """One request."""
        ...


async def serve_agents(
    system: System,
    served: Served,
    settings: ControllerSettings,
    store: KubernetesStore,
    *,
    ready: Callable[[], Awaitable[None]],
    look: float,
) -> None:
    """Serve agents and other replicas from when `ready` returns; the certificate is looked at every `look` seconds."""
    await ready()
    authenticator = TokenAuthenticator(
        lambda token: review_token(store.server, token, audiences=(AUDIENCE,)),
        accounts={
            f"system:serviceaccount:{settings.pod_namespace}:{settings.agent_name}": "agent",
            f"system:serviceaccount:{settings.pod_namespace}:{settings.controller_name}": "controller",
        },
        clock=system.clock,
        node_of_pod=lambda namespace, name, uid: _node_of_pod(store, namespace, name, uid),
    )
    server = TlsServer(
        "",
        settings.rpc_port,
        cert_file=Path(settings.tls_server_cert),
        key_file=Path(settings.tls_server_key),
        authenticate=authenticator,
        handler=served.serve,
        name=settings.pod_name,
        max_in_flight=_IN_FLIGHT,
        timing=ServerTiming(certificate=look),
    )
    connections = metrics.RPC_CONNECTIONS.labels(side="server")
    with contextlib.ExitStack() as stack:
        stack.callback(metrics.on_scrape(lambda: connections.set(server.statistics().connections)))
        await _run(server, ended=served.collecting.reports.release)


async def _run(server: TlsServer, *, ended: Callable[[], None]) -> None:
    """Serve until cancelled; `ended` lets go of what is held, so that nothing is waited for in vain."""
    async with anyio.create_task_group() as group:
        group.start_soon(server.run)
        _log.info("serving agents on port %d", await server.listening())
        try:
            await anyio.sleep_forever()
        finally:
            ended()


async def _node_of_pod(store: Store, namespace: str, name: str, uid: str) -> str:
    """The node of a pod, for API servers before 1.30, whose tokens do not say it; empty when there is no such pod."""
    try:
        pod = await store.get(POD, name, namespace=namespace)
    except NotFound:
        return ""
    return pod.spec.node_name if pod.metadata.uid == uid else ""
