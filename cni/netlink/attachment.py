"""What the actors want done to a container's interface, each as one blocking call on one thread."""

import errno
import logging
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from ipaddress import IPv6Interface, ip_address, ip_interface, ip_network

from msgspec.structs import replace

from cni.bandwidth import ifb_name
from cni.coordination import POD_VETH, Pair
from cni.errors import CniError, InterfaceExists, InvalidNetns, KernelRefused
from cni.netlink import address, announce, holders, link, route, traffic, veth
from cni.netlink.announce import Advertiser
from cni.netlink.holders import Modes
from cni.netlink.route import Address
from cni.netlink.socket import Netns, Refusal, Request, RouteSocket, route_socket
from cni.netlink.sysctl import prepare_ipv6
from cni.plan import AddressPlan, Inspection, LinkPlan, LinkState
from cni.plan import link_differences as compared
from cni.result import DEFAULT_ROUTES
from telemetry import traces
from telemetry.attributes import LINK_KIND, LINK_PARENT, NETLINK_STEP, NETWORK_INTERFACE_NAME

_log = logging.getLogger(__name__)


def make_link(plan: LinkPlan, modes: Modes) -> LinkState:
    """See `cni.kernel.Kernel.attach_link`."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(plan.netns))
        if netns.is_own:
            raise InvalidNetns(f"CNI_NETNS: {plan.netns} is the node's own network namespace")
        inside = stack.enter_context(route_socket(netns))
        beside = inside if plan.link_in_container else stack.enter_context(route_socket())
        parent = link.find_parent(beside, plan)
        attributes = {
            NETLINK_STEP: "newlink",
            NETWORK_INTERFACE_NAME: plan.ifname,
            LINK_KIND: plan.kind,
            LINK_PARENT: parent.ifname,
        }
        below = plan.netns if plan.link_in_container else holders.OWN
        with traces.span("netlink create link", attributes=attributes):
            kept = modes.keeping(plan, parent, where=below) if plan.kind == "ipvlan" else nullcontext()
            with kept:
                try:
                    link.create(beside, plan, parent=parent, netns=netns, inside=inside)
                except link.Occupied as occupied:
                    raise _occupied(plan, parent, occupied.refusal, where=below) from None
                made = link.get(inside, plan.ifname)
                if made is None:
                    raise KernelRefused(f"{plan.kind} {plan.ifname} was made in {plan.netns} and is not there")
                if plan.mac and made.mac != plan.mac:
                    made = _with_mac(inside, plan, made)
                if plan.kind == "ipvlan":
                    modes.made(plan, parent, made)
        return made


def parent_mac(plan: LinkPlan) -> str:
    """See `cni.kernel.Kernel.parent_mac`."""
    with route_socket() as node:
        return link.find_parent(node, plan).mac


def possible_parents() -> tuple[tuple[str, str], ...]:
    """See `cni.kernel.Kernel.possible_parents`."""
    with route_socket() as node:
        return tuple((one.ifname, one.mac) for one in link.listed(node) if one.mac and one.parent_netns is None)


def link_differences(plan: LinkPlan) -> list[str]:
    """See `cni.kernel.Kernel.link_differences`."""
    with ExitStack() as stack:
        sockets = _enter(stack, plan.netns)
        seen = link.get(sockets, plan.ifname) if sockets is not None else None
        if sockets is None or seen is None:
            return [f"it is gone from {plan.netns}"]
        beside = sockets if plan.link_in_container else stack.enter_context(route_socket())
        return compared(plan, seen, link.get(beside, plan.master) if plan.master else None)


def configure_link(netns_path: str, ifname: str, plan: AddressPlan) -> None:
    """See `cni.kernel.Kernel.configure`."""
    interfaces = [ip_interface(text) for text in plan.addresses]
    six = [one for one in interfaces if isinstance(one, IPv6Interface)]
    gateways: dict[int, Address] = {gateway.version: gateway for gateway in map(ip_address, plan.gateways)}
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(netns_path))
        advertiser = None
        with netns.entered():
            sockets = stack.enter_context(RouteSocket())
            found = link.get(sockets, ifname)
            if found is None:
                raise KernelRefused(f"there is no interface {ifname} in {netns_path}")
            if six:
                prepare_ipv6(ifname)
                advertiser = stack.enter_context(Advertiser())
        if len(six) < len(interfaces):
            link.announce_on_up(sockets, found)
        with traces.span("netlink add addresses", attributes={NETLINK_STEP: "newaddr"}):
            for text in plan.addresses:
                address.add(sockets, found, text)
        with traces.span("netlink set link up", attributes={NETLINK_STEP: "setlink"}):
            link.set_up(sockets, found)
        with traces.span("netlink add routes", attributes={NETLINK_STEP: "newroute"}):
            for destination, gateway in plan.routes:
                network = ip_network(destination)
                hop = ip_address(gateway) if gateway else gateways.get(network.version)
                route.add(sockets, found, network, hop)
        if found.up:
            # It was set up to probe for the addresses: the kernel does not announce what is added now.
            announce.announce(sockets, found, plan.addresses)
        if advertiser is not None:
            with traces.span("announce", attributes={NETWORK_INTERFACE_NAME: ifname}):
                _advertise(advertiser, found, six)


def direct_link(netns_path: str, ifname: str, gateways: Sequence[str]) -> None:
    """See `cni.kernel.Kernel.direct`."""
    with ExitStack() as stack:
        sockets = stack.enter_context(route_socket(stack.enter_context(Netns.open(netns_path))))
        found = link.get(sockets, ifname)
        if found is None:
            raise KernelRefused(f"there is no interface {ifname} in {netns_path}")
        with traces.span("netlink direct default routes", attributes={NETLINK_STEP: "newroute"}):
            before = [one for _, one in route.everything(sockets, index=found.index, table=route.MAIN)]
            sockets.pipeline(
                [route.remove(found, one) for one in before if one.is_default and one.protocol != route.BY_ROUTER]
            )
            for gateway in map(ip_address, gateways):
                route.add(sockets, found, ip_network(DEFAULT_ROUTES[gateway.version]), gateway)


def delete_link(netns_path: str, ifname: str, *, kind: str = "", mac: str = "", pair: Pair | None = None) -> bool:
    """See `cni.kernel.Kernel.detach_link`."""
    attributes = {NETLINK_STEP: "dellink", NETWORK_INTERFACE_NAME: ifname}
    with ExitStack() as stack:
        sockets = _enter(stack, netns_path)
        found = _find(sockets, ifname) if sockets is not None else None
        if found is not None and ((kind and found.kind != kind) or (mac and found.mac != mac)):
            found = None
        doomed = [] if found is None else [found]
        between = traffic.find_ifb(sockets, ifb_name(ifname)) if sockets is not None else None
        if between is not None:
            doomed.append(between)
        if sockets is not None and pair is not None:
            far = link.get(sockets, POD_VETH)
            if far is not None and veth.is_ours(far, pair.container_id):
                doomed.append(far)
        if sockets is not None and doomed:
            with traces.span("netlink delete link", attributes=attributes):
                link.delete_together(sockets, doomed)
        if pair is not None:
            # Whose namespace went first; the kernel takes the other end with it, in its own time.
            node = stack.enter_context(route_socket())
            near = link.get(node, pair.host_veth)
            if near is not None and veth.is_ours(near, pair.container_id):
                with traces.span("netlink delete veth", attributes=attributes):
                    link.delete(node, near)
        return found is not None


def inspect_link(netns_path: str, ifname: str) -> Inspection | None:
    """See `cni.kernel.Kernel.inspect`."""
    with ExitStack() as stack:
        sockets = _enter(stack, netns_path)
        found = link.get(sockets, ifname) if sockets is not None else None
        if sockets is None or found is None:
            return None
        routes, networks = route.of_link(sockets, index=found.index)
        return Inspection(
            link=found,
            addresses=tuple(address.listed(sockets, index=found.index)),
            routes=tuple(routes),
            networks=tuple(networks),
        )


def is_netns(path: str) -> bool:
    """See `cni.kernel.Kernel.netns_exists`."""
    try:
        with Netns.open(path):
            return True
    except InvalidNetns:
        return False


def vanished(paths: Sequence[str]) -> frozenset[str]:
    """See `cni.kernel.Kernel.vanished`."""
    return frozenset(path for path in paths if not is_netns(path))


def carries(netns_path: str, ifname: str, addresses: Sequence[str]) -> bool:
    """See `cni.kernel.Kernel.carries`."""
    with ExitStack() as stack:
        sockets = _enter(stack, netns_path)
        if sockets is None:
            return False
        if not addresses:
            return link.get(sockets, ifname) is not None
        wanted = {ip_interface(text).ip for text in addresses}
        return any(ip_interface(text).ip in wanted for text in address.listed(sockets))


def is_paired(pair: Pair) -> bool:
    """See `cni.kernel.Kernel.paired`."""
    with route_socket() as node:
        near = link.get(node, pair.host_veth)
        return near is not None and veth.is_ours(near, pair.container_id)


def _with_mac(inside: RouteSocket, plan: LinkPlan, made: LinkState) -> LinkState:
    """A macvlan link in passthru mode begins with its parent's MAC address; another one the parent has for as long."""
    try:
        inside.pipeline(
            [
                Request(
                    link.RTM_SETLINK,
                    0,
                    link.settings_body(made.index, mac=plan.mac),
                    f"set the MAC address of {plan.ifname} in {plan.netns} to {plan.mac}",
                )
            ]
        )
    except BaseException:
        link.delete(inside, made)
        raise
    return replace(made, mac=plan.mac)


