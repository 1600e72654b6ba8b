"""The veth pair between a pod and its node with all that goes with it, each step as one blocking call on one thread."""

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_interface
from pathlib import Path

from cni.coordination import MARK, POD_VETH, REPLY_TABLE, RULE_PRIORITY, CoordinationPlan, NodeView
from cni.errors import CniError, InterfaceExists, InvalidNetns, KernelRefused
from cni.netlink import address, link, neighbour, nftables, route, rule, veth
from cni.netlink.nftables import FilterSocket
from cni.netlink.socket import Netns, Request, RouteSocket, route_socket
from cni.netlink.sysctl import ipv4_setting, ipv6_setting
from cni.netlink.veth import is_ours, owner_alias
from cni.plan import LinkState
from telemetry import traces
from telemetry.attributes import NETLINK_STEP

_log = logging.getLogger(__name__)


def view_node(pod_addresses: Sequence[str]) -> NodeView:
    """See `cni.kernel.Kernel.view_node`."""
    with route_socket() as sockets, traces.span("netlink view node", attributes={NETLINK_STEP: "getaddr"}):
        names: dict[int, str] = {}
        addresses = []
        for index, text in address.by_link(sockets):
            if index not in names:
                names[index] = _name(index)
            if names[index]:
                addresses.append((names[index], str(ip_interface(text).ip)))
        sources = (route.preferred_source(sockets, ip_interface(one).ip) for one in pod_addresses)
        return NodeView(addresses=tuple(addresses), sources=tuple(filter(None, sources)))


