"""The waterfall: a tree in the order of time, bars on one scale, errors and links beside the span they belong to."""

from hypothesis import given
from hypothesis import strategies as st

from telemetry.recorder import FinishedSpan, SpanLink
from telemetry.waterfall import draw

MS = 1_000_000


def span(
    name: str,
    span_id: str,
    start: float,
    end: float,
    *,
    parent: str = "",
    trace: str = "aa",
    error: str = "",
    service: str = "",
    links: tuple[SpanLink, ...] = (),
) -> FinishedSpan:
    return FinishedSpan(
        name=name,
        trace_id=trace * 16,
        span_id=span_id,
        parent_id=parent,
        start_ns=10**18 + int(start * MS),
        end_ns=10**18 + int(end * MS),
        error=error,
        service=service,
        links=links,
    )


def test_a_trace_with_a_batch_linked_to_it() -> None:
    spans = [
        span("netlink: create", "4", 1, 2, parent="1", error="EEXIST:\n File exists"),
        span("cni ADD", "1", 0, 10),
        span("allocate", "2", 2, 10, parent="1"),
        span("select", "3", 2, 4, parent="2"),
    ]
    commit = span("pool commit", "9", 4, 9, trace="bb", links=(SpanLink(trace_id="aa" * 16, span_id="2"),))
    text = draw(spans, width=10, related=[commit])
    assert text == (
        f"trace {'aa' * 16}  10.00 ms\n"
        "     0.00     10.00 ms  |██████████|  cni ADD\n"
        "     1.00      1.00 ms  | █        |    netlink: create  ! EEXIST: File exists\n"
        "     2.00      8.00 ms  |  ████████|    allocate\n"
        "                                       ↔ pool commit 5.00 ms, trace bbbbbbbb, 1 links\n"
        "     2.00      2.00 ms  |  ██      |      select\n"
    )


def test_spans_of_several_processes_carry_their_service_and_strangers_are_roots() -> None:
    spans = [
        span("rpc", "2", 1, 3, parent="elsewhere", service="controller"),
        span("add", "1", 0, 4, service="agent", links=(SpanLink(trace_id="cc" * 16, span_id="7"),)),
    ]
    text = draw(spans, width=4)
    assert "|████|  add [agent]\n" in text
    assert f"↔ span 7 of trace {'cc' * 16}\n" in text
    assert "| ██ |  rpc [controller]\n" in text


def test_nothing() -> None:
    assert draw([]) == ""


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.integers(-1, 20)), min_size=1, max_size=20),
    st.integers(1, 60),
)
def test_every_span_is_one_line_with_a_bar_that_fits(shape: list[tuple[int, int, int]], width: int) -> None:
    spans = [
        span("s", str(index), start, start + length, parent=str(parent) if -1 < parent < index else "")
        for index, (start, length, parent) in enumerate(shape)
    ]
    _, *lines = draw(spans, width=width).splitlines()
    assert len(lines) == len(spans)
    for line in lines:
        bar = line.split("|")[1]
        assert len(bar) == width
        assert bar.strip()
