"""The actor of one SpiderSubnet: who writes its status, and the specs of its automatic pools.

Messages: those of `actors.subnets.messages`, `Look` from its replica; `Carried`, `Failed` and `Retry` from its own I/O
and timers. State: what is asked and not answered; nothing else, every attempt reads the subnet. Persists: the subnet's
`status`, labels and finalizer; automatic pools but for their status; owner, labels and finalizer of all its pools.
Answers: when the store has what was asked for, or when it cannot be.

All that is queued is one attempt (`actors.subnets.change`), with one write of the subnet's status. While it is under
way the mailbox is held. What a crash leaves is described there.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final, assert_never

from msgspec import Struct

from actors.subnets.change import Change
from actors.subnets.messages import Discard, NotProvided, Provide
from actors.subnets.sight import Outcome, Sight
from runtime.actor import LATER, Actor
from runtime.envelope import Envelope
from runtime.store.port import Ambiguous, Busy, Conflict, Store, StoreError, Unavailable

_log = logging.getLogger(__name__)

_BATCH: Final = 256
_ATTEMPTS: Final = 20
"""Of one batch, before its askers are told to come back."""
_RETRY_SECONDS: Final = 0.2
"""Pause after the store could not be reached."""
_LONGEST_SECONDS: Final = 30.0
"""Pause where nobody waits for an answer."""
_JITTER_SECONDS: Final = 0.01
"""Longest pause after somebody else was first, times the number of times."""


class Look(Struct, frozen=True, tag=True):
    """The subnet or a pool of it has changed: put right what is not as it should be."""


class Carried(Struct, frozen=True, tag=True):
    """An attempt has ended."""

    outcome: Outcome


class Failed(Struct, frozen=True, tag=True):
    """An attempt has answered nobody."""

    error: Exception


class Retry(Struct, frozen=True, tag=True):
    """The pause after an attempt is over."""


Message = Provide | Discard | Look | Carried | Failed | Retry


class SubnetActor(Actor[Message]):
    """See the module."""

    batch = _BATCH
    capacity = 4096

    def __init__(self, name: str, store: Store, *, sight: Sight, waits: Callable[[str, str], None]) -> None:
        """`waits` is told what a subnet that is being deleted waits for, with its name."""
        self._name = name
        self._store = store
        self._sight = sight
        self._waits = waits
        self._asks: list[Envelope] = []
        self._look = False
        self._busy = False
        self._attempts = 0

    def __repr__(self) -> str:
        return f"<SubnetActor {self._name}, {len(self._asks)} in hand>"

    def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Take a batch in hand, and hold the mailbox until it is answered."""
        self._asks = [envelope for envelope in batch if not isinstance(envelope.message, Look)]
        self._look |= len(self._asks) < len(batch)
        self._attempts = 0
        self.timers.cancel("retry")
        self._try()

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Go on when an attempt has ended."""
        match message:
            case Carried(outcome):
                self._carried(outcome)
            case Failed(error):
                self._failed(error)
            case Retry():
                if not self._busy:
                    self._try()
            case Provide() | Discard() | Look():
                return LATER  # user messages come in batches
            case _:
                assert_never(message)
        return None

    def _try(self) -> None:
        self._asks = [ask for ask in self._asks if ask.reply is None or not ask.reply.done]
        if not self._asks and not self._look:
            self._finish()
            return
        self._busy = True
        self.hold()
        change = Change(self._name, self._store, self._sight, [ask.message for ask in self._asks])
        self.pipe(change.run(), Carried, failed=Failed)

    def _carried(self, outcome: Outcome) -> None:
        self._busy = False
        if outcome.waits:
            self._waits(self._name, outcome.waits)
        for at, answer in outcome.answers.items():
            _reply(self._asks[at], answer)
        self._asks = [ask for at, ask in enumerate(self._asks) if at not in outcome.answers]
        self._look = outcome.overtaken or outcome.trouble is not None
        if outcome.trouble is not None:
            _log.warning("subnet %s: not everything could be done: %s", self._name, outcome.trouble)
            self._again(outcome.trouble)
        elif self._asks or self._look:
            self._again(None)
        else:
            self._finish()

    def _failed(self, error: Exception) -> None:
        self._busy = False
        match error:
            case Conflict():
                self._again(None)
            case Ambiguous() | Unavailable() | Busy():
                _log.warning("subnet %s: the store does not answer: %s", self._name, error)
                self._again(error)
            case StoreError():
                _log.error("subnet %s: %s", self._name, error)
                self._refuse(str(error))
                self._look = False  # the next change, or the sweep, brings another
                self._finish()
            case _:
                raise error

    def _again(self, trouble: Exception | None) -> None:
        """Another attempt, a little later; without anybody who waits, later each time, and new asks come first."""
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            cause = trouble or "others wrote first"
            self._refuse(f"SpiderSubnet {self._name}: {cause}, {self._attempts} times in a row")
            self._look = True
        if isinstance(trouble, Busy):
            pause = trouble.retry_after
        elif trouble is not None:
            pause = _RETRY_SECONDS
        else:
            pause = self.system.random.uniform(0.0, _JITTER_SECONDS * self._attempts)
        if not self._asks:
            pause = max(pause, min(_LONGEST_SECONDS, pause * 2.0 ** min(self._attempts, 16)))
            self.release()
        self.timers.start("retry", pause, Retry())

    def _refuse(self, reason: str) -> None:
        for ask in self._asks:
            message = ask.message
            name = message.pool.name if isinstance(message, Provide) else message.pool
            _reply(ask, NotProvided(name, reason, lasting=False))
        self._asks = []

    def _finish(self) -> None:
        self._attempts = 0
        self.release()


def _reply(ask: Envelope, answer: object) -> None:
    if ask.reply is not None:
        ask.reply.resolve(answer)
