"""A TCP relay between a client and a server that can lose what passes, in either direction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto


class Fault(Enum):
    """What happens to bytes from now on."""

    NONE = auto()
    LOSE_REQUEST = auto()
    """The next bytes of the client do not arrive; the connection breaks."""
    LOSE_REPLY = auto()
    """The next bytes of the server do not arrive; the connection breaks."""
    SILENCE = auto()
    """Nothing of the server arrives any more, and the connection stays: half open."""
    REFUSE = auto()
    """New connections are closed at once."""


class Relay:
    """One relay. Change `fault` at any time."""

    def __init__(self, host: str, port: int) -> None:
        self.fault = Fault.NONE
        self.port = 0
        self.connections = 0
        self._target = (host, port)
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Relay"]:
        """Listen on a loopback port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.connections += 1
            if self.fault is Fault.REFUSE:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers += [writer, far_writer]
            await asyncio.gather(
                self._pass(reader, far_writer, Fault.LOSE_REQUEST), self._pass(far_reader, writer, Fault.LOSE_REPLY)
            )
        finally:
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, breaks: Fault) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.fault is breaks:
                    self.fault = Fault.NONE
                    self.cut()
                    return
                if self.fault is Fault.SILENCE and breaks is Fault.LOSE_REPLY:
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()