def coordinate(plan: CoordinationPlan) -> None:
    """See `cni.kernel.Kernel.coordinate`."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(plan.netns))
        if netns.is_own:
            raise InvalidNetns(f"CNI_NETNS: {plan.netns} is the node's own network namespace")
        node = stack.enter_context(route_socket())
        with traces.span("netlink create veth", attributes={NETLINK_STEP: "newlink"}):
            near = _create(node, plan, netns)
        try:
            with netns.entered():
                pod = stack.enter_context(RouteSocket())
                filters = stack.enter_context(FilterSocket())
                _set_pod(plan)
            with traces.span("netlink connect pod", attributes={NETLINK_STEP: "pod"}):
                pod.pipeline(_pod_requests(plan, _need(pod, POD_VETH, plan.netns), _need(pod, plan.ifname, plan.netns)))
            if plan.marked:
                with traces.span("nftables mark replies", attributes={NETLINK_STEP: "nftables"}):
                    nftables.mark_replies(filters, plan.marked, ifname=POD_VETH, mark=MARK)
            with traces.span("netlink connect node", attributes={NETLINK_STEP: "node"}):
                _set_node(plan)
                node.pipeline(_node_requests(plan, near))
        except BaseException:
            # With the pair go its routes and neighbours on both sides; what else the pod's namespace got does nothing
            # without it, and the next try replaces it.
            with suppress(CniError):
                link.delete(node, near)
            raise


def differences(plan: CoordinationPlan) -> list[str]:
    """See `cni.kernel.Kernel.differences`."""
    with ExitStack() as stack:
        node = stack.enter_context(route_socket())
        near = link.get(node, plan.host_veth)
        if near is None or not is_ours(near, plan.container_id):
            return [f"{plan.host_veth} is missing on the node"]
        try:
            pod = stack.enter_context(route_socket(stack.enter_context(Netns.open(plan.netns))))
        except InvalidNetns as error:
            return [str(error)]
        far = link.get(pod, POD_VETH)
        if far is None:
            return [f"{POD_VETH} is missing in {plan.netns}"]
        found = [f"{one.ifname} is down" for one in (near, far) if not one.up]
        for sockets, at, routes in ((node, near, plan.host_routes), (pod, far, plan.routes)):
            for table in sorted({one.table for one in routes}):
                there = set(route.listed(sockets, index=at.index, table=table))
                found += [
                    f"{at.ifname} lacks the route to {one.destination} in table {table}"
                    for one in routes
                    if one.table == table and (one.destination, one.gateway) not in there
                ]
        return found


def _create(node: RouteSocket, plan: CoordinationPlan, netns: Netns) -> LinkState:
    near, far = veth.End(plan.host_veth, plan.host_mac), veth.End(POD_VETH, plan.pod_mac)
    try:
        veth.create(node, near, far, mtu=plan.mtu, netns=netns)
    except InterfaceExists:
        left = link.get(node, plan.host_veth)
        if left is None:
            msg = f"{POD_VETH} exists already in {plan.netns}"
            raise InterfaceExists(msg, "another coordinator has been here; use only one") from None
        if not is_ours(left, plan.container_id):
            msg = f"{plan.host_veth} exists already on this node, for {left.alias or 'somebody else'}"
            raise InterfaceExists(msg, f"a {left.kind or 'physical'} link") from None
        link.delete(node, left)
        veth.create(node, near, far, mtu=plan.mtu, netns=netns)
    return _need(node, plan.host_veth, "this node")


def _pod_requests(plan: CoordinationPlan, far: LinkState, lan: LinkState) -> list[Request]:
    alias = owner_alias(plan.container_id)
    requests = [_change(far, link.settings_body(far.index, up=True, alias=alias, rp_filter=plan.rp_filter))]
    if plan.rp_filter >= 0 or plan.tx_queue_len:
        settings = link.settings_body(lan.index, tx_queue_len=plan.tx_queue_len, rp_filter=plan.rp_filter)
        requests.append(_change(lan, settings))
    if plan.link_address:
        requests.append(address.request(far, plan.link_address))
    requests += [neighbour.put(far, one, plan.host_mac) for one in plan.host_addresses]
    requests += [route.request(far, one) for one in plan.routes]
    requests += [route.request(lan, one) for one in plan.lan_routes]
    requests += [rule.add(version, priority=RULE_PRIORITY, table=REPLY_TABLE, mark=MARK) for version in plan.marked]
    return requests


def _node_requests(plan: CoordinationPlan, near: LinkState) -> list[Request]:
    # A pod may send over the pair from an address of any of its links.
    alias = owner_alias(plan.container_id)
    requests = [_change(near, link.settings_body(near.index, alias=alias, rp_filter=0))]
    requests += [rule.add(version, priority=RULE_PRIORITY, table=plan.host_table) for version in plan.versions]
    requests += [neighbour.put(near, one, plan.pod_mac) for one in plan.pod_addresses]
    requests += [route.request(near, one, replace=True) for one in plan.host_routes]
    return requests


def _set_pod(plan: CoordinationPlan) -> None:
    """Settings that only /proc/sys takes; the calling thread is in the pod's namespace."""
    if 6 in plan.versions:
        _write(ipv6_setting(POD_VETH, "disable_ipv6"), 0, needed=True)
    if plan.rp_filter >= 0:
        _write(ipv4_setting("all", "rp_filter"), plan.rp_filter)


def _set_node(plan: CoordinationPlan) -> None:
    if 6 in plan.versions:
        _write(ipv6_setting(plan.host_veth, "disable_ipv6"), 0, needed=True)
        # Nothing that a pod says makes routes of the node's.
        _write(ipv6_setting(plan.host_veth, "accept_ra"), 0)


def _write(setting: Path, value: int, *, needed: bool = False) -> None:
    try:
        if setting.read_text().strip() != str(value):
            setting.write_text(str(value))
    except OSError as error:
        if needed:
            raise KernelRefused(f"{setting} cannot be set to {value}", str(error), errno=error.errno or 0) from None
        _log.debug("%s stays as it is: %s", setting, error)


def _change(at: LinkState, body: bytes) -> Request:
    return Request(link.RTM_SETLINK, 0, body, f"set {at.ifname} up or change its settings")


def _need(sockets: RouteSocket, ifname: str, where: str) -> LinkState:
    found = link.get(sockets, ifname)
    if found is None:
        raise KernelRefused(f"there is no interface {ifname} in {where}")
    return found


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""  # gone in between
