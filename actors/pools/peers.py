"""Pools, and the collecting of what is left over, spread over the ready controller replicas, with take-over.

Every pool belongs to one replica, by rendezvous hash over the names of those that the controller's Service has ready
(`runtime.ownership`). Whoever needs a pool asks its owner: the actor in this process, or a peer over the connection
that every two replicas keep. A peer that is silent for 300 ms, or whose connection broke, is passed over: the next in
rank that answers owns its pools until it speaks again, and that may be this replica. So a hung owner costs no more than
a dead one.

None of this is what keeps an address from being granted twice: that is the resourceVersion, and the read that fences
answers (`actors.pools.ippool`). Replicas that see different peers for a moment cost each other conflicts.

A message from a peer is always dealt with here and never passed on, so it cannot go round in circles. A message that
was passed over may still be under way at the replica that did not answer: what is answered in its stead says so, and
the agent then releases twice (`actors.node.outbox`).
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

import msgspec
from msgspec import Struct

from actors.applications.application import Message as ApplicationMessage
from actors.applications.messages import Prepare, Prepared, Unprepared
from actors.pools.claims import (
    Chase,
    Claim,
    Disown,
    Granted,
    Peek,
    Reclaim,
    Refused,
    Settle,
    Surrender,
    Surrendered,
)
from actors.pools.messages import Message
from actors.subnets.messages import Discard, Discarded, NotProvided, Provide, Provided
from actors.subnets.subnet import Message as SubnetMessage
from api.wire import Attachment, Look, Noted
from ipam.autopool import application_key
from ipam.identity import Workload
from runtime.actor import Question, Ref, working_until
from runtime.clock import Clock
from runtime.errors import ActorError, AskTimeout, MailboxFull
from runtime.ownership import ranking
from runtime.transport.port import (
    Call,
    Channel,
    DeadlineExceeded,
    Overloaded,
    Silent,
    TransportError,
    Unreachable,
)
from runtime.transport.port import (
    Refused as NotAccepted,
)
from telemetry import attributes, metrics, traces

_log = logging.getLogger(__name__)

_RANKED = 8192
"""Keys whose order is remembered: names of pools come from requests, and anybody can make them up."""


class PeerBusy(ActorError):
    """The replica that owns the pool has too much to do."""


class Forward(Struct, frozen=True, tag=True):
    """A message for the actor of a pool."""

    pool: str
    message: Claim | Surrender | Disown | Reclaim | Chase | Settle | Peek


class Convey(Struct, frozen=True, tag=True):
    """A message for the actor of a subnet."""

    message: Provide | Discard


class Heard(Struct, frozen=True, tag=True):
    """What a node's agent reported, for the replica that collects. The answer is a `Noted`."""

    node: str
    attachments: tuple[Attachment, ...]
    looked: tuple[Look, ...] = ()
    round: int = 0
    via: str = ""
    """The replica that holds the agent's answer back while there is nothing to ask; empty where nobody does."""


class Wanted(Struct, frozen=True, tag=True):
    """What the replica that collects wants to know of a node, for the one that holds its agent's answer back."""

    node: str
    look: tuple[str, ...]
    round: int


class Sweep(Struct, frozen=True, tag=True):
    """Somebody wants everything looked at now, for the replica that collects."""


class Peeked(Struct, frozen=True, tag=True):
    """The answer to a `Peek`."""

    held: bool


class Unserved(Struct, frozen=True, tag=True):
    """The peer could not deal with it. It may have been carried out all the same."""

    text: str


PeerRequest = Forward | Convey | Prepare | Heard | Wanted | Sweep
_Provision = Provided | Discarded | NotProvided | Prepared | Unprepared
PeerAnswer = Granted | Surrendered | Refused | Peeked | _Provision | Noted | Unserved

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[PeerRequest] = msgspec.msgpack.Decoder(PeerRequest)
_answers: msgspec.msgpack.Decoder[PeerAnswer] = msgspec.msgpack.Decoder(PeerAnswer)


def pool_key(name: str) -> str:
    """What the owner of a pool is found by."""
    return f"pool/{name}"


def subnet_key(name: str) -> str:
    """What the owner of a subnet is found by."""
    return f"subnet/{name}"


COLLECTOR = "collector"
"""What the replica that collects is found by."""


class Chores(Struct, frozen=True):
    """What a replica does for its peers besides pools."""

    heard: Callable[[Heard, float], Awaitable[Noted]]
    """Takes in a report, by a deadline."""
    wanted: Callable[[Wanted], None]
    """Passes a question on to an agent that waits for one."""
    sweep: Callable[[], None]
    """Begins to look at everything."""


