"""One interface of a sandbox while it is built: what is known of it so far, and the steps that it still has to take.

The sandbox actor builds all interfaces of a call together. Those that need nothing of each other (links, addresses) do
their step at the same time, what depends on what is there already (routes between the interfaces) is done in order.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import anyio
import msgspec

from actors.node.addressing import pod_ref
from actors.node.pfs import PhysicalFunctions
from api.networks import Bandwidth
from api.route import Route
from api.wire import Allocated, Coordination, NicGrant, NodeLink
from cni import bandwidth, coordination
from cni.coordination import CoordinationPlan, Pair, coordination_plan, pair_of, unchanged
from cni.errors import CniError, InterfaceExists, InvalidNetns, TryAgainLater
from cni.journal import COORDINATOR, JournalEntry, State
from cni.kernel import Kernel
from cni.plan import Assigned, LinkPlan, LinkState, address_plan, assigned_plan, is_assigned, link_plan
from cni.protocol import IPAM_TYPE, Invocation, Role
from cni.result import DEFAULT_ROUTES, Interface, IpConfig, Result, RouteConfig, with_mac
from cni.sriov import KIND, VfPlan, has_rate, vf_plan
from telemetry import traces

_NO_MAC = "00:00:00:00:00:00"


@contextmanager
def naming(invocation: Invocation) -> Iterator[None]:
    """Have an error say which of a pod's networks it is about."""
    try:
        yield
    except CniError as error:
        if invocation.multus:
            error.about(subject(invocation.multus, invocation.ifname))
        raise


def subject(network: str, ifname: str) -> str:
    """How errors name one of a pod's networks."""
    return f"network {network}, interface {ifname}"


