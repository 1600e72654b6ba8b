"""What was said about which object, how often, and when that is to be written: the books of `actors.events.recorder`.

Pure: whoever uses it has the clock and does the writing. A topic is written at once when it comes up, and then with
growing pauses, so what is said a thousand times costs ten writes. The number of topics is bounded; those that are
settled and have rested for longest give way.
"""

import heapq
import itertools

from msgspec import Struct

from api.core import ObjectReference

FIRST_PAUSE = 10.0
LONGEST_PAUSE = 600.0
"""Seconds between two writes about one topic: twice the last one each time, between these."""
FORGOTTEN = 3600.0
"""Seconds after which a topic that nobody mentions any more begins anew. An API server keeps events for as long."""


class Topic(Struct, frozen=True):
    """What is counted together: one object, one reason, one key."""

    about: ObjectReference
    reason: str
    key: str


class Saying(Struct):
    """A topic's state. Times named `_at` are wall clock, Unix seconds; the others are the monotonic clock's."""

    topic: Topic
    message: str
    """The latest."""
    warning: bool
    first_at: float
    last_at: float
    said: float
    count: int = 0
    written: int = 0
    """`count` as it was when it was last written; 0: there is no event yet."""
    base: int = 0
    """What the event had counted before this process said anything."""
    pause: float = 0.0
    not_before: float = 0.0
    queued: bool = False
    """Whether it waits for its write, or is being written."""
    failures: int = 0
    """In a row."""

    @property
    def settled(self) -> bool:
        """Whether the event says all of it."""
        return self.count == self.written


class Sayings:
    """All topics. Raises nothing."""

    def __init__(self, *, most: int) -> None:
        """`most` is how many topics are kept."""
        self._most = most
        self._topics: dict[Topic, Saying] = {}
        self._queue: list[tuple[float, int, Topic]] = []
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<Sayings {len(self._topics)} topics, {len(self._queue)} to be written>"

    def say(self, topic: Topic, message: str, *, warning: bool, now: float, wall: float) -> bool:
        """Count it; False where there is no room for another topic."""
        saying = self._topics.pop(topic, None)
        if saying is not None and saying.settled and now - saying.said > FORGOTTEN:
            saying = None
        if saying is None:
            if not self._make_room():
                return False
            saying = Saying(topic, message, warning, first_at=wall, last_at=wall, said=now, not_before=now)
        self._topics[topic] = saying  # now the last to give way
        saying.message, saying.warning, saying.last_at, saying.said = message, warning, wall, now
        saying.count += 1
        self._enqueue(saying)
        return True

    def take(self, now: float) -> Saying | None:
        """The next one that is to be written now. It is nobody else's until `settle`, `postpone` or `drop`."""
        if not self._queue or self._queue[0][0] > now:
            return None
        return self._topics[heapq.heappop(self._queue)[2]]

    def due(self) -> float | None:
        """When `take` gives something next."""
        return self._queue[0][0] if self._queue else None

    def settle(self, saying: Saying, written: int, *, now: float) -> None:
        """Its event says that it was said `written` times, in this life."""
        saying.written, saying.failures, saying.queued = written, 0, False
        saying.pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * saying.pause))
        saying.not_before = now + saying.pause
        if not saying.settled:
            self._enqueue(saying)

    def postpone(self, saying: Saying, seconds: float, *, now: float) -> None:
        """It could not be written: again after so many seconds."""
        saying.failures += 1
        saying.not_before, saying.queued = now + seconds, False
        self._enqueue(saying)

    def drop(self, saying: Saying) -> None:
        """It cannot be written at all."""
        self._topics.pop(saying.topic, None)

    def _enqueue(self, saying: Saying) -> None:
        if not saying.queued:
            saying.queued = True
            heapq.heappush(self._queue, (saying.not_before, next(self._numbers), saying.topic))

    def _make_room(self) -> bool:
        if len(self._topics) < self._most:
            return True
        idle = next((topic for topic, saying in self._topics.items() if not saying.queued), None)
        if idle is None:
            return False
        del self._topics[idle]
        return True
