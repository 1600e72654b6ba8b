"""The reporter: tells a controller what this node knows of, and looks where the controller wants to know more.

Messages: `Connected` when a controller can be asked again, `Due` from its timer, `Done` from its own request. State:
whether a report is under way, what its answer asked for, how many such questions came in a row. Persists: nothing.
Answers: nothing.

A report is the journal as it lies on disk, not an actor's memory: while one agent replaces another, both add to it. An
entry is written before its addresses are asked for and removed after they were given back, so a record that stands in a
pool and in no report of a minute belongs to nobody (`actors.collection.collector`). A journal that cannot be read is
not reported: silence is harmless, an empty report is not.

A controller may hold its answer back for a minute, so that it can ask at any time whether this node's kernel carries an
address. Kernel and journal are looked at after the question came, the answer goes out at once, and it is the next
report.
"""

import logging
from typing import assert_never

from msgspec import Struct

from actors.node.controllers import Controllers
from actors.node.disk import Journal
from api.wire import Attachment, Look, Noted, Rejected, Report
from cni.journal import JournalEntry
from cni.kernel import Kernel
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.transport.port import Unreachable

_log = logging.getLogger(__name__)

_FIRST_SECONDS = 5.0
_REPORT_SECONDS = 60.0
"""From report to report, and the longest that one is held back."""
_SPREAD_SECONDS = 6.0
"""At random on top of each pause: all nodes start together after a power cut."""
_REQUEST_SECONDS = 10.0
_AT_ONCE = 8
"""Questions in a row that are answered at once; after that with a pause, whatever the controller means by it."""
_PAUSE_SECONDS = 1.0
_CONTAINER_PREFIX = 12


class Connected(Struct, frozen=True, tag=True):
    """A controller replica can be asked again."""


class Due(Struct, frozen=True, tag=True):
    """Time for a report."""


class Done(Struct, frozen=True, tag=True):
    """A report was taken in, or not."""

    noted: Noted = Noted()
    seconds: float = 0.0
    """How long the answer took."""
    error: Exception | None = None


Message = Connected | Due | Done


class ReporterActor(Actor[Message]):
    """See the module."""

    capacity = 64

    def __init__(self, *, journal: Journal, kernel: Kernel, controllers: Controllers) -> None:
        """All three are ports."""
        self._journal = journal
        self._kernel = kernel
        self._controllers = controllers
        self._busy = False
        self._asked = Noted()
        self._in_a_row = 0

    def __repr__(self) -> str:
        return f"<ReporterActor{' busy' if self._busy else ''}>"

    def started(self) -> None:
        """Wait a moment: the first calls of a node that starts are worth more."""
        self._wait(_FIRST_SECONDS, spread=_SPREAD_SECONDS)

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Report, and wait for the next time."""
        match message:
            case Connected():
                if not self._busy:
                    self._wait(_FIRST_SECONDS, spread=_SPREAD_SECONDS)
            case Due():
                if not self._busy:
                    self._begin()
            case Done(noted, seconds, error):
                self._busy = False
                self._asked = noted
                if error is not None:
                    _log.info("no report: %s: %s", type(error).__name__, error)
                    pause = _FIRST_SECONDS if self._controllers.connections else _REPORT_SECONDS
                    self._wait(pause, spread=_SPREAD_SECONDS)
                else:
                    self._go_on(seconds)
            case _:
                assert_never(message)
        return None

    def _begin(self) -> None:
        self._busy = True
        self.pipe(self._report(self._asked), lambda done: done, failed=lambda error: Done(error=error))

    def _go_on(self, seconds: float) -> None:
        self._in_a_row = self._in_a_row + 1 if self._asked.look else 0
        if not self._asked.look:
            left = max(0.0, _REPORT_SECONDS - seconds)
            # One that was held back does not come at the same moment as everybody's.
            self._wait(left, spread=_SPREAD_SECONDS if left > _REPORT_SECONDS / 2 else 0.0)
        elif self._in_a_row <= _AT_ONCE:
            self._begin()
        else:
            self._wait(_PAUSE_SECONDS, spread=_PAUSE_SECONDS)

    def _wait(self, seconds: float, *, spread: float) -> None:
        self.timers.start("due", seconds + self.system.random.uniform(0, spread), Due())

    async def _report(self, asked: Noted) -> Done:
        if not self._controllers.connections:
            raise Unreachable("no controller answers: one that does will be told anew")
        carried = await self._kernel.carried(asked.look) if asked.look else frozenset()
        entries = await self._journal.load()
        report = Report(
            attachments=attachments(entries),
            looked=tuple(Look(address, carried=address in carried) for address in asked.look),
            round=asked.round,
            wait=_REPORT_SECONDS,
        )
        begun = self.system.clock.now()
        deadline = begun + _REPORT_SECONDS + _REQUEST_SECONDS
        answered = await self._controllers.ask(report, deadline=deadline, patient=True)
        match answered.response:
            case Noted() as noted:
                return Done(noted, self.system.clock.now() - begun)
            case Rejected(message):
                _log.warning("the controller does not take our report: %s", message)
            case other:
                _log.warning("the controller answered a report with %s", type(other).__name__)
        return Done()


def attachments(entries: list[JournalEntry]) -> tuple[Attachment, ...]:
    """What a journal says, as a report; interfaces in every state."""
    return tuple(
        Attachment(uid=entry.pod.uid, nic=entry.ifname, cid=entry.container_id[:_CONTAINER_PREFIX])
        for entry in entries
        if entry.container_id and not entry.part
    )
