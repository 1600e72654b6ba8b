"""A LAN as in the pictures of the node tests: a node, a router with the world behind it, and pods with several NICs.

The node is a namespace: its uplink `ens0` is on the bridge, pods' links are made on it, and the agent's kernel code
runs inside, as it does on a real node. Networks a, b and c share the wire; the node has an address in a only.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

from api.wire import Coordination
from cni.config import CoordinatorConfig, NetConfig
from cni.coordination import CoordinationPlan, Pair, coordination_plan
from cni.netlink import attachment, coordinator, survey
from cni.netlink.differences import differences
from cni.netlink.holders import Modes
from cni.plan import AddressPlan, LinkPlan
from cni.protocol import Invocation, Role, Verb
from tests.netns import Netns
from tests.node.conftest import Segment

NETWORKS = {"a": ("172.100.0", "fd00:100"), "b": ("172.200.0", "fd00:200"), "c": ("172.250.0", "fd00:250")}
NODE = {4: "172.100.0.2", 6: "fd00:100::2"}
WORLD = {4: "198.51.100.9", 6: "2001:db8::9"}
"""Behind the router."""
SERVICES, PODS, HIJACKED = "10.233.0.0/18", "10.233.64.0/18", "169.254.0.0/16"
CLUSTER = Coordination(
    service_cidr=(SERVICES, "fd00:233::/112"), overlay_pod_cidr=(PODS, "fd00:234::/64"), hijack_cidr=(HIJACKED,)
)
CALICO_MAC = "ee:ee:ee:ee:ee:ee"
CALICO_LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"
_DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}


def address(network: str, number: int, version: int = 4) -> str:
    """One of a network."""
    return f"{NETWORKS[network][0]}.{number}" if version == 4 else f"{NETWORKS[network][1]}::{number:x}"


def on_link(network: str, version: int = 4) -> str:
    """The network itself."""
    return f"{NETWORKS[network][0].removesuffix('.0')}.0.0/16" if version == 4 else f"{NETWORKS[network][1]}::/64"


class Pod:
    """A container; the last byte of its addresses is its number."""

    def __init__(self, lan: "Lan", number: int, versions: tuple[int, ...], node: Netns) -> None:
        self.lan = lan
        self.node = node
        self.number = number
        self.versions = versions
        self.netns = lan.segment.container()
        self.path = str(self.netns.path)
        self.container_id = f"{number:02x}ab" * 16
        self.host_veth = f"veth{self.container_id[:11]}"
        self.plans: dict[str, CoordinationPlan] = {}

    def attach(
        self,
        ifname: str,
        network: str,
        *,
        kind: str = "macvlan",
        mode: str = "bridge",
        number: int = 0,
        routes: Sequence[str] = (),
    ) -> None:
        """A NIC as a main plugin leaves it; see `configure`."""
        plan = LinkPlan(netns=self.path, ifname=ifname, master="ens0", kind=kind, mode=mode)
        self.node.run(lambda: attachment.make_link(plan, Modes()))
        self.configure(ifname, network, number=number, routes=routes)

    def configure(self, ifname: str, network: str, *, number: int = 0, routes: Sequence[str] = ()) -> None:
        """A link that is there gets its addresses and routes.

        The last byte is `number`, where that is given. There is a default route, and `routes` lead the same way.
        """
        wanted = [(_DEFAULT[one], one) for one in self.versions]
        wanted += [(one, 6 if ":" in one else 4) for one in routes]
        plan = AddressPlan(
            addresses=tuple(
                f"{address(network, number or self.number, version)}/{16 if version == 4 else 64}"
                for version in self.versions
            ),
            routes=tuple((destination, address(network, 1, version)) for destination, version in wanted),
        )
        self.node.run(lambda: attachment.configure_link(self.path, ifname, plan))

    def overlay(self) -> None:
        """An `eth0` as Calico makes it."""
        addresses = [self.overlay_addresses[version] for version in self.versions]

        def make() -> None:
            with IPRoute() as route, self.netns.path.open() as namespace:
                peer = {"ifname": "eth0", "net_ns_fd": namespace.fileno()}
                route.link("add", ifname=self.cali, kind="veth", address=CALICO_MAC, peer=peer)
                index = route.link_lookup(ifname=self.cali)[0]
                Path(f"/proc/sys/net/ipv6/conf/{self.cali}/accept_dad").write_text("0")
                route.link("set", index=index, state="up")
                Path(f"/proc/sys/net/ipv4/conf/{self.cali}/proxy_arp").write_text("1")
                for one in addresses:
                    route.route("add", dst=_single(one), oif=index, scope=253 if "." in one else 0, proto=3)

        def configure() -> None:
            with IPRoute() as route:
                index = route.link_lookup(ifname="eth0")[0]
                Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
                route.link("set", index=index, state="up")
                for one in addresses:
                    at, _, length = _single(one).partition("/")
                    route.addr("add", index=index, address=at, prefixlen=int(length))
                if 4 in self.versions:
                    route.route("add", dst="169.254.1.1/32", oif=index, scope=253, proto=3)
                    route.route("add", dst="default", gateway="169.254.1.1", oif=index, proto=3)
                if 6 in self.versions:
                    family = socket.AF_INET6
                    route.route("add", dst="default", gateway=CALICO_LINK_LOCAL, oif=index, proto=3, family=family)

        self.node.run(make)
        self.netns.run(configure)

    @property
    def cali(self) -> str:
        """The node's end of the overlay's pair."""
        return f"cali{self.number}"

    @property
    def overlay_addresses(self) -> dict[int, str]:
        """Of `eth0`, with an overlay, by IP version."""
        return {4: f"10.233.105.{self.number}", 6: f"fd00:234::105:{self.number:x}"}

    @property
    def overlay_address(self) -> str:
        """The IPv4 one."""
        return self.overlay_addresses[4]

    def plan(
        self,
        ifname: str,
        cluster: Coordination = CLUSTER,
        *,
        ordinal: int | None = None,
        names: tuple[str, ...] = (),
        role: Role = Role.MAIN,
        **conf: object,
    ) -> CoordinationPlan:
        """What is to be built for a NIC."""
        invocation = Invocation(
            verb=Verb.ADD,
            type="macvlan",
            role=role,
            container_id=self.container_id,
            netns=self.path,
            ifname=ifname,
            conf=NetConfig(name="lan", coordinator=CoordinatorConfig(**conf)),  # type: ignore[arg-type]
        )
        seen = self.node.run(lambda: survey.survey(self.path))
        plan = coordination_plan(invocation, cluster, seen, ordinal=ordinal, names=names, built=self.plans.values())
        assert plan is not None
        return plan

    def coordinate(self, ifname: str, cluster: Coordination = CLUSTER, **more: object) -> CoordinationPlan:
        """Build it, and see that all is there."""
        plan = self.plans[ifname] = self.plan(ifname, cluster, **more)  # type: ignore[arg-type]
        self.node.run(lambda: coordinator.coordinate(plan))
        assert self.differences() == []
        return plan

    def add(self, ifname: str, network: str, cluster: Coordination = CLUSTER, **more: object) -> CoordinationPlan:
        """Both steps."""
        self.attach(ifname, network)
        return self.coordinate(ifname, cluster, **more)

    def differences(self) -> list[str]:
        """What of all NICs is not as it was built."""
        return [one for plan in self.plans.values() for one in self.node.run(lambda plan=plan: differences(plan))]  # type: ignore[misc]

    def delete(self, ifname: str) -> None:
        """DEL of one NIC."""
        plan = self.plans.pop(ifname, None)
        pair = Pair(self.host_veth, self.container_id) if plan is not None and plan.makes_pair else None

        def leave() -> None:
            if plan is not None:
                coordinator.uncoordinate(plan, pair=False)
            attachment.delete_link(self.path, ifname, kind="macvlan", pair=pair)

        self.node.run(leave)

    def way_to(self, destination: str, *, source: str = "") -> tuple[str, str]:
        """Link and source address that a packet would have: `ip route get`."""

        def look() -> tuple[str, str]:
            family = socket.AF_INET6 if ":" in destination else socket.AF_INET
            asked = {"dst": destination, "family": family} | ({"src": source} if source else {})
            with IPRoute() as route:
                (found,) = route.route("get", **asked)
                name = route.get_links(found.get_attr("RTA_OIF"))[0].get_attr("IFLA_IFNAME")
                return name, str(found.get_attr("RTA_PREFSRC") or source)

        return self.netns.run(look)


class Lan:
    """See the module."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.ports: list[str] = []
        self.node = self.further_node(NODE)
        self.router = segment.neighbour
        self._pods = 209
        self.router.run(_configure_router)

    def further_node(self, addresses: dict[int, str]) -> Netns:
        """A node with these addresses, by IP version."""
        node = self.segment.container()
        port = f"node{len(self.ports)}-port"
        with IPRoute() as route:
            route.link("add", ifname="node-nic", kind="veth", peer={"ifname": port})
            self.ports.append(port)
            lan = route.link_lookup(ifname="lan")[0]
            route.link("set", index=route.link_lookup(ifname=port)[0], master=lan, state="up")
            with node.path.open() as namespace:
                nic = route.link_lookup(ifname="node-nic")[0]
                route.link("set", index=nic, ifname="ens0", net_ns_fd=namespace.fileno())
        node.run(lambda: _configure_node(addresses))
        return node

    def pod(self, *, versions: tuple[int, ...] = (4,), node: Netns | None = None) -> Pod:
        """A container without any NIC, on the first node unless another is named."""
        self._pods += 1
        return Pod(self, self._pods, versions, node or self.node)

    def reuse(self, pod: Pod) -> None:
        """The next pod gets the number of this one, which is gone."""
        self._pods = pod.number - 1


