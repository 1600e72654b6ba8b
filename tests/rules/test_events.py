"""Events on a virtual clock: one object for a topic, few writes, and whoever says something is never held up."""

from collections.abc import Awaitable, Callable
from random import Random

import anyio
import anyio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

from actors.events.recorder import BURST, TOPICS, WRITES_PER_SECOND, EventsActor, Message, Say
from actors.events.sayings import LONGEST_PAUSE, Sayings, Topic
from api.core import Event, ObjectReference
from api.kinds import EVENT, Kind
from runtime.actor import Ref, System
from runtime.errors import MailboxFull
from runtime.store.memory import MemoryStore
from runtime.store.port import Denied, Store
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore
from telemetry import metrics

OWN = ObjectReference(api_version="v1", kind="Pod", namespace="spiderpool", name="agent-x", uid="u-1")


def pod(number: int = 1) -> ObjectReference:
    return ObjectReference(api_version="v1", kind="Pod", namespace="default", name=f"web-{number}", uid=f"u-{number}")


def failed(message: str = "no address", number: int = 1) -> Say:
    return Say("FailedAllocate", message, about=pod(number), key="FailedAllocate")


class World:
    """Replicas that say things, over one store."""

    def __init__(self, *, chances: Chances | None = None, replicas: int = 1, store: Store | None = None) -> None:
        self.system = System(clock=VirtualClock(), random=Random(1))
        self.supervisor = Supervisor("c", self.system)
        self.truth = MemoryStore()
        self.replicas = [self._replica(number, chances or Chances(), store) for number in range(replicas)]
        self.events = self.replicas[0]

    def _replica(self, number: int, chances: Chances, store: Store | None) -> Ref[Message]:
        faulty = FaultyStore(store or self.truth, policy=chances, random=Random(number))
        return self.supervisor.add_actor(
            f"events{number}",
            lambda: EventsActor(store=faulty, component="c", host=f"c{number}", about=lambda: OWN),
            capacity=EventsActor.capacity,
        )

    def said(self) -> list[Event]:
        return sorted(self.truth.peek(EVENT), key=lambda event: event.metadata.uid)

    def writes(self) -> int:
        return self.truth.requests["create events"] + self.truth.requests["patch events"]

    def play(self, script: Callable[["World"], Awaitable[None]]) -> None:
        async def main() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(self.supervisor.run)
                await anyio.lowlevel.checkpoint()
                await script(self)
                await self.supervisor.stop()

        run(main, seed=1)


def dropped(why: str) -> float:
    return metrics.REGISTRY.get_sample_value("spiderpool_events_dropped_total", {"why": why}) or 0.0


def test_what_fails_for_hours_is_one_event_and_few_writes() -> None:
    async def script(world: World) -> None:
        for number in range(1200):
            world.events.tell(failed(f"no address, try {number}"))
            await anyio.sleep(10)
        await anyio.sleep(LONGEST_PAUSE)
        (event,) = world.said()
        assert (event.count, event.message, event.type) == (1200, "no address, try 1199", "Warning")
        assert (event.involved_object, event.metadata.namespace) == (pod(), "default")
        assert (event.first_timestamp, event.last_timestamp) == ("2025-06-15T15:06:40Z", "2025-06-15T18:26:30Z")
        assert (event.source.component, event.source.host) == ("c", "c0")
        assert world.writes() < 6 + 12000 / LONGEST_PAUSE + 2

    World().play(script)


def test_an_event_is_there_at_once_and_says_more_soon() -> None:
    async def script(world: World) -> None:
        world.events.tell(failed())
        await anyio.sleep(0.01)
        assert [event.count for event in world.said()] == [1]
        world.events.tell(failed())
        await anyio.sleep(1)
        assert [event.count for event in world.said()] == [1]
        await anyio.sleep(10)
        assert [event.count for event in world.said()] == [2]
        await anyio.sleep(10_000)
        assert world.writes() == 2

    World().play(script)


def test_other_words_are_another_event_unless_a_key_says_otherwise() -> None:
    async def script(world: World) -> None:
        for message in ("a", "b", "a"):
            world.events.tell(Say("Shadowed", message, warning=False))
            world.events.tell(failed(message))
        await anyio.sleep(60)
        found = [(event.involved_object.name, event.message, event.count, event.type) for event in world.said()]
        assert sorted(found) == [
            ("agent-x", "a", 2, "Normal"),
            ("agent-x", "b", 1, "Normal"),
            ("web-1", "a", 3, "Warning"),
        ]

    World().play(script)


