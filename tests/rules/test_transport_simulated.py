"""The simulated network does what it says, shows it as the TLS transport would, and repeats a seed to the letter."""

import asyncio
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.testing import EventRecord, run
from runtime.testing.transport import SimulatedNetwork, Weather
from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Disconnected,
    Overloaded,
    Peer,
    RemoteFailure,
    TransportError,
    Unreachable,
)

STORM = Weather(lose_request=0.1, lose_reply=0.1, double_request=0.1, late=0.2, cut=0.1, late_by=(0.1, 3.0))


def now() -> float:
    return asyncio.get_running_loop().time()


class Service:
    """Counts what reaches it, and takes its time."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.seconds = seconds
        self.begun: Counter[bytes] = Counter()
        self.ended: Counter[bytes] = Counter()
        self.cancelled: Counter[bytes] = Counter()
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> bytes:
        self.calls.append(call)
        self.begun[call.payload] += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled[call.payload] += 1
            raise
        self.ended[call.payload] += 1
        return b"re:" + call.payload


def network(weather: Weather | None = None, seed: int = 1) -> SimulatedNetwork:
    return SimulatedNetwork(Random(seed), weather=weather or Weather())


def test_in_calm_weather_a_request_takes_two_ways() -> None:
    async def main() -> None:
        service = Service(0.0)
        async with network(Weather(delay=(0.01, 0.01))) as net:
            net.serve("c0", service)
            channel = net.channel("n1", "c0", peer=Peer(account="agent", node="n1"))
            assert channel.connected
            assert await channel.request(b"x", deadline=1.0, traceparent="tp") == b"re:x"
            assert now() == pytest.approx(0.02, abs=0.001)
        (call,) = service.calls
        assert (call.peer.node, call.traceparent) == ("n1", "tp")
        assert call.deadline == pytest.approx(1.01)

    run(main, seed=1)


@pytest.mark.parametrize(
    ("weather", "begun"), [(Weather(lose_request=1.0), 0), (Weather(lose_reply=1.0), 1), (Weather(late=1.0), 1)]
)
def test_what_is_lost_or_late_ends_at_the_deadline(weather: Weather, begun: int) -> None:
    async def main() -> None:
        service = Service()
        async with network(weather) as net:
            net.serve("c0", service)
            with pytest.raises(DeadlineExceeded):
                await net.channel("n1", "c0").request(b"x", deadline=0.4)
            assert now() == pytest.approx(0.4)
            await asyncio.sleep(100)
        assert service.begun[b"x"] == begun

    run(main, seed=1)


def test_a_doubled_request_is_handled_twice_and_answered_once() -> None:
    async def main() -> None:
        service = Service()
        async with network(Weather(double_request=1.0)) as net:
            net.serve("c0", service)
            assert await net.channel("n1", "c0").request(b"x", deadline=1.0) == b"re:x"
            await asyncio.sleep(1)
        assert service.ended[b"x"] == 2

    run(main, seed=1)


def test_a_cut_disconnects_the_caller_and_stops_the_handler() -> None:
    async def main() -> None:
        service = Service(1.0)
        async with network() as net:
            net.serve("c0", service)
            asyncio.get_running_loop().call_later(0.5, net.cut, "n1", "c0")
            with pytest.raises(Disconnected, match="c0: the connection was cut"):
                await net.channel("n1", "c0").request(b"x", deadline=5.0)
            assert await net.channel("n1", "c0").request(b"y", deadline=5.0) == b"re:y"
        assert service.cancelled == Counter({b"x": 1})

    run(main, seed=1)


def test_a_short_partition_only_delays_and_a_long_one_disconnects() -> None:
    async def main() -> None:
        async with network(Weather(silence=3.0)) as net:
            net.serve("c0", Service())
            channel = net.channel("n1", "c0")
            loop = asyncio.get_running_loop()
            net.partition("n1", "c0")
            loop.call_later(2.0, net.heal, "n1", "c0")
            assert await channel.request(b"x", deadline=10.0) == b"re:x"
            assert 2.0 < now() < 2.1

            begun = now()
            net.partition("c0", "n1")
            assert channel.connected
            with pytest.raises(Disconnected, match="nothing heard"):
                await channel.request(b"x", deadline=100.0)
            assert now() - begun == pytest.approx(3.0)
            assert not net.reachable("n1", "c0")
            with pytest.raises(Unreachable):
                await channel.request(b"x", deadline=now() + 1)
            loop.call_later(1.0, net.heal, "n1", "c0")
            assert await channel.request(b"x", deadline=now() + 10) == b"re:x"
            assert await net.channel("n2", "c0").request(b"x", deadline=now() + 10) == b"re:x"

    run(main, seed=1)


def test_a_dead_server_disconnects_and_its_successor_answers_new_requests_only() -> None:
    async def main() -> None:
        first, second = Service(1.0), Service(0.0)
        async with network() as net:
            channel = net.channel("n1", "c0")
            with pytest.raises(Unreachable):
                await channel.request(b"early", deadline=0.1)
            net.serve("c0", first)
            loop = asyncio.get_running_loop()
            loop.call_later(0.5, net.withdraw, "c0")
            with pytest.raises(Disconnected, match="c0 has gone"):
                await channel.request(b"x", deadline=now() + 5)
            assert first.cancelled[b"x"] == 1
            loop.call_later(1, net.serve, "c0", second)
            assert await channel.request(b"y", deadline=now() + 5) == b"re:y"
        assert second.begun == Counter({b"y": 1})

    run(main, seed=1)


def test_what_the_handler_raises_and_its_deadline() -> None:
    async def main() -> None:
        async def handler(call: Call) -> bytes:
            if call.payload == b"busy":
                raise Overloaded("full")
            raise ValueError("a\nb")

        async with network() as net:
            net.serve("c0", handler)
            channel = net.channel("n1", "c0")
            with pytest.raises(Overloaded, match="full"):
                await channel.request(b"busy", deadline=1.0)
            with pytest.raises(RemoteFailure, match=r"ValueError: a$"):
                await channel.request(b"", deadline=1.0)
            slow = Service(100)
            net.serve("c0", slow)
            with pytest.raises(DeadlineExceeded):
                await channel.request(b"slow", deadline=2.0)
            await asyncio.sleep(0.1)
            assert slow.cancelled[b"slow"] == 1

    run(main, seed=1)


def test_cancelling_the_caller_cancels_the_handler_a_moment_later() -> None:
    async def main() -> None:
        service = Service(100)
        async with network(Weather(delay=(0.1, 0.1))) as net:
            net.serve("c0", service)
            task = asyncio.create_task(net.channel("n1", "c0").request(b"x", deadline=50.0))
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task])
            assert service.cancelled == Counter()
            await asyncio.sleep(0.2)
            assert service.cancelled == Counter({b"x": 1})

    run(main, seed=1)


def test_leaving_the_network_ends_every_handler() -> None:
    async def main() -> None:
        service = Service(1000)
        async with network() as net:
            net.serve("c0", service)
            task = asyncio.create_task(net.channel("n1", "c0").request(b"x", deadline=2000.0))
            await asyncio.sleep(1)
        with pytest.raises(Disconnected):
            await task
        assert service.cancelled == Counter({b"x": 1})
        assert len(asyncio.all_tasks()) == 1

    run(main, seed=1)


def storm(seed: int) -> tuple[str, Counter[str], int]:
    """A hundred requests of three nodes to two servers in bad weather: the hash, the outcomes, the faults."""
    record = EventRecord()
    outcomes: Counter[str] = Counter()

    async def main() -> None:
        services = {"c0": Service(0.01), "c1": Service(0.02)}
        async with SimulatedNetwork(Random(seed), weather=STORM, record=record) as net:
            for address, service in services.items():
                net.serve(address, service)

            async def ask(number: int) -> None:
                await asyncio.sleep(number * 0.005)
                payload = str(number).encode()
                try:
                    reply = await net.channel(f"n{number % 3}", f"c{number % 2}").request(payload, deadline=now() + 2)
                except TransportError as error:
                    outcomes[type(error).__name__] += 1
                    record.event("caller", type(error).__name__)
                else:
                    assert reply == b"re:" + payload
                    outcomes["answered"] += 1
                    record.event("caller", number)

            asyncio.get_running_loop().call_later(0.2, net.partition, "n0", "c0")
            await asyncio.gather(*(ask(number) for number in range(100)))

    run(main, seed=seed)
    return record.digest(), outcomes, record.count


@given(st.integers(0, 2**32))
def test_the_same_seed_gives_the_same_events(seed: int) -> None:
    first = storm(seed)
    assert storm(seed) == first


def test_a_storm_shows_every_outcome_and_seeds_differ() -> None:
    digests, total = set(), Counter[str]()
    for seed in range(10):
        digest, outcomes, faults = storm(seed)
        assert sum(outcomes.values()) == 100
        assert faults > 100
        digests.add(digest)
        total += outcomes
    assert len(digests) == 10
    assert set(total) >= {"answered", "DeadlineExceeded", "Disconnected"}
