"""The owners of applications with what they need of a replica: watches, peers, the store."""

from collections.abc import Callable

from msgspec import Struct

from actors.applications.applications import Applications, PoolIndex
from actors.applications.lookup import Lookup
from actors.applications.settlement import SUBNET_SECONDS, Terms
from actors.pools.peers import Peers
from actors.replica.cluster import Cluster
from api.configfile import ConfigFile
from ipam.identity import Workload
from runtime.actor import System
from runtime.store.discovery import Discovery
from runtime.store.port import Store
from runtime.supervision import Supervisor


class Running(Struct, frozen=True):
    """Put together, not started."""

    applications: Applications
    cluster: Cluster
    peers: Peers

    def supervise(self, supervisor: Supervisor, reflectors: Supervisor) -> None:
        """Make it all children of these."""
        self.applications.supervise(reflectors)
        supervisor.add_supervisor(self.applications.supervisor)
        supervisor.add_service("application-changes", self._run)

    async def _run(self) -> None:
        """What is not seen yet is no reason to change anything."""
        await self.cluster.synced()
        await self.cluster.subnets.synced()
        await self.applications.run(self.peers.mine)


def assemble(
    path: str,
    system: System,
    store: Store,
    *,
    cluster: Cluster,
    peers: Peers,
    said: Callable[[Workload, str, str], None],
    config: ConfigFile,
    discovery: Discovery | None,
) -> Running:
    """Applications under a supervisor of the name `path`, known to `peers`. `said`: see `Terms`."""
    pools = cluster.pools.snapshot
    index = PoolIndex(pools)
    lookup = Lookup(store, discovery=discovery, pools=index.of)
    applications = Applications(
        path,
        system,
        store,
        terms=Terms(
            find=lookup.find,
            pools=index.of,
            named=pools.get,
            ask=lambda message: peers.subnet(message, timeout=SUBNET_SECONDS),
            reserved=cluster.reserved,
            said=said,
            redundant=config.redundant_ip_number,
            enable_ipv4=config.enable_ipv4,
            enable_ipv6=config.enable_ipv6,
        ),
        lookup=lookup,
        index=index,
        pools=pools,
        subnets=cluster.subnets.snapshot,
        statefulsets=cluster.statefulsets,
    )
    peers.applications = applications
    return Running(applications, cluster, peers)