def _find(sockets: RouteSocket, ifname: str) -> LinkState | None:
    return link.get(sockets, ifname) or link.get(sockets, link.temporary_name(ifname))


def _occupied(plan: LinkPlan, parent: LinkState, refusal: Refusal, *, where: str) -> CniError:
    """Why a parent takes no link: by what is on it, as far as that can be seen."""
    if plan.kind == "vlan" and refusal.number == errno.EEXIST:
        msg = f"vlanId: {plan.vlan_id} is taken on master {parent.ifname}"
        seen = holders.described(parent, where=where, vlan_id=plan.vlan_id)
        return InterfaceExists(msg, "; ".join(filter(None, (str(refusal), seen, "a parent has each id once"))))
    refused = refusal.explain(link.making(plan, parent))
    refused.details = "; ".join(filter(None, (refused.details, holders.described(parent, where=where))))
    return refused


def _enter(stack: ExitStack, netns_path: str) -> RouteSocket | None:
    try:
        return stack.enter_context(route_socket(stack.enter_context(Netns.open(netns_path))))
    except InvalidNetns:
        return None


def _advertise(advertiser: Advertiser, found: LinkState, interfaces: Sequence[IPv6Interface]) -> None:
    for interface in interfaces:
        try:
            advertiser.advertise(found, interface.ip)
        except CniError as error:
            # The interface works; a neighbour with a stale entry finds out by itself within seconds (RFC 4861, 7.3).
            _log.warning("%s", error)
