"""An ADD waits for an address where its pools are full, and nobody who wants something else has to wait for it."""

import anyio
import msgspec
import pytest

from actors.allocation import grants
from actors.pools import peers
from actors.pools.claims import Claim
from api import wire
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import ObjectMeta
from runtime.transport.port import Call, Peer
from tests.simulation.stage import CID, Stage, act

AGENT = Peer(account="agent", node="n1", role="agent")


async def pool(stage: Stage, name: str, ips: str) -> None:
    spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=[ips])
    await stage.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=name), spec=spec))


async def send(stage: Stage, request: wire.Request) -> wire.Response:
    deadline = anyio.current_time() + 20.0
    return wire.decode_response(
        await stage.controller.serve(Call(payload=wire.encode(request), peer=AGENT, deadline=deadline))
    )


async def add(stage: Stage, name: str, *pools: str) -> str:
    """An address, or why there is none."""
    uid = await stage.pod(name)
    stage.agent.known.add((uid, "eth0", CID))
    return await again(stage, name, uid, *pools)


async def again(stage: Stage, name: str, uid: str, *pools: str) -> str:
    answer = await send(
        stage, wire.Allocate(pod=wire.PodRef("default", name, uid), nic="eth0", container_id=CID, default_ipv4=pools)
    )
    if isinstance(answer, wire.Allocated):
        return answer.addresses[0].address.partition("/")[0]
    assert isinstance(answer, wire.Rejected)
    return answer.cause


async def give_back(stage: Stage, name: str) -> None:
    answer = await send(stage, wire.Release(pod=wire.PodRef("default", name, ""), nic="eth0", container_id=CID))
    assert isinstance(answer, wire.Released), answer


class Adds:
    """ADDs under way."""

    def __init__(self, stage: Stage, group: anyio.abc.TaskGroup) -> None:
        self.stage, self.group = stage, group
        self.answers: dict[str, str] = {}
        self.took: dict[str, float] = {}

    def begin(self, name: str, *pools: str) -> None:
        self.group.start_soon(self._add, name, pools)

    async def _add(self, name: str, pools: tuple[str, ...]) -> None:
        begun = anyio.current_time()
        self.answers[name] = await add(self.stage, name, *pools)
        self.took[name] = anyio.current_time() - begun


def test_an_add_gets_what_comes_back_in_the_last_of_its_pools() -> None:
    async def scene(stage: Stage) -> None:
        await pool(stage, "a", "10.6.1.1")
        await pool(stage, "b", "10.6.2.1")
        assert [await add(stage, name, "a", "b") for name in ("p1", "p2")] == ["10.6.1.1", "10.6.2.1"]
        async with anyio.create_task_group() as group:
            adds = Adds(stage, group)
            adds.begin("p3", "a", "b")
            await anyio.sleep(1)
            assert adds.answers == {}
            await give_back(stage, "p2")
        assert adds.answers == {"p3": "10.6.2.1"}
        assert adds.took["p3"] < 1.5

    act(scene)


def test_an_add_is_refused_in_time_with_the_reasons_of_all_pools() -> None:
    async def scene(stage: Stage) -> None:
        await pool(stage, "a", "10.6.1.1")
        await pool(stage, "b", "10.6.2.1")
        for name in ("p1", "p2"):
            await add(stage, name, "a", "b")
        uid = await stage.pod("p3")
        begun = anyio.current_time()
        request = wire.Allocate(
            pod=wire.PodRef("default", "p3", uid), nic="eth0", container_id=CID, default_ipv4=("a", "b")
        )
        answer = await send(stage, request)
        assert isinstance(answer, wire.Rejected) and answer.explanation is not None
        assert (answer.cause, answer.retry) == ("ip_used_out", False)
        assert [(it.pool, it.reason.predicate) for it in answer.explanation.considered if it.reason is not None] == [
            ("a", "full"),
            ("b", "full"),
        ]
        assert anyio.current_time() - begun < grants.PATIENCE_SECONDS + 0.5, "it waits once"
        # What came back in another one than the last is found by the next sandbox.
        await give_back(stage, "p1")
        assert await again(stage, "p3", uid, "a", "b") == "10.6.1.1"

    act(scene)


def test_so_many_adds_wait_and_the_others_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "_MAY_WAIT", 2)

    async def scene(stage: Stage) -> None:
        await pool(stage, "a", "10.6.1.1")
        await add(stage, "p1", "a")
        for names in (("q1", "q2", "q3"), ("r1", "r2", "r3")):
            async with anyio.create_task_group() as group:
                adds = Adds(stage, group)
                for name in names:
                    adds.begin(name, "a")
                    await anyio.sleep(0.01)
            assert set(adds.answers.values()) == {"ip_used_out"}
            waited = [name for name in names if adds.took[name] > 1]
            assert waited == list(names[:2]), "and when they are through others may"

    act(scene)


def crowd(patch: pytest.MonkeyPatch, may_wait: int) -> set[str]:
    """What becomes of ADDs that have room while very many wait for some."""
    patch.setattr(grants, "_MAY_WAIT", may_wait)
    causes: set[str] = set()

    async def scene(stage: Stage) -> None:
        await pool(stage, "a", "10.6.1.1")
        await pool(stage, "wide", "10.6.3.1-10.6.3.250")
        await add(stage, "first", "a")
        async with anyio.create_task_group() as group:
            full, roomy = Adds(stage, group), Adds(stage, group)
            for at in range(400):
                full.begin(f"f{at}", "a")
            await anyio.sleep(2)
            for at in range(20):
                roomy.begin(f"r{at}", "wide")
        causes.update(answer if "." not in answer else "served" for answer in roomy.answers.values())

    act(scene)
    return causes


def test_who_finds_room_is_served_beside_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert crowd(monkeypatch, grants._MAY_WAIT) == {"served"}


def test_without_a_bound_those_who_wait_would_look_like_too_much_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control."""
    assert "overloaded" in crowd(monkeypatch, 10_000)


def test_a_claim_of_a_replica_that_knows_no_patience_has_none() -> None:
    claim = {"type": "Claim", "pod": "ns/p", "uid": "u", "nic": "eth0", "node": "n1", "cid": "c"}
    forward = msgspec.msgpack.encode({"type": "Forward", "pool": "a", "message": claim})
    read = msgspec.msgpack.decode(forward, type=peers.PeerRequest)
    assert isinstance(read, peers.Forward)
    assert read.message == Claim("ns/p", "u", "eth0", "n1", "c", patience=0.0)
    patient = peers.Forward("a", Claim("ns/p", "u", "eth0", "n1", "c", patience=4.0))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(patient), type=peers.PeerRequest) == patient
