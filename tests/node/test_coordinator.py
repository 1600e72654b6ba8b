"""A pod and its own node on the real kernel: every test sends packets, and shows what happens without.

A namespace plays the node: its uplink is on the bridge, the pod's macvlan link is made on it, and the agent's kernel
code runs inside, as it does on a real node.
"""

import errno
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from pyroute2 import IPRoute

from api.wire import Coordination
from cni.config import CoordinatorConfig, NetConfig
from cni.coordination import CoordinationPlan, Pair, coordination_plan
from cni.errors import InterfaceExists, KernelRefused
from cni.netlink import attachment, coordinator, nftables, survey
from cni.netlink.differences import differences
from cni.netlink.holders import Modes
from cni.netlink.nftables import FilterSocket
from cni.plan import AddressPlan, LinkPlan
from cni.protocol import Invocation, Verb
from tests.netns import Netns
from tests.node.conftest import Segment, talk
from tests.node.descriptors import descriptors

pytestmark = pytest.mark.node

NODE = {4: "10.77.0.2", 6: "fd77::2"}
SERVICE = {4: "10.96.0.10", 6: "fd96::10"}
CLUSTER = Coordination(service_cidr=("10.96.0.0/16", "fd96::/112"))
FAMILIES = (4, 6)


class Pod:
    """A container with its number; its addresses end in it."""

    def __init__(self, netns: Netns, number: int) -> None:
        self.netns = netns
        self.path = str(netns.path)
        self.container_id = f"{number:02x}ab" * 16
        self.host_veth = f"veth{self.container_id[:11]}"
        self.addresses = {4: f"10.77.0.{number}", 6: f"fd77::{number}"}
        self.plan: CoordinationPlan | None = None

    @property
    def pair(self) -> Pair:
        return Pair(self.host_veth, self.container_id)


