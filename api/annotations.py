"""The annotations and labels by which users and the original's programs talk to us, and parsers for their values.

A parser returns None where the annotation is absent and raises `AnnotationError`, which names key and value, where the
value is not what it should be.
"""

import ipaddress
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from api.route import Route

_IPAM = "ipam.spidernet.io"
_CNI = "cni.spidernet.io"
_MULTUS = "multus.spidernet.io"

# -- on pods

POD_IPPOOL = f"{_IPAM}/ippool"
"""Pools for the NIC at hand: ``{"ipv4":["p1","p*"],"ipv6":["p2"]}``."""
POD_IPPOOLS = f"{_IPAM}/ippools"
"""Pools for every NIC: ``[{"interface":"eth0","ipv4":["p1"],"ipv6":["p2"],"cleangateway":false}]``."""
POD_ROUTES = f"{_IPAM}/routes"
"""Further routes: ``[{"dst":"10.0.0.0/16","gw":"192.168.1.1"}]``."""
POD_SUBNET = f"{_IPAM}/subnet"
"""Subnet for the automatic pool of one NIC: ``{"interface":"eth0","ipv4":["s4"],"ipv6":["s6"]}``."""
POD_SUBNETS = f"{_IPAM}/subnets"
"""The same for several NICs, as a list; wins over `POD_SUBNET`."""
IPPOOL_IP_NUMBER = f"{_IPAM}/ippool-ip-number"
"""Size of an automatic pool: ``"5"`` fixed, ``"+2"`` more than replicas. Also on automatic pools."""
IPPOOL_RECLAIM = f"{_IPAM}/ippool-reclaim"
"""Whether an automatic pool goes with its workload; true when absent. Also a label of automatic pools."""
DEFAULT_ROUTE_NIC = f"{_IPAM}/default-route-nic"
"""The NIC of the pod that gets the default route."""
RDMA_RESOURCE_INJECT = f"{_CNI}/rdma-resource-inject"
"""Which SpiderMultusConfigs' RDMA resources the pod asks for. On pods, namespaces and SpiderMultusConfigs."""
NETWORK_RESOURCE_INJECT = f"{_CNI}/network-resource-inject"
"""Which SpiderMultusConfigs' network resources the pod asks for. On pods, namespaces and SpiderMultusConfigs."""
MULTUS_DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
MULTUS_NETWORKS = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
"""What the pod's NICs have become, as a JSON list: written by whoever is its meta plugin."""
KUBEVIRT_MIGRATION_JOB = "kubevirt.io/migrationJobName"
STATIC_POD_HASH = "kubernetes.io/config.hash"
"""On a static pod's mirror: the uid by which the container runtime knows the pod."""

# -- on namespaces

NAMESPACE_DEFAULT_IPV4 = f"{_IPAM}/default-ipv4-ippool"
"""Pools for pods that name none: ``["p1","p2"]``."""
NAMESPACE_DEFAULT_IPV6 = f"{_IPAM}/default-ipv6-ippool"

# -- labels of pools and subnets

OWNER_SUBNET = f"{_IPAM}/owner-spider-subnet"
OWNER_APPLICATION_GV = f"{_IPAM}/owner-application-gv"
OWNER_APPLICATION_KIND = f"{_IPAM}/owner-application-kind"
OWNER_APPLICATION_NAMESPACE = f"{_IPAM}/owner-application-namespace"
OWNER_APPLICATION_NAME = f"{_IPAM}/owner-application-name"
"""A pool with this label was made automatically."""
OWNER_APPLICATION_UID = f"{_IPAM}/owner-application-uid"
POOL_INTERFACE = f"{_IPAM}/interface"
POOL_IP_VERSION = f"{_IPAM}/ip-version"
POOL_CIDR = f"{_IPAM}/ippool-cidr"
SUBNET_CIDR = f"{_IPAM}/subnet-cidr"
_DOTS, _COLONS = 3, 7
"""So many of them become dashes in these labels, as the original's programs write them."""

# -- annotations of automatic pools

SUBNET_SEEN = f"{_IPAM}/subnet-seen"
"""resourceVersion of the SpiderSubnet under which its owner wrote the pool's addresses last."""

# -- keys in the podAffinity of automatic pools, compared with the workload and not with pod labels

APP_API_GROUP = f"{_IPAM}/app-api-group"
APP_API_VERSION = f"{_IPAM}/app-api-version"
APP_KIND = f"{_IPAM}/app-kind"
APP_NAMESPACE = f"{_IPAM}/app-namespace"
APP_NAME = f"{_IPAM}/app-name"

