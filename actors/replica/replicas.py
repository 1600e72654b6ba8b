"""Which controller replicas there are, and a channel to each: those that the controller's Service has ready now.

For agents, and for replicas among themselves. The addresses are those of the Service's EndpointSlices, one channel to
each replica; all show the certificate of the Service's DNS name. A replica that is not ready any more loses its
channel, and what was under way on it goes to another one. While no slice can be read, what is known stays.

A replica's name is what everybody calls it: its pod's, as the slice says it, or its address where that is all there is.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio
from msgspec import Struct

from api.core import SERVICE_LABEL, EndpointSlice
from api.kinds import ENDPOINTSLICE
from api.settings import Address, AgentSettings, ControllerSettings
from runtime.actor import System
from runtime.store.port import Store
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor
from runtime.transport.credentials import token_file
from runtime.transport.port import Channel
from runtime.transport.tls import TlsChannel

if TYPE_CHECKING:
    from actors.pools.peers import Peers

_log = logging.getLogger(__name__)

RPC_PORT = "rpc"
"""Name of the port in the controller's Service."""


class Replica(Struct, frozen=True):
    """One way to one replica."""

    name: str
    address: Address


class Users(Protocol):
    """Who uses the channels: `Controllers` of an agent, `Peers` of a replica."""

    def add(self, channel: Channel, *, name: str) -> None:
        """Another replica."""
        ...

    def discard(self, channel: Channel) -> None:
        """A replica that is gone."""
        ...


class Replicas:
    """Keeps the channels of an agent, or of a replica to its peers."""

    def __init__(
        self,
        settings: AgentSettings | ControllerSettings,
        system: System,
        *,
        users: Users,
        supervisor: Supervisor,
        on_connect: Callable[[], None] | None = None,
    ) -> None:
        """The channels become children of `supervisor` and are given to `users`; `on_connect` hears of each one up."""
        self._settings = settings
        self._system = system
        self._users = users
        self._supervisor = supervisor
        self._on_connect = on_connect
        self._channels: dict[Replica, TlsChannel] = {}

    def __repr__(self) -> str:
        return f"<Replicas {sorted(str(replica.address) for replica in self._channels)}>"

    async def follow(self, store: Store, then: Callable[[list[Replica]], Awaitable[None]] | None = None) -> None:
        """Keep to the Service's EndpointSlices until cancelled. `then` takes what they say, by default `set`."""
        reflector: Reflector[EndpointSlice] = Reflector(
            store, ENDPOINTSLICE, random=self._system.random, namespace=self._settings.pod_namespace
        )
        async with anyio.create_task_group() as group:
            group.start_soon(reflector.run)
            cursor = 0
            while True:
                cursor = await reflector.snapshot.wait(cursor)
                slices = reflector.snapshot.values()
                found = [
                    replica
                    for item in slices
                    if item.metadata.labels.get(SERVICE_LABEL) == self._settings.controller_name
                    for replica in replicas_of(item)
                ]
                await (then or self.set)(one_way_each(found))

    async def set(self, replicas: Iterable[Replica]) -> None:
        """Connect to exactly these."""
        wanted = set(replicas)
        for replica in sorted(wanted - self._channels.keys(), key=str):
            _log.info("controller replica %s at %s", replica.name, replica.address)
            channel = self._channels[replica] = self._channel(replica.address)
            self._supervisor.add_service(_child(replica), channel.run)
            self._users.add(channel, name=replica.name)
        for replica in sorted(self._channels.keys() - wanted, key=str):
            _log.info("controller replica %s at %s is gone", replica.name, replica.address)
            self._users.discard(self._channels.pop(replica))
            await self._supervisor.remove(_child(replica))

    def _channel(self, address: Address) -> TlsChannel:
        settings = self._settings
        return TlsChannel(
            address.host,
            address.port,
            server_name=f"{settings.controller_name}.{settings.pod_namespace}.svc",
            ca_file=Path(settings.controller_ca_file),
            token=token_file(Path(settings.controller_token_file)),
            random=self._system.random,
            on_connect=self._on_connect,
        )


def one_way_each(found: Iterable[Replica]) -> list[Replica]:
    """One address of every replica, IPv4 where there is one: a Service of two families lists a replica twice."""
    ways: dict[str, Replica] = {}
    for replica in sorted(found, key=lambda r: (":" in r.address.host, str(r.address))):
        ways.setdefault(replica.name, replica)
    return list(ways.values())


def named(addresses: Iterable[Address]) -> list[Replica]:
    """Replicas that are known by their addresses alone: everybody must write those alike."""
    return [Replica(str(address), address) for address in addresses]


def replicas_of(item: EndpointSlice) -> Iterable[Replica]:
    """The ready endpoints of a slice. An endpoint of unknown readiness is taken as ready."""
    ports = [port.port for port in item.ports or () if port.name == RPC_PORT and port.port]
    for endpoint in item.endpoints or ():
        if endpoint.conditions.ready is not False:
            pod = endpoint.target_ref.name if endpoint.target_ref is not None else ""
            for address in (Address(host, port) for host in endpoint.addresses for port in ports):
                yield Replica(pod or str(address), address)


class PeerReplicas:
    """Tells a replica who its peers are, and keeps a channel to each."""

    def __init__(
        self, replicas: Replicas, peers: "Peers", *, port: int, is_local: Callable[[str], Awaitable[bool]]
    ) -> None:
        """`port` is where this replica serves and `is_local` says whether a host is this one."""
        self._replicas = replicas
        self._peers = peers
        self._port = port
        self._is_local = is_local

    async def set(self, found: Iterable[Replica]) -> None:
        """These are ready, perhaps with ourselves among them."""
        others: list[Replica] = []
        names: set[str] = set()
        for replica in found:
            names.add(replica.name)
            if replica.name != self._peers.me and await self._is_me(replica):
                # Known by our address alone: everybody calls us by that.
                self._peers.me = replica.name
            if replica.name != self._peers.me:
                others.append(replica)
        self._peers.members(names)
        await self._replicas.set(others)

    async def _is_me(self, replica: Replica) -> bool:
        named_by_address = replica.name == str(replica.address)
        return named_by_address and replica.address.port == self._port and await self._is_local(replica.address.host)


def _child(replica: Replica) -> str:
    return f"{replica.name} {replica.address}" if replica.name != str(replica.address) else replica.name
