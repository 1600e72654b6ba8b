"""The collector: gives up records that nobody needs any more. One in every replica; the one that owns the chore works.

Messages: `Reported` with what a node's agent knows and has looked for, `Scan` from whoever wants everything looked at
now; `Synced`, `Stirred`, `Fresh`, `Closed` and `Audited` from its own work, `Due` from its timer. State: the records as
last read, what is to be looked at when, what was asked of which agent, since when nodes are in trouble, when each agent
was last heard. Persists: nothing. Answers: `Reported` at once, with what it wants to know of the node.

It learns from the reflectors that a pod, a node or a workload has changed, finds the records that this may be the end
of, and gathers the evidence that no link carries them (`ipam.garbage` has the rules):

* the record names a node: its agent is asked to look at the kernel. It journals an interface before it asks for
  addresses, so an answer to a question that was put after the record was seen, and that neither knows the sandbox nor
  finds the address, is proof. What an agent knows of is the agent's to give back;
* it names none (the original's agents write such): all agents are asked;
* the node is dead: its object is gone, or it is NotReady and either declared out of service or has been so, with a
  silent agent, for the operator's grace;
* the record says that it is kept: no link carries it, and only the workload's word is wanted.

Then `actors.collection.reclaim` reads everything anew from the store, and the pool's owner gives up exactly the record
that was judged. Now and then everything is looked at (`Rules.interval`), whatever the reflectors have said.

What a crash leaves: nothing. A new life asks and counts anew, which is only ever later.
"""

import logging
from collections.abc import Iterable
from typing import assert_never

import anyio
import anyio.lowlevel
from msgspec import Struct

from actors.collection.agenda import Agenda, Everything, OfNode, OfPod, OfPool, OfWorkload, Thing
from actors.collection.audit import EndpointAudit
from actors.collection.reclaim import Case, Reclaimer
from actors.collection.sight import Rules, Sight, may_end_something, workloads_above
from actors.pools.peers import Wanted
from api.core import Pod
from api.wire import Attachment, Look, Noted
from ipam.garbage import Evidence, Held, Known, NodeState, cause_of, overdue_at, state_of, unused, witnesses
from ipam.holdings import Holdings
from ipam.inquiry import REST_SECONDS, Inquiry
from ipam.nodewatch import NodeWatch
from runtime.actor import Actor, Question
from runtime.envelope import Envelope
from runtime.store.port import Expired, StoreError
from runtime.store.snapshot import Change
from telemetry import metrics

_log = logging.getLogger(__name__)

_COALESCE_SECONDS = 0.1
"""For changes to come together, after the first."""
_EVENT_SECONDS = 0.2
"""From a change to the look at its records: in peace the address was given back before the pod's object went."""
_AGAIN_SECONDS = 3.0
"""After a change its records are looked at once more: the pools' reflector may lag behind the pods'."""
_REPORT_SECONDS = 2.0
"""From a report to the comparison with the records."""
_FAILED_SECONDS = 5.0
"""Until what could not be decided is looked at again."""
_TICK_SECONDS = 1.0
"""Between two looks at the agenda where nothing is due before, and at whose chore this is."""
_SHARE = 20.0
"""The records are read at most for one part in so many of the time."""
_SCAN_STEP_SECONDS = 0.05
"""Between two pools when everything is looked at: the loop has other things to do."""


class Reported(Question[Noted], frozen=True, tag=True):
    """What the agent of a node knows of, and what it has looked for; see `wire.Report`."""

    node: str
    attachments: tuple[Attachment, ...]
    looked: tuple[Look, ...] = ()
    round: int = 0
    via: str = ""
    """The replica that can put a question to this agent now."""


class Scan(Struct, frozen=True, tag=True):
    """Look at everything now, or have the replica do it whose chore it is."""

    here: bool = False
    """Another replica says that it is ours."""


class Synced(Struct, frozen=True, tag=True):
    """The snapshots are filled."""


class Stirred(Struct, frozen=True, tag=True):
    """A snapshot has changed."""

    kind: str


class Due(Struct, frozen=True, tag=True):
    """Something on the agenda may be due."""


class Fresh(Struct, frozen=True, tag=True):
    """The records are read."""

    seconds: float = 0.0
    """How long that took."""


class Closed(Struct, frozen=True, tag=True):
    """These records were dealt with."""

    held: tuple[Held, ...]
    failed: tuple[Held, ...] = ()
    """Those among them about which nothing could be decided."""


class Audited(Struct, frozen=True, tag=True):
    """The SpiderEndpoints were compared with the pools, or could not be."""

    error: Exception | None = None


Message = Reported | Scan | Synced | Stirred | Due | Fresh | Closed | Audited


