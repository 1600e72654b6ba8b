"""The TLS transport on loopback: what every way of failing looks like to the caller, and that nothing stays behind."""

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import anyio
import pytest

from runtime.transport.credentials import CredentialError, token_file
from runtime.transport.frames import PROTOCOL, Cancel, Decoder, FrameTooLarge, Hello, Ping, Request, encode
from runtime.transport.port import (
    Call,
    DeadlineExceeded,
    Disconnected,
    Overloaded,
    Peer,
    Refused,
    RemoteFailure,
    Unreachable,
)
from runtime.transport.server import ServerStatistics
from runtime.transport.tls import TlsChannel
from tests.rules.transport_world import (
    NAME,
    QUICK,
    QUICK_SERVER,
    Authority,
    Gate,
    Proxy,
    World,
    authority,
    soon,
    until,
)

PATIENCE = 15.0
"""Seconds for what is to happen at once; what it must not wait for takes 30."""

# ---------------------------------------------------------------- requests


async def test_a_request_is_answered_with_who_when_and_what(tmp_path: Path) -> None:
    calls: list[Call] = []

    async def handler(call: Call) -> bytes:
        calls.append(call)
        return b"pong"

    world = World(tmp_path, handler)
    async with world.serving() as server, world.connecting() as channel:
        deadline = soon(3)
        assert await channel.request(b"ping", deadline=deadline, traceparent="00-aa-bb-01") == b"pong"
        assert channel.connected
        assert channel.server == "controller-0"
        assert server.peers() == (world.accounts.peers["good"],)
        assert server.statistics() == ServerStatistics(connections=1, in_flight=0)
    (call,) = calls
    assert call.payload == b"ping"
    assert call.traceparent == "00-aa-bb-01"
    assert call.peer == Peer(account="agent", node="n1", pod="ns/a", pod_uid="u1")
    assert call.deadline == pytest.approx(deadline, abs=0.2)


async def test_replies_come_in_any_order(tmp_path: Path) -> None:
    async def handler(call: Call) -> bytes:
        await anyio.sleep(int(call.payload) / 1000)
        return call.payload

    order: list[int] = []
    world = World(tmp_path, handler)
    async with world.serving(), world.connecting() as channel:

        async def ask(number: int) -> None:
            assert await channel.request(str(number).encode(), deadline=soon()) == str(number).encode()
            order.append(number)

        async with anyio.create_task_group() as group:
            for number in (200, 100, 0):
                group.start_soon(ask, number)
    assert order == [0, 100, 200]


async def test_a_thousand_requests_on_one_connection(tmp_path: Path) -> None:
    world = World(tmp_path, max_in_flight_per_client=1000)
    async with world.serving(), Proxy(world.server.port).running() as proxy, world.connecting(proxy.port) as channel:
        payloads = [bytes([i % 256]) * (i * 3) for i in range(1000)]
        replies = await asyncio.gather(*(channel.request(payload, deadline=soon(20)) for payload in payloads))
        assert replies == payloads
        assert proxy.accepted == 1


async def test_large_payloads_pass_and_too_large_ones_do_not(tmp_path: Path) -> None:
    async def handler(call: Call) -> bytes:
        return bytes(17 * 2**20) if call.payload == b"more" else call.payload

    world = World(tmp_path, handler)
    async with world.serving(), world.connecting() as channel:
        big = Random(0).randbytes(8 * 2**20)
        assert await channel.request(big, deadline=soon(20)) == big
        with pytest.raises(FrameTooLarge):
            await channel.request(bytes(16 * 2**20), deadline=soon())
        with pytest.raises(RemoteFailure, match=r"the reply: a frame of .* bytes is larger"):
            await channel.request(b"more", deadline=soon(20))
        assert await channel.request(b"still here", deadline=soon()) == b"still here"


