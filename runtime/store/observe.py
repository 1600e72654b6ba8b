"""What is seen of requests to a store: a span, a count, a time. The same for every adapter that does I/O."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from telemetry import metrics, traces


class Outcome:
    """How a request ended. `code` is the HTTP status where there is one; an error's name is filled in for the rest."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = ""


@contextmanager
def observed(
    verb: str, resource: str, *, requests: Counter[tuple[str, str, str]], attributes: Mapping[str, str | int]
) -> Iterator[Outcome]:
    """Trace, count and time one request; its errors pass through.

    Args:
        verb: get, list, create, patch, update, delete.
        resource: the plural, with the subresource behind a slash.
        requests: is counted up under (verb, resource, code); code is the HTTP status, ``OK``, or the error's name.
        attributes: of the span.
    """
    outcome = Outcome()
    begin = time.perf_counter()
    try:
        with traces.span(f"store.{verb} {resource}", kind=traces.SpanKind.CLIENT, attributes=attributes) as span:
            yield outcome
            if outcome.code.isdecimal():
                span.set_attribute("http.response.status_code", int(outcome.code))
        outcome.code = outcome.code or "OK"
    except BaseException as error:
        outcome.code = outcome.code or type(error).__name__
        raise
    finally:
        metrics.STORE_REQUEST_SECONDS.labels(verb, resource).observe(time.perf_counter() - begin)
        count(verb, resource, outcome.code, requests=requests)


def count(verb: str, resource: str, code: str, *, requests: Counter[tuple[str, str, str]]) -> None:
    """Count a request that is neither traced nor timed: a watch lasts minutes."""
    metrics.STORE_REQUESTS.labels(verb, resource, code).inc()
    requests[verb, resource, code] += 1