# -- on NetworkAttachmentDefinitions

NETWORK_RESOURCE = "k8s.v1.cni.cncf.io/resourceName"
"""The resource of a device plugin whose device the network's interface is made of."""

# -- on SpiderMultusConfigs

MULTUS_CR_NAME = f"{_MULTUS}/cr-name"
MULTUS_CNI_VERSION = f"{_MULTUS}/cni-version"
CNI_CONFIG_NAME = f"{_CNI}/cniconfig-name"

_MOST_DIGITS = 18
"""Of a size; what Go's int takes."""


def cidr_label(subnet: str) -> str:
    """The value of `POOL_CIDR` and `SUBNET_CIDR`: ``10-6-0-0-16`` for 10.6.0.0/16."""
    return subnet.replace(".", "-", _DOTS).replace(":", "-", _COLONS).replace("/", "-")


class AnnotationError(ValueError):
    """An annotation whose value is not what it should be."""

    def __init__(self, key: str, value: str, problem: str) -> None:
        """`problem` says what is wrong with the value and what it should be."""
        super().__init__(f"annotation {key}: {problem}; the value is {value!r}")
        self.key = key
        self.value = value
        self.problem = problem


class AnnotationSyntaxError(AnnotationError):
    """The value is not JSON, or is JSON of another shape."""


class AnnotationMeaningError(AnnotationError):
    """The value has the right shape and asks for something that cannot be."""


class IPPoolAnnotation(Struct, frozen=True):
    """Pool names by family, in order of preference; None where the family was not mentioned."""

    ipv4: tuple[str, ...] | None = None
    ipv6: tuple[str, ...] | None = None


class NICPools(Struct, frozen=True):
    """The pools of one NIC."""

    interface: str = ""
    """Empty in all NICs of a pod or in none."""
    ipv4: tuple[str, ...] | None = None
    ipv6: tuple[str, ...] | None = None
    cleangateway: bool = False
    """Whether the NIC gets no default route."""


class NICSubnets(Struct, frozen=True):
    """The subnets of one NIC's automatic pools. Only the first name of a family counts."""

    interface: str = ""
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()


class PoolSize(Struct, frozen=True):
    """How many addresses an automatic pool is to have."""

    number: int
    flexible: bool
    """Whether `number` comes on top of the replicas."""


def pod_ippool(annotations: Mapping[str, str]) -> IPPoolAnnotation | None:
    """Parse `POD_IPPOOL`. Present but empty (``{}``) is not absent: it asks for no pool at all."""
    return _parse(annotations, POD_IPPOOL, IPPoolAnnotation, 'want {"ipv4":["pool"],"ipv6":["pool"]}')


def pod_ippools(annotations: Mapping[str, str]) -> tuple[NICPools, ...] | None:
    """Parse `POD_IPPOOLS`: at least one NIC, all with an interface or none, each interface once."""
    items = _parse(
        annotations, POD_IPPOOLS, tuple[NICPools, ...], 'want [{"interface":"eth0","ipv4":["pool"],"ipv6":["pool"]}]'
    )
    if items is None:
        return None
    value = annotations[POD_IPPOOLS]
    if not items:
        raise AnnotationMeaningError(POD_IPPOOLS, value, "names no NIC")
    named = [item.interface for item in items if item.interface]
    if named and len(named) < len(items):
        raise AnnotationMeaningError(POD_IPPOOLS, value, "interface has to be given for all NICs or for none")
    _refuse_repeated(POD_IPPOOLS, value, named)
    return items


def pod_routes(annotations: Mapping[str, str]) -> tuple[Route, ...]:
    """Parse `POD_ROUTES`: each a CIDR and a gateway of the same IP family. Empty where absent."""
    routes = _parse(annotations, POD_ROUTES, tuple[Route, ...], 'want [{"dst":"10.0.0.0/16","gw":"192.168.1.1"}]')
    if routes is None:
        return ()
    value = annotations[POD_ROUTES]
    for route in routes:
        try:
            destination = ipaddress.ip_network(route.dst, strict=False)
            gateway = ipaddress.ip_address(route.gw)
        except ValueError as error:
            raise AnnotationMeaningError(POD_ROUTES, value, str(error)) from error
        if "/" not in route.dst:
            raise AnnotationMeaningError(POD_ROUTES, value, f"dst {route.dst} has no prefix length")
        if destination.version != gateway.version:
            problem = f"dst {route.dst} is IPv{destination.version} and gw {route.gw} is IPv{gateway.version}"
            raise AnnotationMeaningError(POD_ROUTES, value, problem)
    return routes


