"""Which addresses pods and Services have on the cluster's own network: from what the cluster says of itself. Pure.

A pod on the LAN gets a way through its node to these addresses. So they are all known or the coordinator is not ready:
half of them would make pods that work by halves. The original's rules, with what `docs/differences.md` says of them.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_network
from typing import Literal, assert_never

import yaml
from msgspec import Struct

from actors.coordination.configurations import Folder, PodNetwork, pod_network
from api.core import ConfigMap, ServiceCIDR
from api.meta import ObjectMeta
from api.overlays import CalicoIPPool, CiliumPodIPPool, ControlPlanePod

KUBEADM = "kubeadm-config"
"""ConfigMap of kube-system that kubeadm leaves behind."""
COMPONENT, CONTROLLER_MANAGER = "component", "kube-controller-manager"
"""The label by which a control plane's static pods are known."""
CONTROL_PLANE_NAMESPACE = "kube-system"
"""Pods of other namespaces may carry that label, too; nobody believes them."""

type NotReadyReason = Literal["ClusterNotReady", "CalicoNotReady", "CiliumNotReady", "CNIConfigurationNotReady"]


class Flags(Struct, frozen=True):
    """What a kube-controller-manager was told; texts as they stand there."""

    pod: str
    """``namespace/name``."""
    cluster_cidr: str = ""
    service_cidr: str = ""


class Seen(Struct, frozen=True, kw_only=True):
    """What there is to find it from.

    Attributes:
        folder: a node's CNI configurations.
        kubeadm: the ConfigMap kubeadm-config; None where there is none.
        flags: of the kube-controller-manager; None where no pod of it is seen.
        service_cidrs: all ServiceCIDR objects; empty before Kubernetes 1.33.
        configured: CIDRs of Services that the operator has given for clusters without such objects.
        calico: Calico's pools; None where there is no such kind.
        cilium: Cilium's ConfigMap; None where there is none.
        cilium_name: ``namespace/name`` where it would be.
        cilium_pools: None where there is no such kind.
        unreadable: by source, why it cannot be followed although it may be there: a right that is missing.
    """

    folder: Folder = Folder("")
    kubeadm: ConfigMap | None = None
    flags: Flags | None = None
    service_cidrs: tuple[ServiceCIDR, ...] = ()
    configured: tuple[str, ...] = ()
    calico: tuple[CalicoIPPool, ...] | None = None
    cilium: ConfigMap | None = None
    cilium_name: str = "kube-system/cilium-config"
    cilium_pools: tuple[CiliumPodIPPool, ...] | None = None
    unreadable: dict[str, str] = {}


class Finding(Struct, frozen=True, kw_only=True):
    """What comes of it.

    Attributes:
        network: whose addresses the pods' are; None where that is not known.
        pods: CIDRs of pods on the cluster's own network; empty unless all is known, as the next.
        services: CIDRs of Services.
        source: where both were found, for people.
        problem: why they are not known; empty when they are.
        word: the same in one word.
    """

    network: PodNetwork | None
    pods: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    source: str = ""
    problem: str = ""
    word: NotReadyReason = "ClusterNotReady"


class _Unknown(Exception):
    """Ends a search."""

    def __init__(self, word: NotReadyReason, text: str) -> None:
        super().__init__(text)
        self.word: NotReadyReason = word


class _Found(Struct, frozen=True):
    cidrs: tuple[str, ...]
    source: str


def discover(kind: str | None, seen: Seen) -> Finding:
    """The addresses by `spec.podCIDRType`; without one, as with auto."""
    network: PodNetwork | None = None
    try:
        network, why = _network(kind, seen)
        pods = _pods(network, seen)
        services = _services(seen)
    except _Unknown as error:
        return Finding(network=network, problem=str(error), word=error.word)
    parts = (why and f"network {network} by {why}", f"pods by {pods.source}", f"Services by {services.source}")
    source = "; ".join(part for part in parts if part)
    return Finding(network=network, pods=pods.cidrs, services=services.cidrs, source=source)


def flags_of(pod: ControlPlanePod) -> Flags:
    """What a kube-controller-manager's pod was told. Of a flag that is repeated the last one holds, as for itself."""
    words = [word for one in pod.spec.containers for word in (*one.command, *one.args)]
    told: dict[str, str] = {}
    for at, word in enumerate(words):
        name, given, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in {"cluster-cidr", "service-cluster-ip-range"}:
            told[name] = value if given else (words[at + 1] if at + 1 < len(words) else "")
    return Flags(
        pod=f"{pod.metadata.namespace}/{pod.metadata.name}",
        cluster_cidr=told.get("cluster-cidr", ""),
        service_cidr=told.get("service-cluster-ip-range", ""),
    )


