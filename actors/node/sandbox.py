"""The actor of one pod sandbox on this node: does ADD, CHECK and DEL of that container one after the other.

Messages: `Attach`, `Verify`, `Detach`, `Renounce` and `Mend` from the node actor, `Finished` from its own work. State:
the container's journal entries by interface. Persists: one journal entry an interface, as "adding" before anything is
asked or built, as "added" with the result before the runtime is answered, as "releasing" from the moment the link is
gone. Answers: when the kernel and the journal agree with the answer.

What a crash leaves: with "adding", possibly a link and possibly records, which the next agent's `Mend` takes down and
gives back; with "added", a working interface; with "releasing", records that the outbox gives back.

While one agent replaces another, both may be asked about one container. A verb therefore claims the container from the
other process first, and reads the entry again, which the other one may have changed since.

An ADD builds the link while the address is being allocated. A failed one is undone in reverse, and what the controller
may still hold is given back by the outbox.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, assert_never

import anyio
import msgspec
from msgspec import Struct

from actors.node.addressing import (
    ALLOCATE_SECONDS,
    LinkFailed,
    allocate,
    as_cni,
    ask,
    holds_nothing,
    pod_ref,
)
from actors.node.conflict import disown
from actors.node.controllers import Controllers
from actors.node.disk import Journal
from actors.node.outbox import Message as OutboxMessage
from actors.node.outbox import Owe, Recall, Settle
from actors.node.verification import verify
from api.wire import Allocated
from cni import coordination
from cni.coordination import CoordinationPlan, Pair, coordination_plan, host_veth
from cni.errors import (
    CniError,
    InterfaceExists,
    InvalidNetns,
    TryAgainLater,
)
from cni.journal import JournalEntry, Key, State
from cni.kernel import Kernel
from cni.plan import LinkPlan, LinkState, address_plan, link_plan
from cni.protocol import Invocation, Role
from cni.result import Interface, IpConfig, Result, RouteConfig
from runtime.actor import LATER, Actor, Question, Ref
from runtime.envelope import Envelope
from runtime.errors import ActorError
from telemetry import metrics, traces

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 5.0
"""How long an ADD waits for an earlier DEL of the same interface to be over."""
_UNDO_SECONDS = 10.0
_DISOWN_SECONDS = 10.0
_CLAIM_SECONDS = 30.0
"""How long a verb waits for another agent of this node that works on the container: longer than an ADD takes."""


class Attach(Question[Result], frozen=True, tag=True):
    """ADD."""

    invocation: Invocation


class Verify(Question[None], frozen=True, tag=True):
    """CHECK."""

    invocation: Invocation


class Detach(Question[None], frozen=True, tag=True):
    """DEL."""

    invocation: Invocation


class Renounce(Question[None], frozen=True, tag=True):
    """Somebody else uses an address of the container: what our IPAM gave other plugins' interfaces of it goes.

    Answered when nobody else can get it for a while. Raises `actors.node.conflict.KeepsAddresses`, and
    `TransportError`.
    """

    seen: str
    """Who uses it."""


class Mend(Question[None], frozen=True, tag=True):
    """Take down what an agent before left of an interface: an ADD that was cut short, a namespace that is gone."""

    ifname: str


class Finished(Struct, frozen=True, tag=True):
    """The work for one message has ended, with a result or an error."""

    result: Result | None = None
    error: Exception | None = None


Message = Attach | Verify | Detach | Renounce | Mend | Finished


class SandboxActor(Actor[Message]):
    """See the module."""

    capacity = 16
    """A runtime calls one verb at a time for a container; more than a few waiting are repetitions."""

    def __init__(
        self,
        container_id: str,
        *,
        kernel: Kernel,
        journal: Journal,
        controllers: Controllers,
        outbox: Ref[OutboxMessage],
        entries: dict[str, JournalEntry],
    ) -> None:
        """`entries` is what the journal held of this container, by interface; the actor keeps it up to date."""
        self._container_id = container_id
        self._kernel = kernel
        self._journal = journal
        self._controllers = controllers
        self._outbox = outbox
        self._entries = entries
        self._asker: Envelope | None = None

    def __repr__(self) -> str:
        held = {ifname: entry.state for ifname, entry in self._entries.items()}
        return f"<SandboxActor {self._container_id[:12]} {held}{' busy' if self._asker else ''}>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Begin one verb and hold the next ones until it has ended."""
        work: Coroutine[Any, Any, Result | None]
        match message:
            case Attach(invocation):
                work = self._alone(invocation.ifname, lambda known: self._attach(invocation, known))
            case Verify(invocation):
                work = self._alone(invocation.ifname, lambda known: verify(self._kernel, invocation, known))
            case Detach(invocation):
                work = self._alone(invocation.ifname, lambda known: self._detach(invocation, known))
            case Renounce(seen):
                work = self._renounce(seen)
            case Mend(ifname):
                work = self._alone(ifname, self._mend)
            case Finished(result, error):
                asker, self._asker = self._asker, None
                self.release()
                if asker is not None and asker.reply is not None:
                    if error is None:
                        asker.reply.resolve(result)
                    else:
                        asker.reply.fail(error)
                return None
            case _:
                assert_never(message)
        self._asker = envelope
        self.hold()
        self.pipe(work, Finished, failed=lambda error: Finished(error=error), on_behalf=envelope)
        return LATER

    async def _alone[R](self, ifname: str, verb: Callable[[JournalEntry | None], Awaitable[R]]) -> R:
        """Do a verb while no other agent touches the container. It is given the interface's entry as it is now."""
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            known = await self._journal.get(Key(self._container_id, ifname))
            if known is None or known.state is State.RELEASING:
                self._forget(ifname)
            else:
                self._know(known)
            return await verb(known)

    # -- ADD -----------------------------------------------------------------------------------------------------------

    async def _attach(self, invocation: Invocation, known: JournalEntry | None) -> Result:
        ifname = invocation.ifname
        if known is not None and known.state is State.RELEASING:
            self._hand_over(known)
        elif known is not None:
            if known.result is not None and known.netns == invocation.netns and await self._intact(known):
                return known.result
            # Left over from an ADD that could not be undone, or of a namespace that was rebuilt: that goes first.
            await self._take_down(known)
        begun = int(self.system.clock.wall() * 1000)
        disputed = await self._settle(invocation)
        if invocation.role is Role.IPAM and not await self._kernel.netns_exists(invocation.netns):
            msg = f"CNI_NETNS: {invocation.netns} is no network namespace that the agent can see"
            raise InvalidNetns(msg, "nobody could say later whether a link in there still has the address")
        if invocation.role is Role.MAIN and await self._kernel.inspect(invocation.netns, ifname) is not None:
            msg = f"CNI_IFNAME: {ifname} exists already in {invocation.netns}"
            raise InterfaceExists(msg, "an interface of that name was made by somebody else")
        plan = link_plan(invocation) if invocation.role is Role.MAIN else None
        if plan is not None:
            coordination.check(invocation)
        entry = self._entry(invocation)
        await self._put(entry)
        try:
            link, allocated, doubtful = await self._build(invocation, plan, begun=begun, disputed=disputed)
            result = _result(invocation, link, allocated)
            coordinated = None
            if link is not None:
                with traces.span("link.configure"):
                    await self._kernel.configure(invocation.netns, ifname, address_plan(result))
                coordinated = await self._coordinate(invocation, allocated)
            entry = msgspec.structs.replace(
                entry,
                state=State.ADDED,
                pod=msgspec.structs.replace(entry.pod, uid=allocated.pod_uid),
                mac=link.mac if link is not None else "",
                addresses=tuple(a.address for a in allocated.addresses),
                pools=tuple(a.pool for a in allocated.addresses),
                others=allocated.others,
                fixed=allocated.fixed,
                doubtful=doubtful,
                host_veth="" if coordinated is None else coordinated.host_veth,
                coordination=coordinated,
                result=result,
                changed_ns=self._wall_ns(),
            )
            await self._put(entry)
        except BaseException as error:
            if isinstance(error, LinkFailed):
                given = error.allocated
                entry = msgspec.structs.replace(
                    entry,
                    pools=tuple(address.pool for address in given.addresses),
                    others=given.others,
                    fixed=given.fixed,
                    doubtful=error.doubtful,
                )
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_SECONDS):
                await self._undo(entry, made=not isinstance(error, LinkFailed), asked=not holds_nothing(error))
            raise as_cni(error, invocation) from error
        return result

    async def _build(
        self, invocation: Invocation, plan: LinkPlan | None, *, begun: int, disputed: bool
    ) -> tuple[LinkState | None, Allocated, bool]:
        """Link and addresses at the same time.

        A link that fails does not cut the request for addresses short: its answer says what there is to give back.
        """
        link: LinkState | None = None
        failure: CniError | None = None

        async def make(wanted: LinkPlan) -> None:
            nonlocal link, failure
            try:
                with traces.span("link.create"):
                    link = await self._kernel.attach_link(wanted)
            except CniError as error:
                failure = error

        async with anyio.create_task_group() as group:
            if plan is not None:
                group.start_soon(make, plan)
            allocated, doubtful = await self._addresses(invocation, begun=begun, disputed=disputed)
        if failure is not None:
            raise LinkFailed(failure, allocated, doubtful=doubtful)
        return link, allocated, doubtful

    async def _addresses(self, invocation: Invocation, *, begun: int, disputed: bool) -> tuple[Allocated, bool]:
        masters: tuple[str, ...] | None = None
        if invocation.conf.ipam.match_master_subnet:
            masters = await self._kernel.master_networks(invocation.netns, invocation.ifname)
        asked = allocate(invocation, begun=begun, disputed=disputed, masters=masters)
        return await ask(self._controllers, asked, deadline=self.system.clock.now() + ALLOCATE_SECONDS)

    async def _coordinate(self, invocation: Invocation, allocated: Allocated) -> CoordinationPlan | None:
        """The pod's way to its own node and back, where the configuration wants one."""
        if not coordination.wanted(invocation.conf):
            return None
        addresses = tuple(address.address for address in allocated.addresses)
        with traces.span("coordinate"):
            node = await self._kernel.view_node(addresses)
            plan = coordination_plan(invocation, addresses, allocated.coordinator, node)
            if plan is not None:
                await self._kernel.coordinate(plan)
        return plan

    async def _undo(self, entry: JournalEntry, *, made: bool, asked: bool) -> None:
        """Take the link away and see to it that the addresses go back."""
        try:
            if made:
                await detach(self._kernel, entry)
            if asked:
                await self._owe(entry)
            else:
                await self._remove(entry.ifname)
        except (CniError, ActorError) as error:
            # The entry stays as "adding": a DEL or the next start of the agent goes on from here.
            _log.warning("could not undo %s of %s: %s", entry.ifname, entry.container_id, error)

    async def _settle(self, invocation: Invocation) -> bool:
        """Wait until nothing is owed for this container; says whether its addresses may be asked for twice over."""
        question = Settle(Key(self._container_id, invocation.ifname), pod_ref(invocation.args))
        try:
            return await self._outbox.ask(question, timeout=_SETTLE_SECONDS)
        except ActorError as error:
            msg = f"the release of {invocation.ifname} of an earlier DEL of this container is not over"
            raise TryAgainLater(msg, str(error)) from error

    # -- DEL -----------------------------------------------------------------------------------------------------------

    async def _detach(self, invocation: Invocation, known: JournalEntry | None) -> None:
        if known is None and await self._is_over(invocation.ifname):
            return
        # Unknown here, and not of this life: the journal may have been lost. Kernel and controller are asked.
        await self._take_down(known or self._entry(invocation))

    async def _is_over(self, ifname: str) -> bool:
        try:
            return await self._outbox.ask(Recall(Key(self._container_id, ifname)), timeout=_SETTLE_SECONDS)
        except ActorError:
            return False

    async def _renounce(self, seen: str) -> None:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            entries = await self._journal.of(self._container_id)
            given = [one for one in entries if one.role is Role.IPAM and one.state is State.ADDED]
            for entry in given:
                await disown(self._controllers, entry, seen=seen, deadline=self.system.clock.now() + _DISOWN_SECONDS)
            for entry in given:
                await self._owe(entry)

    async def _mend(self, entry: JournalEntry | None) -> None:
        if entry is None:
            return
        if entry.state is State.RELEASING:
            self._hand_over(entry)
        elif entry.state is State.ADDING or not await self._kernel.netns_exists(entry.netns):
            why = "its ADD was cut short" if entry.state is State.ADDING else f"{entry.netns} is gone"
            _log.warning("taking down %s of %s (pod %s): %s", entry.ifname, entry.container_id, entry.pod, why)
            await self._take_down(entry)

    async def _take_down(self, entry: JournalEntry) -> None:
        with traces.span("link.delete"):
            await detach(self._kernel, entry)
        if entry.state is State.RELEASING:
            self._hand_over(entry)
        elif entry.pod.name:
            await self._owe(entry)

    async def _intact(self, entry: JournalEntry) -> bool:
        if entry.role is Role.IPAM:
            return True
        if await self._kernel.inspect(entry.netns, entry.ifname) is None:
            return False
        return entry.coordination is None or not await self._kernel.differences(entry.coordination)

    # -- journal -------------------------------------------------------------------------------------------------------

    async def _owe(self, entry: JournalEntry) -> None:
        """From here on the outbox sees to the release."""
        owed = msgspec.structs.replace(entry, state=State.RELEASING, changed_ns=self._wall_ns())
        await self._put(owed)
        self._hand_over(owed)

    def _hand_over(self, owed: JournalEntry) -> None:
        """The journal says "releasing". It does no harm if the outbox knows already."""
        self._forget(owed.ifname)
        self._outbox.tell(Owe(owed))

    def _entry(self, invocation: Invocation) -> JournalEntry:
        return JournalEntry(
            container_id=invocation.container_id,
            ifname=invocation.ifname,
            netns=invocation.netns,
            network=invocation.conf.name,
            role=invocation.role,
            kind=invocation.link_kind,
            host_veth=_host_veth(invocation),
            pod=pod_ref(invocation.args),
            changed_ns=self._wall_ns(),
        )

    async def _put(self, entry: JournalEntry) -> None:
        await self._journal.put(entry)
        self._know(entry)

    def _know(self, entry: JournalEntry) -> None:
        if entry.ifname not in self._entries:
            metrics.SANDBOXES.inc()
        self._entries[entry.ifname] = entry

    async def _remove(self, ifname: str) -> None:
        await self._journal.remove(Key(self._container_id, ifname))
        self._forget(ifname)

    def _forget(self, ifname: str) -> None:
        if self._entries.pop(ifname, None) is not None:
            metrics.SANDBOXES.dec()

    def _wall_ns(self) -> int:
        return int(self.system.clock.wall() * 1e9)


