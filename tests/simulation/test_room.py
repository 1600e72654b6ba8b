"""A full pool lets claims with patience wait for an address to come back: who gets it, who is refused, and when."""

from typing import Any

import anyio
import pytest

from actors.pools import waiting
from actors.pools.claims import Claim, Granted, Refused, Surrendered
from api.kinds import IPPOOL
from runtime.errors import ActorStopped, AskTimeout
from runtime.testing.store import Chances, Fault, Script
from telemetry import metrics
from tests.simulation.owners import Original, Owners, Replica, act

PATIENCE = 4.0


def plain(answer: Granted | Refused) -> str:
    return answer.address.partition("/")[0] if isinstance(answer, Granted) else answer.reason.predicate


class Queue:
    """Claims under way, and what became of them, when and in which order."""

    def __init__(self, owners: Owners, owner: Replica) -> None:
        self.owners, self.owner = owners, owner
        self.answers: dict[str, str] = {}
        self.ended: dict[str, float] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}

    async def come(self, *uids: str, patience: float = PATIENCE, **options: Any) -> None:
        """They claim, and have come to where they wait."""
        for uid in uids:
            self.owners.group.start_soon(self._claim, uid, patience, options)
            await anyio.sleep(0.01)

    async def _claim(self, uid: str, patience: float, options: dict[str, Any]) -> None:
        with anyio.CancelScope() as self._scopes[uid]:
            try:
                self.answers[uid] = plain(await self.owner.claim(uid, patience=patience, **options))
            except (ActorStopped, AskTimeout) as error:
                self.answers[uid] = type(error).__name__
            self.ended[uid] = anyio.current_time()

    def leave(self, uid: str) -> None:
        self._scopes[uid].cancel()


async def full(owners: Owners, *uids: str, name: str = "c1") -> Queue:
    """A pool whose addresses these pods have."""
    await owners.pool("lan", f"10.6.0.1-10.6.0.{len(uids)}")
    owner = await owners.replica(name)
    for uid in uids:
        assert isinstance(await owner.claim(uid), Granted)
    return Queue(owners, owner)


def calls(owner: Replica) -> tuple[int, int]:
    """Reads and writes of pools."""
    counts = [sum(n for call, n in owner.store.outcomes.items() if call[0] == verb) for verb in ("get", "update")]
    return counts[0], counts[1]


def waits(outcome: str) -> float:
    families = metrics.REGISTRY.restricted_registry(["spiderpool_pool_waits_total"]).collect()
    return sum(it.value for family in families for it in family.samples if it.labels.get("outcome") == outcome)


# ---------------------------------------------------------------- who gets it


def test_an_address_that_comes_back_is_given_to_who_waits_in_one_write() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        before = waits("granted")
        await queue.come("w1")
        _, writes = calls(queue.owner)
        await anyio.sleep(1)
        assert queue.answers == {}
        await queue.owner.surrender("u2")
        await anyio.sleep(0.01)
        assert queue.answers == {"w1": "10.6.0.2"}
        assert calls(queue.owner)[1] == writes + 1
        assert waits("granted") == before + 1
        assert owners.told == []
        assert list((await owners.status())["allocatedIPs"]) == ["10.6.0.1", "10.6.0.2"]

    act(scene)


@pytest.mark.parametrize("cooldown", [0.0, 30.0])
def test_first_come_first_served_and_a_fresh_claim_goes_last(cooldown: float) -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2", "u3")
        await queue.come("w1", "w2", "w3")
        async with anyio.create_task_group() as group:
            # In one batch, the claim before the releases that make room.
            group.start_soon(queue._claim, "late", 0.0, {})
            group.start_soon(queue.owner.surrender, "u3")
            group.start_soon(queue.owner.surrender, "u1")
        await anyio.sleep(0.01)
        assert queue.answers == {"w1": "10.6.0.1", "w2": "10.6.0.3", "late": "full"}
        await queue.owner.surrender("u2")
        await anyio.sleep(0.01)
        assert queue.answers["w3"] == "10.6.0.2"

    act(scene, cooldown=cooldown)


def test_what_is_left_over_goes_to_who_came_last() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, *(f"u{at}" for at in range(100)))
        await queue.come(*(f"w{at}" for at in range(60)))
        async with anyio.create_task_group() as group:
            for at in range(61):
                group.start_soon(queue.owner.surrender, f"u{at}")
            group.start_soon(queue._claim, "late", 0.0, {})
        await anyio.sleep(0.01)
        assert len(queue.answers) == 61
        assert "full" not in queue.answers.values()
        assert len(set(queue.answers.values())) == 61

    act(scene)


def test_room_that_somebody_else_made_goes_to_who_waits_before_who_finds_it() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", "w2")
        await owners.store.patch(IPPOOL, "lan", {"spec": {"ips": ["10.6.0.1-10.6.0.2"]}})
        # It finds the pool full in memory, so the object is read before it is told.
        await queue.come("late", patience=0.0)
        assert queue.answers == {"w1": "10.6.0.2", "late": "full"}
        await anyio.sleep(PATIENCE)
        assert queue.answers["w2"] == "full"

    act(scene)


