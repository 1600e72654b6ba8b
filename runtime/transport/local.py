"""Both ends in one process: `spiderpool-standalone`, and tests that want no network."""

import logging

import anyio
import msgspec

from runtime.transport.credentials import one_line
from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Handler,
    Interim,
    Overloaded,
    Peer,
    RemoteFailure,
    Unreachable,
)

_log = logging.getLogger(__name__)


class LocalChannel:
    """`runtime.transport.port.Channel` that calls the handler. It is always connected."""

    def __init__(self, handler: Handler, peer: Peer) -> None:
        """`peer` is who speaks, as the handler sees it."""
        self._handler = handler
        self._peer = peer

    def __repr__(self) -> str:
        return f"<LocalChannel of {self._peer.account}>"

    @property
    def connected(self) -> bool:
        """See the port."""
        return True

    async def request(
        self,
        payload: bytes,
        *,
        deadline: float,
        traceparent: str = "",
        hurry: bool = False,  # noqa: ARG002 - it cannot be silent alone
        patient: bool = False,  # noqa: ARG002
        interim: Interim | None = None,
    ) -> bytes:
        """See the port. The handler runs in the caller's task: cancelling the call cancels it at once."""
        if deadline <= anyio.current_time():
            raise Unreachable("the deadline had passed before the request could be sent")
        call = Call(payload=payload, peer=self._peer, deadline=deadline, traceparent=traceparent)
        if interim is not None:
            call = msgspec.structs.replace(call, interim=interim)
        with anyio.CancelScope(deadline=deadline):
            try:
                return await self._handler(call)
            except Overloaded:
                raise
            except Exception as error:
                _log.exception("a request of %s failed", self._peer.account)
                raise RemoteFailure(one_line(error)) from error
        raise DeadlineExceeded("no reply in time")
