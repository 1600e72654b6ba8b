"""How an agent reaches the controller: any replica that answers, through channels that come and go.

Requests are idempotent, so one that may or may not have been carried out is simply sent to the next replica; a replica
that hangs costs no more than a dead one, for it is left as soon as it is silent. Every node has an order of its own
among the replicas (the one by which pools are spread too), so that the agents spread over them.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio
import msgspec
from msgspec import Struct

from api import wire
from runtime.clock import Clock
from runtime.ownership import score
from runtime.transport.port import Channel, DeadlineExceeded, Overloaded, Refused, Silent, TransportError, Unreachable
from telemetry import traces

_log = logging.getLogger(__name__)

_ROUND_SECONDS = 0.05
"""Pause after a round in which no replica answered."""
_LOOK_SECONDS = 0.5
"""While none is connected: a look whether one is, should nobody say so. Hundreds of requests may wait like this."""


class Answer(Struct, frozen=True):
    """What a replica said."""

    response: wire.Response
    doubtful: bool
    """Whether another copy of the request may still be under way, at a replica that gave no answer."""


class Controllers:
    """The channels to all replicas, behind one `ask`."""

    def __init__(self, channels: Sequence[Channel], *, clock: Clock, node: str = "") -> None:
        """`channels` are tried in order, those that are connected first. `node` decides the order of those added."""
        self._channels = list(channels)
        self._clock = clock
        self._node = node
        self._names: dict[Channel, str] = {}
        self._listeners: list[Callable[[], None]] = []
        self._last_resort: Channel | None = None
        self._news = anyio.Event()

    def resort_to(self, channel: Channel) -> None:
        """Have `channel` asked where no replica can be."""
        self._last_resort = channel

    def add(self, channel: Channel, *, name: str = "") -> None:
        """Another replica; by `name` it finds its place among the others."""
        self._names[channel] = name
        self._channels.append(channel)
        self._channels.sort(key=lambda known: score(self._node, self._names.get(known, "")))

    def on_connect(self, listener: Callable[[], None]) -> None:
        """Have `listener` called whenever a replica that could not be asked can be asked again."""
        self._listeners.append(listener)

    def connected(self) -> None:
        """A channel is up: to be called by whoever keeps the channels."""
        self._news.set()
        self._news = anyio.Event()
        for listener in self._listeners:
            listener()

    def discard(self, channel: Channel) -> None:
        """A replica that is gone; an unknown one is ignored."""
        if channel in self._channels:
            self._channels.remove(channel)
            self._names.pop(channel, None)

    def __repr__(self) -> str:
        return f"<Controllers {self.connections}/{len(self._channels)} connected>"

    @property
    def connections(self) -> int:
        """How many replicas would be asked at once."""
        return sum(channel.connected for channel in self._channels)

    async def ask(
        self,
        request: wire.Request,
        *,
        deadline: float,
        patient: bool = False,
        interim: Callable[[wire.Response], None] | None = None,
    ) -> Answer:
        """Send a request to one replica after another until one answers, by `deadline` (clock port, seconds).

        With `patient` a replica may hold its answer back (`runtime.transport.port`), and the request is sent once only:
        a minute later it would say what is not true any more. `interim` is told what a replica says ahead.
        Raises `Unreachable` when none took the request, and another `TransportError` when it may have been carried out.
        """
        payload = wire.encode(request)
        ambiguous: TransportError | None = None
        last: TransportError | None = None
        with traces.span(f"rpc {type(request).__name__}"):
            while True:
                connected = self._connected()
                if self._clock.now() >= deadline or (patient and ambiguous is not None):
                    raise ambiguous or last or await self._why_not()
                for channel in connected:
                    if self._clock.now() >= deadline or (patient and ambiguous is not None):
                        break
                    if not channel.connected:
                        continue  # gone while another one was asked
                    # Only who has somebody else to ask may leave a replica that is silent for a moment. Nobody waits
                    # for a release: a replica with too much to do would only have to do it twice.
                    hurry = not isinstance(request, wire.Release) and any(
                        other.connected for other in self._channels if other is not channel
                    )
                    try:
                        reply = await channel.request(
                            payload,
                            deadline=deadline,
                            traceparent=traces.inject(),
                            hurry=hurry,
                            patient=patient,
                            interim=None if interim is None else partial(_pass_on, interim),
                        )
                        response = wire.decode_response(reply)
                        copies = isinstance(response, wire.Allocated) and response.doubtful
                        return Answer(response, doubtful=ambiguous is not None or copies)
                    except (Unreachable, Refused) as error:
                        last = error
                    except DeadlineExceeded as error:
                        ambiguous = error
                    except Overloaded as error:
                        raise error from None
                    except Silent as error:
                        ambiguous = error  # the channel has said so, once
                    except TransportError as error:
                        _log.warning("controller: %s: %s", channel, error)
                        ambiguous = error
                    except msgspec.DecodeError as error:
                        msg = f"a controller replica answered what cannot be read: {error}"
                        raise TransportError(msg) from error
                await self._pause(deadline, after_a_round=bool(connected))

    async def _pause(self, deadline: float, *, after_a_round: bool) -> None:
        """Until it is worth asking again: whichever channel comes up first is the one to ask."""
        left = max(0.0, deadline - self._clock.now())
        if after_a_round:
            await anyio.sleep(min(_ROUND_SECONDS, left))
            return
        with anyio.move_on_after(min(_LOOK_SECONDS, left)):
            await self._news.wait()

    def _connected(self) -> list[Channel]:
        """Whom to ask, in this order."""
        connected = [channel for channel in self._channels if channel.connected]
        if not connected and self._last_resort is not None and self._last_resort.connected:
            return [self._last_resort]
        return connected

    async def _why_not(self) -> TransportError:
        """What a channel that is not connected has to say about it."""
        for channel in self._channels:
            try:
                await channel.request(b"", deadline=self._clock.now())
            except TransportError as error:
                return error
        return Unreachable("no controller replica is known: is the controller's Service ready?")


def _pass_on(interim: Callable[[wire.Response], None], payload: bytes) -> None:
    with suppress(msgspec.DecodeError):  # whatever it is, the answer comes behind it
        interim(wire.decode_response(payload))
