"""The allocator: takes the agents' requests for addresses, and answers each when its work is done.

Messages: `Serve` from the agents' connections, `Served` and `Crashed` from its own work. State: none between requests.
Persists: nothing itself; pools persist their records, and the SpiderEndpoint is written last. Answers: when every
address is committed and the endpoint written (`actors.allocation.grants`), or everything is given back
(`actors.allocation.returns`); or with a rejection, which says whether records may be held.

A request for addresses that would not be served before its deadline is turned away at once, to come again
(`actors.allocation.pace`). Releases never are, and they do not count: most of their time they wait for SpiderEndpoints.

Each request is one coroutine beside the actor, so that one slow pool holds up nobody else. What a crash leaves: records
of a pod whose agent got no answer. That agent repeats the request elsewhere (it finds them) or releases by pod uid, NIC
and container; both need no memory of ours.
"""

import logging
from typing import assert_never

from msgspec import Struct

from actors.allocation.callers import Refusal
from actors.allocation.endpoint import EndpointContended
from actors.allocation.grants import UNHEARD, Early, Grants
from actors.allocation.pace import Pace
from actors.allocation.returns import Returns
from api.wire import (
    Allocate,
    Disown,
    FindCoordinator,
    FindEndpoint,
    FindNetworks,
    Inquire,
    Ready,
    Rejected,
    Release,
    Report,
    Request,
    Response,
    SetNetworkStatus,
)
from runtime.actor import LATER, Actor, Question
from runtime.envelope import Envelope, Reply
from runtime.errors import ActorError
from runtime.store.port import StoreError
from runtime.transport.port import Peer

_log = logging.getLogger(__name__)


class Serve(Question[Response], frozen=True, tag=True):
    """A request and who sent it."""

    request: Request
    peer: Peer
    early: Early = UNHEARD
    """Told the answer of an `Allocate` ahead, where it wants that (`api.wire.Allocate.early`)."""


class Served(Struct, frozen=True, tag=True):
    """A request's work has ended."""

    number: int
    response: Response


class Crashed(Struct, frozen=True, tag=True):
    """A request's work raised something that it should not have."""

    number: int
    error: Exception


class AllocatorActor(Actor[Serve | Served | Crashed]):
    """See the module."""

    capacity = 8192

    def __init__(self, grants: Grants, returns: Returns) -> None:
        """They do the work."""
        self._grants = grants
        self._returns = returns
        self._asks: dict[int, Envelope] = {}
        self._number = 0
        self._pace = Pace()

    def __repr__(self) -> str:
        return f"<AllocatorActor {len(self._asks)} under way>"

    def handle(self, message: Serve | Served | Crashed, envelope: Envelope) -> object:
        """Start a request's work, or pass on its result."""
        match message:
            case Serve(request, peer, early):
                now = self.system.clock.now()
                deadline = envelope.deadline
                if isinstance(request, Allocate) and deadline and not self._pace.takes(now=now, deadline=deadline):
                    return self._too_many(request, deadline - now)
                if _counts(envelope):
                    self._pace.begun(now=now)
                self._number += 1
                number = self._number
                self._asks[number] = envelope
                self.pipe(
                    self._serve(request, peer, early),
                    lambda response: Served(number, response),
                    failed=lambda error: Crashed(number, error),
                    on_behalf=envelope,
                )
                return LATER
            case Served(number, response):
                reply = self._end(number)
                if reply is not None:
                    reply.resolve(response)
            case Crashed(number, error):
                _log.error("a request failed", exc_info=error)
                reply = self._end(number)
                if reply is not None:
                    reply.fail(error)
            case _:
                assert_never(message)
        return None

    def _end(self, number: int) -> Reply | None:
        asked = self._asks.pop(number)
        if _counts(asked):
            self._pace.ended(now=self.system.clock.now())
        return asked.reply

    def _too_many(self, request: Allocate, seconds: float) -> Rejected:
        under_way, rate = self._pace.under_way, self._pace.rate
        text = f"{under_way} requests are before it, {rate:.0f} a second are served, and it would wait {seconds:.0f} s"
        return Rejected(message=f"pod {request.pod}: {text}", retry=True, cause="overloaded")

    async def _serve(self, request: Request, peer: Peer, early: Early) -> Response:
        try:
            match request:
                case Allocate():
                    return await self._grants.allocate(request, peer, early if request.early else UNHEARD)
                case Release():
                    return await self._returns.release(request, peer)
                case Inquire():
                    return Ready()
                case Disown():
                    return await self._returns.disown(request, peer)
                case Report() | FindEndpoint() | FindCoordinator() | FindNetworks() | SetNetworkStatus():
                    # Others' business; see `actors.controller`.
                    return Rejected(message=f"{type(request).__name__} is not for the allocator", cause="internal")
                case _:
                    assert_never(request)
        except Refusal as refusal:
            return refusal.rejected
        except (StoreError, ActorError, EndpointContended) as error:
            return Rejected(message=f"{type(error).__name__}: {error}", retry=True, cause="internal", held=True)


def _counts(asked: Envelope) -> bool:
    """Whether a request is one of those that the pace is measured by."""
    if not (isinstance(asked.message, Serve) and isinstance(asked.message.request, Allocate)):
        return False
    # How long a network provider takes says nothing of how fast this replica is.
    request = asked.message.request
    return not (request.parent_mac or any(one.parent_mac for one in request.more))
