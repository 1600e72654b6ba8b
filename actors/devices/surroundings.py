"""What the device plugin has to know of its node: the labels of the Node object, and the interfaces that there are."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from actors.devices.advertisement import Interface
from api.core import Node
from api.kinds import NODE
from api.networkresources import is_candidate
from cni.errors import CniError
from cni.netlink import link
from cni.netlink.linkwatch import LinkWatch
from cni.netlink.pci import SYSFS
from cni.netlink.socket import route_socket
from runtime.actor import System
from runtime.store.port import Store
from runtime.store.reflector import Reflector

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.2
"""After an announcement: links come in crowds."""
_AGAIN_SECONDS = 30.0
"""Between looks where the kernel tells nothing, or does not list."""


class NodeSurroundings:
    """Follows both. `run` does the work."""

    def __init__(self, name: str, system: System, store: Store, *, sysfs: Path = SYSFS) -> None:
        """`name` is the node's."""
        self._name = name
        self._sysfs = sysfs
        self._reflector: Reflector[Node] = Reflector(
            store, NODE, random=system.random, fields={"metadata.name": name}, topic="own node"
        )
        self.labels: Mapping[str, str] | None = None
        """See `actors.devices.plugin.Surroundings`."""
        self.interfaces: tuple[Interface, ...] | None = None
        """As well."""
        self._problem = ""
        self.on_change: Callable[[], None] = lambda: None
        """Called when one of them is another; must not raise."""

    def __repr__(self) -> str:
        return f"<NodeSurroundings {self._name} {len(self.interfaces or ())} interfaces>"

    @property
    def missing(self) -> str:
        """Why labels or interfaces are not known."""
        if self.labels is None:
            why = f": {self._reflector.error}" if self._reflector.error else ""
            return f"Node {self._name} has not been read{why}"
        return f"the node's interfaces are not known{self._problem}" if self.interfaces is None else ""

    async def run(self) -> None:
        """Follow them until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._reflector.run)
            group.start_soon(self._follow_links)
            await self._reflector.synced()
            while True:
                cursor = self._reflector.snapshot.revision
                for node in self._reflector.snapshot.values():
                    if node.metadata.labels != self.labels:
                        self.labels = dict(node.metadata.labels)
                        self.on_change()
                await self._reflector.snapshot.wait(cursor)

    async def _follow_links(self) -> None:
        told = anyio.Event()

        def tell() -> None:
            told.set()

        watch: LinkWatch | None = None
        while watch is None:
            try:
                watch = LinkWatch(tell, wanted=is_candidate)
            except OSError as error:
                _log.warning("interfaces that come and go are noticed late: %s", error)
                await self._list()
                await anyio.sleep(_AGAIN_SECONDS)
        try:
            while True:
                told = anyio.Event()
                listed = await self._list()
                with anyio.move_on_after(None if listed else _AGAIN_SECONDS):
                    await told.wait()
                    await anyio.sleep(_SETTLE_SECONDS)
        finally:
            watch.close()

    async def _list(self) -> bool:
        try:
            found = await anyio.to_thread.run_sync(self._interfaces)
        except CniError as error:
            self._problem = f": {error}"
            _log.warning("the node's interfaces cannot be listed: %s", error)
            return False
        if found != self.interfaces:
            self.interfaces = found
            self.on_change()
        return True

    def _interfaces(self) -> tuple[Interface, ...]:
        with route_socket() as sockets:
            names = [one.ifname for one in link.listed(sockets) if is_candidate(one.ifname)]
        return tuple(
            sorted(Interface(name, physical=(self._sysfs / "class/net" / name / "device").exists()) for name in names)
        )
