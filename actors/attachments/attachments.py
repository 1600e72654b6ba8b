"""Has the NetworkAttachmentDefinitions of this replica's SpiderMultusConfigs there, and as they should be.

Messages: `Look` from who follows the cluster (`actors.attachments.following`); `Settled`, `NotSettled` and `Again` from
its own work. State: which objects are in hand, which are to be looked at once more, and since when something is wrong
with one. Persists: the definitions, nothing else. Answers: nothing, it is told.

What is to be done is decided from what the API server says at that moment, object by object, not from a snapshot: a
replica that sees the past, or two that both believe to own an object, cost each other a conflict. A definition is
written with the resourceVersion that was read; what was written without an answer is read again.

What a crash leaves, await by await: a definition that is made and not yet looked at again, or one of an earlier name
that is still there beside the new one. Both are found by whoever looks next: the owner's uid is on them.

An object that makes no sense is not touched, nor what was made of it when it did; its event says what is wrong. A
cluster that does not know the kind is asked for it every two seconds, by one object for all. A definition that somebody
else rewrites again and again is repaired more and more slowly, and never given up.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, assert_never

from msgspec import Struct

from actors.attachments.steps import Create, Leave, Rewrite, Taken, Wait, is_multusconfig, step
from admission.errors import summary
from admission.multusconfig import completed_spec, problems
from api.attachments import attachment
from api.kinds import MULTUSCONFIG, NETWORKATTACHMENT
from api.meta import OwnerReference
from api.multusconfig import SpiderMultusConfig
from api.networkattachment import NetworkAttachmentDefinition
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import AlreadyExists, Ambiguous, Conflict, Invalid, NotFound, Store
from telemetry import metrics

_log = logging.getLogger(__name__)

INVALID: Final = "InvalidNetwork"
TAKEN: Final = "NetworkTaken"
FAILED: Final = "NetworkNotMade"
"""Reasons of events."""

_ATTEMPTS = 5
"""At an object that others write meanwhile."""
_IN_HAND = 8
"""Objects at a time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds after a failure; twice as many each time."""
_ABSENT_SECONDS = 2.0
"""Between two questions for the kind."""
_GOING_SECONDS = 5.0
"""After which a definition that was being deleted is looked for again, though nobody said that it is gone."""
_REPAIRS = 4
"""Of one definition in a row that are done at once."""
_QUIET_SECONDS = 120.0
"""After which a repair is the first one again."""

_created, _rewritten, _removed = (
    metrics.NETWORK_DEFINITION_WRITES.labels(change) for change in ("created", "rewritten", "removed")
)


class Look(Struct, frozen=True, tag=True):
    """These may not be as they should: keys ``namespace/name`` of SpiderMultusConfigs."""

    keys: tuple[str, ...]


class Outcome(Struct, frozen=True):
    """What came of one object."""

    written: bool = False
    gone: bool = False
    """The object is no more, or goes."""
    absent: bool = False
    """The cluster does not know the kind."""
    going: bool = False
    """What has the name is being deleted."""
    reason: str = ""
    """Of an event, where something is wrong."""
    problem: str = ""
    config: SpiderMultusConfig | None = None
    """That it is about."""


class Settled(Struct, frozen=True, tag=True):
    """An object was dealt with."""

    key: str
    outcome: Outcome


class NotSettled(Struct, frozen=True, tag=True):
    """It was not, or nobody knows."""

    key: str
    error: Exception


class Again(Struct, frozen=True, tag=True):
    """A pause is over."""

    key: str


class Probe(Struct, frozen=True, tag=True):
    """The kind may be there now."""


Message = Look | Settled | NotSettled | Again | Probe


class Followed(Protocol):
    """What the actor knows of the one who tells it where to look."""

    def former(self, namespace: str, uid: str) -> tuple[str, ...]:
        """The names of the definitions in a namespace that an object owns, as last seen."""

    def owns(self, key: str) -> bool:
        """Whether an object is this replica's now."""

    def begin(self) -> None:
        """The actor knows of nothing: it is to be told of everything that is not as it should be."""


class _Entry(Struct):
    """An object that something is to be remembered of."""

    failures: int = 0
    repairs: int = 0
    last: float = float("-inf")
    """When it was written, by the monotonic clock."""
    problem: str = ""


