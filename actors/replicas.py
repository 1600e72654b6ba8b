"""Which controller replicas an agent connects to: those that the controller's Service has ready now.

The addresses are those of the Service's EndpointSlices, one channel each; all show the certificate of the Service's DNS
name. A replica that is not ready any more loses its channel, and what was under way on it goes to another one. While no
slice can be read, what is known stays.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import anyio

from actors.controllers import Controllers
from api.core import SERVICE_LABEL, EndpointSlice
from api.kinds import ENDPOINTSLICE
from api.settings import Address, AgentSettings
from runtime.actor import System
from runtime.store.port import Store
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor
from runtime.transport.credentials import token_file
from runtime.transport.tls import TlsChannel

_log = logging.getLogger(__name__)

RPC_PORT = "rpc"
"""Name of the port in the controller's Service."""


class Replicas:
    """Keeps an agent's channels."""

    def __init__(
        self, settings: AgentSettings, system: System, *, controllers: Controllers, supervisor: Supervisor
    ) -> None:
        """The channels become children of `supervisor` and are put into `controllers`."""
        self._settings = settings
        self._system = system
        self._controllers = controllers
        self._supervisor = supervisor
        self._channels: dict[Address, TlsChannel] = {}

    def __repr__(self) -> str:
        return f"<Replicas {sorted(str(address) for address in self._channels)}>"

    async def follow(self, store: Store) -> None:
        """Keep to the Service's EndpointSlices until cancelled."""
        reflector: Reflector[EndpointSlice] = Reflector(
            store, ENDPOINTSLICE, random=self._system.random, namespace=self._settings.pod_namespace
        )
        async with anyio.create_task_group() as group:
            group.start_soon(reflector.run)
            cursor = 0
            while True:
                cursor = await reflector.snapshot.wait(cursor)
                slices = reflector.snapshot.values()
                await self.set(
                    address
                    for item in slices
                    if item.metadata.labels.get(SERVICE_LABEL) == self._settings.controller_name
                    for address in addresses_of(item)
                )

    async def set(self, addresses: Iterable[Address]) -> None:
        """Connect to exactly these."""
        wanted = set(addresses)
        for address in sorted(wanted - self._channels.keys(), key=str):
            _log.info("controller replica %s", address)
            channel = self._channels[address] = self._channel(address)
            self._supervisor.add_service(str(address), channel.run)
            self._controllers.add(channel)
        for address in sorted(self._channels.keys() - wanted, key=str):
            _log.info("controller replica %s is gone", address)
            self._controllers.discard(self._channels.pop(address))
            await self._supervisor.remove(str(address))

    def _channel(self, address: Address) -> TlsChannel:
        settings = self._settings
        return TlsChannel(
            address.host,
            address.port,
            server_name=f"{settings.controller_name}.{settings.pod_namespace}.svc",
            ca_file=Path(settings.controller_ca_file),
            token=token_file(Path(settings.controller_token_file)),
            random=self._system.random,
        )


def addresses_of(item: EndpointSlice) -> Iterable[Address]:
    """Where the ready endpoints of a slice take requests. An endpoint of unknown readiness is taken as ready."""
    ports = [port.port for port in item.ports or () if port.name == RPC_PORT and port.port]
    for endpoint in item.endpoints or ():
        if endpoint.conditions.ready is not False:
            yield from (Address(host, port) for host in endpoint.addresses for port in ports)
