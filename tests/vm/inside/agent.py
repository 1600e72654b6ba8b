"""A whole agent on the guest's kernel, made up as in spiderpool-standalone and called as a container runtime calls it.

Executable, socket, actors, controller, store and journal are the real ones, in this process but for the first. The
guest is the node.
"""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec import Struct

from actors.agent import Agent
from actors.controller import Controller
from actors.node.detection import terms_of
from actors.node.disk import open_journal
from actors.poolfiles import DiskFolder, PoolFiles
from api.kinds import ENDPOINT, IPPOOL
from api.settings import load_standalone
from cni.journal import Journal
from cni.kernel import LinuxKernel
from cni.pods import named_somehow
from runtime.actor import System
from runtime.store.sqlite import FILE_NAME, SQLiteStore
from runtime.supervision import Supervisor
from runtime.transport.local import LocalChannel
from runtime.transport.port import Call, Peer
from runtime.web import AiohttpWeb
from tests.netns import Netns
from tests.node.picture import picture
from tests.servers.provide import CHECKOUT

HERE = Netns(Path("/proc/self/ns"), "net")
"""The node's namespace."""

SHIM = CHECKOUT / "build" / "cni" / {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine] / "spiderpool"
PLUGINS = ("ipvlan", "vlan", "sriov", "coordinator")
SECONDS = 30.0
LASTING = {"rule4 1000 lookup 500", "rule6 1000 lookup 500"}
"""The node's rules stay while there is an agent."""


class CallFailed(Exception):
    """What the executable printed, and its exit code."""


class Held(Struct, frozen=True):
    """What somebody has, or will have for a while."""

    records: list[str] = []
    """Addresses that pools have given."""
    endpoints: int = 0
    entries: list[str] = []
    """Of the journal, but for what has been released once: of an ADD that failed that is done again later."""


class Node:
    """The guest with an agent on it.

    Attributes:
        folder: of everything.
        links: what its namespace held before there was an agent.
    """

    def __init__(self, folder: Path, *pools: Mapping[str, Any], detect: bool = False, provider: str = "") -> None:
        """Pools are specs; with `detect`, addresses and gateways are looked for before a pod gets them.

        `provider` is the URL of a network provider.
        """
        self.folder = folder
        self.socket = folder / "cni.sock"
        for name in ("pools", "bin", "state"):
            (folder / name).mkdir()
        for name in PLUGINS:
            (folder / "bin" / name).symlink_to(SHIM)
        for number, spec in enumerate(pools):
            document = {
                "apiVersion": "spiderpool.spidernet.io/v2beta1",
                "kind": "SpiderIPPool",
                "metadata": {"name": f"pool-{number}"},
                "spec": {"default": True, **spec},
            }
            (folder / "pools" / f"{number}.json").write_text(json.dumps(document))
        told = {"ipamUnixSocketPath": str(self.socket), "tuneSysctlConfig": False}
        if detect:
            told |= {"enableIPConflictDetection": True, "enableGatewayDetection": True}
        if provider:
            told["iaasNetworkProvider"] = {"serverUrl": provider, "httpRequestTimeout": "2s"}
        environment = {
            "SPIDERPOOL_STATE_DIR": str(folder / "state"),
            "SPIDERPOOL_DETECTION_PROBES": "2",
            "SPIDERPOOL_DETECTION_TIMEOUT": "0.4",
        }
        self._settings = load_standalone(environment, json.dumps(told))
        self._store: SQLiteStore
        self.links = picture(HERE) - LASTING

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """While the block runs there is an agent at the socket."""
        system, settings = System.real(), self._settings
        self._store = store = SQLiteStore(self.folder / "state" / FILE_NAME, wall=system.clock.wall)
        root = Supervisor("whole", system)
        web = AiohttpWeb()
        controller = Controller(
            system, store, settings=settings.controller, pods_exist=False, web=web, path="whole/controller"
        )
        root.add_supervisor(controller.supervisor)
        await PoolFiles(DiskFolder(self.folder / "pools"), store).round()

        async def serve(call: Call) -> bytes:
            await controller.cluster.synced()
            return await controller.serve(call)

        name = settings.agent.node_name
        agent = Agent(
            system,
            path="whole/agent",
            kernel=LinuxKernel(),
            journal=open_journal(self.folder / "state"),
            channels=[LocalChannel(serve, Peer(account="spiderpool-agent", node=name, role="agent"))],
            node=name,
            named=named_somehow,
            terms=terms_of(settings.agent),
        )
        agent.reside(settings.agent)
        root.add_supervisor(agent.supervisor)
        running = asyncio.create_task(root.run())
        try:
            yield self
        finally:
            await root.stop()
            await running
            await web.aclose()
            await store.aclose()

    async def held(self) -> Held:
        """All of it."""
        pools = (await self._store.list(IPPOOL)).items
        entries = await asyncio.to_thread(Journal(self.folder / "state" / "journal").load_all)
        return Held(
            records=[one for pool in pools for one in msgspec.json.decode(pool.status.allocated_ips or "{}")],
            endpoints=len((await self._store.list(ENDPOINT)).items),
            entries=[f"{one.ifname} {one.part} {one.state}" for one in entries if one.state != "releasing"],
        )

    async def withheld(self) -> dict[str, Any]:
        """Addresses that pools give to nobody for a while, and why."""
        pools = (await self._store.list(IPPOOL)).items
        return {
            address: why
            for pool in pools
            for address, why in msgspec.json.decode(pool.status.withheld_ips or "{}").items()
        }

    async def left(self, container: "Container") -> list[str]:
        """What is there though the container has gone; what goes behind the answer has a while."""
        until = time.monotonic() + SECONDS
        while (found := await self._left(container)) and time.monotonic() < until:  # noqa: ASYNC110 - the kernel's
            await asyncio.sleep(0.1)
        return found

    async def _left(self, container: "Container") -> list[str]:
        held = await self.held()
        now = await asyncio.to_thread(picture, HERE) - LASTING
        links = await asyncio.to_thread(picture, container.netns)
        return [
            *(f"record {one}" for one in held.records),
            *(["endpoint"] * held.endpoints),
            *(f"journal {one}" for one in held.entries),
            *sorted(now ^ self.links),
            *sorted(f"container: {one}" for one in links if one.startswith(("link", "address"))),
        ]


