"""What a controller replica sees of the cluster: one reflector per kind, and the allocator's view of their snapshots.

Snapshots lag. They choose candidates and save reads; nothing is refused or freed on their word alone.
"""

from msgspec import structs

from actors.allocation.callers import View
from actors.replica.coordinator import coordination, discovered, looked_up
from api.attachments import attachment_name, copied, provided_master
from api.coordinator import SpiderCoordinator
from api.core import Namespace, Node, Pod, ServiceCIDR, StatefulSet
from api.ippool import SpiderIPPool
from api.kinds import (
    COORDINATOR,
    IPPOOL,
    MULTUSCONFIG,
    NAMESPACE,
    NETWORKATTACHMENT,
    NODE,
    POD,
    RESERVEDIP,
    SERVICECIDR,
    SERVICECIDR_BEFORE,
    STATEFULSET,
    SUBNET,
    VIRTUALMACHINE,
)
from api.kubevirt import VirtualMachine
from api.meta import ObjectMeta
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from api.reservedip import SpiderReservedIP
from api.subnet import SpiderSubnet
from api.wire import Coordination, FoundCoordinator
from ipam.autopool import trimmed
from ipam.ranges import RangeError, Ranges, parse_ranges
from runtime.actor import System
from runtime.store.port import NotFound, Store
from runtime.store.reflector import Reflector
from runtime.supervision import Supervisor


