"""The actor kernel: order, asks, batches, supervision, and the deterministic loop it is tested in."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import pytest
from msgspec import Struct

from runtime.actor import LATER, Actor, Question, Ref, System
from runtime.envelope import Envelope
from runtime.errors import ActorStopped, AskCycle, AskTimeout, Escalated, MailboxFull
from runtime.supervision import Intensity, Restart, Strategy, Supervisor
from runtime.testing import Deadlock, EventRecord, VirtualClock, run


class Add(Question[int], frozen=True, tag=True):
    amount: int


class Boom(Question[int], frozen=True, tag=True):
    """Makes the handler raise."""


class Never(Question[int], frozen=True, tag=True):
    """Is never answered."""


class Slowly(Question[int], frozen=True, tag=True):
    seconds: float


class Slept(Struct, frozen=True, tag=True):
    seconds: float


class Tick(Struct, frozen=True, tag=True):
    """A timer."""


class Counter(Actor["Add | Boom | Never | Slowly | Slept | Tick"]):
    def __init__(self) -> None:
        self.total = 0
        self.sleeper: Envelope | None = None

    def handle(self, message: "Add | Boom | Never | Slowly | Slept | Tick", envelope: Envelope) -> object:
        match message:
            case Add(amount):
                self.total += amount
                return self.total
            case Boom():
                msg = "boom"
                raise RuntimeError(msg)
            case Never():
                return LATER
            case Slowly(seconds):
                self.sleeper = envelope

                async def sleep() -> float:
                    await anyio.sleep(seconds)
                    return seconds

                self.pipe(sleep(), Slept)
                return LATER
            case Slept():
                assert self.sleeper is not None and self.sleeper.reply is not None
                self.sleeper.reply.resolve(self.total)
                return None
            case Tick():
                self.total += 1
                self.timers.start("tick", 1.0, Tick())
                return None


def world(main: Callable[[Supervisor, EventRecord], Coroutine[Any, Any, Any]], *, seed: int = 1, **options: Any) -> Any:
    """Run `main` beside a running supervisor in the deterministic loop."""

    async def body() -> Any:
        record = EventRecord(keep=100)
        system = System(clock=VirtualClock(), random=random.Random(seed), observer=record)
        supervisor = Supervisor("test", system, **options)
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            await anyio.sleep(0.001)
            result = await main(supervisor, record)
            await supervisor.stop()
        return result

    return run(body, seed=seed)


def test_asks_are_answered_and_errors_go_to_the_asker() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        assert await ref.ask(Add(2), timeout=1) == 2
        with pytest.raises(RuntimeError, match="boom"):
            await ref.ask(Boom(), timeout=1)
        # The error went to the asker only: state is as before.
        assert await ref.ask(Add(3), timeout=1) == 5
        with pytest.raises(AskTimeout, match=r"test/counter did not answer within 0\.500 s"):
            await ref.ask(Never(), timeout=0.5)

    world(main)


def test_long_work_does_not_stop_the_actor_from_answering() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        async with anyio.create_task_group() as group:
            slow: list[int] = []

            async def slowly() -> None:
                slow.append(await ref.ask(Slowly(5.0), timeout=10))

            group.start_soon(slowly)
            await anyio.sleep(1)
            assert await ref.ask(Add(7), timeout=0.1) == 7
            assert slow == []
        assert slow == [7]

    world(main)


def test_timers_are_messages_and_end_with_the_actor() -> None:
    async def main(supervisor: Supervisor, record: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        ref.tell(Tick())
        await anyio.sleep(10.5)
        assert await ref.ask(Add(0), timeout=1) == 11
        await supervisor.remove("counter")
        before = record.count
        await anyio.sleep(10)
        assert record.count == before

    world(main)


def test_a_stopping_actor_answers_every_pending_ask() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        failures: list[Exception] = []

        async def asks(message: Never | Slowly) -> None:
            try:
                await ref.ask(message, timeout=100)
            except ActorStopped as error:
                failures.append(error)

        async with anyio.create_task_group() as group:
            for _i in range(3):
                group.start_soon(asks, Never())
            group.start_soon(asks, Slowly(50.0))
            await anyio.sleep(0.1)
            await supervisor.remove("counter")
        assert len(failures) == 4
        with pytest.raises(ActorStopped):
            ref.tell(Tick())

    world(main)


class Forward(Question[int], frozen=True, tag=True):
    """Asks the next actor."""


class Forwarded(Struct, frozen=True, tag=True):
    error: str


class Forwarder(Actor["Forward | Forwarded"]):
    def __init__(self, target: Callable[[], Ref[Any]]) -> None:
        self.target = target
        self.asker: Envelope | None = None

    def handle(self, message: "Forward | Forwarded", envelope: Envelope) -> object:
        match message:
            case Forward():
                self.asker = envelope
                self.pipe(
                    self.target().ask(Forward(), timeout=5),
                    lambda _: Forwarded(""),
                    failed=lambda e: Forwarded(f"{type(e).__name__}: {e}"),
                    on_behalf=envelope,
                )
                return LATER
            case Forwarded(error):
                assert self.asker is not None and self.asker.reply is not None
                self.asker.reply.fail(RuntimeError(error))
                return None


def test_an_ask_that_would_close_a_cycle_raises_at_once() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        refs: dict[str, Ref[Any]] = {}
        refs["a"] = supervisor.add_actor("a", lambda: Forwarder(lambda: refs["b"]))
        refs["b"] = supervisor.add_actor("b", lambda: Forwarder(lambda: refs["a"]))
        start = asyncio.get_running_loop().time()
        with pytest.raises(RuntimeError, match="ask cycle: test/a -> test/b -> test/a"):
            await refs["a"].ask(Forward(), timeout=60)
        assert asyncio.get_running_loop().time() - start < 1
        assert issubclass(AskCycle, Exception)

    world(main)


class Gather(Question[int], frozen=True, tag=True):
    """Answered with the size of the batch it was in."""


class Written(Struct, frozen=True, tag=True):
    """A write has ended."""


class Batcher(Actor["Gather | Written"]):
    batch = 8

    def __init__(self) -> None:
        self.waiting: list[Envelope] = []

    def handle_batch(self, batch: Sequence[Envelope]) -> None:
        self.waiting = list(batch)
        self.hold()
        self.pipe(anyio.sleep(1), lambda _: Written())

    def handle(self, message: "Gather | Written", envelope: Envelope) -> object:
        for waiting in self.waiting:
            assert waiting.reply is not None
            waiting.reply.resolve(len(self.waiting))
        self.release()
        return None


def test_what_arrives_during_a_write_goes_into_the_next_one() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("batcher", Batcher, capacity=10)
        sizes: list[int] = []

        async def gather() -> None:
            sizes.append(await ref.ask(Gather(), timeout=60))

        async with anyio.create_task_group() as group:
            group.start_soon(gather)
            await anyio.sleep(0.1)
            for _i in range(10):
                group.start_soon(gather)
            await anyio.sleep(0.1)
            statistics = ref.statistics()
            assert (statistics.depth, statistics.held) == (10, True)
            assert statistics.oldest_age == pytest.approx(0.1)
            with pytest.raises(MailboxFull, match="10 messages are queued"):
                await ref.ask(Gather(), timeout=60)
        assert sorted(sizes) == [1, 2, 2, *[8] * 8]
        assert ref.statistics().largest_batch == 8
        assert ref.statistics().rejected == 1

    world(main)


def test_a_message_nobody_waits_for_any_more_is_not_dealt_with() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("batcher", Batcher)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: ref.ask(Gather(), timeout=60))
            await anyio.sleep(0.1)
            with pytest.raises(AskTimeout):
                await ref.ask(Gather(), timeout=0.1)
        await anyio.sleep(2)
        assert ref.statistics().expired == 1

    world(main)


def test_a_failed_tell_restarts_the_actor_and_too_many_escalate() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        await ref.ask(Add(5), timeout=1)
        ref.tell(Boom())
        await anyio.sleep(0.1)
        assert await ref.ask(Add(1), timeout=1) == 1, "a new life starts from nothing"
        child = supervisor.status().children[0]
        assert (child.restarts, child.last_failure) == (1, "RuntimeError: boom")

    world(main, intensity=Intensity(failures=2, seconds=10))

    async def many(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        for _i in range(3):
            ref.tell(Boom())
            await anyio.sleep(1)

    with pytest.RaisesGroup(Escalated):
        world(many, intensity=Intensity(failures=2, seconds=10))


def test_failures_that_are_far_apart_do_not_escalate() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        ref = supervisor.add_actor("counter", Counter)
        for _i in range(6):
            ref.tell(Boom())
            await anyio.sleep(11)
        assert supervisor.status().children[0].restarts == 6

    world(main, intensity=Intensity(failures=1, seconds=10))


def test_rest_for_one_restarts_what_builds_on_the_failed_child() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        first, second, third = (supervisor.add_actor(name, Counter) for name in ("first", "second", "third"))
        for ref in (first, second, third):
            await ref.ask(Add(1), timeout=1)
        second.tell(Boom())
        await anyio.sleep(0.1)
        assert [await ref.ask(Add(1), timeout=1) for ref in (first, second, third)] == [2, 1, 1]

    world(main, strategy=Strategy.REST_FOR_ONE)


def test_services_and_subtrees_are_children_too() -> None:
    async def main(supervisor: Supervisor, _: EventRecord) -> None:
        lives: list[float] = []

        async def service() -> None:
            lives.append(asyncio.get_running_loop().time())
            await anyio.sleep(1)
            msg = "gone"
            raise OSError(msg)

        subtree = Supervisor("test/subtree", supervisor.system, intensity=Intensity(failures=2, seconds=60))
        subtree.add_service("service", service)
        supervisor.add_supervisor(subtree)
        await anyio.sleep(10)
        # Three lives exhaust the subtree; then the root restarts it, and so on.
        assert len(lives) > 3
        assert supervisor.status().children[0].restarts >= 1
        assert "gives up" in supervisor.status().children[0].last_failure

        once: list[int] = []

        async def job() -> None:
            once.append(1)

        supervisor.add_service("job", job, restart=Restart.TRANSIENT)
        await anyio.sleep(1)
        assert once == [1]
        await supervisor.remove("subtree")

    world(main, intensity=Intensity(failures=50, seconds=60))


def chatter(seed: int) -> str:
    """A run with enough concurrency that its order depends on the seed."""

    async def main(supervisor: Supervisor, record: EventRecord) -> str:
        refs = [supervisor.add_actor(f"counter{i}", Counter) for i in range(4)]

        async def talk(number: int) -> None:
            for i in range(5):
                await refs[(number + i) % 4].ask(Add(number), timeout=10)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(talk, number)
        return record.digest()

    return str(world(main, seed=seed))


def test_the_same_seed_gives_the_same_hash_and_another_seed_another_order() -> None:
    digests = {seed: chatter(seed) for seed in range(5)}
    assert digests == {seed: chatter(seed) for seed in range(5)}
    assert len(set(digests.values())) > 1


def test_the_deterministic_loop_refuses_threads_and_reports_a_deadlock() -> None:
    async def thread() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError, match="wants a thread"):
        run(thread, seed=1)

    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(stuck, seed=1)


class Work(Question[str], frozen=True, tag=True):
    """Piped work that fails after `seconds`, or takes for ever; cancelled, it needs a moment to clean up."""

    seconds: float = 0.0


class Worker(Actor["Work | Slept"]):
    log: list[str]

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def handle(self, message: "Work | Slept", envelope: Envelope) -> object:
        match message:
            case Work(seconds):

                async def work() -> float:
                    try:
                        await anyio.sleep(seconds or 1000)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await anyio.sleep(1)
                            self.log.append(f"cleaned up after {seconds}")
                    msg = "no good"
                    raise RuntimeError(msg)

                self.pipe(work(), Slept)
                return LATER
            case Slept():
                return None


def worker(log: list[str]) -> Callable[[], Worker]:
    return lambda: Worker(log)


async def asked(ref: Ref[Any], message: Question[str], log: list[str]) -> None:
    try:
        await ref.ask(message, timeout=100)
    except ActorStopped:
        log.append("told")


def test_work_that_fails_ends_the_life_when_all_other_work_has_cleaned_up() -> None:
    async def main(supervisor: Supervisor, record: EventRecord) -> list[str]:
        log: list[str] = []
        ref = supervisor.add_actor("worker", worker(log))
        async with anyio.create_task_group() as group:
            group.start_soon(asked, ref, Work(), log)
            group.start_soon(asked, ref, Work(5.0), log)
            await anyio.sleep(6.5)
            assert log == ["cleaned up after 5.0"]
        [child] = supervisor.status().children
        return [*log, child.state, f"{anyio.current_time():.0f}"]

    expected = ["cleaned up after 5.0", "cleaned up after 0.0", "told", "told", "running", "7"]
    assert world(main, intensity=Intensity(failures=5, seconds=10)) == expected


def test_work_cleans_up_before_an_actor_is_gone_whether_it_ends_in_order_or_is_cancelled() -> None:
    async def in_order(supervisor: Supervisor, record: EventRecord) -> list[str]:
        log: list[str] = []
        ref = supervisor.add_actor("worker", worker(log), shutdown=5.0)
        async with anyio.create_task_group() as group:
            group.start_soon(asked, ref, Work(), log)
            await anyio.sleep(1)
            await supervisor.remove("worker")
            log.append("removed")
        return log

    first, *rest = world(in_order)
    assert first == "cleaned up after 0.0"
    assert sorted(rest) == ["removed", "told"]
    log: list[str] = []

    async def cancelled() -> None:
        supervisor = Supervisor("test", System(clock=VirtualClock(), random=random.Random(1)))
        ref = supervisor.add_actor("worker", worker(log))
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(supervisor.run)
                    inner.start_soon(asked, ref, Work(), log)
                    await anyio.sleep(1)
                    scope.cancel()
            log.append("over")
            group.cancel_scope.cancel()

    run(cancelled, seed=1)
    assert log == ["cleaned up after 0.0", "over"]
