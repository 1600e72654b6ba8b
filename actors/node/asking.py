"""A request for the addresses of a call while it is under way: what is granted is known before it is answered.

The controller says what it has committed, and then writes the SpiderEndpoint. Meanwhile the interfaces get their
addresses here. What counts is the answer: an ADD that was told something ahead waits for it all the same, and fails
where it is another one. That can be where a connection broke, and the request went to another replica.
"""

from collections.abc import Awaitable, Callable

import anyio

from actors.node.addressing import ALLOCATE_SECONDS, PROVIDED_SECONDS, ask
from actors.node.controllers import Controllers
from api.wire import Allocate, Allocated, Response
from cni.errors import TryAgainLater
from runtime.clock import Clock


class Asking:
    """See the module. `run` sends the request; whoever waits for it may be cancelled, the request is not to be."""

    def __init__(self, request: Callable[[], Awaitable[Allocate]], *, controllers: Controllers, clock: Clock) -> None:
        """`request` makes it, when `run` begins."""
        self._request = request
        self._controllers = controllers
        self._clock = clock
        self._word = anyio.Event()
        self._end = anyio.Event()
        self._early: Allocated | None = None
        self._answer: Allocated | None = None
        self._error: Exception | None = None
        self.doubtful = False
        """Whether a copy of the request may still be under way; known when it has ended."""

    def __repr__(self) -> str:
        state = "answered" if self._answer else "failed" if self._error else "granted" if self._early else "asked"
        return f"<Asking {state}>"

    async def run(self) -> None:
        """Send it, and take what comes. Nothing is raised here: those who wait get it."""
        try:
            begun, request = self._clock.now(), await self._request()
            provided = request.parent_mac or request.links or any(one.parent_mac for one in request.more)
            deadline = begun + (PROVIDED_SECONDS if provided else ALLOCATE_SECONDS)
            self._answer, self.doubtful = await ask(self._controllers, request, deadline=deadline, interim=self._hear)
        except Exception as error:  # noqa: BLE001 - whoever waits for it
            self._error = error
            self.doubtful = True
        finally:
            self._word.set()
            self._end.set()

    async def granted(self) -> Allocated:
        """What is committed, as soon as anybody has said so. Raises what `ask` does."""
        await self._word.wait()
        return self._early or self._result()

    async def answered(self) -> Allocated:
        """The answer, for which nothing that was granted has changed. Raises what `ask` does, and `TryAgainLater`."""
        await self._end.wait()
        answer, early = self._result(), self._early
        if early is not None and _held(early) != _held(answer):
            said, now = (", ".join(one.address for one in grant.addresses) for grant in (early, answer))
            raise TryAgainLater("the addresses changed while they were configured", f"from {said} to {now}")
        return answer

    async def ended(self) -> None:
        """Wait until nothing of it is under way, as far as this side can tell."""
        await self._end.wait()

    def _hear(self, response: Response) -> None:
        if isinstance(response, Allocated) and self._early is None:
            self._early = response
            self._word.set()

    def _result(self) -> Allocated:
        if self._error is not None:
            raise self._error
        assert self._answer is not None, "run has not ended"
        return self._answer


def _held(grant: Allocated) -> object:
    return grant.pod_uid, grant.addresses, grant.routes, grant.others, grant.fixed