class Node:
    """The namespace that plays a node, with the uplink `nic`."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.netns = segment.container()
        self._pods = 9
        with IPRoute() as route:
            route.link("add", ifname="node-nic", kind="veth", peer={"ifname": "node-port"})
            lan = route.link_lookup(ifname="lan")[0]
            route.link("set", index=route.link_lookup(ifname="node-port")[0], master=lan, state="up")
            with self.netns.path.open() as namespace:
                nic = route.link_lookup(ifname="node-nic")[0]
                route.link("set", index=nic, net_ns_fd=namespace.fileno())
        self.netns.run(self._configure)

    def _configure(self) -> None:
        for setting in ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        with IPRoute() as route:
            nic, lo = (route.link_lookup(ifname=name)[0] for name in ("node-nic", "lo"))
            route.addr("add", index=nic, address=NODE[4], prefixlen=24)
            route.addr("add", index=nic, address=NODE[6], prefixlen=64, flags=2)
            route.link("set", index=lo, state="up")
            route.link("set", index=nic, state="up")
            route.route("add", dst="default", gateway="10.77.0.1")
            route.route("add", dst="default", gateway="fd77::1", family=socket.AF_INET6)

    def serve(self) -> None:
        """A Service whose endpoint is the node itself: kube-proxy's work is the node's, ours ends at its door."""
        self.netns.run(lambda: _addresses("lo", SERVICE))

    def pod(self) -> Pod:
        """A container with its LAN link, as a main plugin leaves it."""
        self._pods += 1
        pod = Pod(self.segment.container(), self._pods)
        link = LinkPlan(netns=pod.path, ifname="eth0", master="node-nic")
        self.netns.run(lambda: attachment.make_link(link, Modes()))
        plan = AddressPlan(
            addresses=(f"{pod.addresses[4]}/24", f"{pod.addresses[6]}/64"),
            routes=(("0.0.0.0/0", "10.77.0.1"), ("::/0", "fd77::1")),
        )
        self.netns.run(lambda: attachment.configure_link(pod.path, "eth0", plan))
        return pod

    def plan(self, pod: Pod, cluster: Coordination = CLUSTER, **conf: object) -> CoordinationPlan:
        invocation = Invocation(
            verb=Verb.ADD,
            type="macvlan",
            container_id=pod.container_id,
            netns=pod.path,
            ifname="eth0",
            conf=NetConfig(name="lan", coordinator=CoordinatorConfig(**conf)),  # type: ignore[arg-type]
        )
        seen = self.netns.run(lambda: survey.survey(pod.path))
        plan = coordination_plan(invocation, cluster, seen)
        assert plan is not None
        return plan

    def coordinate(self, pod: Pod, cluster: Coordination = CLUSTER, **conf: object) -> CoordinationPlan:
        plan = pod.plan = self.plan(pod, cluster, **conf)
        self.netns.run(lambda: coordinator.coordinate(plan))
        return plan

    def delete(self, pod: Pod) -> bool:
        return self.netns.run(lambda: attachment.delete_link(pod.path, "eth0", kind="macvlan", pair=pod.pair))


@pytest.fixture
def node(segment: Segment) -> Iterator[Node]:
    yield Node(segment)
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname="node-port")[0])


def _addresses(ifname: str, addresses: dict[int, str]) -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        route.addr("add", index=index, address=addresses[4], prefixlen=32)
        route.addr("add", index=index, address=addresses[6], prefixlen=128, flags=2)


@pytest.mark.parametrize("version", FAMILIES)
def test_node_and_pod_reach_each_other(node: Node, version: int) -> None:
    pod, other = node.pod(), node.pod()
    for server, client, address in (
        (pod.netns, node.netns, pod.addresses[version]),
        (node.netns, pod.netns, NODE[version]),
    ):
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the family
            talk(server, client, address, timeout=0.3)
    node.coordinate(pod)
    assert talk(pod.netns, node.netns, pod.addresses[version]).decode() == NODE[version]
    assert talk(node.netns, pod.netns, NODE[version]).decode() == pod.addresses[version]
    # The LAN is reached as before, by the LAN link.
    assert talk(other.netns, pod.netns, other.addresses[version]).decode() == pod.addresses[version]
    with pytest.raises(OSError):  # noqa: PT011
        talk(other.netns, node.netns, other.addresses[version], timeout=0.3)


@pytest.mark.parametrize("version", FAMILIES)
def test_services_are_the_nodes_business(node: Node, version: int) -> None:
    pod, without = node.pod(), node.pod()
    node.serve()
    node.coordinate(pod)
    node.coordinate(without, Coordination(hijack_cidr=()))
    assert talk(node.netns, pod.netns, SERVICE[version]).decode() == pod.addresses[version]
    with pytest.raises(OSError):  # noqa: PT011
        talk(node.netns, without.netns, SERVICE[version], timeout=0.3)


@pytest.mark.parametrize("version", FAMILIES)
def test_a_reply_leaves_by_where_its_request_came_in(node: Node, version: int) -> None:
    # A client behind the node, as of a NodePort that keeps the client's address: the pod would answer by the LAN.
    far = {4: "192.0.2.9", 6: "2001:db8::9"}
    pod = node.pod()
    node.netns.run(lambda: _addresses("lo", far))
    node.coordinate(pod)
    assert knock(pod, node, far[version]) == far[version]
    pod.netns.run(_drop_marking)
    with pytest.raises(TimeoutError):
        knock(pod, node, far[version], timeout=0.5)
    node.coordinate(pod)
    assert knock(pod, node, far[version]) == far[version]


def test_marks_of_others_are_left_alone(node: Node) -> None:
    pod = node.pod()
    node.coordinate(pod)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, IPRoute() as route:
            # Mark 7 is somebody else's: its rule must find the packet.
            route.rule("add", priority=500, fwmark=7, action="unreachable")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
            sender.sendto(b"x", ("10.77.0.1", 9))

    with pytest.raises(OSError, match=os.strerror(errno.ENETUNREACH)):
        pod.netns.run(send)


def test_what_is_in_the_kernel(node: Node) -> None:
    pod = node.pod()
    conf = {"veth_mtu": 1400, "tx_queue_len": 77, "pod_rp_filter": 2, "host_rule_table": 600}
    plan = node.coordinate(pod, CLUSTER, veth_link_address="169.254.100.1", **conf)
    inside, outside = pod.netns.run(_links), node.netns.run(_links)
    near, far = outside[pod.host_veth], inside["veth0"]
    assert (near["mac"], far["mac"]) == (plan.host_mac, plan.pod_mac)
    assert (near["mtu"], far["mtu"], near["up"], far["up"]) == (1400, 1400, True, True)
    assert inside["eth0"]["queue"] == 77
    assert near["alias"] == far["alias"] == f"spiderpool {pod.container_id}"
    routes = pod.netns.run(lambda: _routes("veth0"))
    assert routes >= {
        ("10.77.0.2/32", None, "10.77.0.10", 254),
        ("10.96.0.0/16", "10.77.0.2", "10.77.0.10", 254),
        ("169.254.0.0/16", "10.77.0.2", "10.77.0.10", 254),
        ("default", "10.77.0.2", "10.77.0.10", 100),
        ("fd77::2/128", None, None, 254),
        ("fd96::/112", "fd77::2", None, 254),
        ("default", "fd77::2", None, 100),
    }
    assert node.netns.run(lambda: _routes(pod.host_veth)) >= {
        ("10.77.0.10/32", None, None, 600),
        ("fd77::10/128", None, None, 600),
    }
    marked = {(family, 1000, 1, 100) for family in (2, 10)}
    assert pod.netns.run(_rules) == marked
    assert node.netns.run(_rules) == {(family, 1000, None, 600) for family in (2, 10)}
    assert pod.netns.run(lambda: _neighbours("veth0")) == {(NODE[4], plan.host_mac), (NODE[6], plan.host_mac)}
    assert node.netns.run(lambda: _neighbours(pod.host_veth)) == {
        (pod.addresses[4], plan.pod_mac),
        (pod.addresses[6], plan.pod_mac),
    }
    settings = {"ipv4/conf/all/rp_filter": "2", "ipv4/conf/eth0/rp_filter": "2", "ipv4/conf/veth0/rp_filter": "2"}
    assert pod.netns.run(lambda: _settings(settings)) == settings
    settings = {f"ipv6/conf/{pod.host_veth}/accept_ra": "0", f"ipv4/conf/{pod.host_veth}/rp_filter": "0"}
    assert node.netns.run(lambda: _settings(settings)) == settings
    # For Istio: an address that a program of the pod's own can be told to trust.
    assert "169.254.100.1/32" in pod.netns.run(lambda: _addresses_of("veth0"))


def test_strict_filtering_on_the_node_and_in_namespaces_drops_nothing(node: Node) -> None:
    def strict() -> None:
        for name in ("all", "default"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")

    pod = node.pod()
    node.netns.run(strict)
    pod.netns.run(strict)
    node.coordinate(pod)
    assert talk(pod.netns, node.netns, pod.addresses[4]).decode() == NODE[4]
    node.netns.run(lambda: _addresses("lo", {4: "192.0.2.9", 6: "2001:db8::9"}))
    assert knock(pod, node, "192.0.2.9") == "192.0.2.9"
    left_alone = node.pod()
    left_alone.netns.run(strict)
    node.coordinate(left_alone, pod_rp_filter=-1)
    with pytest.raises(TimeoutError):
        knock(left_alone, node, "192.0.2.9", timeout=0.5)


def test_nothing_is_left(node: Node) -> None:
    node.coordinate(node.pod())  # the node's rules stay once there was a pod
    pod = node.pod()
    before, opened = node.netns.run(_everything), descriptors()
    inside = pod.netns.run(lambda: sorted(_links()))
    node.coordinate(pod)
    assert node.netns.run(_everything) != before
    assert node.delete(pod)
    assert node.netns.run(_everything) == before
    deadline = time.monotonic() + 5
    while descriptors() != opened:  # as `until_closed`, without a loop that has sockets of its own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert inside == ["eth0", "lo"]
    assert pod.netns.run(lambda: sorted(_links())) == ["lo"]
    assert not node.delete(pod)


async def test_a_namespace_that_is_gone_takes_its_pair_with_it(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    before = node.netns.run(_everything)
    node.coordinate(pod)
    pod.netns.__exit__(None, None, None)
    assert not node.delete(pod)
    assert pod.host_veth not in node.netns.run(_links)
    node.coordinate(other)
    node.delete(other)
    after = node.netns.run(_everything)
    assert {one for one in after if not one.startswith("rule")} == {one for one in before if not one.startswith("rule")}


def test_the_nodes_end_lives_as_long_as_the_namespace(node: Node) -> None:
    """Whoever cannot see the processes in there sees by it that the pod's link still answers."""
    pod = node.pod()

    def paired(pair: Pair | None = None) -> bool:
        return node.netns.run(lambda: attachment.is_paired(pair or pod.pair))

    assert not paired()
    node.coordinate(pod)
    assert paired()
    assert not paired(Pair(pod.host_veth, "f" * 32)), "another container's"
    process = pod.netns.run(lambda: subprocess.Popen(["sleep", "60"]))
    try:
        pod.netns.__exit__(None, None, None)
        assert paired(), "the mount is gone, and a process goes on in it"
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while paired():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_repeated_try_replaces_what_an_earlier_one_left(node: Node) -> None:
    pod = node.pod()
    node.coordinate(pod)
    once = node.netns.run(_everything), pod.netns.run(_everything)
    plan = node.coordinate(pod)
    assert (node.netns.run(_everything), pod.netns.run(_everything)) == once
    assert node.netns.run(lambda: differences(plan)) == []
    assert talk(pod.netns, node.netns, pod.addresses[4]).decode() == NODE[4]


