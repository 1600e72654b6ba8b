"""Many nodes without links: controllers and agents as processes, and pods that are asked for through agents' sockets.

The plugin is played in its IPAM role (under a main plugin that never makes a link), so what is exercised is the way of
an address: socket, agent, controller, pool, SpiderEndpoint, and back. A node's sandboxes share one namespace.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from msgspec import Struct
from pyroute2 import IPRoute

from runtime.store.apiserver import Call
from runtime.store.credentials import from_kubeconfig
from runtime.store.kubernetes import KubernetesStore
from runtime.store.observe import Outcome
from tests.netns import Netns
from tests.processes.lab import CONTROLLER_ADDRESS, CniError, Lab
from tests.servers import ControlPlane

CONFIG = json.dumps(
    {"cniVersion": "1.1.0", "name": "lan", "type": "macvlan", "master": "none", "ipam": {"type": "spiderpool"}}
).encode()


class Sandbox(Struct):
    """A pod and its present sandbox, as a kubelet knows them."""

    name: str
    node: str
    uid: str
    cid: str = ""
    addresses: tuple[str, ...] = ()
    """Of the acknowledged ADD, without prefix length."""
    netns: Path | None = None
    """Its own; without one it is in the namespace that its node's sandboxes share."""


class Fleet(Lab):
    """See the module."""

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        agents: int = 10,
        controllers: int = 3,
        api: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`api` is the URL by which the programs reach the API server, a proxy's for instance."""
        nodes = [f"n{number}" for number in range(1, agents + 1)]
        super().__init__(control_plane, controllers=controllers, nodes=nodes, environment=environment)
        self._api = api
        self.netns: dict[str, Path] = {}
        self.complaints: dict[str, str] = {}
        """The last failed call of each pod."""

    def kubeconfig(self, token: str, name: str) -> Path:
        """See `Lab`."""
        return self.control_plane.kubeconfig_for(token=token, name=f"{name}-{self.namespace}", server=self._api)

    def _wire(self) -> None:
        with IPRoute() as route:
            route.addr("replace", index=1, address=CONTROLLER_ADDRESS, prefixlen=32)
        for node in self.nodes:
            self.netns[node] = Netns(self.folder / "netns", node).__enter__().path

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[KubernetesStore]:
        """The API server on kept connections, for what is done a thousand times."""
        store = KubernetesStore(from_kubeconfig(self.control_plane.admin_kubeconfig), deadline=30)
        try:
            yield store
        finally:
            await store.aclose()

    async def sandboxes(
        self, stem: str, count: int, *, nodes: Sequence[str] = (), pools: Mapping[str, list[str]] | None = None
    ) -> list[Sandbox]:
        """Pod objects, spread over the nodes in turn, that ask for the lab's pools by annotation."""
        spread = nodes or self.nodes
        wanted = {"ipam.spidernet.io/ippool": json.dumps(pools if pools is not None else self.pools_of_pods)}
        limit = asyncio.Semaphore(16)

        async def make(store: KubernetesStore, number: int) -> Sandbox:
            node, name = spread[number % len(spread)], f"{stem}-{number}"
            body = {
                "metadata": {"name": name, "annotations": wanted},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none"}]},
            }
            path = f"/api/v1/namespaces/{self.namespace}/pods"
            async with limit:
                call = Call(method="POST", path=path, body=json.dumps(body).encode(), what=f"create pod {name}")
                made = json.loads(await store.server.request(call, Outcome()))
            return Sandbox(name, node, made["metadata"]["uid"])

        async with self.administrator() as store:
            return list(await asyncio.gather(*(make(store, number) for number in range(count))))

    def owner(self, pool: str) -> str:
        """The controller process that owns a pool, by the word of the first one that serves."""
        for name in self.controllers:
            try:
                with urlopen(f"http://127.0.0.1:{self.health_ports[name]}/debug/status", timeout=5) as answer:
                    pod: str = json.load(answer)["pools"][pool]
            except (OSError, KeyError):
                continue
            return self.controllers[int(pod.rpartition("-")[2])]
        msg = f"no controller serves that knows pool {pool}"
        raise LookupError(msg)

    # -- kubelets ------------------------------------------------------------------------------------------------------

    async def add(self, pod: Sandbox) -> None:
        """One ADD of a new sandbox. Raises `CniError` and `OSError`."""
        pod.cid = secrets.token_hex(32)
        result = await self.invoke("ADD", pod)
        pod.addresses = tuple(ip["address"].partition("/")[0] for ip in result["ips"])

    async def delete(self, pod: Sandbox) -> None:
        """One DEL of the present sandbox. Raises `CniError` and `OSError`."""
        await self.invoke("DEL", pod)
        pod.addresses = ()

    async def start(self, pod: Sandbox, *, pause: float = 1.0) -> int:
        """Sandbox after sandbox until one ADD succeeds, as kubelet does it; returns how many failed."""
        failed = 0
        while True:
            try:
                await self.add(pod)
            except (CniError, OSError, EOFError) as error:
                failed += 1
                self.complaints[pod.name] = f"ADD: {error}"
                await self.stop(pod, pause=pause)
                await asyncio.sleep(pause)
            else:
                return failed

    async def stop(self, pod: Sandbox, *, pause: float = 1.0) -> int:
        """DEL until it succeeds, as kubelet does it; returns how many failed."""
        failed = 0
        while True:
            try:
                await self.delete(pod)
            except (CniError, OSError, EOFError) as error:
                failed += 1
                self.complaints[pod.name] = f"DEL: {error}"
                await asyncio.sleep(pause)
            else:
                return failed

    async def invoke(self, verb: str, pod: Sandbox) -> dict[str, Any]:
        """What the shim does, in this process. Raises `CniError`, `OSError`, and `EOFError` when the agent dies."""
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": pod.name,
            "K8S_POD_UID": pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID": pod.cid,
        }
        headers = {
            "cni-type": "spiderpool",
            "cni-start": str(time.time_ns()),
            "cni-command": verb,
            "cni-containerid": pod.cid,
            "cni-netns": quote(str(pod.netns or self.netns[pod.node]), safe="/"),
            "cni-ifname": "eth0",
            "cni-args": quote(";".join(f"{key}={value}" for key, value in args.items())),
            "cni-path": "/opt/cni/bin",
            "content-length": str(len(CONFIG)),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        code, body = await _post(self.socket(pod.node), f"POST /v1/cni HTTP/1.1\r\n{head}\r\n".encode() + CONFIG)
        document: dict[str, Any] = json.loads(body) if body else {}
        if code:
            raise CniError(document, code)
        return document


async def _post(path: Path, request: bytes) -> tuple[int, bytes]:
    """Exit code and stdout of one call. Raises `OSError` and `EOFError`."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.lower().split("\r\n")
        if " 200 " not in first:
            msg = f"{path}: {first}"
            raise OSError(msg)
        fields = dict(line.split(": ", 1) for line in lines if line)
        return int(fields["cni-exit"]), await reader.readexactly(int(fields["content-length"]))
    finally:
        writer.close()
