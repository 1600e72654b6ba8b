"""The original's agent API: what its plugins send to the socket and what they expect back. Pure.

So a node can be moved over while the original's plugins are still on it, and programs that look a pod up at the agent
go on doing so. Bodies are JSON objects; a key that is null counts as absent, one that is not known is let through, as
the original's server does. A known one with a wrong value is refused with its name and the value, and so is one that is
missing. An error's body is a JSON string.
"""

import re
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from api.route import Route
from api.wire import Address, FoundCoordinator, FoundEndpoint, NicGrant, PodRef
from cni.config import IpamConfig, NetConfig, kind_of, locate, shown, without_nulls
from cni.journal import JournalEntry
from cni.plan import Assigned
from cni.protocol import IPAM_TYPE, Invocation, PodArgs, Role, Verb, container_id_problem, ifname_problem

IP = "/v1/ipam/ip"
IPS = "/v1/ipam/ips"
HEALTHY = "/v1/ipam/healthy"
ENDPOINT = "/v1/workloadendpoint"
COORDINATOR = "/v1/coordinator/config"

STATELESS_FORBIDDEN = 521
"""Giving conflicting addresses back is switched off."""
STATEFUL_FORBIDDEN = 522
"""Or the pod keeps its addresses for good."""

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9._-]{0,253}")
_PATH_MAX = 4096


class BadRequest(Exception):
    """The request says something that cannot be; the text names the field and the value."""


class AddArgs(Struct, frozen=True, kw_only=True):
    """Body of POST /ipam/ip."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str = msgspec.field(name="ifName")
    netns: str = msgspec.field(name="netNamespace")
    namespace: str = msgspec.field(name="podNamespace")
    name: str = msgspec.field(name="podName")
    uid: str = msgspec.field(name="podUID")
    """May be empty."""
    default_ipv4: tuple[str, ...] = msgspec.field(name="defaultIPv4IPPool", default=())
    default_ipv6: tuple[str, ...] = msgspec.field(name="defaultIPv6IPPool", default=())
    clean_gateway: bool = msgspec.field(name="cleanGateway", default=False)
    match_master_subnet: bool = msgspec.field(name="matchMasterSubnet", default=False)

    def invocation(self) -> Invocation:
        """The same as a call of our own IPAM plugin."""
        return Invocation(
            verb=Verb.ADD,
            type=IPAM_TYPE,
            role=Role.IPAM,
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            args=PodArgs(namespace=self.namespace, name=self.name, uid=self.uid),
            conf=NetConfig(
                ipam=IpamConfig(
                    type=IPAM_TYPE,
                    default_ipv4_ippool=self.default_ipv4,
                    default_ipv6_ippool=self.default_ipv6,
                    clean_gateway=self.clean_gateway,
                    match_master_subnet=self.match_master_subnet,
                )
            ),
        )


class DelArgs(Struct, frozen=True, kw_only=True):
    """Body of DELETE /ipam/ip."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str = msgspec.field(name="ifName")
    namespace: str = msgspec.field(name="podNamespace")
    name: str = msgspec.field(name="podName")
    uid: str = msgspec.field(name="podUID")
    netns: str = msgspec.field(name="netNamespace", default="")

    def invocation(self) -> Invocation:
        """The same as a call of our own IPAM plugin."""
        return Invocation(
            verb=Verb.DEL,
            type=IPAM_TYPE,
            role=Role.IPAM,
            container_id=self.container_id,
            netns=self.netns,
            ifname=self.ifname,
            args=PodArgs(namespace=self.namespace, name=self.name, uid=self.uid),
            conf=NetConfig(ipam=IpamConfig(type=IPAM_TYPE)),
        )


class BatchDelArgs(Struct, frozen=True, kw_only=True):
    """Body of DELETE /ipam/ips: all that a container has, because a plugin found somebody else on an address."""

    container_id: str = msgspec.field(name="containerID")
    namespace: str = msgspec.field(name="podNamespace")
    name: str = msgspec.field(name="podName")
    uid: str = msgspec.field(name="podUID")
    netns: str = msgspec.field(name="netNamespace", default="")
    conflict: bool = msgspec.field(name="isReleaseConflictIPs", default=False)
    """Whether that is the reason; then nobody gets the addresses for a while."""

    def of_interface(self, ifname: str) -> DelArgs:
        """The same for one interface."""
        return DelArgs(
            container_id=self.container_id,
            ifname=ifname,
            namespace=self.namespace,
            name=self.name,
            uid=self.uid,
            netns=self.netns,
        )


class _PodKey(Struct, frozen=True, kw_only=True):
    """Body of GET /coordinator/config, and query of GET /workloadendpoint."""

    namespace: str = msgspec.field(name="podNamespace")
    name: str = msgspec.field(name="podName")


