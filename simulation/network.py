"""The network between agents and controllers as a model: it delays, and it shows when a controller has died.

`runtime.testing.transport` can do everything that a network does to somebody, and costs as much as an allocation does.
Here nothing is lost, doubled or late. Unless somebody is to die a handler runs in its caller's task, and the time of
the way back passes before: cheaper, and nobody can tell.
"""

import asyncio
from random import Random

from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Disconnected,
    Handler,
    Interim,
    Overloaded,
    Peer,
    RemoteFailure,
    Unreachable,
)


class ModelledNetwork:
    """Every address, and what lies between them."""

    def __init__(self, *, latency: float, random: Random, mortal: bool = False) -> None:
        """`latency` is the mean of one way, in seconds; `mortal`: `withdraw` may be called."""
        self.mortal = mortal
        self._flights: dict[str, dict[asyncio.Task[bytes], None]] = {}
        self._latency = latency
        self._random = random
        self._handlers: dict[str, Handler] = {}

    def __repr__(self) -> str:
        return f"<ModelledNetwork of {', '.join(self._handlers)}>"

    def serve(self, address: str, handler: Handler) -> None:
        """From now on `handler` answers what is sent there."""
        self._handlers[address] = handler

    def withdraw(self, address: str) -> None:
        """Whoever answered there is dead: what it had in hand ends, and its callers know."""
        del self._handlers[address]
        for task in list(self._flights.get(address, {})):
            task.cancel()

    def handler(self, address: str) -> Handler | None:
        """Who answers there."""
        return self._handlers.get(address)

    def channel(self, address: str, *, peer: Peer) -> "ModelledChannel":
        """The way there, of somebody whose credentials prove that it is `peer`."""
        return ModelledChannel(self, address, peer)

    async def handled(self, address: str, handler: Handler, call: Call) -> bytes:
        """What the handler answers, unless it dies over it. Raises `Disconnected`."""
        if not self.mortal:
            return await handler(call)
        task = asyncio.get_running_loop().create_task(_answer(handler, call))
        flights = self._flights.setdefault(address, {})
        flights[task] = None
        try:
            return await task
        except asyncio.CancelledError:
            if self._handlers.get(address) is not handler:
                msg = f"{address} has gone"
                raise Disconnected(msg) from None
            task.cancel()
            raise
        finally:
            del flights[task]

    def delay(self) -> float:
        """Of one message."""
        return self._latency * (0.5 + 0.5 * self._random.expovariate(1.0))


class ModelledChannel:
    """`runtime.transport.port.Channel` across a `ModelledNetwork`."""

    def __init__(self, network: ModelledNetwork, address: str, peer: Peer) -> None:
        """Made by `ModelledNetwork.channel`."""
        self._network = network
        self._address = address
        self._peer = peer

    def __repr__(self) -> str:
        return f"<ModelledChannel to {self._address}>"

    @property
    def connected(self) -> bool:
        """See the port."""
        return self._network.handler(self._address) is not None

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,  # noqa: ARG002 - who is there is not silent
        patient: bool = False,  # noqa: ARG002
        interim: Interim | None = None,  # noqa: ARG002 - no node here wants to know anything ahead
    ) -> bytes:
        """See the port."""
        loop, network = asyncio.get_running_loop(), self._network
        handler = network.handler(self._address)
        if handler is None or deadline <= loop.time():
            msg = f"{self._address} has no connection, or too little time was left"
            raise Unreachable(msg)
        await asyncio.sleep(network.delay() if network.mortal else network.delay() + network.delay())
        if network.handler(self._address) is handler:
            call = Call(payload=payload, peer=self._peer, deadline=deadline, traceparent=traceparent)
            try:
                reply = await network.handled(self._address, handler, call)
            except Disconnected:
                raise
            except Overloaded:
                await asyncio.sleep(network.delay())
                raise
            except Exception as error:
                msg = f"{type(error).__name__}: {error}"
                raise RemoteFailure(msg) from error
            if network.handler(self._address) is handler:
                if network.mortal:
                    await asyncio.sleep(network.delay())
                if loop.time() > deadline:
                    msg = f"{self._address} did not answer in time"
                    raise DeadlineExceeded(msg)
                return reply
        msg = f"{self._address} has gone"
        raise Disconnected(msg)


async def _answer(handler: Handler, call: Call) -> bytes:
    return await handler(call)
