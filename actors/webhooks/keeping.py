"""Keeps the authority and the certificate that the controller makes itself: in a Secret, and in this replica's files.

Every replica reads the Secret every few seconds and writes what it serves and trusts by into its own folder. One of
them, the owner, also looks what is to be done (`actors.webhooks.rotation`) and writes the Secret.

Messages: `Look` from its timer, `Looked` and `LookFailed` from its own work. State: since when each authority is seen
to be trusted by the webhook configurations, and how often in a row something was wrong. Persists: the Secret's data,
with the resourceVersion that was read, so of two replicas that both believe to own it one fails and looks again; the
folder's files, each replaced as a whole. Answers: nothing; what is wrong is in the log once, in `/healthz` as long as
it is, and in an event about the Secret when it stays.

What a crash leaves, at each await: before the Secret is written nothing, and what was made is lost; behind it the
Secret says what is to be done next, and the replica's next look, or its next life, writes the files. Since when an
authority is trusted is forgotten, so the next life waits for that once more.
"""

import asyncio
import logging
import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, assert_never

import anyio
import anyio.to_thread
from msgspec import Struct

from actors.webhooks import issuing
from actors.webhooks.rotation import Kept, Step, Terms, pending, plan
from api.core import ObjectReference, Secret
from api.kinds import MUTATINGWEBHOOK, SECRET, VALIDATINGWEBHOOK, Kind
from api.settings import ControllerSettings
from runtime.actor import Actor
from runtime.envelope import Envelope
from runtime.store.port import Conflict, NotFound, Store, StoreError
from telemetry import metrics
from telemetry.health import State

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
_CONFIGURATIONS: Final[tuple[Kind[Any], ...]] = (MUTATINGWEBHOOK, VALIDATINGWEBHOOK)
_SHORTEST_SECONDS: Final = 0.2
SETTLE_SECONDS: Final = 5.0
"""For an API server to hear that the configurations have changed. It watches them, so that is a matter of moments."""
_PATIENCE: Final = 3
"""Looks in a row that go wrong until that is said in an event."""


class Look(Struct, frozen=True, tag=True):
    """Time to look."""


class Looked(Struct, frozen=True, tag=True):
    """All is written that was to be."""

    problem: str = ""
    """What is not as it should be; empty when all is well."""
    pause: float = LOOK_SECONDS
    """Seconds until the next look."""


class LookFailed(Struct, frozen=True, tag=True):
    """It could not be ended; the next one begins anew."""

    error: Exception


Message = Look | Looked | LookFailed


class Files(Struct, frozen=True):
    """Where a replica's own copies are. `served` holds certificate and key in one file, so they always fit."""

    served: Path
    trusted: Path


class Certificates:
    """What the rest of a replica needs of them."""

    def __init__(self, store: Store, *, namespace: str, secret: str) -> None:
        """The Secret has to be there; what is in it may be nothing yet."""
        self._store = store
        self.namespace = namespace
        self.secret = secret
        self.there = asyncio.Event()
        """Set once the files can be used."""

    async def authority(self) -> bytes:
        """The authorities that whoever connects is to trust now, PEM. Raises OSError and `StoreError`."""
        try:
            found = await self._store.get(SECRET, self.secret, namespace=self.namespace)
        except NotFound:
            raise FileNotFoundError(2, "there is none", self._called) from None
        if not found.data.get(issuing.TRUSTED):
            raise FileNotFoundError(2, "nothing in it yet", self._called)
        return found.data[issuing.TRUSTED]

    @property
    def _called(self) -> str:
        return f"Secret {self.namespace}/{self.secret}"