async def test_what_the_handler_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(call: Call) -> bytes:
        if call.payload == b"busy":
            raise Overloaded("pool p1 has 1024 messages queued")
        raise ValueError("first line\nsecond line")

    world = World(tmp_path, handler)
    async with world.serving(), world.connecting() as channel:
        with pytest.raises(Overloaded, match=r"127.0.0.1:.*: pool p1 has 1024 messages queued"):
            await channel.request(b"busy", deadline=soon())
        with pytest.raises(RemoteFailure, match=r"ValueError: first line$"):
            await channel.request(b"", deadline=soon())
    assert "a request of agent (pod ns/a, node n1) failed" in caplog.text


async def test_cancelling_a_request_cancels_its_handler_and_nothing_else(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving() as server, world.connecting() as channel:
        other = asyncio.create_task(channel.request(b"other", deadline=soon()))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: channel.request(b"scoped", deadline=soon()))
                await until(lambda: len(gate.begun) == 2)
                scope.cancel()
        native = asyncio.create_task(channel.request(b"native", deadline=soon()))
        await until(lambda: len(gate.begun) == 3)
        native.cancel()
        with pytest.raises(asyncio.CancelledError):
            await native
        await until(lambda: gate.cancelled == [b"scoped", b"native"])
        gate.open.set()
        assert await other == b"other"
        await until(lambda: server.statistics().in_flight == 0)
    assert gate.ended == [b"other"]


async def test_the_deadline_travels_and_stops_the_handler(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving(), world.connecting() as channel:
        await until(lambda: channel.connected)
        with pytest.raises(DeadlineExceeded):
            await channel.request(b"slow", deadline=soon(0.1))
        await until(lambda: gate.cancelled == [b"slow"])
        with pytest.raises(Unreachable, match="deadline had passed"):
            await channel.request(b"late", deadline=soon(-1))
    assert gate.begun == [b"slow"]


async def test_the_server_keeps_the_deadline_when_the_client_says_nothing(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving(), raw(world) as (reader, writer):
        writer.write(encode(Hello(PROTOCOL, "good")))
        writer.write(encode(Request(5, 50, "", b"x")))
        seen = await read_frames(reader, 2)
    assert seen == [
        ("Welcome", "controller-0"),
        ("Failure", 5, "deadline", "stopped when the caller's time was up"),
    ]
    assert gate.cancelled == [b"x"]


async def test_a_deadline_may_be_never(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), world.connecting() as channel:
        assert await channel.request(b"x", deadline=float("inf")) == b"x"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_in_flight": 3}, "3 requests are under way"),
        ({"max_in_flight_per_client": 3}, "3 requests of this client"),
    ],
)
async def test_too_many_at_once_are_turned_away(tmp_path: Path, settings: dict[str, int], text: str) -> None:
    gate = Gate()
    world = World(tmp_path, gate, **settings)
    async with world.serving(), world.connecting() as channel:
        waiting = [asyncio.create_task(channel.request(bytes([i]), deadline=soon())) for i in range(3)]
        await until(lambda: len(gate.begun) == 3)
        with pytest.raises(Overloaded, match=text):
            await channel.request(b"one more", deadline=soon())
        gate.open.set()
        await asyncio.gather(*waiting)
        assert await channel.request(b"again", deadline=soon()) == b"again"


# ---------------------------------------------------------------- connections


async def test_a_request_waits_for_the_connection(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        port = server.port
    async with world.connecting(port) as channel, anyio.create_task_group() as group:
        replies: list[bytes] = []

        async def ask() -> None:
            replies.append(await channel.request(b"early", deadline=soon()))

        group.start_soon(ask)
        await until(lambda: "refused" in channel.last_failure.lower())
        async with world.serving(port):
            await until(lambda: replies == [b"early"])


async def test_without_a_server_it_is_unreachable_at_the_deadline(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        port = server.port
    async with world.connecting(port) as channel:
        began = time.monotonic()
        with (
            anyio.fail_after(PATIENCE),
            pytest.raises(
                Unreachable, match=r"127.0.0.1:\d+: no connection \(.*Connection refused|Connect call failed"
            ),
        ):
            await channel.request(b"", deadline=soon(0.2))
        assert time.monotonic() - began > 0.15
        assert not channel.connected


async def test_a_cut_fails_what_is_under_way_and_the_next_request_goes_through(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving(), Proxy(world.server.port).running() as proxy, world.connecting(proxy.port) as channel:
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon()))
        await until(lambda: gate.begun == [b"a"])
        proxy.cut()
        with pytest.raises(Disconnected):
            await waiting
        await until(lambda: gate.cancelled == [b"a"])
        gate.open.set()
        assert await channel.request(b"b", deadline=soon()) == b"b"
        assert proxy.accepted == 2


async def test_a_silent_peer_is_given_up_by_both_sides(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with (
        world.serving() as server,
        Proxy(server.port).running() as proxy,
        world.connecting(proxy.port) as channel,
    ):
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30)))
        await until(lambda: gate.begun == [b"a"])
        proxy.hold()
        with anyio.fail_after(PATIENCE), pytest.raises(Disconnected, match=r"nothing heard for 0\.\d s"):
            await waiting
        await until(lambda: server.statistics() == ServerStatistics(connections=0, in_flight=0))
        proxy.release()
        gate.open.set()
        assert await channel.request(b"b", deadline=soon()) == b"b"


