"""The interfaces of one ADD, built: links and addresses at the same time, then what needs both, one after the other.

Undoing is not done here: what was begun is in the journal, and the sandbox actor takes that back.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio

from actors.node.addressing import Wanted, allocate
from actors.node.asking import Asking
from actors.node.controllers import Controllers
from actors.node.detection import Detection
from actors.node.nic import Nic, naming
from actors.node.pfs import PhysicalFunctions
from api.reasons import Explanation
from api.wire import Allocate, Allocated
from cni.coordination import CoordinationPlan
from cni.journal import JournalEntry
from cni.kernel import Kernel
from runtime.clock import Clock
from runtime.errors import first
from runtime.together import together


class Construction:
    """See the module."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        pfs: PhysicalFunctions,
        controllers: Controllers,
        detection: Detection,
        clock: Clock,
        note: Callable[[JournalEntry], Awaitable[None]],
        built: Callable[[], list[CoordinationPlan]],
    ) -> None:
        """`note` writes an entry into the journal, `built` says what the container's entries have of connections."""
        self._kernel = kernel
        self._pfs = pfs
        self._controllers = controllers
        self._detection = detection
        self._clock = clock
        self._note = note
        self._built = built

    def __repr__(self) -> str:
        return "<Construction>"

    async def build(self, nics: Sequence[Nic], *, begun: int, disputed: bool, meta: bool) -> Allocated | None:
        """Have all that the interfaces need, or raise; then what stands is the caller's to undo.

        Args:
            nics: of one call, at least one; nothing of them is there but what was reserved.
            begun: as in `api.wire.Allocate`.
            disputed: as well.
            meta: as well.

        Returns:
            What the controller granted, with the cluster's settings; None where no interface wants addresses.

        Raises:
            actors.node.addressing.HasNetworks: nothing was granted, and the links stand.
            CniError: something of it cannot be.
            Exception: what `actors.node.addressing.as_cni` understands.
        """
        wanting = [nic for nic in nics if nic.wants_addresses]

        async def request() -> Allocate:
            wanted = [
                Wanted(
                    invocation=nic.invocation,
                    masters=await nic.masters(self._kernel, self._pfs),
                    parent_mac=await nic.parent_mac(self._kernel),
                    links=await nic.possible_parents(self._kernel),
                )
                for nic in wanting
            ]
            return allocate(wanted, begun=begun, disputed=disputed, meta=meta)

        def asking() -> Asking:
            return Asking(request, controllers=self._controllers, clock=self._clock)

        try:
            async with anyio.create_task_group() as group:
                if not wanting:
                    await self._make(nics)
                    await self._furnish(nics, Allocated((), (), Explanation(), ""))
                    return None
                first_try = asking()
                group.start_soon(first_try.run)
                later = _later(nics)
                await self._make([nic for nic in nics if nic not in later])
                granted = await self._address(nics, wanting, first_try, asking, later=later)
        except BaseExceptionGroup as failures:
            raise first(failures) from failures
        return granted

    async def _make(self, nics: Sequence[Nic]) -> None:
        """The links. One that cannot be made knows why.

        They are made at the same time, but for one whose parent is another one of them.
        """
        made = {nic.ifname: anyio.Event() for nic in nics}

        async def make(nic: Nic, parent: str) -> None:
            if parent:
                await made[parent].wait()
            await nic.make(self._kernel, self._pfs)
            made[nic.ifname].set()

        await together(*(partial(make, nic, _awaited(nic, nics)) for nic in nics))

    async def _address(
        self,
        nics: Sequence[Nic],
        wanting: Sequence[Nic],
        first_try: Asking,
        another: Callable[[], Asking],
        *,
        later: Sequence[Nic],
    ) -> Allocated:
        """Give the interfaces what is granted, and return when that is the answer, too.

        Those of `later` are made then. They are not asked for on the network: the provider of their addresses answers
        for those.
        """
        asking = first_try

        def take(granted: Allocated) -> None:
            together = frozenset(nic.ifname for nic in wanting)
            for nic in wanting:
                nic.take(granted, first=nic is wanting[0], together=together)

        async def again() -> Allocated:
            nonlocal asking
            asking = another()
            await asking.run()
            answer = await asking.answered()
            take(answer)
            return answer

        try:
            granted = await asking.granted()
            take(granted)
            await self._make(later)
            for nic in nics:
                _raise_failure(nic)
            looked_for = [nic for nic in wanting if nic.entry.assigned is None]
            granted = await self._detection.settle(looked_for, granted, again, recorded=first_try.answered)
            await self._furnish(nics, granted)
            await first_try.answered()
            return granted
        finally:
            await first_try.ended()  # it is not to be cut short: what it is granted may have to be given back
            for nic in wanting:
                if nic.entry.addresses:
                    nic.answered(doubtful=first_try.doubtful or asking.doubtful)

    async def _furnish(self, nics: Sequence[Nic], allocated: Allocated) -> None:
        """What needs a link, and the addresses of all."""
        for nic in nics:
            _raise_failure(nic)
            with naming(nic.invocation):
                await nic.configure(self._kernel)
                await nic.coordinate(
                    self._kernel, allocated.coordinator, allocated.nics, built=self._built(), note=self._note
                )
                await nic.limit(self._kernel, self._pfs, allocated.bandwidth)


def _raise_failure(nic: Nic) -> None:
    if nic.failure is not None:
        with naming(nic.invocation):
            raise nic.failure


def _later(nics: Sequence[Nic]) -> list[Nic]:
    """Those that can only be made when there are addresses, and those that stand on them."""
    found = [nic for nic in nics if nic.is_assigned]
    while True:
        names = {nic.ifname for nic in found}
        more = [nic for nic in nics if nic not in found and nic.parent_inside in names]
        if not more:
            return found
        found += more


def _awaited(nic: Nic, nics: Sequence[Nic]) -> str:
    """The interface of the call that has to be there before this one; empty for none, and for those in a circle.

    Where each is the parent of another the kernel says of the first that its parent is missing.
    """
    parents = {one.ifname: one.parent_inside for one in nics}
    passed, at = {nic.ifname}, nic.parent_inside
    while at in parents:
        if at in passed:
            return ""
        passed.add(at)
        at = parents[at]
    return nic.parent_inside if nic.parent_inside in parents else ""
