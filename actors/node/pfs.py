"""The SR-IOV NICs of this node, for sandbox actors: finds the actor of the one that is meant, and asks it.

No actor: it decides nothing. An interface on a virtual function goes through `reserve`, journal, `take` and in the end
`give`, which may come at any time after `reserve`, and again.
"""

from msgspec.structs import replace

from actors.node.disk import Journal
from actors.node.pf import Announce, Give, Limit, Message, PfActor, Reserve, Take, holder
from cni.errors import TryAgainLater
from cni.journal import JournalEntry
from cni.kernel import Kernel
from cni.plan import LinkState
from cni.sriov import VfPlan
from cni.vfs import Vfs
from runtime.actor import Question, Ref
from runtime.errors import ActorError
from runtime.supervision import Supervisor

_CALL_SECONDS = 30.0
"""A driver that does not answer is asked for two seconds, several settings in a row; and others may come first."""


class PhysicalFunctions:
    """See the module. An entry that has no `vf` has nothing to do with it."""

    def __init__(self, supervisor: Supervisor, *, vfs: Vfs, kernel: Kernel, journal: Journal) -> None:
        """`supervisor` gets a child for every NIC that is used."""
        self._supervisor = supervisor
        self._vfs = vfs
        self._kernel = kernel
        self._journal = journal
        self._refs: dict[str, Ref[Message]] = {}

    def __repr__(self) -> str:
        return f"<PhysicalFunctions {', '.join(self._refs) or 'none'}>"

    async def reserve(self, entry: JournalEntry, plan: VfPlan) -> JournalEntry:
        """Keep a VF for an interface: the entry with it, to be written before `take`. Nothing is changed yet.

        Raises:
            InvalidConfig: there is no such VF, or no such PF.
            TryAgainLater: it is in use, or all are.
            KernelRefused: the kernel does not say.
        """
        pf = await self._vfs.physical_function(plan)
        held = await self._ask(pf, Reserve(entry.key, entry.netns, holder(entry), plan))
        return replace(entry, vf=held)

    async def take(self, entry: JournalEntry, plan: VfPlan) -> LinkState | None:
        """Bring the reserved VF into the container: its interface, down; None for one that has none.

        Raises what `Vfs.take_vf` does, and `TryAgainLater`. Then `give` sees to what is left.
        """
        if entry.vf is None:
            raise ValueError(entry)
        return await self._ask(entry.vf.pf, Take(entry.key, plan, entry.vf))

    async def give(self, entry: JournalEntry) -> None:
        """Make the VF what it was, wherever it is, unless it is another container's by now.

        Raises:
            KernelRefused: driver or kernel do not want to. It can be tried again.
            TryAgainLater: it is on its way back from a namespace that died.
        """
        if entry.vf is not None:
            await self._ask(entry.vf.pf, Give(entry.key, entry.netns, entry.vf))

    async def limit(self, entry: JournalEntry, mbps: int) -> None:
        """Limit what the VF may send, unless that is limited more. Raises `KernelRefused` and `TryAgainLater`."""
        if entry.vf is not None:
            await self._ask(entry.vf.pf, Limit(entry.vf, mbps))

    def announce(self, entry: JournalEntry) -> None:
        """Tell the neighbours of the interface's addresses when it has its carrier. Returns at once."""
        if entry.vf is not None and entry.vf.ifname:
            self._pf(entry.vf.pf).tell(Announce(entry.netns, entry.ifname))

    async def networks(self, entry: JournalEntry) -> tuple[str, ...]:
        """The addresses, with prefix lengths, of the NIC that the VF is of."""
        return () if entry.vf is None else await self._vfs.pf_networks(entry.vf.pf)

    async def differences(self, entry: JournalEntry, plan: VfPlan) -> list[str]:
        """What of the plan is not so, in words. Raises `KernelRefused`."""
        return [] if entry.vf is None else await self._vfs.vf_differences(plan, entry.vf)

    async def _ask[R](self, pf: str, question: Question[R]) -> R:
        try:
            return await self._pf(pf).ask(question, timeout=_CALL_SECONDS)
        except ActorError as error:
            msg = f"the virtual functions of {pf} are busy"
            raise TryAgainLater(msg, str(error)) from error

    def _pf(self, pf: str) -> Ref[Message]:
        ref = self._refs.get(pf)
        if ref is None:
            ref = self._refs[pf] = self._supervisor.add_actor(
                pf,
                lambda: PfActor(pf, vfs=self._vfs, kernel=self._kernel, journal=self._journal),
                capacity=PfActor.capacity,
            )
        return ref