async def test_an_idle_connection_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), Proxy(world.server.port).running() as proxy, world.connecting(proxy.port) as channel:
        await until(lambda: channel.connected)
        await anyio.sleep(1.0)
        assert channel.connected
        assert proxy.accepted == 1


async def test_stopping_the_server_lets_requests_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with anyio.create_task_group() as group, world.connecting_later() as connect:
        server = world.server
        scope = anyio.CancelScope()

        async def serve() -> None:
            with scope:
                await server.run()

        group.start_soon(serve)
        await server.listening()
        channel = await connect(server.port)
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon()))
        await until(lambda: gate.begun == [b"a"])
        scope.cancel()
        await anyio.sleep(0.05)
        with pytest.raises(Overloaded, match="the server is stopping"):
            await channel.request(b"b", deadline=soon())
        gate.open.set()
        assert await waiting == b"a"
        await until(lambda: not channel.connected)
        assert server.port == 0


async def test_a_handler_that_does_not_end_is_cancelled_when_the_server_stops(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    began = 0.0
    async with world.connecting_later() as connect:
        async with world.serving() as server:
            channel = await connect(server.port)
            waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30)))
            await until(lambda: gate.begun == [b"a"])
            began = time.monotonic()
        assert 0.4 < time.monotonic() - began < PATIENCE
        assert gate.cancelled == [b"a"]
        with pytest.raises(Disconnected):
            await waiting


async def test_a_stopped_channel_says_so(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving():
        async with world.connecting() as channel:
            waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30)))
            await until(lambda: gate.begun == [b"a"])
        with pytest.raises(Disconnected, match="closed"):
            await waiting
        with pytest.raises(Unreachable, match="closed"):
            await channel.request(b"b", deadline=soon(30))
        assert not channel.connected
        await until(lambda: gate.cancelled == [b"a"])


async def test_a_server_can_run_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(world.server.run)
            await world.server.listening()
            async with world.connecting() as channel:
                assert await channel.request(b"x", deadline=soon()) == b"x"
            group.cancel_scope.cancel()


