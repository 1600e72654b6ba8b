"""Traces: one per ADD and DEL, from the shim's exec to the last netlink step.

A thin layer over the OpenTelemetry SDK that adds what its API lacks for us: a span around awaits in one line, spans
recorded after the fact (the shim's exec, a wait in a mailbox), contexts that travel in an envelope or a header, and a
path that costs next to nothing when nobody looks. Nothing is registered globally with OpenTelemetry, so a test can
record without disturbing the next one.

Who waits for an answer makes a child span. Work that serves many at once (a batch) makes a span of its own with a link
to each of them. An actor's task must be spawned with an empty context, else every span it ever makes is a child of
the span in which the actor was started.

Configured by the standard environment names: OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT switch
the export on (OTLP over HTTP, protobuf), OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER=none switch it off,
OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_SPAN_* are honoured.
"""

import asyncio
import logging
import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import override

from opentelemetry import context as otel_context
from opentelemetry import trace as otel_trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    format_span_id,
    format_trace_id,
)
from opentelemetry.util.types import AnyValue

from telemetry.recorder import SpanRecorder

__all__ = [
    "ROOT",
    "Context",
    "Link",
    "Span",
    "SpanKind",
    "attach",
    "current",
    "extract",
    "flush",
    "inject",
    "record",
    "recording",
    "setup",
    "shutdown",
    "span",
    "span_link",
    "trace_id",
]

logger = logging.getLogger(__name__)

ROOT = Context()
"""The empty context: `span(..., parent=ROOT)` begins a new trace."""

type Attributes = Mapping[str, AnyValue]

_MAX_LINKS = 1024
"""A batch span links to every request it serves; the SDK's own limit is 128."""

_RECORDED = "_spiderpool_span"
"""Attribute that marks an exception as recorded, so that its traceback is in one span, not in all around it."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class _Ids(IdGenerator):
    """Ids from a generator of their own: the SDK's takes them from `random`, which tests and libraries seed."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))  # noqa: S311 - ids need to differ, not to be secret

    @override
    def generate_span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    @override
    def generate_trace_id(self) -> int:
        return self._random.getrandbits(128) or 1

    @override
    def is_trace_id_random(self) -> bool:
        return True


class _State:
    """What `setup` left behind. `tracer` is None when nothing listens: that is the cheap path."""

    tracer: Tracer | None = None
    provider: TracerProvider | None = None


_state = _State()


def setup(
    *, service: str, version: str, attributes: Attributes | None = None, recorder: SpanRecorder | None = None
) -> None:
    """Switch tracing on for this process, if anything listens: an OTLP endpoint in the environment, or a `recorder`.

    Args:
        service: `service.name`, unless OTEL_SERVICE_NAME says otherwise.
        version: `service.version`.
        attributes: more of the resource, for example `k8s.node.name`; OTEL_RESOURCE_ATTRIBUTES wins over them.
        recorder: also keep the finished spans in memory.

    A second call replaces the first one's configuration; end that with `shutdown` before. The exporter's modules
    (requests, protobuf: 12 MiB) are imported only where there is an endpoint.
    """
    exports = _export_wanted(os.environ)
    if not exports and recorder is None:
        _state.tracer = _state.provider = None
        return
    provider = _provider(service=service, version=version, attributes=attributes or {})
    if recorder is not None:
        provider.add_span_processor(recorder)
    if exports:
        _add_exporter(provider)
    _install(provider)


@contextmanager
def recording(*, service: str = "test", capacity: int = 4096) -> Iterator[SpanRecorder]:
    """Record all spans made inside the block, for tests; what was set up before is back afterwards."""
    before = _state.tracer, _state.provider
    recorder = SpanRecorder(capacity=capacity)
    provider = _provider(service=service, version="", attributes={})
    provider.add_span_processor(recorder)
    _install(provider)
    try:
        yield recorder
    finally:
        _state.tracer, _state.provider = before
        provider.shutdown()


def flush(*, timeout: float = 5.0) -> bool:
    """Send what is queued. Blocks up to `timeout` seconds (call it in a thread); False when that did not suffice."""
    provider = _state.provider
    return provider is None or _within(timeout, provider.force_flush)


def shutdown(*, timeout: float = 1.0) -> bool:
    """Send what is queued and stop. Blocks up to `timeout` seconds: call it in a thread. Idempotent.

    Returns False when the collector did not take everything in time; the rest is lost and nothing waits for it.
    """
    provider = _state.provider
    _state.tracer = _state.provider = None
    return provider is None or _within(timeout, provider.shutdown)


def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    links: Iterable[Link] = (),
    parent: Context | None = None,
    start_time_ns: int | None = None,
) -> AbstractContextManager[Span]:
    """A span around the block, which is current inside it, across awaits too.

    Args:
        name: what is done, without values that differ from call to call.
        kind: SERVER, CLIENT, PRODUCER, CONSUMER or INTERNAL.
        attributes: names of `telemetry.attributes`.
        links: other spans that this one serves; links to nothing are dropped.
        parent: the context to belong to, by default the current one; `ROOT` begins a new trace.
        start_time_ns: Unix nanoseconds, when it began before now.

    An exception that leaves the block is recorded as an event of the innermost span, sets the status of every span it
    passes to ERROR with its text, and goes on. A cancellation likewise, with the text "cancelled".
    """
    tracer = _state.tracer
    if tracer is None:
        return _NOTHING if parent is None else _Silent(parent)
    return _Recorded(
        tracer.start_span(
            name,
            context=parent,
            kind=kind,
            attributes=attributes,
            links=[link for link in links if link.context.is_valid],
            start_time=start_time_ns,
        ),
        parent,
    )


