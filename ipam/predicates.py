"""What a pool asks of a NIC before it serves it, and what it found instead. Pure.

The predicates are judged in the order of `Judge.failures`; the first one that fails is the reason for a rejection. Each
says what it wanted and what it saw.
"""

from collections.abc import Iterator, Mapping
from ipaddress import ip_interface, ip_network

from msgspec import Struct

from api import annotations
from api.annotations import AnnotationError
from api.ippool import SpiderIPPool
from api.meta import LabelSelector, SelectorError
from api.networks import CLUSTER_NETWORK, FIRST_NIC, Network, cluster_network, default_network, networks
from api.reasons import Reason
from ipam import autopool
from ipam.candidates import SelectionRequest, pool_version
from ipam.identity import Workload


class Attachment(Struct, frozen=True):
    """Which network makes a NIC."""

    network: str
    """``namespace/name``; empty where none is known."""
    seen: str
    """The same in words, or why there is none."""


class Judge:
    """Judges candidates for one request."""

    def __init__(self, request: SelectionRequest) -> None:
        self._request = request
        self._attachments: dict[str, Attachment] = {}

    def reject(self, nic: str, name: str, pool: SpiderIPPool | None, version: int) -> Reason | None:
        """The first predicate that a candidate for a NIC and family does not fulfil.

        Raises `AnnotationError`: the pool serves certain networks only, and the annotation that would say which one
        makes this NIC cannot be read.
        """
        if pool is None:
            return Reason(predicate="exists", pool=name, wanted="a SpiderIPPool of this name", seen="none")
        return next(self.failures(nic, pool, version), None)

    def failures(self, nic: str, pool: SpiderIPPool, version: int) -> Iterator[Reason]:
        """The predicates that a pool does not fulfil, in their order. Raises as `reject` does."""
        yield from _state(pool, version)
        yield from self._node(pool)
        yield from self._namespace(pool)
        if annotations.OWNER_APPLICATION_NAME in pool.metadata.labels:
            # An automatic pool is for one workload, by whatever network that is attached.
            yield from _application(pool, self._request.workload)
        else:
            yield from self._pod(pool)
            yield from self._network(nic, pool)
        if nic == self._request.nic:
            yield from self._master(pool)

    def _node(self, pool: SpiderIPPool) -> Iterator[Reason]:
        node, spec = self._request.node, pool.spec
        name = self._request.pod.spec.node_name or (node.metadata.name if node is not None else "")
        if spec.node_name:
            if name not in spec.node_name:
                yield _reason(pool, "nodeName", _one_of(spec.node_name), name)
        elif spec.node_affinity is not None:
            yield from _affinity(
                pool, "nodeAffinity", spec.node_affinity, node.metadata.labels if node is not None else None
            )

    def _namespace(self, pool: SpiderIPPool) -> Iterator[Reason]:
        namespace, spec = self._request.namespace, pool.spec
        name = self._request.pod.metadata.namespace
        if spec.namespace_name:
            if name not in spec.namespace_name:
                yield _reason(pool, "namespaceName", _one_of(spec.namespace_name), name)
        elif spec.namespace_affinity is not None:
            labels = namespace.metadata.labels if namespace is not None else None
            yield from _affinity(pool, "namespaceAffinity", spec.namespace_affinity, labels)

    def _pod(self, pool: SpiderIPPool) -> Iterator[Reason]:
        if pool.spec.pod_affinity is not None:
            yield from _affinity(pool, "podAffinity", pool.spec.pod_affinity, self._request.pod.metadata.labels)

    def _network(self, nic: str, pool: SpiderIPPool) -> Iterator[Reason]:
        if not pool.spec.multus_name:
            return
        wanted = [name if "/" in name else f"{self._request.agent_namespace}/{name}" for name in pool.spec.multus_name]
        if nic not in self._attachments:
            made = self._request.multus if nic == self._request.nic else ""
            self._attachments[nic] = Attachment(made, made) if made else attachment_of(self._request, nic)
        attachment = self._attachments[nic]
        if attachment.network not in wanted:
            yield _reason(pool, "multusName", _one_of(wanted), attachment.seen)

    def _master(self, pool: SpiderIPPool) -> Iterator[Reason]:
        """Whether the physical NIC behind the interface has an address in the pool's subnet."""
        addresses, subnet = self._request.master_subnets, pool.spec.subnet
        if addresses is None:
            return
        seen = ", ".join(addresses) or "no address"
        try:
            network = ip_network(subnet, strict=False)
            held = any(ip_interface(address).ip in network for address in addresses)
        except ValueError as error:
            held, seen = False, str(error)
        if not held:
            yield _reason(pool, "match_master_subnet", f"a master NIC in {subnet}", seen)


