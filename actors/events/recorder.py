"""Events: what somebody has to know about an object, where `kubectl describe` shows it.

Messages: `Say` from whoever has something to say; `Written`, `NotWritten` and `Turn` from its own work. State: what was
said about which object, and how often (`actors.events.sayings`). Persists: Event objects, one for each topic. Answers:
nothing, it is told, and costs who tells it nothing: where more is said than can be written it is counted and dropped. A
crash forgets what was still to be written; whoever said it finds it again and says it again.

A topic that comes up again raises `count` of its event, with growing pauses between two writes. The event's name
follows from its topic, so a write whose answer was lost, another replica and the next life of this one find it there
and count on. All topics together are written at a bounded rate.
"""

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import assert_never

from msgspec import Struct

from actors.events.sayings import Saying, Sayings, Topic
from api.core import Event, EventSource, ObjectReference
from api.kinds import EVENT
from api.meta import ObjectMeta
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import AlreadyExists, Busy, Denied, Invalid, NotFound, Store
from telemetry import metrics

_log = logging.getLogger(__name__)

TOPICS = 2048
"""That are remembered."""
WRITES_PER_SECOND = 20.0
BURST = 40.0
"""Writes that a quiet time saves up."""
_TICK = 0.001
"""Seconds. A clock may be a hair behind the timer that it has set off."""
_WRITERS = 4
"""Writes under way at a time."""
_PAUSES_SECONDS = (0.5, 60.0)
_MESSAGE_BYTES = 1024
"""The API server takes no longer ones."""
_NAME = 200
"""Characters of the object's name that an event's begins with; 253 is the limit of the whole."""
CLUSTER_NAMESPACE = "default"
"""Where events about objects without a namespace live."""

_unwritable, _overheard = (metrics.EVENTS_DROPPED.labels(why=why) for why in ("refused", "overload"))


class Say(Struct, frozen=True, tag=True):
    """Something about an object."""

    reason: str
    """One word, `api.core.Event.reason`."""
    message: str
    warning: bool = True
    about: ObjectReference | None = None
    """None: what the actor was made for."""
    key: str = ""
    """What makes it the same as something said before. The message, where empty: other words are another event then."""


class Written(Struct, frozen=True, tag=True):
    """The event says that it was said `count` times here, and `base` times before."""

    topic: Topic
    count: int
    base: int


class NotWritten(Struct, frozen=True, tag=True):
    """It does not."""

    topic: Topic
    error: Exception


class Turn(Struct, frozen=True, tag=True):
    """Something may be due."""


Message = Say | Written | NotWritten | Turn


