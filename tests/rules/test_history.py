"""The histories of pools on a virtual clock: crashes at every await, two owners at a time, and what it costs."""

from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from actors.pools.history import (
    BYTES_PER_SECOND,
    FLUSH_SECONDS,
    KEY,
    Histories,
    HistoryActor,
    name_of,
    sweep,
)
from api.core import ConfigMap
from api.ippool import AllocationRecord, IPPoolSpec, SpiderIPPool, decode_records, encode_records
from api.kinds import CONFIGMAP, IPPOOL, Kind
from api.meta import ObjectMeta
from ipam.history import CHANGES, Book, Change, What, decoded, missed
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.store.port import Store
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run
from runtime.testing.store import Chances, FaultyStore
from telemetry import metrics

NAMESPACE = "spiderpool"


class Watched:
    """A store that tells of every request before it is carried out, and before its answer is given."""

    def __init__(self, store: Store, point: Callable[[str], Awaitable[None]]) -> None:
        self._store = store
        self._point = point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"get {kind.plural}", self._store.get(kind, *args, **options))

    async def create(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"create {kind.plural}", self._store.create(kind, *args, **options))

    async def patch(self, kind: Kind[Any], *args: Any, **options: Any) -> Any:
        return await self._tell(f"patch {kind.plural}", self._store.patch(kind, *args, **options))

    async def _tell(self, what: str, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            await self._point(f"before {what}")
        except BaseException:
            work.close()
            raise
        answer = await work
        await self._point(f"after {what}")
        return answer


class Owner:
    """A replica: the history actor in a process of its own."""

    def __init__(self, world: "World", name: str, chances: Chances) -> None:
        self.histories = Histories()
        self.scope = anyio.CancelScope()
        self.spent = 0
        system = System(clock=VirtualClock(), random=Random(1))
        self.supervisor = Supervisor(name, system)
        store = FaultyStore(
            Watched(world.truth, world.point(self)), policy=chances, random=Random(f"{name}{world.seed}")
        )

        def spend(size: int) -> None:
            self.spent += size

        self.histories.ref = self.supervisor.add_actor(
            "history",
            lambda: HistoryActor(store, namespace=NAMESPACE, spend=spend, missed=self.histories.missed),
            capacity=HistoryActor.capacity,
        )

    async def run(self) -> None:
        with self.scope:
            await self.supervisor.run()


class World:
    """A pool that owners write, and what they tell of it."""

    def __init__(self, *, crash_at: int = 0, chances: Chances | None = None) -> None:
        self.truth = MemoryStore(wall=lambda: VirtualClock().wall())
        self.told: list[Change] = []
        self.points = 0
        self.seed = 0
        self._crash_at = crash_at
        self._chances = chances or Chances()
        self._records: dict[str, dict[str, AllocationRecord]] = {}
        self.group: anyio.abc.TaskGroup | None = None

    def point(self, owner: Owner) -> Callable[[str], Awaitable[None]]:
        async def point(_: str) -> None:
            self.points += 1
            if self.points == self._crash_at:
                owner.scope.cancel()
            await anyio.lowlevel.checkpoint()

        return point

    async def owner(self, name: str, *, chances: Chances | None = None) -> Owner:
        owner = Owner(self, name, chances or self._chances)
        assert self.group is not None
        self.group.start_soon(owner.run)
        await anyio.lowlevel.checkpoint()
        return owner

    async def pool(self, name: str = "v4") -> None:
        self._records[name] = {}
        spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=["10.6.0.1-10.6.9.250"])
        await self.truth.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name), spec=spec))

    async def commit(self, owner: Owner | None, what: What, ip: str, pod: str, *, pool: str = "v4") -> None:
        """What a pool's owner does: write, then tell; without an `owner`, one who dies in between."""
        records = self._records[pool]
        change = Change(VirtualClock().wall(), ip, what, f"default/{pod}", f"uid-{pod}", "eth0", "n1", f"cid-{pod}")
        if change.holds:
            records[ip] = AllocationRecord(
                pod=change.pod, pod_uid=change.uid, nic="eth0", node="n1", cid=change.cid, kept=what == "kept"
            )
        else:
            del records[ip]
        text = encode_records(records)
        await self.truth.patch(IPPOOL, pool, {"status": {"allocatedIPs": text}}, subresource="status")
        if owner is not None:
            owner.histories.noted(pool, (change,))
            self.told.append(change)

    def book(self, pool: str = "v4") -> Book:
        for item in self.truth.peek(CONFIGMAP):
            if item.metadata.name == name_of(pool):
                return decoded(item.binary_data[KEY])
        return Book()

    def check(self, pool: str = "v4") -> None:
        """Nothing is in it twice, it ends with what the pool has, and nothing is made up."""
        book = self.book(pool)
        assert missed(book, self._records[pool], at=0.0) == ()
        assert len(set(book.log)) == len(book.log)
        for one, other in zip(sorted(book.log, key=_story), sorted(book.log, key=_story)[1:], strict=False):
            assert (one.ip, one.what, one.uid) != (other.ip, other.what, other.uid), "the same twice in a row"
        assert {change for change in book.log if not change.late} <= {_millis(change) for change in self.told}

    def play[T](self, script: Callable[["World"], Awaitable[T]], *, seed: int = 1) -> T:
        self.seed = seed

        async def main() -> T:
            async with anyio.create_task_group() as self.group:
                result = await script(self)
                self.group.cancel_scope.cancel()
            return result

        return run(main, seed=seed)


