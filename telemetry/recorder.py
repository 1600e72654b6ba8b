"""Finished spans kept in memory, so that a demo can print a trace and a test can assert on it without a backend."""

from collections import deque
from typing import Any, TypeGuard, override

from msgspec import Struct, field
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import SpanContext, StatusCode, format_span_id, format_trace_id


class SpanLink(Struct, frozen=True):
    """The other end of a link: ids as lower-case hex."""

    trace_id: str
    span_id: str


class FinishedSpan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished span, independent of the SDK: it can be compared, encoded and sent to another process.

    Ids are lower-case hex (32 and 16 digits), times are Unix nanoseconds.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str = ""
    """Empty for the root of a trace; the parent may live in another process."""
    service: str = ""
    kind: str = "internal"
    start_ns: int
    end_ns: int
    error: str = ""
    """The status text of a span that failed, else empty."""
    attributes: dict[str, Any] = field(default_factory=dict)
    links: tuple[SpanLink, ...] = ()

    @property
    def duration_ms(self) -> float:
        """From start to end, in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


class SpanRecorder(SpanProcessor):
    """A ring buffer of finished spans. Handed to `telemetry.traces.setup`, or made by `telemetry.traces.recording`."""

    def __init__(self, *, capacity: int = 4096) -> None:
        """`capacity` is in spans; the oldest go first."""
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)

    @override
    def __repr__(self) -> str:
        return f"<SpanRecorder {len(self._spans)}/{self._spans.maxlen} spans>"

    @override
    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK on whatever thread ends the span."""
        self._spans.append(span)

    def clear(self) -> None:
        """Forget everything recorded so far."""
        self._spans.clear()

    def spans(self, name: str | None = None) -> list[FinishedSpan]:
        """All spans held, or those of one name, in the order in which they ended."""
        return [_finished(span) for span in list(self._spans) if name is None or span.name == name]

    def span(self, name: str) -> FinishedSpan:
        """The one span of that name. Raises LookupError, with the names there are, when there are none or several."""
        found = self.spans(name)
        if len(found) != 1:
            names = ", ".join(sorted({span.name for span in list(self._spans)})) or "nothing"
            message = f"{len(found)} spans are named {name!r}; recorded: {names}"
            raise LookupError(message)
        return found[0]

    def trace(self, trace_id: str) -> list[FinishedSpan]:
        """The spans of one trace (32 hex digits) that ended in this process, by start."""
        wanted = int(trace_id, 16)
        held = [span for span in list(self._spans) if span.context is not None and span.context.trace_id == wanted]
        return sorted((_finished(span) for span in held), key=lambda span: (span.start_ns, span.end_ns))

    def trace_ids(self) -> list[str]:
        """The traces held, the one whose span ended first in front."""
        return list(dict.fromkeys(span.trace_id for span in self.spans()))


def _finished(span: ReadableSpan) -> FinishedSpan:
    context, parent = span.context, span.parent
    failed = span.status.status_code is StatusCode.ERROR
    return FinishedSpan(
        name=span.name,
        trace_id=format_trace_id(context.trace_id) if context else "",
        span_id=format_span_id(context.span_id) if context else "",
        parent_id=format_span_id(parent.span_id) if _is_known(parent) else "",
        service=str(span.resource.attributes.get("service.name", "")),
        kind=span.kind.name.lower(),
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        error=(span.status.description or "error") if failed else "",
        attributes=dict(span.attributes or {}),
        links=tuple(
            SpanLink(trace_id=format_trace_id(link.context.trace_id), span_id=format_span_id(link.context.span_id))
            for link in span.links
        ),
    )


def _is_known(context: SpanContext | None) -> TypeGuard[SpanContext]:
    return context is not None and context.is_valid