def _reason(pool: SpiderIPPool, predicate: str, wanted: str, seen: str) -> Reason:
    return Reason(predicate=predicate, pool=pool.metadata.name, wanted=wanted, seen=seen)


def _state(pool: SpiderIPPool, version: int) -> Iterator[Reason]:
    """What the pool is, whoever asks."""
    if pool.metadata.deletion_timestamp is not None:
        yield _reason(pool, "terminating", "a pool that stays", f"deleted at {pool.metadata.deletion_timestamp}")
    if pool.spec.disable:
        yield _reason(pool, "disable", "false", "true")
    if pool_version(pool) != version:
        yield _reason(pool, "ipVersion", str(version), str(pool_version(pool)))


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}"


def _affinity(
    pool: SpiderIPPool, predicate: str, selector: LabelSelector, labels: Mapping[str, str] | None
) -> Iterator[Reason]:
    """`labels` is None where the object is not known: that fulfils nothing, not even "has no such label"."""
    if labels is None:
        yield _reason(pool, predicate, str(selector), "an unknown object")
        return
    try:
        if not selector.matches(labels):
            seen = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
            yield _reason(pool, predicate, str(selector), seen)
    except SelectorError as error:
        yield _reason(pool, predicate, "a valid selector", str(error))


def _application(pool: SpiderIPPool, workload: Workload | None) -> Iterator[Reason]:
    """Whether the workload is the one that an automatic pool was made for. The five keys are no labels of the pod.

    The core group has no name: its `v1` is the version, which is where the original looks in vain.
    """
    keys = pool.spec.pod_affinity.match_labels if pool.spec.pod_affinity is not None else {}
    group, version = keys.get(annotations.APP_API_GROUP, ""), keys.get(annotations.APP_API_VERSION, "")
    owner = Workload(
        api_version=f"{group}/{version}" if group else version,
        kind=keys.get(annotations.APP_KIND, ""),
        namespace=keys.get(annotations.APP_NAMESPACE, ""),
        name=keys.get(annotations.APP_NAME, ""),
    )
    if workload is None:
        yield _reason(pool, "podAffinity", _named(owner), "an unknown workload")
    elif autopool.affinity(workload) != autopool.affinity(owner):
        yield _reason(pool, "podAffinity", _named(owner), _named(workload))


def _named(workload: Workload) -> str:
    return f"{workload} ({workload.api_version})"


def attachment_of(request: SelectionRequest, nic: str) -> Attachment:
    """The network that makes a NIC, by the pod's annotations. Raises `AnnotationError`."""
    return _first(request) if nic == FIRST_NIC else _further(request, nic)


def _first(request: SelectionRequest) -> Attachment:
    """The network of the NIC that kubelet has made."""
    found = default_network(request.pod.metadata.annotations, namespace=request.agent_namespace)
    if found is None:
        try:
            found = cluster_network(request.cluster_network, namespace=request.agent_namespace)
        except AnnotationError:
            # Multus also takes a file or a configuration's name here: no mistake of the pod's author.
            return Attachment("", f"{CLUSTER_NETWORK} {request.cluster_network!r}, no name of a network attachment")
    if found is None:
        return Attachment("", f"no annotation {annotations.MULTUS_DEFAULT_NETWORK} and no {CLUSTER_NETWORK}")
    return Attachment(str(found), str(found))


def _further(request: SelectionRequest, nic: str) -> Attachment:
    """The network of a NIC that Multus has made beside the first one."""
    made: tuple[Network, ...] = networks(request.pod.metadata.annotations, namespace=request.pod.metadata.namespace)
    found = next((network for network in made if network.interface == nic), None)
    if found is None:
        return Attachment("", f"nothing about {nic} in annotation {annotations.MULTUS_NETWORKS}")
    return Attachment(str(found), str(found))
