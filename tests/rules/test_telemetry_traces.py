"""Traces: parentage across awaits and processes, what failures leave in a span, and the paths that record nothing."""

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from telemetry import attributes, traces
from telemetry.recorder import SpanLink, SpanRecorder

ERROR = "no address is free"


@pytest.fixture(autouse=True)
def _nothing_set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    yield
    traces.shutdown()


async def test_a_span_holds_across_awaits_and_ends_when_left() -> None:
    async def inner() -> None:
        await asyncio.sleep(0)
        with traces.span("inner", attributes={attributes.K8S_POD_NAME: "p"}):
            await asyncio.sleep(0)

    with traces.recording() as recorder:
        with traces.span("outer", kind=traces.SpanKind.SERVER):
            await asyncio.gather(inner(), inner())
        with traces.span("after"):
            pass
    outer = recorder.span("outer")
    assert outer.kind == "server"
    assert outer.parent_id == ""
    inners = recorder.spans("inner")
    assert [(span.parent_id, span.trace_id) for span in inners] == [(outer.span_id, outer.trace_id)] * 2
    assert inners[0].attributes == {"k8s.pod.name": "p"}
    assert recorder.span("after").trace_id != outer.trace_id
    assert {span.name for span in recorder.trace(outer.trace_id)} == {"outer", "inner"}


async def test_a_task_spawned_with_an_empty_context_belongs_to_what_is_attached() -> None:
    seen: list[str] = []

    async def handler(context: traces.Context) -> None:
        seen.append(traces.trace_id())
        with traces.attach(context), traces.span("handled"):
            pass
        seen.append(traces.trace_id())

    with traces.recording() as recorder, traces.span("asked"):
        await asyncio.create_task(handler(traces.current()), context=contextvars.Context())
    assert seen == ["", ""]
    assert recorder.span("handled").parent_id == recorder.span("asked").span_id


def test_an_exception_is_recorded_once_and_marks_every_span_it_passes() -> None:
    def fail() -> None:
        with traces.span("outer"), traces.span("inner"):
            raise LookupError(ERROR)

    with traces.recording() as recorder, pytest.raises(LookupError, match=ERROR):
        fail()
    assert [span.error for span in recorder.spans()] == [f"LookupError: {ERROR}"] * 2
    held = {span.name: span for span in recorder._spans}
    assert [event.name for event in held["inner"].events] == ["exception"]
    assert held["outer"].events == ()


async def test_a_cancelled_span_says_so() -> None:
    async def slow() -> None:
        with traces.span("slow"):
            await asyncio.sleep(60)

    with traces.recording() as recorder, pytest.raises(TimeoutError):
        await asyncio.wait_for(slow(), 0.01)
    assert recorder.span("slow").error == "cancelled"


def test_what_is_over_is_recorded_with_its_own_times() -> None:
    now = time.time_ns()
    with traces.recording() as recorder:
        context = traces.record("shim exec", now - 5_000_000, now - 1_000_000, error="late")
        with traces.span("add", parent=context, start_time_ns=now - 1_000_000):
            pass
        traces.record("clock went back", now, now - 1)
    shim = recorder.span("shim exec")
    assert shim.duration_ms == 4.0
    assert shim.error == "late"
    assert recorder.span("add").parent_id == shim.span_id
    assert recorder.span("add").start_ns == now - 1_000_000
    assert recorder.span("clock went back").duration_ms == 0.0


def test_a_batch_is_linked_to_all_it_serves() -> None:
    with traces.recording() as recorder:
        contexts = [traces.record("add", 1, 2, parent=traces.ROOT) for _ in range(300)]
        links = [*map(traces.span_link, contexts), traces.span_link(traces.ROOT)]
        with traces.span("commit", links=links, parent=traces.ROOT):
            pass
    commit = recorder.span("commit")
    assert commit.links == tuple(
        SpanLink(trace_id=span.trace_id, span_id=span.span_id) for span in recorder.spans("add")
    )
    assert commit.trace_id not in {link.trace_id for link in commit.links}


def test_a_context_crosses_a_process_as_text() -> None:
    with traces.recording() as recorder:
        with traces.span("agent"):
            text = traces.inject()
        with traces.span("controller", parent=traces.extract(text)):
            pass
    assert recorder.span("controller").parent_id == recorder.span("agent").span_id
    assert text == f"00-{recorder.span('agent').trace_id}-{recorder.span('agent').span_id}-{text[-2:]}"