def _story(change: Change) -> tuple[str, float]:
    return change.ip, change.at


def _millis(change: Change) -> Change:
    return Change(
        round(change.at * 1000) / 1000, change.ip, change.what, change.pod, change.uid, "eth0", "n1", change.cid
    )


def dropped() -> float:
    return metrics.REGISTRY.get_sample_value("spiderpool_history_changes_dropped_total") or 0.0


def writes(world: World) -> int:
    return world.truth.requests["patch configmaps"] + world.truth.requests["create configmaps"]


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_changes_are_stored_together_after_a_moment_and_the_object_goes_with_the_pool() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a")
        await world.commit(owner, "granted", "10.6.0.1", "web-1")
        await world.commit(owner, "granted", "10.6.0.2", "web-2")
        await anyio.sleep(FLUSH_SECONDS - 1)
        assert writes(world) == 0
        await anyio.sleep(2)
        assert (writes(world), len(world.book().log)) == (1, 2)
        world.check()
        (item,) = world.truth.peek(CONFIGMAP)
        (pool,) = world.truth.peek(IPPOOL)
        assert [(it.kind, it.name, it.uid) for it in item.metadata.owner_references] == [
            ("SpiderIPPool", "v4", pool.metadata.uid)
        ]
        assert (item.metadata.namespace, item.metadata.name) == (NAMESPACE, "spiderpool-history.v4")
        await world.commit(owner, "released", "10.6.0.1", "web-1")
        await anyio.sleep(FLUSH_SECONDS + 1)
        assert [change.what for change in world.book().log] == ["granted", "granted", "released"]
        assert world.truth.requests["get configmaps"] == 1, "what it wrote itself need not be read"
        await anyio.sleep(10_000)
        assert writes(world) == 2
        assert owner.spent > 0

    World().play(script)


def test_a_busy_big_pool_costs_a_bounded_rate_and_keeps_its_bounds() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a")
        rng, begun = Random(1), VirtualClock().now()
        for number in range(9000):
            pod = f"pod-{rng.getrandbits(64):x}"
            ip = f"10.6.{number // 250}.{number % 250 + 1}"
            owner.histories.noted(
                "v4",
                (Change(VirtualClock().wall(), ip, "granted", pod, f"{rng.getrandbits(128):x}", "eth0", "n", "c"),),
            )
            await anyio.sleep(0.1)
        seconds = VirtualClock().now() - begun
        await anyio.sleep(60)
        book = world.book()
        assert len(book.log) <= CHANGES
        assert owner.spent / seconds < 2 * BYTES_PER_SECOND
        assert writes(world) <= seconds / FLUSH_SECONDS + 2

    World().play(script)


def test_a_program_that_ends_stores_what_it_has() -> None:
    async def script(world: World) -> None:
        await world.pool()
        for name in ("v6", "x", "y"):
            await world.pool(name)
        owner = await world.owner("a")
        for pool in ("v4", "v6", "x", "y"):
            await world.commit(owner, "granted", "10.6.0.1", "web-1", pool=pool)
        assert await owner.histories.drain(2.0)
        assert [len(world.book(pool).log) for pool in ("v4", "v6", "x", "y")] == [1, 1, 1, 1]
        assert await owner.histories.drain(2.0), "with nothing to do it is done"

    World().play(script)


