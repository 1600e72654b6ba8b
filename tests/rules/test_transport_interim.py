"""What a handler says ahead of its reply, across every transport."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from runtime.testing.transport import SimulatedNetwork, Weather
from runtime.transport.local import LocalChannel
from runtime.transport.port import Call, Channel, Handler, Peer
from tests.rules.transport_world import World, soon

type Connect = Callable[[Handler], AbstractAsyncContextManager[Channel]]


@pytest.fixture(params=["tls", "local", "simulated"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    @asynccontextmanager
    async def tls(handler: Handler) -> AsyncIterator[Channel]:
        world = World(tmp_path, handler)
        async with world.serving(), world.connecting() as channel:
            yield channel

    @asynccontextmanager
    async def local(handler: Handler) -> AsyncIterator[Channel]:
        yield LocalChannel(handler, Peer(account="standalone"))

    @asynccontextmanager
    async def simulated(handler: Handler) -> AsyncIterator[Channel]:
        async with SimulatedNetwork(Random(1), weather=Weather(delay=(0.001, 0.001))) as network:
            network.serve("c0", handler)
            yield network.channel("n1", "c0")

    found: Connect = {"tls": tls, "local": local, "simulated": simulated}[request.param]
    return found


class Hasty:
    """Says something ahead, and replies when it has been heard."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.call: Call | None = None

    async def __call__(self, call: Call) -> bytes:
        self.call = call
        call.interim(b"ahead")
        await self.go.wait()
        return b"reply"


async def test_it_comes_before_the_reply(connect: Connect) -> None:
    hasty = Hasty()
    heard: list[bytes] = []

    def hear(payload: bytes) -> None:
        heard.append(payload)
        hasty.go.set()

    async with connect(hasty) as channel:
        assert await channel.request(b"x", deadline=soon(5), interim=hear) == b"reply"
    assert heard == [b"ahead"]


async def test_who_does_not_listen_gets_the_reply(connect: Connect) -> None:
    hasty = Hasty()
    hasty.go.set()
    async with connect(hasty) as channel:
        assert await channel.request(b"x", deadline=soon(5)) == b"reply"
        assert await channel.request(b"y", deadline=soon(5)) == b"reply", "the connection is as before"


async def test_what_is_said_behind_the_reply_is_lost(connect: Connect) -> None:
    hasty = Hasty()
    hasty.go.set()
    heard: list[bytes] = []
    async with connect(hasty) as channel:
        assert await channel.request(b"x", deadline=soon(5), interim=heard.append) == b"reply"
        first = hasty.call
        assert first is not None
        before = list(heard)
        if not isinstance(channel, LocalChannel):  # there it is a call, and whoever makes it late is heard
            first.interim(b"late")
            assert await channel.request(b"y", deadline=soon(5)) == b"reply"
    assert heard == before