class Cluster:
    """The reflectors of a replica. Add them to a supervisor with `supervise`, then wait for `synced`."""

    def __init__(
        self, store: Store, system: System, *, coordinator: str, service_cidr: tuple[str, ...], discovered: bool = False
    ) -> None:
        """Nothing is read before the supervisor runs. See `actors.replica.coordinator` for the names.

        `discovered`: an actor keeps the SpiderCoordinators' status, here or in another replica.
        """
        self._coordinator = coordinator
        self._discovered = discovered
        self._service_cidr = service_cidr
        self._worked_out: tuple[tuple[int, int], Coordination] | None = None
        self.pools: Reflector[SpiderIPPool] = Reflector(store, IPPOOL, random=system.random)
        self.pods: Reflector[Pod] = Reflector(store, POD, random=system.random)
        self.namespaces: Reflector[Namespace] = Reflector(store, NAMESPACE, random=system.random)
        self.nodes: Reflector[Node] = Reflector(store, NODE, random=system.random)
        self.reserved_ips: Reflector[SpiderReservedIP] = Reflector(store, RESERVEDIP, random=system.random)
        self.coordinators: Reflector[SpiderCoordinator] = Reflector(store, COORDINATOR, random=system.random)
        self.service_cidrs: Reflector[ServiceCIDR] = Reflector(
            store, SERVICECIDR, before=SERVICECIDR_BEFORE, random=system.random
        )
        self.statefulsets: Reflector[StatefulSet] = Reflector(
            store, STATEFULSET, random=system.random, transform=trimmed
        )
        self.machines: Reflector[VirtualMachine] = Reflector(
            store, VIRTUALMACHINE, random=system.random, transform=_bare_machine
        )
        """None where KubeVirt is not there, and where it is without fixed addresses it costs little."""
        self.attachments: Reflector[NetworkAttachmentDefinition] = Reflector(
            store, NETWORKATTACHMENT, random=system.random, transform=_bare_attachment
        )
        """None where nobody has installed the definition of that kind."""
        self.multusconfigs: Reflector[SpiderMultusConfig] = Reflector(store, MULTUSCONFIG, random=system.random)
        """Followed where definitions are made of them."""
        self.subnets: Reflector[SpiderSubnet] = Reflector(store, SUBNET, random=system.random)
        """Followed only where SpiderSubnets are switched on (`supervise_subnets`)."""
        self._follows_subnets = False

    def supervise(self, supervisor: Supervisor, *, multusconfigs: bool = False) -> None:
        """Make every reflector a child of `supervisor`, that of `multusconfigs` only where it is wanted."""
        if multusconfigs:
            supervisor.add_service("multusconfigs", self.multusconfigs.run)
        for name, reflector in (
            ("ippools", self.pools),
            ("pods", self.pods),
            ("namespaces", self.namespaces),
            ("nodes", self.nodes),
            ("reservedips", self.reserved_ips),
            ("coordinators", self.coordinators),
            ("servicecidrs", self.service_cidrs),
            ("statefulsets", self.statefulsets),
            ("virtualmachines", self.machines),
            ("networkattachments", self.attachments),
        ):
            supervisor.add_service(name, reflector.run)

    def supervise_subnets(self, supervisor: Supervisor) -> None:
        """Make their reflector a child of `supervisor`."""
        supervisor.add_service("subnets", self.subnets.run)
        self._follows_subnets = True

    async def synced(self) -> None:
        """Return when every kind has been listed once, or has been found to be missing where that may be."""
        for reflector in (self.pools, self.pods, self.namespaces, self.nodes, self.reserved_ips, self.coordinators):
            await reflector.synced()
        if self._follows_subnets:
            await self.subnets.synced()
        for answered in (self.service_cidrs, self.statefulsets, self.machines, self.attachments):
            await answered.answered()

    def may_have_machines(self) -> bool:
        """Whether there may be virtual machines: False only where the store has no such kind."""
        return not isinstance(self.machines.error, NotFound)

    def nodes_with(self, namespace: str, daemonset: str) -> frozenset[str]:
        """The nodes on which a DaemonSet has a pod."""
        found: set[str] = set()
        for pod in self.pods.snapshot.values():
            if pod.metadata.namespace == namespace and pod.spec.node_name:
                owner = pod.metadata.controller
                if owner is not None and owner.kind == "DaemonSet" and owner.name == daemonset:
                    found.add(pod.spec.node_name)
        return frozenset(found)

    def view(self) -> View:
        """The allocator's window on the snapshots."""
        return View(
            pools=lambda: self.pools.snapshot.objects,
            pod=lambda namespace, name: self.pods.snapshot.get(name, namespace=namespace),
            namespace=self.namespaces.snapshot.get,
            node=self.nodes.snapshot.get,
            coordination=self._coordination,
        )

    def provided_master(self, network: str) -> str:
        """The node's interface below the NICs of a network ``namespace/name`` whose VLAN id comes with their address.

        Empty for other networks. It is found by the name of its definition, whatever the object is called.
        """
        namespace, _, name = network.partition("/")
        for config in self.multusconfigs.snapshot.objects.values():
            if config.metadata.namespace == namespace and attachment_name(config) == name:
                return provided_master(config)
        return ""

    def reserved(self, version: int) -> Ranges:
        """The addresses of an IP version that SpiderReservedIPs take out of every pool.

        One that does not parse (it was there before any webhook) is left out rather than stopping every pool.
        """
        texts: list[str] = []
        for item in self.reserved_ips.snapshot.values():
            if item.metadata.deletion_timestamp is not None:
                continue
            try:
                parse_ranges(item.spec.ips, version)
            except RangeError:
                continue
            texts += item.spec.ips
        return parse_ranges(texts, version)

    def coordinator(self) -> FoundCoordinator:
        """The settings as a program gets them that asks an agent."""
        return looked_up(self._coordination())

    def _coordination(self) -> Coordination:
        """Worked out anew when the objects have changed: every answer to an agent has it."""
        revisions = self.coordinators.snapshot.revision, self.service_cidrs.snapshot.revision
        if self._worked_out is None or self._worked_out[0] != revisions:
            coordinators = self.coordinators.snapshot.values()
            if self._discovered:
                found = discovered(coordinators, name=self._coordinator)
            else:
                found = coordination(
                    coordinators,
                    self.service_cidrs.snapshot.values(),
                    name=self._coordinator,
                    configured=self._service_cidr,
                )
            self._worked_out = revisions, found
        return self._worked_out[1]


def _bare_machine(item: VirtualMachine) -> VirtualMachine:
    return VirtualMachine(metadata=_bare(item.metadata))


def _bare_attachment(item: NetworkAttachmentDefinition) -> NetworkAttachmentDefinition:
    """Without the copy of itself that kubectl leaves among the annotations."""
    owners = item.metadata.owner_references
    meta = structs.replace(_bare(item.metadata), annotations=copied(item.metadata.annotations), owner_references=owners)
    return NetworkAttachmentDefinition(metadata=meta, spec=item.spec)


def _bare(meta: ObjectMeta) -> ObjectMeta:
    """Who it is and whether it goes."""
    return ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        resource_version=meta.resource_version,
        deletion_timestamp=meta.deletion_timestamp,
    )
