"""Which networks Multus attaches a pod to: its two annotations, in both of the forms in which people write them.

Multus itself reads the same annotations before any plugin runs. What it would refuse is refused here too, by annotation
and value; what it adds to an entry that is incomplete (the namespace, the interface's name) is added here.

An annotation is a JSON list when it contains any of ``[ { "``, else a comma list of ``namespace/name@interface``, of
which only the name has to be there.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, field

from api.annotations import MULTUS_DEFAULT_NETWORK, MULTUS_NETWORKS, AnnotationMeaningError, decode

FIRST_NIC: Final = "eth0"
"""The interface that the default network makes; kubelet names it so."""
CLUSTER_NETWORK: Final = "MULTUS_CLUSTER_NETWORK"
"""The setting that names the default network of pods that say nothing."""

_JSON_MARKS: Final = frozenset('[{"')
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_SUBDOMAIN: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII
)
_INTERFACE: Final = re.compile(r"[^\s/:%\x00-\x1f\x7f]+")
_INTERFACE_BYTES: Final = 15
"""The kernel refuses to look for a longer name: not even a DEL could."""
_MAC: Final = re.compile(
    r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4,18})|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2,9}",
    re.ASCII | re.IGNORECASE,
)
_FOLDERS: Final = frozenset({".", ".."})
"""What no file of the kernel's can be called."""
_LENGTH: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
_MAC_BYTES: Final = frozenset({6, 8, 20})
_DEVICE: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,253}")
_WANT: Final = (
    'want namespace/name@interface, separated by commas, or [{"name":"lan","namespace":"ns","interface":"net1"}]'
)


type _Rate = Annotated[int, Meta(ge=0)]
type _Port = Annotated[int, Meta(ge=1, le=65535)]