class CertificatesActor(Actor[Message]):
    """See the module."""

    capacity = 16

    def __init__(
        self,
        store: Store,
        certificates: Certificates,
        *,
        terms: Terms,
        files: Files,
        name: str,
        mine: Callable[[], bool],
        say: Callable[[ObjectReference, str], None],
    ) -> None:
        """Say what is kept where.

        Args:
            store: where the Secret and the webhook configurations are.
            certificates: of this replica; told when its files are there.
            terms: how certificates are to be.
            files: this replica's own.
            name: of the controller: the subject of what is made, and the name of both configurations.
            mine: whether it is for this replica to write the Secret; two that do it at once conflict and do no harm.
            say: something is wrong about an object, in words.
        """
        self._store = store
        self._certificates = certificates
        self._terms = terms
        self._files = files
        self._name = name
        self._mine = mine
        self._say = say
        self._trusted: dict[str, float] = {}
        self._written: tuple[bytes, bytes] = (b"", b"")
        self._about = ObjectReference(
            api_version=SECRET.api_version,
            kind=SECRET.kind,
            namespace=certificates.namespace,
            name=certificates.secret,
        )
        self._problem = ""
        self._wrong = 0

    def __repr__(self) -> str:
        return f"<CertificatesActor {self._certificates.secret} {self._problem or 'well'}>"

    def started(self) -> None:
        """Look at once."""
        self._report(State.STARTING, "not looked at yet")
        self.timers.start("look", 0.0, Look())

    def handle(self, message: Message, envelope: Envelope) -> object:  # noqa: ARG002 - the kernel's signature
        """Look, and wait for the next time."""
        match message:
            case Look():
                self.pipe(self._look(), lambda looked: looked, failed=LookFailed)
            case Looked(problem, pause):
                self._next(problem, pause)
            case LookFailed(Conflict()):
                self._next("", _SHORTEST_SECONDS)
            case LookFailed(NotFound()):
                self._next("there is none: `helm upgrade` brings it back", look_seconds(self._terms))
            case LookFailed(error):
                text = str(error) if isinstance(error, StoreError | OSError) else f"{type(error).__name__}: {error}"
                self._next(text, look_seconds(self._terms))
            case _:
                assert_never(message)
        return None

    def _next(self, problem: str, pause: float) -> None:
        if problem:
            metrics.CERTIFICATE_FAILURES.inc()
            self._wrong += 1
            if problem != self._problem:
                _log.warning("Secret %s: %s", self._certificates.secret, problem)
            if self._wrong >= _PATIENCE:
                self._say(self._about, problem)
        else:
            self._wrong = 0
        self._problem = problem
        # Not ready without a certificate: nothing is served. Otherwise another replica has the same one.
        served = self._certificates.there.is_set()
        state = State.OK if served and not problem else State.DEGRADED if served else State.BLOCKED
        self._report(state, problem or ("" if served else "no certificate yet"))
        self.timers.start("look", pause, Look())

    def _report(self, state: State, detail: str) -> None:
        if self.system.health is not None:
            self.system.health.report(f"{self.ref.name}/kept", state, detail)

    # ------------------------------------------------------------------ work

    async def _look(self) -> Looked:
        secret = await self._store.get(SECRET, self._certificates.secret, namespace=self._certificates.namespace)
        self._about = _with_uid(self._about, secret.metadata.uid)
        longest = look_seconds(self._terms)
        problem, pause = "", longest
        kept = await anyio.to_thread.run_sync(issuing.read, secret.data)
        if self._mine():
            now = self.system.clock.wall()
            problem = await self._see_trust(kept, now) if pending(kept) else ""
            step = plan(kept, self._terms, now=now, trusted=self._trusted)
            if step.reason:
                secret, pause = await self._carry_out(secret, step, now), _SHORTEST_SECONDS
                kept = await anyio.to_thread.run_sync(issuing.read, secret.data)
            else:
                pause = min(max(step.until - now, _SHORTEST_SECONDS), longest)
            metrics.CERTIFICATE_AUTHORITY_EXPIRY.set(max((one.ends for one in kept.authorities), default=0.0))
        if kept.leaf is not None and kept.leaf.authority:
            await self._copy(secret.data)
        return Looked(problem, pause)

    async def _see_trust(self, kept: Kept, now: float) -> str:
        """Note which authorities every webhook has; returns what is wrong when the newest has waited for too long."""
        common: frozenset[str] | None = None
        for kind in _CONFIGURATIONS:
            try:
                found = await self._store.get(kind, self._name)
            except NotFound:
                continue  # by these nobody is asked
            for hook in found.webhooks:
                bundle = issuing.bundled(hook.get("clientConfig", {}).get("caBundle", ""))
                common = bundle if common is None else common & bundle
        seen = common if common is not None else frozenset(one.id for one in kept.authorities)
        self._trusted = {one: self._trusted.get(one, now) for one in seen}
        newest = max((one for one in kept.authorities if one.signs), key=lambda one: one.begins)
        patience = self._terms.overlap + _PATIENCE * LOOK_SECONDS
        if newest.id in seen or now < newest.begins + patience:
            return ""
        return "the new authority is not in the webhook configurations: certificates are still signed by the old one"

    async def _carry_out(self, secret: Secret, step: Step, now: float) -> Secret:
        after = await anyio.to_thread.run_sync(
            lambda: issuing.change(secret.data, step, self._terms, now=now, name=self._name)
        )
        # One write: what a replica reads always belongs together.
        stored = await self._store.patch(
            SECRET,
            self._certificates.secret,
            {"data": {name: b64encode(value).decode() for name, value in after.items()}},
            namespace=self._certificates.namespace,
            resource_version=secret.metadata.resource_version,
        )
        made = {"authority": step.new_authority, "certificate": bool(step.sign) or step.sign_by_new}
        for what in (what for what, is_new in made.items() if is_new):
            metrics.CERTIFICATES_MADE.labels(what=what).inc()
        _log.info("%s: %s", step.reason, ", ".join(f"new {what}" for what, new in made.items() if new) or "taken out")
        return stored

    async def _copy(self, data: Mapping[str, bytes]) -> None:
        """Have what is in the Secret in the files."""
        trusted, leaf, key = (data[name] for name in (issuing.TRUSTED, issuing.CERTIFICATE, issuing.KEY))
        wanted = (trusted, leaf + b"\n" + key)
        if wanted == self._written:
            return
        await anyio.to_thread.run_sync(_replace, self._files.trusted, trusted)
        await anyio.to_thread.run_sync(_replace, self._files.served, wanted[1])
        self._written = wanted
        self._certificates.there.set()


def look_seconds(terms: Terms) -> float:
    """How often a replica looks: several times in what is left of a certificate when there is a new one."""
    return min(LOOK_SECONDS, max(_SHORTEST_SECONDS, (1 - terms.renew) * terms.leaf / 10))


def terms_of(settings: ControllerSettings) -> Terms:
    """By the settings. Agents and other replicas, and the API server, know a replica by its Service."""
    service = f"{settings.controller_name}.{settings.pod_namespace}"
    more = (_canonical(host) for host in settings.certificate_hosts.split(",") if host)
    return Terms(
        hosts=frozenset((service, f"{service}.svc", *more)),
        authority=settings.certificate_authority_lifetime,
        leaf=settings.certificate_lifetime,
        renew=settings.certificate_renewal / 100,
        overlap=settings.certificate_overlap,
        settle=min(SETTLE_SECONDS, settings.certificate_overlap),
    )


def _canonical(host: str) -> str:
    """An address in the spelling that a certificate is read back with."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host


def _with_uid(about: ObjectReference, uid: str) -> ObjectReference:
    return (
        about if about.uid == uid else ObjectReference(about.api_version, about.kind, about.namespace, about.name, uid)
    )


def _replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, as a whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    new.replace(path)
