"""The plugin of one resource: the gRPC service on a unix socket of its own that kubelet calls.

It takes its place with a rename, so an agent that comes beside another takes over from that one, and whoever was
replaced sees it by the inode. Closing takes the file away only while it is this one's.

What a crash leaves: the socket's file, which the next agent replaces; between bind and rename one whose name begins
with ``.spiderpool-``. Kubelet empties the folder whenever it starts.
"""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from actors.devices import messages
from actors.devices.advertisement import Offer
from telemetry import metrics

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 1.0
"""For streams to end, all those of a resource."""
_numbers = itertools.count()


class Place(StrEnum):
    """Whose an endpoint's socket file is."""

    OURS = "ours"
    GONE = "gone"
    TAKEN = "taken"
    """Another process serves this resource, or did."""


class Endpoint:
    """Serves one resource from `serve` to `close`."""

    def __init__(self, resource: str, path: Path, offer: Offer, *, deserted: Callable[[str], None]) -> None:
        """Serve nothing yet. `deserted` is called when nobody watches the devices any more; it must not raise."""
        self.resource = resource
        self.path = path
        self.offer = offer
        self._deserted = deserted
        self._changed = asyncio.Event()
        self._left = asyncio.Event()
        self._server: Server | None = None
        self._inode = 0
        self._watchers = 0

    def __repr__(self) -> str:
        return f"<Endpoint {self.resource} {self.offer.count} devices, {self._watchers} watchers>"

    @property
    def watched(self) -> bool:
        """Whether a kubelet follows the list of devices: then it knows the resource."""
        return self._watchers > 0

    def change(self, offer: Offer) -> None:
        """Have other devices, and tell who watches."""
        if offer != self.offer:
            self.offer = offer
            self._wake()

    async def serve(self) -> None:
        """Begin to serve, in place of whatever is at the path. Raises `OSError` when the socket cannot be made."""
        await self._shut()
        listener = await anyio.to_thread.run_sync(self._bind)
        self._server = Server([self])
        await self._server.start(sock=listener)

    async def close(self) -> None:
        """Serve no more; the file goes if it is ours. Who watches is told by the end of the stream."""
        await anyio.to_thread.run_sync(self._unlink)
        await self._shut()

    def place(self) -> Place:
        """Whose the file is. Blocks for a moment."""
        try:
            return Place.OURS if self.path.lstat().st_ino == self._inode else Place.TAKEN
        except OSError:
            return Place.GONE

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _bind(self) -> socket.socket:
        # A name of its own, and short: the path may be as long as paths of sockets can be.
        temporary = self.path.with_name(f".spiderpool-{os.getpid()}-{next(_numbers)}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(temporary))
            temporary.chmod(0o600)
            listener.listen()
            self._inode = temporary.lstat().st_ino
            temporary.rename(self.path)
        except OSError:
            listener.close()
            temporary.unlink(missing_ok=True)
            raise
        return listener

    def _unlink(self) -> None:
        if self.place() is Place.OURS:
            self.path.unlink(missing_ok=True)

    async def _shut(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        # A stream has to end in order: a server that is closed over it tells nobody.
        self._wake()
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            while self._watchers:
                await self._left.wait()
        server.close()

    # -- the service -----------------------------------------------------------------------------------------------

    def __mapping__(self) -> dict[str, Handler]:
        """The calls, as grpclib asks a service for them."""
        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        m = messages
        return {
            m.OPTIONS: Handler(self._options, unary, m.Empty, m.DevicePluginOptions),
            m.LIST_AND_WATCH: Handler(self._list_and_watch, stream, m.Empty, m.ListAndWatchResponse),
            m.ALLOCATE: Handler(self._allocate, unary, m.AllocateRequest, m.AllocateResponse),
            m.PRE_START: Handler(self._pre_start, unary, m.PreStartContainerRequest, m.PreStartContainerResponse),
        }

    async def _options(self, stream: Stream[Any, Any]) -> None:
        await _received(stream)
        await stream.send_message(messages.DevicePluginOptions())

    async def _list_and_watch(self, stream: Stream[Any, Any]) -> None:
        await _received(stream)
        server = self._server
        self._watchers += 1
        try:
            while self._server is server:
                changed, offer = self._changed, self.offer
                # Ten thousand devices take ten milliseconds: not the loop's.
                await stream.send_message(await anyio.to_thread.run_sync(_listed, offer))
                _log.info("%s: kubelet was told of %d devices", self.resource, offer.count)
                await changed.wait()
        finally:
            self._watchers -= 1
            left, self._left = self._left, asyncio.Event()
            left.set()
            if not self._watchers and self._server is server is not None:
                self._deserted(self.resource)

    async def _allocate(self, stream: Stream[Any, Any]) -> None:
        """There is nothing to put into a container: the devices only count. Strange ones are refused."""
        request = await _received(stream)
        asked = [device for container in request.container_requests for device in container.devices_ids]
        strange = [device for device in asked if not self.offer.has(device)]
        outcome = "refused" if strange else "allocated"
        metrics.DEVICE_ALLOCATIONS.labels(resource=self.resource, outcome=outcome).inc()
        if strange:
            has = f"{self.offer.count} devices, {self.offer.stem}-0 and so on"
            raise GRPCError(Status.INVALID_ARGUMENT, f"{self.resource}: no device {strange[0]!r}: there are {has}")
        reply = messages.AllocateResponse()
        for _ in request.container_requests:
            reply.container_responses.add()
        await stream.send_message(reply)

    async def _pre_start(self, stream: Stream[Any, Any]) -> None:
        await _received(stream)
        await stream.send_message(messages.PreStartContainerResponse())


async def _received(stream: Stream[Any, Any]) -> Any:
    """The call's message. Raises `GRPCError` for one that is none, so that nothing but its caller hears of it."""
    try:
        message = await stream.recv_message()
    except DecodeError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, f"the message cannot be read: {error}") from None
    if message is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the message is missing")
    return message


def _listed(offer: Offer) -> Any:
    return messages.ListAndWatchResponse(devices=[{"ID": device, "health": messages.HEALTHY} for device in offer.ids()])
