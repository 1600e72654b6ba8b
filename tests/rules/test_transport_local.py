"""The channel inside one process keeps the port's promises."""

import asyncio

import anyio
import pytest

from runtime.testing import run
from runtime.transport.local import LocalChannel
from runtime.transport.port import Call, DeadlineExceeded, Overloaded, Peer, RemoteFailure, Unreachable

PEER = Peer(account="standalone", node="n1")


def test_the_handler_gets_the_call() -> None:
    async def main() -> None:
        calls: list[Call] = []

        async def handler(call: Call) -> bytes:
            calls.append(call)
            return b"reply"

        channel = LocalChannel(handler, PEER)
        assert channel.connected
        assert await channel.request(b"x", deadline=3.0, traceparent="tp") == b"reply"
        assert calls == [Call(payload=b"x", peer=PEER, deadline=3.0, traceparent="tp")]

    run(main, seed=1)


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (Overloaded("full"), Overloaded, "full"),
        (ValueError("a\nb"), RemoteFailure, "ValueError: a$"),
        (DeadlineExceeded("of a further call"), RemoteFailure, "of a further call"),
    ],
)
def test_what_the_handler_raises(raised: Exception, expected: type[Exception], text: str) -> None:
    async def main() -> None:
        async def handler(_: Call) -> bytes:
            raise raised

        with pytest.raises(expected, match=text):
            await LocalChannel(handler, PEER).request(b"", deadline=1.0)

    run(main, seed=1)


def test_the_deadline_and_a_cancellation_stop_the_handler() -> None:
    async def main() -> None:
        ended: list[float] = []

        async def handler(_: Call) -> bytes:
            try:
                await asyncio.sleep(100)
            finally:
                ended.append(asyncio.get_running_loop().time())
            return b""

        channel = LocalChannel(handler, PEER)
        with pytest.raises(DeadlineExceeded):
            await channel.request(b"", deadline=2.0)
        with anyio.move_on_after(1.0):
            await channel.request(b"", deadline=50.0)
        assert ended == [pytest.approx(2.0), pytest.approx(3.0)]
        with pytest.raises(Unreachable):
            await channel.request(b"", deadline=2.0)

    run(main, seed=1)