def record(
    name: str,
    start_ns: int,
    end_ns: int,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Attributes | None = None,
    links: Iterable[Link] = (),
    parent: Context | None = None,
    error: str = "",
) -> Context:
    """A span of something that is over. Times are Unix nanoseconds; an end before the start counts as the start.

    Returns a context in which it is the current span, so that others can be made its children; with tracing off, the
    parent's.
    """
    context = otel_context.get_current() if parent is None else parent
    tracer = _state.tracer
    if tracer is None:
        return context
    made = tracer.start_span(
        name,
        context=context,
        kind=kind,
        attributes=attributes,
        links=[link for link in links if link.context.is_valid],
        start_time=start_ns,
    )
    if error:
        made.set_status(StatusCode.ERROR, error)
    made.end(max(start_ns, end_ns))
    return otel_trace.set_span_in_context(made, context)


def current() -> Context:
    """The context of the running code, to be put into an envelope (0.05 microseconds)."""
    return otel_context.get_current()


def attach(context: Context | None) -> AbstractContextManager[Span]:
    """Make a context from an envelope the current one inside the block. None changes nothing."""
    return _NOTHING if context is None else _Silent(context)


def inject(context: Context | None = None) -> str:
    """The W3C `traceparent` of a context, by default the current one; empty when there is no span in it."""
    found = otel_trace.get_current_span(context).get_span_context()
    if not found.is_valid:
        return ""
    return f"00-{format_trace_id(found.trace_id)}-{format_span_id(found.span_id)}-{found.trace_flags & 0xFF:02x}"


def extract(traceparent: str) -> Context:
    """The context of a W3C `traceparent`. Any other text gives the empty context, never an error."""
    match = _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None:
        return ROOT
    version, trace, parent, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest):
        return ROOT
    found = SpanContext(
        trace_id=int(trace, 16), span_id=int(parent, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return otel_trace.set_span_in_context(NonRecordingSpan(found), ROOT) if found.is_valid else ROOT


def span_link(context: Context | None = None, *, attributes: Attributes | None = None) -> Link:
    """A link to the span of a context, by default the current one. `span` drops it if there is none."""
    return Link(otel_trace.get_current_span(context).get_span_context(), attributes)


def trace_id(context: Context | None = None) -> str:
    """The trace of a context, by default the current one: 32 hex digits, empty when there is none."""
    found = otel_trace.get_current_span(context).get_span_context()
    return format_trace_id(found.trace_id) if found.is_valid else ""


class _Nothing:
    """A block that is not traced. Stateless, hence shared."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return INVALID_SPAN

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


_NOTHING = _Nothing()


class _Silent:
    """A block in another context, without a span: a foreign trace passes through a process that records none."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> Span:
        self._token = otel_context.attach(self._context)
        return INVALID_SPAN

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        otel_context.detach(self._token)


class _Recorded:
    """A block with a span. A class rather than a generator: half the cost, and no frame in every traceback."""

    __slots__ = ("_parent", "_span", "_token")

    def __init__(self, made: Span, parent: Context | None) -> None:
        self._span = made
        self._parent = parent

    def __enter__(self) -> Span:
        self._token = otel_context.attach(otel_trace.set_span_in_context(self._span, self._parent))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        otel_context.detach(self._token)
        if error is not None and self._span.is_recording():
            _fail(self._span, error)
        self._span.end()


def _fail(failed: Span, error: BaseException) -> None:
    if isinstance(error, asyncio.CancelledError):
        failed.set_status(StatusCode.ERROR, "cancelled")
        return
    failed.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
    if not hasattr(error, _RECORDED):
        failed.record_exception(error)
        setattr(error, _RECORDED, True)


def _export_wanted(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(
        environ.get(name, "").strip() for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )


def _provider(*, service: str, version: str, attributes: Attributes) -> TracerProvider:
    own = {"service.name": service, "service.version": version, **attributes}
    resource = Resource.create({key: value for key, value in own.items() if value != ""})
    limits = None if os.environ.get("OTEL_LINK_COUNT_LIMIT") else SpanLimits(max_links=_MAX_LINKS)
    return TracerProvider(
        resource=resource.merge(OTELResourceDetector().detect()),
        id_generator=_Ids(),
        span_limits=limits,
        shutdown_on_exit=False,
    )


def _add_exporter(provider: TracerProvider) -> None:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - 12 MiB

    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def _install(provider: TracerProvider) -> None:
    tracer = provider.get_tracer("spiderpool")
    _state.provider = provider
    _state.tracer = None if isinstance(tracer, otel_trace.NoOpTracer) else tracer


def _within(timeout: float, act: Callable[[], object]) -> bool:
    """Run something that knows no deadline on a daemon thread, and stop waiting for it after `timeout` seconds."""
    done = threading.Event()

    def run() -> None:
        try:
            act()
        except Exception:
            logger.exception("the trace exporter failed")
        finally:
            done.set()

    threading.Thread(target=run, name="traces-shutdown", daemon=True).start()
    return done.wait(timeout)