def test_an_address_that_the_originals_agents_freed_is_found_when_patience_is_over() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", "w2")
        assert await Original(owners.store, pause=anyio.lowlevel.checkpoint).remove("lan", "u1")
        await anyio.sleep(PATIENCE + 0.1)
        assert queue.answers == {"w1": "10.6.0.1", "w2": "full"}

    act(scene)


def test_one_whose_patience_ends_first_does_not_overtake() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1")
        await queue.come("w2", patience=1.0)
        assert await Original(owners.store, pause=anyio.lowlevel.checkpoint).remove("lan", "u1")
        await anyio.sleep(1.1)
        assert queue.answers == {"w1": "10.6.0.1", "w2": "full"}

    act(scene)


def test_a_disowned_address_stays_out_and_a_repeated_claim_is_one() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        await queue.come("w1")
        await queue.come("w1", "w2")
        await queue.owner.disown("u1", "10.6.0.1")
        await anyio.sleep(0.01)
        assert queue.answers == {}
        await queue.owner.surrender("u2")
        await anyio.sleep(0.01)
        assert queue.answers == {"w1": "10.6.0.2"}
        await anyio.sleep(PATIENCE)
        assert queue.answers == {"w1": "10.6.0.2", "w2": "full"}
        assert [it["podUid"] for it in (await owners.status())["allocatedIPs"].values()] == ["w1"]

    act(scene)


# ---------------------------------------------------------------- who does not


def test_without_patience_it_is_refused_at_once() -> None:
    """Negative control."""

    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", patience=0.0)
        assert queue.answers == {"w1": "full"}
        assert await queue.owner.surrender("u1") == Surrendered(addresses=("10.6.0.1",))
        assert (await owners.status()).get("allocatedIPs") is None

    act(scene)


def test_when_patience_is_over_the_reason_is_the_usual_one_and_one_read_proves_it() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        before = waits("full")
        at_once = await queue.owner.claim("w0")
        assert len(owners.told) == 1
        begun = anyio.current_time()
        for at in range(1, 5):
            owners.group.start_soon(queue._claim, f"w{at}", PATIENCE, {})
            await anyio.sleep(0.001)
        await anyio.sleep(1)
        assert len(owners.told) == 1
        known = calls(queue.owner)
        patient = await queue.owner.claim("w5", patience=PATIENCE)
        assert patient == at_once
        assert queue.answers == dict.fromkeys(["w1", "w2", "w3", "w4"], "full")
        assert all(PATIENCE - 0.1 < ended - begun < PATIENCE + 0.1 for ended in queue.ended.values())
        # One for w5 as it came, one for the four, one for w5 as it went.
        assert calls(queue.owner) == (known[0] + 3, known[1])
        assert {it[:2] for it in owners.told} == {("exhausted", "lan")}
        assert len(owners.told) == 3
        assert waits("full") == before + 5

    act(scene)


def test_a_refusal_reaches_an_asker_who_has_less_time_than_patience() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        begun = anyio.current_time()
        message = Claim(pod="ns/w1", uid="w1", nic="eth0", node="n1", cid="c1", patience=60.0)
        answer = await queue.owner.pools("lan").ask(message, timeout=5.0)
        assert plain(answer) == "full"
        assert 2.0 < anyio.current_time() - begun < 5.0
        # And one who has no time to wait at all is told at once.
        begun = anyio.current_time()
        assert plain(await queue.owner.pools("lan").ask(message, timeout=1.5)) == "full"
        assert anyio.current_time() - begun < 0.1

    act(scene)


def test_only_want_of_an_address_is_waited_for() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        await queue.come("w1")
        assert queue.answers == {"w1": "max-records"}

    act(scene, max_records=2)


def test_what_has_changed_meanwhile_is_told() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1")
        await owners.store.patch(IPPOOL, "lan", {"spec": {"disable": True}})
        await queue.come("w2")
        assert queue.answers == {"w2": "disable"}
        await queue.owner.surrender("u1")
        await anyio.sleep(0.01)
        assert queue.answers["w1"] == "disable"

    act(scene)


def test_who_only_asks_whether_it_is_its_own_does_not_wait() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", confirm=True)
        assert queue.answers == {"w1": "superseded"}

    act(scene)


def test_a_pool_that_is_gone_is_told_to_who_waits() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1")
        await owners.store.patch(IPPOOL, "lan", {"metadata": {"finalizers": None}})
        await owners.store.delete(IPPOOL, "lan")
        await anyio.sleep(PATIENCE + 0.1)
        assert queue.answers == {"w1": "exists"}

    act(scene)


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting.WaitingRoom.__init__, "__kwdefaults__", {"capacity": 3})

    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", "w2", "w3", "w4")
        assert queue.answers == {"w4": "full"}
        queue.leave("w2")
        await queue.come("w5", "w6")
        assert queue.answers == {"w4": "full", "w6": "full"}
        await queue.owner.surrender("u1")
        await anyio.sleep(0.01)
        assert queue.answers["w1"] == "10.6.0.1"

    act(scene)


