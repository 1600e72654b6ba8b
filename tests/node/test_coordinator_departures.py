"""NICs of ours beside an overlay's that go at the same moment: they leave the pod, which lives on, as it was before.

A whole agent on the real kernel is told of each NIC by calls of its own, as below a Multus, or of all by one, when it
is the meta plugin itself.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import IPRoute

from actors.agent import Agent
from actors.node.meta import Meta
from api import wire
from api.reasons import Explanation
from api.route import Route
from cni.coordination import CoordinationPlan, RoutePlan
from cni.delegate import ExecutedDelegates
from cni.journal import Journal, State
from cni.netlink import coordinator
from cni.protocol import parse_invocation
from tests.node.agents import serving
from tests.node.conftest import Segment
from tests.node.lan import CLUSTER, Lan, Pod, address, assign, lan_on
from tests.node.picture import picture
from tests.node.test_doors import Played

pytestmark = [pytest.mark.node, pytest.mark.blocking]

NETWORKS = {"net1": "a", "net2": "b", "net3": "c"}
LASTING = {"rule4 1000 lookup 500", "rule6 1000 lookup 500"}
"""The node's rules stay while there is an agent."""
TWO = [*itertools.permutations(("net1", "net2"))]
THREE = [*itertools.permutations(NETWORKS)]


class Controller(Played):
    """Grants each NIC the addresses of its network, and says what the cluster's settings are."""

    def __init__(self, number: int, networks: tuple[wire.NetworkDefinition, ...] = ()) -> None:
        super().__init__()
        self.cluster = CLUSTER
        self._number = number
        self._networks = networks

    def answer(self, request: wire.Request) -> wire.Response:
        match request:
            case wire.Allocate():
                first, *others = (self._grant(one) for one in (request.nic, *(one.nic for one in request.more)))
                return wire.Allocated(
                    addresses=first.addresses,
                    routes=first.routes,
                    explanation=Explanation(),
                    pod_uid="u1",
                    others=tuple(others),
                    coordinator=self.cluster,
                )
            case wire.FindCoordinator():
                return wire.FoundCoordinator(self.cluster)
            case wire.FindNetworks():
                return wire.Networked(pod_uid="u1", networks=self._networks)
            case wire.SetNetworkStatus():
                return wire.Stored()
        return super().answer(request)

    def _grant(self, nic: str) -> wire.NicGrant:
        network = NETWORKS[nic]
        own, gateways = ([address(network, one, version) for version in (4, 6)] for one in (self._number, 1))
        return wire.NicGrant(
            nic,
            (
                wire.Address(4, f"{own[0]}/16", network, gateways[0]),
                wire.Address(6, f"{own[1]}/64", network, gateways[1]),
            ),
            (Route("0.0.0.0/0", gateways[0]), Route("::/0", gateways[1])),
        )