def read_add(body: bytes) -> AddArgs:
    """Raises `BadRequest`."""
    return _decode(body, AddArgs)


def read_del(body: bytes) -> DelArgs:
    """Raises `BadRequest`."""
    return _decode(body, DelArgs)


def read_batch_del(body: bytes) -> BatchDelArgs:
    """Raises `BadRequest`."""
    return _decode(body, BatchDelArgs)


def read_pod(body: bytes) -> PodRef:
    """The pod that a body names. Raises `BadRequest`."""
    key = _decode(body, _PodKey)
    return PodRef(namespace=key.namespace, name=key.name)


def read_pod_query(query: str) -> PodRef:
    """The pod that a query string names. Raises `BadRequest`."""
    given: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, errors="replace"):
        if key in given:
            raise BadRequest(f"{key}: given twice, {shown(given[key])} and {shown(value)}")
        given[key] = value
    for key in ("podNamespace", "podName"):
        if key not in given:
            raise BadRequest(f"{key}: missing from the query {shown(query)}")
    _check("podNamespace", given["podNamespace"])
    _check("podName", given["podName"])
    return PodRef(namespace=given["podNamespace"], name=given["podName"])


# -- checks ------------------------------------------------------------------------------------------------------------


def _netns_problem(path: str) -> str:
    if not path.startswith("/"):
        return "expected an absolute path"
    if "\0" in path or len(path.encode()) > _PATH_MAX:
        return f"expected at most {_PATH_MAX} bytes, none of them zero"
    return ""


def _pattern(pattern: re.Pattern[str]) -> Callable[[str], str]:
    return lambda text: "" if pattern.fullmatch(text) else f"expected {pattern.pattern}"


_PROBLEMS: dict[str, Callable[[str], str]] = {
    "containerID": container_id_problem,
    "ifName": lambda text: ifname_problem(text) if text else "it is empty",
    "netNamespace": _netns_problem,
    "podNamespace": _pattern(_NAMESPACE),
    "podName": _pattern(_NAME),
    "podUID": _pattern(_UID),
}


def _check(name: str, value: str) -> None:
    problem = _PROBLEMS[name](value)
    if problem:
        raise BadRequest(f"{name}: {shown(value)} is not valid: {problem}")


def _decode[T: Struct](body: bytes, kind: type[T]) -> T:
    try:
        tree = without_nulls(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error)
        if "truncated" in problem:
            problem = f"it ends in the middle, at byte {len(body)}" if body else "it is empty"
        raise BadRequest(f"body: it is not JSON: {problem}") from None
    if not isinstance(tree, dict):
        raise BadRequest(f"body: expected a JSON object, it is a JSON {kind_of(tree)}: {shown(tree)}")
    fields = msgspec.structs.fields(kind)
    for field in fields:
        if field.required and field.encode_name not in tree:
            raise BadRequest(f"{field.encode_name}: missing from the body")
    try:
        decoded = msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        name, value, problem = locate(error, tree)
        raise BadRequest(f"{name}: {shown(value)} is not valid: {problem}") from None
    for field in fields:
        value = getattr(decoded, field.name)
        if field.encode_name in _PROBLEMS and (value or field.required):
            _check(field.encode_name, value)
    return decoded


# -- answers -----------------------------------------------------------------------------------------------------------


class _IpConfig(Struct, frozen=True, omit_defaults=True, rename="camel"):
    version: int
    address: str
    nic: str
    enable_gateway_detection: bool
    enable_ip_conflict_detection: bool = msgspec.field(name="enableIPConflictDetection")
    ip_pool: str = ""
    gateway: str = ""
    vlan: int = 0
    mac: str = ""


class _Route(Struct, frozen=True, rename="camel"):
    if_name: str
    dst: str
    gw: str


class _Added(Struct, frozen=True):
    ips: tuple[_IpConfig, ...]
    routes: tuple[_Route, ...]


class _Interface(Struct, frozen=True, omit_defaults=True):
    interface: str
    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    vlan: int = 0
    ipv4_pool: str = msgspec.field(name="ipv4Pool", default="")
    ipv6_pool: str = msgspec.field(name="ipv6Pool", default="")
    ipv4_gateway: str = msgspec.field(name="ipv4Gateway", default="")
    ipv6_gateway: str = msgspec.field(name="ipv6Gateway", default="")
    routes: tuple[_Route, ...] = ()


class _Endpoint(Struct, frozen=True, rename="camel"):
    pod_namespace: str
    pod_name: str
    pod_uid: str = msgspec.field(name="podUID")
    node: str
    interfaces: tuple[_Interface, ...]