def test_who_has_given_up_gets_nothing() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        before = waits("gone")
        await queue.come("w1", "w2")
        queue.leave("w1")
        await queue.owner.surrender("u1")
        await anyio.sleep(0.01)
        assert queue.answers == {"w2": "10.6.0.1"}
        await queue.owner.surrender("u2")
        await anyio.sleep(2 * PATIENCE)
        assert [it["podUid"] for it in (await owners.status())["allocatedIPs"].values()] == ["w2"]
        assert waits("gone") == before + 1

    act(scene)


# ---------------------------------------------------------------- what goes wrong meanwhile


def test_an_owner_that_ends_says_so_to_who_waits() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1")
        await queue.come("w1", "w2")
        await queue.owner.pools.supervisor.remove("lan")
        await anyio.sleep(0.01)
        assert queue.answers == {"w1": "ActorStopped", "w2": "ActorStopped"}

    act(scene)


@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LOST_REPLY, Fault.CONFLICT, Fault.DUPLICATE])
def test_a_write_that_fails_is_made_again_with_those_who_wait(fault: Fault) -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        await queue.come("w1", "w2")
        queue.owner.store.policy = Script(fault)
        await queue.owner.surrender("u1")
        await anyio.sleep(0.5)
        assert queue.answers == {"w1": "10.6.0.1"}
        await queue.owner.surrender("u2")
        await anyio.sleep(0.5)
        assert queue.answers == {"w1": "10.6.0.1", "w2": "10.6.0.2"}
        assert [(it.what, it.uid) for _, it in owners.noted[2:]] == [
            *[("released", "u1"), ("granted", "w1")],
            *[("released", "u2"), ("granted", "w2")],
        ]

    act(scene)


def test_room_that_a_conflict_takes_away_is_waited_for_again() -> None:
    """Our release frees one address, and by the time of the write the original has granted it."""

    async def scene(owners: Owners) -> None:
        queue = await full(owners, "u1", "u2")
        await queue.come("w1", "w2", "w3")
        original = Original(owners.store, pause=anyio.lowlevel.checkpoint)
        await owners.store.patch(IPPOOL, "lan", {"spec": {"ips": ["10.6.0.1"]}})
        await queue.owner.surrender("u2")
        await anyio.sleep(0.01)
        assert queue.answers == {}
        assert await original.remove("lan", "u1")
        await queue.owner.surrender("none")
        await anyio.sleep(0.01)
        assert queue.answers == {"w1": "10.6.0.1"}
        await anyio.sleep(PATIENCE)
        assert queue.answers == {"w1": "10.6.0.1", "w2": "full", "w3": "full"}

    act(scene)


def test_the_pause_for_the_byte_budget_holds_for_who_waits_too() -> None:
    async def scene(owners: Owners) -> None:
        queue = await full(owners, *(f"u{at}" for at in range(50)))
        await queue.come("w1", patience=1.0)
        await queue.come("w2", patience=20.0)
        # Overdrawn by seconds, in which the first one's patience ends.
        async with anyio.create_task_group() as group:
            group.start_soon(queue.owner.surrender, "u1", "lan")
        known = calls(queue.owner)
        assert queue.answers == {"w1": "10.6.0.2"}
        await queue.come("w3", patience=1.0)
        await queue.owner.surrender("u2")
        await anyio.sleep(0.01)
        assert queue.answers["w2"] == "10.6.0.3"
        assert calls(queue.owner)[1] == known[1] + 1
        await anyio.sleep(60)
        assert queue.answers["w3"] == "full"

    act(scene, rate=3_000.0)


@pytest.mark.parametrize("seed", range(1, 9))
def test_a_rollout_on_a_pool_with_hardly_any_room_refuses_nobody(seed: int) -> None:
    """Pods that go give back a second after those that come have asked, over a store that is not always kind."""

    async def scene(owners: Owners) -> None:
        old = [f"u{at}" for at in range(60)]
        queue = await full(owners, *old)
        held: dict[str, str] = {}

        async def replaced(at: int) -> None:
            await anyio.sleep(at * 0.05 + owners.random.uniform(0, 0.5))
            await queue.come(f"w{at}")
            await anyio.sleep(owners.random.uniform(0.2, 1.5))
            assert isinstance(await queue.owner.surrender(old[at]), Surrendered)

        async with anyio.create_task_group() as group:
            for at in range(60):
                group.start_soon(replaced, at)
        await anyio.sleep(PATIENCE)
        held = queue.answers
        assert len(set(held.values())) == 60 and "full" not in held.values(), held
        records = (await owners.status())["allocatedIPs"]
        assert {it["podUid"]: ip for ip, it in records.items()} == held

    act(scene, seed=seed, chances=Chances(lost_request=0.03, lost_reply=0.05, conflict=0.05, before=(0.001, 0.01)))
