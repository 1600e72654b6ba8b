"""Configurations that cannot be, and a node that is not as they say: a whole agent on the real kernel.

Each error has the code that the CNI specification or this project gives to it and names the object and the value.
Behind it node and namespace are as before, nothing is in the journal, and the addresses that were granted meanwhile go
back. A DEL of the same succeeds.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import IPRoute

from actors.agent import Agent
from api import wire
from cni.errors import CniError
from cni.journal import Journal, State
from cni.protocol import parse_invocation
from tests.node.agents import serving
from tests.node.conftest import Segment
from tests.node.picture import picture
from tests.node.test_doors import Played

pytestmark = [pytest.mark.node, pytest.mark.blocking]

IPAM = {"type": "spiderpool"}
CASES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "missing parent": ({"master": "nope"}, 7, ["master", '"nope"', "this node"]),
    "missing parent of a long name": (
        {"master": "enp1s0f0npf0vf0-not-here"},
        7,
        ["master", '"enp1s0f0npf0vf0-not-here"'],
    ),
    "missing parent of a name that no link can have": ({"master": "x" * 5000}, 7, ["master", '"xxx']),
    "missing parent, whose name begins as another's": ({"master": "up0\0x"}, 7, ["master", "up0", "x"]),
    "missing parent in the container": (
        {"master": "net7", "linkInContainer": True},
        7,
        ["master", '"net7"', "{netns}"],
    ),
    "parent down": ({"master": "up1"}, 7, ["master", '"up1"', "down"]),
    "parent that takes no links": ({"master": "up0-port"}, 100, ["up0-port", "{netns}", "lan"]),
    "unknown mode": ({"mode": "source"}, 7, ["mode", '"source"', "bridge, private, vepa, passthru"]),
    "unknown mode of ipvlan": ({"type": "ipvlan", "mode": "l4"}, 7, ["mode", '"l4"', "l2, l3, l3s"]),
    "NIC name taken": ({"ifname": "taken"}, 101, ["CNI_IFNAME", "taken", "{netns}"]),
    "NIC name that the kernel would complete": ({"ifname": "net%d"}, 4, ["CNI_IFNAME", '"net%d"', "%"]),
    "netns gone": ({"netns": "/run/netns/gone"}, 8, ["/run/netns/gone"]),
    "netns that is none": ({"netns": "/etc/hostname"}, 8, ["/etc/hostname"]),
    "MTU above the parent's": ({"mtu": 1501}, 7, ["mtu", "1501", "1500", "up0"]),
    "MTU that is too small": ({"mtu": 10}, 100, ["mtu 10", "up0", "{netns}"]),
    "MTU that is no number for the kernel": ({"mtu": 2**33}, 7, ["mtu", str(2**33)]),
    "queue that is too long": ({"bcqueuelen": 2**33}, 7, ["bcqueuelen", str(2**33)]),
    "transmit queue that is too long": ({"coordinator": {"txQueueLen": 2**33}}, 7, ["txQueueLen", str(2**33)]),
    "MAC address that is none": ({"mac": "02:00:00:00:00"}, 7, ["mac", '"02:00:00:00:00"']),
    "MAC address of a group": ({"mac": "01:00:5e:00:00:01"}, 7, ["mac", '"01:00:5e:00:00:01"']),
    "VLAN id": ({"type": "vlan", "vlanId": 4095}, 7, ["vlanId", "4095"]),
    "VLAN id missing": ({"type": "vlan"}, 7, ["vlanId"]),
    "VLAN protocol": ({"type": "vlan", "vlanId": 5, "vlanProto": "802.1x"}, 7, ["vlanProto", '"802.1x"']),
    "VF that is not there": (
        {"type": "sriov", "deviceID": "0000:ff:00.7"},
        7,
        ["deviceID", '"0000:ff:00.7"', "this node"],
    ),
    "VF of a name": ({"type": "sriov", "deviceID": "up0"}, 7, ["deviceID", '"up0"', "PCI"]),
    "PF that is none": ({"type": "sriov", "master": "up0"}, 7, ["master", '"up0"', "PCI"]),
    "PF of a path": ({"type": "sriov", "master": "../../lo"}, 7, ["master", '"../../lo"', "this node"]),
    "bond name that the kernel would complete": (
        {"type": "ifacer", "interfaces": ["up0", "up1"], "bond": {"name": "bond%d"}},
        7,
        ["bond.name", '"bond%d"', "%"],
    ),
    "parent to be that is not there": (
        {"type": "ifacer", "interfaces": ["up9"], "vlanID": 5},
        7,
        ["interfaces[0]", '"up9"'],
    ),
    "resolver that is none": ({"dns": {"nameservers": "10.6.0.53"}}, 7, ["dns.nameservers", '"10.6.0.53"']),
    "rate without sense": ({"runtimeConfig": {"bandwidth": {"egressRate": 5}}}, 7, ["egressRate", "5"]),
}


class Node:
    """An agent with a controller that grants everything and is told what goes back."""

    def __init__(self, folder: Path, segment: Segment) -> None:
        self.state = folder
        self.netns = segment.container()
        self.controller = Played()
        self._segment = segment

    async def call(self, agent: Agent, verb: str, conf: dict[str, Any]) -> bytes:
        conf = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "up0", "ipam": IPAM, **conf}
        netns, ifname = conf.pop("netns", str(self.netns.path)), conf.pop("ifname", "eth0")
        headers = {
            "cni-type": conf["type"],
            "cni-command": verb,
            "cni-containerid": "c1",
            "cni-netns": netns,
            "cni-ifname": ifname.replace("%", "%25"),
            "cni-path": "/nowhere",
            "cni-args": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1;K8S_POD_UID=u1",
        }
        return await agent.invoke(parse_invocation(headers, msgspec.json.encode(conf)))

    async def seen(self) -> object:
        return await asyncio.to_thread(self._look)

    def _look(self) -> object:
        with IPRoute() as route:
            links = {(one.get_attr("IFLA_IFNAME"), one.get_attr("IFLA_MTU"), one["state"]) for one in route.get_links()}
        entries = Journal(self.state / "journal").load_all()
        return links, picture(self.netns), [one.key for one in entries if one.state is not State.RELEASING]

    async def all_back(self) -> None:
        """Wait until no address is granted that was not given back."""
        for _ in range(2000):
            if len(self.controller.of(wire.Allocate)) <= len(self.controller.of(wire.Release)):
                return
            await asyncio.sleep(0.005)
        raise TimeoutError(self.controller.asked)


@pytest.fixture
def node(segment: Segment, tmp_path: Path) -> Node:
    made = Node(tmp_path, segment)
    made.netns.run(_take)
    with IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="up1")[0], state="down")
    return made


def _take() -> None:
    with IPRoute() as route:
        route.link("add", ifname="taken", kind="veth", peer={"ifname": "taken-x"})


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_is_named_and_undone(node: Node, case: str) -> None:
    conf, code, named = CASES[case]
    asyncio.run(_refused(node, conf, code, [one.format(netns=node.netns.path) for one in named]))


async def _refused(node: Node, conf: dict[str, Any], code: int, named: list[str]) -> None:
    before = await node.seen()
    async with serving(node.state, node.controller) as agent:
        for _ in range(2):  # what was undone is no hindrance
            with pytest.raises(CniError) as caught:
                await node.call(agent, "ADD", conf)
            assert caught.value.code == code, repr(caught.value)
            assert [one for one in named if one not in str(caught.value)] == [], str(caught.value)
            await node.all_back()
            assert await node.seen() == before
        await node.call(agent, "DEL", conf)  # a pod must be able to go
    assert await node.seen() == before


def test_what_can_be_is_there_and_goes(node: Node) -> None:
    """Negative control: something is seen of what stands, and of addresses that were not given back."""

    async def work() -> None:
        before = await node.seen()
        async with serving(node.state, node.controller) as agent:
            dns = {"nameservers": ["10.6.0.53"], "search": ["example.com"]}
            answer = msgspec.json.decode(await node.call(agent, "ADD", {"mtu": 1400, "dns": dns}))
            assert answer["dns"] == dns, "as the reference plugins pass it on"
            assert await node.seen() != before
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(node.all_back(), 0.05)
            await node.call(agent, "DEL", {"mtu": 1400})
            await node.all_back()
        assert await node.seen() == before

    asyncio.run(work())