class Nic:
    """See the module. Its `entry` is what the journal is to say of it."""

    def __init__(self, invocation: Invocation, *, changed_ns: int) -> None:
        """Nothing is there yet.

        Raises:
            CniError: the configuration cannot be, whatever the cluster says.
        """
        self.invocation = invocation
        self.plan: LinkPlan | VfPlan | None = _plan(invocation)
        if self.plan is not None:
            coordination.check(invocation)
            bandwidth.check(invocation.conf)
        self.entry = blank_entry(invocation, changed_ns=changed_ns)
        self.link: LinkState | None = None
        self.failure: CniError | None = None
        """Why there is no link: then there is nothing of ours to take away."""
        self.grant: NicGrant | None = None
        self.result = Result()
        self._lent = False
        """Whether its virtual function is in the container."""

    def __repr__(self) -> str:
        return f"<Nic {self.ifname} {self.entry.kind}{'' if self.link is None else ' made'}>"

    @property
    def ifname(self) -> str:
        """Its name in the container."""
        return self.invocation.ifname

    @property
    def parent_inside(self) -> str:
        """The interface of the container that it is made on; empty: its parent is the node's."""
        plan = self.plan
        return plan.master if isinstance(plan, LinkPlan) and plan.link_in_container else ""

    @property
    def is_assigned(self) -> bool:
        """Whether its link cannot be made before its address is there, which says how."""
        return isinstance(self.plan, LinkPlan) and self.plan.is_assigned

    @property
    def wants_addresses(self) -> bool:
        """Whether its addresses come from us; it may be one that goes without."""
        return not self.entry.bare

    async def look(self, kernel: Kernel) -> None:
        """Refuse what cannot be done in the container's namespace.

        Raises:
            InvalidNetns: there is none.
            InterfaceExists: somebody else's interface has the name.
        """
        netns = self.invocation.netns
        if self.invocation.role is Role.IPAM and not await kernel.netns_exists(netns):
            msg = f"CNI_NETNS: {netns} is no network namespace that the agent can see"
            raise InvalidNetns(msg, "nobody could say later whether a link in there still has the address")
        if self.plan is not None and self.link is None and await kernel.inspect(netns, self.ifname) is not None:
            msg = f"CNI_IFNAME: {self.ifname} exists already in {netns}"
            raise InterfaceExists(msg, "an interface of that name was made by somebody else")

    def resume(self, other: "Nic") -> None:
        """Use what was made for the same interface before."""
        self.link = other.link
        self.entry = msgspec.structs.replace(self.entry, vf=other.entry.vf)
        self._lent = other._lent  # noqa: SLF001 - of the same class

    async def reserve(self, pfs: PhysicalFunctions) -> None:
        """Where it is a virtual function, choose one; from here on `detach` gives it back. Raises `CniError`."""
        if isinstance(self.plan, VfPlan) and self.entry.vf is None:
            self.entry = await pfs.reserve(self.entry, self.plan)

    async def make(self, kernel: Kernel, pfs: PhysicalFunctions) -> None:
        """Make the link. What goes wrong is kept as `failure`: the request for addresses is not to be cut short."""
        if self.plan is None or self.link is not None or self._lent:
            return
        if self.is_assigned:
            text = f"{self.ifname} has no VLAN id: no network provider has said one"
            self.failure = TryAgainLater(text, "the controller is older than this agent, perhaps")
            return
        try:
            with traces.span("link.create"):
                if isinstance(self.plan, VfPlan):
                    self.link = await pfs.take(self.entry, self.plan)
                    self._lent = True
                    if self.link is None:
                        self.entry = msgspec.structs.replace(self.entry, mac=self._mac_at_pf(self.plan))
                else:
                    self.link = await kernel.attach_link(self.plan)
        except CniError as error:
            self.failure = error

    def _mac_at_pf(self, plan: VfPlan) -> str:
        """The MAC address of a virtual function without an interface, as far as the node knows it."""
        had = "" if self.entry.vf is None else self.entry.vf.settings.mac
        return plan.settings.mac or ("" if had == _NO_MAC else had)

    async def masters(self, kernel: Kernel, pfs: PhysicalFunctions) -> tuple[str, ...] | None:
        """The networks of the parent NIC; None where nobody wants them matched. Raises `CniError`."""
        if not self.invocation.conf.ipam.match_master_subnet:
            return None
        if self.entry.vf is not None:  # it is not in the container yet
            return await pfs.networks(self.entry)
        if self.invocation.role is Role.MAIN:
            return ()  # no physical function is behind it, and perhaps it is being made
        return await kernel.master_networks(self.invocation.netns, self.ifname)

    async def parent_mac(self, kernel: Kernel) -> str:
        """The MAC address of the node's interface below it, where a network provider wants to know. Raises `CniError`.

        Of another plugin's interface too: its configuration came with the call of the IPAM plugin.
        """
        if isinstance(self.plan, LinkPlan):
            return await kernel.parent_mac(self.plan) if self.plan.is_assigned else ""
        if self.invocation.role is not Role.IPAM or not is_assigned(self.invocation.conf):
            return ""
        conf = self.invocation.conf
        return await kernel.parent_mac(LinkPlan(netns=self.invocation.netns, ifname=self.ifname, master=conf.master))

    async def possible_parents(self, kernel: Kernel) -> tuple[NodeLink, ...]:
        """The node's interfaces, where a plugin that asks does not say what it makes. Raises `CniError`."""
        if is_assigned(self.invocation.conf) or not _may_be_provided(self.invocation):
            return ()
        return tuple(NodeLink(name, mac) for name, mac in await kernel.possible_parents())

    def take(self, allocated: Allocated, *, first: bool, together: frozenset[str]) -> None:
        """Note what the controller has granted; `together` are the interfaces of this call. See `answered`."""
        mine = NicGrant(self.ifname, allocated.addresses, allocated.routes) if first else None
        grant = mine or next(grant for grant in allocated.others if grant.nic == self.ifname)
        self.grant = directed(grant, self.invocation.gateways)
        others = tuple(grant for grant in allocated.others if grant.nic not in together) if first else ()
        self.entry = msgspec.structs.replace(
            self.entry,
            pod=msgspec.structs.replace(self.entry.pod, uid=allocated.pod_uid),
            addresses=tuple(address.address for address in self.grant.addresses),
            pools=tuple(address.pool for address in self.grant.addresses),
            others=others,
            fixed=allocated.fixed,
            moving=allocated.moving,
            doubtful=True,
            assigned=next((Assigned(one.vlan, one.mac) for one in self.grant.addresses if one.vlan), None),
        )
        self._assign()

    def _assign(self) -> None:
        """Take into the plan what a network provider says of the link. Raises `CniError`."""
        if not isinstance(self.plan, LinkPlan) or self.entry.assigned is None:
            return
        plan = assigned_plan(self.plan, self.entry.assigned)
        if not self.plan.is_assigned and plan != self.plan:
            raise TryAgainLater(f"{self.ifname} has another VLAN id or MAC address than a moment ago")
        self.plan = plan

    def answered(self, *, doubtful: bool) -> None:
        """The request for its addresses has been answered. Where that is `doubtful` a copy of it may be under way."""
        self.entry = msgspec.structs.replace(self.entry, doubtful=doubtful)

    def forget_grant(self) -> None:
        """Another one is asked for in its place. Until it is there, what an undo gives back has to be searched for."""
        self.entry = msgspec.structs.replace(self.entry, addresses=(), pools=(), others=(), fixed=None, doubtful=True)

    async def configure(self, kernel: Kernel) -> None:
        """Addresses, up, routes. Raises `CniError`."""
        self.result = _result(self.entry, self.link, self.grant)
        if self.invocation.role is Role.MAIN:
            self.result = msgspec.structs.replace(self.result, dns=self.invocation.conf.dns)
        if self.link is not None:
            with traces.span("link.configure"):
                await kernel.configure(self.invocation.netns, self.ifname, address_plan(self.result))
            self.entry = msgspec.structs.replace(self.entry, mac=self.link.mac)

    async def coordinate(
        self,
        kernel: Kernel,
        cluster: Coordination,
        names: tuple[str, ...],
        *,
        built: Iterable[CoordinationPlan],
        note: Callable[[JournalEntry], Awaitable[None]],
    ) -> None:
        """The pod's way to its own node and back, where the configuration wants one. Raises `CniError`.

        Args:
            kernel: of the node.
            cluster: the settings that hold where the configuration says nothing.
            names: of all the pod's interfaces, in the order of their making; empty where that is not known.
            built: of its other interfaces.
            note: writes an entry into the journal. A plan that changes what was there is noted before it is carried
                out; of a pair, which takes all with it, the name was noted.
        """
        if self.link is None or self.grant is None or not coordination.wanted(self.invocation.conf):
            return
        with traces.span("coordinate"):
            plan = await plan_coordination(
                kernel, self.invocation, cluster, names=names, built=built, assigned=self.entry.assigned
            )
            pair = plan.host_veth if plan is not None and plan.makes_pair else ""
            self.entry = msgspec.structs.replace(self.entry, host_veth=pair, coordination=plan)
            if plan is None:
                return
            if not plan.makes_pair:
                await note(self.entry)
            await kernel.coordinate(plan)
        if plan.mac:
            self.result = with_mac(self.result, self.ifname, plan.mac)
            self.entry = msgspec.structs.replace(self.entry, mac=plan.mac)

    async def limit(self, kernel: Kernel, pfs: PhysicalFunctions, pod: Bandwidth | None) -> None:
        """Hold back what it carries, where the pod's annotations or the runtime say so. Raises `CniError`.

        Of a virtual function without an interface what it sends: the rest is between the program and the NIC.
        """
        if self.link is None and self.entry.vf is None:
            return
        mtu = 0 if self.link is None else self.link.mtu
        plan = bandwidth.limit_plan(self.invocation, pod, mtu=mtu, coordination=self.entry.coordination)
        if plan is not None and self.link is None:
            plan = msgspec.structs.replace(plan, ingress=None) if plan.egress is not None else None
        if plan is not None:
            with traces.span("limit"):
                if plan.vf_rate and isinstance(self.plan, VfPlan) and not has_rate(self.plan):
                    await pfs.limit(self.entry, plan.vf_rate)
                if self.link is not None:
                    await kernel.limit(plan)
            self.entry = msgspec.structs.replace(self.entry, limits=plan)

    def complete(self, *, changed_ns: int) -> JournalEntry:
        """What the journal says of it when all is done."""
        self.entry = msgspec.structs.replace(self.entry, state=State.ADDED, result=self.result, changed_ns=changed_ns)
        return self.entry


