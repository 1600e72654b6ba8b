"""The owner of the SpiderCoordinators' status: finds out which addresses are the cluster's own, and says so there.

Messages: `Look` from whoever saw a source change, and from its timer; `Answered` when all sources have been read once;
`Told` and `Untold` with what a kube-controller-manager's pod says; `Stored` and `NotStored` from its own writes. State:
flags by pod, the write that is under way for a coordinator, and the last one's outcome until the snapshot shows it.
Persists: `status` of each SpiderCoordinator that is this replica's (rendezvous hash), and that one without our
finalizer when it is deleted. Answers: nothing; agents are told from the status, by every replica
(`actors.replica.coordinator`).

A write demands the resourceVersion that was read; who is not the first reads and looks again. So two owners cost a
conflict. Where nothing has changed nothing is written.

What a crash leaves: before the write, the status as it was, and the next owner finds the same; after it, an event less;
between a write and its answer, either, and the next look sees which.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import assert_never

from msgspec import Struct

from actors.coordination.discovery import Finding, Flags, discover, flags_of
from actors.coordination.sources import Sources
from actors.coordination.status import NOT_READY, change_of, network_of, status_of
from api.coordinator import SpiderCoordinator
from api.kinds import CONTROL_PLANE_POD, COORDINATOR
from api.meta import FINALIZER
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import Busy, Conflict, Denied, NotFound, Store

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""Between two looks when nothing is heard: by then another replica's coordinators may be ours."""
_REST_SECONDS = 0.1
"""After a write, for the same coordinator."""
_PAUSES_SECONDS = (0.2, 30.0)

CLUSTER_NETWORK_CHANGED = "PodCIDRTypeChanged"
COORDINATOR_SYNCED = "CoordinatorSynced"


class Notice(Struct, frozen=True):
    """What there is to say about a coordinator."""

    coordinator: SpiderCoordinator
    reason: str
    text: str
    warning: bool = False


class Look(Struct, frozen=True, tag=True):
    """Something may be otherwise."""


class Answered(Struct, frozen=True, tag=True):
    """All sources have been read once, or are known not to be there."""


class Told(Struct, frozen=True, tag=True):
    """What a kube-controller-manager was told."""

    uid: str
    flags: Flags


class Untold(Struct, frozen=True, tag=True):
    """Its pod could not be read."""

    uid: str
    pod: str
    error: Exception


class Stored(Struct, frozen=True, tag=True):
    """A coordinator as it is stored now."""

    name: str
    coordinator: SpiderCoordinator | None
    """None: it is gone."""
    written: bool
    """By us; otherwise somebody else was the first."""


class NotStored(Struct, frozen=True, tag=True):
    """A write may or may not have happened."""

    name: str
    error: Exception


Message = Look | Answered | Told | Untold | Stored | NotStored


class _Writing(Struct, frozen=True):
    """A write under way: over what, and why. Without a finding it takes our finalizer off."""

    before: SpiderCoordinator
    finding: Finding | None


class _Outcome(Struct, frozen=True):
    """What became of the last write over the version that the snapshot still shows."""

    over: str
    """A resourceVersion."""
    coordinator: SpiderCoordinator


