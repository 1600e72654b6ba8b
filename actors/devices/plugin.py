"""The actor that has kubelet know what this node advertises.

Messages: `Took` when this agent serves the node's CNI socket, `Changed` when the node's labels or interfaces did,
`Touched` when kubelet's folder may have, `Deserted` when kubelet follows a resource no more; `Done`, `Failed` and
`Looked` from its own work, `Check` from its timers. State: which resources kubelet was told of, when to try again,
whether another agent has taken over. Persists: nothing but the sockets of the resources, which hold no state. Answers:
nothing; kubelet is answered by `actors.devices.endpoint`, the health of `.../kubelet` says what is missing.

Of each resource one thing is done at a time, and what is to be done follows from what there is: serve it where it is
not served, tell kubelet where it was not told, close it where it is not wanted. A registration holds while kubelet
follows the list of devices, and it may stop at any time: in older kubelets the end of one agent's stream takes that of
its successor along, when the two overlap in a roll-out.

What a crash leaves: sockets that nobody serves, so kubelet counts no device as healthy, and new pods that ask for one
wait. The next life, or agent, serves and registers anew. Pods that run are not touched by any of this.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol, assert_never

from msgspec import Struct

from actors.devices.advertisement import Advertisement, Interface, Offer, advertised
from actors.devices.endpoint import Place
from actors.devices.kubelet import Kubelet, Seen
from api.configfile import NetworkResourcePlugin
from runtime.actor import Actor
from runtime.envelope import Envelope
from telemetry import metrics
from telemetry.health import State

_log = logging.getLogger(__name__)

_PAUSES_SECONDS = (0.5, 30.0)
"""Before another try: the first and the longest. Kubelet's start makes it try at once."""
_FOLLOW_SECONDS = 10.0
"""Kubelet answers a registration before it connects, and never tries a second time."""


class Took(Struct, frozen=True, tag=True):
    """This agent serves the node."""


class Changed(Struct, frozen=True, tag=True):
    """Labels or interfaces of the node are others."""


class Touched(Struct, frozen=True, tag=True):
    """Something happened in kubelet's folder."""


class Deserted(Struct, frozen=True, tag=True):
    """Kubelet follows the devices of a resource no more."""

    resource: str


class Check(Struct, frozen=True, tag=True):
    """Time to see whether kubelet follows them."""

    resource: str


class Done(Struct, frozen=True, tag=True):
    """What was to be done for a resource is."""

    resource: str
    registered: bool = False


class Failed(Struct, frozen=True, tag=True):
    """It is not."""

    resource: str
    why: str
    registering: bool


class Looked(Struct, frozen=True, tag=True):
    """The folder has been looked at."""

    seen: Seen


Message = Took | Changed | Touched | Deserted | Check | Done | Failed | Looked


class Surroundings(Protocol):
    """What is known of the node now."""

    @property
    def labels(self) -> Mapping[str, str] | None:
        """Of the Node object; None: it has not been read."""
        ...

    @property
    def interfaces(self) -> tuple[Interface, ...] | None:
        """Of the node; None: they have not been listed."""
        ...

    @property
    def missing(self) -> str:
        """Why one of them is None."""
        ...


