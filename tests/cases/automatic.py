"""SpiderSubnets of a case, the annotations that name them, and what has become of the automatic pools."""

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, Final, Self

from tests.cases.world import World

SUBNETS: Final = "/apis/spiderpool.spidernet.io/v2beta1/spidersubnets"
_PREFIX: Final = "ipam.spidernet.io"


class Subnet:
    """A SpiderSubnet of so many addresses. A context manager: in the end it goes, and nothing holds it."""

    def __init__(self, world: World, size: int, *, version: int = 4, lan: int = 0) -> None:
        self.world = world
        self.name = f"{world.name}-s{version}-{lan}"
        network = world.subnet(version, lan)
        first = network.network_address + 0x10
        self.addresses = tuple(str(first + offset) for offset in range(size))
        self._body = {
            "ipVersion": version,
            "subnet": str(network),
            "gateway": world.gateway(version, lan),
            "ips": [f"{self.addresses[0]}-{self.addresses[-1]}"],
        }

    def __enter__(self) -> Self:
        body = {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderSubnet",
            "metadata": {"name": self.name},
            "spec": self._body,
        }
        self.world.request("POST", SUBNETS, body)
        return self

    def __exit__(self, *_: object) -> None:
        self.world.control_plane.request("DELETE", f"{SUBNETS}/{self.name}", check=False)

    def status(self) -> dict[str, Any]:
        """Of the object."""
        return dict(self.world.request("GET", f"{SUBNETS}/{self.name}").get("status", {}))

    def given(self) -> int:
        """Addresses that pools have."""
        return int(self.status().get("allocatedIPCount") or 0)

    def empty(self) -> None:
        """Wait until no pool has an address."""
        self.world.wait(lambda: not self.given(), f"{self.name} has all its addresses back")


def subnet(*, ipv4: Iterable[str] = (), ipv6: Iterable[str] = (), nic: str = "") -> dict[str, str]:
    """The annotation for one NIC."""
    said: dict[str, Any] = {key: list(names) for key, names in (("ipv4", ipv4), ("ipv6", ipv6)) if names}
    if nic:
        said["interface"] = nic
    return {f"{_PREFIX}/subnet": json.dumps(said)}


def subnets(*nics: Mapping[str, Any]) -> dict[str, str]:
    """The annotation for several."""
    return {f"{_PREFIX}/subnets": json.dumps(list(nics))}


def number(text: str) -> dict[str, str]:
    """How many addresses, ``5`` or ``+2``."""
    return {f"{_PREFIX}/ippool-ip-number": text}


def keep() -> dict[str, str]:
    """The pools outlive the application."""
    return {f"{_PREFIX}/ippool-reclaim": "false"}


def size(pool: Mapping[str, Any]) -> int:
    """Addresses that a pool lists."""
    total = 0
    for entry in pool["spec"].get("ips") or ():
        first, _, last = entry.partition("-")
        total += int(ip_address(last or first)) - int(ip_address(first)) + 1
    return total


def sizes(world: World, application: str = "") -> dict[str, int]:
    """By NIC and family of an application's pools, for example ``eth0 IPv4``, how many addresses they list."""
    found = {}
    for pool in world.automatic_pools(application):
        if "deletionTimestamp" not in pool["metadata"]:
            labels = pool["metadata"]["labels"]
            found[f"{labels[f'{_PREFIX}/interface']} {labels[f'{_PREFIX}/ip-version']}"] = size(pool)
    return found


def sized(world: World, application: str, **expected: int) -> None:
    """Wait until an application has exactly these pools: ``eth0_4=3``."""
    wanted = {f"{key[:-2]} IPv{key[-1]}": count for key, count in expected.items()}
    world.wait(lambda: sizes(world, application) == wanted, f"{application} has pools of {wanted}")


def gone(world: World, application: str = "") -> None:
    """Wait until no automatic pool is left."""
    world.wait(lambda: not world.automatic_pools(application), f"the pools of {application or 'all'} are gone")