def test_a_foreign_context_passes_through_a_process_that_records_nothing() -> None:
    text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with traces.span("agent", parent=traces.extract(text)) as span:
        assert not span.is_recording()
        assert traces.inject() == text
        with traces.span("inner"):
            assert traces.inject() == text
        assert traces.trace_id(traces.record("over", 1, 2)) == "0af7651916cd43dd8448eb211c80319c"
    assert traces.inject() == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    ],
)
def test_a_traceparent_that_is_none(text: str) -> None:
    assert traces.extract(text) == traces.ROOT


@given(st.text(max_size=80))
def test_any_text_is_no_error(text: str) -> None:
    assert traces.trace_id(traces.extract(text)) == ""


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_a_traceparent_survives(trace: int, span: int, flags: int) -> None:
    text = f"00-{trace:032x}-{span:016x}-{flags:02x}"
    assert traces.inject(traces.extract(text)) == text
    assert traces.inject(traces.extract(f"42-{text[3:]}-more")) == text


def test_recordings_nest_and_leave_what_was_there() -> None:
    with traces.recording() as outer:
        with traces.recording() as inner, traces.span("a"):
            pass
        with traces.span("b"):
            pass
    with traces.span("c"):
        pass
    assert [span.name for span in inner.spans()] == ["a"]
    assert [span.name for span in outer.spans()] == ["b"]
    assert outer.trace_ids() == [outer.span("b").trace_id]


def test_a_recorder_forgets_the_oldest_and_names_what_it_has() -> None:
    with traces.recording(capacity=2) as recorder:
        for name in "abc":
            with traces.span(name):
                pass
    assert [span.name for span in recorder.spans()] == ["b", "c"]
    with pytest.raises(LookupError, match="0 spans are named 'a'; recorded: b, c"):
        recorder.span("a")
    assert repr(recorder) == "<SpanRecorder 2/2 spans>"
    recorder.clear()
    assert recorder.spans() == []


def test_the_resource_is_what_the_program_says_unless_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = SpanRecorder()
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=other,service.version=2")
    traces.setup(
        service="spiderpool-agent", version="1", attributes={"k8s.node.name": "n", "a": "b"}, recorder=recorder
    )
    with traces.span("x"):
        pass
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    traces.setup(service="spiderpool-agent", version="1", recorder=recorder)
    with traces.span("y"):
        pass
    first, second = (span.resource.attributes for span in recorder._spans)
    assert (first["service.name"], first["service.version"]) == ("spiderpool-agent", "2")
    assert (first["k8s.node.name"], first["a"]) == ("other", "b")
    assert second["service.name"] == "mine"


def test_the_sampler_of_the_environment_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with traces.recording() as recorder, traces.span("x"):
        assert traces.inject().endswith(("-00", "-02"))
    assert recorder.spans() == []


def test_disabled_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with traces.recording() as recorder, traces.span("x") as span:
        assert not span.is_recording()
    assert recorder.spans() == []


class Collector(HTTPServer):
    """An OTLP/HTTP endpoint that keeps what it gets, or never answers."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.hangs = hangs
        self.released = threading.Event()
        self.requests: list[tuple[str, ExportTraceServiceRequest]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Collect(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.hangs:
            self.server.released.wait()
        self.server.requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.stop()


def test_spans_reach_an_endpoint(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    traces.setup(service="spiderpool-agent", version="1")
    with traces.span("add"):
        pass
    assert traces.shutdown(timeout=10)
    [(path, request)] = collector.requests
    assert path == "/v1/traces"
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "add"
    assert traces.shutdown()


def test_flush_sends_without_stopping(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/here")
    traces.setup(service="spiderpool-agent", version="1")
    for _ in range(2):
        with traces.span("add"):
            pass
        assert traces.flush(timeout=10)
    assert [path for path, _ in collector.requests] == ["/here"] * 2


def test_shutdown_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Collector(hangs=True)
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        traces.setup(service="spiderpool-agent", version="1")
        with traces.span("add"):
            pass
        began = time.monotonic()
        assert not traces.shutdown(timeout=0.2)
        assert time.monotonic() - began < 8, "an export has ten seconds"
    finally:
        server.stop()


@pytest.mark.parametrize("exporter", ["none", "otlp"])
def test_the_exporter_is_imported_only_for_an_endpoint(exporter: str) -> None:
    program = (
        "import os, sys; from telemetry import traces\n"
        f"os.environ['OTEL_TRACES_EXPORTER'] = {exporter!r}\n"
        f"if {exporter!r} == 'none': os.environ['OTEL_EXPORTER_OTLP_ENDPOINT'] = 'http://127.0.0.1:1'\n"
        "traces.setup(service='x', version='1')\n"
        "with traces.span('x') as span: assert not span.is_recording()\n"
        "assert not {'requests', 'google.protobuf', 'urllib3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
