"""The way between a pod and its node: built, and taken away, each as one blocking call on one thread."""

import errno
import logging
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv6Address
from pathlib import Path

from msgspec.structs import replace

from cni.coordination import (
    MAIN_TABLE,
    MARK,
    POD_VETH,
    REPLY_TABLE,
    RULE_PRIORITY,
    RULE_PROTOCOL,
    CoordinationPlan,
    RoutePlan,
    RulePlan,
    single,
)
from cni.errors import CniError, InterfaceExists, InvalidNetns, KernelRefused
from cni.netlink import address, link, neighbour, nftables, route, rule, veth
from cni.netlink.announce import Advertiser
from cni.netlink.nftables import FilterSocket
from cni.netlink.socket import Netns, Request, RouteSocket, route_socket
from cni.netlink.sysctl import ipv4_setting, ipv6_setting
from cni.netlink.veth import is_ours, owner_alias
from cni.plan import LinkState
from telemetry import traces
from telemetry.attributes import NETLINK_STEP

_log = logging.getLogger(__name__)

type Links = Mapping[str, LinkState]


def coordinate(plan: CoordinationPlan) -> None:
    """See `cni.kernel.Kernel.coordinate`."""
    with ExitStack() as stack:
        netns = stack.enter_context(Netns.open(plan.netns))
        if netns.is_own:
            raise InvalidNetns(f"CNI_NETNS: {plan.netns} is the node's own network namespace")
        node = stack.enter_context(route_socket())
        with netns.entered():
            pod = stack.enter_context(RouteSocket())
            advertiser = stack.enter_context(Advertiser()) if plan.mac and 6 in plan.versions else None
        if plan.makes_pair:
            with traces.span("netlink create veth", attributes={NETLINK_STEP: "newlink"}):
                near = _create(node, plan, netns)
                # Both ends know each other. The addresses would be looked for, and every pod of a node pays for those
                # of the others: whoever lists the node's addresses has to pass over them.
                node.pipeline([link.without_link_local(near)])
        else:
            near = _near(node, plan)
        try:
            with netns.entered():
                filters = stack.enter_context(FilterSocket()) if plan.marked else None
                _set_pod(plan)
            links = {one.ifname: one for one in link.listed(pod)}
            with traces.span("netlink connect pod", attributes={NETLINK_STEP: "pod"}):
                pod.pipeline(_pod_requests(plan, links))
            if advertiser is not None:
                _advertise(advertiser, plan, links)
            if filters is not None:
                with traces.span("nftables mark replies", attributes={NETLINK_STEP: "nftables"}):
                    nftables.mark_replies(filters, plan.marked, ifname=POD_VETH, mark=MARK)
            with traces.span("netlink connect node", attributes={NETLINK_STEP: "node"}):
                _set_node(plan)
                node.pipeline(_node_requests(plan, node, near))
        except BaseException:
            with suppress(CniError):
                _leave_node(plan, node, near, pair=True)
            with suppress(CniError):
                _leave_pod(plan, stack, netns, failed=True)
            raise


def uncoordinate(plan: CoordinationPlan, *, pair: bool = True) -> None:
    """See `cni.kernel.Kernel.uncoordinate`."""
    with ExitStack() as stack:
        node = stack.enter_context(route_socket())
        near = link.get(node, plan.host_veth)
        if near is not None and _is_same(plan, near):
            with traces.span("netlink leave node", attributes={NETLINK_STEP: "node"}):
                _leave_node(plan, node, near, pair=pair)
        try:
            netns = stack.enter_context(Netns.open(plan.netns))
        except InvalidNetns:
            return  # it is gone, and with it what was in there
        with traces.span("netlink leave pod", attributes={NETLINK_STEP: "pod"}):
            _leave_pod(plan, stack, netns, failed=False)


def remove_rules() -> tuple[list[str], list[str]]:
    """Remove the node's rules that lead to pods, except where routes to pods are still in their table.

    Returns which were removed and which were left, in words. Those of the original, in its usual table, are ours, too.

    Raises:
        KernelRefused: one cannot be removed.
    """
    removed, left = [], []
    with route_socket() as node:
        for one in rule.listed(node):
            plan = one.plan
            original = not one.protocol and plan.table == _ORIGINAL_TABLE
            if plan.priority != RULE_PRIORITY or not one.everything or not (one.protocol == RULE_PROTOCOL or original):
                continue
            words = f"IPv{plan.version} rule {RULE_PRIORITY} lookup {plan.table}"
            if any(found.version == plan.version for _, found in route.everything(node, table=plan.table)):
                left.append(words)
            else:
                node.pipeline([rule.remove(plan, protocol=one.protocol)])
                removed.append(words)
    return removed, left


_ORIGINAL_TABLE = 500


# ---------------------------------------------------------------- building


