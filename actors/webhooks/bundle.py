"""Whom the API server trusts when it asks for admission: the webhook configurations follow the certificate's authority.

A chart does not know what cert-manager makes, a Secret may be replaced by hand, and an upgrade or a tool that keeps a
cluster to a repository may write the configurations anew, without it. So the file with the authority, which agents and
replicas trust as well, is compared with them every few seconds, and what differs is written.

Messages: `Look` from its timer, `Looked` and `LookFailed` from its own work. State: what was last wrong. Persists:
`clientConfig.caBundle` of each webhook, with the resourceVersion that was read; after a conflict the next look reads
again. Answers: nothing; what is wrong is in the log once, and in `/healthz` as long as it is. It makes no replica
unready: agents are served all the same.

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
_KINDS: Final[tuple[Kind[Any], ...]] = (MUTATINGWEBHOOK, VALIDATINGWEBHOOK)


class Look(Struct, frozen=True, tag=True):
    """Time to compare."""


class Looked(Struct, frozen=True, tag=True):
    """It has been compared, and written where it differed."""

    problem: str = ""
    """What could not be done; empty when all is well."""


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

    def __repr__(self) -> str:
        return f"<BundleActor {self._name} {self._problem or 'well'}>"

    def started(self) -> None:
        """Look at once."""
        self.timers.start("look", 0.0, Look())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Compare, and wait for the next time."""
        match message:
            case Look():
                if self._mine():
                    self.pipe(self._compare(), Looked, failed=LookFailed)
                else:
                    self._next("")
            case Looked(problem):
                self._next(problem)
            case LookFailed(error):
                self._next(f"{type(error).__name__}: {error}")
            case _:
                assert_never(message)
        return None

    def _next(self, problem: str) -> None:
        if problem and problem != self._problem:
            _log.warning("%s", problem)
        self._problem = problem
        if self.system.health is not None:
            self.system.health.report(f"{self.ref.name}/trust", State.DEGRADED if problem else State.OK, problem)
        self.timers.start("look", LOOK_SECONDS, Look())

    async def _compare(self) -> str:
        """Returns what is wrong, or nothing."""
        try:
            authority = base64.b64encode(await self._authority()).decode()
        except OSError as error:
            return f"webhooks: no authority of a certificate: {error.strerror}: {error.filename}"
        problems = []
        for kind in _KINDS:
            try:
                await self._write(kind, authority)
            except Conflict:
                problems.append(f"{kind.kind} {self._name}: somebody else wrote it at the same moment")
            except NotFound:
                problems.append(f"{kind.kind} {self._name}: there is none: objects are written unseen")
            except StoreError as error:
                problems.append(f"{kind.kind} {self._name}: {error}")
        return "; ".join(problems)

    async def _write(self, kind: Kind[Any], authority: str) -> None:
        found = await self._store.get(kind, self._name)
        after = trusting(found.webhooks, authority)
        if after is not None:
            version = found.metadata.resource_version
            await self._store.patch(kind, self._name, {"webhooks": after}, resource_version=version)
            _log.info("%s %s trusts the authority that is served", kind.kind, self._name)
