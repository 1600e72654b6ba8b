"""CHECK against whatever an ADD makes: each object by itself is taken away, or changed, and has to be named.

What there is to take away is not listed here but read from the kernel, before the ADD and behind it.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import IPRoute
from pyroute2.nftables.main import NFTables

from actors.agent import Agent
from api import wire
from api.networks import Bandwidth
from api.reasons import Explanation
from api.route import Route
from cni.errors import StateDiffers
from cni.protocol import parse_invocation
from tests.netns import Netns
from tests.node.agents import serving
from tests.node.conftest import Segment
from tests.node.test_doors import Played

pytestmark = [pytest.mark.node, pytest.mark.blocking]

NICS: dict[str, dict[str, Any]] = {
    "eth0": {"vethLinkAddress": "169.254.9.9"},
    "net1": {"podMACPrefix": "0a:1b", "txQueueLen": 77, "policyRoutes": [{"dst": "192.0.2.0/24", "gw": "10.78.0.1"}]},
}
SHARED = {4: "198.51.100.0/24", 6: "2001:db8:1::/64"}
"""A route in the pools of both."""
FAMILIES = {socket.AF_INET: 4, socket.AF_INET6: 6}
SETTINGS = ("ipv4/conf/{}/rp_filter", "ipv6/conf/{}/disable_ipv6")

type Harm = Callable[[], object]


class Controller(Played):
    """Grants each interface addresses in a network of its own."""

    def answer(self, request: wire.Request) -> wire.Response:
        if not isinstance(request, wire.Allocate):
            return super().answer(request)
        net = 7 if request.nic == "eth0" else 8
        gateways = {4: f"10.7{net}.0.1", 6: f"fd7{net}::1"}
        return wire.Allocated(
            addresses=(
                wire.Address(4, f"10.7{net}.0.50/24", "four", gateways[4]),
                wire.Address(6, f"fd7{net}::50/64", "six", gateways[6]),
            ),
            routes=tuple(
                Route(destination, gateways[version])
                for version in (4, 6)
                for destination in ({4: "0.0.0.0/0", 6: "::/0"}[version], SHARED[version])
            ),
            explanation=Explanation(),
            pod_uid="u1",
            coordinator=wire.Coordination(service_cidr=("10.233.0.0/18", "fd00:233::/112")),
            bandwidth=Bandwidth(ingress_rate=8_000_000, egress_rate=4_000_000),
        )


def _node() -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname="up0")[0]
        route.addr("add", index=index, address="10.77.0.2", prefixlen=24)
        route.addr("add", index=index, address="fd77::2", prefixlen=64, flags=2)


def objects() -> dict[str, Harm]:
    """What is in a namespace, by words for it, and how to take or change it."""
    with IPRoute() as route:
        names = {one["index"]: one.get_attr("IFLA_IFNAME") for one in route.get_links()}
        found = dict(_links(route, names))
        found.update(_ip(route, names))
        for one in route.get_qdiscs():
            kind, index = one.get_attr("TCA_KIND"), one["index"]
            if kind in {"tbf", "clsact"}:
                how: dict[str, Any] = {"kind": "clsact"} if kind == "clsact" else {"parent": one["parent"]}
                found[f"queue {kind} of {names[index]}"] = _asked("tc", "del", index=index, **how)
    for setting in SETTINGS:
        for name in (*names.values(), "all"):
            path = Path("/proc/sys/net", setting.format(name))
            if path.exists() and not name.startswith(("lo", "ifb")):
                found[f"setting {path}"] = lambda path=path: path.write_text("1")  # type: ignore[misc]
    for family, version in FAMILIES.items():
        with NFTables(nfgen_family=family) as tables:
            found |= {
                f"rules of chain {one.get_attr('NFTA_RULE_CHAIN')} of IPv{version}": _without_rules(
                    family, one.get_attr("NFTA_RULE_TABLE"), one.get_attr("NFTA_RULE_CHAIN")
                )
                for one in tables.get_rules()
            }
    return found


def _links(route: IPRoute, names: dict[int, str]) -> Iterator[tuple[str, Harm]]:
    for one in route.get_links():
        index, name = one["index"], names[one["index"]]
        yield f"link {name}", _asked("link", "del", index=index)
        yield f"link {name} up", _asked("link", "set", index=index, state="down")
        if not name.startswith("ifb"):
            yield f"MAC of {name}", _asked("link", "set", index=index, address="02:00:00:00:00:77")


def _ip(route: IPRoute, names: dict[int, str]) -> Iterator[tuple[str, Harm]]:
    for one in route.get_addr():
        at, length, index = one.get_attr("IFA_ADDRESS"), one["prefixlen"], one["index"]
        if one["scope"] != 253:
            yield f"{at} of {names[index]}", _asked("addr", "del", index=index, address=at, prefixlen=length)
    for family, version in FAMILIES.items():
        for one in route.get_routes(family=family):
            to, table = one.get_attr("RTA_DST"), one.get_attr("RTA_TABLE")
            if table == 255 or str(to).startswith(("fe80", "ff")):
                continue
            for hop in one.get_attr("RTA_MULTIPATH") or [one]:
                oif, via = hop.get_attr("RTA_OIF") or hop["oif"], hop.get_attr("RTA_GATEWAY")
                how = {"dst": f"{to}/{one['dst_len']}" if to else {4: "0.0.0.0/0", 6: "::/0"}[version], "table": table}
                more = {"oif": oif, "family": family, "scope": one["scope"], **({"gateway": via} if via else {})}
                yield f"route {how} via {via} of {names[oif]}", _asked("route", "del", **how, **more)
    yield from _rules_and_neighbours(route, names)


def _rules_and_neighbours(route: IPRoute, names: dict[int, str]) -> Iterator[tuple[str, Harm]]:
    for family in FAMILIES:
        for one in route.get_rules(family=family):
            wanted = {"table": one.get_attr("FRA_TABLE"), "priority": one.get_attr("FRA_PRIORITY"), "family": family}
            if wanted["table"] in {253, 254, 255}:
                continue
            if one.get_attr("FRA_SRC"):
                wanted |= {"src": one.get_attr("FRA_SRC"), "src_len": one["src_len"]}
            if one.get_attr("FRA_FWMARK"):
                wanted["fwmark"] = one.get_attr("FRA_FWMARK")
            yield f"rule {wanted}", _asked("rule", "del", **wanted)
        for one in route.get_neighbours(family=family):
            at, index = one.get_attr("NDA_DST"), one["ifindex"]
            if one["state"] & 0x80:
                yield f"neighbour {at} of {names[index]}", _asked("neigh", "del", dst=at, ifindex=index, family=family)


def _asked(what: str, verb: str, **how: Any) -> Harm:
    def harm() -> None:
        with IPRoute() as route:
            getattr(route, what)(verb, **how)

    return harm


def _without_rules(family: int, table: str, chain: str) -> Harm:
    def harm() -> None:
        with NFTables(nfgen_family=family) as tables:
            tables.begin()
            tables.rule("del", table=table, chain=chain)
            tables.commit()

    return harm


class Pod:
    """One with two interfaces, as its runtime sees it."""

    def __init__(self, agent: Agent, netns: Netns) -> None:
        self._agent = agent
        self.netns = netns
        self._results: dict[str, Any] = {}

    async def call(self, verb: str, ifname: str, **more: Any) -> bytes:
        conf: dict[str, Any] = {"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "master": "up0", "mtu": 1400}
        conf |= {"ipam": {"type": "spiderpool"}, "coordinator": {"mode": "auto", **NICS[ifname]}, **more}
        headers = {
            "cni-type": "macvlan",
            "cni-command": verb,
            "cni-containerid": "c1",
            "cni-netns": str(self.netns.path),
            "cni-ifname": ifname,
            "cni-path": "/nowhere",
            "cni-args": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=p1;K8S_POD_UID=u1",
        }
        return await self._agent.invoke(parse_invocation(headers, msgspec.json.encode(conf)))

    async def add(self) -> None:
        for ifname in NICS:
            self._results[ifname] = json.loads(await self.call("ADD", ifname))

    async def check(self) -> list[str]:
        """What it says of all interfaces."""
        said = []
        for ifname in NICS:
            try:
                await self.call("CHECK", ifname, prevResult=self._results[ifname])
            except StateDiffers as error:
                said.append(str(error))
        return said

    async def delete(self) -> None:
        for ifname in reversed(NICS):
            await self.call("DEL", ifname)

    async def seen(self) -> tuple[dict[str, Harm], dict[str, Harm]]:
        """In the pod, and on the node."""
        return await asyncio.to_thread(self.netns.run, objects), await asyncio.to_thread(objects)


def _new(before: Sequence[dict[str, Harm]], after: Sequence[dict[str, Harm]]) -> list[tuple[int, str]]:
    return sorted((where, name) for where, there in enumerate(after) for name in there.keys() - before[where].keys())


async def test_whatever_is_missing_is_told(segment: Segment, tmp_path: Path) -> None:
    await asyncio.to_thread(_node)
    async with serving(tmp_path, Controller()) as agent:
        pod = Pod(agent, segment.container())
        before = await pod.seen()
        await pod.add()
        assert await pod.check() == []
        made = _new(before, await pod.seen())
        await pod.add()
        assert _new(before, await pod.seen()) == made
        assert len(made) > 60
        await pod.delete()
        silent = []
        for where, name in made:
            pod.netns = segment.container()
            await pod.add()
            harm = (await pod.seen())[where][name]
            await asyncio.to_thread(harm if where else lambda harm=harm: pod.netns.run(harm))  # type: ignore[misc]
            if not await pod.check():
                silent.append(name)
            await pod.delete()
            left = await pod.seen()
            assert not {one for one in left[1].keys() - before[1] if not one.startswith("rule")}, f"without {name}"
        assert silent == []
