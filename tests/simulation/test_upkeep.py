"""What a pool lacks that nobody has asked for an address: its owner writes the counts, and it gets the finalizer."""

from typing import Any

import anyio
import pytest

from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import IPPOOL
from api.meta import FINALIZER, ObjectMeta
from runtime.testing.store import Chances
from tests.simulation.owners import Owners, act

BARE = {"allocatedIPCount": 0, "totalIPCount": 9}


async def bare(owners: Owners, *ips: str, **meta: Any) -> None:
    """As a store has it that no admission stands before."""
    spec = IPPoolSpec(ip_version=4, subnet="10.6.0.0/16", ips=list(ips))
    await owners.store.create(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name="lan", **meta), spec=spec))


async def finalizers(owners: Owners) -> list[str]:
    return (await owners.store.get(IPPOOL, "lan")).metadata.finalizers


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_pool_that_nobody_asks_has_counts_and_our_finalizer(replicas: int) -> None:
    async def scene(owners: Owners) -> None:
        await bare(owners, "10.6.0.1-10.6.0.9", finalizers=["example.org/theirs"])
        for at in range(replicas):
            await owners.replica(f"c{at}")
        await anyio.sleep(5)
        assert await owners.status() == BARE
        assert await finalizers(owners) == ["example.org/theirs", FINALIZER]
        settled = owners.store.revision
        await anyio.sleep(120)
        assert owners.store.revision == settled, "once is enough"

    act(scene)


def test_counts_follow_the_spec() -> None:
    async def scene(owners: Owners) -> None:
        await bare(owners, "10.6.0.1-10.6.0.9")
        await owners.replica("c1")
        await anyio.sleep(5)
        await owners.store.patch(IPPOOL, "lan", {"spec": {"ips": ["10.6.0.1-10.6.0.20"]}})
        await anyio.sleep(5)
        assert (await owners.status())["totalIPCount"] == 20
        await owners.store.patch(IPPOOL, "lan", {"status": {"totalIPCount": 3}}, subresource="status")
        await anyio.sleep(5)
        assert (await owners.status())["totalIPCount"] == 20, "what somebody else wrote is mended"

    act(scene)


def test_whoever_asks_first_brings_the_counts_along() -> None:
    async def scene(owners: Owners) -> None:
        owner = await owners.replica("c1")
        await owners.pool("lan", "10.6.0.1-10.6.0.9")
        await owner.claim("u1")
        written = owners.store.revision
        assert (await owners.status())["totalIPCount"] == 9
        await anyio.sleep(60)
        assert owners.store.revision == written

    act(scene)


def test_a_pool_that_cannot_be_read_or_is_being_deleted_is_left_alone() -> None:
    async def scene(owners: Owners) -> None:
        await bare(owners, "nonsense", finalizers=["example.org/theirs", FINALIZER])
        before = owners.store.revision
        await owners.replica("c1")
        await anyio.sleep(60)
        assert owners.store.revision == before
        await owners.store.patch(IPPOOL, "lan", {"metadata": {"finalizers": ["example.org/theirs"]}})
        await owners.store.delete(IPPOOL, "lan")
        await anyio.sleep(60)
        assert await finalizers(owners) == ["example.org/theirs"]

    act(scene)


@pytest.mark.parametrize("seed", range(8))
def test_a_store_that_fails_now_and_then_delays_it_only(seed: int) -> None:
    chances = Chances(lost_request=0.1, lost_reply=0.1, conflict=0.1, unavailable=0.1, busy=0.1, watch_cut=0.1)

    async def scene(owners: Owners) -> None:
        await bare(owners, "10.6.0.1-10.6.0.9")
        await owners.replica("c1")
        await owners.replica("c2")
        await anyio.sleep(300)
        assert await owners.status() == BARE
        assert await finalizers(owners) == [FINALIZER]

    act(scene, seed=seed, chances=chances)