def pod_subnets(annotations: Mapping[str, str]) -> tuple[NICSubnets, ...] | None:
    """Parse `POD_SUBNETS`, or else `POD_SUBNET`, whose interface is eth0 when it names none.

    Each NIC names a subnet; interface and subnet occur once each.
    """
    many = _parse(
        annotations, POD_SUBNETS, tuple[NICSubnets, ...], 'want [{"interface":"eth0","ipv4":["subnet"],"ipv6":[]}]'
    )
    if many is not None:
        key, items = POD_SUBNETS, many
    else:
        one = _parse(annotations, POD_SUBNET, NICSubnets, 'want {"interface":"eth0","ipv4":["subnet"],"ipv6":[]}')
        if one is None:
            return None
        key, items = POD_SUBNET, (msgspec.structs.replace(one, interface=one.interface or "eth0"),)
    value = annotations[key]
    if not items:
        raise AnnotationMeaningError(key, value, "names no NIC")
    for item in items:
        if not item.interface:
            raise AnnotationMeaningError(key, value, "interface is missing")
        if not item.ipv4 and not item.ipv6:
            raise AnnotationMeaningError(key, value, f"interface {item.interface} names no subnet")
        if "" in (*item.ipv4[:1], *item.ipv6[:1]):
            raise AnnotationMeaningError(key, value, f"interface {item.interface} has an empty subnet name")
    _refuse_repeated(key, value, [item.interface for item in items])
    _refuse_repeated(key, value, [name for item in items for name in (*item.ipv4[:1], *item.ipv6[:1])])
    return items


def ippool_ip_number(annotations: Mapping[str, str]) -> PoolSize | None:
    """Parse `IPPOOL_IP_NUMBER`."""
    value = annotations.get(IPPOOL_IP_NUMBER)
    if value is None:
        return None
    digits = value.removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS):
        raise AnnotationSyntaxError(IPPOOL_IP_NUMBER, value, 'want a number such as "5", or "+2"')
    return PoolSize(number=int(digits), flexible=value.startswith("+"))


def ippool_reclaim(annotations: Mapping[str, str]) -> bool:
    """Parse `IPPOOL_RECLAIM`, a truth value as Go spells them; true where absent."""
    value = annotations.get(IPPOOL_RECLAIM)
    if value is None or value in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if value in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise AnnotationSyntaxError(IPPOOL_RECLAIM, value, 'want "true" or "false"')


def namespace_default_pools(annotations: Mapping[str, str]) -> IPPoolAnnotation | None:
    """Parse a namespace's default pools; None where neither family names any."""
    want = 'want ["pool"]'
    ipv4 = _parse(annotations, NAMESPACE_DEFAULT_IPV4, tuple[str, ...], want)
    ipv6 = _parse(annotations, NAMESPACE_DEFAULT_IPV6, tuple[str, ...], want)
    return IPPoolAnnotation(ipv4=ipv4, ipv6=ipv6) if ipv4 or ipv6 else None


def decode[T](key: str, value: str, shape: type[T], want: str) -> T:
    """Read an annotation's JSON, keys in any letter case and null as absent: the original's decoder takes both.

    `want` shows an example. Raises `AnnotationSyntaxError`.
    """
    try:
        return msgspec.convert(_folded(msgspec.json.decode(value)), shape)
    except msgspec.ValidationError as error:
        raise AnnotationSyntaxError(key, value, f"{error}; {want}") from error
    except msgspec.DecodeError as error:
        raise AnnotationSyntaxError(key, value, f"not JSON ({error}); {want}") from error
    except RecursionError as error:
        raise AnnotationSyntaxError(key, value, f"nested too deeply; {want}") from error


def _folded(data: object) -> object:
    match data:
        case dict():
            return {key.lower(): item for key, item in data.items() if item is not None}
        case list():
            return [_folded(item) for item in data]
        case _:
            return data


def _parse[T](annotations: Mapping[str, str], key: str, shape: type[T], want: str) -> T | None:
    value = annotations.get(key)
    return None if value is None else decode(key, value, shape, want)


def _refuse_repeated(key: str, value: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise AnnotationMeaningError(key, value, f"{name} is named more than once")