class AttachmentsActor(Actor[Message]):
    """See the module."""

    capacity = 256

    def __init__(
        self, store: Store, *, followed: Followed, say: Callable[[SpiderMultusConfig, str, str], None]
    ) -> None:
        """`say` makes an event of an object, with its reason and text."""
        self._store = store
        self._followed = followed
        self._say = say
        self._entries: dict[str, _Entry] = {}
        self._queue: dict[str, None] = {}
        self._busy: set[str] = set()
        self._absent: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"<AttachmentsActor {len(self._busy)} in hand, {len(self._queue)} to look at>"

    def started(self) -> None:
        """What was to be looked at in an earlier life is told again."""
        self._followed.begin()

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - nobody asks
        """Take in what may have changed, and look at as much as may be in hand."""
        match message:
            case Look(keys):
                for key in keys:
                    self._look(key)
            case Settled(key, outcome):
                self._busy.discard(key)
                self._settled(key, outcome)
            case NotSettled(key, error):
                self._busy.discard(key)
                self._failed(key, error)
            case Again(key):
                self._queue[key] = None
            case Probe():
                self._queue |= dict.fromkeys([*self._absent][:1])
            case _:
                assert_never(message)
        self._begin()
        return None

    def _look(self, key: str) -> None:
        """Now, unless this is a fight."""
        entry = self._entries.get(key)
        if entry is not None and entry.repairs >= _REPAIRS:
            now = self.system.clock.now()
            if now - entry.last < _QUIET_SECONDS:
                wait = min(_LONGEST_PAUSE, 2.0 ** min(entry.repairs - _REPAIRS, 16)) - (now - entry.last)
                if wait > 0:
                    if not self.timers.running(key):
                        self.timers.start(key, wait, Again(key))
                    return
        self._queue[key] = None

    def _begin(self) -> None:
        for key in [key for key in self._queue if key not in self._busy][: _IN_HAND - len(self._busy)]:
            del self._queue[key]
            self.timers.cancel(key)
            if not self._followed.owns(key):
                self._forget(key)
                continue
            self._busy.add(key)
            self.pipe(
                self._settle(key),
                partial(Settled, key),
                failed=partial(NotSettled, key),
            )

    def _forget(self, key: str) -> None:
        """It is another replica's by now."""
        self._entries.pop(key, None)
        self._absent.pop(key, None)
        if self._absent:
            self._probe_later()

    def _settled(self, key: str, outcome: Outcome) -> None:
        entry = self._entries.setdefault(key, _Entry())
        now = self.system.clock.now()
        if outcome.written:
            entry.repairs = entry.repairs + 1 if now - entry.last < _QUIET_SECONDS else 1
            entry.last = now
        if outcome.absent:
            if not self._absent:
                _log.warning("the cluster does not know NetworkAttachmentDefinitions: none is made until it does")
            self._absent[key] = None
            self._probe_later()
        elif key in self._absent:
            # It is there now, for all of them.
            self._queue |= self._absent
            self._absent.clear()
            self._queue.pop(key, None)
        if outcome.going:
            self.timers.start(key, _GOING_SECONDS, Again(key))
        if outcome.config is not None and outcome.reason:
            self._say(outcome.config, outcome.reason, outcome.problem)
        if outcome.problem and outcome.problem != entry.problem:
            _log.warning("SpiderMultusConfig %s: %s", key, outcome.problem)
        entry.problem = outcome.problem
        if outcome.reason == FAILED:
            self._retry(key, entry)
            return
        entry.failures = 0
        if outcome.gone or not (outcome.problem or entry.repairs):
            del self._entries[key]

    def _failed(self, key: str, error: Exception) -> None:
        entry = self._entries.setdefault(key, _Entry())
        text = f"{type(error).__name__}: {error}"
        if text != entry.problem:
            _log.warning("SpiderMultusConfig %s: its definition is not seen to yet: %s", key, text)
        entry.problem = text
        self._retry(key, entry)
        if key in self._absent:
            self._probe_later()

    def _probe_later(self) -> None:
        if not self.timers.running("absent"):
            self.timers.start("absent", _ABSENT_SECONDS, Probe())

    def _retry(self, key: str, entry: _Entry) -> None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(entry.failures, 16))
        entry.failures += 1
        self.timers.start(key, pause * self.system.random.uniform(0.5, 1.0), Again(key))

    async def _settle(self, key: str) -> Outcome:
        """Have the definition of one object as it should be. Raises `StoreError`."""
        namespace, _, name = key.partition("/")
        attempt = 0
        while True:
            attempt += 1
            try:
                config = await self._store.get(MULTUSCONFIG, name, namespace=namespace)
            except NotFound:
                return Outcome(gone=True)
            if config.metadata.deletion_timestamp is not None:
                return Outcome(gone=True)
            if errors := problems(config):
                text = summary(MULTUSCONFIG.qualified, config.metadata.name, errors)
                return Outcome(reason=INVALID, problem=text, config=config)
            try:
                return await self._bring(config)
            except (Conflict, AlreadyExists, Ambiguous):
                if attempt >= _ATTEMPTS:
                    raise
            except Invalid as error:
                return Outcome(reason=FAILED, problem=str(error), config=config)

    async def _bring(self, config: SpiderMultusConfig) -> Outcome:
        """Raises `StoreError`; after a `Conflict`, `AlreadyExists` or `Ambiguous` all is to be looked at anew."""
        wanted = attachment(_complete(config))
        meta = wanted.metadata
        try:
            found = await self._store.get(NETWORKATTACHMENT, meta.name, namespace=meta.namespace)
        except NotFound:
            found = None
        written = True
        match step(wanted, found, orphaned=await self._orphaned(found, config)):
            case Create(item):
                try:
                    await self._store.create(NETWORKATTACHMENT, item)
                except NotFound:
                    return await self._nowhere(meta.namespace)
                _created.inc()
            case Rewrite(change, version):
                await self._store.patch(
                    NETWORKATTACHMENT, meta.name, change, namespace=meta.namespace, resource_version=version
                )
                _rewritten.inc()
            case Leave():
                written = False
            case Wait():
                return Outcome(going=True)
            case Taken() as taken:
                text = f"NetworkAttachmentDefinition {meta.namespace}/{meta.name} is {taken}'s, and stays as it is"
                return Outcome(reason=TAKEN, problem=text, config=config)
            case _ as never:
                assert_never(never)
        if written:
            _log.info("%s/%s is written for its SpiderMultusConfig %s", meta.namespace, meta.name, config.metadata.name)
        await self._remove_former(config, meta.name)
        return Outcome(written=written)

    async def _orphaned(self, found: NetworkAttachmentDefinition | None, config: SpiderMultusConfig) -> bool:
        """Whether the SpiderMultusConfig that manages a definition is no more."""
        owner: OwnerReference | None = found.metadata.controller if found is not None else None
        if owner is None or owner.uid == config.metadata.uid or not is_multusconfig(owner):
            return False
        try:
            there = await self._store.get(MULTUSCONFIG, owner.name, namespace=config.metadata.namespace)
        except NotFound:
            return True
        return there.metadata.uid != owner.uid

    async def _nowhere(self, namespace: str) -> Outcome:
        """A creation found no place: is it the kind that is missing, or only the namespace?"""
        try:
            await self._store.list(NETWORKATTACHMENT, namespace=namespace)
        except NotFound:
            return Outcome(absent=True)
        return Outcome()

    async def _remove_former(self, config: SpiderMultusConfig, name: str) -> None:
        """What was made under another name goes, now that there is one of the new name."""
        namespace, uid = config.metadata.namespace, config.metadata.uid
        for other in self._followed.former(namespace, uid):
            if other == name:
                continue
            try:
                found = await self._store.get(NETWORKATTACHMENT, other, namespace=namespace)
                owner = found.metadata.controller
                if owner is None or owner.uid != uid or found.metadata.deletion_timestamp is not None:
                    continue
                version = found.metadata.resource_version
                await self._store.delete(
                    NETWORKATTACHMENT, other, namespace=namespace, uid=found.metadata.uid, resource_version=version
                )
                _removed.inc()
            except NotFound:
                continue
            _log.info("%s/%s is removed: SpiderMultusConfig %s makes %s", namespace, other, config.metadata.name, name)


def _complete(config: SpiderMultusConfig) -> SpiderMultusConfig:
    return SpiderMultusConfig(metadata=config.metadata, spec=completed_spec(config.spec))