class Pool:
    """How an allocator or a collector reaches a pool, wherever its actor is."""

    __slots__ = ("_peers", "name")

    def __init__(self, peers: "Peers", name: str) -> None:
        """Made by `Peers`."""
        self._peers = peers
        self.name = name

    def __repr__(self) -> str:
        return f"<Pool {self.name} of {self._peers.owner(pool_key(self.name)) or 'this process'}>"

    async def ask[R](self, message: Question[R], *, timeout: float) -> R:
        """Ask the pool's actor as `runtime.actor.Ref.ask` does, and raise what that raises, or `PeerBusy`.

        When a peer does not answer the next in rank is asked, in the end our own actor, within the same time. Messages
        to pools are idempotent; an answer says whether another copy may still be under way.
        """
        assert isinstance(message, Claim | Surrender | Disown | Reclaim | Chase | Settle | Peek)
        answer, doubtful = await self._peers.ask(
            pool_key(self.name),
            Forward(self.name, message),
            lambda deadline: self._peers.local(self.name).ask(message, deadline=deadline),
            timeout=timeout,
        )
        if isinstance(answer, Peeked):
            return cast("R", answer.held)
        if doubtful and isinstance(answer, Granted | Refused):
            answer = msgspec.structs.replace(answer, doubtful=True)
        return cast("R", answer)


