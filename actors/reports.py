"""What agents report, on its way to the one collector, and the answers that wait until there is something to ask.

An agent tells whichever replica it is connected to; the replica that collects (`COLLECTOR`, by rendezvous hash) may be
another one. The report is passed on at once. Its answer is held here, at the agent's end, for as long as the agent
allows: when the collector wants to know whether a node's kernel carries an address it asks this replica, and the held
answer takes the question to the agent. So a question is with the agent within milliseconds, and an idle agent costs a
request a minute.

Nothing hangs on it: a question that finds no held answer is asked in the answer to the next report.
"""

import asyncio
from collections.abc import Awaitable, Callable

from actors.peers import COLLECTOR, Heard, Peers, Wanted
from api.wire import Noted, Report
from runtime.clock import Clock

_TAKE_SECONDS = 10.0
"""For the collector to take a report in."""
_SPARE_SECONDS = 2.0
"""Before the agent gives up: an answer has to get there in time."""


class Reports:
    """Of the agents that are connected to this replica."""

    def __init__(self, peers: Peers, *, clock: Clock, collect: Callable[[Heard, float], Awaitable[Noted]]) -> None:
        """`collect` has this process's collector take a report in, by a deadline."""
        self._peers = peers
        self._clock = clock
        self._collect = collect
        self._held: dict[str, list[asyncio.Future[Noted]]] = {}
        """By node. While one agent replaces another a node has two."""

    def __repr__(self) -> str:
        return f"<Reports {len(self._held)} held>"

    async def take(self, node: str, report: Report, *, deadline: float) -> Noted:
        """Pass a report on to the collector; returns what it wants to know. Raises `ActorError`."""
        heard = Heard(
            node=node,
            attachments=report.attachments,
            looked=report.looked,
            round=report.round,
            via=self._peers.me if report.wait > 0 else "",
        )
        answer, _ = await self._peers.ask(
            COLLECTOR,
            heard,
            lambda until: self._collect(heard, until),
            timeout=min(_TAKE_SECONDS, deadline - self._clock.now()),
        )
        assert isinstance(answer, Noted)
        return answer

    async def hold(self, node: str, *, seconds: float, deadline: float) -> Noted:
        """Wait until the collector wants to know something of this node; an empty answer when it does not."""
        patience = min(seconds, deadline - self._clock.now() - _SPARE_SECONDS)
        if patience <= 0:
            return Noted()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Noted] = loop.create_future()
        held = self._held.setdefault(node, [])
        held.append(future)
        timer = loop.call_later(patience, _give_up, future)
        try:
            return await future
        finally:
            timer.cancel()
            held.remove(future)
            if not held and self._held.get(node) is held:
                del self._held[node]

    def release(self) -> None:
        """Hold nothing any more: this replica ends, and the agents turn to another one."""
        for held in self._held.values():
            for future in held:
                _give_up(future)

    def ask(self, wanted: Wanted) -> None:
        """The collector wants to know something of a node."""
        for future in self._held.get(wanted.node, ()):
            if not future.done():
                future.set_result(Noted(look=wanted.look, round=wanted.round))


def _give_up(future: asyncio.Future[Noted]) -> None:
    if not future.done():
        future.set_result(Noted())