class _Coordinator(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    overlay_pod_cidr: tuple[str, ...] = msgspec.field(name="overlayPodCIDR")
    service_cidr: tuple[str, ...] = msgspec.field(name="serviceCIDR")
    mode: str
    tune_pod_routes: bool
    hijack_cidr: tuple[str, ...] = msgspec.field(name="hijackCIDR", default=())
    policy_routes: tuple[Route, ...] = ()
    pod_mac_prefix: str = msgspec.field(name="podMACPrefix", default="")
    pod_default_route_nic: str = msgspec.field(name="podDefaultRouteNIC", default="")
    host_rule_table: int
    pod_rp_filter: int = msgspec.field(name="podRPFilter")
    tx_queue_len: int
    veth_link_address: str = ""
    veth_mtu: int = msgspec.field(name="vethMTU")


def error_body(text: str) -> bytes:
    """An error."""
    return msgspec.json.encode(text)


def add_body(grants: Iterable[NicGrant], *, gateway_detection: bool = False, conflict_detection: bool = False) -> bytes:
    """Answer to POST /ipam/ip: what each NIC of the pod has; the flags say what the plugin is to probe."""
    grants = tuple(grants)
    return msgspec.json.encode(
        _Added(
            ips=tuple(
                _IpConfig(
                    version=address.version,
                    address=address.address,
                    nic=grant.nic,
                    enable_gateway_detection=gateway_detection,
                    enable_ip_conflict_detection=conflict_detection,
                    ip_pool=address.pool,
                    gateway=address.gateway,
                    vlan=address.vlan,
                    mac=address.mac,
                )
                for grant in grants
                for address in grant.addresses
            ),
            routes=tuple(_Route(grant.nic, route.dst, route.gw) for grant in grants for route in grant.routes),
        )
    )


def endpoint_body(pod: PodRef, found: FoundEndpoint) -> bytes:
    """Answer to GET /workloadendpoint."""
    return msgspec.json.encode(
        _Endpoint(
            pod_namespace=pod.namespace,
            pod_name=pod.name,
            pod_uid=found.uid,
            node=found.node,
            interfaces=tuple(
                _Interface(
                    interface=one.interface,
                    ipv4=one.ipv4 or "",
                    ipv6=one.ipv6 or "",
                    mac=one.mac or "",
                    vlan=one.vlan or 0,
                    ipv4_pool=one.ipv4_pool or "",
                    ipv6_pool=one.ipv6_pool or "",
                    ipv4_gateway=one.ipv4_gateway or "",
                    ipv6_gateway=one.ipv6_gateway or "",
                    routes=tuple(_Route(one.interface, route.dst, route.gw) for route in one.routes),
                )
                for one in found.nics
            ),
        )
    )


def coordinator_body(found: FoundCoordinator) -> bytes:
    """Answer to GET /coordinator/config."""
    values = found.coordination
    return msgspec.json.encode(
        _Coordinator(
            overlay_pod_cidr=values.overlay_pod_cidr,
            service_cidr=values.service_cidr,
            # The object says "disabled" and the original's plugin knows only "disable".
            mode="disable" if values.mode == "disabled" else values.mode,
            tune_pod_routes=found.tune_pod_routes,
            hijack_cidr=values.hijack_cidr,
            policy_routes=values.policy_routes,
            pod_mac_prefix=values.pod_mac_prefix,
            pod_default_route_nic=found.default_route_nic,
            host_rule_table=values.host_rule_table,
            pod_rp_filter=values.pod_rp_filter,
            tx_queue_len=values.tx_queue_len,
            veth_link_address=values.veth_link_address,
            veth_mtu=values.veth_mtu,
        )
    )


def grants_of(ifname: str, entries: Iterable[JournalEntry]) -> tuple[NicGrant, ...]:
    """What a pod's NICs have, by what the journal says of its container: `ifname` first, then the others by name."""
    entries = tuple(entries)
    found: dict[str, NicGrant] = {}
    for entry in entries:
        for other in entry.others:
            found.setdefault(other.nic, other)
    for entry in entries:
        if entry.result is not None:
            found[entry.ifname] = _grant(entry)
    return tuple(grant for _, grant in sorted(found.items(), key=lambda item: (item[0] != ifname, item[0])))


def _assigned(address: Address, assigned: Assigned | None) -> Address:
    """With what a network provider says, which it does of IPv4 addresses."""
    if assigned is None or address.version != 4:
        return address
    return msgspec.structs.replace(address, vlan=assigned.vlan_id, mac=assigned.mac)


def _grant(entry: JournalEntry) -> NicGrant:
    assert entry.result is not None
    gateways = {ip.address: ip.gateway for ip in entry.result.ips}
    return NicGrant(
        nic=entry.ifname,
        addresses=tuple(
            _assigned(
                Address(
                    version=6 if ":" in address else 4, address=address, pool=pool, gateway=gateways.get(address, "")
                ),
                entry.assigned,
            )
            for address, pool in zip(entry.addresses, entry.pools, strict=True)
        ),
        routes=tuple(Route(dst=route.dst, gw=route.gw) for route in entry.result.routes),
    )
