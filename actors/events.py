"""Events on the agent's own pod: what an operator has to know of this node, where `kubectl describe pod` shows it.

Messages: `Say` from whoever has something to say; `Written`, `NotWritten` and `Again` from its own work. State: what
was said lately. Persists: Event objects. Answers: nothing, it is told. A crash forgets what was still to be written;
whoever said it finds it again and says it again.

The same thing is not said twice within ten minutes. A write that fails is tried again with growing pauses, under the
same name, so that it cannot be there twice.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import assert_never

from msgspec import Struct

from api.core import Event, EventSource, ObjectReference
from api.kinds import EVENT
from api.meta import ObjectMeta
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import AlreadyExists, Store, StoreError

_log = logging.getLogger(__name__)

REPEAT_SECONDS = 600.0
_PAUSES_SECONDS = (0.5, 60.0)
_MESSAGE_BYTES = 1024
"""The API server takes no longer ones."""


class Say(Struct, frozen=True, tag=True):
    """Something about this node."""

    reason: str
    """One word, `api.core.Event.reason`."""
    message: str
    warning: bool = True


class Written(Struct, frozen=True, tag=True):
    """An event is there."""

    name: str


class NotWritten(Struct, frozen=True, tag=True):
    """It is not."""

    event: Event
    attempt: int
    why: str


class Again(Struct, frozen=True, tag=True):
    """A pause is over."""

    event: Event
    attempt: int


Message = Say | Written | NotWritten | Again


class EventsActor(Actor[Message]):
    """See the module."""

    capacity = 100

    def __init__(self, *, store: Store, pod: Callable[[], ObjectReference], component: str, node: str) -> None:
        """`pod` is what the events are about; its uid may become known later."""
        self._store = store
        self._pod = pod
        self._source = EventSource(component=component, host=node)
        self._said: dict[Say, float] = {}

    def __repr__(self) -> str:
        return f"<EventsActor {len(self._said)} said lately>"

    def handle(self, message: Message, _: Envelope) -> object:
        """Write it, unless it was said lately."""
        match message:
            case Say():
                now = self.system.clock.now()
                self._said = {say: at for say, at in self._said.items() if now - at < REPEAT_SECONDS}
                if message not in self._said:
                    self._said[message] = now
                    self._try(self._event(message), attempt=0)
            case Written(name):
                _log.debug("event %s is written", name)
            case NotWritten(event, attempt, why):
                first, longest = _PAUSES_SECONDS
                pause = min(longest, first * 2**attempt)
                if attempt * first < REPEAT_SECONDS:
                    _log.info("event %s of %s is not written yet: %s", event.metadata.name, event.reason, why)
                    self.timers.start(event.metadata.name, pause, Again(event, attempt + 1))
            case Again(event, attempt):
                self._try(event, attempt=attempt)
            case _:
                assert_never(message)
        return None

    def _try(self, event: Event, *, attempt: int) -> None:
        self.pipe(self._write(event), Written, failed=lambda error: NotWritten(event, attempt, str(error)))

    async def _write(self, event: Event) -> str:
        try:
            await self._store.create(EVENT, event)
        except AlreadyExists:
            pass  # an earlier attempt without an answer
        except StoreError as error:
            raise _NotYet(f"{type(error).__name__}: {error}") from error
        return event.metadata.name

    def _event(self, say: Say) -> Event:
        pod = self._pod()
        wall = self.system.clock.wall()
        now = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Event(
            metadata=ObjectMeta(
                name=f"{pod.name}.{int(wall * 1e9):x}{self.system.random.getrandbits(16):04x}", namespace=pod.namespace
            ),
            involved_object=pod,
            type="Warning" if say.warning else "Normal",
            reason=say.reason,
            message=_shortened(say.message),
            source=self._source,
            reporting_component=self._source.component,
            reporting_instance=self._source.host,
            first_timestamp=now,
            last_timestamp=now,
            count=1,
        )


class _NotYet(Exception):
    """The store did not take it."""


def _shortened(message: str) -> str:
    raw = message.encode()
    if len(raw) <= _MESSAGE_BYTES:
        return message
    return raw[: _MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
