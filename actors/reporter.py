"""The reporter: tells a controller from time to time what this node knows of, so that the rest can be collected.

Messages: `Connected` when a controller can be asked again, `Due` from its timer, `Done` from its own request. State:
whether a report is under way. Persists: nothing. Answers: nothing.

A report is the journal as it lies on disk, not an actor's memory: while one agent replaces another, both add to it. An
entry is written before its addresses are asked for and removed after they were given back, so a record that stands in
a pool and in no report of a minute belongs to nobody (`actors.collector`). A journal that cannot be read is not
reported: silence is harmless, an empty report is not.
"""

import logging
from typing import assert_never

from msgspec import Struct

from actors.controllers import Controllers
from actors.disk import Journal
from api.wire import Attachment, Noted, Rejected, Report
from cni.journal import JournalEntry
from runtime.actor import Actor
from runtime.envelope import Envelope

_log = logging.getLogger(__name__)

_FIRST_SECONDS = 5.0
_REPORT_SECONDS = 60.0
_SPREAD_SECONDS = 6.0
"""At random on top of each pause: all nodes start together after a power cut."""
_REQUEST_SECONDS = 10.0
_CONTAINER_PREFIX = 12


class Connected(Struct, frozen=True, tag=True):
    """A controller replica can be asked again."""


class Due(Struct, frozen=True, tag=True):
    """Time for a report."""


class Done(Struct, frozen=True, tag=True):
    """A report was taken in, or not."""

    error: Exception | None = None


Message = Connected | Due | Done


class ReporterActor(Actor[Message]):
    """See the module."""

    capacity = 64

    def __init__(self, *, journal: Journal, controllers: Controllers) -> None:
        """Both are ports."""
        self._journal = journal
        self._controllers = controllers
        self._busy = False

    def __repr__(self) -> str:
        return f"<ReporterActor{' busy' if self._busy else ''}>"

    def started(self) -> None:
        """Wait a moment: the first calls of a node that starts are worth more."""
        self._wait(_FIRST_SECONDS)

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Report, and wait for the next time."""
        match message:
            case Connected():
                if not self._busy:
                    self._wait(_FIRST_SECONDS)
            case Due():
                if not self._busy:
                    self._busy = True
                    self.pipe(self._report(), lambda _: Done(), failed=Done)
            case Done(error):
                self._busy = False
                self._wait(_REPORT_SECONDS)
                if error is not None:
                    _log.info("no report: %s: %s", type(error).__name__, error)
            case _:
                assert_never(message)
        return None

    def _wait(self, seconds: float) -> None:
        self.timers.start("due", seconds + self.system.random.uniform(0, _SPREAD_SECONDS), Due())

    async def _report(self) -> None:
        entries = await self._journal.load()
        answered = await self._controllers.ask(
            Report(attachments=attachments(entries)), deadline=self.system.clock.now() + _REQUEST_SECONDS
        )
        match answered.response:
            case Noted():
                return
            case Rejected(message):
                _log.warning("the controller does not take our report: %s", message)
            case other:
                _log.warning("the controller answered a report with %s", type(other).__name__)


def attachments(entries: list[JournalEntry]) -> tuple[Attachment, ...]:
    """What a journal says, as a report; interfaces in every state."""
    return tuple(
        Attachment(uid=entry.pod.uid, nic=entry.ifname, cid=entry.container_id[:_CONTAINER_PREFIX])
        for entry in entries
        if entry.container_id
    )