class DevicesActor(Actor[Message]):
    """See the module."""

    capacity = 1000

    def __init__(
        self,
        *,
        plugin: NetworkResourcePlugin,
        provider: bool,
        kubelet: Kubelet,
        surroundings: Surroundings,
        serving: Callable[[], bool],
    ) -> None:
        """`provider`: whether a cloud's side assigns addresses; `serving`: whether this agent has served the node."""
        self._plugin = plugin
        self._provider = provider
        self._kubelet = kubelet
        self._surroundings = surroundings
        self._serving = serving
        self._current = False
        self._wanted: Mapping[str, Offer] = {}
        self._problems: tuple[str, ...] = ()
        self._told: set[str] = set()
        """Resources that kubelet was told of and, as far as we know, still has."""
        self._gone: set[str] = set()
        """Resources whose sockets have gone."""
        self._busy: set[str] = set()
        self._why: dict[str, str] = {}
        """What failed last, by resource, until kubelet follows it."""
        self._paused: set[str] = set()
        """Resources for which something has failed, and that wait for another try."""
        self._pauses: dict[str, float] = {}
        self._identity: tuple[int, ...] | None = None
        self._looking = False
        self._look_again = False
        self._unsettled: set[str] = set()
        """Resources whose sockets may have changed since the look under way began."""
        self._overlooked: set[str] = set()
        """Resources of which the last look said nothing for that reason: looked at again once nothing is done there."""

    def __repr__(self) -> str:
        return f"<DevicesActor {len(self._wanted)} wanted, {len(self._told)} told>"

    def started(self) -> None:
        """What an earlier life served is served still, and kubelet is told once more."""
        self._current = self._serving()
        self._advertise()
        self._look()

    def handle(self, message: Message, _: Envelope) -> object:
        """See what is to be done, and do it."""
        match message:
            case Took():
                self._current = True
                self._advertise()
            case Changed():
                self._advertise()
            case Touched():
                self._look()
            case Deserted(resource):
                if resource in self._told:
                    self._told.discard(resource)
                    self._fail(resource, "kubelet has stopped following it")
            case Check(resource):
                self._check(resource)
            case Done(resource, registered):
                self._busy.discard(resource)
                if registered:
                    self._told.add(resource)
                    metrics.DEVICE_REGISTRATIONS.labels(outcome="registered").inc()
                    _log.info("%s: kubelet was told", resource)
                    self.timers.start(resource, _FOLLOW_SECONDS, Check(resource))
                self._tend(resource)
                self._look_if_overlooked(resource)
            case Failed(resource, why, registering):
                self._busy.discard(resource)
                if registering:
                    metrics.DEVICE_REGISTRATIONS.labels(outcome="failed").inc()
                self._fail(resource, why)
                self._look_if_overlooked(resource)
            case Looked(seen):
                self._looked(seen)
            case _:
                assert_never(message)
        self._note()
        return None

    def _advertise(self) -> None:
        labels, interfaces = self._surroundings.labels, self._surroundings.interfaces
        if self._current and (labels is None or interfaces is None):
            return  # what is served stays until more is known
        found = Advertisement(offers={})
        if self._current and labels is not None and interfaces is not None:
            found = advertised(self._plugin, provider=self._provider, labels=labels, interfaces=interfaces)
        for problem in found.problems:
            if problem not in self._problems:
                _log.warning("%s", problem)
        self._wanted, self._problems = found.offers, found.problems
        for resource in sorted({*self._wanted, *self._kubelet.offers}):
            self._tend(resource)

    def _tend(self, resource: str) -> None:
        """Do what is to be done next for a resource, if anything."""
        if resource in self._busy:
            return
        wanted, served = self._wanted.get(resource), self._kubelet.offers.get(resource)
        if wanted is None:
            self._forget(resource)
            if served is not None:
                _log.info("%s: not advertised any more", resource)
                self._do(resource, self._kubelet.close(resource), Done(resource))
            return
        metrics.DEVICES.labels(resource=resource).set(wanted.count)
        if served is not None and served != wanted:
            self._kubelet.change(resource, wanted)
        if resource in self._paused:
            return
        if served is None or resource in self._gone:
            self._gone.discard(resource)
            self._told.discard(resource)
            self._do(resource, self._kubelet.serve(resource, wanted), Done(resource))
            return
        if resource not in self._told:
            self._do(resource, self._kubelet.register(resource), Done(resource, registered=True), registering=True)

    def _do(self, resource: str, work: Coroutine[Any, Any, None], done: Done, *, registering: bool = False) -> None:
        self._busy.add(resource)
        self._unsettled.add(resource)
        self.pipe(
            work,
            lambda _: done,
            failed=lambda error: Failed(resource, str(error), registering=registering),
        )

    def _at_once(self, resource: str) -> None:
        """What has failed before, for whatever reason, is tried now."""
        self._paused.discard(resource)
        self._pauses.pop(resource, None)
        self.timers.cancel(resource)

    def _forget(self, resource: str) -> None:
        self._at_once(resource)
        self._told.discard(resource)
        self._gone.discard(resource)
        self._why.pop(resource, None)
        with suppress(KeyError):
            metrics.DEVICES.remove(resource)

    def _check(self, resource: str) -> None:
        self._paused.discard(resource)
        if resource in self._gone:
            self._tend(resource)
        elif self._kubelet.watched(resource):
            self._told.add(resource)
            self._why.pop(resource, None)
            self._pauses.pop(resource, None)
        elif resource in self._told:
            self._told.discard(resource)
            self._fail(resource, "kubelet was told of it and does not follow it")
        else:
            self._tend(resource)

    def _fail(self, resource: str, why: str) -> None:
        if self._why.get(resource) != why:
            _log.warning("%s: %s", resource, why)
        self._why[resource] = why
        self._try_later(resource)

    def _try_later(self, resource: str) -> None:
        if resource not in self._wanted:
            self._tend(resource)
            return
        pause = self._pauses.get(resource, _PAUSES_SECONDS[0])
        self._pauses[resource] = min(2 * pause, _PAUSES_SECONDS[1])
        self._paused.add(resource)
        self.timers.start(resource, pause, Check(resource))

    def _look(self) -> None:
        if self._looking:
            self._look_again = True
            return
        self._looking, self._look_again = True, False
        self._unsettled = set(self._busy)
        self.pipe(self._kubelet.look(), Looked)

    def _look_if_overlooked(self, resource: str) -> None:
        """No event of the folder comes twice: what a look had to leave out is looked at as soon as it can be."""
        if resource in self._overlooked and resource not in self._busy:
            self._look()

    def _looked(self, seen: Seen) -> None:
        self._looking = False
        self._overlooked = self._unsettled & seen.places.keys()
        settled = {name: place for name, place in seen.places.items() if name not in self._unsettled}
        if Place.TAKEN in settled.values() and not seen.current:
            _log.info("another agent has taken this node's resources over")
            self._current = False
            self._advertise()
        for resource, place in settled.items():
            if place is not Place.OURS and resource in self._wanted:
                self._gone.add(resource)
                if place is Place.TAKEN and resource not in self._paused:
                    # Somebody else thinks that it is theirs: two that answer at once would never end.
                    self._fail(resource, "another process has taken its socket")
        self._know_kubelet(seen)
        for resource in self._wanted:
            if resource in self._gone or resource not in self._told:
                if settled.get(resource) is not Place.TAKEN:
                    self._at_once(resource)
                self._tend(resource)
        if self._look_again or self._overlooked - self._busy:
            self._look()

    def _know_kubelet(self, seen: Seen) -> None:
        if seen.kubelet and self._identity is not None and seen.kubelet != self._identity:
            _log.info("kubelet has started anew")
            self._told.clear()
        self._identity = seen.kubelet or self._identity or ()

    def _note(self) -> None:
        if self.system.health is None:
            return
        missing = self._surroundings.missing
        faults = [f"{resource}: {why}" for resource, why in sorted(self._why.items())]
        if not self._current:
            state, detail = State.OK, "this agent does not serve the node"
        elif missing and not self._wanted:
            state, detail = State.DEGRADED, missing
        elif faults or self._problems:
            state, detail = State.DEGRADED, "; ".join([*faults, *self._problems])
        else:
            state, detail = State.OK, ", ".join(f"{name}: {self._wanted[name].count}" for name in sorted(self._wanted))
        self.system.health.report(f"{self.ref.name}/kubelet", state, detail)
