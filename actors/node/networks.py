"""The actor that attaches one pod sandbox to several networks: what a meta plugin is, with no Multus on the node.

Messages: `Join`, `Check` and `Leave` from the node actor (ADD, CHECK and DEL of the first interface), `Dissolve` and
`Announce` for what an agent before left, `Finished` and `Announced` from its own work. State: none between messages.
Persists: one journal entry a sandbox, part "networks": every list of plugins with the configurations that they are
called with, written before the first one is called, so that a DEL needs neither the pod nor the definitions, whatever
they say by then; with the results when all are there. Answers: as the runtime would be by the first interface's list
alone. The pod's annotation that shows them is written behind the answer, and again by the next agent: no pod waits for
it.

A pod that names no networks, and most don't, costs nothing here: its ADD is the sandbox actor's, whose request for
addresses finds out. For one that does, the interfaces that we make ourselves are one call of the sandbox actor, with
one request for the addresses of all. Then comes whatever other plugins a list has, list by list, ours in this process,
others by execution. All are there in the end, or none: a failure undoes everything in reverse.

What a crash leaves: the entry as "adding", and some of what it lists. The next agent takes that apart, plugin by
plugin, all of which are called for what may never have been made.

Below a Multus that calls us none of this is done: that one attaches the pod.
"""

import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, assert_never

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from actors.node import chains
from actors.node.addressing import HasNetworks, pod_ref
from actors.node.chains import Made, head_of, invocation_of, main_of, network_status, of_entry
from actors.node.controllers import Controllers
from actors.node.disk import Journal
from actors.node.meta import Meta
from actors.node.plugins import Plugins
from actors.node.sandbox import Attach, Detach, Verify
from actors.node.sandbox import Message as SandboxMessage
from api.wire import FindNetworks, Networked, PodRef, Rejected, SetNetworkStatus, Stored
from cni.errors import AllocationRefused, CniError, InternalError, TryAgainLater, UnknownContainer
from cni.journal import NETWORKS, Attached, JournalEntry, Key, State
from cni.kernel import Kernel
from cni.protocol import Invocation, Verb
from cni.result import Result
from runtime.actor import LATER, Actor, Question, Ref
from runtime.envelope import Envelope
from runtime.errors import ActorError, first
from runtime.transport.port import TransportError
from runtime.turn import Turn
from telemetry import traces

_log = logging.getLogger(__name__)

_CLAIM_SECONDS = 30.0
_LOOKUP_SECONDS = 10.0
_STATUS_SECONDS = 5.0
_UNDO_SECONDS = 30.0


class Join(Question[Result], frozen=True, tag=True):
    """ADD of the first interface, and of all that the pod names."""

    invocation: Invocation


class Check(Question[None], frozen=True, tag=True):
    """CHECK of all of them."""

    invocation: Invocation


class Leave(Question[None], frozen=True, tag=True):
    """DEL of all of them."""

    invocation: Invocation


class Dissolve(Question[None], frozen=True, tag=True):
    """Take apart what an agent before left: an ADD that was cut short, a namespace that is gone."""

    entry: JournalEntry
    """As it was judged. While one agent replaces another, the other may have gone on with it since."""


class Announce(Question[None], frozen=True, tag=True):
    """Have the pod's annotation show the networks that an agent before attached; it may have died before it did.

    Answered when that has been tried, so that not all pods of a node are announced at once.
    """

    entry: JournalEntry


class Finished(Struct, frozen=True, tag=True):
    """The work for one message has ended."""

    result: Result | None = None
    error: Exception | None = None


class Announced(Struct, frozen=True, tag=True):
    """The annotation is written, or the log says why not."""


Message = Join | Check | Leave | Dissolve | Announce | Finished | Announced


