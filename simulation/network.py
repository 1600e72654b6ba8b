"""The network between agents and controllers as a model: it delays, and it shows when a controller has died.

`runtime.testing.transport` can do everything that a network does to somebody, and costs as much as an allocation does.
Here nothing is lost, doubled or late. A handler runs in its caller's task; when its controller dies the actors that it
asks answer that they have ended, and the caller learns nothing but that the connection broke.
"""

import asyncio
from random import Random

from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Disconnected,
    Handler,
    Overloaded,
    Peer,
    RemoteFailure,
    Unreachable,
)


class ModelledNetwork:
    """Every address, and what lies between them."""

    def __init__(self, *, latency: float, random: Random) -> None:
        """`latency` is the mean of one way, in seconds."""
        self._latency = latency
        self._random = random
        self._handlers: dict[str, Handler] = {}

    def __repr__(self) -> str:
        return f"<ModelledNetwork of {', '.join(self._handlers)}>"

    def serve(self, address: str, handler: Handler) -> None:
        """From now on `handler` answers what is sent there."""
        self._handlers[address] = handler

    def withdraw(self, address: str) -> None:
        """Whoever answered there is dead: nobody hears from it any more."""
        del self._handlers[address]

    def handler(self, address: str) -> Handler | None:
        """Who answers there."""
        return self._handlers.get(address)

    def channel(self, address: str, *, peer: Peer) -> "ModelledChannel":
        """The way there, of somebody whose credentials prove that it is `peer`."""
        return ModelledChannel(self, address, peer)

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
    ) -> bytes:
        """See the port."""
        loop, network = asyncio.get_running_loop(), self._network
        handler = network.handler(self._address)
        if handler is None or deadline <= loop.time():
            msg = f"{self._address} has no connection, or too little time was left"
            raise Unreachable(msg)
        await asyncio.sleep(network.delay())
        if network.handler(self._address) is handler:
            call = Call(payload=payload, peer=self._peer, deadline=deadline, traceparent=traceparent)
            try:
                reply = await handler(call)
            except Overloaded:
                await asyncio.sleep(network.delay())
                raise
            except Exception as error:
                msg = f"{type(error).__name__}: {error}"
                raise RemoteFailure(msg) from error
            if network.handler(self._address) is handler:
                await asyncio.sleep(network.delay())
                if loop.time() > deadline:
                    msg = f"{self._address} did not answer in time"
                    raise DeadlineExceeded(msg)
                return reply
        msg = f"{self._address} has gone"
        raise Disconnected(msg)