class Meeting:
    """Whether two NICs at a time look what others of the pod still have; each waits a moment for another one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.held = threading.Event()
        self._looking = 0
        self._look = coordinator._of_others
        patch.setattr(coordinator, "_of_others", self._wait)

    def _wait(self, plan: CoordinationPlan, *rest: Any) -> list[RoutePlan]:
        found = self._look(plan, *rest)
        self._looking += 1
        if self._looking > 1:
            self.held.set()
        self.held.wait(0.1)
        self._looking -= 1
        return found


class Node:
    """An agent in the node's namespace, and a pod with an overlay's `eth0`."""

    def __init__(self, lan: Lan, folder: Path, meeting: Meeting) -> None:
        self.lan = lan
        self.folder = folder
        self.meeting = meeting
        self.pod: Pod = lan.pod(versions=(4, 6))
        self.pod.overlay()
        self.controller = Controller(self.pod.number)
        self.meta: Meta | None = None
        self.before = self.look()

    def look(self) -> tuple[set[str], set[str]]:
        """What the pod has, and its node."""
        return picture(self.pod.netns), picture(self.lan.node) - LASTING

    def live(self, story: Callable[[Agent], Awaitable[None]]) -> None:
        """Have an agent while the story lasts."""

        async def life() -> None:
            async with serving(self.folder, self.controller, meta=self.meta) as agent:
                await story(agent)

        self.lan.node.run(lambda: asyncio.run(life()))

    async def call(self, agent: Agent, verb: str, kind: str, ifname: str, **conf: Any) -> dict[str, Any]:
        """One CNI call."""
        headers = {
            "cni-type": kind,
            "cni-command": verb,
            "cni-containerid": self.pod.container_id,
            "cni-netns": self.pod.path,
            "cni-ifname": ifname,
            "cni-path": str(self.folder),
            "cni-args": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1;K8S_POD_UID=u1",
        }
        conf = {"cniVersion": "1.0.0", "name": "lan", "type": kind, **conf}
        answer = await agent.invoke(parse_invocation(headers, json.dumps(conf).encode()))
        return json.loads(answer) if answer else {}

    async def add(self, agent: Agent, nic: str, **conf: Any) -> None:
        """As a Multus adds one NIC."""
        made = await self.call(agent, "ADD", "macvlan", nic, **MAIN)
        await self.call(agent, "ADD", "coordinator", nic, prevResult=made, **conf)

    async def delete(self, agent: Agent, nic: str) -> None:
        """And removes it."""
        await self.call(agent, "DEL", "coordinator", nic)
        await self.call(agent, "DEL", "macvlan", nic, **MAIN)

    def nothing_left(self) -> None:
        """The pod and its node are as they were, and nobody has looked while another one did."""
        entries = Journal(self.folder / "journal").load_all()
        assert [one.key for one in entries if one.state is not State.RELEASING] == []
        assert self.look() == self.before
        assert not self.meeting.held.is_set()


MAIN = {"master": "ens0", "ipam": {"type": "spiderpool"}}


@pytest.fixture
def node(segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    with lan_on(segment) as lan:
        yield Node(lan, tmp_path, Meeting(monkeypatch))


@pytest.mark.parametrize("order", [*TWO, *THREE], ids="-".join)
def test_by_calls_of_their_own(node: Node, order: tuple[str, ...]) -> None:
    """All of them are with the agent before the first one is answered, in this order."""

    async def come_and_go(agent: Agent) -> None:
        for nic in sorted(order):
            await node.add(agent, nic)
        assert node.look() != node.before
        async with asyncio.TaskGroup() as calls:
            for nic in order:
                calls.create_task(node.delete(agent, nic))

    node.live(come_and_go)
    node.nothing_left()


@pytest.mark.parametrize("order", TWO, ids="-".join)
def test_the_clusters_settings_change_in_between(node: Node, order: tuple[str, ...]) -> None:
    """What net1 brought for all goes with the last one, though net2's settings would have brought something else."""

    async def come_and_go(agent: Agent) -> None:
        await node.add(agent, "net1")
        node.controller.cluster = msgspec.structs.replace(
            CLUSTER, service_cidr=("10.96.0.0/16", "fd00:96::/112"), hijack_cidr=(), overlay_pod_cidr=("10.99.0.0/16",)
        )
        await node.add(agent, "net2")
        assert "254: 10.233.0.0/18 via 172.100.0.2 dev eth0 src 10.233.105.210" in node.look()[0] - node.before[0]
        for nic in order:
            await node.delete(agent, nic)

    node.live(come_and_go)
    node.nothing_left()


@pytest.mark.parametrize("order", TWO, ids="-".join)
@pytest.mark.parametrize("comes", [True, False], ids=["comes", "goes"])
def test_an_address_of_the_node_changes_in_between(node: Node, order: tuple[str, ...], comes: bool) -> None:
    """One NIC knows it, the other does not."""
    more = ("192.0.2.77/32", "2001:db8:77::1/128")
    if not comes:
        assign(node.lan.node, "ens0", *more)

    async def come_and_go(agent: Agent) -> None:
        await node.add(agent, "net1")
        if comes:
            assign(node.lan.node, "ens0", *more)
        else:
            unassign(node.lan, *more)
        await node.add(agent, "net2")
        for nic in order:
            await node.delete(agent, nic)
        if comes:
            unassign(node.lan, *more)

    node.live(come_and_go)
    node.nothing_left()


def unassign(lan: Lan, *addresses: str) -> None:
    """The node has these addresses no more."""

    def work() -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname="ens0")[0]
            for one in addresses:
                at, _, length = one.partition("/")
                route.addr("del", index=index, address=at, prefixlen=int(length))

    lan.node.run(work)


@pytest.mark.parametrize("nics", [2, 3])
def test_by_one_call(node: Node, nics: int) -> None:
    """We attach the pod. The overlay leaves its link to the namespace, which may be there for long."""
    (node.folder / "10-pods.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "played-overlay"}]})
    )
    made = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": node.pod.path}],
        "ips": [{"address": f"{node.pod.overlay_address}/32", "interface": 0}],
    }
    plugin = node.folder / "played-overlay"
    plugin.write_text(f"#!/bin/sh\n[ $CNI_COMMAND = DEL ] || echo '{json.dumps(made)}'\n")
    plugin.chmod(0o755)
    main = {"cniVersion": "1.0.0", "type": "macvlan", "coordinator": {"mode": "auto"}, **MAIN}
    node.controller = Controller(
        node.pod.number,
        tuple(
            wire.NetworkDefinition(
                namespace="default", name=network, interface=nic, config=json.dumps({**main, "name": network})
            )
            for nic, network in [*NETWORKS.items()][:nics]
        ),
    )
    node.meta = Meta(delegates=ExecutedDelegates(), conf_dir=node.folder)
    head = {"networks": True, "clusterNetwork": "pods", **MAIN}

    async def come_and_go(agent: Agent) -> None:
        await node.call(agent, "ADD", "macvlan", "eth0", **head)
        assert {f"link {nic}" for nic in [*NETWORKS][:nics]} <= node.look()[0]
        await node.call(agent, "DEL", "macvlan", "eth0", **head)

    node.live(come_and_go)
    node.nothing_left()
