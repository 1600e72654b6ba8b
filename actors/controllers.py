"""How an agent reaches the controller: any replica that answers, through channels that come and go.

Requests are idempotent, so one that may or may not have been carried out is simply sent to the next replica. The
replicas come from `SPIDERPOOL_CONTROLLER_ADDRESSES`, or are the controller in the same process.
"""

import logging
from collections.abc import Sequence

import anyio
import msgspec
from msgspec import Struct

from api import wire
from runtime.clock import Clock
from runtime.transport.port import Channel, DeadlineExceeded, Overloaded, TransportError, Unreachable
from telemetry import traces

_log = logging.getLogger(__name__)

_ROUND_SECONDS = 0.05
"""Pause after a round in which no replica answered."""


class Answer(Struct, frozen=True):
    """What a replica said."""

    response: wire.Response
    doubtful: bool
    """Whether another copy of the request may still be under way, at a replica that gave no answer."""


class Controllers:
    """The channels to all replicas, behind one `ask`."""

    def __init__(self, channels: Sequence[Channel], *, clock: Clock) -> None:
        """`channels` are tried in order, those that are connected first."""
        self._channels = list(channels)
        self._clock = clock

    def add(self, channel: Channel) -> None:
        """Another replica."""
        self._channels.append(channel)

    def discard(self, channel: Channel) -> None:
        """A replica that is gone; an unknown one is ignored."""
        if channel in self._channels:
            self._channels.remove(channel)

    def __repr__(self) -> str:
        return f"<Controllers {self.connections}/{len(self._channels)} connected>"

    @property
    def connections(self) -> int:
        """How many replicas would be asked at once."""
        return sum(channel.connected for channel in self._channels)

    async def ask(self, request: wire.Request, *, deadline: float) -> Answer:
        """Send a request to one replica after another until one answers, by `deadline` (clock port, seconds).

        Raises `Unreachable` when none took the request, and another `TransportError` when it may have been carried out.
        """
        payload = wire.encode(request)
        ambiguous: TransportError | None = None
        last: TransportError | None = None
        with traces.span(f"rpc {type(request).__name__}"):
            while True:
                channels = sorted(self._channels, key=lambda c: not c.connected)
                if not channels and self._clock.now() >= deadline:
                    # The last one may have gone in the middle: what it was asked may still be carried out.
                    raise ambiguous or Unreachable("no controller replica is known: is the controller's Service ready?")
                for channel in channels:
                    left = deadline - self._clock.now()
                    if left <= 0:
                        raise ambiguous or last or Unreachable("no controller replica answered in time")
                    # A replica that is not connected gets a share of the time only: the next one may be.
                    until = deadline if channel.connected else self._clock.now() + left / (1 + len(channels))
                    try:
                        reply = await channel.request(payload, deadline=until, traceparent=traces.inject())
                        return Answer(wire.decode_response(reply), doubtful=ambiguous is not None)
                    except Unreachable as error:
                        last = error
                    except DeadlineExceeded as error:
                        ambiguous = error
                    except Overloaded as error:
                        raise error from None
                    except TransportError as error:
                        _log.warning("controller: %s: %s", channel, error)
                        ambiguous = error
                    except msgspec.DecodeError as error:
                        msg = f"a controller replica answered what cannot be read: {error}"
                        raise TransportError(msg) from error
                await anyio.sleep(_ROUND_SECONDS)
