"""What a link loses when it is set down, and that it is put back; bonds, which do that, are in tests/vm."""

import asyncio

import pytest
from pyroute2 import IPRoute

from cni.netlink import belongings as kept
from cni.netlink import link
from cni.netlink.socket import route_socket
from tests.node.belongings import SLAVES, belongings, settle
from tests.node.conftest import Segment

pytestmark = pytest.mark.node


def take() -> kept.Belongings:
    """Read what the links have, and set them down and up."""
    with route_socket() as sockets:
        had = kept.read(sockets, [found for name in SLAVES if (found := link.get(sockets, name))])
        for state in ("down", "up"):
            for one in had.links:
                with IPRoute() as route:
                    route.link("set", index=one.index, state=state)
    return had


def put_back(had: kept.Belongings) -> None:
    with route_socket() as sockets:
        for request in kept.requests(had):
            sockets.pipeline([request])


async def test_what_a_link_has_lost_is_put_back(segment: Segment) -> None:
    await asyncio.to_thread(settle)
    before = await belongings()
    had = await asyncio.to_thread(take)
    lost = before - await belongings()
    # Otherwise there would be nothing to put back.
    assert {one[:2] for one in lost} == {(what, name) for what in ("address", "route") for name in SLAVES} | {
        ("neighbour", "up0")
    }
    await asyncio.to_thread(put_back, had)
    assert await belongings() == before
    # Once more changes nothing.
    await asyncio.to_thread(put_back, had)
    assert await belongings() == before


async def test_a_link_that_has_nothing(segment: Segment) -> None:
    before = await belongings()
    await asyncio.to_thread(lambda: put_back(take()))
    assert await belongings() == before