async def detach(kernel: Kernel, entry: JournalEntry) -> None:
    """Remove the links that an entry stands for; one of another kind is somebody else's and stays.

    Its MAC address does not matter: a chained plugin may have changed it since.
    """
    if entry.role is Role.MAIN and (entry.netns or entry.host_veth):
        pair = Pair(entry.host_veth, entry.container_id) if entry.host_veth else None
        await kernel.detach_link(entry.netns, entry.ifname, kind=entry.kind, pair=pair)


def _host_veth(invocation: Invocation) -> str:
    """Noted before anything is built: after a crash, or with the journal lost, the pair is still found."""
    if invocation.role is Role.MAIN and coordination.wanted(invocation.conf):
        return host_veth(invocation.container_id)
    return ""


def _result(invocation: Invocation, link: LinkState | None, allocated: Allocated) -> Result:
    interfaces = (
        (Interface(name=invocation.ifname, mac=link.mac, mtu=link.mtu, sandbox=invocation.netns),) if link else ()
    )
    index = 0 if link else None
    return Result(
        interfaces=interfaces,
        ips=tuple(IpConfig(address=a.address, gateway=a.gateway, interface=index) for a in allocated.addresses),
        routes=tuple(RouteConfig(dst=r.dst, gw=r.gw) for r in allocated.routes),
    )