class Container:
    """A container on a network, which is a chain of plugins; they are called as libcni does."""

    def __init__(self, node: Node, netns: Netns, *plugins: dict[str, Any], version: str = "1.0.0") -> None:
        self._node = node
        self._plugins = plugins
        self._version = version
        self.netns = netns
        self.id = (netns.name.encode().hex() * 4)[:64]
        self.result: dict[str, Any] = {}

    async def add(self) -> dict[str, Any]:
        """The result of the last plugin. Raises `CallFailed`."""
        for plugin in self._plugins:
            self.result = await self._call("ADD", plugin)
        return self.result

    async def check(self) -> None:
        """Raises `CallFailed`."""
        for plugin in self._plugins:
            await self._call("CHECK", plugin)

    async def delete(self) -> None:
        """Raises `CallFailed`."""
        for plugin in reversed(self._plugins):
            await self._call("DEL", plugin)

    @property
    def addresses(self) -> list[str]:
        """Of the result, with prefix lengths."""
        return [one["address"] for one in self.result["ips"]]

    async def _call(self, verb: str, plugin: dict[str, Any]) -> dict[str, Any]:
        conf = {"cniVersion": self._version, "name": "lan", **plugin}
        if self.result:
            conf["prevResult"] = self.result
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.id,
            "CNI_NETNS": str(self.netns.path),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self._node.folder / "bin"),
            # Not just the namespace's name: with digits only behind its dash it would be a StatefulSet's.
            "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={self.netns.name}-pod;K8S_POD_UID={self.netns.name}",
            "SPIDERPOOL_SOCKET": str(self._node.socket),
        }

        def execute() -> subprocess.CompletedProcess[bytes]:
            program = self._node.folder / "bin" / plugin["type"]
            return subprocess.run(
                [program], input=json.dumps(conf).encode(), env=environment, capture_output=True, check=False
            )

        done = await asyncio.to_thread(execute)
        if done.returncode:
            raise CallFailed(f"{verb} {plugin['type']} exited {done.returncode}: {done.stdout.decode()}")
        result: dict[str, Any] = json.loads(done.stdout or b"{}")
        return result