def test_a_program_that_ends_does_not_wait_for_a_store_that_is_away() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a", chances=Chances(unavailable=1.0))
        await world.commit(owner, "granted", "10.6.0.1", "web-1")
        assert not await owner.histories.drain(2.0)

    World().play(script)


def test_while_the_store_is_away_changes_pile_up_to_a_bound_and_the_records_tell_the_rest() -> None:
    async def script(world: World) -> None:
        await world.pool()
        for number in range(CHANGES + 100):
            world._records["v4"][f"10.6.{number // 250}.{number % 250 + 1}"] = AllocationRecord(
                pod=f"default/p{number}", pod_uid=f"uid-p{number}", nic="eth0", node="n1", cid=f"cid-p{number}"
            )
        text = encode_records(world._records["v4"])
        await world.truth.patch(IPPOOL, "v4", {"status": {"allocatedIPs": text}}, subresource="status")
        owner = await world.owner("a")
        before = dropped()
        for ip, record in world._records["v4"].items():
            change = Change(VirtualClock().wall(), ip, "granted", record.pod, record.pod_uid, "eth0", "n1", record.cid)
            world.told.append(change)
            owner.histories.noted("v4", (change,))
            await anyio.sleep(0.0001)
        assert dropped() - before == 100
        await anyio.sleep(60)
        world.check()

    World().play(script)


# -- crashes and other owners ------------------------------------------------------------------------------------------


async def _two_lives(world: World) -> None:
    """An owner that may die anywhere, one commit that nobody tells of, and the owner after it."""
    await world.pool()
    first = await world.owner("a")
    await world.commit(first, "granted", "10.6.0.1", "web-1")
    await world.commit(first, "granted", "10.6.0.2", "web-2")
    await anyio.sleep(12)
    await world.commit(first, "released", "10.6.0.1", "web-1")
    await world.commit(first, "granted", "10.6.0.3", "web-3")
    await world.commit(first, "kept", "10.6.0.2", "web-2")
    await anyio.sleep(12)
    first.scope.cancel()
    await world.commit(None, "granted", "10.6.0.4", "web-4")
    await anyio.sleep(1)
    second = await world.owner("b")
    await world.commit(second, "taken over", "10.6.0.2", "web-2b")
    await world.commit(second, "released", "10.6.0.3", "web-3")
    await anyio.sleep(100)
    if second.scope.cancel_called:  # it is the second that died: somebody goes on
        third = await world.owner("c")
        await world.commit(third, "released", "10.6.0.4", "web-4")
        await anyio.sleep(100)
    world.check()


def test_a_crash_at_every_await_loses_no_more_than_who_did_not_tell() -> None:
    whole = World()
    whole.play(_two_lives)
    assert [(one.ip, one.what, one.late) for one in whole.book().log][5:] == [
        ("10.6.0.2", "taken over", False),
        ("10.6.0.3", "released", False),
        ("10.6.0.4", "granted", True),
    ]
    assert whole.points > 10
    for at in range(1, whole.points + 1):
        world = World(crash_at=at)
        world.play(_two_lives)


def test_negative_control_without_a_look_at_the_records_a_crash_leaves_a_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pools.history.missed", lambda *_, **__: ())
    with pytest.raises(ExceptionGroup) as caught:
        World().play(_two_lives)
    assert caught.group_contains(AssertionError)


CALM = Chances(after=(0.0, 0.5))
ROUGH = Chances(lost_request=0.05, lost_reply=0.1, duplicate=0.1, conflict=0.1, unavailable=0.05, after=(0.0, 0.5))


def _two_at_a_time(seed: int) -> Callable[[World], Awaitable[None]]:
    async def script(world: World) -> None:
        await world.pool()
        owners = [await world.owner("a"), await world.owner("b")]
        rng = Random(seed)
        held: list[tuple[str, str]] = []
        for number in range(60):
            owner = rng.choice(owners)
            if held and rng.random() < 0.4:
                ip, pod = held.pop(rng.randrange(len(held)))
                await world.commit(owner, "released", ip, pod)
            else:
                held.append((f"10.6.0.{number + 1}", f"web-{number}"))
                await world.commit(owner, "granted", *held[-1])
            await anyio.sleep(rng.uniform(0.001, 4))
        for owner in owners:
            owner.histories.missed.add("v4")
        await anyio.sleep(400)
        world.check()
        book = world.book()
        real = {change for change in book.log if not change.late}
        assert real == {_millis(change) for change in world.told}
        assert not [change for change in book.log if change.late], "everything was told in the end"

    return script


