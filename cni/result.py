"""What an ADD answers: one neutral structure, written in every CNI version from 0.3.0 to 1.1.0, and read in all.

Differences between the versions: before 1.0.0 an ip carries `version: "4"|"6"`; from 1.1.0 an interface may have
`mtu`, `socketPath` and `pciID`, a route `mtu`, `advmss`, `priority`, `table` and `scope`. An IPAM plugin's result has
no interfaces, and its ips point at none.
"""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec
from msgspec import Struct

from cni.config import Dns, without_nulls
from cni.errors import CniError, InvalidConfig

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST_VERSION = SUPPORTED_VERSIONS[-1]
DEFAULT_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
"""The destination of a default route, by IP version."""


class Interface(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One interface that the plugin made or touched."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    """Path of the network namespace; empty for one of the node's own interfaces."""
    socket_path: str = msgspec.field(name="socketPath", default="")
    pci_id: str = msgspec.field(name="pciID", default="")


class IpConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One address."""

    address: str
    """With its prefix length, "10.0.0.5/16"."""
    gateway: str = ""
    interface: int | None = None
    """Index into the result's interfaces."""


class RouteConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One route. Without `gw` the gateway of the ips of its family serves."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class Result(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CNI result without its version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    dns: Dns = Dns()

    def for_ipam(self) -> "Result":
        """The same as an IPAM plugin says it."""
        ips = tuple(msgspec.structs.replace(ip, interface=None) for ip in self.ips)
        return msgspec.structs.replace(self, interfaces=(), ips=ips)


def with_mac(result: Result, ifname: str, mac: str) -> Result:
    """The same with another MAC address of the container's interface of that name."""
    interfaces = tuple(
        msgspec.structs.replace(one, mac=mac) if one.name == ifname and one.sandbox else one
        for one in result.interfaces
    )
    return msgspec.structs.replace(result, interfaces=interfaces)


_PLAIN_INTERFACE = ("name", "mac", "sandbox")
_PLAIN_ROUTE = ("dst", "gw")


def encode_result(result: Result, version: str) -> bytes:
    """`result` as JSON of the CNI version `version`, one of `SUPPORTED_VERSIONS`."""
    rich = version == "1.1.0"
    tree: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        tree["interfaces"] = [_fields(one, None if rich else _PLAIN_INTERFACE) for one in result.interfaces]
    ips = []
    for ip in result.ips:
        fields = _fields(ip)
        if version.startswith("0."):
            fields["version"] = "6" if ":" in ip.address else "4"
        ips.append(fields)
    if ips:
        tree["ips"] = ips
    if result.routes:
        tree["routes"] = [_fields(one, None if rich else _PLAIN_ROUTE) for one in result.routes]
    tree["dns"] = _fields(result.dns)
    return msgspec.json.encode(tree)


def decode_result(tree: object, *, field: str = "prevResult") -> Result:
    """The neutral form of a decoded result of any version; keys that we don't know are dropped.

    Args:
        tree: the result as decoded JSON, its own cniVersion in it or not.
        field: where it was found, for the error.

    Raises:
        InvalidConfig: a value has the wrong type, or is no address or network where it should be one.
    """
    problem = f"{field} is not a CNI result"
    try:
        result = msgspec.convert(_of_families(without_nulls(tree)), Result)
    except msgspec.ValidationError as error:
        raise InvalidConfig(problem, str(error)) from None
    except RecursionError:
        raise InvalidConfig(problem, "it is nested too deeply") from None
    for what, text, right in _texts(result):
        try:
            right(text)
        except ValueError as error:
            raise InvalidConfig(problem, f"{what}: {error}") from None
    return result


def _of_families(tree: object) -> object:
    """What results before 0.3.0 say of each IP version, as later ones say it: plugins of that age are still called."""
    if not isinstance(tree, Mapping) or tree.keys().isdisjoint({"ip4", "ip6"}):
        return tree
    ips, routes = [], []
    for said in (tree.get("ip4"), tree.get("ip6")):
        if isinstance(said, Mapping):
            ips.append({"address": said.get("ip"), "gateway": said.get("gateway", "")})
            more = said.get("routes", [])
            routes += more if isinstance(more, list) else [more]
    return {**tree, "ips": ips, "routes": routes}


def _texts(result: Result) -> Iterator[tuple[str, str, Callable[[str], object]]]:
    """Where a result names an address or network: the key, what it says, and what reads it. Raises `ValueError`."""
    for at, ip in enumerate(result.ips):
        yield f"ips[{at}].address", ip.address, ip_interface
        if ip.gateway:
            yield f"ips[{at}].gateway", ip.gateway, ip_address
    for at, route in enumerate(result.routes):
        yield f"routes[{at}].dst", route.dst, ip_interface
        if route.gw:
            yield f"routes[{at}].gw", route.gw, ip_address


def encode_error(error: CniError, version: str) -> bytes:
    """The error object that goes on stdout. An unsupported `version` is answered in the latest."""
    tree: dict[str, Any] = {
        "cniVersion": version if version in SUPPORTED_VERSIONS else LATEST_VERSION,
        "code": error.code,
        "msg": error.msg,
    }
    if error.details:
        tree["details"] = error.details
    return msgspec.json.encode(tree)


def encode_versions() -> bytes:
    """The answer to VERSION."""
    return msgspec.json.encode({"cniVersion": LATEST_VERSION, "supportedVersions": list(SUPPORTED_VERSIONS)})


def _fields(struct: Struct, keys: tuple[str, ...] | None = None) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(struct)
    return tree if keys is None else {key: value for key, value in tree.items() if key in keys}