def directed(grant: NicGrant, gateways: tuple[str, ...] | None) -> NicGrant:
    """The same with default routes by these next hops, of families that it has addresses of; None: with its own."""
    if gateways is None:
        return grant
    versions = {address.version for address in grant.addresses}
    routes = [route for route in grant.routes if route.dst not in DEFAULT_ROUTES.values()]
    for gateway in gateways:
        version = ip_address(gateway).version
        if version in versions:
            routes.append(Route(dst=DEFAULT_ROUTES[version], gw=gateway))
    return msgspec.structs.replace(grant, routes=tuple(routes))


def part_of(invocation: Invocation) -> str:
    """Which part of an attachment a call is about; see `cni.journal.Key`."""
    return COORDINATOR if invocation.role is Role.COORDINATOR else ""


def blank_entry(invocation: Invocation, *, changed_ns: int) -> JournalEntry:
    """What the journal says of an interface before anything is built: enough to take away whatever may be there."""
    return JournalEntry(
        container_id=invocation.container_id,
        ifname=invocation.ifname,
        part=part_of(invocation),
        netns=invocation.netns,
        network=invocation.conf.name,
        head=invocation.head,
        role=invocation.role,
        kind=invocation.link_kind,
        bare=invocation.conf.ipam.type != IPAM_TYPE,
        provided=_may_be_provided(invocation),
        host_veth=pair_of(invocation),
        pod=pod_ref(invocation.args),
        changed_ns=changed_ns,
    )


