"""Kubelet's side of the device plugin API, on real sockets: it takes registrations, follows lists, asks for devices.

It behaves as kubelet's device manager does: it empties its folder when it starts, answers a registration before it
connects back, and counts no device of a plugin whose stream has ended. It shares the descriptions of the messages with
the product; that those are right, a real kubelet shows (tests/cluster/test_devices.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Server, Stream

from actors.devices import messages

CHECKPOINT = "kubelet_internal_checkpoint"


class DeviceManager:
    """On the loop that `start` runs on.

    Attributes:
        registrations: the resources of all registrations, in order.
        devices: by resource, the ids of the healthy devices; an empty list after a stream has ended.
        refuse: what to answer the next registrations with; empty: nothing is refused.
        answering: cleared, registrations are taken and wait for their answers.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "device-plugins"
        self.registrations: list[str] = []
        self.devices: dict[str, list[str]] = {}
        self.refuse = ""
        self.deaf = False
        self.answering = asyncio.Event()
        self.answering.set()
        self._endpoints: dict[str, Path] = {}
        self._server: Server | None = None
        self._streams: dict[str, asyncio.Task[None]] = {}

    def __mapping__(self) -> dict[str, Handler]:
        handler = Handler(self._register, Cardinality.UNARY_UNARY, messages.RegisterRequest, messages.Empty)
        return {messages.REGISTER: handler}

    async def start(self) -> None:
        """As a start of kubelet's: what is in the folder goes, then the socket is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if path.name != CHECKPOINT:
                path.unlink()
        self._server = Server([self])
        await self._server.start(path=str(self.folder / "kubelet.sock"))

    async def stop(self) -> None:
        """As a kill: nothing is cleaned up, and no stream lives on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in self._streams.values():
            task.cancel()
        await asyncio.gather(*self._streams.values(), return_exceptions=True)
        self._streams.clear()
        self.devices.clear()

    def drop(self, resource: str) -> None:
        """Follow a resource no more, without a word, as older kubelets do when the plugin before it has ended."""
        self._streams[resource].cancel()

    async def allocate(self, resource: str, ids: Sequence[str]) -> int:
        """Ask for devices of one container; how many containers the answer is for. Raises `GRPCError`."""
        async with self._call(resource) as channel:
            method = UnaryUnaryMethod(channel, messages.ALLOCATE, messages.AllocateRequest, messages.AllocateResponse)
            reply = await method(messages.AllocateRequest(container_requests=[{"devices_ids": list(ids)}]), timeout=5)
        return len(reply.container_responses)

    async def options(self, resource: str) -> Any:
        """GetDevicePluginOptions."""
        async with self._call(resource) as channel:
            method = UnaryUnaryMethod(channel, messages.OPTIONS, messages.Empty, messages.DevicePluginOptions)
            return await method(messages.Empty(), timeout=5)

    async def pre_start(self, resource: str, ids: Sequence[str]) -> Any:
        """PreStartContainer."""
        m = messages
        async with self._call(resource) as channel:
            method = UnaryUnaryMethod(channel, m.PRE_START, m.PreStartContainerRequest, m.PreStartContainerResponse)
            return await method(m.PreStartContainerRequest(devices_ids=list(ids)), timeout=5)

    @contextlib.asynccontextmanager
    async def _call(self, resource: str) -> Any:
        channel = Channel(path=str(self._endpoints[resource]))
        try:
            yield channel
        finally:
            channel.close()

    async def _register(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        assert request is not None
        self.registrations.append(request.resource_name)
        if self.refuse:
            raise GRPCError(Status.UNKNOWN, self.refuse)
        assert request.version == "v1beta1", request.version
        assert "/" not in request.endpoint, "a name in the folder"
        await self.answering.wait()
        await stream.send_message(messages.Empty())
        if self.deaf:
            return
        self._endpoints[request.resource_name] = self.folder / request.endpoint
        self._streams[request.resource_name] = asyncio.create_task(self._follow(request.resource_name))

    async def _follow(self, resource: str) -> None:
        channel = Channel(path=str(self._endpoints[resource]))
        task = asyncio.current_task()
        try:
            m = messages
            async with UnaryStreamMethod(channel, m.LIST_AND_WATCH, m.Empty, m.ListAndWatchResponse).open() as stream:
                await stream.send_message(m.Empty(), end=True)
                async for reply in stream:
                    self.devices[resource] = [it.ID for it in reply.devices if it.health == "Healthy"]
        except (OSError, StreamTerminatedError, GRPCError):
            pass  # the plugin has gone
        finally:
            channel.close()
            if self._streams.get(resource) is task:
                self.devices[resource] = []


class DeviceManagerThread:
    """The same for tests without a loop: `call` runs a coroutine of the manager's and returns its result."""

    def __init__(self, root: Path) -> None:
        self.manager = DeviceManager(root)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="device manager")

    def __enter__(self) -> Self:
        self._thread.start()
        self.call(self.manager.start)
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.manager.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Of a coroutine function or of a plain one."""

        async def run() -> Any:
            result = function(*arguments)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def counts(self) -> dict[str, int]:
        """Healthy devices by resource: what kubelet would call allocatable."""
        return {name: len(ids) for name, ids in sorted(self.manager.devices.items())}

    def wait_for(self, expected: dict[str, int], *, seconds: float = 30.0) -> None:
        """Until `counts` are these, resources without devices left out. Raises AssertionError."""
        deadline = time.monotonic() + seconds
        while {name: count for name, count in self.counts().items() if count} != expected:
            assert time.monotonic() < deadline, f"{self.counts()} instead of {expected}"
            time.sleep(0.05)