def _create(node: RouteSocket, plan: CoordinationPlan, netns: Netns) -> LinkState:
    near, far = veth.End(plan.host_veth, plan.host_mac), veth.End(plan.pod_end, plan.pod_mac)
    try:
        veth.create(node, near, far, mtu=plan.mtu, netns=netns)
    except InterfaceExists:
        left = link.get(node, plan.host_veth)
        if left is None:
            msg = f"{plan.pod_end} exists already in {plan.netns}"
            raise InterfaceExists(msg, "another coordinator has been here; use only one") from None
        if not is_ours(left, plan.container_id):
            msg = f"{plan.host_veth} exists already on this node, for {left.alias or 'somebody else'}"
            raise InterfaceExists(msg, f"a {left.kind or 'physical'} link") from None
        link.delete(node, left)
        veth.create(node, near, far, mtu=plan.mtu, netns=netns)
    found = link.get(node, plan.host_veth)
    if found is None:
        raise KernelRefused(f"there is no interface {plan.host_veth} on this node, though it was made")
    return found


def _near(node: RouteSocket, plan: CoordinationPlan) -> LinkState:
    found = link.get(node, plan.host_veth)
    if found is None or not _is_same(plan, found):
        msg = f"{plan.host_veth}, the node's end of the pod's {plan.pod_end}, is gone"
        raise KernelRefused(msg, "it was there when the plan was made")
    return found


def _is_same(plan: CoordinationPlan, near: LinkState) -> bool:
    """Whether a link of the right name is the one that the plan means."""
    return is_ours(near, plan.container_id) if plan.makes_pair else near.index == plan.host_index


def _pod_requests(plan: CoordinationPlan, links: Links) -> list[Request]:
    far, nic = _need(links, plan.pod_end, plan.netns), _need(links, plan.ifname, plan.netns)
    requests = []
    if plan.makes_pair:
        alias = owner_alias(plan.container_id)
        requests.append(link.without_link_local(far))
        requests.append(_change(far, link.settings_body(far.index, up=True, alias=alias, rp_filter=plan.rp_filter)))
    elif plan.overlay and plan.rp_filter >= 0:
        requests.append(_change(far, link.settings_body(far.index, rp_filter=plan.rp_filter)))
    settings = link.settings_body(nic.index, up=True, tx_queue_len=plan.tx_queue_len, rp_filter=plan.rp_filter)
    requests.append(_change(nic, settings))
    if plan.mac not in {"", nic.mac}:
        # The kernel announces a link's IPv4 addresses when its MAC address changes, too.
        requests.append(_change(nic, link.announce_on_up_body(nic.index)))
        requests.append(_change(nic, link.settings_body(nic.index, mac=plan.mac), f"set MAC address {plan.mac} of"))
    if plan.link_address:
        requests.append(address.request(far, plan.link_address))
    requests += [neighbour.put(far, one, plan.host_mac) for one in plan.new_hosts]
    requests += [route.request(_need(links, one.device or plan.pod_end, plan.netns), one) for one in plan.routes]
    for one in plan.rules:
        # The kernel numbers it, so that it would not notice that it has one.
        requests += [rule.remove(one), rule.add(one)]
    requests += [rule.add(one) for one in plan.mark_rules]
    requests += [route.remove(_need(links, one.device, plan.netns), one) for one in plan.withdrawn]
    return requests


def _node_requests(plan: CoordinationPlan, node: RouteSocket, near: LinkState) -> list[Request]:
    requests = []
    if plan.makes_pair:
        # A pod may send over the pair from an address of any of its links.
        settings = link.settings_body(near.index, alias=owner_alias(plan.container_id), rp_filter=0)
        requests.append(_change(near, settings))
    stale = [one for one in neighbour.everywhere(node, plan.pod_addresses) if one[0] != near.index]
    requests += [neighbour.remove(index, at, where=f"link #{index}") for index, at in stale]
    requests += [rule.add(one, protocol=RULE_PROTOCOL) for one in node_rules(plan)]
    requests += [neighbour.put(near, one, plan.pod_mac) for one in plan.pod_addresses]
    for one in plan.host_routes:
        route.clear(node, one)
    return requests + [route.request(near, one, replace=True) for one in plan.host_routes]


def node_rules(plan: CoordinationPlan) -> list[RulePlan]:
    """The node's rules that lead to its routes to pods."""
    return [RulePlan(version=version, table=plan.host_table, priority=RULE_PRIORITY) for version in plan.versions]


def _set_pod(plan: CoordinationPlan) -> None:
    """Settings that only /proc/sys takes; the calling thread is in the pod's namespace."""
    if 6 in plan.versions:
        _write(ipv6_setting(plan.pod_end, "disable_ipv6"), 0, needed=True)
    if plan.rp_filter >= 0:
        _write(ipv4_setting("all", "rp_filter"), plan.rp_filter)


def _set_node(plan: CoordinationPlan) -> None:
    if 6 in plan.versions:
        _write(ipv6_setting(plan.host_veth, "disable_ipv6"), 0, needed=True)
        if plan.makes_pair:
            # Nothing that a pod says makes routes of the node's.
            _write(ipv6_setting(plan.host_veth, "accept_ra"), 0)