@contextmanager
def lan_on(segment: Segment) -> Iterator[Lan]:
    """The LAN, gone at the end."""
    lan = Lan(segment)
    yield lan
    with IPRoute() as route:
        for port in lan.ports:
            route.link("del", index=route.link_lookup(ifname=port)[0])


def _single(at: str) -> str:
    return f"{at}/{128 if ':' in at else 32}"


def assign(netns: Netns, ifname: str, *addresses: str) -> None:
    """Addresses with prefix lengths, at once usable."""

    def work() -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname=ifname)[0]
            for one in addresses:
                at, _, length = one.partition("/")
                flags = {"flags": 2} if ":" in at else {}
                route.addr("add", index=index, address=at, prefixlen=int(length), **flags)

    netns.run(work)


def _forward() -> None:
    for setting in ("ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", setting).write_text("1")


def _configure_node(addresses: dict[int, str]) -> None:
    _forward()
    with IPRoute() as route:
        nic, lo = (route.link_lookup(ifname=name)[0] for name in ("ens0", "lo"))
        route.link("set", index=lo, state="up")
        route.addr("add", index=nic, address=addresses[4], prefixlen=16)
        route.addr("add", index=nic, address=addresses[6], prefixlen=64, flags=2)
        route.link("set", index=nic, state="up")
        route.route("add", dst="default", gateway=address("a", 1), proto=3)
        route.route("add", dst="default", gateway=address("a", 1, 6), family=socket.AF_INET6, proto=3)


