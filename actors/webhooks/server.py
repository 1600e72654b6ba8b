"""Serves the admission webhooks: HTTPS with the certificate that agents know as well, on every ready replica.

It decides nothing (`admission` does), owns nothing and persists nothing: a replica that dies takes no answer with it,
and the API server asks another one. It is a service and no actor, for an answer needs no await.

It is served from when the cluster has been seen once; until then the replica is not ready.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from prometheus_client import Counter, Histogram

from admission.exchange import MUTATE, VALIDATE, NoReview, Outcome, answer
from admission.rulebook import Rulebook
from api.kinds import Kind
from runtime.actor import System
from runtime.clock import Clock
from runtime.transport.credentials import ServerCertificate
from telemetry import attributes, metrics, traces
from telemetry.health import HealthTree, State
from telemetry.http import Ask, HttpServer, Response, Route

_log = logging.getLogger(__name__)
_audit = logging.getLogger("spiderpool.audit")

HEALTH: Final = "/webhook-health-check"
_LONGEST: Final = 16 << 20
"""Bytes: two objects of what etcd holds at most, and escaped."""
_IDLE_SECONDS: Final = 120.0
"""Longer than the API server keeps an idle connection (90 s): it closes, so it never sends into one that we closed."""
_CONNECTIONS: Final = 1024
_CERTIFICATE_SECONDS: Final = 10.0
"""How often the certificate's files are looked at."""
_TREE: Final = "controller/webhooks/serving"


def path(way: str, kind: Kind[Any]) -> str:
    """Of the requests of a kind, as the original's."""
    return f"/{way}-{kind.group.replace('.', '-')}-{kind.version}-{kind.kind.lower()}"


def routes(book: Rulebook, clock: Clock) -> Mapping[str, Route]:
    """Two paths for each kind that has rules, and one that says that the server is there."""
    made: dict[str, Route] = {HEALTH: lambda _query: Response()}
    for kind in book.kinds.values():
        for way in (MUTATE, VALIDATE):
            made[path(way, kind)] = Ask(_asked(book, clock, way, kind), limit=_LONGEST)
    return made


async def serve(
    book: Rulebook, *, ready: Callable[[], Awaitable[None]], port: int, cert_file: Path, key_file: Path, system: System
) -> None:
    """Serve until cancelled, from when `ready` returns. Raises `CredentialError` and OSError when it cannot begin."""
    health = system.health or HealthTree("nobody asks")
    health.report(_TREE, State.BLOCKED, "the cluster has not been seen yet")
    await ready()
    certificate = ServerCertificate(cert_file, key_file)
    server = HttpServer(
        "",
        port,
        tls=await certificate.load(),
        routes=routes(book, system.clock),
        idle=_IDLE_SECONDS,
        connections=_CONNECTIONS,
    )
    async with server:
        _log.info("serving webhooks on port %d", server.port)
        health.report(_TREE, State.OK)
        try:
            await certificate.follow(_CERTIFICATE_SECONDS)
        finally:
            health.report(_TREE, State.BLOCKED, "not served")


def _asked(book: Rulebook, clock: Clock, way: str, kind: Kind[Any]) -> Any:
    def asked(body: bytes) -> Response:
        begun = clock.now()
        with traces.span(f"{way} {kind.kind}") as span:
            try:
                outcome = answer(book, way, kind, body)
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
    else:
        _log.debug("%s: %s of %s %s: %s", way, outcome.operation, outcome.kind, outcome.name, outcome.word)


@lru_cache(maxsize=256)
def _counted(way: str, kind: str, operation: str, outcome: str) -> Counter:
    """All four are words of our own or of the protocol: they are few."""
    return metrics.ADMISSION_REVIEWS.labels(way=way, kind=kind, operation=operation, outcome=outcome)


@lru_cache(maxsize=64)
def _timed(way: str, kind: str) -> Histogram:
    return metrics.ADMISSION_REVIEW_SECONDS.labels(way=way, kind=kind)
