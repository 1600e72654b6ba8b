"""Which NIC a pod's packets leave by, where it has several.

The main table keeps the default route of one NIC. Packets from an address of another NIC are looked up in a table of
that NIC's own, so that they leave by it. Usually the NIC that comes last is the one that gets a table. Where it is the
one that the default route is wanted on, the NIC that has had it so far gets the table instead.

The main table is asked for packets from the addresses of the NIC that the default route goes by. So where another NIC
has a route to the same destination, a network that both are in or a route that the pools of both have, that one is in
its NIC's table only.

Each IP version is arranged by itself: a NIC without a default route of one takes nobody's place there.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from cni.coordination.plan import BOOT, MAIN_TABLE, NIC_RULE_PRIORITY, REPLY_TABLE, RoutePlan, RulePlan, single
from cni.coordination.views import PodLink, PodView


class Policy(Struct, frozen=True, kw_only=True):
    """What one IP version takes."""

    rules: tuple[RulePlan, ...] = ()
    copies: tuple[RoutePlan, ...] = ()
    """Into tables of their own."""
    withdrawn: tuple[RoutePlan, ...] = ()
    """From the main table, in an order in which they can come back."""
    own_table: bool = False
    """Whether it is the NIC itself that gets the table."""
    note: str = ""


def policy(
    version: int,
    nic: PodLink,
    pod: PodView,
    *,
    table: int,
    wanted: str,
    overlay: bool,
    end: str,
    first: bool,
    planned: Sequence[RoutePlan],
) -> Policy:
    """How a NIC fits in.

    Args:
        version: of IP.
        nic: that was added last.
        pod: with its routes as they are, the new NIC's among them.
        table: the number that is free for this NIC.
        wanted: the NIC that the default route is to go by; empty: the one that has it.
        overlay: whether the way to the node is the cluster's own network's: then no packets are marked.
        end: the pod's end of the way to the node; its routes are for all NICs.
        first: whether no NIC before this one had the IP version; then, with an overlay, packets from the overlay's
            address get a table, too.
        planned: routes of the main table that are to be made along with it.
    """
    defaults = [one for one in pod.main(version) if one.is_default]
    owners = [one.device for one in defaults if one.device != nic.ifname]
    if not owners:
        return Policy(note=f"no other interface of the pod has an IPv{version} default route: routes stay as they are")
    owner = wanted if wanted in owners else owners[0]
    replaced = wanted == nic.ifname and any(one.device == nic.ifname for one in defaults)
    mover = owner if replaced else nic.ifname
    mine = [one for one in (*pod.main(version), *planned) if one.device == mover and one.version == version]
    moved = [
        *(one for one in mine if one.is_default),
        *_doubled(pod, version, nic.ifname if replaced else owner, mover, end),
    ]
    priority = None if overlay else NIC_RULE_PRIORITY
    rules = _from(pod, mover, version, table=table, priority=priority)
    copies = [_copied(one, table) for one in mine]
    if overlay and first and not replaced:
        rules += _from(pod, owner, version, table=REPLY_TABLE, priority=priority)
        copies += [_copied(one, REPLY_TABLE) for one in defaults if one.device == owner]
    return Policy(
        rules=tuple(rules),
        copies=tuple(copies),
        withdrawn=tuple(sorted(moved, key=lambda one: bool(one.gateway))),
        own_table=not replaced,
    )


def _doubled(pod: PodView, version: int, keeper: str, mover: str, end: str) -> list[RoutePlan]:
    """Routes of the main table, but for default routes, to where one of the `keeper`'s leads that stand elsewhere."""
    main = pod.main(version)
    kept = {one.destination for one in main if one.device == keeper and not one.is_default}
    elsewhere = {
        (one.device, one.destination)
        for one in pod.routes
        if one.table not in {MAIN_TABLE, REPLY_TABLE} and one.device != end
    }
    return [
        one
        for one in main
        if one.destination in kept
        and one.device != keeper
        and (one.device == mover or (one.device, one.destination) in elsewhere)
    ]


def _from(pod: PodView, ifname: str, version: int, *, table: int, priority: int | None) -> list[RulePlan]:
    nic = pod.link(ifname)
    addresses = () if nic is None else nic.hosts(version)
    return [RulePlan(version=version, table=table, source=single(address), priority=priority) for address in addresses]


def _copied(route: RoutePlan, table: int) -> RoutePlan:
    """The same in another table; there each destination has one way, so metrics mean nothing."""
    return replace(route, table=table, metric=0, protocol=BOOT)
