"""Our product on a lab's cluster as users have it: the image in containerd, the chart by helm, pools by kubectl."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import yaml

from tests.cluster.lab import Cluster, plan
from tests.cluster.lab.cluster import CORE, PRODUCT_NAMESPACE
from tests.cluster.lab.state import Identity
from tests.servers.provide import CHECKOUT

CHART: Final = CHECKOUT / "helm" / "spiderpool"
RELEASE: Final = "spiderpool"
AGENT: Final = "spiderpool-agent"
CONTROLLER: Final = "spiderpool-controller"
INSTALL_SECONDS: Final = 180.0

POOL_V4: Final = "lan-v4"
POOL_V6: Final = "lan-v6"
IPV6: Final = "fd00:89::10:"
CAPACITY: Final = 240
"""Addresses in each of the pools."""

type Values = Mapping[str, Any]


class Image(msgspec.Struct, frozen=True):
    """The product's image as an OCI archive.

    Attributes:
        path: of the archive.
        name: that containerd gives it, `registry/repository:tag`.
    """

    path: Path
    name: str

    @property
    def values(self) -> dict[str, Any]:
        """What the chart has to be told so that it runs this image."""
        registry, _, rest = self.name.partition("/")
        repository, _, tag = rest.rpartition(":")
        image = {"registry": registry, "repository": repository, "tag": tag}
        return {program: {"image": image} for program in ("spiderpoolAgent", "spiderpoolController", "spiderpoolInit")}


def image() -> Image:
    """The image of this checkout, made first when a file of it has changed."""
    subprocess.run([sys.executable, "-m", "tools.image", "build"], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    (made,) = (CHECKOUT / "build").glob("spiderpool-amd64.json")
    found = msgspec.json.decode(made.read_bytes())
    return Image(path=CHECKOUT / found["path"], name=found["name"])


def pools(
    *,
    block: int = 10,
    first: int = 10,
    last: int = 0,
    name: str = "",
    default: bool = True,
    lan: int = 89,
    gateways: tuple[str, str] = plan.GATEWAY,
) -> list[dict[str, Any]]:
    """A pool of each family on the lab's LAN, of the addresses that end in .`block`.`first` to .`block`.`last`.

    Args:
        block: the octet (IPv4) or group (IPv6) before the last.
        first: of the last octet or group.
        last: as `first`; 0 for `CAPACITY` addresses.
        name: of both, with the family behind it; empty for `POOL_V4` and `POOL_V6`.
        default: whether pods that name no pool get addresses of it.
        lan: the second octet, or group, of another LAN.
        gateways: of it.
    """
    last = last or first + CAPACITY - 1
    names = (f"{name}-v4", f"{name}-v6") if name else (POOL_V4, POOL_V6)
    v4, v6 = f"10.{lan}.{block}.", f"fd00:{lan}::{block}:"
    return [
        _pool(names[0], 4, f"10.{lan}.0.0/16", f"{v4}{first}-{v4}{last}", gateways[0], default=default),
        _pool(names[1], 6, f"fd00:{lan}::/64", f"{v6}{first:x}-{v6}{last:x}", gateways[1], default=default),
    ]


def _pool(name: str, version: int, subnet: str, ips: str, gateway: str, *, default: bool) -> dict[str, Any]:
    return {
        "apiVersion": "spiderpool.spidernet.io/v2beta1",
        "kind": "SpiderIPPool",
        "metadata": {"name": name},
        "spec": {"ipVersion": version, "subnet": subnet, "ips": [ips], "gateway": gateway, "default": default},
    }


class Product:
    """A release on a cluster. The methods are what an administrator does."""

    def __init__(self, cluster: Cluster, made: Image, *, values: Values | None = None) -> None:
        """Nothing is installed yet. `values` go to every installation and upgrade."""
        self.cluster = cluster
        self.image = made
        self._values: dict[str, Any] = merged(made.values, values or {})

    def __repr__(self) -> str:
        return f"<Product {self.image.name} on {self.cluster!r}>"

    def load(self) -> Self:
        """Give every node the image, as a pull would."""
        with ThreadPoolExecutor() as nodes:
            list(nodes.map(lambda node: node.load_image(self.image.path), self.cluster.nodes.values()))
        return self

    def install(self, *, values: Values | None = None, timeout: float = INSTALL_SECONDS) -> str:
        """`helm install --wait`. Raises CommandFailed with what helm says."""
        return self._helm("install", values or {}, "--create-namespace", timeout=timeout)

    def upgrade(self, *, values: Values | None = None, timeout: float = INSTALL_SECONDS) -> str:
        """`helm upgrade --wait`. Raises CommandFailed."""
        return self._helm("upgrade", values or {}, timeout=timeout)

    def uninstall(self) -> str:
        """`helm uninstall --wait`. Raises CommandFailed."""
        limit = f"--timeout={INSTALL_SECONDS:.0f}s"
        return self.cluster.helm("uninstall", RELEASE, f"--namespace={PRODUCT_NAMESPACE}", "--wait", limit)

    def _helm(self, verb: str, values: Values, *flags: str, timeout: float) -> str:
        file = self.cluster.folder / "values.yaml"
        file.write_text(yaml.safe_dump(merged(self._values, values)))
        where = (f"--namespace={PRODUCT_NAMESPACE}", f"--values={file}", "--wait", f"--timeout={timeout:.0f}s")
        return self.cluster.helm(verb, RELEASE, str(CHART), *where, *flags, timeout=timeout + 60)

    def kill(self, name: str) -> None:
        """SIGKILL to the program of a pod of ours, found by its cgroup: kubelet starts it again."""
        found = self.cluster.kubectl_json("get", "pod", name, f"--namespace={PRODUCT_NAMESPACE}")
        uid, node = found["metadata"]["uid"], self.cluster.node(found["spec"]["nodeName"])

        def running() -> list[Identity]:
            return [
                process
                for process in node.processes_below(f"kubepods/*/pod{uid}")
                if any("spiderpool" in argument for argument in process.command_line)
            ]

        # Its last one may have ended a moment ago, and kubelet not yet have noticed.
        for process in self.cluster.wait(running, 60, f"a process of {name} on {node.name}"):
            process.send(signal.SIGKILL)

    # -- looking ---------------------------------------------------------------------------------------------------

    def pods(self, component: str) -> list[dict[str, Any]]:
        """The pods of the agent or of the controller."""
        selector = f"labelSelector=app.kubernetes.io/component%3D{component}"
        return self.cluster.items(f"{CORE}/namespaces/{PRODUCT_NAMESPACE}/pods?{selector}")

    def agent_on(self, node: str) -> str:
        """Name of the ready agent's pod of a node. Raises LookupError."""
        for pod in self.pods(AGENT):
            if pod["spec"].get("nodeName") == node and is_ready(pod):
                return str(pod["metadata"]["name"])
        msg = f"no ready agent on {node}"
        raise LookupError(msg)

    def logs(self, component: str) -> str:
        """The logs of all pods of a component."""
        return "\n".join(
            self.cluster.kubectl("logs", f"--namespace={PRODUCT_NAMESPACE}", pod["metadata"]["name"])
            for pod in self.pods(component)
        )

    def rolled_out(self, *, timeout: float = 120.0) -> None:
        """Wait until every pod of agent and controller is the newest and ready. Raises CommandFailed."""
        for what in (f"deployment/{CONTROLLER}", f"daemonset/{AGENT}"):
            self.cluster.kubectl(
                *("rollout", "status", what, f"--namespace={PRODUCT_NAMESPACE}", f"--timeout={timeout:.0f}s"),
                timeout=timeout + 10,
            )


def is_ready(item: Mapping[str, Any]) -> bool:
    """Whether the condition Ready of a pod or node is True."""
    conditions: Sequence[Mapping[str, Any]] = item.get("status", {}).get("conditions", ())
    return any(it["type"] == "Ready" and it["status"] == "True" for it in conditions)


def merged(below: Values, above: Values) -> dict[str, Any]:
    """Values of a chart, those of `above` over those of `below`, as helm merges files."""
    result = dict(below)
    for key, value in above.items():
        known = result.get(key)
        result[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result
