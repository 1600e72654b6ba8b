"""CHECK of the way between pod and node: what somebody changed is named."""

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from cni.netlink import nftables
from cni.netlink.nftables import FilterSocket
from tests.node.conftest import Segment
from tests.node.lan import NODE, Lan, lan_on

pytestmark = pytest.mark.node

OWN = "172.200.0.210"

type Harm = Callable[[IPRoute, dict[str, int], str], object]
"""Does it, given links by name and the name of the node's end."""


@pytest.fixture
def lan(segment: Segment) -> Iterator[Lan]:
    with lan_on(segment) as made:
        yield made


def _swap(route: IPRoute, links: dict[str, int], _: str) -> None:
    route.addr("add", index=links["net1"], address="172.200.0.9", prefixlen=16)
    route.addr("del", index=links["net1"], address=OWN, prefixlen=16)


def _unmark(*_: object) -> None:
    with FilterSocket() as sockets:
        nftables.remove(sockets, (4,))


def _empty(*_: object) -> None:
    with NFTables(nfgen_family=socket.AF_INET) as tables:
        tables.begin()
        tables.rule("del", table=nftables.TABLE, chain="output")
        tables.commit()


def _filter(*_: object) -> None:
    Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("1")


def _filter_on(ifname: str) -> Harm:
    return lambda *_: Path(f"/proc/sys/net/ipv4/conf/{ifname}/rp_filter").write_text("1")


IN_THE_POD: dict[str, Harm] = {
    f"the pod lacks the IPv4 rule from {OWN}/32 lookup 101": lambda route, _, __: route.rule(
        "del", priority=1001, src=OWN, src_len=32, table=101
    ),
    "the pod lacks the IPv4 rule for mark 1 lookup 100": lambda route, _, __: route.rule(
        "del", priority=1000, fwmark=1, table=100
    ),
    "net1 lacks the route to 0.0.0.0/0 in table 101": lambda route, _, __: route.route(
        "del", dst="0.0.0.0/0", table=101, family=2
    ),
    "net1 has the route to 0.0.0.0/0 in table 254 again": lambda route, links, _: route.route(
        "append", dst="default", gateway="172.200.0.1", oif=links["net1"]
    ),
    f"net1 lacks {OWN}": _swap,
    "net1 has MAC address .*, not 0a:1b:ac:c8:00:d2": lambda route, links, _: route.link(
        "set", index=links["net1"], address="02:00:00:00:00:09"
    ),
    "net1 has a transmit queue of 5, not 77": lambda route, links, _: route.link("set", index=links["net1"], txqlen=5),
    "net1 is down": lambda route, links, _: route.link("set", index=links["net1"], state="down"),
    "net1 is missing in": lambda route, links, _: route.link("del", index=links["net1"]),
    "veth0 has MTU 1300, not 1500": lambda route, links, _: route.link("set", index=links["veth0"], mtu=1300),
    "veth0 has MAC address 02:00:00:00:00:09": lambda route, links, _: route.link(
        "set", index=links["veth0"], address="02:00:00:00:00:09"
    ),
    "veth0 lacks the address 169.254.9.9/32": lambda route, links, _: route.addr(
        "del", index=links["veth0"], address="169.254.9.9", prefixlen=32
    ),
    "veth0 lacks the permanent neighbour 172.100.0.2 with": lambda route, links, _: route.neigh(
        "del", dst=NODE[4], ifindex=links["veth0"]
    ),
    "rp_filter of the pod is 1, not 0": _filter,
    "net1 has rp_filter 1, not 0": _filter_on("net1"),
    "veth0 has rp_filter 1, not 0": _filter_on("veth0"),
    "^nf_tables table spiderpool of IPv4 is missing in the pod": _unmark,
    "^the rule of chain output in nf_tables table spiderpool of IPv4 is missing in the pod": _empty,
}
ON_THE_NODE: dict[str, Harm] = {
    "is missing on the node": lambda route, links, near: route.link("del", index=links[near]),
    f"lacks the permanent neighbour {OWN} with": lambda route, links, near: route.neigh(
        "del", dst=OWN, ifindex=links[near]
    ),
    f"lacks the route to {OWN}/32 in table 500": lambda route, _, __: route.route(
        "del", dst=f"{OWN}/32", table=500, scope=253
    ),
    "the node lacks the IPv4 rule 1000 lookup 500": lambda route, _, __: route.rule("del", priority=1000, table=500),
    "veth.* has rp_filter 1, which drops": lambda route, links, near: _filter_on(near)(route, links, near),
    "has MTU 1300, not 1500": lambda route, links, near: route.link("set", index=links[near], mtu=1300),
    "has MAC address 02:00:00:00:00:09": lambda route, links, near: route.link(
        "set", index=links[near], address="02:00:00:00:00:09"
    ),
}


@pytest.mark.parametrize("words", [*IN_THE_POD, *ON_THE_NODE])
def test_what_differs_is_named(lan: Lan, words: str) -> None:
    pod = lan.pod()
    pod.add("eth0", "a", veth_link_address="169.254.9.9")
    pod.add("net1", "b", pod_mac_prefix="0a:1b", tx_queue_len=77)

    def harm() -> None:
        with IPRoute() as route:
            links = {one.get_attr("IFLA_IFNAME"): one["index"] for one in route.get_links()}
            (IN_THE_POD | ON_THE_NODE)[words](route, links, pod.host_veth)

    assert pod.differences() == []
    (pod.netns if words in IN_THE_POD else lan.node).run(harm)
    assert any(re.search(words, one) for one in pod.differences()), pod.differences()