async def test_a_taken_port_is_one_plain_error(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        with pytest.raises(OSError, match="address already in use"):
            await world.new_server(server.port).run()


# ---------------------------------------------------------------- who is who


async def test_a_refused_client_hears_why_at_once_and_the_auditor_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    world.token_path.write_text("stolen")
    async with world.serving(), world.connecting() as channel:
        with anyio.fail_after(PATIENCE), pytest.raises(Refused, match="nobody knows the token 'stolen'"):
            await channel.request(b"", deadline=soon(30))
        await until(lambda: len(world.accounts.asked) > 3)
        with pytest.raises(Refused, match="nobody knows the token 'stolen'"):
            await channel.request(b"", deadline=soon(30))
        assert sum("audit: refused 127.0.0.1" in record.getMessage() for record in caplog.records) == 1
        world.token_path.write_text("good")
        await until(lambda: channel.connected)
        assert await channel.request(b"x", deadline=soon()) == b"x"


async def test_an_api_server_that_gives_no_answer_refuses_nobody(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.accounts.error = OSError("connection refused by the API server")
    async with world.serving(), world.connecting() as channel:
        with pytest.raises(Unreachable, match="cannot check the token: OSError: connection refused by the API server"):
            await channel.request(b"", deadline=soon(0.2))
        world.accounts.error = None
        assert await channel.request(b"x", deadline=soon()) == b"x"
        # Later silence of the API server is borne for a while, then the connection ends.
        world.accounts.error = OSError("down")
        await anyio.sleep(0.15)
        assert await channel.request(b"y", deadline=soon()) == b"y"
        await until(lambda: not channel.connected, 3)


async def test_a_renewed_token_goes_in_band_and_is_the_one_that_is_asked_about(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), Proxy(world.server.port).running() as proxy, world.connecting(proxy.port) as channel:
        await until(lambda: channel.connected)
        world.accounts.peers["renewed"] = world.accounts.peers["good"]
        world.token_path.write_text("renewed")
        await until(lambda: "renewed" in world.accounts.asked)
        del world.accounts.peers["good"]
        await anyio.sleep(0.3)
        assert channel.connected
        assert proxy.accepted == 1


async def test_a_client_whose_pod_is_gone_loses_its_connection(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving(), world.connecting() as channel:
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30)))
        await until(lambda: gate.begun == [b"a"])
        world.accounts.peers.clear()
        with pytest.raises(Disconnected, match="nobody knows the token"):
            await waiting
        with pytest.raises(Refused):
            await channel.request(b"b", deadline=soon())


async def test_a_token_of_somebody_else_does_not_change_who_speaks(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.accounts.peers["other"] = Peer(account="agent", node="n2", pod="ns/b", pod_uid="u2")
    async with world.serving(), world.connecting() as channel:
        await until(lambda: channel.connected)
        world.token_path.write_text("other")
        await until(lambda: "belongs to agent (pod ns/b, node n2)" in channel.last_failure)
        await until(lambda: channel.connected)  # a new connection is a new identity
        assert [peer.node for peer in world.server.peers()] == ["n2"]


async def test_a_missing_or_empty_token_file_is_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), world.connecting() as channel:
        await until(lambda: channel.connected)
    world.token_path.write_text("\n")
    async with world.serving(), world.connecting() as channel:
        with pytest.raises(Unreachable, match=r"token file .*/token is empty"):
            await channel.request(b"", deadline=soon(0.1))
        world.token_path.unlink()
        await until(lambda: "No such file" in channel.last_failure)
        world.token_path.write_text("good")
        assert await channel.request(b"x", deadline=soon()) == b"x"
    with pytest.raises(CredentialError, match="No such file"):
        await token_file(tmp_path / "nothing")()


# ---------------------------------------------------------------- certificates


async def test_the_name_is_verified_though_an_address_is_dialled(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), world.connecting(server_name="another.svc") as channel:
        with pytest.raises(Unreachable, match="certificate is not accepted: Hostname mismatch"):
            await channel.request(b"", deadline=soon(0.5))


async def test_an_unknown_authority_is_not_trusted_until_the_file_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ca_path.write_bytes(Authority("somebody else").pem)
    async with world.serving(), world.connecting() as channel:
        with pytest.raises(Unreachable, match="certificate is not accepted"):
            await channel.request(b"", deadline=soon(0.5))
        assert world.accounts.asked == []  # the token was not shown to a stranger
        world.ca_path.write_bytes(b"-----BEGIN")
        await until(lambda: "CA file" in channel.last_failure)
        world.ca_path.write_bytes(authority().pem)
        assert await channel.request(b"x", deadline=soon()) == b"x"


