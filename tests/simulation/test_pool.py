"""What an owner remembers and what it does not: over failover, foreign writers, lost answers and a byte budget."""

from typing import Any

import anyio
import pytest

from actors.pools.claims import Granted, Peek, Reclaim, Refused, Surrendered
from api.ippool import AllocationRecord
from api.kinds import IPPOOL
from runtime.testing.store import Chances, Fault, Script
from tests.simulation.owners import SECONDS, Original, Owners, act


def plain(answer: Granted | Refused) -> str:
    return answer.address.partition("/")[0] if isinstance(answer, Granted) else answer.reason.predicate


# ---------------------------------------------------------------- over a failover


def test_rest_and_quarantine_survive_the_owner() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.3")
        first = await owners.replica("c1")
        for uid in ("u1", "u2"):
            await first.claim(uid)
        assert await first.disown("u1", "10.6.0.1") == Surrendered(addresses=("10.6.0.1",))
        await first.surrender("u2")
        first.scope.cancel()
        second = await owners.replica("c2")
        assert [plain(await second.claim(uid)) for uid in ("u3", "u4", "u5")] == ["10.6.0.3", "10.6.0.2", "full"]
        assert list((await owners.status())["withheldIPs"]) == ["10.6.0.1"]
        await anyio.sleep(601)
        assert plain(await second.claim("u5")) == "10.6.0.1"
        assert "withheldIPs" not in await owners.status()

    act(scene)


def test_rest_is_over_in_time() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.9")
        owner = await owners.replica("c1")
        await owner.claim("u1")
        await owner.surrender("u1")
        assert plain(await owner.claim("u2")) == "10.6.0.2"
        await anyio.sleep(32)
        assert plain(await owner.claim("u3")) == "10.6.0.1"

    act(scene)


def test_a_fixed_address_waits_for_the_old_sandbox_at_whatever_owner() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.9")
        first, second = await owners.replica("c1"), await owners.replica("c2")
        await first.claim("old", pod="ns/web-0", fixed=True)
        refused = await second.claim("new", pod="ns/web-0", fixed=True, cid="c2", node="n2")
        assert isinstance(refused, Refused)
        assert (refused.reason.predicate, refused.retry) == ("held", True)
        assert await second.surrender("old", retain=True) == Surrendered(retained=("10.6.0.1",))
        assert await first.pools("lan").ask(Peek("none", "eth0", pod="ns/web-0"), timeout=SECONDS)
        granted = await first.claim("new", pod="ns/web-0", fixed=True, cid="c2", node="n2")
        assert (plain(granted), isinstance(granted, Granted) and granted.fresh) == ("10.6.0.1", False)
        assert await second.surrender("old", retain=True) == Surrendered()
        assert [it.what for _, it in owners.noted] == ["granted", "kept", "taken over"]

    act(scene)


def test_only_exactly_what_was_judged_is_reclaimed() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.9")
        owner = await owners.replica("c1")
        await owner.claim("u1")
        judged = AllocationRecord("ns/u1", "u1", "eth0", "n1", "c1")
        await owner.claim("u1", cid="c2")
        assert await owner.pools("lan").ask(Reclaim("10.6.0.1", judged), timeout=SECONDS) == Surrendered(held=True)
        now = AllocationRecord("ns/u1", "u1", "eth0", "n1", "c2")
        freed = await owner.pools("lan").ask(Reclaim("10.6.0.1", now), timeout=SECONDS)
        assert freed == Surrendered(addresses=("10.6.0.1",))

    act(scene)


# ---------------------------------------------------------------- what is told


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.LOST_REQUEST, Fault.LOST_REPLY, Fault.CONFLICT, Fault.DUPLICATE])
def test_every_change_is_told_once_whatever_became_of_the_write(fault: Fault) -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.9")
        owner = await owners.replica("c1")
        await owner.claim("u1")
        owner.store.policy = Script(fault)
        assert isinstance(await owner.surrender("u1"), Surrendered)
        owner.store.policy = Script(fault)
        assert plain(await owner.claim("u2")) == "10.6.0.2"
        assert [(it.what, it.uid, it.ip) for _, it in owners.noted] == [
            ("granted", "u1", "10.6.0.1"),
            ("released", "u1", "10.6.0.1"),
            ("granted", "u2", "10.6.0.2"),
        ]

    act(scene)


def test_a_batch_without_room_says_so_once() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1")
        owner = await owners.replica("c1")
        await owner.claim("u0")
        answers: list[str] = []

        async def ask(uid: str) -> None:
            answers.append(plain(await owner.claim(uid)))

        async with anyio.create_task_group() as group:
            for at in range(5):
                group.start_soon(ask, f"u{at}")
        assert sorted(answers) == ["10.6.0.1", *["full"] * 4]
        assert {it[:2] for it in owners.told} == {("exhausted", "lan")}
        assert len(owners.told) < 4

    act(scene)


