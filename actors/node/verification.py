"""The CNI verb CHECK: whether a container's interface is still what its ADD made. Looks, and changes nothing."""

from cni.errors import StateDiffers, UnknownContainer
from cni.journal import JournalEntry, State
from cni.kernel import Kernel
from cni.plan import MADE_KINDS, address_plan, link_plan
from cni.protocol import Invocation, Role


async def verify(kernel: Kernel, invocation: Invocation, entry: JournalEntry | None) -> None:
    """Compare the kernel with the journal's entry.

    Raises:
        UnknownContainer: no ADD of this interface succeeded here.
        StateDiffers: something is missing or was changed; the message says what.
        KernelRefused: the kernel does not say.
    """
    if entry is None or entry.state is not State.ADDED:
        msg = f"CNI_CONTAINERID: no interface {invocation.ifname} was added for container {invocation.container_id}"
        raise UnknownContainer(msg)
    if entry.role is Role.IPAM:
        return
    seen = await kernel.inspect(entry.netns, entry.ifname)
    if seen is None:
        msg = f"interface {entry.ifname} is gone from {entry.netns}"
        raise StateDiffers(msg)
    if seen.link.mac != entry.mac:
        msg = f"interface {entry.ifname}: MAC is {seen.link.mac}, expected {entry.mac}"
        raise StateDiffers(msg)
    if invocation.role is Role.MAIN and invocation.link_kind in MADE_KINDS:
        others = await kernel.link_differences(link_plan(invocation))
        if others:
            msg = f"interface {entry.ifname} is not the link that ADD made"
            raise StateDiffers(msg, "; ".join(others))
    missing = [address for address in entry.addresses if address not in seen.addresses]
    if missing:
        msg = f"interface {entry.ifname} lacks {', '.join(missing)}"
        raise StateDiffers(msg, f"it has {', '.join(seen.addresses) or 'no address'}")
    expected = () if entry.result is None else address_plan(entry.result).routes
    lost = [dst for dst, gw in expected if (dst, gw) not in seen.routes]
    if lost:
        msg = f"interface {entry.ifname} lacks the route to {', '.join(lost)}"
        raise StateDiffers(msg, f"it has {', '.join(dst for dst, _ in seen.routes) or 'no route'}")
    if entry.coordination is not None:
        differences = await kernel.differences(entry.coordination)
        if differences:
            msg = f"the connection of interface {entry.ifname} with its node is not what ADD made"
            raise StateDiffers(msg, "; ".join(differences))