def _advertise(advertiser: Advertiser, plan: CoordinationPlan, links: Links) -> None:
    nic = replace(_need(links, plan.ifname, plan.netns), mac=plan.mac)
    for one in plan.pod_addresses:
        if ":" in one:
            try:
                advertiser.advertise(nic, IPv6Address(one))
            except CniError as error:
                # The interface works; a neighbour with a stale entry finds out by itself (RFC 4861, 7.3).
                _log.warning("%s", error)


# ---------------------------------------------------------------- taking away


def _leave_node(plan: CoordinationPlan, node: RouteSocket, near: LinkState, *, pair: bool) -> None:
    if plan.makes_pair:
        if pair:
            link.delete(node, near)
        return  # with the pair go its routes and neighbours on both sides
    requests = [route.remove(near, one) for one in plan.host_routes]
    requests += [neighbour.remove(near.index, one, where=near.ifname) for one in plan.pod_addresses]
    node.pipeline(requests)


def _leave_pod(plan: CoordinationPlan, stack: ExitStack, netns: Netns, *, failed: bool) -> None:
    """Undo what was done in the pod; what other NICs use as well stays.

    Of a first NIC whose ADD did not fail the firewall's table stays, too: without veth0 it does nothing, the namespace
    goes next, and removing it takes longer than all the rest.
    """
    pod = stack.enter_context(route_socket(netns))
    links = {one.ifname: one for one in link.listed(pod)}
    others = _of_others(plan, pod, links)
    alone = frozenset({4, 6} - {one.version for one in others})
    reached = {one.destination for one in others}
    requests = [
        route.remove(links[device], one)
        for one in reversed(plan.routes)
        if (device := one.device or plan.pod_end) in links
        and not (plan.makes_pair and device == plan.pod_end)
        and (one.version in alone or not _is_shared(plan, one))
    ]
    nic = links.get(plan.ifname)
    if nic is not None and (plan.former_mac or plan.former_tx_queue_len):
        mac = plan.former_mac if nic.mac == plan.mac else ""
        body = link.settings_body(nic.index, mac=mac, tx_queue_len=plan.former_tx_queue_len)
        requests.append(_change(nic, body, "give back its settings to", fine=(errno.ENODEV,)))
    # The NIC itself goes next: its default route would only be in the way of the one that comes back.
    requests += [
        route.restore(links[one.device], one)
        for one in plan.withdrawn
        if one.device in links and (failed or one.device != plan.ifname)
    ]
    requests += [rule.remove(one) for one in plan.rules if one.version in alone or one.table == plan.table]
    requests += [rule.remove(one) for one in (*plan.mark_rules, *plan.common_rules) if one.version in alone]
    common = [one for one in plan.common_routes if one.version in alone and one.device in links]
    requests += [route.remove(links[one.device], one) for one in sorted(common, key=lambda one: not one.gateway)]
    far = links.get(plan.pod_end)
    if far is not None and not plan.makes_pair:
        hosts = (*plan.new_hosts, *plan.common_hosts(4), *plan.common_hosts(6))
        requests += [neighbour.remove(far.index, one, where=far.ifname) for one in hosts if single(one) not in reached]
    pod.pipeline(requests)
    marked = [version for version in (*plan.marked, *plan.common_marked) if version in alone]
    if marked and (failed or not plan.makes_pair):
        with netns.entered():
            filters = stack.enter_context(FilterSocket())
        nftables.remove(filters, marked)


def _of_others(plan: CoordinationPlan, pod: RouteSocket, links: Links) -> list[RoutePlan]:
    """The way to the node of other NICs: each has a table with routes to the node's addresses of its IP versions."""
    far = links.get(plan.pod_end)
    if plan.makes_pair or far is None:
        return []
    own = {MAIN_TABLE, REPLY_TABLE, plan.table}
    return [one for _, one in route.everything(pod, index=far.index) if one.table not in own]


def _is_shared(plan: CoordinationPlan, one: RoutePlan) -> bool:
    return one.device == plan.pod_end and one.table in {MAIN_TABLE, REPLY_TABLE}


# ---------------------------------------------------------------- parts


def _write(setting: Path, value: int, *, needed: bool = False) -> None:
    try:
        if setting.read_text().strip() != str(value):
            setting.write_text(str(value))
    except OSError as error:
        if needed:
            raise KernelRefused(f"{setting} cannot be set to {value}", str(error), errno=error.errno or 0) from None
        _log.debug("%s stays as it is: %s", setting, error)


def _change(
    at: LinkState, body: bytes, doing: str = "set up or change the settings of", *, fine: tuple[int, ...] = ()
) -> Request:
    return Request(link.RTM_SETLINK, 0, body, f"{doing} {at.ifname}", fine)


def _need(links: Links, ifname: str, where: str) -> LinkState:
    found = links.get(ifname)
    if found is None:
        raise KernelRefused(f"there is no interface {ifname} in {where}")
    return found
