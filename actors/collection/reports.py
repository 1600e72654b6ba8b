"""What agents report, on its way to the one collector, and the answers that wait until there is something to ask.

An agent tells whichever replica it is connected to; the replica that collects (`COLLECTOR`, by rendezvous hash) may be
another one. The report is passed on at once. Its answer is held here, at the agent's end, for as long as the agent
allows: when the collector wants to know whether a node's kernel carries an address it asks this replica, and the held
answer takes the question to the agent. So a question is with the agent within milliseconds, and an idle agent costs a
request a minute.

Nothing hangs on it: a question that finds no held answer is asked in the answer to the next report. When the chore goes
to another replica, that one is told at once what is held here: it has heard none of these agents.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from actors.pools.peers import COLLECTOR, Heard, Peers, Wanted
from api.wire import Noted, Report
from runtime.clock import Clock
from runtime.errors import ActorError

_TAKE_SECONDS = 10.0
"""For the collector to take a report in."""
_FOLLOW_SECONDS = 1.0
"""Between two looks at whose chore it is."""
_AT_A_TIME = 32
"""Reports that are passed on at once when that has changed."""
_SPARE_SECONDS = 2.0
"""Before the agent gives up: an answer has to get there in time."""


class Reports:
    """Of the agents that are connected to this replica."""

    def __init__(self, peers: Peers, *, clock: Clock, collect: Callable[[Heard, float], Awaitable[Noted]]) -> None:
        """`collect` has this process's collector take a report in, by a deadline."""
        self._peers = peers
        self._clock = clock
        self._collect = collect
        self._held: dict[str, list[_Held]] = {}
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

    async def hold(self, node: str, report: Report, *, deadline: float) -> Noted:
        """Wait until the collector wants to know something of this node; an empty answer when it does not."""
        patience = min(report.wait, deadline - self._clock.now() - _SPARE_SECONDS)
        if patience <= 0:
            return Noted()
        loop = asyncio.get_running_loop()
        one = _Held(report, loop.create_future())
        held = self._held.setdefault(node, [])
        held.append(one)
        timer = loop.call_later(patience, one.answer, Noted())
        try:
            return await one.future
        finally:
            timer.cancel()
            held.remove(one)
            if not held and self._held.get(node) is held:
                del self._held[node]

    async def follow(self) -> None:
        """Tell whoever collects from now on what is held here, until cancelled."""
        collector = self._peers.owner(COLLECTOR)
        while True:
            await anyio.sleep(_FOLLOW_SECONDS)
            if self._peers.owner(COLLECTOR) == collector:
                continue
            collector = self._peers.owner(COLLECTOR)
            limit = anyio.CapacityLimiter(_AT_A_TIME)
            async with anyio.create_task_group() as group:
                for node, held in list(self._held.items()):
                    for one in list(held):
                        group.start_soon(self._tell, node, one, limit)

    async def _tell(self, node: str, one: "_Held", limit: anyio.CapacityLimiter) -> None:
        async with limit:
            with suppress(ActorError):  # it hears the next report
                noted = await self.take(node, one.report, deadline=self._clock.now() + _TAKE_SECONDS)
                if noted.look:
                    one.answer(noted)

    def release(self) -> None:
        """Hold nothing any more: this replica ends, and the agents turn to another one."""
        for held in self._held.values():
            for one in held:
                one.answer(Noted())

    def ask(self, wanted: Wanted) -> None:
        """The collector wants to know something of a node."""
        for one in self._held.get(wanted.node, ()):
            one.answer(Noted(look=wanted.look, round=wanted.round))


class _Held:
    """A report whose answer is held back."""

    def __init__(self, report: Report, future: asyncio.Future[Noted]) -> None:
        self.report = report
        self.future = future

    def answer(self, noted: Noted) -> None:
        if not self.future.done():
            self.future.set_result(noted)