class Bandwidth(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """How much an interface may carry. Bits, and bits a second; 0: nothing is said."""

    ingress_rate: _Rate = 0
    ingress_burst: _Rate = 0
    egress_rate: _Rate = 0
    egress_burst: _Rate = 0


class PortMapping(Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A port of the node that leads to one of the pod."""

    host_port: _Port
    container_port: _Port
    protocol: str = ""
    host_ip: str = field(default="", name="hostIP")


class Network(Struct, frozen=True, kw_only=True):
    """One attachment of a pod: a NetworkAttachmentDefinition, and what the pod asks of it."""

    name: str
    namespace: str
    interface: str
    """Inside the pod: the one that was asked for, else ``net1`` for the first, ``net2`` for the second and so on."""
    ips: tuple[str, ...] = ()
    """Addresses that are asked for, with or without a prefix length."""
    mac: str = ""
    default_route: tuple[str, ...] = ()
    """Gateways of the default routes that are asked for on this interface."""
    cni_args: str = ""
    """A JSON object for the plugin; empty where none was given."""
    infiniband_guid: str = ""
    bandwidth: Bandwidth | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    device_id: str = ""
    """The device that is asked for."""

    def __str__(self) -> str:
        """As `multusName` and the comma list spell it."""
        return f"{self.namespace}/{self.name}"


class _Entry(Struct, frozen=True):
    """An entry as written. Its further keys are for other plugins."""

    name: str = ""
    namespace: str = ""
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    default_route: tuple[str, ...] = field(default=(), name="default-route")
    cni_args: dict[str, Any] | None = field(default=None, name="cni-args")
    infiniband_guid: str = field(default="", name="infiniband-guid")
    bandwidth: dict[str, Any] | None = None
    port_mappings: tuple[dict[str, Any], ...] = field(default=(), name="portmappings")
    device_id: str = field(default="", name="deviceid")
    interface_request: str = field(default="", name="interfacerequest")
    """How `interface` was spelt once; Multus reads both."""


def networks(annotations: Mapping[str, str], *, namespace: str) -> tuple[Network, ...]:
    """Parse `MULTUS_NETWORKS`: the attachments behind the first NIC, in their order; empty where the pod has none.

    `namespace` is the pod's, for entries without one. Raises `AnnotationError`: not readable, a name that cannot be, an
    interface that two of them would get, two default routes.
    """
    value = annotations.get(MULTUS_NETWORKS, "")
    if not value:
        return ()
    found = tuple(
        _network(MULTUS_NETWORKS, value, entry, namespace=namespace, interface=f"net{index}")
        for index, entry in enumerate(_entries(MULTUS_NETWORKS, value), start=1)
    )
    taken = {FIRST_NIC}
    for network in found:
        if network.interface in taken:
            raise AnnotationMeaningError(
                MULTUS_NETWORKS, value, f"interface {network.interface} is that of another network of the pod"
            )
        taken.add(network.interface)
    gateways = [gateway for network in found for gateway in network.default_route]
    for version in (4, 6):
        rivals = [gateway for gateway in gateways if ipaddress.ip_address(gateway).version == version]
        if len(rivals) > 1:
            problem = f"default-route {' and '.join(rivals)}: a pod has one IPv{version} default route"
            raise AnnotationMeaningError(MULTUS_NETWORKS, value, problem)
    return found


def default_network(annotations: Mapping[str, str], *, namespace: str) -> Network | None:
    """Parse `MULTUS_DEFAULT_NETWORK`, what makes the first NIC; None where the pod leaves that to the cluster.

    `namespace` is that of the agents, for an entry without one. Raises `AnnotationError`, also where there are several.
    """
    value = annotations.get(MULTUS_DEFAULT_NETWORK, "")
    return _single(MULTUS_DEFAULT_NETWORK, value, namespace) if value else None


def cluster_network(value: str, *, namespace: str) -> Network | None:
    """Read the setting `CLUSTER_NETWORK`; None where it is empty. Raises `AnnotationError` with that key."""
    return _single(CLUSTER_NETWORK, value, namespace) if value else None


def joined(annotations: Mapping[str, str], more: Iterable[tuple[str, str]], *, namespace: str) -> str:
    """The value of `MULTUS_NETWORKS` with these networks, by namespace and name, behind those that are named already.

    One that is named is not added. The value keeps its form. An interface is named only where it would have got the
    name of another one. `namespace` is the pod's. Raises `AnnotationError` where the value is no good as it is.
    """
    own = networks(annotations, namespace=namespace)
    value = annotations.get(MULTUS_NETWORKS, "")
    there = {(network.namespace, network.name) for network in own}
    added = [path for path in dict.fromkeys(more) if path not in there]
    taken = {FIRST_NIC, *(network.interface for network in own)}
    entries: list[dict[str, str]] = []
    for index, (where, name) in enumerate(added, start=len(own) + 1):
        interface = next(each for number in count(index) if (each := f"net{number}") not in taken)
        taken.add(interface)
        entry = {"name": name, "namespace": where}
        entries.append(entry if interface == f"net{index}" else entry | {"interface": interface})
    if not entries:
        return value
    if not _JSON_MARKS.isdisjoint(value):
        return msgspec.json.encode([*msgspec.json.decode(value), *entries]).decode()
    said = [f"{it['namespace']}/{it['name']}{_at(it.get('interface', ''))}" for it in entries]
    return ",".join([value, *said] if value else said)


def _at(interface: str) -> str:
    return f"@{interface}" if interface else ""


def _single(key: str, value: str, namespace: str) -> Network:
    entries = _entries(key, value)
    if len(entries) != 1:
        raise AnnotationMeaningError(key, value, f"names {len(entries)} networks, want one")
    return _network(key, value, entries[0], namespace=namespace, interface=FIRST_NIC)


def _entries(key: str, value: str) -> tuple[_Entry, ...]:
    if not _JSON_MARKS.isdisjoint(value):
        return decode(key, value, tuple[_Entry, ...], _WANT)
    return tuple(_written(key, value, item.strip()) for item in value.split(","))


def _written(key: str, value: str, item: str) -> _Entry:
    """One item of a comma list. Multus takes an empty namespace or interface for none, so that is right here."""
    path, _, interface = item.partition("@")
    namespace, _, name = path.rpartition("/")
    if "/" in namespace or "@" in interface:
        raise AnnotationMeaningError(key, value, f"{item!r} has more than one / or @; {_WANT}")
    return _Entry(name=name.strip(), namespace=namespace.strip(), interface=interface.strip())


def _network(key: str, value: str, entry: _Entry, *, namespace: str, interface: str) -> Network:
    """An entry, checked and completed."""
    asked = entry.interface or entry.interface_request
    for what, seen, right, want in _checks(entry, asked):
        if not right:
            raise AnnotationMeaningError(key, value, f"{what} {seen!r}: want {want}")
    bandwidth = None
    if entry.bandwidth is not None:
        (bandwidth,) = _typed(key, value, "bandwidth", (entry.bandwidth,), Bandwidth)
    return Network(
        name=entry.name,
        namespace=entry.namespace or namespace,
        interface=asked or interface,
        ips=entry.ips,
        mac=entry.mac,
        default_route=entry.default_route,
        cni_args="" if entry.cni_args is None else msgspec.json.encode(entry.cni_args).decode(),
        infiniband_guid=entry.infiniband_guid,
        bandwidth=bandwidth,
        port_mappings=_typed(key, value, "portMappings", entry.port_mappings, PortMapping),
        device_id=entry.device_id,
    )


def _checks(entry: _Entry, interface: str) -> Iterator[tuple[str, str, bool, str]]:
    """Of each text in an entry: its key, its value, whether that is right, and what would be."""
    namespace, guid, device = entry.namespace, entry.infiniband_guid, entry.device_id
    yield "name", entry.name, bool(_SUBDOMAIN.fullmatch(entry.name)), "the name of a NetworkAttachmentDefinition"
    yield "namespace", namespace, not namespace or bool(_LABEL.fullmatch(namespace)), "the name of a namespace"
    fits = _INTERFACE.fullmatch(interface) and interface not in _FOLDERS and len(interface.encode()) <= _INTERFACE_BYTES
    yield "interface", interface, not interface or bool(fits), "1 to 15 bytes without spaces, /, : and %"
    for text in entry.ips:
        yield "ips", text, _is_address(text, prefix=True), "an address, with or without a prefix length"
    for text in entry.default_route:
        yield "default-route", text, _is_address(text), "an address"
    yield "mac", entry.mac, not entry.mac or bool(hardware_address(entry.mac)), "a MAC address"
    yield "infiniband-guid", guid, not guid or bool(hardware_address(guid)), "a GUID such as c2:11:22:33:44:55:66:77"
    fits = _DEVICE.fullmatch(device) and device not in _FOLDERS
    yield "deviceID", device, not device or bool(fits), "the name of a device, without spaces and /"


def _typed[T: Struct](
    key: str, value: str, what: str, items: Iterable[Mapping[str, Any]], shape: type[T]
) -> tuple[T, ...]:
    """Objects inside of an entry, whose keys may be in any letter case too."""
    spelt = {name.lower(): name for name in shape.__struct_encode_fields__}
    found = []
    for item in items:
        known = {spelt.get(name.lower(), name): it for name, it in item.items() if it is not None}
        try:
            found.append(msgspec.convert(known, shape))
        except msgspec.ValidationError as error:
            raise AnnotationMeaningError(key, value, f"{what}: {error}") from error
    return tuple(found)


def hardware_address(text: str) -> bytes:
    """6, 8 or 20 bytes, as Go and so Multus and the reference plugins read them; empty for what is none.

    With colons, with hyphens, or in threes with dots.
    """
    raw = bytes.fromhex(re.sub("[:.-]", "", text)) if _MAC.fullmatch(text) else b""
    return raw if len(raw) in _MAC_BYTES else b""


def _is_address(text: str, *, prefix: bool = False) -> bool:
    """Whether it is an IP address; with `prefix` it may have a prefix length."""
    address, slash, length = text.partition("/")
    try:
        most = ipaddress.ip_address(address).max_prefixlen
    except ValueError:
        return False
    if "%" in address or (slash and not prefix):
        return False
    return not slash or (_LENGTH.fullmatch(length) is not None and int(length) <= most)