def test_a_failure_leaves_no_pair(node: Node) -> None:
    pod = node.pod()
    plan = node.plan(pod)
    before = node.netns.run(_everything)
    wrong = msgspec.structs.replace(plan.routes[2], gateway="9.9.9.9", device="eth0", destination="10.96.0.0/16")
    bad = msgspec.structs.replace(plan, routes=(wrong, *plan.routes))
    with pytest.raises(KernelRefused, match=r"10\.96\.0\.0/16 via 9\.9\.9\.9 to eth0.*invalid gateway"):
        node.netns.run(lambda: coordinator.coordinate(bad))
    assert node.netns.run(_everything) == before
    node.netns.run(lambda: coordinator.coordinate(plan))
    assert talk(node.netns, pod.netns, NODE[6]).decode() == pod.addresses[6]


def test_somebody_elses_links_stay(node: Node) -> None:
    pod, other = node.pod(), node.pod()
    plan = node.plan(pod)

    def make(alias: str) -> None:
        with IPRoute() as route:
            route.link("add", ifname=pod.host_veth, kind="veth", peer={"ifname": "peer"})
            route.link("set", index=route.link_lookup(ifname=pod.host_veth)[0], ifalias=alias)

    node.netns.run(lambda: make("somebody"))
    with pytest.raises(InterfaceExists, match=f"{pod.host_veth} exists already.*somebody"):
        node.netns.run(lambda: coordinator.coordinate(plan))
    node.delete(pod)
    assert pod.host_veth in node.netns.run(_links)
    other.netns.run(_foreign_veth0)
    with pytest.raises(InterfaceExists, match="veth0 exists already"):
        node.netns.run(lambda: coordinator.coordinate(node.plan(other)))