@pytest.mark.parametrize("chances", [CALM, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("seed", range(8))
def test_two_owners_at_a_time_lose_nothing_but_the_order(seed: int, chances: Chances) -> None:
    World(chances=chances).play(_two_at_a_time(seed), seed=seed)


def test_negative_control_without_the_resource_version_two_owners_lose_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def patch(self: HistoryActor, name: str, _: str, data: bytes, **others: object) -> ConfigMap:
        change = {"binaryData": {KEY: b64encode(data).decode()}, **others}
        return await self._store.patch(CONFIGMAP, name, change, namespace=NAMESPACE)

    monkeypatch.setattr(HistoryActor, "_patch", patch)
    lost = 0
    for seed in range(6):
        try:
            World(chances=CALM).play(_two_at_a_time(seed), seed=seed)
        except ExceptionGroup as error:
            lost += error.subgroup(AssertionError) is not None
    assert lost >= 4


def test_a_pool_that_is_made_anew_has_a_history_of_its_own() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a")
        await world.commit(owner, "granted", "10.6.0.1", "web-1")
        await anyio.sleep(20)
        await world.truth.delete(IPPOOL, "v4")
        await world.pool()
        world.told.clear()
        other = await world.owner("b")
        await world.commit(other, "granted", "10.6.0.2", "web-2")
        await anyio.sleep(20)
        assert [change.pod for change in world.book().log] == ["default/web-2"]
        (item,), (pool,) = world.truth.peek(CONFIGMAP), world.truth.peek(IPPOOL)
        assert [it.uid for it in item.metadata.owner_references] == [pool.metadata.uid]
        world.check()

    World().play(script)


def test_a_pool_that_is_gone_is_not_written_about_and_a_sweep_removes_what_it_left() -> None:
    async def script(world: World) -> None:
        await world.pool()
        await world.pool("stays")
        owner = await world.owner("a")
        for pool in ("v4", "stays"):
            await world.commit(owner, "granted", "10.6.0.1", "web-1", pool=pool)
        await anyio.sleep(20)
        await world.truth.create(CONFIGMAP, ConfigMap(metadata=ObjectMeta(name="others", namespace=NAMESPACE)))
        await sweep(world.truth, NAMESPACE)
        assert len(world.truth.peek(CONFIGMAP)) == 3
        await world.truth.delete(IPPOOL, "v4")
        await sweep(world.truth, NAMESPACE)
        names = {item.metadata.name for item in world.truth.peek(CONFIGMAP)}
        assert names == {"spiderpool-history.stays", "others"}
        owner.histories.noted("v4", (world.told[0],))
        await anyio.sleep(20)
        assert len(world.truth.peek(CONFIGMAP)) == 2
        await sweep(world.truth, NAMESPACE)

    World().play(script)


def test_a_page_that_cannot_be_read_begins_anew_with_what_the_records_say() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a")
        await world.commit(owner, "granted", "10.6.0.1", "web-1")
        await anyio.sleep(20)
        change = {"binaryData": {KEY: "bm9uc2Vuc2U="}}
        await world.truth.patch(CONFIGMAP, name_of("v4"), change, namespace=NAMESPACE)
        await world.commit(owner, "granted", "10.6.0.2", "web-2")
        await anyio.sleep(100)
        assert [(change.ip, change.late) for change in world.book().log] == [("10.6.0.2", False), ("10.6.0.1", True)]

    World().play(script)


def test_a_full_mailbox_is_no_hole() -> None:
    async def script(world: World) -> None:
        await world.pool()
        owner = await world.owner("a")
        await world.commit(owner, "granted", "10.6.0.1", "web-1")
        await anyio.sleep(20)
        before = dropped()
        for number in range(HistoryActor.capacity + 50):
            owner.histories.noted("v4", (Change(1.0, "10.6.0.1", "granted", "p", f"{number}", "n", "n", "c"),))
        assert dropped() - before == 50
        assert owner.histories.missed == {"v4"}
        await anyio.sleep(60)
        assert owner.histories.missed == set(), "its records have been compared"
        assert missed(world.book(), world._records["v4"], at=0.0) == ()

    World().play(script)


def test_a_name_that_is_too_long_for_a_second_one_is_shortened() -> None:
    assert name_of("v4") == "spiderpool-history.v4"
    long = name_of("a" * 253)
    assert len(long) <= 253
    assert long != name_of("a" * 252)
    assert decode_records(None) == {}
