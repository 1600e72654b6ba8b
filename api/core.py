"""The Kubernetes objects that we watch, with the fields that we read and no others.

A controller replica holds every pod of a cluster.
"""

from msgspec import Struct, field

from api.meta import ObjectMeta


class PodSpec(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """What we need of a pod's specification."""

    node_name: str = ""
    """Empty until the pod is scheduled."""
    host_network: bool = False
    restart_policy: str = "Always"


class PodIP(Struct, frozen=True, gc=False):
    """One address of a pod."""

    ip: str = ""


class PodStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a pod's status."""

    phase: str = ""
    """Pending, Running, Succeeded, Failed or Unknown."""
    reason: str = ""
    """For example Evicted."""
    pod_ips: list[PodIP] = field(default_factory=list, name="podIPs")


class Pod(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A pod."""

    api_version: str = "v1"
    kind: str = "Pod"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)

    @property
    def alive(self) -> bool:
        """Whether the pod may have a sandbox now or get one again: only such a pod is given addresses."""
        match self.status.phase:
            case _ if self.metadata.deletion_timestamp is not None:
                return False
            case "Succeeded":
                return self.spec.restart_policy == "Always"
            case "Failed":
                return self.spec.restart_policy != "Never" and self.status.reason != "Evicted"
            case _:
                return True

    @property
    def phase_text(self) -> str:
        """The state in words for people, for example ``being deleted`` or ``Failed (Evicted)``."""
        if self.metadata.deletion_timestamp is not None:
            return "being deleted"
        phase = self.status.phase or "Pending"
        return f"{phase} ({self.status.reason})" if self.status.reason else phase


class Taint(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """What keeps pods off a node."""

    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a node's specification."""

    taints: list[Taint] = []


class NodeCondition(Struct, frozen=True, omit_defaults=True, rename="camel", gc=False):
    """One thing that is said of a node. We look at the type Ready."""

    type: str = ""
    status: str = ""
    """True, False or Unknown."""


class NodeStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a node's status."""

    conditions: list[NodeCondition] = []


OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""Key of the taint by which an operator says that a node is down and stays down."""


class Node(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A node; its labels decide which pools serve it, its state what becomes of its addresses."""

    api_version: str = "v1"
    kind: str = "Node"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)

    @property
    def ready(self) -> bool:
        """Whether its kubelet is heard. A node that says nothing of it yet counts as ready."""
        return all(condition.status == "True" for condition in self.status.conditions if condition.type == "Ready")

    @property
    def out_of_service(self) -> bool:
        """Whether an operator has declared it down."""
        return any(taint.key == OUT_OF_SERVICE for taint in self.spec.taints)


class Namespace(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A namespace; its labels and annotations decide which pools serve it."""

    api_version: str = "v1"
    kind: str = "Namespace"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)


class EndpointConditions(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """State of one endpoint. None is for the reader to take as ready and serving, as Kubernetes says."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ObjectReference(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The object, a pod, behind an endpoint."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class SliceEndpoint(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One program behind a Service."""

    addresses: list[str] = []
    conditions: EndpointConditions = field(default_factory=EndpointConditions)
    node_name: str = ""
    target_ref: ObjectReference | None = None


class EndpointPort(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A port of all endpoints of a slice."""

    name: str = ""
    port: int | None = None
    protocol: str = "TCP"


class EndpointSlice(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Some of the endpoints of a Service, of one address family. The label `SERVICE_LABEL` names the Service."""

    api_version: str = "discovery.k8s.io/v1"
    kind: str = "EndpointSlice"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    address_type: str = ""
    """IPv4, IPv6 or FQDN."""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[EndpointPort] | None = None


SERVICE_LABEL = "kubernetes.io/service-name"


class TemplatePodSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of the specification of pods to come."""

    host_network: bool = False


class PodTemplate(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What the pods of a workload are made from."""

    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: TemplatePodSpec = field(default_factory=TemplatePodSpec)


class ReplicatedSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of the specification of a Deployment or ReplicaSet."""

    replicas: int | None = None
    """1 where it is absent."""
    template: PodTemplate = field(default_factory=PodTemplate)


class ReplicaSet(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of pods, often owned by a Deployment."""

    api_version: str = "apps/v1"
    kind: str = "ReplicaSet"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ReplicatedSpec = field(default_factory=ReplicatedSpec)


class Deployment(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of ReplicaSets."""

    api_version: str = "apps/v1"
    kind: str = "Deployment"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ReplicatedSpec = field(default_factory=ReplicatedSpec)


class StatefulSetOrdinals(Struct, frozen=True, omit_defaults=True):
    """How a StatefulSet numbers its pods."""

    start: int = 0


class StatefulSetSpec(Struct, frozen=True, omit_defaults=True):
    """What we need of a StatefulSet's specification."""

    replicas: int | None = None
    """1 where it is absent."""
    ordinals: StatefulSetOrdinals | None = None
    template: PodTemplate = field(default_factory=PodTemplate)


class StatefulSet(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of pods that keep their names."""

    api_version: str = "apps/v1"
    kind: str = "StatefulSet"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: StatefulSetSpec = field(default_factory=StatefulSetSpec)


class DaemonSetSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a DaemonSet's specification."""

    template: PodTemplate = field(default_factory=PodTemplate)


class DaemonSetStatus(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a DaemonSet's status."""

    desired_number_scheduled: int = 0
    """Nodes that are to have a pod."""


class DaemonSet(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of one pod per node."""

    api_version: str = "apps/v1"
    kind: str = "DaemonSet"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: DaemonSetSpec = field(default_factory=DaemonSetSpec)
    status: DaemonSetStatus = field(default_factory=DaemonSetStatus)


class JobSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a Job's specification."""

    completions: int | None = None
    """Pods that are to succeed."""
    parallelism: int | None = None
    """Pods at a time."""
    template: PodTemplate = field(default_factory=PodTemplate)


class Job(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of pods that end, sometimes owned by a CronJob."""

    api_version: str = "batch/v1"
    kind: str = "Job"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: JobSpec = field(default_factory=JobSpec)


class JobTemplate(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What the Jobs of a CronJob are made from."""

    spec: JobSpec = field(default_factory=JobSpec)


class CronJobSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What we need of a CronJob's specification."""

    job_template: JobTemplate = field(default_factory=JobTemplate)


class CronJob(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An owner of Jobs."""

    api_version: str = "batch/v1"
    kind: str = "CronJob"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: CronJobSpec = field(default_factory=CronJobSpec)


class Bare(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """An object of a kind that we know nothing of."""

    api_version: str = ""
    kind: str = ""
    metadata: ObjectMeta = field(default_factory=ObjectMeta)


class ScaleSpec(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What a scale subresource asks for."""

    replicas: int = 0


class Scale(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """How many pods a workload of whatever kind is to have: its scale subresource."""

    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ScaleSpec = field(default_factory=ScaleSpec)


class ConfigMap(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Texts and bytes by name."""

    api_version: str = "v1"
    kind: str = "ConfigMap"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    data: dict[str, str] = {}
    binary_data: dict[str, bytes] = {}
    """Base64 where it is written down."""


class Secret(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Bytes by name that not everybody may read."""

    api_version: str = "v1"
    kind: str = "Secret"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    data: dict[str, bytes] = {}
    """Base64 where it is written down."""

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"<Secret {self.metadata.namespace}/{self.metadata.name} {sorted(self.data)}>"


class ServiceCIDRSpec(Struct, frozen=True, omit_defaults=True):
    """What a ServiceCIDR says."""

    cidrs: list[str] = []
    """One or two, of different families."""


class ServiceCIDR(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Addresses that Services get."""

    api_version: str = "networking.k8s.io/v1"
    kind: str = "ServiceCIDR"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ServiceCIDRSpec = field(default_factory=ServiceCIDRSpec)


class EventSource(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Who says it."""

    component: str = ""
    host: str = ""
    """A node's name."""


class Event(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What somebody has to say about an object, kept for an hour."""

    api_version: str = "v1"
    kind: str = "Event"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    involved_object: ObjectReference = field(default_factory=ObjectReference)
    type: str = ""
    """Normal or Warning."""
    reason: str = ""
    """One word for programs, for example CNIWithdrawn."""
    message: str = ""
    """For people."""
    source: EventSource = field(default_factory=EventSource)
    reporting_component: str = ""
    reporting_instance: str = ""
    first_timestamp: str | None = None
    """RFC 3339."""
    last_timestamp: str | None = None
    count: int = 0
