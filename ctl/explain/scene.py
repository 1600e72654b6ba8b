"""What an explanation looks at: read once, uncached, from whichever store; then nothing but the rules decide.

How the programs are set is read from the release's Deployment and ConfigMap. What cannot be read is taken at its
default, and a note says so.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from actors.allocation.workloads import Workloads
from api.annotations import AnnotationError
from api.configfile import ConfigFile, SettingsError, parse
from api.core import Namespace, Node, Pod, PodSpec
from api.ippool import AllocationRecord, SpiderIPPool
from api.kinds import IPPOOL, NAMESPACE, NETWORKATTACHMENT, NODE, POD, RESERVEDIP, Kind
from api.meta import ObjectMeta
from api.networks import FIRST_NIC, Network, cluster_network, default_network, networks
from api.reservedip import SpiderReservedIP
from api.wire import Fixed
from cni.config import IpamConfig
from ctl import addresses
from ctl.errors import Failure
from ipam.identity import Workload
from ipam.ledger import Ledger
from ipam.overlap import Atlas
from ipam.territory import PoolError
from runtime.store.port import Denied, NotFound, Store

_MAX_RECORDS = 5000


class Variable(Struct, frozen=True):
    """An environment variable of a container; one that is taken from elsewhere has no value here."""

    name: str
    value: str = ""


class Container(Struct, frozen=True):
    """What we read of a container."""

    env: list[Variable] = []


class ConfigMapVolume(Struct, frozen=True):
    """Which ConfigMap a volume shows."""

    name: str = ""


class Volume(Struct, frozen=True, rename="camel"):
    """What we read of a volume."""

    config_map: ConfigMapVolume | None = None


class Template(Struct, frozen=True):
    """What a Deployment's pods are made of."""

    containers: list[Container] = []
    volumes: list[Volume] = []


class PodTemplate(Struct, frozen=True):
    """The pods of a Deployment."""

    spec: Template = Template()


class DeploymentSpec(Struct, frozen=True):
    """What we read of a Deployment's specification."""

    template: PodTemplate = PodTemplate()


class Deployment(Struct, frozen=True):
    """The controller's."""

    metadata: ObjectMeta
    spec: DeploymentSpec = DeploymentSpec()


class ConfigMap(Struct, frozen=True):
    """Settings as files."""

    metadata: ObjectMeta
    data: dict[str, str] = {}


def _namespaced[T](cls: type[T], group: str, plural: str, kind: str) -> Kind[T]:
    return Kind(group=group, version="v1", plural=plural, kind=kind, namespaced=True, status=False, type=cls)


DEPLOYMENT = _namespaced(Deployment, "apps", "deployments", "Deployment")
CONFIGMAP = _namespaced(ConfigMap, "", "configmaps", "ConfigMap")


class Release(Struct, frozen=True):
    """Where the programs run."""

    namespace: str
    controller: str = "spiderpool-controller"
    """Its Deployment."""


class Installation(Struct, frozen=True):
    """How the programs are set."""

    config: ConfigFile = ConfigFile()
    namespace: str = ""
    cluster_network: str = ""
    max_records: int = _MAX_RECORDS
    notes: tuple[str, ...] = ()
    """What could not be read."""


class Scene(Struct, frozen=True):
    """The cluster, as it is now."""

    pools: Mapping[str, SpiderIPPool]
    reserved: Sequence[SpiderReservedIP]
    atlas: Atlas
    installation: Installation
    now: float
    """Unix seconds."""

    def book(self, name: str) -> Ledger:
        """A pool as its owner has it: what is reserved, or lies in another pool too, is not given.

        Raises `PoolError`: its object cannot be read.
        """
        pool = self.pools[name]
        reserved = addresses.ranges_of(self.reserved, addresses.version_of(pool))
        ledger = Ledger(pool, reserved, self.installation.max_records)
        ledger.reserve(reserved, self.atlas.overlap(name))
        return ledger