class EventsActor(Actor[Message]):
    """See the module."""

    capacity = 1000

    def __init__(
        self, *, store: Store, component: str, host: str, about: Callable[[], ObjectReference] | None = None
    ) -> None:
        """`component` at `host` speaks; `about` is what it speaks of where it does not say."""
        self._store = store
        self._about = about
        self._source = EventSource(component=component, host=host)
        self._sayings = Sayings(most=TOPICS)
        self._writing: dict[Topic, Saying] = {}
        self._allowance = BURST
        self._allowed_at = 0.0

    def __repr__(self) -> str:
        return f"<EventsActor {self._sayings!r}, {len(self._writing)} under way>"

    def handle(self, message: Message, _: Envelope) -> object:
        """Count what is said, and write what is due."""
        now = self.system.clock.now()
        match message:
            case Say():
                self._say(message, now)
            case Written(topic, count, base):
                saying = self._writing.pop(topic)
                saying.base = base
                self._sayings.settle(saying, count, now=now)
            case NotWritten(topic, error):
                self._not_written(self._writing.pop(topic), error, now)
            case Turn():
                pass
            case _:
                assert_never(message)
        self._write_due(now)
        return None

    def _say(self, say: Say, now: float) -> None:
        about = say.about if say.about is not None or self._about is None else self._about()
        if about is None:
            msg = f"{say.reason}: about what?"
            raise ValueError(msg)
        topic = Topic(about, say.reason, say.key or say.message)
        text = _shortened(say.message)
        if not self._sayings.say(topic, text, warning=say.warning, now=now, wall=self.system.clock.wall()):
            _overheard.inc()

    def _not_written(self, saying: Saying, error: Exception, now: float) -> None:
        topic = saying.topic
        if isinstance(error, Denied | Invalid | NotFound):
            # Its namespace goes, say. It is said again where it matters.
            _log.info("event %s about %s cannot be written: %s", topic.reason, topic.about.name, error)
            _unwritable.inc()
            self._sayings.drop(saying)
            return
        first, longest = _PAUSES_SECONDS
        pause = min(longest, first * 2 ** min(saying.failures, 10))
        if isinstance(error, Busy):
            pause = max(pause, error.retry_after)
        _log.info("event %s about %s is not written yet: %s", topic.reason, topic.about.name, error)
        self._sayings.postpone(saying, pause, now=now)

    def _write_due(self, now: float) -> None:
        """Begin the writes that may be begun, and come back when there are more."""
        self._allowance = min(BURST, self._allowance + (now - self._allowed_at) * WRITES_PER_SECOND)
        self._allowed_at = now
        while len(self._writing) < _WRITERS and self._allowance >= 1.0:
            saying = self._sayings.take(now)
            if saying is None:
                break
            self._allowance -= 1.0
            self._begin(saying)
        due = self._sayings.due()
        if due is not None and len(self._writing) < _WRITERS:
            wait = max(due - now, (1.0 - self._allowance) / WRITES_PER_SECOND, _TICK)
            self.timers.start("turn", wait, Turn())
        else:
            self.timers.cancel("turn")  # or the end of a write is the next turn

    def _begin(self, saying: Saying) -> None:
        topic, count = saying.topic, saying.count
        self._writing[topic] = saying
        work = self._create(self._event(saying)) if not saying.written else self._raise(self._event(saying))
        self.pipe(
            work, lambda total: Written(topic, count, total - count), failed=lambda error: NotWritten(topic, error)
        )

    async def _create(self, event: Event) -> int:
        """Returns what the event counts."""
        try:
            await self._store.create(EVENT, event)
        except AlreadyExists:
            name, namespace = event.metadata.name, event.metadata.namespace
            found = await self._store.patch(EVENT, name, _latest(event), namespace=namespace)
            ours = found.first_timestamp == event.first_timestamp and found.source == event.source
            # Ours is an earlier attempt without an answer; another's, or that of an earlier life, is counted on.
            total = event.count if ours else found.count + event.count
            if total != found.count:
                await self._store.patch(EVENT, name, {"count": total}, namespace=namespace)
            return total
        return event.count

    async def _raise(self, event: Event) -> int:
        """Let an event that is there say more. Returns what it counts."""
        name, namespace = event.metadata.name, event.metadata.namespace
        change = {**_latest(event), "count": event.count}
        try:
            await self._store.patch(EVENT, name, change, namespace=namespace)
        except NotFound:
            return await self._create(event)  # an API server does not keep them for ever
        return event.count

    def _event(self, saying: Saying) -> Event:
        about = saying.topic.about
        return Event(
            metadata=ObjectMeta(name=_name(saying.topic), namespace=about.namespace or CLUSTER_NAMESPACE),
            involved_object=about,
            type="Warning" if saying.warning else "Normal",
            reason=saying.topic.reason,
            message=saying.message,
            source=self._source,
            reporting_component=self._source.component,
            reporting_instance=self._source.host,
            first_timestamp=_stamp(saying.first_at),
            last_timestamp=_stamp(saying.last_at),
            count=saying.base + saying.count,
        )


def _latest(event: Event) -> dict[str, object]:
    return {"message": event.message, "lastTimestamp": event.last_timestamp, "type": event.type}


def _name(topic: Topic) -> str:
    about = topic.about
    text = f"{about.kind}\n{about.name}\n{about.uid}\n{topic.reason}\n{topic.key}"
    return f"{about.name[:_NAME].rstrip('.-')}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _stamp(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shortened(message: str) -> str:
    raw = message.encode()
    if len(raw) <= _MESSAGE_BYTES:
        return message
    return raw[: _MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