# ---------------------------------------------------------------- which network


def _network(kind: str | None, seen: Seen) -> tuple[PodNetwork, str]:
    """Whose network pods have, and by what that is known where it was to be found out."""
    match kind:
        case "cluster" | "calico" | "cilium" | "none":
            return kind, ""
        case _:
            found, why = pod_network(seen.folder)
            if found is None:
                # A folder that cannot be read hides what the cluster shows all the same.
                found, why = _by_objects(seen, hidden=why)
            return found, why


def _by_objects(seen: Seen, *, hidden: str) -> tuple[PodNetwork, str]:
    calico, cilium = bool(seen.calico), seen.cilium is not None
    if calico != cilium:
        return ("calico", "Calico's IPPools") if calico else ("cilium", f"ConfigMap {seen.cilium_name}")
    both = "both Calico's IPPools and Cilium's ConfigMap are there" if calico else "no Calico and no Cilium is there"
    text = f"spec.podCIDRType is auto, and which network pods have is not known: {hidden}; {both}"
    raise _Unknown("CNIConfigurationNotReady", f"{text}. Name it in spec.podCIDRType")


# ---------------------------------------------------------------- its pods


def _pods(network: PodNetwork, seen: Seen) -> _Found:
    match network:
        case "cluster":
            return _cluster_pods(seen)
        case "calico":
            return _calico(seen)
        case "cilium":
            return _cilium(seen)
        case "none":
            return _Found((), "podCIDRType none")
        case _:
            assert_never(network)


def _cluster_pods(seen: Seen) -> _Found:
    found = _cluster_value(seen, "podSubnet", lambda flags: ("--cluster-cidr", flags.cluster_cidr))
    if found is None:
        raise _Unknown("ClusterNotReady", f"the CIDRs of pods are not known: {_why_no_cluster_value(seen)}")
    return found


def _calico(seen: Seen) -> _Found:
    word: NotReadyReason = "CalicoNotReady"
    if seen.calico is None:
        raise _Unknown(word, f"podCIDRType is calico, and {_no_kind(seen, 'ippools.crd.projectcalico.org')}")
    alive = [one for one in _in_order(seen.calico, lambda one: one.metadata) if not one.spec.disabled]
    if not alive:
        raise _Unknown(word, f"none of Calico's {len(seen.calico)} IPPools is there to stay and enabled")
    cidrs = _checked(word, ((one.spec.cidr, f"IPPool {one.metadata.name} spec.cidr") for one in alive))
    return _Found(cidrs, f"Calico's IPPools {_listed(one.metadata.name for one in alive)}")


def _cilium(seen: Seen) -> _Found:
    word: NotReadyReason = "CiliumNotReady"
    where = f"ConfigMap {seen.cilium_name}"
    if seen.cilium is None:
        more = f" ({seen.unreadable['cilium']})" if "cilium" in seen.unreadable else ""
        raise _Unknown(word, f"podCIDRType is cilium, and there is no {where}{more}")
    mode = seen.cilium.data.get("ipam") or "cluster-pool"
    match mode:
        case "cluster-pool" | "cluster-pool-v2beta":
            keys = ("cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr")
            texts = [(text, f"{where} {key}") for key in keys for text in _split(seen.cilium.data.get(key, ""))]
            if not texts:
                raise _Unknown(word, f"{where}: ipam is {mode}, and neither {keys[0]} nor {keys[1]} is there")
            return _Found(_checked(word, texts), where)
        case "multi-pool":
            return _cilium_pools(seen, where)
        case "kubernetes":
            return _cluster_pods(seen)
        case _:
            # crd, eni, azure, alibabacloud, delegated-plugin: addresses of somebody else's, node by node.
            text = f"{where}: ipam is {mode}, and does not say which CIDRs pods have"
            raise _Unknown(word, f"{text}. Set spec.podCIDRType to none and list them in spec.hijackCIDR")


def _cilium_pools(seen: Seen, where: str) -> _Found:
    word: NotReadyReason = "CiliumNotReady"
    if seen.cilium_pools is None:
        raise _Unknown(word, f"{where}: ipam is multi-pool, and {_no_kind(seen, 'ciliumpodippools.cilium.io')}")
    alive = _in_order(seen.cilium_pools, lambda one: one.metadata)
    texts = [
        (text, f"CiliumPodIPPool {one.metadata.name} spec.{family}.cidrs")
        for one in alive
        for family, part in (("ipv4", one.spec.ipv4), ("ipv6", one.spec.ipv6))
        for text in (part.cidrs if part is not None else ())
    ]
    if not texts:
        raise _Unknown(word, f"{where}: ipam is multi-pool, and no CiliumPodIPPool has a CIDR")
    return _Found(_checked(word, texts), f"CiliumPodIPPools {_listed(one.metadata.name for one in alive)}")


