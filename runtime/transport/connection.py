"""One connection that carries frames: what client and server do alike. The bytes move on asyncio streams."""

import asyncio
from collections.abc import Callable

import anyio

from runtime.transport.frames import MAX_FRAME, Decoder, Frame, FrameError, Ping, Pong, encode
from runtime.transport.port import Disconnected

_READ = 256 * 2**10
"""Bytes taken from the stream at once."""

_FAREWELL = 0.5
"""Seconds that the other side gets to take what is still unsent, when a connection is closed in order."""


class Connection:
    """Both directions of one connection, after the TLS handshake.

    Pings are answered here and never seen by the caller.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limit: int = MAX_FRAME) -> None:
        """`limit` is the largest frame to accept, in bytes."""
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(limit=limit)
        self._early: list[Frame] = []
        self._broken = ""
        self._heard = asyncio.get_running_loop().time()
        self.on_word: Callable[[], None] | None = None
        """Called once when something is heard again, a ping's answer included."""
        host, port, *_ = writer.get_extra_info("peername") or ("?", 0)
        self.host: str = host
        self.remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def __repr__(self) -> str:
        return f"<Connection {self.remote}{' closed' if self._writer.is_closing() else ''}>"

    @property
    def heard(self) -> float:
        """When the last bytes came, loop seconds."""
        return self._heard

    def accept_up_to(self, limit: int) -> None:
        """Change the size of the largest frame to accept."""
        self._decoder.limit = limit

    def send(self, frame: Frame) -> None:
        """Queue a frame. On a broken connection it vanishes: the reading side tells. Raises `FrameTooLarge`."""
        data = encode(frame)
        if not self._writer.is_closing():
            self._writer.write(data)

    async def flush(self) -> None:
        """Wait while too much is queued. Raises `Disconnected`; cancelling it leaves everything queued."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise self._disconnected(error) from error

    async def receive(self) -> list[Frame]:
        """The next frames, at least one.

        Raises:
            Disconnected: The connection has ended.
            FrameError: The other side sent something that is not a frame; what came before it was returned.
        """
        while True:
            frames = self._take()
            if frames:
                return frames
            try:
                data = await self._reader.read(_READ)
            except OSError as error:
                raise self._disconnected(error) from error
            if not data:
                raise self._disconnected(None)
            self._heard = asyncio.get_running_loop().time()
            if self.on_word is not None:
                woken, self.on_word = self.on_word, None
                woken()
            self._decoder.feed(data)

    async def receive_one(self) -> Frame:
        """The next frame alone, for the first words; what came with it is kept. Raises as `receive` does."""
        first, *self._early = await self.receive()
        return first

    async def watch(self, *, ping: float, silence: float) -> None:
        """Keep the connection alive: after `ping` seconds without a word ask for one, after `silence` give it up.

        Runs until then; afterwards `receive` and `flush` raise `Disconnected` with the reason.
        """
        loop = asyncio.get_running_loop()
        while True:
            quiet = loop.time() - self._heard
            if quiet >= silence:
                self.abort(f"nothing heard for {quiet:.1f} s")
                return
            if quiet >= ping:
                self.send(Ping())
            due = loop.time() + min(ping, silence - quiet)
            await anyio.sleep_until(due)
            if loop.time() > due + ping:
                # We were the ones asleep (a paused machine, a blocked loop): what came meanwhile is not read yet.
                self._heard = loop.time()

    def abort(self, reason: str) -> None:
        """End it at once; what is queued is lost. The first reason stays."""
        self._broken = self._broken or reason
        self._writer.transport.abort()

    async def close(self) -> None:
        """End it in order, with half a second for what is queued, then at once. Not cut short by cancellation."""
        self._writer.close()
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_FAREWELL):
                await self._closed()
                return
            self._writer.transport.abort()
            await self._closed()

    async def _closed(self) -> None:
        try:
            await self._writer.wait_closed()
        except OSError:
            return  # it had broken before: no matter now

    def _take(self) -> list[Frame]:
        frames, self._early = self._early, []
        try:
            for frame in self._decoder.frames():
                if isinstance(frame, Ping):
                    self.send(Pong())
                elif not isinstance(frame, Pong):
                    frames.append(frame)
        except FrameError:
            if not frames:
                raise
        return frames

    def _disconnected(self, error: OSError | None) -> Disconnected:
        if self._broken:
            return Disconnected(self._broken)
        if error is not None:
            return Disconnected(f"the connection broke: {error}")
        if self._decoder.buffered:
            return Disconnected(f"the connection ended inside a frame, after {self._decoder.buffered} bytes of it")
        return Disconnected("the other side closed the connection")