def test_objects_without_a_namespace_have_their_events_in_the_default_one() -> None:
    async def script(world: World) -> None:
        pool = ObjectReference(api_version="x/v1", kind="SpiderIPPool", name="v4", uid="u")
        world.events.tell(Say("PoolExhausted", "full", about=pool))
        await anyio.sleep(1)
        (event,) = world.said()
        assert event.metadata.namespace == "default"
        assert event.metadata.name.startswith("v4.")

    World().play(script)


def test_replicas_count_on_in_the_same_event_and_so_does_the_next_life() -> None:
    async def script(world: World) -> None:
        for replica in world.replicas:
            replica.tell(failed())
            await anyio.sleep(1)
            replica.tell(failed())
            await anyio.sleep(30)
        assert [event.count for event in world.said()] == [6]
        for event in world.said():
            await world.truth.delete(EVENT, event.metadata.name, namespace="default")  # the API server's time is over
        world.events.tell(failed())
        await anyio.sleep(60)
        assert len(world.said()) == 1

    World(replicas=3).play(script)


def test_a_bad_store_makes_no_second_event_and_loses_no_count() -> None:
    async def script(world: World) -> None:
        for number in range(20):
            world.events.tell(Say("A", f"number {number:02}", warning=False))
            world.events.tell(failed(number=number))
            world.events.tell(failed(number=number))
        await anyio.sleep(2000)
        found = [(event.involved_object.name, event.reason, event.count) for event in world.said()]
        assert sorted(found) == sorted(
            [("agent-x", "A", 1)] * 20 + [(f"web-{number}", "FailedAllocate", 2) for number in range(20)]
        )

    World(chances=Chances(lost_request=0.15, lost_reply=0.25, unavailable=0.1, busy=0.1)).play(script)


def test_a_storm_is_written_at_a_bounded_rate_and_the_rest_counted() -> None:
    async def script(world: World) -> None:
        before = dropped("overload")
        full = 0
        for number in range(5 * TOPICS):
            try:
                world.events.tell(failed(number=number))
            except MailboxFull:
                full += 1
                await anyio.sleep(0.001)
                world.events.tell(failed(number=number))
        assert full
        await anyio.sleep(10)
        assert world.writes() <= BURST + 10 * WRITES_PER_SECOND + 1
        lost = dropped("overload") - before
        assert 5 * TOPICS - TOPICS - 2 * BURST <= lost < 5 * TOPICS
        await anyio.sleep(TOPICS / WRITES_PER_SECOND)
        assert len(world.said()) == 5 * TOPICS - lost

    World().play(script)


def test_what_the_store_does_not_take_is_counted_and_holds_up_nothing() -> None:
    class Closed(MemoryStore):
        async def create[T](self, kind: Kind[T], item: T) -> T:
            if isinstance(item, Event) and item.metadata.namespace == "default":
                msg = "the namespace is being terminated"
                raise Denied(msg)
            return await super().create(kind, item)

    async def script(world: World) -> None:
        before = dropped("refused")
        world.events.tell(failed())
        world.events.tell(Say("A", "hello"))
        await anyio.sleep(100)
        assert dropped("refused") - before == 1
        assert len(store.peek(EVENT)) == 1

    store = Closed()
    World(store=store).play(script)


def test_a_message_that_is_too_long_is_cut() -> None:
    async def script(world: World) -> None:
        world.events.tell(Say("A", "ä" * 2000))
        await anyio.sleep(1)
        assert len(world.said()[0].message.encode()) <= 1024
        assert world.said()[0].message.endswith("...")

    World().play(script)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 900), st.booleans()), max_size=60),
    st.integers(1, 4),
)
def test_whatever_is_said_is_written_in_the_end_or_refused_at_once(
    steps: list[tuple[int, float, bool]], most: int
) -> None:
    """A model: everything that was taken in is in the writes, no topic is written twice within its pause."""
    sayings, now = Sayings(most=most), 0.0
    said: dict[Topic, int] = {}
    written: dict[Topic, tuple[int, float]] = {}

    def write(*, well: bool) -> None:
        while (saying := sayings.take(now)) is not None:
            if not well:
                sayings.postpone(saying, 5.0, now=now)
                continue
            if saying.written:
                assert now - written[saying.topic][1] >= 10.0
            written[saying.topic] = (saying.count, now)
            said.setdefault(saying.topic, 0)
            sayings.settle(saying, saying.count, now=now)

    for number, pause, well in steps:
        now += pause
        topic = Topic(pod(number), "R", "k")
        if sayings.say(topic, "m", warning=True, now=now, wall=now):
            said[topic] = said.get(topic, 0) + 1
        write(well=well)
    for _ in range(100):
        now = max(now, sayings.due() or now)
        write(well=True)
    assert sayings.due() is None
    assert set(written) == {topic for topic, count in said.items() if count}
