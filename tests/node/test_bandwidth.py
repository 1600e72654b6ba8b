"""Limits on the real kernel: bytes are sent as fast as they go, and what arrives is compared with other limits.

Never with a clock's figure: a limit twice as high lets about twice as much through, and without one it is many times as
much.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from api.networks import Bandwidth
from cni.bandwidth import Bucket, LimitPlan, limit_plan
from cni.config import NetConfig
from cni.coordination import CoordinationPlan
from cni.errors import InterfaceExists, InvalidNetns, KernelRefused
from cni.kernel import LinuxKernel
from cni.netlink import attachment, traffic
from cni.netlink.holders import Modes
from cni.plan import AddressPlan, LinkPlan
from cni.protocol import Invocation, Verb
from tests.netns import Netns
from tests.node.conftest import Segment
from tests.node.test_coordinator import NODE, Node

pytestmark = pytest.mark.node

MBIT = 10**6
NEIGHBOUR = {4: "10.77.0.1", 6: "fd77::1"}
_START_S, _WINDOW_S, _GLANCE_S = 0.2, 1.0, 0.3
_SILENCE_S = 0.15
"""For which the buckets fill and sockets of the measurement before calm down."""


class Pod:
    """A container with a macvlan link on `up0`."""

    def __init__(self, segment: Segment, number: int, ifname: str = "eth0") -> None:
        self.netns = segment.container()
        self.path = str(self.netns.path)
        self.address = {4: f"10.77.0.{number}", 6: f"fd77::{number}"}
        self.attach(ifname)
        plan = AddressPlan(addresses=(f"{self.address[4]}/24", f"{self.address[6]}/64"))
        attachment.configure_link(self.path, ifname, plan)

    def attach(self, ifname: str) -> None:
        attachment.make_link(LinkPlan(netns=self.path, ifname=ifname, master="up0"), Modes())

    def plan(self, ifname: str = "eth0", *, ingress: int = 0, egress: int = 0) -> LimitPlan:
        """In Mbit/s."""
        return planned(self.path, ifname, ingress=ingress, egress=egress)

    @property
    def links(self) -> set[str]:
        return self.netns.run(lambda: {name for _, name in socket.if_nameindex()})


def planned(
    netns: str, ifname: str = "eth0", *, ingress: int = 0, egress: int = 0, pair: CoordinationPlan | None = None
) -> LimitPlan:
    call = Invocation(verb=Verb.ADD, type="macvlan", netns=netns, ifname=ifname, conf=NetConfig(type="macvlan"))
    pod = Bandwidth(ingress_rate=ingress * MBIT, egress_rate=egress * MBIT)
    plan = limit_plan(call, pod, mtu=1500, coordination=pair)
    assert plan is not None
    return plan


@pytest.fixture
def pod(segment: Segment) -> Pod:
    return Pod(segment, 5)


@pytest.fixture
def node(segment: Segment) -> Iterator[Node]:
    yield Node(segment)
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname="node-port")[0])


def free_flow(source: Netns, target: Netns, address: str) -> float:
    """The same without a limit: a glance is enough."""
    return flow(source, target, address, seconds=_GLANCE_S)


def flow(source: Netns, target: Netns, address: str, *, seconds: float = _WINDOW_S) -> float:
    """Bytes a second that come through."""
    time.sleep(_SILENCE_S)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        listener = stack.enter_context(target.run(lambda: socket.socket(family, socket.SOCK_STREAM)))
        listener.bind((address, 0))
        listener.listen()
        sender = stack.enter_context(source.run(lambda: socket.socket(family, socket.SOCK_STREAM)))
        sender.settimeout(5)
        sender.connect(listener.getsockname()[:2])
        receiver = stack.enter_context(listener.accept()[0])
        receiver.settimeout(5)
        over = threading.Event()
        thread = threading.Thread(target=_pour, args=(sender, over))
        thread.start()
        try:
            _count(receiver, _START_S)  # what the bucket held, and TCP's start
            return _count(receiver, seconds)
        finally:
            over.set()
            receiver.close()
            thread.join()


def _pour(sender: socket.socket, over: threading.Event) -> None:
    water = bytes(1 << 16)
    with suppress(OSError):
        while not over.is_set():
            sender.send(water)


def _count(receiver: socket.socket, seconds: float) -> float:
    begun = time.perf_counter()
    count = 0
    while (lasted := time.perf_counter() - begun) < seconds:
        count += len(receiver.recv(1 << 20))
    return count / lasted


def about_double(slow: float, fast: float) -> bool:
    return 1.4 < fast / slow < 2.8


def test_what_a_pod_sends(pod: Pod, segment: Segment) -> None:
    free = free_flow(pod.netns, segment.neighbour, NEIGHBOUR[4])
    speeds = []
    for rate in (20, 40):
        traffic.limit(pod.plan(egress=rate))
        speeds.append(flow(pod.netns, segment.neighbour, NEIGHBOUR[4]))
    assert about_double(*speeds), speeds
    assert free > 5 * speeds[1], (free, speeds)
    # The other direction is as free as before.
    assert free_flow(segment.neighbour, pod.netns, pod.address[4]) > 5 * speeds[1]
    assert "ifb-eth0" not in pod.links


@pytest.mark.parametrize("version", [4, 6])
def test_what_comes_to_a_pod(pod: Pod, segment: Segment, version: int) -> None:
    free = free_flow(segment.neighbour, pod.netns, pod.address[version])
    speeds = []
    for rate in (20, 40):
        traffic.limit(pod.plan(ingress=rate))
        speeds.append(flow(segment.neighbour, pod.netns, pod.address[version]))
    assert about_double(*speeds), speeds
    assert free > 5 * speeds[1], (free, speeds)
    assert free_flow(pod.netns, segment.neighbour, NEIGHBOUR[version]) > 5 * speeds[1]


def test_pods_on_one_parent_whose_packets_never_leave_it(pod: Pod, segment: Segment) -> None:
    other = Pod(segment, 6)
    speeds = {}
    for rate in (20, 40):
        traffic.limit(pod.plan(ingress=rate, egress=rate))
        speeds[rate] = [flow(pod.netns, other.netns, other.address[4]), flow(other.netns, pod.netns, pod.address[4])]
    for slow, fast in zip(speeds[20], speeds[40], strict=True):
        assert about_double(slow, fast), speeds
    third = Pod(segment, 7)
    assert free_flow(third.netns, other.netns, other.address[4]) > 5 * max(speeds[40])


def test_the_pair_to_the_node(node: Node) -> None:
    one, free = node.pod(), node.pod()
    pair = node.coordinate(one)
    node.coordinate(free)
    speeds: dict[int, list[float]] = {}
    for rate in (20, 40):
        plan = planned(one.path, ingress=rate, egress=rate, pair=pair)
        node.netns.run(partial(traffic.limit, plan))
        assert node.netns.run(partial(traffic.lifted, plan)) == []
        speeds[rate] = [flow(one.netns, node.netns, NODE[4]), flow(node.netns, one.netns, one.addresses[4])]
    for slow, fast in zip(speeds[20], speeds[40], strict=True):
        assert about_double(slow, fast), speeds
    for there in ((free.netns, node.netns, NODE[4]), (node.netns, free.netns, free.addresses[4])):
        assert free_flow(*there) > 5 * max(speeds[40])
    # A pod that may change its own queues is still held back by the node's end.
    one.netns.run(_lift_all)
    assert free_flow(one.netns, node.netns, NODE[4]) > 5 * max(speeds[40])
    assert about_double(speeds[20][1], flow(node.netns, one.netns, one.addresses[4]))
    assert node.delete(one)
    assert one.netns.run(_names) == {"lo"}
    assert one.host_veth not in node.netns.run(_names)


def test_the_smallest_limit_lets_the_largest_frame_through(pod: Pod, segment: Segment) -> None:
    bucket = limit_plan(
        Invocation(verb=Verb.ADD, type="macvlan", netns=pod.path, ifname="eth0"), Bandwidth(egress_rate=1000), mtu=1500
    )
    assert bucket is not None
    assert bucket.egress is not None
    for there, back, address in (
        (pod.netns, segment.neighbour, NEIGHBOUR[4]),
        (segment.neighbour, pod.netns, pod.address[4]),
    ):
        traffic.limit(replace(bucket, ingress=bucket.egress))
        assert _passes(there, back, address)
    # A bucket that is too small, as one without a look at the MTU may be, never lets it through.
    traffic.limit(replace(bucket, egress=replace(bucket.egress, burst=1000)))
    assert not _passes(pod.netns, segment.neighbour, NEIGHBOUR[4])


def test_what_is_not_held_any_more_is_told(node: Node) -> None:
    pod = node.pod()
    pair = node.coordinate(pod)
    plan = planned(pod.path, ingress=20, egress=40, pair=pair)

    def lifted() -> list[str]:
        return node.netns.run(lambda: traffic.lifted(plan))

    assert lifted() == [
        "ifb-eth0, limited to 20000000 bits a second, is missing",
        "eth0 is not limited to 40000000 bits a second",
        "veth0 is not limited to 40000000 bits a second",
        f"{pod.host_veth} is not limited to 20000000 bits a second",
    ]
    for place, change, words in (
        (pod.netns, lambda: _queue("del", "eth0", "root"), "eth0 is not limited to 40000000"),
        (pod.netns, lambda: _queue("del", "veth0", "root"), "veth0 is not limited to 40000000"),
        (pod.netns, lambda: _queue("del", "ifb-eth0", "root"), "ifb-eth0 is not limited to 20000000"),
        (pod.netns, lambda: _queue("del", "eth0", "clsact"), "what comes to eth0 does not go through ifb-eth0"),
        (pod.netns, lambda: _set("ifb-eth0", state="down"), "ifb-eth0 is down"),
        (node.netns, lambda: _queue("del", pod.host_veth, "root"), f"{pod.host_veth} is not limited to 20000000"),
        (pod.netns, lambda: _raise("eth0"), "eth0 is not limited to 40000000"),
    ):
        node.netns.run(lambda: traffic.limit(plan))
        assert lifted() == []
        place.run(change)
        told = lifted()
        assert len(told) == 1, told
        assert words in told[0]
    pod.netns.run(lambda: _remove("ifb-eth0"))
    assert "ifb-eth0, limited to 20000000 bits a second, is missing" in lifted()
    assert traffic.lifted(replace(plan, netns="/nowhere"))[0].startswith("CNI_NETNS")


async def test_nothing_is_left(pod: Pod) -> None:
    kernel = LinuxKernel()
    await kernel.attach_link(LinkPlan(netns=pod.path, ifname="net1", master="up0"))
    before = await kernel.inspect(pod.path, "eth0")
    for ifname in ("eth0", "net1"):
        await kernel.limit(pod.plan(ifname, ingress=20, egress=20))
    assert pod.links == {"lo", "eth0", "net1", "ifb-eth0", "ifb-net1"}
    # It has no addresses that a program of the pod's could take for the pod's own.
    assert pod.netns.run(lambda: _addresses("ifb-eth0")) == set()
    assert await kernel.inspect(pod.path, "eth0") == before
    assert await kernel.detach_link(pod.path, "eth0", kind="macvlan")
    assert pod.links == {"lo", "net1", "ifb-net1"}
    assert await kernel.lifted(pod.plan("net1", ingress=20, egress=20)) == []
    # Whoever took the link away already: its ifb goes all the same.
    await asyncio.to_thread(lambda: pod.netns.run(lambda: _remove("net1")))
    assert not await kernel.detach_link(pod.path, "net1", kind="macvlan")
    assert pod.links == {"lo"}
    assert not await kernel.detach_link(pod.path, "net1", kind="macvlan")


def test_a_failure_leaves_no_ifb(pod: Pod) -> None:
    plan = pod.plan(ingress=20, egress=20)
    with pytest.raises(KernelRefused, match="there is no interface vethgone in this node"):
        traffic.limit(replace(plan, host_veth="vethgone"))
    assert pod.links == {"lo", "eth0"}
    with pytest.raises(KernelRefused, match="there is no interface net9"):
        traffic.limit(replace(plan, ifname="net9"))
    assert pod.links == {"lo", "eth0"}
    wrong = Bucket(rate=2**33, burst=0, limit=1)
    with pytest.raises(KernelRefused, match="limit eth0 to 68719476736 bits a second"):
        traffic.limit(replace(plan, egress=wrong))
    assert pod.links == {"lo", "eth0"}
    with pytest.raises(InvalidNetns, match="/nowhere"):
        traffic.limit(replace(plan, netns="/nowhere"))


def test_a_name_that_is_taken(pod: Pod) -> None:
    pod.attach("ifb-eth0")
    with pytest.raises(InterfaceExists, match="ifb-eth0 exists already"):
        traffic.limit(pod.plan(ingress=20))
    # It is somebody's and stays.
    assert attachment.delete_link(pod.path, "eth0", kind="macvlan")
    assert pod.links == {"lo", "ifb-eth0"}


def test_no_rate_is_too_high_or_too_low_for_the_kernel(pod: Pod, segment: Segment) -> None:
    for rate in (1000, 10**9, 2**35, 10**12, 10**15):
        call = Invocation(verb=Verb.ADD, type="macvlan", netns=pod.path, ifname="eth0")
        plan = limit_plan(call, Bandwidth(ingress_rate=rate, egress_rate=rate), mtu=1500)
        assert plan is not None
        traffic.limit(plan)
        assert traffic.lifted(plan) == []
        assert _passes(pod.netns, segment.neighbour, NEIGHBOUR[4])


# -- inside namespaces


def _names() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def _addresses(ifname: str) -> set[str]:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        return {one.get_attr("IFA_ADDRESS") for one in route.get_addr(index=index)}


def _queue(command: str, ifname: str, where: str) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        if where == "clsact":
            route.tc(command, "clsact", index)
        else:
            route.tc(command, index=index, parent=traffic.ROOT)


def _raise(ifname: str) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        route.tc("replace", "tbf", index, parent=traffic.ROOT, rate=10**9, burst=10**6, latency="25ms")


def _lift_all() -> None:
    for ifname in ("eth0", "veth0"):
        _queue("del", ifname, "root")
    _queue("del", "eth0", "clsact")
    _remove("ifb-eth0")


def _set(ifname: str, *, state: str) -> None:
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname=ifname)[0], state=state)


def _remove(ifname: str) -> None:
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname=ifname)[0])


def _passes(source: Netns, target: Netns, address: str) -> bool:
    """Whether a datagram that fills a frame arrives."""
    time.sleep(_SILENCE_S)
    with (
        target.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as receiver,
        source.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.bind((address, 0))
        receiver.settimeout(1.0)
        sender.sendto(bytes(1472), receiver.getsockname())
        try:
            return len(receiver.recv(2000)) == 1472
        except TimeoutError:
            return False