class Subject(Struct, frozen=True):
    """The pod and what is around it."""

    pod: Pod
    namespace: Namespace | None
    node: Node | None
    workload: Workload | None
    fixed: Fixed | None
    moving: bool
    records: Mapping[str, Sequence[tuple[str, AllocationRecord]]]
    """By pool: the addresses that records have for it, by its uid or, where they are fixed, its name."""
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Under which name records have it."""
        meta = self.pod.metadata
        return f"{meta.namespace}/{meta.name if self.fixed is None else self.fixed.holder}"


class Plugin(Struct, frozen=True):
    """What is known of the plugin that makes a NIC."""

    nic: str
    network: str = ""
    """``namespace/name`` of its attachment; empty where none is known."""
    default_ipv4: tuple[str, ...] = ()
    default_ipv6: tuple[str, ...] = ()
    clean_gateway: bool = False
    ips: tuple[str, ...] = ()
    """Addresses that the pod asks for."""
    notes: tuple[str, ...] = ()


async def read(store: Store, release: Release | None, *, now: float) -> Scene:
    """Pools, reserved addresses and settings; a state folder has no release. Raises `StoreError`."""
    pools = {pool.metadata.name: pool for pool in (await store.list(IPPOOL)).items}
    atlas = Atlas()
    atlas.replace(pools.values())
    return Scene(
        pools=pools,
        reserved=(await store.list(RESERVEDIP)).items,
        atlas=atlas,
        installation=Installation() if release is None else await _installation(store, release),
        now=now,
    )


async def _installation(store: Store, release: Release) -> Installation:
    namespace, controller = release.namespace, release.controller
    deployment = await _found(store, DEPLOYMENT, controller, namespace)
    if deployment is None:
        note = (
            f"Deployment {namespace}/{controller} cannot be read: settings are taken at their defaults "
            "(see -n and --controller)"
        )
        return Installation(namespace=namespace, notes=(note,))
    template = deployment.spec.template.spec
    environ = {each.name: each.value for container in template.containers for each in container.env}
    notes: list[str] = []
    config = ConfigFile()
    for name in (volume.config_map.name for volume in template.volumes if volume.config_map is not None):
        held = await _found(store, CONFIGMAP, name, namespace)
        try:
            config = parse(None if held is None else held.data.get("conf.yml"))
        except SettingsError as error:
            notes.append(f"ConfigMap {namespace}/{name}: {error}: its settings are taken at their defaults")
        if held is None:
            notes.append(f"ConfigMap {namespace}/{name} cannot be read: its settings are taken at their defaults")
    records = environ.get("SPIDERPOOL_IPPOOL_MAX_ALLOCATED_IPS", "")
    return Installation(
        config=config,
        namespace=namespace,
        cluster_network=environ.get("MULTUS_CLUSTER_NETWORK", ""),
        max_records=int(records) if records.isascii() and records.isdigit() else _MAX_RECORDS,
        notes=tuple(notes),
    )


async def pod(store: Store, scene: Scene, namespace: str, name: str, *, cluster: bool) -> Subject:
    """A pod. Without Kubernetes nobody makes Pod objects: then it is what its records say. Raises `Failure`."""
    found = await _found(store, POD, name, namespace)
    config = scene.installation.config
    workloads = Workloads(store, statefulset=config.enable_stateful_set, kubevirt=config.enable_kubevirt_static_ip)
    fixed = None if found is None else workloads.fixed(found)
    holder = f"{namespace}/{name if fixed is None else fixed.holder}"
    uid = "" if found is None else found.metadata.uid
    records = {
        pool: mine
        for pool, item in scene.pools.items()
        if (mine := _records(item, holder, uid, fixed=fixed is not None))
    }
    notes: list[str] = []
    if found is None:
        if cluster and not records:
            msg = f"no pod {namespace}/{name}, and no pool has a record of one"
            raise Failure(msg)
        found, note = _remembered(namespace, name, [record for mine in records.values() for _, record in mine])
        notes.append(note)
    of_namespace = await _found(store, NAMESPACE, namespace)
    node = await _found(store, NODE, found.spec.node_name) if found.spec.node_name else None
    if cluster:
        unread = [f"namespace {namespace}"] if of_namespace is None else []
        unread += [f"node {found.spec.node_name}"] if node is None and found.spec.node_name else []
        notes += [f"{what} cannot be read: nothing is known of its labels and annotations" for what in unread]
    return Subject(
        pod=found,
        namespace=of_namespace,
        node=node,
        workload=await workloads.top(found),
        fixed=fixed,
        moving=fixed is not None and await workloads.moving(found),
        records=records,
        notes=tuple(notes),
    )


def _records(pool: SpiderIPPool, holder: str, uid: str, *, fixed: bool) -> list[tuple[str, AllocationRecord]]:
    """Those of a uid; or of a name, where that is all that is known or what the addresses belong to."""
    text = pool.status.allocated_ips
    if not text or (holder not in text and (not uid or uid not in text)):
        return []
    try:
        ledger = addresses.book(pool)
    except PoolError:
        return []
    held = addresses.held(ledger)
    return [
        (each.address, record)
        for each, (_, record) in zip(held, sorted(ledger.records.items()), strict=True)
        if record.pod_uid == uid or (record.pod == holder and (fixed or not uid))
    ]


def _remembered(namespace: str, name: str, records: Sequence[AllocationRecord]) -> tuple[Pod, str]:
    last = records[-1] if records else None
    meta = ObjectMeta(name=name, namespace=namespace, uid=last.pod_uid if last is not None else f"{namespace}/{name}")
    made = Pod(metadata=meta, spec=PodSpec(node_name=last.node if last is not None else ""))
    return made, "there is no such Pod object: it is taken for one without labels, annotations and owner"


async def plugins(
    store: Store, scene: Scene, subject: Subject, *, nic: str, ipv4: Sequence[str], ipv6: Sequence[str]
) -> list[Plugin]:
    """The NICs to explain, `nic` or all that annotations and records know, each with its plugin's configuration.

    `ipv4` and `ipv6`, where given, stand for what the configurations say. Raises `StoreError`.
    """
    made, problem = _networks(scene, subject)
    recorded = sorted({record.nic for mine in subject.records.values() for _, record in mine if record.nic})
    nics = [nic] if nic else list(dict.fromkeys((FIRST_NIC, *made, *recorded)))
    found: list[Plugin] = []
    for name in nics:
        plugin = await _plugin(store, name, made.get(name))
        if problem and name != FIRST_NIC:
            plugin = msgspec.structs.replace(plugin, notes=(*plugin.notes, problem))
        if ipv4 or ipv6:
            plugin = msgspec.structs.replace(plugin, default_ipv4=tuple(ipv4), default_ipv6=tuple(ipv6))
        found.append(plugin)
    return found


def _networks(scene: Scene, subject: Subject) -> tuple[dict[str, Network], str]:
    """The pod's attachments by NIC, and what is wrong with the annotation of those behind the first."""
    of_pod, agents = subject.pod.metadata.annotations, scene.installation.namespace
    made: dict[str, Network] = {}
    try:
        first = default_network(of_pod, namespace=agents)
        first = first or cluster_network(scene.installation.cluster_network, namespace=agents)
        made |= {FIRST_NIC: first} if first is not None else {}
    except AnnotationError:
        pass  # what depends on it says so itself
    try:
        made |= {each.interface: each for each in networks(of_pod, namespace=subject.pod.metadata.namespace)}
    except AnnotationError as error:
        return made, str(error)
    return made, ""


