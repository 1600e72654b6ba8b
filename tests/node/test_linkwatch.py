"""Links that come, go and are renamed, on this kernel: who watches is told, of those that are wanted and no others."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.devices.advertisement import Interface
from actors.devices.surroundings import NodeSurroundings
from api.core import Node
from api.kinds import NODE
from api.meta import ObjectMeta
from cni.netlink.linkwatch import LinkWatch
from runtime.actor import System
from runtime.store.memory import MemoryStore

pytestmark = [pytest.mark.node, pytest.mark.blocking]


def ip(words: str, *, check: bool = True) -> None:
    subprocess.run(["ip", "link", *words.split()], check=check, capture_output=True)


@pytest.fixture(autouse=True)
def _links() -> Iterator[None]:
    yield
    for name in ("lw0", "lw1", "vethlw0"):
        ip(f"del {name}", check=False)


class Told:
    """Counts what it was told."""

    def __init__(self) -> None:
        self.times = 0
        self.event = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self.event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(5):
            await self.event.wait()
        await asyncio.sleep(0.1)
        self.event.clear()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - how often it is told is not promised
        await asyncio.sleep(0.01)


async def test_what_is_told() -> None:
    told = Told()
    watch = LinkWatch(told, wanted=lambda name: not name.startswith("veth"))
    try:
        ip("add lw0 type bridge")
        await told.wait()
        before = told.times
        ip("set lw0 up")
        ip("set lw0 mtu 1400")
        ip("add vethlw0 type bridge")
        await asyncio.sleep(0.2)
        assert told.times == before, "neither other changes of a link that is known, nor a link that is not wanted"
        ip("set lw0 down")
        ip("set lw0 name lw1")
        await told.wait()
        ip("del lw1")
        await told.wait()
    finally:
        watch.close()
    before = told.times
    ip("add lw0 type bridge")
    await asyncio.sleep(0.2)
    assert told.times == before, "closed"


async def test_a_link_that_gets_a_name_that_is_not_wanted_is_told() -> None:
    told = Told()
    watch = LinkWatch(told, wanted=lambda name: not name.startswith("veth"))
    try:
        ip("add lw0 type bridge")
        await told.wait()
        ip("set lw0 name vethlw0")
        await told.wait()
    finally:
        watch.close()


async def test_the_surroundings_follow_node_and_links(tmp_path: Path) -> None:
    """Physical is what has a device in sysfs; that is played, as this machine's may have none."""
    store = MemoryStore()
    await store.create(NODE, Node(metadata=ObjectMeta(name="n1", labels={"a": "b"})))
    await store.create(NODE, Node(metadata=ObjectMeta(name="other", labels={"c": "d"})))
    (tmp_path / "class/net/lw0/device").mkdir(parents=True)
    followed = NodeSurroundings("n1", System.real(), store, sysfs=tmp_path)
    told = Told()
    followed.on_change = told
    assert followed.missing == "Node n1 has not been read"
    running = asyncio.create_task(followed.run())
    try:
        async with asyncio.timeout(10):
            await until(lambda: not followed.missing)
            assert followed.labels == {"a": "b"}
            ip("add lw0 type bridge")
            ip("add lw1 type bridge")
            wanted = {Interface("lw0", physical=True), Interface("lw1", physical=False)}
            await until(lambda: wanted <= set(followed.interfaces or ()))
            assert "lo" not in {one.name for one in followed.interfaces or ()}
            ip("del lw0")
            await until(lambda: "lw0" not in {one.name for one in followed.interfaces or ()})
            await asyncio.sleep(0.3)
            before = told.times
            await store.patch(NODE, "n1", {"metadata": {"annotations": {"x": "y"}}})
            await asyncio.sleep(0.3)
            assert told.times == before, "an annotation is no news"
            await store.patch(NODE, "n1", {"metadata": {"labels": {"a": "c"}}})
            await until(lambda: followed.labels == {"a": "c"})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
