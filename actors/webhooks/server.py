"""Serves the admission webhooks: HTTPS with the certificate that agents know as well, on every ready replica.

It decides nothing (`admission` does), owns nothing and persists nothing: a replica that dies takes no answer with it,
and the API server asks another one. It is a service and no actor: nothing of one request is there for the next.

It is served from when the cluster has been seen once; until then the replica is not ready.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import anyio
from prometheus_client import Counter, Histogram

from actors.webhooks.certificate import SOON_SECONDS, watch
from actors.webhooks.pods import PodWebhook
from admission.exchange import MUTATE, VALIDATE, NoReview, Outcome, answer
from admission.rulebook import Rulebook
from api.kinds import NEW_POD, Kind
from runtime.actor import System
from runtime.clock import Clock
from runtime.transport.credentials import ServerCertificate, Trust, served_until
from telemetry import attributes, metrics, traces
from telemetry.health import HealthTree, State
from telemetry.http import Ask, HttpServer, Response, Route

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

HEALTH: Final = "/webhook-health-check"
_LONGEST: Final = 8 << 20
"""Bytes: two objects as big as the API server takes them (3 MiB), and their envelope."""
_IDLE_SECONDS: Final = 120.0
"""Longer than the API server keeps an idle connection (90 s): it closes, so it never sends into one that we closed."""
_CONNECTIONS: Final = 1024
_CERTIFICATE_SECONDS: Final = 10.0
"""How often the certificate's files are looked at."""
_DRAIN_SECONDS: Final = 0.8
"""What requests under way get to end, when the server is stopped."""
_TREE: Final = "controller/webhooks/serving"


def path(way: str, kind: Kind[Any]) -> str:
    """Of the requests of a kind, as the original's."""
    return f"/{way}-{kind.group.replace('.', '-')}-{kind.version}-{kind.kind.lower()}"


def routes(book: Rulebook, clock: Clock, pods: PodWebhook | None = None) -> Mapping[str, Route]:
    """Two paths for each kind that has rules, one for pods, and one that says that the server is there."""
    made: dict[str, Route] = {HEALTH: lambda _query: Response()}
    for kind in book.kinds.values():
        for way in (MUTATE, VALIDATE):
            made[path(way, kind)] = Ask(_asked(clock, way, kind, _by(book, way, kind)), limit=_LONGEST)
    if pods is not None:
        made[path(MUTATE, NEW_POD)] = Ask(_asked(clock, MUTATE, NEW_POD, pods.answer), limit=_LONGEST)
    return made


async def serve(
    book: Rulebook,
    *,
    ready: Callable[[], Awaitable[None]],
    port: int,
    cert_file: Path,
    key_file: Path,
    ca_file: Path,
    name: str,
    system: System,
    pods: PodWebhook | None = None,
    leaving: Callable[[], bool] = lambda: False,
    look: float = _CERTIFICATE_SECONDS,
    soon: float = SOON_SECONDS,
) -> None:
    """Serve until cancelled, from when `ready` returns. Raises `CredentialError` and OSError when it cannot begin.

    `ca_file` and `name` are what clients verify the certificate by. Without `pods` nobody is to ask about pods. While
    the replica is `leaving` each connection ends with its next answer: the API server keeps connections, and would come
    back on them though there is no endpoint any more. The certificate's files are looked at every `look` seconds;
    `soon` is from when its end is a problem.
    """
    health = system.health or HealthTree("nobody asks")
    health.report(_TREE, State.BLOCKED, "the cluster has not been seen yet")
    await ready()
    certificate, trust = ServerCertificate(cert_file, key_file), Trust(ca_file)
    server = HttpServer(
        "",
        port,
        tls=await certificate.load(),
        routes=routes(book, system.clock, pods),
        idle=_IDLE_SECONDS,
        connections=_CONNECTIONS,
        leaving=leaving,
    )

    async def expiry() -> float:
        return await served_until("127.0.0.1", server.port, trust=trust, name=name)

    try:
        async with server:
            try:
                async with anyio.create_task_group() as group:
                    _log.info("serving webhooks on port %d", server.port)
                    health.report(_TREE, State.OK)
                    group.start_soon(certificate.follow, look)
                    group.start_soon(lambda: watch(expiry, system, soon=soon))
            finally:
                with anyio.CancelScope(shield=True):
                    await server.drain(_DRAIN_SECONDS)
    finally:
        health.report(_TREE, State.BLOCKED, "not served")


def _by(book: Rulebook, way: str, kind: Kind[Any]) -> Callable[[bytes], Awaitable[Outcome]]:
    async def outcome(body: bytes) -> Outcome:
        return answer(book, way, kind, body)

    return outcome


def _asked(
    clock: Clock, way: str, kind: Kind[Any], judge: Callable[[bytes], Awaitable[Outcome]]
) -> Callable[[bytes], Awaitable[Response]]:
    async def asked(body: bytes) -> Response:
        begun = clock.now()
        with traces.span(f"{way} {kind.kind}") as span:
            try:
                outcome = await judge(body)
            except NoReview as error:
                _counted(way, kind.kind, "", "no_review").inc()
                _log.warning("%s: %s", path(way, kind), error)
                return Response(f"{error}\n".encode(), HTTPStatus.BAD_REQUEST)
            span.set_attribute(attributes.ADMISSION_OBJECT, outcome.name)
            span.set_attribute(attributes.ADMISSION_OPERATION, outcome.operation)
            span.set_attribute(attributes.ADMISSION_OUTCOME, outcome.word)
        _counted(way, kind.kind, outcome.operation, outcome.word).inc()
        _timed(way, kind.kind).observe(clock.now() - begun)
        _noted(way, outcome)
        return Response(outcome.body, content_type="application/json")

    return asked


def _noted(way: str, outcome: Outcome) -> None:
    if outcome.errors:
        said = "; ".join(str(error) for error in outcome.errors)
        _audit.info("refused: %s of %s %s: %s", outcome.operation, outcome.kind, outcome.name, said)
    elif outcome.problem:
        _log.warning(
            "%s of %s %s cannot be judged now: %s", outcome.operation, outcome.kind, outcome.name, outcome.problem
        )
    else:
        _log.debug("%s: %s of %s %s: %s", way, outcome.operation, outcome.kind, outcome.name, outcome.word)


@lru_cache(maxsize=256)
def _counted(way: str, kind: str, operation: str, outcome: str) -> Counter:
    """All four are words of our own or of the protocol: they are few."""
    return metrics.ADMISSION_REVIEWS.labels(way=way, kind=kind, operation=operation, outcome=outcome)


@lru_cache(maxsize=64)
def _timed(way: str, kind: str) -> Histogram:
    return metrics.ADMISSION_REVIEW_SECONDS.labels(way=way, kind=kind)