def _configure_router() -> None:
    _forward()
    with IPRoute() as route:
        host, lo = (route.link_lookup(ifname=name)[0] for name in ("host", "lo"))
        route.link("set", index=lo, state="up")
        route.addr("add", index=lo, address=WORLD[4], prefixlen=32)
        route.addr("add", index=lo, address=WORLD[6], prefixlen=128, flags=2)
        for network in NETWORKS:
            route.addr("add", index=host, address=address(network, 1), prefixlen=16)
            route.addr("add", index=host, address=address(network, 1, 6), prefixlen=64, flags=2)


def served(server: Netns, client: Netns, at: str, *, known_as: str = "", source: str = "", timeout: float = 5.0) -> str:
    """The address that a TCP server at `at` sees a client have; raises `OSError` when they don't get together.

    The client knows the server by another address, perhaps, and has an address of its own choice, perhaps.
    """
    family = socket.AF_INET6 if ":" in at else socket.AF_INET

    def made() -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM)

    with server.run(made) as listener, client.run(made) as caller:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((at, 8080))
        listener.listen()
        listener.settimeout(timeout)
        caller.settimeout(timeout)
        if source:
            caller.bind((source, 0))
        caller.connect((known_as or at, 8080))
        answering, peer = listener.accept()
        with answering:
            answering.sendall(str(peer[0]).encode())
        return caller.recv(100).decode()