class CoordinatorsActor(Actor[Message]):
    """See the module."""

    capacity = 256

    def __init__(
        self,
        store: Store,
        *,
        sources: Sources,
        mine: Callable[[str], bool],
        ready: Callable[[], Awaitable[None]],
        notice: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        """Nothing is asked before `started`.

        Args:
            store: where the coordinators are.
            sources: what there is to go by.
            mine: whether this replica owns the coordinator of that name.
            ready: returns when the replica's snapshots, of which some are sources, are filled.
            notice: is told what there is to say; it may not raise and may not wait.
        """
        self._store = store
        self._sources = sources
        self._ready = ready
        self._mine = mine
        self._notice = notice
        self._answered = False
        self._flags: dict[str, Flags] = {}
        """By uid of the pod: a pod's flags never change."""
        self._asking: set[str] = set()
        self._writing: dict[str, _Writing] = {}
        self._outcomes: dict[str, _Outcome] = {}
        self._failures: dict[str, int] = {}
        """In a row, by coordinator or uid of a pod: who has failed waits for a timer."""

    def __repr__(self) -> str:
        return f"<CoordinatorsActor {len(self._writing)} writes under way, {len(self._flags)} pods' flags>"

    def started(self) -> None:
        """Begin when there is something to go by: half of the sources would make a wrong status."""
        self.pipe(self._wait(), lambda _: Answered())

    def handle(self, message: Message, _: Envelope) -> object:
        """Take in what is new, then look whether a status has to change."""
        match message:
            case Look():
                pass
            case Answered():
                self._answered = True
            case Told(uid, flags):
                self._asking.discard(uid)
                self._failures.pop(uid, None)
                self._flags[uid] = flags
            case Untold():
                self._untold(message)
            case Stored():
                self._stored(message)
            case NotStored(name, error):
                self._writing.pop(name)
                _log.info("SpiderCoordinator %s: its status is not written yet: %s", name, error)
                self._pause(name, error)
            case _:
                assert_never(message)
        if self._answered:
            self._look()
            self.timers.start("look", _LOOK_SECONDS, Look())
        return None

    async def _wait(self) -> None:
        await self._ready()
        await self._sources.answered()

    # -- looking -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        here = self._sources.coordinators.objects
        for name in [name for name in self._outcomes if name not in here]:
            del self._outcomes[name]
        mine = [name for name in here if self._mine(name)]
        if not mine:
            return
        flags, known = self._managers()
        for name in mine:
            if name not in self._writing and not self._pausing(name):
                self._judge(self._current(name), flags, known=known and self._sources.settled)

    def _current(self, name: str) -> SpiderCoordinator:
        """As last seen: in the snapshot, or in the outcome of a write over what the snapshot still shows."""
        seen = self._sources.coordinators.objects[name]
        outcome = self._outcomes.get(name)
        if outcome is not None and outcome.over == seen.metadata.resource_version:
            return outcome.coordinator
        self._outcomes.pop(name, None)
        return seen

    def _judge(self, coordinator: SpiderCoordinator, flags: Flags | None, *, known: bool) -> None:
        meta = coordinator.metadata
        if meta.deletion_timestamp is not None:
            if FINALIZER in meta.finalizers:
                rest = [one for one in meta.finalizers if one != FINALIZER]
                self._write(_Writing(coordinator, None), {"metadata": {"finalizers": rest}}, "")
            return
        if not known:
            return
        finding = discover(coordinator.spec.pod_cidr_type, self._sources.seen(flags))
        status = status_of(coordinator, finding, now=self.system.clock.wall())
        if status != coordinator.status:
            self._write(_Writing(coordinator, finding), change_of(status), "status")

    def _managers(self) -> tuple[Flags | None, bool]:
        """The flags of the first kube-controller-manager, and whether all that has to be asked for is known."""
        managers = self._sources.managers()
        for uid in [uid for uid in self._flags if uid not in managers.values()]:
            del self._flags[uid]
        for pod, uid in managers.items():
            if uid in self._flags:
                return self._flags[uid], True
            if uid not in self._asking and not self._pausing(uid):
                self._asking.add(uid)
                self.pipe(self._ask(pod), partial(Told, uid), failed=partial(Untold, uid, pod))
            return None, False
        return None, True

    # -- the store -----------------------------------------------------------------------------------------------------

    async def _ask(self, pod: str) -> Flags:
        namespace, _, name = pod.partition("/")
        return flags_of(await self._store.get(CONTROL_PLANE_POD, name, namespace=namespace))

    def _untold(self, message: Untold) -> None:
        self._asking.discard(message.uid)
        if isinstance(message.error, NotFound | Denied):
            # It has just gone, and the snapshot will say so; or we may not know, and it says nothing.
            self._flags[message.uid] = Flags(pod=message.pod)
            return
        _log.info("pod %s cannot be read yet: %s", message.pod, message.error)
        self._pause(message.uid, message.error)

    def _write(self, writing: _Writing, change: dict[str, object], subresource: str) -> None:
        name = writing.before.metadata.name
        self._writing[name] = writing

        async def write() -> Stored:
            meta = writing.before.metadata
            try:
                after = await self._store.patch(
                    COORDINATOR,
                    name,
                    change,
                    subresource=subresource,
                    resource_version=meta.resource_version,
                    uid=meta.uid,
                )
            except Conflict:
                pass
            except NotFound:
                return Stored(name, None, written=False)
            else:
                return Stored(name, after, written=True)
            try:
                return Stored(name, await self._store.get(COORDINATOR, name), written=False)
            except NotFound:
                return Stored(name, None, written=False)

        self.pipe(write(), lambda stored: stored, failed=lambda error: NotStored(name, error))

    def _stored(self, stored: Stored) -> None:
        writing = self._writing.pop(stored.name)
        self._failures.pop(stored.name, None)
        if stored.coordinator is None:
            # Until the snapshot has that, too, there is nothing to do for it.
            self.timers.start(f"again {stored.name}", _REST_SECONDS, Look())
            return
        # Two owners that see different things for a moment shall not write against each other without a pause.
        self.timers.start(f"again {stored.name}", _REST_SECONDS, Look())
        self._outcomes[stored.name] = _Outcome(writing.before.metadata.resource_version, stored.coordinator)
        if stored.written and writing.finding is not None:
            for notice in notices(writing.before, writing.finding):
                self._notice(notice)

    def _pause(self, key: str, error: Exception) -> None:
        """Leave a coordinator, or a pod, alone for a while."""
        first, longest = _PAUSES_SECONDS
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(longest, first * 2.0 ** min(failures - 1, 10)) * self.system.random.uniform(0.5, 1.0)
        if isinstance(error, Busy):
            pause = max(pause, error.retry_after)
        self.timers.start(f"again {key}", pause, Look())

    def _pausing(self, key: str) -> bool:
        return self.timers.running(f"again {key}")


def notices(before: SpiderCoordinator, finding: Finding) -> list[Notice]:
    """What there is to say of a new status, by the last one."""
    last = before.status
    if finding.problem:
        same = last.phase == NOT_READY and last.reason == finding.problem
        return [] if same else [Notice(before, finding.word, finding.problem, warning=True)]
    found: list[Notice] = []
    network = network_of(last)
    if network and finding.network and network != finding.network:
        text = f"pods have the network {finding.network} now, not {network}: {_said(finding)}"
        found.append(Notice(before, CLUSTER_NETWORK_CHANGED, text))
    if last.phase == NOT_READY:
        found.append(Notice(before, COORDINATOR_SYNCED, _said(finding)))
    return found


def _said(finding: Finding) -> str:
    pods, services = (", ".join(cidrs) or "none" for cidrs in (finding.pods, finding.services))
    return f"CIDRs of pods {pods}, of Services {services}: {finding.source}"