def test_what_an_earlier_version_made_is_taken_down(node: Node) -> None:
    # The original writes no alias, as a crash of ours would.
    pod = node.pod()

    def make() -> None:
        with IPRoute() as route, pod.netns.path.open() as namespace:
            peer = {"ifname": "veth0", "net_ns_fd": namespace.fileno()}
            route.link("add", ifname=pod.host_veth, kind="veth", peer=peer)

    node.netns.run(make)
    assert node.delete(pod)
    assert pod.host_veth not in node.netns.run(_links)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("pair", "is missing on the node"),
        ("down", "veth0 is down"),
        ("route", "veth0 lacks the route to 10.96.0.0/16 in table 254"),
        ("node", "lacks the route to 10.77.0.10/32 in table 500"),
    ],
)
def test_what_is_missing_is_named(node: Node, damage: str, words: str) -> None:
    pod = node.pod()
    plan = node.coordinate(pod)
    assert node.netns.run(lambda: differences(plan)) == []

    def harm() -> None:
        with IPRoute() as route:
            match damage:
                case "pair":
                    route.link("del", index=route.link_lookup(ifname=pod.host_veth)[0])
                case "down":
                    route.link("set", index=route.link_lookup(ifname="veth0")[0], state="down")
                case "route":
                    route.route("del", dst="10.96.0.0/16")
                case _:
                    route.route("del", dst="10.77.0.10/32", table=500, scope=253)

    (node.netns if damage in {"pair", "node"} else pod.netns).run(harm)
    assert any(words in one for one in node.netns.run(lambda: differences(plan)))


def test_a_node_without_an_address_of_a_family(node: Node) -> None:
    def remove() -> None:
        with IPRoute() as route:
            route.flush_addr(family=socket.AF_INET6, label=None, index=route.link_lookup(ifname="node-nic")[0])

    node.netns.run(remove)
    pod = node.pod()
    plan = node.coordinate(pod)
    assert plan.marked == (4,)
    assert talk(pod.netns, node.netns, pod.addresses[4]).decode() == NODE[4]


