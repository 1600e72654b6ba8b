"""Limits on links of every kind: ratios, as in `tests.node.test_bandwidth`."""

import socket
from collections.abc import Callable

import pytest
from pyroute2 import IPRoute

from api.networks import Bandwidth
from cni.bandwidth import LimitPlan, limit_plan
from cni.config import NetConfig
from cni.netlink import attachment, traffic
from cni.netlink.holders import Modes
from cni.plan import AddressPlan, LinkPlan
from cni.protocol import Invocation, Verb
from tests.netns import Netns
from tests.node.conftest import Segment, segment
from tests.node.test_bandwidth import MBIT, about_double, flow, free_flow

__all__ = ("segment",)
pytestmark = pytest.mark.node

SLOW, FAST = 4, 8
"""Mbit/s: the guest is slow itself."""
FIRST, SECOND = "10.77.0.5", "10.77.0.6"


def link(netns: Netns, kind: str, *, master: str, mode: str = "") -> LinkPlan:
    vlan = (77, "802.1q") if kind == "vlan" else (None, "")
    return LinkPlan(
        netns=str(netns.path), ifname="eth0", master=master,
        kind=kind, mode=mode, vlan_id=vlan[0], vlan_protocol=vlan[1],
    )  # fmt: skip


def attach(netns: Netns, kind: str, address: str, *, master: str, mode: str = "") -> None:
    attachment.make_link(link(netns, kind, master=master, mode=mode), Modes())
    attachment.configure_link(str(netns.path), "eth0", AddressPlan(addresses=(f"{address}/24",)))


def planned(netns: Netns, rate: int) -> LimitPlan:
    call = Invocation(verb=Verb.ADD, type="macvlan", netns=str(netns.path), ifname="eth0", conf=NetConfig())
    plan = limit_plan(call, Bandwidth(ingress_rate=rate * MBIT, egress_rate=rate * MBIT), mtu=1500)
    assert plan is not None
    return plan


def best(measured: Callable[[int], list[float]]) -> tuple[list[float], list[float]]:
    """What goes through at both rates at best: a limit is never passed, and a busy machine lets less through."""
    slow, fast = measured(SLOW), measured(FAST)
    for _ in range(3):
        if all(about_double(*both) for both in zip(slow, fast, strict=True)):
            break
        slow = [max(both) for both in zip(slow, measured(SLOW), strict=True)]
        fast = [max(both) for both in zip(fast, measured(FAST), strict=True)]
    return slow, fast


@pytest.mark.parametrize(("kind", "mode"), [("ipvlan", "l2"), ("vlan", "")])
def test_both_directions(segment: Segment, kind: str, mode: str) -> None:
    pod, other = segment.container(), segment.container()
    attach(pod, kind, FIRST, master="up0", mode=mode)
    attach(other, kind, SECOND, master="up1", mode=mode)
    free = min(free_flow(pod, other, SECOND), free_flow(other, pod, FIRST))

    def measured(rate: int) -> list[float]:
        plan = planned(pod, rate)
        traffic.limit(plan)
        assert traffic.lifted(plan) == []
        return [flow(pod, other, SECOND), flow(other, pod, FIRST)]

    speeds = best(measured)
    for slow, fast in zip(*speeds, strict=True):
        assert about_double(slow, fast), speeds
        assert free > 2 * fast, (free, speeds)
    assert attachment.delete_link(str(pod.path), "eth0", kind=kind)
    assert pod.run(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]


@pytest.mark.parametrize(("mode", "held"), [("l3", True), ("l3s", False)])
def test_what_comes_from_the_segment_to_a_routed_link(segment: Segment, mode: str, held: bool) -> None:
    # Where it is not held back `limit_plan` refuses: here one that it made for another kind is used.
    pod = segment.container()
    attach(pod, "ipvlan", FIRST, master="up0", mode=mode)
    with IPRoute() as route:
        parent = route.link_lookup(ifname="up0")[0]
        route.addr("add", index=parent, address="10.77.0.2", prefixlen=24)
        mac = route.link("get", index=parent)[0].get_attr("IFLA_ADDRESS")
    segment.neighbour.run(_knows("host", FIRST, mac))
    free = free_flow(segment.neighbour, pod, FIRST)

    def measured(rate: int) -> list[float]:
        traffic.limit(planned(pod, rate))
        return [flow(segment.neighbour, pod, FIRST)]

    (slow,), (fast,) = best(measured) if held else (measured(SLOW), measured(FAST))
    if held:
        assert about_double(slow, fast), (slow, fast)
        assert free > 2 * fast, (free, slow, fast)
    else:
        assert min(slow, fast) > 2 * FAST * MBIT / 8, (free, slow, fast)
    # What it sends is held back in any mode.
    assert flow(pod, segment.neighbour, "10.77.0.1") < 1.5 * FAST * MBIT / 8


def _knows(ifname: str, address: str, mac: str) -> Callable[[], None]:
    def put() -> None:
        with IPRoute() as route:
            route.neigh("replace", dst=address, lladdr=mac, ifindex=route.link_lookup(ifname=ifname)[0], state=0x80)

    return put
