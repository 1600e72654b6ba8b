"""Whether the way between a pod and its node is still as it was built. Looks, and changes nothing."""

from collections.abc import Iterator
from contextlib import ExitStack

from cni.coordination import KERNEL, CoordinationPlan, PodLink, PodView, RoutePlan, RulePlan
from cni.errors import InvalidNetns
from cni.netlink import link, neighbour, nftables, route, rule
from cni.netlink.coordinator import node_rules
from cni.netlink.nftables import FilterSocket
from cni.netlink.socket import Netns, RouteSocket, route_socket
from cni.netlink.survey import view_pod
from cni.netlink.sysctl import ipv4_setting
from cni.netlink.veth import is_ours

_STRICT = 1
"""Of rp_filter. An init that sets another one on new links does no harm."""


def differences(plan: CoordinationPlan) -> list[str]:
    """See `cni.kernel.Kernel.differences`."""
    with ExitStack() as stack:
        node = stack.enter_context(route_socket())
        try:
            netns = stack.enter_context(Netns.open(plan.netns))
            with netns.entered():
                pod = stack.enter_context(RouteSocket())
                filters = stack.enter_context(FilterSocket())
                rp_filter = _setting("rp_filter")
        except InvalidNetns as error:
            return [str(error)]
        view = view_pod(pod)
        found = [*_of_node(plan, node), *_of_links(plan, view), *_of_routes(plan, view), *_of_rules(plan, view.rules)]
        far = view.link(plan.pod_end)
        if far is not None:
            found += _of_neighbours(pod, far.index, far.ifname, plan.new_hosts, plan.host_mac)
        found += [
            f"{what} is missing in the pod" for version in plan.marked for what in nftables.missing(filters, version)
        ]
        if plan.rp_filter >= 0 and rp_filter not in {"", str(plan.rp_filter)}:
            found.append(f"rp_filter of the pod is {rp_filter}, not {plan.rp_filter}")
        return found


def _of_node(plan: CoordinationPlan, node: RouteSocket) -> Iterator[str]:
    near = link.get(node, plan.host_veth)
    if near is None or (not is_ours(near, plan.container_id) if plan.makes_pair else near.index != plan.host_index):
        yield f"{plan.host_veth} is missing on the node"
        return
    if not near.up:
        yield f"{near.ifname} is down"
    if near.mac != plan.host_mac:
        yield f"{near.ifname} has MAC address {near.mac}, not {plan.host_mac}"
    if near.rp_filter == _STRICT and plan.makes_pair:
        yield f"{near.ifname} has rp_filter {near.rp_filter}, which drops what comes from the pod's other interfaces"
    if plan.mtu and near.mtu != plan.mtu:
        yield f"{near.ifname} has MTU {near.mtu}, not {plan.mtu}"
    there = {one.destination for _, one in route.everything(node, index=near.index, table=plan.host_table)}
    for one in plan.host_routes:
        if one.destination not in there:
            yield f"{near.ifname} lacks the route to {one.destination} in table {one.table}"
    yield from _of_neighbours(node, near.index, near.ifname, plan.pod_addresses, plan.pod_mac)
    rules = {(one.plan.version, one.plan.table, one.plan.priority) for one in rule.listed(node) if one.everything}
    for wanted in node_rules(plan):
        if (wanted.version, wanted.table, wanted.priority) not in rules:
            yield f"the node lacks the IPv{wanted.version} rule {wanted.priority} lookup {wanted.table}"


def _of_links(plan: CoordinationPlan, view: PodView) -> Iterator[str]:
    nic, far = view.link(plan.ifname), view.link(plan.pod_end)
    for ifname, one in ((plan.ifname, nic), (plan.pod_end, far)):
        if one is None:
            yield f"{ifname} is missing in {plan.netns}"
        elif not one.up:
            yield f"{ifname} is down"
        if one is not None and 0 <= plan.rp_filter != one.rp_filter >= 0 and (one is nic or plan.sets_end):
            yield f"{ifname} has rp_filter {one.rp_filter}, not {plan.rp_filter}"
    if nic is not None:
        yield from _of_nic(plan, nic)
    if far is not None:
        if far.mac != plan.pod_mac:
            yield f"{far.ifname} has MAC address {far.mac}, not {plan.pod_mac}"
        if plan.mtu and far.mtu != plan.mtu:
            yield f"{far.ifname} has MTU {far.mtu}, not {plan.mtu}"
        if plan.link_address and plan.link_address not in far.addresses:
            yield f"{far.ifname} lacks the address {plan.link_address}"


def _of_nic(plan: CoordinationPlan, nic: PodLink) -> Iterator[str]:
    missing = [one for one in plan.pod_addresses if one not in nic.hosts()]
    if missing:
        yield f"{nic.ifname} lacks {', '.join(missing)}"
    if plan.mac and nic.mac != plan.mac:
        yield f"{nic.ifname} has MAC address {nic.mac}, not {plan.mac}"
    if plan.tx_queue_len and nic.tx_queue_len != plan.tx_queue_len:
        yield f"{nic.ifname} has a transmit queue of {nic.tx_queue_len}, not {plan.tx_queue_len}"


def _of_routes(plan: CoordinationPlan, view: PodView) -> Iterator[str]:
    def key(one: RoutePlan) -> tuple[str, str, str, int]:
        return one.device or plan.pod_end, one.destination, one.gateway, one.table

    there = {key(one) for one in view.routes}
    left = {one.device for one in plan.routes if key(one) in there} | {"", plan.ifname, plan.pod_end}
    # Another NIC that made room for this one may have been unplugged since, with all its routes.
    for one in plan.routes:
        if key(one) not in there and one.device in left:
            yield f"{one.device or plan.pod_end} lacks the route to {one.destination} in table {one.table}"
    for one in plan.withdrawn:
        if key(one) in there and one.protocol != KERNEL:
            yield f"{one.device} has the route to {one.destination} in table {one.table} again"


def _of_rules(plan: CoordinationPlan, there: tuple[RulePlan, ...]) -> Iterator[str]:
    have = {(one.version, one.source, one.mark, one.table) for one in there}
    for one in (*plan.rules, *plan.mark_rules):
        if (one.version, one.source, one.mark, one.table) not in have:
            what = f"from {one.source}" if one.source else f"for mark {one.mark}"
            yield f"the pod lacks the IPv{one.version} rule {what} lookup {one.table}"


def _of_neighbours(
    sockets: RouteSocket, index: int, ifname: str, addresses: tuple[str, ...], mac: str
) -> Iterator[str]:
    there = neighbour.permanent(sockets, index=index)
    for one in addresses:
        if there.get(one) != mac:
            yield f"{ifname} lacks the permanent neighbour {one} with {mac}"


def _setting(name: str) -> str:
    """Of all interfaces in the thread's namespace; empty where it cannot be read."""
    try:
        return ipv4_setting("all", name).read_text().strip()
    except OSError:
        return ""