def _may_be_provided(invocation: Invocation) -> bool:
    """Whether a network provider may have to know of it. Some other program's plugins do not say what they make."""
    conf = invocation.conf
    return is_assigned(conf) or (invocation.role is Role.IPAM and not conf.type)


async def plan_coordination(
    kernel: Kernel,
    invocation: Invocation,
    cluster: Coordination,
    *,
    names: tuple[str, ...] = (),
    built: Iterable[CoordinationPlan],
    assigned: Assigned | None = None,
) -> CoordinationPlan | None:
    """What is to be built around an interface that stands; None for nothing.

    `names` are all interfaces of the pod, where the call does not say them, `built` the plans of its others. Where a
    network provider has said the MAC address the interface keeps that: with another one it gets no frames. Raises
    `CniError`.
    """
    nics = invocation.nics or names
    survey = await kernel.survey(invocation.netns)
    ordinal = nics.index(invocation.ifname) if invocation.ifname in nics else None
    plan = coordination_plan(invocation, cluster, survey, ordinal=ordinal, names=nics, built=built)
    return plan if plan is None or assigned is None else msgspec.structs.replace(plan, mac="", former_mac="")


async def detach(kernel: Kernel, pfs: PhysicalFunctions, entry: JournalEntry, *, one_by_one: anyio.Lock) -> None:
    """Remove what an entry stands for: routes, rules, links. A link of another kind is somebody else's and stays.

    A virtual function goes back to the node. `one_by_one` is the container's: of two interfaces that look at a time
    what they share with others, each would leave it to the other one.

    Its MAC address does not matter: a chained plugin may have changed it since. Raises `CniError`.
    """
    if entry.coordination is not None:
        async with one_by_one:
            await kernel.uncoordinate(entry.coordination, pair=entry.role is not Role.MAIN)
    elif entry.role is Role.COORDINATOR and entry.host_veth:
        await kernel.detach_link("", entry.ifname, pair=Pair(entry.host_veth, entry.container_id))
    if entry.role is Role.MAIN and (entry.netns or entry.host_veth):
        pair = Pair(entry.host_veth, entry.container_id) if entry.host_veth else None
        await kernel.detach_link(entry.netns, entry.ifname, kind=entry.kind, pair=pair)
    await pfs.give(entry)


async def intact(kernel: Kernel, entry: JournalEntry, *, beside: Iterable[JournalEntry]) -> bool:
    """Whether an interface is as its ADD made it, at a glance; `beside` are entries of the container.

    Raises `CniError`.
    """
    if entry.role is Role.IPAM:
        return True
    if entry.state is not State.ADDED:
        return False
    if entry.vf is not None and not entry.vf.ifname:
        return True
    if await kernel.inspect(entry.netns, entry.ifname) is None:
        return False
    if entry.limits is not None and await kernel.lifted(entry.limits):
        return False
    if entry.coordination is None:
        return True
    plans = [one.coordination for one in beside if one.coordination is not None]
    return not await kernel.differences(unchanged(entry.coordination, plans))


def _plan(invocation: Invocation) -> LinkPlan | VfPlan | None:
    if invocation.role is not Role.MAIN:
        return None
    return vf_plan(invocation) if invocation.link_kind == KIND else link_plan(invocation)


def _result(entry: JournalEntry, link: LinkState | None, grant: NicGrant | None) -> Result:
    interfaces: tuple[Interface, ...] = ()
    if link is not None:
        pci = "" if entry.vf is None else entry.vf.pci
        interfaces = (Interface(name=entry.ifname, mac=link.mac, mtu=link.mtu, sandbox=entry.netns, pci_id=pci),)
    elif entry.vf is not None:
        interfaces = (Interface(name=entry.ifname, mac=entry.mac, sandbox=entry.netns, pci_id=entry.vf.pci),)
    index = 0 if interfaces else None
    addresses, routes = ((), ()) if grant is None else (grant.addresses, grant.routes)
    return Result(
        interfaces=interfaces,
        ips=tuple(IpConfig(address=a.address, gateway=a.gateway, interface=index) for a in addresses),
        routes=tuple(RouteConfig(dst=r.dst, gw=r.gw) for r in routes),
    )