class CollectorActor(Actor[Message]):
    """See the module."""

    capacity = 8192

    def __init__(self, *, sight: Sight, rules: Rules, reclaimer: Reclaimer, audit: EndpointAudit) -> None:
        """`reclaimer` decides and carries out; `audit` looks after the SpiderEndpoints."""
        self._sight = sight
        self._rules = rules
        self._reclaimer = reclaimer
        self._audit = audit
        self._cursors: dict[str, int] = {}
        self._synced = False
        self._mine = False
        self._agenda = Agenda()
        self._taken: list[Thing] = []
        """What is looked at as soon as the records are read."""
        self._reading = False
        self._not_before = 0.0
        self._holdings = Holdings()
        self._closing: set[Held] = set()
        self._scanned = float("-inf")
        self._auditing = False
        self._watch = NodeWatch(grace=rules.node_grace)
        self._inquiry = Inquiry()
        self._via: dict[str, str] = {}
        self._known: dict[str, Known] = {}
        """The last report of nodes that are to be compared."""
        self._foreign: set[Held] = set()
        """Records that name no node, and the uid of a pod that has another name."""
        self._strange: dict[str, frozenset[Held]] = {}
        """By node: records of pods that live, which its agent's last report did not know."""

    def __repr__(self) -> str:
        return f"<CollectorActor {'at work' if self._mine else 'idle'}, {self._holdings!r}, {self._watch!r}>"

    def started(self) -> None:
        """Begin when the snapshots are filled."""
        self.pipe(self._wait(), lambda _: Synced())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Find out what may have to go; what takes time is done beside the actor."""
        match message:
            case Reported():
                return self._reported(message)
            case Scan(here):
                self._scan(here=here)
            case Synced():
                self._synced = True
                for kind, snapshot in self._sight.snapshots().items():
                    self._cursors[kind] = snapshot.revision
                    self._follow(kind)
                self._look_at_agenda()
            case Stirred(kind):
                self._stirred(kind)
                self._follow(kind)
                self._look_at_agenda()
            case Due():
                self._look_at_agenda()
            case Fresh(seconds):
                self._fresh(seconds)
            case Closed(held, failed):
                self._closing.difference_update(held)
                for one in failed:
                    self._agenda.add(OfPod(one.record.pod), at=self._now + _FAILED_SECONDS)
                self._look_at_agenda()
            case Audited(error):
                self._auditing = False
                if error is not None:
                    metrics.IP_GC_FAILURE_COUNTS.inc()
                    _log.warning("SpiderEndpoints could not be audited: %s: %s", type(error).__name__, error)
            case _:
                assert_never(message)
        return None

    # -- what happens in the cluster -----------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self.system.clock.now()

    async def _wait(self) -> None:
        await self._sight.synced()

    def _follow(self, kind: str) -> None:
        self.pipe(self._next(kind, self._cursors[kind]), lambda _: Stirred(kind))

    async def _next(self, kind: str, cursor: int) -> None:
        await self._sight.snapshots()[kind].wait(cursor)
        await anyio.sleep(_COALESCE_SECONDS)

    def _stirred(self, kind: str) -> None:
        snapshot, cursor = self._sight.snapshots()[kind], self._cursors[kind]
        self._cursors[kind] = snapshot.revision
        if not self._mine:
            return
        try:
            changes, _ = snapshot.changes(cursor)
        except Expired:
            self._agenda.add(Everything(), at=self._now)
            return
        soon = self._now + _EVENT_SECONDS
        match kind:
            case "pods":
                self._pods_changed(changes)
            case "nodes":
                self._look_at_nodes(change.key for change in changes)
            case _:
                for change in changes:
                    self._agenda.add(OfWorkload(change.key), at=soon)

    def _pods_changed(self, changes: Iterable[Change[Pod]]) -> None:
        for change in changes:
            pod = change.object
            if pod is not None and not may_end_something(pod):
                continue
            deadline = overdue_at(pod, self._rules.switches) if pod is not None else None
            after = 0.0 if deadline is None else max(0.0, deadline - self.system.clock.wall())
            if after == float("inf"):
                continue
            last = pod or change.last
            fixed = self._sight.fixed(last) if last is not None else None
            key = f"{change.key.partition('/')[0]}/{fixed.holder}" if fixed is not None else change.key
            self._agenda.add(OfPod(key), at=self._now + after + _EVENT_SECONDS)
            self._agenda.add(OfPod(key, again=True), at=self._now + after + _AGAIN_SECONDS)

    def _look_at_nodes(self, names: Iterable[str]) -> None:
        for name in names:
            if self._watch.saw(name, self._sight.state(name), self._now):
                self._agenda.add(OfNode(name), at=self._now)

    def _seems_dead(self, name: str) -> bool:
        return self._watch.is_dead(name, self._sight.state(name), self._now)

    # -- what agents say -----------------------------------------------------------------------------------------------

    def _reported(self, report: Reported) -> Noted:
        name = report.node
        self._own()
        if not self._mine:
            return Noted()
        self._watch.heard(name, self._now)
        self._via[name] = report.via
        known = self._known[name] = Known(report.attachments)
        answer = self._inquiry.answer(name, report.round, report.looked, known, now=self._now, foreign=self._foreign)
        self._close(
            [
                Case(denial.held, Evidence.DENIED, superseded=denial.superseded)
                for denial in answer.denials
                if denial.held.placed or self._all_deny(denial.held)
            ]
        )
        for held in answer.open:
            self._agenda.add(OfPod(held.record.pod), at=self._now + REST_SECONDS)
        self._agenda.add(OfNode(name), at=self._now + _REPORT_SECONDS)
        self._look_at_agenda()
        return self._question(name)

    def _question(self, node: str) -> Noted:
        return self._inquiry.question(node, self.system.random.getrandbits(62) + 1)

    def _ask(self) -> None:
        """Put what is new to the agents that can be asked now; the others are asked when they report."""
        for name in self._inquiry.unasked():
            via = self._via.get(name)
            if via:
                noted = self._question(name)
                asking = self._sight.ask(via, Wanted(name, noted.look, noted.round))
                self.pipe(asking, lambda _: Due(), failed=lambda _: Due())

    def _all_deny(self, held: Held) -> bool:
        """Ask whoever has not denied a record that names no node; whether there is nobody left."""
        now, nodes = self._now, self._sight.nodes.objects
        speaking = self._watch.speaking(now)
        needed = witnesses(
            nodes,
            agents=self._sight.agents(),
            heard=speaking,
            dead=[name for name in {*nodes, *speaking} if self._seems_dead(name)],
        )
        missing = self._inquiry.missing(held, needed)
        for name in missing:
            self._inquiry.want(name, held, now=now)
        return bool(needed) and not missing

    # -- the agenda ----------------------------------------------------------------------------------------------------

    def _own(self) -> None:
        """Notice whose chore it is."""
        mine = self._synced and self._sight.mine()
        if not self._sight.complete():
            self._watch.deaf(self._now)
        if mine == self._mine:
            return
        self._mine = mine
        self._agenda.clear()
        self._taken.clear()
        self._holdings.clear()
        self._inquiry.clear()
        for memory in (self._via, self._known, self._strange, self._foreign):
            memory.clear()
        self._watch.begin(self._now)
        if mine:
            self._look_at_nodes(self._sight.nodes.objects)
            self._agenda.add(Everything(), at=self._now + _REPORT_SECONDS)

    def _look_at_agenda(self) -> None:
        """Take what is due, and have the records read for it."""
        self._own()
        now = self._now
        if self._reading:
            return
        if self._mine and now >= self._not_before:
            self._taken = self._agenda.take(now)
            if self._taken:
                self._reading = True
                self.pipe(self._read(), Fresh)
                return
        soonest = min(max(self._agenda.first(), self._not_before), now + _TICK_SECONDS)
        self.timers.start("due", max(soonest - now, 0.001), Due())

    async def _read(self) -> float:
        """Read the pools that have changed; the loop goes on in between. Returns the seconds that it took."""
        begun = self._now
        for pool in self._holdings.outdated(self._sight.pools()):
            self._holdings.take(pool)
            await anyio.lowlevel.checkpoint()
        return self._now - begun

    def _fresh(self, seconds: float) -> None:
        self._reading = False
        self._not_before = self._now + _SHARE * seconds
        things, self._taken = self._taken, []
        if things:
            self._look_at(things)
            self._ask()
        self._look_at_agenda()

    def _look_at(self, things: list[Thing]) -> None:
        pods = {thing.key for thing in things if isinstance(thing, OfPod)}
        nodes = {thing.name for thing in things if isinstance(thing, OfNode)}
        above = {thing.key for thing in things if isinstance(thing, OfWorkload)}
        pools = [thing.name for thing in things if isinstance(thing, OfPool)]
        if Everything() in things:
            self._begin_scan()

        found = self._holdings.of_pods(pods)
        found += [held for held in self._holdings.on_nodes(nodes) if not held.kept]
        if above:
            found += [h for h in self._holdings.kept() if not above.isdisjoint(workloads_above(h.record.pod))]
        for name in pools:
            found += self._holdings.of(name)
        found = list(dict.fromkeys(found))
        self._foreign |= self._sight.misnamed(found)
        self._close([case for held in found if (case := self._consider(held)) is not None])
        for name in nodes:
            self._compared(name, found)
        self._probe()

    def _probe(self) -> None:
        """Have the agents of nodes in trouble say something, so that only those are silent that cannot."""
        names = self._watch.to_probe(self._now)
        if names:
            samples = {held.record.node: held for held in self._holdings.on_nodes(names)}
            for name, held in samples.items():
                self._inquiry.insist(name, held)
        for name in self._watch.in_trouble:
            self._agenda.add(OfNode(name), at=self._watch.look_at(name, self._now))

    def _scan(self, *, here: bool) -> None:
        self._own()
        if self._mine:
            self._agenda.add(Everything(), at=max(self._now, self._scanned + self._rules.scan_gap))
            self._look_at_agenda()
        elif not here:
            self.pipe(self._sight.sweep(), lambda _: Due(), failed=lambda _: Due())

    def _begin_scan(self) -> None:
        self._scanned = self._now
        self._inquiry.rouse()
        self._agenda.add(Everything(), at=self._now + self._rules.interval)
        for number, name in enumerate(self._holdings.pools()):
            self._agenda.add(OfPool(name), at=self._now + number * _SCAN_STEP_SECONDS)
        nodes = self._holdings.nodes() | self._sight.nodes.objects.keys()
        self._look_at_nodes(nodes - self._sight.nodes.objects.keys())
        self._watch.keep(nodes | self._watch.speaking(self._now))
        self._inquiry.keep(nodes, self._holdings.has, now=self._now)
        self._via = {name: via for name, via in self._via.items() if name in nodes}
        self._foreign = {held for held in self._foreign if self._holdings.has(held)}
        if not self._auditing:
            self._auditing = True
            records = (held for name in self._holdings.pools() for held in self._holdings.of(name))
            self.pipe(self._audit.run(records), lambda _: Audited(), failed=Audited)

    # -- records -------------------------------------------------------------------------------------------------------

    def _consider(self, held: Held) -> Case | None:
        """What is to be done about a record, as far as the snapshots say: a case, a question, or nothing."""
        if held in self._closing:
            return None
        pod = self._sight.pod(held)
        if held.kept:
            over = unused(held, pod) or not ((pod is not None and pod.alive) or self._sight.wants(held))
            return Case(held, Evidence.KEPT) if over else None
        node = held.record.node or (pod.spec.node_name if pod is not None else "")
        known = self._known.get(node) if held.placed else None
        if known is not None and known.of(held.record) and not self._seems_dead(node):
            return None  # it is its agent's to give back
        cause = cause_of(
            held,
            pod,
            stays=self._sight.stays(held, pod),
            ready=self._sight.state(node) is NodeState.ALIVE,
            wall=self.system.clock.wall(),
            switches=self._rules.switches,
        )
        superseded = known is not None and known.newer(held.record)
        if cause is None and not superseded:
            return None
        if held.placed and self._seems_dead(held.record.node):
            return Case(held, Evidence.DEAD)
        if held.placed:
            self._inquiry.want(held.record.node, held, now=self._now)
        elif self._all_deny(held):
            return Case(held, Evidence.DENIED)
        return None

    def _compared(self, node: str, found: Iterable[Held]) -> None:
        """Say of whom the agent of a node knows nothing though they live: a journal was lost."""
        known = self._known.pop(node, None)
        if known is None:
            return
        strange = frozenset(
            held for held in found if held.record.node == node and not known.of(held.record) and self._lives(held)
        )
        before = self._strange.pop(node, frozenset())
        for held in strange & before:
            _log.warning("the agent of node %s does not know the sandbox of %s, whose pod lives", node, held)
            metrics.IPAM_DRIFT.labels(kind="unknown_sandbox").inc()
        if strange:
            self._strange[node] = strange - before

    def _lives(self, held: Held) -> bool:
        pod = self._sight.pod(held)
        return not held.kept and pod is not None and pod.alive and pod.metadata.uid == held.record.pod_uid

    def _close(self, cases: list[Case]) -> None:
        cases = [case for case in cases if case.held not in self._closing]
        if cases:
            held = tuple(case.held for case in cases)
            self._closing.update(held)
            self.pipe(
                self._close_all(cases),
                lambda failed: Closed(held, failed),
                failed=lambda _: Closed(held, held),
            )

    async def _close_all(self, cases: list[Case]) -> tuple[Held, ...]:
        """Read again the nodes that are said to be dead, and have the rest decided."""
        standing: dict[str, bool] = {}
        failed: list[Held] = []
        for name in {case.held.record.node for case in cases if case.evidence is Evidence.DEAD}:
            try:
                state = state_of(await self._reclaimer.node(name))
                standing[name] = self._watch.is_dead(name, state, self._now)
            except StoreError as error:
                _log.warning("node %s could not be read: %s: %s", name, type(error).__name__, error)
        ready: list[Case] = []
        for case in cases:
            verdict = standing.get(case.held.record.node) if case.evidence is Evidence.DEAD else True
            if verdict is None:
                failed.append(case.held)
            elif verdict:
                ready.append(case)
        return (
            *failed,
            *await self._reclaimer.close(ready, ready=lambda name: self._sight.state(name) is NodeState.ALIVE),
        )
