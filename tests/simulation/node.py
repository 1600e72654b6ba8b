"""A node of the simulated cluster: kernel, journal and claims in memory, which survive a crash of the agent."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from typing import Self

import anyio
import anyio.lowlevel

from cni.bandwidth import LimitPlan
from cni.coordination import CoordinationPlan, NodeView, Pair, PodLink, PodView, Survey
from cni.detection import Conflict, Findings, ProbePlan
from cni.errors import TryAgainLater
from cni.journal import JournalEntry, Key
from cni.parents import ParentPlan
from cni.plan import AddressPlan, Inspection, LinkPlan, LinkState


class Violation(AssertionError):
    """An invariant of the protocol does not hold."""


type Point = Callable[[str], Awaitable[None]]
"""Called before and after everything that lasts: the process that does it may be made to die right there."""


class MemoryDisk:
    """What of a node's journal survives its agents, and which agent has claimed which container."""

    def __init__(self, point: Point) -> None:
        self.entries: dict[Key, JournalEntry] = {}
        self.claims: dict[str, MemoryJournal] = {}
        self.point = point


class MemoryJournal:
    """`actors.node.disk.Journal` of one agent's life, on a disk that other lives share."""

    def __init__(self, disk: MemoryDisk, *, claims: bool = True) -> None:
        """Without `claims` nobody is kept away from anything: the negative control."""
        self._disk = disk
        self._claims = claims
        self._uses: Counter[str] = Counter()

    @property
    def entries(self) -> dict[Key, JournalEntry]:
        return self._disk.entries

    def died(self) -> None:
        """The process has ended, however: the kernel drops its locks."""
        for container_id in [cid for cid, holder in self._disk.claims.items() if holder is self]:
            del self._disk.claims[container_id]
        self._claims = False

    @asynccontextmanager
    async def claim(self, container_id: str, *, seconds: float) -> AsyncIterator[None]:
        if not self._claims:
            yield
            return
        with anyio.move_on_after(seconds) as limit:
            while self._disk.claims.setdefault(container_id, self) is not self:  # noqa: ASYNC110 - virtual time
                await anyio.sleep(0.01)
        if limit.cancelled_caught:
            msg = "another agent has it"
            raise TryAgainLater(msg)
        self._uses[container_id] += 1
        try:
            yield
        finally:
            self._uses[container_id] -= 1
            if not self._uses[container_id] and self._disk.claims.get(container_id) is self:
                del self._disk.claims[container_id]

    async def get(self, *keys: Key) -> list[JournalEntry | None]:
        await anyio.sleep(0.00005)
        return [self.entries.get(key) for key in keys]

    async def of(self, container_id: str) -> list[JournalEntry]:
        await anyio.sleep(0.00005)
        return [entry for key, entry in self.entries.items() if key.container_id == container_id]

    async def load(self) -> list[JournalEntry]:
        await anyio.lowlevel.checkpoint()
        return list(self.entries.values())

    async def put(self, entry: JournalEntry) -> None:
        await self._disk.point(f"before journal.put {entry.state}")
        await anyio.sleep(0.0002)
        self.entries[entry.key] = entry
        await self._disk.point(f"after journal.put {entry.state}")

    async def check(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def remove(self, key: Key) -> None:
        await self._disk.point("before journal.remove")
        await anyio.sleep(0.0002)
        self.entries.pop(key, None)
        await self._disk.point("after journal.remove")


class MemoryDepartures:
    """`cni.kernel.Departures` of a `MemoryKernel`."""

    def __init__(self, watches: list["MemoryDepartures"]) -> None:
        self._watches = watches
        self._gone: deque[str] = deque()
        self._arrived = anyio.Event()
        watches.append(self)

    def cover(self, path: str) -> None:
        """Every path is."""

    def close(self) -> None:
        self._watches.remove(self)

    def tell(self, path: str) -> None:
        self._gone.append(path)
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._gone:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._gone.popleft()


class MemoryKernel:
    """`cni.kernel.Kernel` of namespaces, links and addresses; refuses an address that the segment has already."""

    def __init__(self, segment: dict[str, str], point: Point, strangers: Mapping[str, str] | None = None) -> None:
        """`segment` maps every address that a link of any node carries, and every pod's veth, to where that is.

        `strangers` are hosts that no pool knows of: their MAC addresses by address.
        """
        self._segment = segment
        self._point = point
        self.parents: dict[str, str] = {}
        """By name, who each was made for."""
        self._links: dict[tuple[str, str], tuple[LinkState, list[str]]] = {}
        self._lost: set[str] = set()
        self._watches: list[MemoryDepartures] = []
        self._index = 0
        self._strangers = {} if strangers is None else strangers

    def lose(self, netns: str, *, watched: bool = False) -> None:
        """The namespace goes, with all that is in it, and nobody says a word but, with `watched`, the kernel."""
        self._lost.add(netns)
        for key in [key for key in self._links if key[0] == netns]:
            del self._links[key]
        for what in [what for what, where in self._segment.items() if where == netns]:
            del self._segment[what]
        if watched:
            for watch in self._watches:
                watch.tell(netns)

    def reboot(self) -> set[str]:
        """Every namespace goes; returns which."""
        lost = {netns for netns, _ in self._links}
        for netns in sorted(lost):
            self.lose(netns)
        return lost

    async def attach_link(self, plan: LinkPlan) -> LinkState:
        await self._point("before link.create")
        await anyio.sleep(0.001)
        self._index += 1
        mac = plan.mac or f"02:00:00:00:{self._index // 256:02x}:{self._index % 256:02x}"
        link = LinkState(ifname=plan.ifname, index=self._index, kind=plan.kind, mac=mac, mtu=1500)
        self._links[plan.netns, plan.ifname] = (link, [])
        await self._point("after link.create")
        return link

    async def configure(self, netns: str, ifname: str, plan: AddressPlan) -> None:
        await self._point("before link.configure")
        await anyio.sleep(0.001)
        if (netns, ifname) not in self._links:
            msg = f"the link of {netns} was taken away while its ADD was at work on it"
            raise Violation(msg)
        _, carried = self._links[netns, ifname]
        for address in plan.addresses:
            holder = self._segment.get(address) or self._strangers.get(address.partition("/")[0])
            if holder is not None:
                msg = f"{address} is given to {netns} while {holder} carries it"
                raise Violation(msg)
            self._segment[address] = netns
            carried.append(address)
        await self._point("after link.configure")

    async def direct(self, netns: str, ifname: str, gateways: Sequence[str]) -> None:
        await anyio.lowlevel.checkpoint()

    async def probe(self, plan: ProbePlan) -> Findings:
        await self._point("before probe")
        await anyio.sleep(plan.budget)
        carried = {address.partition("/")[0]: where for address, where in self._segment.items() if where != plan.netns}
        found = [
            Conflict(address, self._strangers.get(address, f"a link in {carried.get(address)}"))
            for address in plan.addresses
            if address in carried or address in self._strangers
        ]
        await self._point("after probe")
        return Findings(ifname=plan.ifname, conflicts=tuple(found))

    async def detach_link(
        self, netns: str, ifname: str, *, kind: str = "", mac: str = "", pair: Pair | None = None
    ) -> bool:
        await self._point("before link.delete")
        await anyio.sleep(0.005)
        _, carried = self._links.pop((netns, ifname), (None, []))
        for address in carried:
            del self._segment[address]
        if pair is not None:
            self._segment.pop(pair.host_veth, None)
        await self._point("after link.delete")
        return bool(carried)

    async def parent_mac(self, plan: LinkPlan) -> str:
        await anyio.lowlevel.checkpoint()
        return "02:ff:00:00:00:01"

    async def possible_parents(self) -> tuple[tuple[str, str], ...]:
        await anyio.lowlevel.checkpoint()
        return ()

    async def master_networks(self, netns: str, ifname: str) -> tuple[str, ...]:
        await anyio.lowlevel.checkpoint()
        return ()

    async def survey(self, netns: str) -> Survey:
        await anyio.lowlevel.checkpoint()
        links = [
            PodLink(ifname=link.ifname, index=link.index, kind=link.kind, mac=link.mac, addresses=tuple(carried))
            for (where, _), (link, carried) in self._links.items()
            if where == netns
        ]
        node = NodeView(addresses=(("eth0", "10.0.0.1"),), sources=("10.0.0.1",))
        return Survey(pod=PodView(links=tuple(links)), node=node)

    async def coordinate(self, plan: CoordinationPlan) -> None:
        await self._point("before coordinate")
        await anyio.sleep(0.003)
        self._segment[plan.host_veth] = plan.netns
        await self._point("after coordinate")

    async def uncoordinate(self, plan: CoordinationPlan, *, pair: bool = True) -> None:
        await self._point("before uncoordinate")
        await anyio.sleep(0.001)
        if pair:
            self._segment.pop(plan.host_veth, None)
        await self._point("after uncoordinate")

    async def differences(self, plan: CoordinationPlan) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [] if plan.host_veth in self._segment else [f"{plan.host_veth} is missing"]

    async def limit(self, plan: LimitPlan) -> None:
        await self._point("before limit")
        await anyio.sleep(0.001)
        if (plan.netns, plan.ifname) not in self._links:
            msg = f"the link of {plan.netns} was taken away while its ADD was at work on it"
            raise Violation(msg)
        await self._point("after limit")

    async def lifted(self, plan: LimitPlan) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [] if (plan.netns, plan.ifname) in self._links else [f"{plan.ifname} is missing"]

    async def link_differences(self, plan: LinkPlan) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [] if (plan.netns, plan.ifname) in self._links else ["it is gone"]

    async def parent_differences(self, plan: ParentPlan, who: str) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return [] if plan.name in self.parents else [f"{plan.name} is missing"]

    async def ensure_parent(self, plan: ParentPlan, who: str) -> None:
        await anyio.sleep(0.002)
        self.parents.setdefault(plan.name, who)

    async def inspect(self, netns: str, ifname: str) -> Inspection | None:
        await anyio.lowlevel.checkpoint()
        found = self._links.get((netns, ifname))
        if found is None:
            return None
        networks = tuple(str(ip_interface(one).network) for one in found[1])
        return Inspection(link=found[0], addresses=tuple(found[1]), networks=networks)

    async def knows(self, kind: str) -> bool:
        await anyio.lowlevel.checkpoint()
        return True

    async def netns_exists(self, netns: str) -> bool:
        await anyio.lowlevel.checkpoint()
        return netns not in self._lost

    async def vanished(self, paths: Sequence[str]) -> frozenset[str]:
        await anyio.lowlevel.checkpoint()
        return frozenset(self._lost.intersection(paths))

    async def paired(self, pair: Pair) -> bool:
        await anyio.lowlevel.checkpoint()
        return pair.host_veth in self._segment

    async def carried(self, addresses: Sequence[str]) -> frozenset[str]:
        await anyio.lowlevel.checkpoint()
        here = {address.partition("/")[0] for _, carried in self._links.values() for address in carried}
        return frozenset(address for address in addresses if address.partition("/")[0] in here)

    def departures(self) -> MemoryDepartures:
        return MemoryDepartures(self._watches)

    async def carries(self, netns: str, ifname: str, addresses: Sequence[str] = ()) -> bool:
        await anyio.lowlevel.checkpoint()
        return (netns, ifname) in self._links
