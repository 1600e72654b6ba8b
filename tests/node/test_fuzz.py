"""Configurations and earlier results that nobody would write: a whole agent on the real kernel says what is wrong.

Every answer is a result, or an error with a code that the CNI specification or this project gives a meaning; never a
defect of ours. Behind an error nothing is left, and behind a result nothing is left after DEL.
"""

import asyncio
import copy
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute

from actors.agent import Agent
from cni.errors import CniError, InternalError
from cni.journal import Journal, State
from cni.protocol import parse_invocation
from tests.netns import Netns
from tests.node.agents import serving
from tests.node.conftest import Segment
from tests.node.test_doors import Played
from tests.processes.test_cni import interfaces

pytestmark = [
    pytest.mark.node,
    pytest.mark.blocking,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="links need root"),
]

IPAM = {"type": "spiderpool", "default_ipv4_ippool": ["p"], "clean_gateway": False}
PREVIOUS = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.6.0.9/16", "gateway": "10.6.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}],
    "dns": {},
}
COORDINATOR = {
    "mode": "auto",
    "hijackCIDR": ["169.254.0.0/16"],
    "policyRoutes": [{"dst": "10.9.0.0/16", "gw": "10.6.0.1"}],
    "podMACPrefix": "0a:1b",
    "vethMTU": 1400,
    "txQueueLen": 100,
    "podRPFilter": 0,
    "hostRuleTable": 500,
    "vethLinkAddress": "169.254.100.1",
    "tunePodRoutes": True,
}
SEEDS: list[dict[str, Any]] = [
    {
        "type": "macvlan",
        "master": "up0",
        "mode": "bridge",
        "mtu": 1400,
        "bcqueuelen": 9,
        "ipam": IPAM,
        "coordinator": COORDINATOR,
    },
    {"type": "spiderpool", "master": "up0", "ipam": IPAM, "runtimeConfig": {"mac": "02:00:00:00:00:07", "ips": []}},
    {"type": "ipvlan", "master": "up0", "mode": "l2", "ipam": IPAM},
    {"type": "vlan", "master": "up0", "vlanId": 7, "ipam": IPAM},
    {"type": "sriov", "deviceID": "0000:01:10.0", "vlan": 5, "min_tx_rate": 0, "trust": "on", "ipam": IPAM},
    {"type": "coordinator", **COORDINATOR, "prevResult": PREVIOUS},
    {
        "type": "ifacer",
        "interfaces": ["up0", "up1"],
        "vlanID": 0,
        "bond": {"name": "b0", "mode": 1, "options": "miimon=100"},
    },
    {"type": "macvlan", "master": "up0", "ipam": IPAM, "prevResult": PREVIOUS, "args": {"cni": {"mac": ""}}},
]
MEANT = {1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, *range(100, 110)}

junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.sampled_from([-1, 0, 1, 4094, 4095, 65536, 2**31, 2**32, 1e308, 0.5]),
    st.text(max_size=20),
    st.sampled_from(
        ["", "lo", "..", "up0", "nothing0", "10.6.0.9", "10.6.0.9/33", "::/0", "::1%lo", "ff:ff:ff:ff:ff:ff", "auto"]
    ),
    st.sampled_from(["overlay", "underlay", "disabled", "passthru", "l3s", "x" * 5000, "\0", "0a:1b", "01:00", "on"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something could be put in a tree."""
    found = [at] if at else []
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in steps:
        found += places(value, (*at, key))
    return found


@st.composite
def configurations(draw: st.DrawFn, seeds: Sequence[dict[str, Any]] = SEEDS) -> dict[str, Any]:
    """One of the seeds with something wrong in up to three places."""
    tree: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(places(tree) or [("type",)]))
        holder: Any = tree
        for step in way:
            holder = holder[step]
        if draw(st.booleans()) or isinstance(holder, list):
            holder[last] = draw(junk)
        else:
            del holder[last]
    return tree


class Box:
    """An agent with a controller that grants everything."""

    def __init__(self, folder: Path, netns: Netns) -> None:
        self.state = folder
        self.netns = netns
        self.number = 0

    async def call(self, agent: Agent, verb: str, conf: dict[str, Any]) -> CniError | None:
        """How a call ended."""
        headers = {
            "cni-type": str(conf.get("type")) if isinstance(conf.get("type"), str) else "macvlan",
            "cni-command": verb,
            "cni-containerid": f"c{self.number}",
            "cni-netns": str(self.netns.path),
            "cni-ifname": "eth0",
            "cni-path": "/nowhere",
            "cni-args": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME=p{self.number};K8S_POD_UID=u{self.number}",
        }
        try:
            body = msgspec.json.encode({"cniVersion": "1.0.0", "name": "lan", **conf})
            await agent.invoke(parse_invocation(headers, body))
        except CniError as error:
            return error
        return None

    def left(self) -> list[str]:
        found = [name for name in self.netns.run(interfaces) if name != "lo"]
        entries = Journal(self.state / "journal").load_all()
        return found + [f"{one.ifname} {one.part} {one.state}" for one in entries if one.state is not State.RELEASING]


@pytest.fixture
def box(segment: Segment, tmp_path: Path) -> Iterator[Box]:
    yield Box(tmp_path, segment.container())
    with IPRoute() as route:
        for family in (socket.AF_INET, socket.AF_INET6):
            for one in route.get_rules(family=family):
                priority, table = one.get_attr("FRA_PRIORITY"), one.get_attr("FRA_TABLE")
                if priority and table < 253:
                    route.rule("del", family=family, priority=priority, table=table)


async def live(box: Box, conf: dict[str, Any]) -> None:
    async with serving(box.state, Played()) as agent:
        box.number += 1
        error = await box.call(agent, "ADD", conf)
        event("worked" if error is None else f"error {error.code}")
        if error is not None:
            assert not isinstance(error, InternalError)
            assert error.code in MEANT, repr(error)
            assert len(str(error)) < 2000
            assert box.left() == [], repr(error)
        error = await box.call(agent, "DEL", conf)
        assert error is None or error.code in MEANT, repr(error)
        if error is None:
            assert box.left() == []


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(conf=configurations())
def test_whatever_is_asked_for(box: Box, conf: dict[str, Any]) -> None:
    asyncio.run(live(box, conf))


def test_whatever_is_said_to_have_been_made(box: Box) -> None:
    """CHECK, with what no ADD has answered."""
    kept: list[object] = []
    codes = set()

    @settings(
        max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(previous=configurations([PREVIOUS]))
    def collect(previous: dict[str, Any]) -> None:
        kept.append(previous)

    collect()

    async def work() -> None:
        async with serving(box.state, Played()) as agent:
            assert await box.call(agent, "ADD", SEEDS[0]) is None
            for previous in kept:
                error = await box.call(agent, "CHECK", {**SEEDS[0], "prevResult": previous})
                codes.add(0 if error is None else error.code)
                assert not isinstance(error, InternalError)
                assert "eth0" in box.left()[0], "it changes nothing"
            assert await box.call(agent, "DEL", SEEDS[0]) is None

    asyncio.run(work())
    assert box.left() == []
    assert codes <= {0, *MEANT}
    assert {0, 7, 102} <= codes, "some of it is no contradiction"


def test_what_is_meant_works(box: Box) -> None:
    """Negative control: an agent that refused everything would pass, too."""

    async def work() -> None:
        async with serving(box.state, Played()) as agent:
            assert await box.call(agent, "ADD", SEEDS[0]) is None
            assert "eth0" in box.left()[0]
            assert await box.call(agent, "DEL", SEEDS[0]) is None
            assert box.left() == []

    asyncio.run(work())