class NetworksActor(Actor[Message]):
    """See the module."""

    capacity = 16

    def __init__(
        self,
        container_id: str,
        *,
        journal: Journal,
        controllers: Controllers,
        kernel: Kernel,
        meta: Meta,
        sandbox: Callable[[], Ref[SandboxMessage]],
        provide: Callable[[Invocation], Coroutine[Any, Any, None]],
        entries: dict[Key, JournalEntry],
    ) -> None:
        """Nothing is read yet.

        Args:
            container_id: whose networks.
            journal: a port.
            controllers: who knows the pod's networks, and writes what became of them.
            kernel: a port.
            meta: see there.
            sandbox: the way to the container's sandbox actor.
            provide: makes the parents that an `ifacer` plugin names. Raises `CniError`.
            entries: what the journal holds of the container; shared with the sandbox actor.
        """
        self._container_id = container_id
        self._journal = journal
        self._controllers = controllers
        self._meta = meta
        self._plugins = Plugins(container_id, delegates=meta.delegates, kernel=kernel, sandbox=sandbox, provide=provide)
        self._entries = entries
        self._turn = Turn(self)
        self._announcing: list[Envelope] = []
        """Who waits for an annotation."""
        self._news: JournalEntry | None = None
        """What the message in hand has attached."""

    def __repr__(self) -> str:
        return f"<NetworksActor {self._container_id[:12]}{' busy' if self._turn else ''}>"

    def handle(self, message: Message, envelope: Envelope) -> object:
        """Begin one verb and hold the next ones until it has ended."""
        work: Coroutine[Any, Any, Result | None]
        match message:
            case Join(invocation):
                work = self._join(invocation)
            case Check(invocation):
                work = self._check(invocation)
            case Leave(invocation):
                work = self._leave(invocation)
            case Dissolve(entry):
                work = self._dissolve(entry)
            case Announce(entry):
                self._announcing.append(envelope)
                self.pipe(self._announce(entry), _announced, on_behalf=envelope)
                return LATER
            case Finished(result, error):
                asker = self._turn.end(result, error)
                news, self._news = self._news, None
                if news is not None:
                    self.pipe(self._announce(news), _announced, on_behalf=asker)
                return None
            case Announced():
                waiting, self._announcing = self._announcing, []
                for asker in waiting:
                    if asker.reply is not None:
                        asker.reply.resolve(None)
                return None
            case _:
                assert_never(message)
        self._turn.begin(envelope)
        self.pipe(work, Finished, failed=lambda error: Finished(error=error), on_behalf=envelope)
        return LATER

    # -- ADD -----------------------------------------------------------------------------------------------------------

    async def _join(self, invocation: Invocation) -> Result:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            known = await self._known(invocation)
            if known is not None:
                if known.state is State.ADDED and known.result is not None and known.netns == invocation.netns:
                    try:
                        await self._plugins.check(known, invocation)
                    except CniError as error:
                        _log.warning("container %s is attached anew: %s", self._container_id[:12], error)
                    else:
                        return known.result
                await self._take_apart(known, invocation)
            if await self._meta.apart(self._meta.below_multus):
                (result,) = await self._plugins.ask(Attach((invocation,)))
                return result
            if invocation.conf.cluster_network:
                return await self._attach(invocation, await self._find(invocation))
            try:
                (result,) = await self._plugins.ask(Attach((invocation,), meta=True))
            except HasNetworks as found:
                return await self._attach(invocation, found.networked)
            return result

    async def _attach(self, invocation: Invocation, networked: Networked) -> Result:
        pod = msgspec.structs.replace(pod_ref(invocation.args), uid=networked.pod_uid)
        record = JournalEntry(
            container_id=self._container_id,
            ifname=invocation.ifname,
            part=NETWORKS,
            netns=invocation.netns,
            network=invocation.conf.name,
            pod=pod,
            bare=True,
            path=invocation.path,
            arguments=invocation.arguments,
            changed_ns=self._wall_ns(),
        )
        made: set[Made] = set()
        begun = Key(self._container_id, invocation.ifname) in self._entries
        try:
            networks = await self._plan(invocation, networked, pod)
            record = msgspec.structs.replace(record, networks=networks)
            await self._put(record)
            with traces.span("networks.attach"):
                networks = await self._plugins.add(invocation, networks, made, begun=begun)
            answer = networks[0].result or Result()
            record = msgspec.structs.replace(
                record, state=State.ADDED, networks=networks, result=answer, changed_ns=self._wall_ns()
            )
            await self._put(record)
        except BaseException as error:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_SECONDS):
                try:
                    await self._take_apart(record, invocation, made=made)
                except (CniError, ActorError) as left:
                    # The entry stays as "adding": a DEL or the next start of the agent goes on from here.
                    _log.warning("could not undo the networks of %s: %s", self._container_id[:12], left)
            raise _as_cni(error, invocation) from error
        self._news = record
        return answer

    async def _plan(self, invocation: Invocation, networked: Networked, pod: PodRef) -> tuple[Attached, ...]:
        meta = self._meta
        # The kubelet knows a static pod by the uid that the runtime has from it, not by its mirror's.
        pod = msgspec.structs.replace(pod, uid=invocation.args.uid or pod.uid)

        def plan() -> tuple[Attached, ...]:
            return chains.chains(invocation, networked, find=meta.find, device=meta.devices(pod))

        return await meta.apart(plan)

    async def _find(self, invocation: Invocation) -> Networked:
        """Raises `CniError`."""
        question = FindNetworks(pod_ref(invocation.args))
        try:
            answered = await self._controllers.ask(question, deadline=self.system.clock.now() + _LOOKUP_SECONDS)
        except TransportError as error:
            msg = f"pod {pod_ref(invocation.args)}: no controller could be asked for its networks"
            raise TryAgainLater(msg, str(error)) from error
        match answered.response:
            case Networked() as networked:
                return networked
            case Rejected(message, retry):
                raise TryAgainLater(message) if retry else AllocationRefused(message)
            case other:
                msg = f"a controller answered a question for networks with {type(other).__name__}"
                raise InternalError(msg)

    async def _announce(self, record: JournalEntry) -> None:
        """Write the annotation that people know from Multus."""
        pod = record.pod
        asked = SetNetworkStatus(pod, network_status(record.networks))
        try:
            with traces.span("networks.status"):
                answered = await self._controllers.ask(asked, deadline=self.system.clock.now() + _STATUS_SECONDS)
        except TransportError as error:
            _log.warning("pod %s: its network-status is not written: %s", pod, error)
            return
        if not isinstance(answered.response, Stored):
            _log.warning("pod %s: its network-status is not written: %s", pod, answered.response)

    # -- CHECK ---------------------------------------------------------------------------------------------------------

    async def _check(self, invocation: Invocation) -> None:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            known = await self._known(invocation)
            if known is None:
                await self._plugins.ask(Verify(invocation))
            elif known.state is State.ADDED:
                await self._plugins.check(known, invocation)
            else:
                msg = f"CNI_CONTAINERID: the networks of container {self._container_id} were not added"
                raise UnknownContainer(msg)

    # -- DEL -----------------------------------------------------------------------------------------------------------

    async def _leave(self, invocation: Invocation) -> None:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            known = await self._known(invocation)
            if known is not None:
                await self._take_apart(known, invocation)
                return
            # None was made, or the journal was lost. What else is known of the sandbox goes with its first interface.
            led = [entry for entry in self._entries.values() if entry.head == invocation.ifname and not entry.part]
            await self._plugins.ask(Detach((invocation, *(of_entry(invocation, entry) for entry in led))))

    async def _dissolve(self, judged: JournalEntry) -> None:
        async with self._journal.claim(self._container_id, seconds=_CLAIM_SECONDS):
            (record,) = await self._journal.get(judged.key)
            if record is not None and (record.state is State.ADDING or record == judged):
                _log.warning("taking the networks of %s (pod %s) apart", self._container_id[:12], record.pod)
                await self._take_apart(record, head_of(record))

    async def _take_apart(
        self, record: JournalEntry, head: Invocation, *, made: Collection[Made] | None = None
    ) -> None:
        """Call every plugin of every list in reverse, whatever was made of it.

        `made`, for an ADD that has failed, are the plugins of somebody else's that have done their part, as
        `Plugins.add` says it; `actors.node.chains.was_not_made` has what follows. None: that is not known, or all have.

        Raises `CniError`: the first failure, after all have been called; then the entry stays, for what is left.
        """
        head = msgspec.structs.replace(
            head, path=head.path or record.path, arguments=head.arguments or record.arguments
        )
        failures: list[Exception] = []
        mains = [] if record.networks else [head]
        left: list[Attached] = []
        for one in reversed(record.networks):
            main = main_of(one)
            if main is not None:
                mains.append(invocation_of(head, Verb.DEL, one, main, previous=one.result))
            stay = await self._plugins.call_off(record, head, one, made, failures)
            left += [msgspec.structs.replace(one, plugins=stay)] if stay else []
        if mains:
            try:
                await self._plugins.ask(Detach(tuple(mains)))
            except (CniError, ActorError) as error:
                failures.append(error)
        if failures:
            if made is not None:
                await self._put(msgspec.structs.replace(record, networks=tuple(reversed(left))))
            raise failures[0]
        await self._remove(record.key)

    # ------------------------------------------------------------------------------------------------------------------

    async def _known(self, invocation: Invocation) -> JournalEntry | None:
        (known,) = await self._journal.get(Key(self._container_id, invocation.ifname, NETWORKS))
        return known

    async def _put(self, entry: JournalEntry) -> None:
        await self._journal.put(entry)
        self._entries[entry.key] = entry

    async def _remove(self, key: Key) -> None:
        await self._journal.remove(key)
        self._entries.pop(key, None)

    def _wall_ns(self) -> int:
        return int(self.system.clock.wall() * 1e9)


def _announced(_: None) -> Announced:
    return Announced()


def _as_cni(error: BaseException, invocation: Invocation) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        error = first(error)
    if isinstance(error, ActorError):
        return TryAgainLater(f"pod {pod_ref(invocation.args)}: the agent is overloaded or stopping", str(error))
    return error
