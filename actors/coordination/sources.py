"""What the coordinator's owner looks at: reflectors of the objects that say which addresses are the cluster's own.

Calico's and Cilium's kinds need not be there. While one is not, its reflector asks seldom; that its definition comes or
goes is told by a watch on that one definition, so nobody waits for the next time.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import anyio

from actors.coordination.configurations import Folder
from actors.coordination.discovery import COMPONENT, CONTROL_PLANE_NAMESPACE, CONTROLLER_MANAGER, KUBEADM, Flags, Seen
from actors.coordination.folder import Configurations
from api.coordinator import SpiderCoordinator
from api.core import ConfigMap, Pod, ServiceCIDR
from api.extensions import CustomResourceDefinition
from api.kinds import CALICO_IPPOOL, CILIUM_PODIPPOOL, CONFIGMAP, CUSTOMRESOURCEDEFINITION, Kind
from api.meta import ObjectMeta
from api.overlays import CalicoIPPool, CiliumPodIPPool
from runtime.store.port import Denied, Expired, NotFound, Store
from runtime.store.reflector import Reflector
from runtime.store.snapshot import Snapshot
from runtime.supervision import Supervisor


class Optional[T]:
    """A kind that need not be there, and its definition."""

    def __init__(self, store: Store, kind: Kind[T], *, random: Random, transform: Callable[[T], T]) -> None:
        """Nothing is asked before `supervise`."""
        self.name = f"{kind.plural}.{kind.group}"
        self.items = Reflector(store, kind, random=random, transform=transform, topic=self.name)
        self.definition: Reflector[CustomResourceDefinition] = Reflector(
            store,
            CUSTOMRESOURCEDEFINITION,
            random=random,
            fields={"metadata.name": self.name},
            transform=_bare_definition,
            topic=f"definition of {self.name}",
        )

    def __repr__(self) -> str:
        return f"<Optional {self.name}: {self.items!r}>"

    def supervise(self, supervisor: Supervisor) -> None:
        """Add what follows both."""
        supervisor.add_service(self.name, self.items.run)
        supervisor.add_service(f"definition of {self.name}", self.definition.run)
        supervisor.add_service(f"coming of {self.name}", self._follow)

    async def answered(self) -> None:
        """Return when it is known, or known not to be there."""
        await self.definition.answered()
        await self.items.answered()

    @property
    def settled(self) -> bool:
        """False while the kind is there and its objects are not known yet."""
        return self.items.is_synced or self.items.error is not None

    def values(self) -> tuple[T, ...] | None:
        """The objects; None where there is no such kind, or we may not read it."""
        gone = self.definition.is_synced and not len(self.definition.snapshot)
        if gone or not self.items.is_synced or isinstance(self.items.error, NotFound | Denied):
            return None
        return tuple(self.items.snapshot.values())

    async def _follow(self) -> None:
        revision = 0
        while True:
            revision = await self.definition.snapshot.wait(revision)
            self.items.hurry()


class Sources:
    """All of them, for one replica."""

    def __init__(
        self,
        store: Store,
        *,
        random: Random,
        coordinators: Snapshot[SpiderCoordinator],
        pods: Snapshot[Pod],
        service_cidrs: Snapshot[ServiceCIDR],
        configurations: Configurations,
        cilium: str,
        configured: tuple[str, ...],
    ) -> None:
        """Nothing is read before `supervise`.

        Args:
            store: where the objects are.
            random: spreads the pauses of reflectors.
            coordinators: for which addresses are looked for.
            pods: of the whole cluster.
            service_cidrs: of the whole cluster.
            configurations: of the node that this replica runs on.
            cilium: ``namespace/name`` of Cilium's ConfigMap.
            configured: CIDRs of Services where there are no objects for them.
        """
        self.coordinators = coordinators
        self._pods = pods
        self._service_cidrs = service_cidrs
        self._configurations = configurations
        self._configured = configured
        self._cilium_name = cilium
        namespace, _, name = cilium.partition("/")
        self._kubeadm = _config_map(store, CONTROL_PLANE_NAMESPACE, KUBEADM, random)
        self._cilium = _config_map(store, namespace, name, random)
        self._calico: Optional[CalicoIPPool] = Optional(store, CALICO_IPPOOL, random=random, transform=_bare_calico)
        self._cilium_pools: Optional[CiliumPodIPPool] = Optional(
            store, CILIUM_PODIPPOOL, random=random, transform=_bare_cilium
        )
        self._folder: Folder | None = None
        self._looked = anyio.Event()
        self._managers: dict[str, Pod] = {}
        self._revision = 0
        """Of the pods, up to which they are known."""

    def __repr__(self) -> str:
        return f"<Sources {self._kubeadm!r}, {self._cilium!r}, {self._calico!r}, {self._cilium_pools!r}>"

    def supervise(self, supervisor: Supervisor) -> None:
        """Make all that reads a child of `supervisor`."""
        supervisor.add_service("kubeadm-config", self._kubeadm.run)
        supervisor.add_service("cilium-config", self._cilium.run)
        self._calico.supervise(supervisor)
        self._cilium_pools.supervise(supervisor)

    async def answered(self) -> None:
        """Return when all have been read once, or are known not to be there."""
        for one in (self._kubeadm, self._cilium, self._calico, self._cilium_pools):
            await one.answered()
        await self._looked.wait()

    @property
    def settled(self) -> bool:
        """False while something is there and not known yet."""
        return self._calico.settled and self._cilium_pools.settled

    def managers(self) -> dict[str, str]:
        """The pods of kube-controller-managers by ``namespace/name``, in that order, with the uid of each."""
        self._learn_pods()
        alive = {key: pod for key, pod in self._managers.items() if pod.metadata.deletion_timestamp is None}
        return {key: alive[key].metadata.uid for key in sorted(alive)}

    def seen(self, flags: Flags | None) -> Seen:
        """What there is, as far as it is known now; the flags of a kube-controller-manager are the asker's."""
        unreadable = {
            name: f"it may not be read: {error}"
            for name, error in (
                ("kubeadm", self._kubeadm.error),
                ("cilium", self._cilium.error),
                (self._calico.name, self._calico.items.error),
                (self._cilium_pools.name, self._cilium_pools.items.error),
            )
            if isinstance(error, Denied)
        }
        return Seen(
            folder=self._folder or Folder("", error="it has not been read yet"),
            kubeadm=next(iter(self._kubeadm.snapshot.values()), None),
            flags=flags,
            service_cidrs=tuple(self._service_cidrs.values()),
            configured=self._configured,
            calico=self._calico.values(),
            cilium=next(iter(self._cilium.snapshot.values()), None),
            cilium_name=self._cilium_name,
            cilium_pools=self._cilium_pools.values(),
            unreadable=unreadable,
        )

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever one of them is not as it was, for ever. It may be called for nothing."""
        async with anyio.create_task_group() as group:
            for snapshot in (
                self.coordinators,
                self._service_cidrs,
                self._kubeadm.snapshot,
                self._cilium.snapshot,
                self._calico.items.snapshot,
                self._calico.definition.snapshot,
                self._cilium_pools.items.snapshot,
                self._cilium_pools.definition.snapshot,
            ):
                group.start_soon(_follow, snapshot, changed)
            group.start_soon(self._follow_pods, changed)
            group.start_soon(self._follow_folder, changed)

    async def _follow_pods(self, changed: Callable[[], None]) -> None:
        """Of the cluster's pods only a few matter: the others' changes cost nobody anything."""
        while True:
            if self._learn_pods():
                changed()
            await self._pods.wait(self._revision)

    def _learn_pods(self) -> bool:
        """Whether there is another kube-controller-manager, or one less."""
        before = dict(self._managers)
        try:
            changes, self._revision = self._pods.changes(self._revision)
        except Expired:
            self._managers = {key: pod for key, pod in self._pods.objects.items() if _is_manager(pod)}
            self._revision = self._pods.revision
        else:
            for change in changes:
                if change.object is not None and _is_manager(change.object):
                    self._managers[change.key] = change.object
                else:
                    self._managers.pop(change.key, None)
        return self._managers != before

    async def _follow_folder(self, changed: Callable[[], None]) -> None:
        while True:
            folder = await self._configurations.read()
            if folder != self._folder:
                self._folder = folder
                self._looked.set()
                changed()
            await self._configurations.changed()


async def _follow(snapshot: Snapshot[Any], changed: Callable[[], None]) -> None:
    revision = 0
    while True:
        revision = await snapshot.wait(revision)
        changed()


def _config_map(store: Store, namespace: str, name: str, random: Random) -> Reflector[ConfigMap]:
    return Reflector(
        store,
        CONFIGMAP,
        random=random,
        namespace=namespace,
        fields={"metadata.name": name},
        transform=_bare_config_map,
        topic=f"configmap {name}",
    )


def _is_manager(pod: Pod) -> bool:
    meta = pod.metadata
    return meta.namespace == CONTROL_PLANE_NAMESPACE and meta.labels.get(COMPONENT) == CONTROLLER_MANAGER


def _bare_config_map(item: ConfigMap) -> ConfigMap:
    return ConfigMap(metadata=_bare(item.metadata), data=item.data)


def _bare_calico(item: CalicoIPPool) -> CalicoIPPool:
    return CalicoIPPool(metadata=_bare(item.metadata), spec=item.spec)


def _bare_cilium(item: CiliumPodIPPool) -> CiliumPodIPPool:
    return CiliumPodIPPool(metadata=_bare(item.metadata), spec=item.spec)


def _bare_definition(item: CustomResourceDefinition) -> CustomResourceDefinition | None:
    """None of one that goes: what it defines goes with it."""
    if item.metadata.deletion_timestamp is not None:
        return None
    return CustomResourceDefinition(metadata=_bare(item.metadata), status=item.status)


def _bare(meta: ObjectMeta) -> ObjectMeta:
    """Who it is, how old, and whether it goes."""
    return ObjectMeta(
        name=meta.name,
        namespace=meta.namespace,
        uid=meta.uid,
        resource_version=meta.resource_version,
        creation_timestamp=meta.creation_timestamp,
        deletion_timestamp=meta.deletion_timestamp,
    )
