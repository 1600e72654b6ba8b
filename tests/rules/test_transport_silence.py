"""A server that hangs: who can ask somebody else learns it fast, who cannot waits, and a slow one is not a hung one."""

import asyncio
from pathlib import Path

import anyio
import pytest

from runtime.transport.connection import Connection
from runtime.transport.port import Disconnected, Silent, Unreachable
from runtime.transport.tls import Timing
from runtime.transport.vigil import Patience
from tests.rules.transport_world import Gate, Proxy, World, soon, until

HASTY = Timing(connect=2.0, backoff_first=0.01, backoff_most=0.05, patience=Patience(broken=60.0))


async def test_who_is_in_a_hurry_leaves_a_silent_server_and_who_is_not_waits_for_it(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    async with (
        world.serving() as server,
        Proxy(server.port).running() as proxy,
        world.connecting(proxy.port, timing=HASTY) as channel,
    ):
        await until(lambda: channel.connected)
        patient = asyncio.create_task(channel.request(b"patient", deadline=soon(30)))
        hasty = asyncio.create_task(channel.request(b"hasty", deadline=soon(30), hurry=True))
        await until(lambda: len(gate.begun) == 2)
        proxy.hold()
        with pytest.raises(Silent, match="is silent"):
            await hasty
        assert "which is silent" in repr(channel)
        await until(lambda: not channel.connected)
        gate.open.set()
        proxy.release()
        assert await patient == b"patient"
        await until(lambda: channel.connected)
        assert proxy.accepted == 1
        await until(lambda: gate.cancelled == [b"hasty"] or server.statistics().in_flight == 0)


async def test_a_slow_handler_is_not_silence(tmp_path: Path) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    quick = Timing(patience=Patience(probe=0.02, suspect=0.2, broken=0.4))
    async with world.serving(), world.connecting(timing=quick) as channel:
        await until(lambda: channel.connected)
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30), hurry=True))
        await until(lambda: gate.begun == [b"a"])
        await anyio.sleep(1.0)
        gate.open.set()
        assert await waiting == b"a"


@pytest.mark.parametrize("patient", [True, False])
async def test_a_reply_that_may_be_held_back_costs_no_pings(tmp_path: Path, patient: bool) -> None:
    gate = Gate()
    world = World(tmp_path, gate)
    quick = Timing(patience=Patience(probe=0.02, suspect=0.2, broken=0.4))
    async with world.serving(), world.connecting(timing=quick) as channel:
        await until(lambda: channel.connected)
        waiting = asyncio.create_task(channel.request(b"a", deadline=soon(30), hurry=True, patient=patient))
        await until(lambda: gate.begun == [b"a"])
        assert channel._link is not None
        assert (channel._link._timer is None) is patient
        gate.open.set()
        assert await waiting == b"a"
        assert not channel._link.patient


async def test_whoever_wants_to_know_is_told_of_every_connection(tmp_path: Path) -> None:
    world = World(tmp_path)
    told: list[int] = []
    async with (
        world.serving() as server,
        Proxy(server.port).running() as proxy,
        world.connecting(proxy.port, on_connect=lambda: told.append(1)),
    ):
        await until(lambda: len(told) == 1)
        proxy.cut()
        await until(lambda: len(told) == 2)


async def test_who_is_in_a_hurry_does_not_wait_for_a_connection(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.serving() as server:
        port = server.port
    async with world.connecting(port) as channel:
        with anyio.fail_after(2):
            with pytest.raises(Unreachable, match="no connection"):
                await channel.request(b"a", deadline=soon(60), hurry=True)


async def test_a_connection_that_breaks_as_the_request_goes_out_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    once = Timing(backoff_first=60, backoff_most=60)
    async with world.serving(), world.connecting(timing=once) as channel:
        await until(lambda: channel.connected)

        async def breaks(connection: Connection) -> None:
            connection.abort("reset")
            await until(lambda: not channel.connected)
            raise Disconnected("reset")

        monkeypatch.setattr(Connection, "flush", breaks)
        with anyio.fail_after(5), pytest.raises(Unreachable, match="reset"):
            await channel.request(b"a", deadline=soon(60))