def test_ipv6_where_the_runtime_switched_it_off(node: Node) -> None:
    pod = node.pod()
    pod.netns.run(lambda: Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1"))
    node.coordinate(pod)
    assert talk(pod.netns, node.netns, pod.addresses[6]).decode() == NODE[6]


def knock(pod: Pod, node: Node, source: str, *, timeout: float = 5.0) -> str:
    """What the pod takes for the address of a client on the node that calls it from `source`."""
    family, address = (socket.AF_INET6, pod.addresses[6]) if ":" in source else (socket.AF_INET, pod.addresses[4])
    with (
        pod.netns.run(lambda: socket.socket(family, socket.SOCK_STREAM)) as listener,
        node.netns.run(lambda: socket.socket(family, socket.SOCK_STREAM)) as caller,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 8081))
        listener.listen()
        caller.settimeout(timeout)
        caller.bind((source, 0))
        caller.connect((address, 8081))
        listener.settimeout(timeout)
        answering, peer = listener.accept()
        answering.close()
        return str(peer[0])


def _drop_marking() -> None:
    with FilterSocket() as sockets:
        assert nftables.missing(sockets, 4) == nftables.missing(sockets, 6) == []
        nftables.remove(sockets, FAMILIES)
        nftables.remove(sockets, FAMILIES)
        assert nftables.missing(sockets, 4) == ["nf_tables table spiderpool of IPv4"]


def _foreign_veth0() -> None:
    with IPRoute() as route:
        route.link("add", ifname="veth0", kind="veth", peer={"ifname": "peer"})


def _links() -> dict[str, dict[str, object]]:
    with IPRoute() as route:
        return {
            one.get_attr("IFLA_IFNAME"): {
                "mac": one.get_attr("IFLA_ADDRESS"),
                "mtu": one.get_attr("IFLA_MTU"),
                "up": bool(one["flags"] & 1),
                "alias": one.get_attr("IFLA_IFALIAS"),
                "queue": one.get_attr("IFLA_TXQLEN"),
            }
            for one in route.get_links()
        }


def _routes(ifname: str) -> set[tuple[str, str | None, str | None, int]]:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        found = set()
        for one in route.get_routes(oif=index):
            dst = f"{one.get_attr('RTA_DST')}/{one['dst_len']}" if one["dst_len"] else "default"
            via, source = one.get_attr("RTA_GATEWAY"), one.get_attr("RTA_PREFSRC")
            found.add((dst, via, source, one.get_attr("RTA_TABLE")))
        return found


def _rules() -> set[tuple[int, int, int | None, int]]:
    with IPRoute() as route:
        return {
            (family, 1000, one.get_attr("FRA_FWMARK"), one.get_attr("FRA_TABLE"))
            for family in (socket.AF_INET, socket.AF_INET6)
            for one in route.get_rules(family=family)
            if one.get_attr("FRA_PRIORITY") == 1000
        }


def _neighbours(ifname: str) -> set[tuple[str, str]]:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        return {
            (one.get_attr("NDA_DST"), one.get_attr("NDA_LLADDR"))
            for one in route.get_neighbours(ifindex=index)
            if one["state"] & 0x80
        }


def _addresses_of(ifname: str) -> set[str]:
    with IPRoute() as route:
        index = route.link_lookup(ifname=ifname)[0]
        return {f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}" for one in route.get_addr(index=index)}


def _settings(names: dict[str, str]) -> dict[str, str]:
    return {name: Path("/proc/sys/net", name).read_text().strip() for name in names}


def _everything() -> list[str]:
    """Links, routes, rules and permanent neighbours of a namespace."""
    with IPRoute() as route:
        names = {one["index"]: one.get_attr("IFLA_IFNAME") for one in route.get_links()}
        found = [f"link {name}" for name in names.values()]
        for one in route.get_routes():
            to, table = str(one.get_attr("RTA_DST")), one.get_attr("RTA_TABLE")
            if table != 255 and not to.startswith(("fe80", "ff")):
                found += [f"route {to} {names.get(one.get_attr('RTA_OIF'))} {table}"]
        for family in (socket.AF_INET, socket.AF_INET6):
            found += [f"rule {family} {one.get_attr('FRA_PRIORITY')}" for one in route.get_rules(family=family)]
            found += [
                f"neighbour {one.get_attr('NDA_DST')}"
                for one in route.get_neighbours(family=family)
                if one["state"] & 0x80
            ]
    return sorted(found)
