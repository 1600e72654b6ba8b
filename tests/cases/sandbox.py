"""A pod's sandbox: a namespace of the kernel, and the CNI calls of a runtime with multus above it.

The main plugin is played: it calls the shim in its IPAM role, makes a link and puts the addresses on it; on the way out
it has the addresses released first and its link removed after, as the reference plugins do it. Where a network is wired
the main plugin is ours, and its links are on the segment.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pyroute2 import IPRoute

from tests.netns import Netns
from tests.processes.lab import CniError, call

FOREIGN_ADDRESS = "172.31.0.1"
"""What pods get whose first interface is another network's: that network is not played."""


class Nic(NamedTuple):
    """One interface of a pod and what its network says on IPAM; None where the network has nothing to do with us."""

    name: str
    network: str
    ipam: Mapping[str, Any] | None
    parent: str = ""
    """Whose link it is; empty where the network is not wired."""
    main: Mapping[str, Any] = MappingProxyType({})
    """What the configuration of its main plugin says, where that is no macvlan's."""


class PodName(NamedTuple):
    """Who the sandbox is for."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Sandbox:
    """One sandbox. All methods block.

    Attributes:
        cid: of the container.
        nics: the interfaces that it is to get, in this order.
        results: what ADD answered, by interface.
    """

    def __init__(self, pod: PodName, nics: Sequence[Nic], *, plugin: Path, socket: Path, folder: Path) -> None:
        """`plugin` is the shim; `folder` gets the namespace."""
        self.pod = pod
        self.nics = tuple(nics)
        self.cid = secrets.token_hex(32)
        self.results: dict[str, dict[str, Any]] = {}
        self._plugin = plugin
        self._socket = socket
        self.netns = Netns(folder, f"cni-{self.cid[:16]}")
        self.netns.__enter__()

    def __repr__(self) -> str:
        return f"<Sandbox {self.cid[:12]} of {self.pod}: {self.addresses}>"

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Without prefix length, by interface."""
        return {name: [ip["address"].partition("/")[0] for ip in r["ips"]] for name, r in self.results.items()}

    @property
    def stands(self) -> bool:
        """Whether its namespace is there."""
        return self.netns.path.exists()

    def add(self) -> None:
        """ADD for each interface; the first one that fails ends it. Raises `CniError`."""
        for nic in self.nics:
            if nic.ipam is None:
                continue
            result = call(self._program(nic), "ADD", self._config(nic), self._environment(nic))
            if not nic.parent:
                self.netns.run(lambda: _carry(nic.name, result))  # noqa: B023 - called at once
            self.results[nic.name] = result

    def delete(self) -> None:
        """DEL for each interface, last one first, all of them whatever one says. Raises the first `CniError`."""
        failures: list[CniError] = []
        for nic in reversed(self.nics):
            if nic.ipam is None:
                continue
            try:
                call(self._program(nic), "DEL", self._config(nic), self._environment(nic))
            except CniError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def vanish(self) -> None:
        """The namespace goes, and all links with it."""
        self.netns.__exit__(None, None, None)

    def _program(self, nic: Nic) -> Path:
        return self._plugin.parent / "macvlan" if nic.parent else self._plugin

    def _config(self, nic: Nic) -> dict[str, Any]:
        ipam = {"type": "spiderpool", **(nic.ipam or {})}
        name = nic.network.rpartition("/")[2]
        return {"cniVersion": "1.0.0", "name": name, "type": "macvlan", "master": nic.parent, **nic.main, "ipam": ipam}

    def _environment(self, nic: Nic) -> dict[str, str]:
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.pod.namespace,
            "K8S_POD_NAME": self.pod.name,
            "K8S_POD_UID": self.pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID": self.cid,
        }
        return {
            "CNI_CONTAINERID": self.cid,
            "CNI_NETNS": str(self.netns.path) if self.stands else "",
            "CNI_IFNAME": nic.name,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
            "SPIDERPOOL_SOCKET": str(self._socket),
        }


def _carry(name: str, result: Mapping[str, Any]) -> None:
    """A link with the addresses: one without a wire, which is all that "carried" asks for."""
    with IPRoute() as route:
        route.link("add", ifname=name, kind="bridge")
        index = route.link_lookup(ifname=name)[0]
        for ip in result["ips"]:
            address, _, length = ip["address"].partition("/")
            route.addr("add", index=index, address=address, prefixlen=int(length))
        route.link("set", index=index, state="up")
