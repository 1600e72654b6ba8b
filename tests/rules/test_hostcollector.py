"""What a host without Kubernetes gives up: what neither journal nor kernel knows, and nothing else."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import anyio
import pytest
from msgspec import structs

from actors.collection.hostcollector import NO_CONTAINER, HostCollectorActor, Scan, candidates
from actors.pools.claims import Refused, Surrender, Surrendered
from api.ippool import AllocationRecord, IPPoolSpec, IPPoolStatus, SpiderIPPool, encode_records
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from api.reasons import Reason
from api.wire import NicGrant, PodRef
from cni.errors import CniError, IoFailure
from cni.journal import JournalEntry, State
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from runtime.testing import VirtualClock, run

CID = "0123456789ab"
RECORD = AllocationRecord(pod="default/web", pod_uid="u1", nic="eth0", node="host", cid=CID)
ENTRY = JournalEntry(container_id=f"{CID}cdef", ifname="eth0", pod=PodRef("default", "web", "u1"))


def pool(**records: AllocationRecord) -> SpiderIPPool:
    held = {f"10.6.0.{name.removeprefix('ip')}": record for name, record in records.items()}
    return SpiderIPPool(
        metadata=ObjectMeta(name="lan"),
        spec=IPPoolSpec(subnet="10.6.0.0/16", ips=["10.6.0.10-10.6.0.19"]),
        status=IPPoolStatus(allocated_ips=encode_records(held), allocated_ip_count=len(held)),
    )


@pytest.mark.parametrize("state", list(State))
def test_the_journal_speaks_in_every_state(state: State) -> None:
    assert candidates([pool(ip10=RECORD)], [structs.replace(ENTRY, state=state)], node="host") == ()


@pytest.mark.parametrize(
    ("record", "entries"),
    [
        (structs.replace(RECORD, node="other"), ()),
        (structs.replace(RECORD, node=""), ()),
        (structs.replace(RECORD, cid=NO_CONTAINER), ()),
        (structs.replace(RECORD, cid=""), ()),
        (structs.replace(RECORD, nic="net1"), (structs.replace(ENTRY, others=(NicGrant("net1", ()),)),)),
    ],
)
def test_what_is_not_ours_to_judge_or_known_otherwise_stays(
    record: AllocationRecord, entries: tuple[JournalEntry, ...]
) -> None:
    assert candidates([pool(ip10=record)], entries, node="host") == ()


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (structs.replace(ENTRY, ifname="net1"),),
        (structs.replace(ENTRY, container_id="ffffffffffffffff"),),
    ],
)
def test_what_no_entry_explains_is_a_candidate(entries: tuple[JournalEntry, ...]) -> None:
    (found,) = candidates([pool(ip10=RECORD)], entries, node="host")
    assert (found.pool, found.address, found.record) == ("lan", "10.6.0.10", RECORD)


def test_a_pool_that_cannot_be_read_is_passed_over() -> None:
    broken = structs.replace(pool(), status=IPPoolStatus(allocated_ips="{"))
    assert candidates([broken], (), node="host") == ()


class World:
    """The actor over a memory store, a journal, a kernel and an owner that are played."""

    def __init__(self, *, entries: Sequence[JournalEntry] = (), carried: Sequence[str] = ()) -> None:
        self.store = MemoryStore()
        self.entries: Sequence[JournalEntry] | CniError = entries
        self.on_wire = frozenset(carried)
        self.asked: list[Surrender] = []
        self.order: list[str] = []
        self.answer: Surrendered | Refused = Surrendered(addresses=("10.6.0.10",))
        self.supervisor = Supervisor("standalone", System(clock=VirtualClock(), random=Random(1)))
        world: Any = self
        self.collector = self.supervisor.add_actor(
            "collector",
            lambda: HostCollectorActor(
                world.store, pools=lambda _: world, journal=world, kernel=world, node="host", interval=600.0
            ),
        )

    async def load(self) -> list[JournalEntry]:
        self.order.append("journal")
        if isinstance(self.entries, CniError):
            raise self.entries
        return list(self.entries)

    async def carried(self, addresses: Sequence[str]) -> frozenset[str]:
        self.order.append("kernel")
        return self.on_wire & frozenset(addresses)

    async def ask(self, message: Surrender, *, timeout: float) -> Surrendered | Refused:
        self.asked.append(message)
        return self.answer

    def play(self, seconds: float, script: Callable[["World"], None] | None = None) -> "World":
        async def main() -> None:
            await self.store.create(IPPOOL, pool())
            status = {"allocatedIPs": pool(ip10=RECORD).status.allocated_ips}
            await self.store.patch(IPPOOL, "lan", {"status": status}, subresource="status")
            async with anyio.create_task_group() as group:
                group.start_soon(self.supervisor.run)
                await anyio.sleep(seconds)
                if script is not None:
                    script(self)
                    await anyio.sleep(1)
                await self.supervisor.stop()

        run(main, seed=1)
        return self


def test_a_record_that_nobody_knows_is_given_up_for_exactly_its_holder() -> None:
    world = World().play(10)
    assert world.asked == [Surrender(uid="u1", nic="eth0", cid=CID, node="host")]
    assert world.order == ["journal", "kernel"]


def test_what_a_link_carries_stays() -> None:
    assert World(carried=["10.6.0.10"]).play(10).asked == []


def test_what_the_journal_knows_stays() -> None:
    assert World(entries=[ENTRY]).play(10).asked == []


def test_a_journal_that_cannot_be_read_frees_nothing() -> None:
    world = World()
    world.entries = IoFailure("journal", "no")
    assert world.play(10).asked == []
    assert world.order == ["journal"]


def test_it_looks_now_and_then_and_when_it_is_told() -> None:
    assert World(entries=[ENTRY]).play(650).order == ["journal"] * 2
    assert World(entries=[ENTRY]).play(10, lambda world: world.collector.tell(Scan())).order == ["journal"] * 2


def test_a_flood_of_wishes_is_one_look_a_second() -> None:
    def flood(world: World) -> None:
        for _ in range(50):
            world.collector.tell(Scan())

    assert len(World(entries=[ENTRY]).play(10, flood).order) in {2, 3}


def test_a_refusal_is_tried_again_with_the_next_look() -> None:
    world = World()
    world.answer = Refused(reason=Reason(predicate="store", pool="lan", wanted="a write", seen="none"))
    assert len(world.play(10, lambda world: world.collector.tell(Scan())).asked) == 2
