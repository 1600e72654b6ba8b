"""What is asked of the coordinator's settings, wherever an object has them.

They are a SpiderCoordinator's spec, and the block `coordinator` of a SpiderMultusConfig. What is refused
here a node would refuse, too (`cni.coordination.settings`), only later, and for each pod anew.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from msgspec import structs

from admission.errors import FieldError, invalid, required
from api.coordinator import CoordinatorSpec
from api.route import Route
from cni.coordination.settings import LONGEST_QUEUE, VETH_MTU, link_address

_MAC_PREFIX: Final = re.compile(r"[0-9a-f]{2}:[0-9a-f]{2}", re.ASCII | re.IGNORECASE)
_TABLES: Final = {0: "unspec", 253: "default", 254: "main", 255: "local"}
"""Routing tables that the kernel has by these names (linux/rtnetlink.h)."""
_HIGHEST_TABLE: Final = (1 << 32) - 1
_RP_FILTERS: Final = (0, 1, 2)
_NIC_BYTES: Final = 15


def completed(spec: CoordinatorSpec) -> CoordinatorSpec:
    """With what an author may leave out, and networks in their one form. What cannot be read stays as it is."""
    return structs.replace(
        spec,
        mode=spec.mode or "auto",
        hijack_cidr=[_as_network(text) for text in spec.hijack_cidr],
        policy_routes=[Route(dst=_as_network(route.dst), gw=route.gw) for route in spec.policy_routes],
        tune_pod_routes=spec.tune_pod_routes is not False,
        host_rule_table=500 if spec.host_rule_table is None else spec.host_rule_table,
        pod_rp_filter=spec.pod_rp_filter or 0,
        tx_queue_len=spec.tx_queue_len or 0,
    )


def coordination_errors(field: str, spec: CoordinatorSpec) -> list[FieldError]:
    """All that is wrong with the settings; `field` is where they stand, for example ``spec.coordinator``."""
    return [
        *_hijack_errors(f"{field}.hijackCIDR", spec.hijack_cidr),
        *_route_errors(f"{field}.policyRoutes", spec.policy_routes),
        *_mac_errors(f"{field}.podMACPrefix", spec.pod_mac_prefix),
        *_nic_errors(f"{field}.podDefaultRouteNIC", spec.pod_default_route_nic),
        *_number_errors(field, spec),
        *_link_errors(f"{field}.vethLinkAddress", spec.veth_link_address),
    ]


def _hijack_errors(field: str, entries: list[str]) -> Iterator[FieldError]:
    for at, text in enumerate(entries):
        if _network(text) is None:
            yield invalid(f"{field}[{at}]", text, "expected an address or a CIDR such as 169.254.0.0/16")


def _route_errors(field: str, routes: list[Route]) -> Iterator[FieldError]:
    for at, route in enumerate(routes):
        destination, gateway = _network(route.dst), _address_version(route.gw)
        if destination is None:
            yield invalid(f"{field}[{at}].dst", route.dst, "expected an address or a CIDR such as 10.0.0.0/8")
        if not route.gw:
            yield required(f"{field}[{at}].gw", "the IP address of the next hop")
        elif gateway is None:
            yield invalid(f"{field}[{at}].gw", route.gw, "expected the IP address of the next hop")
        elif destination is not None and destination.version != gateway:
            yield invalid(
                f"{field}[{at}].gw", route.gw, f"IPv{gateway}, and dst {route.dst} is IPv{destination.version}"
            )


def _mac_errors(field: str, text: str | None) -> Iterator[FieldError]:
    if not text:
        return
    if not _MAC_PREFIX.fullmatch(text):
        yield invalid(field, text, "expected the first two bytes of a MAC address, as 0a:1b")
    elif int(text[:2], 16) & 1:
        yield invalid(field, text, "it begins a multicast address: the lowest bit of the first byte must be 0")


def _nic_errors(field: str, text: str | None) -> Iterator[FieldError]:
    if not text:
        return
    if len(text.encode()) > _NIC_BYTES or text in {".", ".."} or re.search(r"[\s/:]", text):
        yield invalid(field, text, f"expected the name of an interface: up to {_NIC_BYTES} bytes, no space, / or :")


def _number_errors(field: str, spec: CoordinatorSpec) -> Iterator[FieldError]:
    table, queue, mtu = spec.host_rule_table, spec.tx_queue_len, spec.veth_mtu
    if table is not None and table in _TABLES:
        text = f"the kernel's own table {_TABLES[table]}; take another one, as 500"
        yield invalid(f"{field}.hostRuleTable", table, text)
    elif table is not None and not 0 < table <= _HIGHEST_TABLE:
        yield invalid(f"{field}.hostRuleTable", table, f"expected the number of a routing table, 1 to {_HIGHEST_TABLE}")
    if spec.pod_rp_filter is not None and spec.pod_rp_filter > max(_RP_FILTERS):
        text = "expected 0, 1 or 2, or a negative number to leave it alone"
        yield invalid(f"{field}.podRPFilter", spec.pod_rp_filter, text)
    if queue is not None and not 0 <= queue <= LONGEST_QUEUE:
        yield invalid(f"{field}.txQueueLen", queue, f"expected 0 to {LONGEST_QUEUE}; 0 leaves it alone")
    if mtu is not None and not VETH_MTU[0] <= mtu <= VETH_MTU[1]:
        yield invalid(f"{field}.vethMTU", mtu, f"expected {VETH_MTU[0]} to {VETH_MTU[1]} bytes")


def _link_errors(field: str, text: str | None) -> Iterator[FieldError]:
    if not text:
        return
    try:
        link_address(text)
    except ValueError:
        yield invalid(field, text, "expected one IPv4 address of an interface, as 169.254.100.1")


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text, strict=False) if "%" not in text else None
    except ValueError:
        return None


def _as_network(text: str) -> str:
    found = _network(text)
    return text if found is None else str(found)


def _address_version(text: str) -> int | None:
    try:
        return ip_address(text).version if "%" not in text else None
    except ValueError:
        return None
