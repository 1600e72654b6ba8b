"""The kinds of object that stores are asked for: where each lives in the API and which Struct it decodes to."""

import builtins

import msgspec
from msgspec import Struct

from api import core, extensions, kubevirt, newpod, overlays
from api.coordinator import SpiderCoordinator
from api.endpoint import SpiderEndpoint
from api.ippool import SpiderIPPool
from api.meta import GROUP, VERSION
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from api.reservedip import SpiderReservedIP
from api.subnet import SpiderSubnet


class Kind[T](Struct, frozen=True, kw_only=True):
    """One kind of object and its address in the Kubernetes API."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    namespaced: bool
    status: bool
    """Whether status is a subresource: writes to the object then keep it, and only writes to `/status` change it."""
    type: builtins.type[T]

    def __post_init__(self) -> None:
        """msgspec 0.22 looks at a Struct when it decodes one first, and of two threads that do so at once one crashes.

        Done while modules are imported there is but one.
        """
        msgspec.json.Decoder(self.type)

    @property
    def api_version(self) -> str:
        """As objects spell it: ``v1`` or ``group/version``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As the API server's errors spell it: ``Pod``, ``SpiderIPPool.spiderpool.spidernet.io``."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of the collection, of one object, or of its subresource.

        An empty namespace is the collection over all namespaces. Names are Kubernetes names: nothing in them needs
        escaping.
        """
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def __repr__(self) -> str:
        return f"<Kind {self.api_version} {self.kind}>"


def _own[T](cls: builtins.type[T], plural: str, *, namespaced: bool = False, status: bool = False) -> Kind[T]:
    return Kind(
        group=GROUP,
        version=VERSION,
        plural=plural,
        kind=cls.__name__,
        namespaced=namespaced,
        status=status,
        type=cls,
    )


def _workload[T](cls: builtins.type[T], group: str, plural: str) -> Kind[T]:
    return Kind(group=group, version="v1", plural=plural, kind=cls.__name__, namespaced=True, status=True, type=cls)


IPPOOL = _own(SpiderIPPool, "spiderippools", status=True)
SUBNET = _own(SpiderSubnet, "spidersubnets", status=True)
ENDPOINT = _own(SpiderEndpoint, "spiderendpoints", namespaced=True)
RESERVEDIP = _own(SpiderReservedIP, "spiderreservedips")
COORDINATOR = _own(SpiderCoordinator, "spidercoordinators", status=True)
MULTUSCONFIG = _own(SpiderMultusConfig, "spidermultusconfigs", namespaced=True)

POD = Kind(group="", version="v1", plural="pods", kind="Pod", namespaced=True, status=True, type=core.Pod)
NODE = Kind(group="", version="v1", plural="nodes", kind="Node", namespaced=False, status=True, type=core.Node)
NAMESPACE = Kind(
    group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False, status=True, type=core.Namespace
)
ENDPOINTSLICE = Kind(
    group="discovery.k8s.io",
    version="v1",
    plural="endpointslices",
    kind="EndpointSlice",
    namespaced=True,
    status=False,
    type=core.EndpointSlice,
)
REPLICASET = _workload(core.ReplicaSet, "apps", "replicasets")
DEPLOYMENT = _workload(core.Deployment, "apps", "deployments")
STATEFULSET = _workload(core.StatefulSet, "apps", "statefulsets")
DAEMONSET = _workload(core.DaemonSet, "apps", "daemonsets")
JOB = _workload(core.Job, "batch", "jobs")
CRONJOB = _workload(core.CronJob, "batch", "cronjobs")
VIRTUALMACHINE = Kind(
    group="kubevirt.io",
    version="v1",
    plural="virtualmachines",
    kind="VirtualMachine",
    namespaced=True,
    status=True,
    type=kubevirt.VirtualMachine,
)
VIRTUALMACHINEINSTANCE = Kind(
    group="kubevirt.io",
    version="v1",
    plural="virtualmachineinstances",
    kind="VirtualMachineInstance",
    namespaced=True,
    status=True,
    type=kubevirt.VirtualMachineInstance,
)
VIRTUALMACHINEINSTANCEMIGRATION = Kind(
    group="kubevirt.io",
    version="v1",
    plural="virtualmachineinstancemigrations",
    kind="VirtualMachineInstanceMigration",
    namespaced=True,
    status=True,
    type=kubevirt.VirtualMachineInstanceMigration,
)
NETWORKATTACHMENT = Kind(
    group="k8s.cni.cncf.io",
    version="v1",
    plural="network-attachment-definitions",
    kind="NetworkAttachmentDefinition",
    namespaced=True,
    status=False,
    type=NetworkAttachmentDefinition,
)
CONFIGMAP = Kind(
    group="", version="v1", plural="configmaps", kind="ConfigMap", namespaced=True, status=False, type=core.ConfigMap
)
SECRET = Kind(group="", version="v1", plural="secrets", kind="Secret", namespaced=True, status=False, type=core.Secret)
EVENT = Kind(group="", version="v1", plural="events", kind="Event", namespaced=True, status=False, type=core.Event)


def _cluster_wide[T](cls: builtins.type[T], group: str, plural: str, *, status: bool = False) -> Kind[T]:
    return Kind(group=group, version="v1", plural=plural, kind=cls.__name__, namespaced=False, status=status, type=cls)


CUSTOMRESOURCEDEFINITION = _cluster_wide(
    extensions.CustomResourceDefinition, "apiextensions.k8s.io", "customresourcedefinitions", status=True
)
VALIDATINGWEBHOOK = _cluster_wide(
    extensions.ValidatingWebhookConfiguration, "admissionregistration.k8s.io", "validatingwebhookconfigurations"
)
MUTATINGWEBHOOK = _cluster_wide(
    extensions.MutatingWebhookConfiguration, "admissionregistration.k8s.io", "mutatingwebhookconfigurations"
)
SERVICECIDR = _cluster_wide(core.ServiceCIDR, "networking.k8s.io", "servicecidrs", status=True)
"""Since Kubernetes 1.33; older API servers answer that they have no such thing."""
SERVICECIDR_BEFORE = tuple(msgspec.structs.replace(SERVICECIDR, version=one) for one in ("v1beta1", "v1alpha1"))
"""The same where it has to be switched on: since Kubernetes 1.31 and 1.27."""
CALICO_IPPOOL = msgspec.structs.replace(
    _cluster_wide(overlays.CalicoIPPool, "crd.projectcalico.org", "ippools"), kind="IPPool"
)
CILIUM_PODIPPOOL = msgspec.structs.replace(
    _cluster_wide(overlays.CiliumPodIPPool, "cilium.io", "ciliumpodippools"), version="v2alpha1"
)
CONTROL_PLANE_POD = Kind(
    group="",
    version="v1",
    plural="pods",
    kind="Pod",
    namespaced=True,
    status=True,
    type=overlays.ControlPlanePod,
)
NEW_POD = Kind(group="", version="v1", plural="pods", kind="Pod", namespaced=True, status=True, type=newpod.NewPod)
"""A pod as it comes to admission."""