async def _plugin(store: Store, nic: str, network: Network | None) -> Plugin:
    if network is None:
        return Plugin(nic=nic)
    plugin = Plugin(nic=nic, network=str(network), ips=network.ips)
    found = await _found(store, NETWORKATTACHMENT, network.name, network.namespace)
    if found is None:
        return msgspec.structs.replace(plugin, notes=(f"network attachment {network} cannot be read",))
    try:
        ipam = ipam_of(found.spec.config)
    except ValueError as error:
        return msgspec.structs.replace(plugin, notes=(f"network attachment {network}: {error}",))
    notes = (
        ("match_master_subnet is on: the node knows the physical NIC's networks",) if ipam.match_master_subnet else ()
    )
    return msgspec.structs.replace(
        plugin,
        default_ipv4=ipam.default_ipv4_ippool,
        default_ipv6=ipam.default_ipv6_ippool,
        clean_gateway=ipam.clean_gateway,
        notes=notes,
    )


def ipam_of(config: str) -> IpamConfig:
    """The `ipam` block of ours in a network configuration, of one plugin or a list; an empty one if there is none.

    Raises `ValueError`: not JSON, or of another shape.
    """
    if not config.strip():
        return IpamConfig()
    data = msgspec.json.decode(config, type=dict[str, object])
    plugins = data.get("plugins", [data])
    for plugin in plugins if isinstance(plugins, list) else []:
        ipam = plugin.get("ipam") if isinstance(plugin, dict) else None
        if isinstance(ipam, dict) and ipam.get("type") == "spiderpool":
            return msgspec.convert(ipam, IpamConfig)
    return IpamConfig()


async def _found[T](store: Store, kind: Kind[T], name: str, namespace: str = "") -> T | None:
    """An object; None where there is none or it may not be read."""
    try:
        return await store.get(kind, name, namespace=namespace)
    except (NotFound, Denied):
        return None
