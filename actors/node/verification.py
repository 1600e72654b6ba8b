"""The CNI verb CHECK: whether a container's interface is still what its ADD made. Looks, and changes nothing."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_interface

from actors.node.pfs import PhysicalFunctions
from cni.coordination import gone_from_main, unchanged
from cni.errors import StateDiffers, UnknownContainer
from cni.journal import JournalEntry, State
from cni.kernel import Kernel
from cni.plan import MADE_KINDS, address_plan, assigned_plan, link_plan
from cni.protocol import Invocation, Role
from cni.result import Result
from cni.sriov import VfHeld, vf_plan, with_rate


async def verify(
    kernel: Kernel,
    pfs: PhysicalFunctions,
    invocation: Invocation,
    entry: JournalEntry | None,
    *,
    beside: Sequence[JournalEntry],
) -> None:
    """Compare the kernel with the journal's entry; `beside` are all entries of the container.

    Raises:
        UnknownContainer: no ADD of this interface succeeded here.
        StateDiffers: something is missing or was changed; the message says what.
        KernelRefused: the kernel does not say.
    """
    if entry is None or entry.state is not State.ADDED:
        msg = f"CNI_CONTAINERID: no interface {invocation.ifname} was added for container {invocation.container_id}"
        raise UnknownContainer(msg)
    if entry.vf is not None:
        await _verify_vf(pfs, invocation, entry, entry.vf)
    if entry.role is Role.MAIN and (entry.vf is None or entry.vf.ifname):
        await _verify_link(kernel, invocation, entry, beside=beside)
    if entry.coordination is not None:
        plans = [one.coordination for one in beside if one.coordination is not None]
        differences = await kernel.differences(unchanged(entry.coordination, plans))
        if differences:
            msg = f"the connection of interface {entry.ifname} with its node is not what ADD made"
            raise StateDiffers(msg, "; ".join(differences))
    if entry.limits is not None:
        lifted = await kernel.lifted(entry.limits)
        if lifted:
            msg = f"interface {entry.ifname} is not limited as ADD left it"
            raise StateDiffers(msg, "; ".join(lifted))


async def _verify_vf(pfs: PhysicalFunctions, invocation: Invocation, entry: JournalEntry, vf: VfHeld) -> None:
    rate = 0 if entry.limits is None else entry.limits.vf_rate
    others = await pfs.differences(entry, with_rate(vf_plan(invocation), rate, vf))
    if others:
        msg = f"interface {entry.ifname} is not the virtual function that ADD lent"
        raise StateDiffers(msg, "; ".join(others))


async def _verify_link(
    kernel: Kernel, invocation: Invocation, entry: JournalEntry, *, beside: Sequence[JournalEntry]
) -> None:
    seen = await kernel.inspect(entry.netns, entry.ifname)
    if seen is None:
        msg = f"interface {entry.ifname} is gone from {entry.netns}"
        raise StateDiffers(msg)
    plans = [one.coordination for one in beside if one.coordination is not None]
    told_mac, told_addresses = _told(invocation.prev_result or Result(), entry.ifname)
    moved_mac = next((plan.mac for plan in reversed(plans) if plan.mac and plan.ifname == entry.ifname), entry.mac)
    mac = told_mac or moved_mac
    if seen.link.mac != mac:
        msg = f"interface {entry.ifname}: MAC is {seen.link.mac}, expected {mac}"
        raise StateDiffers(msg)
    if invocation.role is Role.MAIN and invocation.link_kind in MADE_KINDS:
        plan = link_plan(invocation)
        if entry.assigned is not None:
            plan = assigned_plan(plan, entry.assigned)
        others = await kernel.link_differences(plan)
        if others:
            msg = f"interface {entry.ifname} is not the link that ADD made"
            raise StateDiffers(msg, "; ".join(others))
    wanted = dict.fromkeys((*entry.addresses, *told_addresses))
    missing = [address for address in wanted if address not in seen.addresses]
    if missing:
        msg = f"interface {entry.ifname} lacks {', '.join(missing)}"
        raise StateDiffers(msg, f"it has {', '.join(seen.addresses) or 'no address'}")
    moved = gone_from_main(plans, entry.ifname)
    routes = () if entry.result is None else address_plan(entry.result).routes
    expected = [route for route in routes if route not in moved]
    lost = [dst for dst, gw in expected if (dst, gw) not in seen.routes]
    lost += [
        network for network in _networks(entry.addresses) if network not in seen.networks and (network, "") not in moved
    ]
    if lost:
        msg = f"interface {entry.ifname} lacks the route to {', '.join(lost)}"
        raise StateDiffers(msg, f"it has {', '.join(dst for dst, _ in seen.routes) or 'no route'}")


def _networks(addresses: Iterable[str]) -> Iterator[str]:
    """To which the kernel makes a route when an interface gets such an address."""
    for one in map(ip_interface, addresses):
        if one.network.prefixlen < one.max_prefixlen:
            yield str(one.network)


def _told(result: Result, ifname: str) -> tuple[str, list[str]]:
    """The MAC address and the addresses that an interface of the container has had at the end of its ADD.

    Plugins that came later in the list may have changed the first and added to the others.
    """
    at = next((at for at, one in enumerate(result.interfaces) if one.name == ifname and one.sandbox), None)
    if at is None:
        return "", []
    addresses = [str(ip_interface(ip.address)) for ip in result.ips if ip.interface == at]
    return result.interfaces[at].mac.lower(), addresses