# ---------------------------------------------------------------- together with the original's agents


def bare(records: dict[str, dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {ip: (it["pod"], it["podUid"]) for ip, it in records.items()}


def test_what_the_originals_agents_drop_comes_back_with_the_next_write() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.40")
        owner = await owners.replica("c1")
        for at in range(1, 6):
            await owner.claim(f"u{at}", pod="ns/web-0" if at == 3 else f"ns/u{at}", fixed=at == 3)
        await owner.disown("u1", "10.6.0.1")
        await owner.surrender("u3", retain=True)
        before = await owners.status()
        original = Original(owners.store, pause=anyio.lowlevel.checkpoint)
        assert await original.add("lan", "10.6.0.30", "ns/theirs", "t1")
        assert await original.remove("lan", "u5")
        stripped = await owners.status()
        assert stripped["allocatedIPs"]["10.6.0.3"] == {"pod": "ns/web-0", "podUid": "u3"}
        assert "withheldIPs" not in stripped
        # Our release names the sandbox, so it must be known again; the original's own record is as it wrote it.
        assert await owner.surrender("u2", cid="c0") == Surrendered(held=True)
        assert plain(await owner.claim("u6")) == "10.6.0.5", "which the original freed, and did not let rest"
        after = await owners.status()
        expected = {ip: it for ip, it in before["allocatedIPs"].items() if ip != "10.6.0.5"}
        expected["10.6.0.30"] = {"pod": "ns/theirs", "podUid": "t1"}
        expected["10.6.0.5"] = {"pod": "ns/u6", "podUid": "u6", "nic": "eth0", "node": "n1", "cid": "c1"}
        assert after["allocatedIPs"] == dict(sorted(expected.items()))
        assert after["withheldIPs"] == before["withheldIPs"]
        assert plain(await owner.claim("u9", pod="ns/web-0", fixed=True)) == "10.6.0.3", "it is known that it was kept"

    act(scene)


@pytest.mark.parametrize("seed", range(1, 9))
def test_nothing_is_lost_on_either_side_while_both_write(seed: int) -> None:
    """Three of our batches to one write of theirs, conflicts both ways, lost requests and answers on our side."""

    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.0.250")
        owner = await owners.replica("c1")
        ours: dict[str, str] = {}
        theirs: dict[str, str] = {}

        async def pod(at: int) -> None:
            await anyio.sleep(owners.random.uniform(0, 5))
            answer = await owner.claim(f"u{at}", cid=f"c{at}")
            assert isinstance(answer, Granted), answer
            ours[f"u{at}"] = plain(answer)
            if at % 3 == 0:
                await anyio.sleep(owners.random.uniform(0, 3))
                done = await owner.surrender(f"u{at}", cid=f"c{at}")
                assert isinstance(done, Surrendered)
                assert done.addresses == (ours[f"u{at}"],) or not done.held
                del ours[f"u{at}"]

        async def pause() -> None:
            await anyio.sleep(owners.random.uniform(0.001, 0.02))

        async def agent(at: int) -> None:
            original = Original(owners.store, pause=pause)
            await anyio.sleep(owners.random.uniform(0, 5))
            ip = f"10.6.0.{100 + at}"
            while not await original.add("lan", ip, f"ns/t{at}", f"t{at}"):
                await pause()
            theirs[f"t{at}"] = ip
            if at % 3 == 0:
                await anyio.sleep(owners.random.uniform(0, 3))
                while not await original.remove("lan", f"t{at}"):
                    await pause()
                del theirs[f"t{at}"]

        async with anyio.create_task_group() as group:
            for at in range(60):
                group.start_soon(pod, at)
            for at in range(20):
                group.start_soon(agent, at)
        await owner.claim("last", cid="last")
        records = (await owners.status())["allocatedIPs"]
        mine = {it["podUid"]: ip for ip, it in records.items() if it["podUid"].startswith("u")}
        assert mine == ours
        assert {it["podUid"]: ip for ip, it in records.items() if it["podUid"].startswith("t")} == theirs
        for uid, ip in ours.items():
            assert records[ip]["cid"] == f"c{uid[1:]}", "every record of ours can be released by its sandbox alone"

    act(scene, seed=seed, chances=Chances(lost_request=0.03, lost_reply=0.05, conflict=0.05, before=(0.001, 0.01)))


# ---------------------------------------------------------------- pools that overlap


def test_pools_that_come_at_the_same_moment_grant_nothing_that_both_have() -> None:
    async def scene(owners: Owners) -> None:
        one, two = await owners.replica("c1"), await owners.replica("c2")
        await owners.pool("red", "10.6.0.1-10.6.0.4")
        await owners.pool("blue", "10.6.0.3-10.6.0.6")
        red = [plain(await one.claim(f"r{at}", "red")) for at in range(4)]
        blue = [plain(await two.claim(f"b{at}", "blue")) for at in range(4)]
        assert red == ["10.6.0.1", "10.6.0.2", "overlap", "overlap"]
        assert blue == ["10.6.0.5", "10.6.0.6", "overlap", "overlap"]
        await anyio.sleep(1)
        for name, other in (("red", "blue"), ("blue", "red")):
            (condition,) = (await owners.status(name))["conditions"]
            assert (condition["type"], condition["status"]) == ("Overlapping", "True")
            assert condition["message"] == f"granted by neither: 10.6.0.3-10.6.0.4 with {other}"
            assert ("overlapping", name, f"10.6.0.3-10.6.0.4 with {other}") in owners.told
        assert len([it for it in owners.told if it[0] == "overlapping"]) == 2, "said once"
        await owners.store.patch(IPPOOL, "blue", {"spec": {"ips": ["10.6.0.5-10.6.0.9"]}})
        await anyio.sleep(1)
        assert plain(await one.claim("r9", "red")) == "10.6.0.3"
        assert (await owners.status("red"))["conditions"][0]["status"] == "False"

    act(scene)


def test_a_pool_that_nobody_asks_says_so_too() -> None:
    async def scene(owners: Owners) -> None:
        await owners.replica("c1")
        await owners.pool("red", "10.6.0.1-10.6.0.4")
        await owners.pool("blue", "10.6.0.3-10.6.0.6")
        await anyio.sleep(1)
        for name in ("red", "blue"):
            assert (await owners.status(name))["conditions"][0]["status"] == "True"

    act(scene)


def test_the_later_of_two_specs_grants_nothing_shared_though_its_snapshot_lags() -> None:
    """The owner's watch is cut: only the list that it makes shows it the other pool."""

    async def scene(owners: Owners) -> None:
        await owners.pool("red", "10.6.0.1-10.6.0.4")
        owner = await owners.replica("c1")
        assert plain(await owner.claim("r0", "red")) == "10.6.0.1"

        def late(_key: str, _item: object) -> None:
            """What the watch brings is not here yet."""

        owner.reflector.snapshot.put = late  # type: ignore[method-assign,assignment]
        await owners.pool("blue", "10.6.0.1-10.6.0.2")
        assert plain(await owner.claim("b0", "blue")) == "overlap"
        await owners.store.patch(IPPOOL, "red", {"spec": {"ips": ["10.6.0.2", "10.6.0.4"]}})
        assert plain(await owner.claim("r1", "red")) == "10.6.0.4"

    act(scene)


# ---------------------------------------------------------------- the byte budget


def test_over_the_budget_batches_grow_and_nothing_fails() -> None:
    """A thousand pods come and go at a pool whose writes may have 20 kB a second."""
    sizes: dict[float, tuple[int, float]] = {}

    def play(rate: float) -> None:
        async def scene(owners: Owners) -> None:
            await owners.pool("lan", "10.6.0.1-10.6.9.250")
            owner = await owners.replica("c1")
            begun = anyio.current_time()

            async def pod(at: int) -> None:
                await anyio.sleep(at * 0.005)
                assert isinstance(await owner.claim(f"u{at}"), Granted)
                assert isinstance(await owner.surrender(f"u{at}"), Surrendered)

            async with anyio.create_task_group() as group:
                for at in range(1000):
                    group.start_soon(pod, at)
            writes = sum(count for call, count in owner.store.outcomes.items() if call[0] == "update")
            sizes[rate] = writes, anyio.current_time() - begun
            assert "allocatedIPs" not in await owners.status()

        act(scene, rate=rate, cooldown=0.0, chances=Chances(before=(0.002, 0.004), after=(0.002, 0.004)))

    play(0.0)
    play(20_000.0)
    assert sizes[20_000.0][0] < sizes[0.0][0] / 3
    assert sizes[20_000.0][1] < 30.0


def test_after_a_pause_everything_that_has_waited_goes_in_one_write() -> None:
    async def scene(owners: Owners) -> None:
        await owners.pool("lan", "10.6.0.1-10.6.9.250")
        owner = await owners.replica("c1")

        async def pods(first: int, last: int) -> int:
            async with anyio.create_task_group() as group:
                for at in range(first, last):
                    group.start_soon(owner.claim, f"u{at}")
            return sum(count for call, count in owner.store.outcomes.items() if call[0] == "update")

        assert await pods(0, 512) == 1
        assert await pods(512, 1800) == 2

    act(scene, rate=20_000.0)
