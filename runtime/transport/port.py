"""The transport port: request and reply between an agent and a controller replica, or between two replicas.

A payload is opaque here (msgpack of `api.wire` messages in production). Three adapters implement the port: `tls`
(frames over one TLS connection per agent and replica), `local` (both ends in one process: `spiderpool-standalone`)
and `runtime.testing.transport` (a simulated network that delays, loses, doubles and cuts).
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct


class TransportError(Exception):
    """A request got no reply from the other side's handler. The subclass says what that leaves behind."""


class Unreachable(TransportError):
    """No connection came up before the deadline. The request was never sent."""


class Refused(TransportError):
    """The other side does not accept who we are. The request was never sent."""


class Disconnected(TransportError):
    """The connection broke after the request went out: it may or may not have been carried out."""


class Silent(Disconnected):
    """The other side says nothing any more, though it should: it hangs, or the network does. It may wake up again."""


class DeadlineExceeded(TransportError):
    """No reply in time: the request may or may not have been carried out."""


class Overloaded(TransportError):
    """The other side has too much to do and did not start on the request: try again later."""


class RemoteFailure(TransportError):
    """The other side's handler raised. The text is one line meant for an operator."""


class Peer(Struct, frozen=True):
    """Who speaks at the other end, as its credentials prove it and not as it says."""

    account: str
    """Kubernetes user name, for example ``system:serviceaccount:spiderpool:spiderpool-agent``."""
    node: str = ""
    """The node that the speaking pod is bound to; empty where the credentials name none."""
    pod: str = ""
    """The pod that the token is bound to, as ``namespace/name``."""
    pod_uid: str = ""
    role: str = ""
    """What the account is to the server (``agent``, ``controller``): it decides which messages are accepted."""


type Interim = Callable[[bytes], None]
"""Takes what the serving side has to say of a request ahead of its reply. It may not raise."""


def _unheard(_: bytes) -> None:
    """Nobody listens."""


class Call(Struct, frozen=True):
    """One request as the serving side sees it."""

    payload: bytes
    peer: Peer
    deadline: float
    """When the caller gives up, on the serving side's loop clock (seconds)."""
    traceparent: str = ""
    """W3C trace context of the caller, empty when it has none."""
    interim: Interim = _unheard
    """Tells the caller something ahead of the reply. Only for requests that ask for it in their payload: a client that
    does not know of it breaks the connection. It may get lost, and what is said after the reply does."""


Handler = Callable[[Call], Awaitable[bytes]]
"""Serves one request. Raising `Overloaded` is passed on as such, any other exception becomes `RemoteFailure`."""


class Channel(Protocol):
    """The calling side."""

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,
        patient: bool = False,
        interim: Interim | None = None,
    ) -> bytes:
        """Send one request and wait for its reply, until `deadline` on the loop clock (seconds).

        `interim` is called with what the handler says ahead of its reply: never, once, or more often.

        With `patient`, for a reply that the other side may hold back, nobody asks meanwhile whether it is alive. With
        `hurry`, which is for callers that can ask somebody else, `Unreachable` comes at once when there is no
        connection, and `Silent` when the other side stops speaking, long before the connection counts as broken.

        Requests are pipelined: many may be under way at once and replies come in any order. Cancelling a call tells the
        other side, which then stops as soon as it can; what it had already committed stays.
        Raises the `TransportError` tree and nothing else.
        """
        ...

    @property
    def connected(self) -> bool:
        """Whether a request would go out at once, to somebody who speaks."""
        ...
