"""A trace drawn as text: who ran in whom, from when to when, in milliseconds. Pure."""

from collections.abc import Container, Iterable, Mapping, Sequence

from telemetry.recorder import FinishedSpan

_BAR = "█"
_POINT = "▏"


def draw(spans: Iterable[FinishedSpan], *, width: int = 40, related: Iterable[FinishedSpan] = ()) -> str:
    """Draw the spans of one trace, one line each, in the order in which they began below their parent.

    A line has the start relative to the first span and the duration in milliseconds, a bar on the trace's time scale,
    the name indented below its parent, and what failed. Under a span stand its links to other traces.

    Args:
        spans: of one trace, from any number of processes. A span whose parent is not among them is drawn as a root.
        width: of the bars, in characters.
        related: spans of other traces. Those that link into this trace (a batch that served it) are named under the
            span they link to, with their duration; those that links point at lend them their names.

    Returns an empty string for no spans.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    if not ordered:
        return ""
    others = {span.span_id: span for span in related}
    known = {span.span_id for span in ordered}
    children: dict[str, list[FinishedSpan]] = {}
    for span in ordered:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    rows = list(_walk(children, "", depth=0))
    begin = min(span.start_ns for span in ordered)
    total = max(max(span.end_ns for span in ordered) - begin, 1)
    services = {span.service for span in ordered if span.service}
    label_width = max(2 * depth + len(_title(span, services)) for span, depth in rows)

    lines = [f"trace {ordered[0].trace_id}  {total / 1e6:.2f} ms"]
    for span, depth in rows:
        label = "  " * depth + _title(span, services)
        times = f"{(span.start_ns - begin) / 1e6:9.2f} {span.duration_ms:9.2f} ms"
        line = f"{times}  |{_bar(span, begin=begin, total=total, width=width)}|  {label:<{label_width}}"
        lines.append(line.rstrip() + (f"  ! {_one_line(span.error)}" if span.error else ""))
        margin = " " * (27 + width) + "  " * depth
        lines += [f"{margin}{note}" for note in _links(span, others, known=known)]
    return "\n".join(lines) + "\n"


def _walk(
    children: Mapping[str, Sequence[FinishedSpan]], parent: str, *, depth: int
) -> Iterable[tuple[FinishedSpan, int]]:
    for span in children.get(parent, ()):
        yield span, depth
        yield from _walk(children, span.span_id, depth=depth + 1)


def _title(span: FinishedSpan, services: set[str]) -> str:
    return f"{span.name} [{span.service}]" if len(services) > 1 else span.name


def _bar(span: FinishedSpan, *, begin: int, total: int, width: int) -> str:
    start = min((span.start_ns - begin) * width // total, width - 1)
    end = -((begin - span.end_ns) * width // total)
    filled = _BAR * (end - start) if (span.end_ns - span.start_ns) * width >= total else _POINT
    return (" " * start + filled)[:width].ljust(width)


def _links(span: FinishedSpan, others: Mapping[str, FinishedSpan], *, known: Container[str]) -> Iterable[str]:
    for link in span.links:
        if link.span_id in known:
            continue  # it stands above already
        other = others.get(link.span_id)
        yield f"↔ {_named(other)}" if other else f"↔ span {link.span_id} of trace {link.trace_id}"
    for other in others.values():
        if any(link.span_id == span.span_id for link in other.links):
            yield f"↔ {_named(other)}"


def _named(span: FinishedSpan) -> str:
    return f"{span.name} {span.duration_ms:.2f} ms, trace {span.trace_id[:8]}, {len(span.links)} links"


def _one_line(text: str) -> str:
    return " ".join(text.split())
