"""The cluster that the guest's Services are of: who serves, at which addresses and ports.

The rules that kube-proxy makes of it outside, and the namespaces that are its machines inside, have to agree.
"""

from __future__ import annotations

from typing import Any, Final

NODES: Final = {"n1": {4: "172.100.0.2", 6: "fd00:100::2"}, "n2": {4: "172.100.0.3", 6: "fd00:100::3"}}
"""The rules are those of n1."""

SERVICE_CIDRS: Final = {4: "10.233.0.0/18", 6: "fd00:233::/112"}
POD_CIDRS: Final = "10.233.64.0/18,fd00:234::/64"
LAN_CIDRS: Final = "172.100.0.0/16,fd00:100::/64"
RULES: Final[dict[str, dict[str, Any]]] = {
    "usual": {"clusterCIDR": POD_CIDRS},
    "lan-inside": {"clusterCIDR": LAN_CIDRS},
    "lan-inside-all": {"clusterCIDR": LAN_CIDRS, "masquerade_all": True},
}
"""Names of dumps -> what is peculiar to the kube-proxy that made them."""

PORT: Final = 8081
"""Of all backends, TCP and UDP."""

LOCAL_PORT, ANY_PORT = 30081, 30082
"""Node ports: of policy Local, served by near, and of policy Cluster, served by far."""

NUMBERS: Final = {"client": 210, "near": 211, "far": 212, "overlay": 213}
"""The last byte of a pod's addresses. All are on n1 but far."""


class Backend:
    """Somebody who serves; its number is its Service's.

    Attributes:
        name: its own, its Service's.
        node: where it is.
        addresses: by IP version.
    """

    def __init__(self, name: str, node: str, addresses: dict[int, str]) -> None:
        self.name = name
        self.node = node
        self.addresses = addresses

    @property
    def cluster_ips(self) -> dict[int, str]:
        """Its Service's, by IP version."""
        number = 100 + list(BACKENDS).index(self.name)
        return {4: f"10.233.0.{number}", 6: f"fd00:233::{number:x}"}


def _on_lan(name: str) -> dict[int, str]:
    return {4: f"172.100.0.{NUMBERS[name]}", 6: f"fd00:100::{NUMBERS[name]:x}"}


def _in_overlay(name: str) -> dict[int, str]:
    return {4: f"10.233.105.{NUMBERS[name]}", 6: f"fd00:234::105:{NUMBERS[name]:x}"}


BACKENDS: Final = {
    one.name: one
    for one in (
        Backend("near", "n1", _on_lan("near")),
        Backend("far", "n2", _on_lan("far")),
        Backend("overlay", "n1", _in_overlay("overlay")),
        Backend("host", "n1", NODES["n1"]),
    )
}
