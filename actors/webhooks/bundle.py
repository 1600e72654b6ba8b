"""Whom the API server trusts when it asks for admission: the webhook configurations follow the certificate's authority.

A chart does not know what cert-manager makes, a Secret may be replaced by hand, and an upgrade or a tool that keeps a
cluster to a repository may write the configurations anew, without it. So the file with the authority, which agents and
replicas trust as well, is compared with them every few seconds, and what differs is written.

Messages: `Look` from its timer, `Looked` and `LookFailed` from its own work. State: what was last wrong. Persists:
`clientConfig.caBundle` of each webhook, with the resourceVersion that was read; after a conflict the next look reads
again. Answers: nothing; what is wrong is in the log once, and in `/healthz` as long as it is. For the first
seconds a replica is not ready while configurations are there and not right, so that who waits for an installation can
write objects after it; later it makes none unready, for agents are served all the same.

What a crash leaves: one of the two configurations written and the other not; the next life writes that.
"""

import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, assert_never

from msgspec import Struct

from api.kinds import MUTATINGWEBHOOK, VALIDATINGWEBHOOK, Kind
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import Conflict, NotFound, Store, StoreError
from telemetry.health import State

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.5
"""At first, while something is not right."""
_FIRST_LOOKS: Final = 60
_KINDS: Final[tuple[Kind[Any], ...]] = (MUTATINGWEBHOOK, VALIDATINGWEBHOOK)


class Look(Struct, frozen=True, tag=True):
    """Time to compare."""


class Looked(Struct, frozen=True, tag=True):
    """It has been compared, and written where it differed."""

    problem: str = ""
    """What is not as it should be; empty when all is well."""
    state: State = State.OK
    """How bad it is: OK also where there are no configurations, BLOCKED where one is there and not right."""


class LookFailed(Struct, frozen=True, tag=True):
    """It could not be ended; the next one begins anew."""

    error: Exception


Message = Look | Looked | LookFailed


def trusting(webhooks: Sequence[dict[str, Any]], authority: str) -> list[dict[str, Any]] | None:
    """The webhooks with this authority (base64 of PEM); None when they have it."""
    after = [{**one, "clientConfig": {**one.get("clientConfig", {}), "caBundle": authority}} for one in webhooks]
    return after if after != list(webhooks) else None


class BundleActor(Actor[Message]):
    """See the module."""

    capacity = 16

    def __init__(
        self, store: Store, *, name: str, authority: Callable[[], Awaitable[bytes]], mine: Callable[[], bool]
    ) -> None:
        """Say what is kept to what.

        Args:
            store: where the configurations are.
            name: of both of them.
            authority: reads it, PEM; raises OSError where there is none.
            mine: whether it is for this replica to do; two that do it at once conflict and do no harm.
        """
        self._store = store
        self._name = name
        self._authority = authority
        self._mine = mine
        self._problem = ""
        self._first = _FIRST_LOOKS

    def __repr__(self) -> str:
        return f"<BundleActor {self._name} {self._problem or 'well'}>"

    def started(self) -> None:
        """Look at once."""
        self._report(State.BLOCKED, "not looked at yet")
        self.timers.start("look", 0.0, Look())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Compare, and wait for the next time."""
        match message:
            case Look():
                if self._mine():
                    self.pipe(self._compare(), lambda looked: looked, failed=LookFailed)
                else:
                    self._next("", State.OK)
            case Looked(problem, state):
                self._next(problem, state)
            case LookFailed(error):
                self._next(f"{type(error).__name__}: {error}", State.BLOCKED)
            case _:
                assert_never(message)
        return None

    def _next(self, problem: str, state: State) -> None:
        self._first = self._first - 1 if state is State.BLOCKED and self._first else 0
        if problem and problem != self._problem:
            _log.warning("%s", problem)
        self._problem = problem
        self._report(State.DEGRADED if state is State.BLOCKED and not self._first else state, problem)
        self.timers.start("look", AGAIN_SECONDS if self._first else LOOK_SECONDS, Look())

    def _report(self, state: State, detail: str) -> None:
        if self.system.health is not None:
            self.system.health.report(f"{self.ref.name}/trust", state, detail)

    async def _compare(self) -> Looked:
        try:
            authority = base64.b64encode(await self._authority()).decode()
        except OSError as error:
            problem = f"webhooks: no authority of a certificate: {error.strerror}: {error.filename}"
            return Looked(problem, State.DEGRADED)
        problems = []
        state = State.OK
        for kind in _KINDS:
            try:
                await self._write(kind, authority)
            except Conflict:
                problems.append(f"{kind.kind} {self._name}: somebody else wrote it at the same moment")
                state = State.BLOCKED
            except NotFound:
                problems.append(f"{kind.kind} {self._name}: there is none: objects are written unseen")
            except StoreError as error:
                problems.append(f"{kind.kind} {self._name}: {error}")
                state = State.BLOCKED
        return Looked("; ".join(problems), state)

    async def _write(self, kind: Kind[Any], authority: str) -> None:
        found = await self._store.get(kind, self._name)
        after = trusting(found.webhooks, authority)
        if after is not None:
            # Once more: what was read before the configuration may be older than what another replica wrote into it.
            after = trusting(found.webhooks, base64.b64encode(await self._authority()).decode())
        if after is not None:
            version = found.metadata.resource_version
            await self._store.patch(kind, self._name, {"webhooks": after}, resource_version=version)
            _log.info("%s %s trusts the authority that is served", kind.kind, self._name)
