"""Kubelet's folder of device plugins on this node: its own socket, ours, and what happens to them.

Kubelet makes its socket `kubelet.sock` anew whenever it starts, after it has emptied the folder; plugins register
there. The kernel tells of that (inotify); a plugin that nobody watches registers again, whatever the reason was.
"""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
from google.protobuf.message import DecodeError
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from msgspec import Struct

from actors.devices import messages
from actors.devices.advertisement import Offer, socket_name
from actors.devices.endpoint import Endpoint, Place
from cni import inotify
from cni.inotify import Inotify

_log = logging.getLogger(__name__)

FOLDER: Final = "device-plugins"
"""Below kubelet's root."""
_KUBELET: Final = "kubelet.sock"
_PATH_LIMIT: Final = 107
_FOLDER_GONE: Final = inotify.DELETE_SELF | inotify.MOVE_SELF
_MASK: Final = inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.ONLYDIR | _FOLDER_GONE
_REGISTER_SECONDS: Final = 10.0
_PAUSES_SECONDS: Final = (1.0, 30.0)
"""Between tries to watch the folder: the first and the longest."""


class Unregistered(Exception):
    """Kubelet does not have a resource from us, with the reason on one line."""


class Seen(Struct, frozen=True):
    """The folder at one moment."""

    kubelet: tuple[int, ...] = ()
    """Tells one socket of kubelet's from the next; empty while there is none."""
    places: Mapping[str, Place] = {}
    """Whose the sockets of our resources are."""
    current: bool = True
    """Whether this agent is the node's: no successor serves."""


class Kubelet(Protocol):
    """What the actor needs of it. Resources that are not served are unknown to every other call."""

    @property
    def offers(self) -> Mapping[str, Offer]:
        """What is served, by resource."""
        ...

    async def serve(self, resource: str, offer: Offer) -> None:
        """Serve a resource, or serve it anew. Raises `OSError`."""
        ...

    def change(self, resource: str, offer: Offer) -> None:
        """Have other devices of a resource."""
        ...

    async def close(self, resource: str) -> None:
        """Serve a resource no more."""
        ...

    async def register(self, resource: str) -> None:
        """Tell kubelet of a resource. Raises `Unregistered`."""
        ...

    def watched(self, resource: str) -> bool:
        """Whether kubelet follows the devices."""
        ...

    async def look(self) -> Seen:
        """Look at the folder."""
        ...


class NodeKubelet:
    """The one of this node. `run` watches the folder, and takes everything away at its end."""

    def __init__(self, root: Path, *, current: Callable[[], bool]) -> None:
        """`root` is kubelet's folder. `current` says whether this agent is the node's; it may block."""
        self._folder = root / FOLDER
        self._current = current
        self._endpoints: dict[str, Endpoint] = {}
        self._lost = anyio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when the folder may have changed; must not raise."""
        self.on_deserted: Callable[[str], None] = lambda _: None
        """Called when nobody follows a resource any more; must not raise."""

    def __repr__(self) -> str:
        return f"<NodeKubelet {self._folder} {len(self._endpoints)} resources>"

    @property
    def offers(self) -> Mapping[str, Offer]:
        """See `Kubelet`."""
        return {name: endpoint.offer for name, endpoint in self._endpoints.items()}

    async def serve(self, resource: str, offer: Offer) -> None:
        """See `Kubelet`."""
        endpoint = self._endpoints.get(resource)
        if endpoint is None:
            room = _PATH_LIMIT - len(os.fsencode(self._folder)) - 1
            path = self._folder / socket_name(resource, limit=room)
            endpoint = Endpoint(resource, path, offer, deserted=self.on_deserted)
        endpoint.change(offer)
        await endpoint.serve()
        self._endpoints[resource] = endpoint

    def change(self, resource: str, offer: Offer) -> None:
        """See `Kubelet`."""
        self._endpoints[resource].change(offer)

    async def close(self, resource: str) -> None:
        """See `Kubelet`."""
        endpoint = self._endpoints.pop(resource, None)
        if endpoint is not None:
            await endpoint.close()

    def watched(self, resource: str) -> bool:
        """See `Kubelet`."""
        endpoint = self._endpoints.get(resource)
        return endpoint is not None and endpoint.watched

    async def register(self, resource: str) -> None:
        """See `Kubelet`."""
        request = messages.RegisterRequest(
            version=messages.VERSION, endpoint=self._endpoints[resource].path.name, resource_name=resource
        )
        channel = Channel(path=os.fspath(self._folder / _KUBELET))
        try:
            call = UnaryUnaryMethod(channel, messages.REGISTER, messages.RegisterRequest, messages.Empty)
            await call(request, timeout=_REGISTER_SECONDS)
        except GRPCError as error:
            msg = f"kubelet refuses {resource}: {error.status.name}: {error.message}"
            raise Unregistered(msg) from error
        except (OSError, TimeoutError, StreamTerminatedError, ProtocolError, DecodeError) as error:
            msg = f"kubelet does not answer at {self._folder / _KUBELET}: {error or type(error).__name__}"
            raise Unregistered(msg) from error
        finally:
            channel.close()

    async def look(self) -> Seen:
        """See `Kubelet`."""
        return await anyio.to_thread.run_sync(self._look, list(self._endpoints.values()))

    def _look(self, endpoints: list[Endpoint]) -> Seen:
        identity: tuple[int, ...] = ()
        with suppress(OSError):
            found = (self._folder / _KUBELET).lstat()
            identity = (found.st_dev, found.st_ino, found.st_ctime_ns)
        places = {one.resource: one.place() for one in endpoints}
        return Seen(kubelet=identity, places=places, current=self._current())

    async def run(self) -> None:
        """Watch the folder until cancelled."""
        pause = _PAUSES_SECONDS[0]
        try:
            while True:
                self._lost = anyio.Event()
                try:
                    watch = Inotify(self._take)
                except OSError as error:
                    _log.warning("kubelet's restarts are noticed late: %s cannot be watched: %s", self._folder, error)
                else:
                    try:
                        watch.add(os.fspath(self._folder), _MASK)
                        pause = _PAUSES_SECONDS[0]
                        self.on_change()
                        await self._lost.wait()
                    except OSError as error:
                        if error.errno != errno.ENOENT:
                            _log.warning("%s cannot be watched: %s", self._folder, error)
                    finally:
                        watch.close()
                self.on_change()
                await anyio.sleep(pause)
                pause = min(2 * pause, _PAUSES_SECONDS[1])
        finally:
            with anyio.CancelScope(shield=True):
                for resource in list(self._endpoints):
                    await self.close(resource)

    def _take(self, _: int, mask: int, name: str) -> None:
        if mask & (_FOLDER_GONE | inotify.IGNORED):
            self._lost.set()
        # Kubelet notes there too which devices pods have; that is no news.
        elif mask & inotify.OVERFLOW or name == _KUBELET or name in {one.path.name for one in self._endpoints.values()}:
            self.on_change()
