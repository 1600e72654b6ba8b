"""The node's virtual functions as the actors see them: a port beside `cni.kernel`, and the one of this machine.

Its calls take longer than others (a driver is asked and asked again), so they have threads of their own.
"""

from functools import partial
from typing import Protocol

from cni.kernel import timed
from cni.netlink import sriov
from cni.netlink.pci import PciBus
from cni.plan import LinkState
from cni.sriov import PfView, Returned, VfHeld, VfPlan
from cni.workers import Workers


class Vfs(Protocol):
    """VFs, each by its PCI address. One PF's are touched by one caller at a time: `actors.node.pf`."""

    async def physical_function(self, plan: VfPlan) -> str:
        """The PCI address of the PF whose VF a plan wants.

        Raises:
            InvalidConfig: there is no such device, or it is none.
        """
        ...

    async def view_pf(self, pf: str) -> PfView:
        """A PF and what the node sees of its VFs.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def survey_vf(self, pci: str) -> VfHeld:
        """A VF as it is now. `order` and `mark` are left to the caller.

        Raises:
            InvalidConfig: it is none, or its PF's interface is not on the node.
            TryAgainLater: its interface is in a container, or it has no driver.
        """
        ...

    async def take_vf(self, plan: VfPlan, held: VfHeld) -> LinkState | None:
        """Mark it, set it at its PF, move it into the container, give it name, MTU and MAC address there; it is down.

        None for one without an interface. On failure it is given back, or stays as `give_vf` can find it.

        Raises:
            InvalidNetns: `plan.netns` is no network namespace, or the node's own.
            InvalidConfig: its MTU would be larger than the PF's.
            InterfaceExists: the container has an interface of that name.
            KernelRefused: driver or kernel say no, in their own words.
        """
        ...

    async def give_vf(self, netns: str, held: VfHeld, *, settle: bool = False, sure: bool = False) -> Returned:
        """Make it what it was, wherever it is: in the container, or on the node under any name.

        When it is in neither place nothing is done, since it may be under way from a namespace that died; with
        `settle` its settings at the PF are then put back all the same. Nor is anything done to one on the node with
        the mark of another container, unless the caller is `sure`.

        Raises:
            KernelRefused: driver or kernel say no. It can be tried again.
        """
        ...

    async def limit_vf(self, held: VfHeld, mbps: int) -> None:
        """Limit what it may send, unless it has a stricter limit.

        Raises:
            KernelRefused: the driver does not know rates.
        """
        ...

    async def vf_differences(self, plan: VfPlan, held: VfHeld) -> list[str]:
        """What of the plan is not so, in words; addresses and routes are compared by others.

        Raises:
            KernelRefused: the kernel does not say.
        """
        ...

    async def pf_networks(self, pf: str) -> tuple[str, ...]:
        """The addresses, with prefix lengths, of a PF's interface."""
        ...

    async def announce_vf(self, netns: str, ifname: str) -> bool:
        """Tell the neighbours of an interface's addresses; False while it has no carrier: nobody would hear it.

        They were announced when it was set up, but a VF gets its carrier later. True also when it is gone or down.
        """
        ...


class LinuxVfs:
    """The VFs of this machine. Implements `Vfs`."""

    def __init__(self, bus: PciBus | None = None, *, threads: int = 4) -> None:
        """So many calls at a time."""
        self._bus = bus or PciBus()
        self._workers = Workers("sriov", threads=threads)

    def __repr__(self) -> str:
        return f"<LinuxVfs {self._bus} {self._workers}>"

    async def physical_function(self, plan: VfPlan) -> str:
        """See `Vfs.physical_function`."""
        return await timed(self._workers, partial(sriov.physical_function, plan, bus=self._bus))

    async def view_pf(self, pf: str) -> PfView:
        """See `Vfs.view_pf`."""
        return await timed(self._workers, partial(sriov.view_pf, pf, bus=self._bus))

    async def survey_vf(self, pci: str) -> VfHeld:
        """See `Vfs.survey_vf`."""
        return await timed(self._workers, partial(sriov.survey_vf, pci, bus=self._bus))

    async def take_vf(self, plan: VfPlan, held: VfHeld) -> LinkState | None:
        """See `Vfs.take_vf`."""
        return await timed(self._workers, partial(sriov.take_vf, plan, held, bus=self._bus))

    async def give_vf(self, netns: str, held: VfHeld, *, settle: bool = False, sure: bool = False) -> Returned:
        """See `Vfs.give_vf`."""
        give = partial(sriov.give_vf, netns, held, settle=settle, sure=sure, bus=self._bus)
        return await timed(self._workers, give)

    async def limit_vf(self, held: VfHeld, mbps: int) -> None:
        """See `Vfs.limit_vf`."""
        await timed(self._workers, partial(sriov.limit_vf, held, mbps, bus=self._bus))

    async def vf_differences(self, plan: VfPlan, held: VfHeld) -> list[str]:
        """See `Vfs.vf_differences`."""
        return await timed(self._workers, partial(sriov.vf_differences, plan, held, bus=self._bus))

    async def pf_networks(self, pf: str) -> tuple[str, ...]:
        """See `Vfs.pf_networks`."""
        return await timed(self._workers, partial(sriov.pf_networks, pf, bus=self._bus))

    async def announce_vf(self, netns: str, ifname: str) -> bool:
        """See `Vfs.announce_vf`."""
        return await timed(self._workers, sriov.announce_vf, netns, ifname)