class Peers:
    """The other replicas, what they own, and the way to them. Without any, everything is here."""

    def __init__(
        self,
        me: str,
        *,
        clock: Clock,
        local: Callable[[str], Ref[Message]],
        chores: Chores | None = None,
        subnets: Callable[[str], Ref[SubnetMessage]] | None = None,
    ) -> None:
        """`me` is this replica's name. `local` gives a pool's actor in this process, `subnets` a subnet's."""
        self.me = me
        self.local = local
        self.subnets = subnets
        self.chores = chores
        self.applications: Callable[[Workload], Ref[ApplicationMessage]] | None = None
        """Gives an application's actor in this process, where applications have automatic pools."""
        self._clock = clock
        self._members: frozenset[str] = frozenset()
        self._ranked: dict[str, tuple[str, ...]] = {}
        """The members in their order for a key: they change seldom, and every claim asks."""
        self._channels: dict[str, Channel] = {}
        self._seen: dict[str, str] = {}

    def __repr__(self) -> str:
        up = sorted(name for name, channel in self._channels.items() if channel.connected)
        return f"<Peers of {self.me}: {len(self._members)} members, connected {up}>"

    def __call__(self, name: str) -> Pool:
        """The pool of that name, whether it exists or not."""
        return Pool(self, name)

    async def subnet(self, message: Provide | Discard, *, timeout: float) -> Provided | Discarded | NotProvided:
        """Ask the owner of a subnet, as `Pool.ask` asks that of a pool."""

        async def here(deadline: float) -> Provided | Discarded | NotProvided:
            return await self._subnet(message, deadline)

        answer, _ = await self.ask(subnet_key(message.subnet), Convey(message), here, timeout=timeout)
        return cast("Provided | Discarded | NotProvided", answer)

    async def _subnet(self, message: Provide | Discard, deadline: float) -> Provided | Discarded | NotProvided:
        if self.subnets is None:
            name = message.pool.name if isinstance(message, Provide) else message.pool
            return NotProvided(name, "SpiderSubnets are switched off: enableSpiderSubnet in conf.yml", lasting=True)
        ref = self.subnets(message.subnet)
        if isinstance(message, Provide):
            return await ref.ask(message, deadline=deadline)
        return await ref.ask(message, deadline=deadline)

    async def application(self, message: Prepare, *, timeout: float) -> Prepared | Unprepared:
        """Ask the owner of an application, as `Pool.ask` asks that of a pool."""

        async def here(deadline: float) -> Prepared | Unprepared:
            return await self._application(message, deadline)

        answer, _ = await self.ask(application_key(message.workload), message, here, timeout=timeout)
        return cast("Prepared | Unprepared", answer)

    async def _application(self, message: Prepare, deadline: float) -> Prepared | Unprepared:
        if self.applications is None:
            return Unprepared("automatic pools of applications are switched off", lasting=True)
        return await self.applications(message.workload).ask(message, deadline=deadline)

    def members(self, names: Iterable[str]) -> None:
        """These replicas are ready; our own name counts only when it is among them."""
        members = frozenset(names)
        if members != self._members:
            _log.info("controller replicas: %s", ", ".join(sorted(members)) or "none is ready")
        self._members = members
        self._ranked.clear()

    @property
    def replicas(self) -> int:
        """How many replicas share the work, ourselves among them."""
        return max(1, len(self._members))

    def add(self, channel: Channel, *, name: str) -> None:
        """The way to a peer."""
        self._channels[name] = channel

    def discard(self, channel: Channel) -> None:
        """A peer that is gone."""
        for name in [name for name, known in self._channels.items() if known is channel]:
            del self._channels[name]

    def owner(self, key: str) -> str:
        """Who deals with a key now: the first in rank that answers; ourselves when nobody else does."""
        return self._choose(key, frozenset())

    def mine(self, key: str) -> bool:
        """Whether a key is dealt with here."""
        return self.owner(key) == self.me

    def complete(self) -> bool:
        """Whether all other replicas that are ready would hear us now."""
        channels = (self._channels.get(name) for name in self._members if name != self.me)
        return all(channel is not None and channel.connected for channel in channels)

    def _choose(self, key: str, passed: frozenset[str]) -> str:
        ranked = self._ranked.get(key)
        if ranked is None:
            if len(self._ranked) >= _RANKED:
                self._ranked.clear()
            ranked = self._ranked[key] = ranking(key, self._members)
        for name in ranked:
            channel = self._channels.get(name)
            if name == self.me or (name not in passed and channel is not None and channel.connected):
                return name
        return self.me

    async def ask(
        self, key: str, request: PeerRequest, here: Callable[[float], Awaitable[Any]], *, timeout: float
    ) -> tuple[Any, bool]:
        """Have the owner of a key answer; `here` answers in this process, until the deadline that it is given.

        Returns the answer, and whether another copy of the request may still be under way at a silent peer.
        """
        deadline = self._clock.now() + timeout
        until = working_until()
        if until is not None:
            deadline = min(deadline, until)
        passed: frozenset[str] = frozenset()
        doubtful = False
        while True:
            name = self._choose(key, passed)
            if name == self.me:
                return await here(deadline), doubtful
            with traces.span(f"peer {_kind(request)}", attributes={attributes.PEER: name}):
                try:
                    reply = await self._channels[name].request(
                        _encoder.encode(request), deadline=deadline, traceparent=traces.inject(), hurry=_urgent(request)
                    )
                    answer = _answers.decode(reply)
                except Overloaded as error:
                    raise PeerBusy(str(error)) from error
                except DeadlineExceeded as error:
                    raise AskTimeout(f"{key} at {name}", timeout) from error
                except (Unreachable, NotAccepted) as error:
                    _log.warning("%s: replica %s is passed over: %s", key, name, error)
                except Silent:
                    doubtful = True  # the channel has said so, once
                except (TransportError, msgspec.DecodeError) as error:
                    _log.warning("%s: replica %s is passed over: %s", key, name, error)
                    doubtful = True
                else:
                    if not isinstance(answer, Unserved):
                        return answer, doubtful
                    _log.warning("%s: replica %s is passed over: %s", key, name, answer.text)
                    doubtful = True
            passed |= {name}

    async def serve(self, call: Call) -> bytes:
        """One request of a peer, dealt with in this process. Raises `Overloaded`."""
        answer: Any
        method = "unreadable"
        try:
            request = _requests.decode(call.payload)
            method = _kind(request)
            with traces.attach(traces.extract(call.traceparent)), traces.span(f"serve peer {method}"):
                match request:
                    case Forward(pool, message):
                        question = cast("Question[Any]", message)
                        answer = await self.local(pool).ask(question, deadline=call.deadline)
                        if isinstance(answer, bool):
                            answer = Peeked(answer)
                    case Convey(message):
                        answer = await self._subnet(message, call.deadline)
                    case Prepare():
                        answer = await self._application(request, call.deadline)
                    case _:
                        answer = await self._do(request, call.deadline)
        except MailboxFull as error:
            raise Overloaded(str(error)) from error
        except ActorError as error:
            answer = Unserved(str(error))
        except msgspec.DecodeError as error:
            _log.warning("audit: %s (pod %s) sent what is no message of a peer: %s", *_who(call), error)
            answer = Unserved(f"not a message between replicas: {error}")
        outcome = "unserved" if isinstance(answer, Unserved) else "ok"
        metrics.RPC_REQUESTS.labels(side="server", method=f"peer {method}", outcome=outcome).inc()
        return _encoder.encode(answer)

    async def _do(self, request: Heard | Wanted | Sweep, deadline: float) -> Noted | Unserved:
        if self.chores is None:
            return Unserved("this replica collects nothing")
        match request:
            case Heard():
                return await self.chores.heard(request, deadline)
            case Wanted():
                self.chores.wanted(request)
            case Sweep():
                self.chores.sweep()
        return Noted()

    async def tell(self, name: str, request: Wanted, *, timeout: float) -> None:
        """Give one replica a message; it does nothing where that is us, is gone or does not answer.

        Raises `ActorError` and `TransportError`; then it may have been taken in all the same.
        """
        channel = self._channels.get(name)
        if name == self.me:
            await self._do(request, self._clock.now() + timeout)
        elif channel is not None:
            await channel.request(_encoder.encode(request), deadline=self._clock.now() + timeout, hurry=True)


def _urgent(request: PeerRequest) -> bool:
    """Whether somebody waits for it: what only frees can wait for a peer that has too much to do."""
    return not (isinstance(request, Forward) and isinstance(request.message, Surrender | Reclaim | Chase | Settle))


def _kind(request: PeerRequest) -> str:
    return type(request.message if isinstance(request, Forward | Convey) else request).__name__


def _who(call: Call) -> tuple[str, str]:
    return call.peer.account, call.peer.pod