async def test_a_new_certificate_is_used_for_new_connections_and_old_ones_stay(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server, world.connecting() as old:
        await until(lambda: old.connected)
        other = Authority("second authority")
        (tmp_path / "tls.key").write_bytes(b"half written")
        await anyio.sleep(0.15)
        async with world.connecting() as channel:  # the half-written pair is not used
            assert await channel.request(b"x", deadline=soon()) == b"x"
        other.issue(tmp_path)
        await anyio.sleep(0.2)
        assert await old.request(b"x", deadline=soon()) == b"x"
        world.ca_path.write_bytes(other.pem)
        async with world.connecting() as channel:
            assert await channel.request(b"y", deadline=soon()) == b"y"
        assert await old.request(b"x", deadline=soon()) == b"x"
        assert server.port


async def test_a_server_without_a_certificate_does_not_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    (tmp_path / "tls.crt").unlink()
    with pytest.raises(CredentialError, match=r"server certificate .*/tls.crt with key .*/tls.key: No such file"):
        await world.new_server(0).run()


# ---------------------------------------------------------------- clients that are not ours


@contextlib.asynccontextmanager
async def raw(world: World) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection that speaks what the test says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority().pem.decode())
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port, ssl=context, server_hostname=NAME)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_frames(reader: asyncio.StreamReader, count: int) -> list[tuple[object, ...]]:
    """That many frames but pings, as plain tuples that begin with the frame's name."""
    decoder, seen = Decoder(), list[tuple[object, ...]]()
    with anyio.fail_after(5):
        while len(seen) < count:
            data = await reader.read(65536)
            if not data:
                break
            decoder.feed(data)
            for frame in decoder.frames():
                if not isinstance(frame, Ping):
                    values = tuple(getattr(frame, name) for name in frame.__struct_fields__)
                    seen.append((type(frame).__name__, *values))
    return seen


async def test_who_says_nothing_is_shown_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), raw(world) as (reader, _):
        assert await read_frames(reader, 2) == [
            ("Failure", 0, "internal", "no hello, or no answer about its token, in 0.5 s")
        ]


async def test_who_does_not_even_shake_hands_is_shown_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with anyio.fail_after(5), contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(encode(Ping())) + bytes(encode(Cancel(1))),
        (65537).to_bytes(4, "big"),
        bytes(encode(Hello(PROTOCOL, "good"))) + b"\x00\x00\x00\x01\xc1",
        bytes(encode(Hello(PROTOCOL, "good"))) * 2,
        bytes(encode(Hello(PROTOCOL, "good"))) + 2 * bytes(encode(Request(1, 1000, "", b""))),
    ],
)
async def test_who_speaks_rubbish_is_cut_and_others_do_not_notice(tmp_path: Path, words: bytes) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with world.serving() as server, world.connecting() as channel:
        await until(lambda: channel.connected)
        async with raw(world) as (reader, writer):
            writer.write(words)
            seen = await read_frames(reader, 5)
            assert [name for name, *_ in seen if name not in {"Welcome", "Pong"}] == []
        gate.open.set()
        assert await channel.request(b"x", deadline=soon()) == b"x"
        await until(lambda: server.statistics() == ServerStatistics(connections=1, in_flight=0))


async def test_another_protocol_is_refused_by_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving(), raw(world) as (reader, writer):
        writer.write(encode(Hello(PROTOCOL + 1, "good")))
        assert await read_frames(reader, 2) == [("RefusedFrame", "the client speaks protocol 2, this server 1")]


async def test_many_clients_come_and_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path)
    async with world.serving() as server:

        async def visit(number: int) -> None:
            async with world.connecting() as channel:
                assert await channel.request(bytes([number]), deadline=soon(20)) == bytes([number])

        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(visit, number)
        await until(lambda: server.statistics() == ServerStatistics(connections=0, in_flight=0))


async def test_cancelling_a_channel_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        for step in range(12):
            async with world.connecting(timing=QUICK):
                await anyio.sleep(step * 0.002)
        await until(lambda: server.statistics().connections == 0)


async def test_repr_shows_the_state(tmp_path: Path) -> None:
    world = World(tmp_path)
    channel: TlsChannel
    async with world.serving() as server:
        async with world.connecting() as channel:
            await until(lambda: channel.connected)
            assert repr(channel) == f"<TlsChannel 127.0.0.1:{server.port} connected to controller-0, 0 waiting>"
        assert repr(channel).endswith("down: closed, 0 waiting>")
        assert QUICK_SERVER.drain == 0.5