# ---------------------------------------------------------------- Services


def _services(seen: Seen) -> _Found:
    word: NotReadyReason = "ClusterNotReady"
    objects = _in_order(seen.service_cidrs, lambda one: one.metadata)
    texts = [(text, f"ServiceCIDR {one.metadata.name}") for one in objects for text in one.spec.cidrs]
    if texts:
        return _Found(_checked(word, texts), f"ServiceCIDRs {_listed(one.metadata.name for one in objects)}")
    if seen.configured:
        return _Found(seen.configured, "SPIDERPOOL_SERVICE_CIDR")
    found = _cluster_value(seen, "serviceSubnet", lambda flags: ("--service-cluster-ip-range", flags.service_cidr))
    if found is None:
        text = f"the CIDRs of Services are not known: there is no ServiceCIDR, and {_why_no_cluster_value(seen)}"
        raise _Unknown(word, f"{text}. The chart's value coordinator.serviceCIDR names them")
    return found


# ---------------------------------------------------------------- the cluster's own word


def _cluster_value(seen: Seen, key: str, flag: Callable[[Flags], tuple[str, str]]) -> _Found | None:
    """CIDRs that kubeadm was given, or where it does not say, the kube-controller-manager."""
    where = f"ConfigMap {CONTROL_PLANE_NAMESPACE}/{KUBEADM}"
    texts = _split(_networking(_configuration(seen.kubeadm)).get(key, ""))
    if texts:
        return _Found(_checked("ClusterNotReady", ((text, f"{where} {key}") for text in texts)), where)
    if seen.flags is not None:
        name, value = flag(seen.flags)
        where = f"pod {seen.flags.pod} {name}"
        if texts := _split(value):
            return _Found(_checked("ClusterNotReady", ((text, where) for text in texts)), where)
    return None


def _why_no_cluster_value(seen: Seen) -> str:
    if seen.kubeadm is None:
        more = f" ({seen.unreadable['kubeadm']})" if "kubeadm" in seen.unreadable else ""
        first = f"there is no ConfigMap {CONTROL_PLANE_NAMESPACE}/{KUBEADM}{more}"
    else:
        first = f"ConfigMap {CONTROL_PLANE_NAMESPACE}/{KUBEADM} does not say"
    if seen.flags is None:
        return f"{first}, nor a pod of {CONTROL_PLANE_NAMESPACE} labelled {COMPONENT}={CONTROLLER_MANAGER}"
    return f"{first}, nor does pod {seen.flags.pod}"


def _configuration(kubeadm: ConfigMap | None) -> str:
    return kubeadm.data.get("ClusterConfiguration", "") if kubeadm is not None else ""


@lru_cache(maxsize=4)
def _networking(configuration: str) -> dict[str, str]:
    """The part `networking` of a ClusterConfiguration; empty where that makes no sense.

    It hardly ever changes, and YAML takes a hundred times as long to read as all the rest.
    """
    try:
        document = yaml.safe_load(configuration)
    except yaml.YAMLError:
        return {}
    part = document.get("networking") if isinstance(document, dict) else None
    return {key: value for key, value in part.items() if isinstance(value, str)} if isinstance(part, dict) else {}


# ---------------------------------------------------------------- texts


def _split(text: str) -> list[str]:
    """kubeadm and flags have commas between CIDRs, Cilium has spaces."""
    return [part for part in re.split(r"[\s,]+", text) if part]


def _checked(word: NotReadyReason, texts: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Each network once, in its one form. A text that is none makes all of it unknown."""
    found: dict[str, None] = {}
    for text, where in texts:
        try:
            found[str(ip_network(text, strict=False))] = None
        except ValueError as error:
            raise _Unknown(word, f"{where}: {text!r} is no CIDR: {error}") from None
    return tuple(found)


def _in_order[T](items: Iterable[T], meta: Callable[[T], ObjectMeta]) -> list[T]:
    """The oldest first, without those that are being deleted."""
    alive = (one for one in items if meta(one).deletion_timestamp is None)
    return sorted(alive, key=lambda one: (meta(one).creation_timestamp or "", meta(one).name))


def _no_kind(seen: Seen, name: str) -> str:
    return seen.unreadable.get(name) or f"there is no kind {name}"


def _listed(names: Iterable[str], most: int = 5) -> str:
    def parts() -> Iterator[str]:
        every = list(names)
        yield from every[:most]
        if len(every) > most:
            yield f"{len(every) - most} more"

    return ", ".join(parts())
