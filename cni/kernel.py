"""The node's kernel as the actors see it: a handful of asynchronous verbs, each idempotent or undone on failure."""

from collections.abc import Sequence
from typing import Protocol

from cni.plan import AddressPlan, Inspection, LinkPlan, LinkState


class Kernel(Protocol):
    """Links in containers' namespaces. Every method opens the namespace anew and closes it before it returns."""

    async def attach_link(self, plan: LinkPlan) -> LinkState:
        """Make the link, down and without addresses. On failure nothing is left.

        Raises:
            InvalidNetns: `plan.netns` is no network namespace, or the node's own.
            InvalidConfig: the parent is missing, or smaller than the wanted MTU.
            InterfaceExists: the namespace has an interface of that name.
            KernelRefused: anything else that the kernel said no to, in its own words.
        """
        ...

    async def configure(self, netns: str, ifname: str, plan: AddressPlan) -> None:
        """Addresses, up, routes, announcement, in this order. On failure the link keeps what it got: detach it.

        Raises:
            InvalidNetns: `netns` is no network namespace.
            KernelRefused: the link is missing, or an address or route was refused, in the kernel's own words.
        """
        ...

    async def detach_link(self, netns: str, ifname: str, *, kind: str = "", mac: str = "") -> bool:
        """Remove the link with all that is on it; say whether there was one.

        A missing namespace or link is fine. With `kind` or `mac`, a link that differs in them is somebody else's: it
        stays, and the answer is False.

        Raises:
            KernelRefused: it is there and cannot be removed.
        """
        ...

    async def inspect(self, netns: str, ifname: str) -> Inspection | None:
        """The link and what is configured on it; None when the namespace or the link is missing."""
        ...

    async def netns_exists(self, netns: str) -> bool:
        """Whether the path is a network namespace now."""
        ...

    async def carries(self, netns: str, ifname: str, addresses: Sequence[str] = ()) -> bool:
        """Whether the namespace still has the link; with `addresses`, whether any link in it carries one of them.

        Addresses are with or without prefix length.
        """
        ...
