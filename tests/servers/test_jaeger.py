"""The real Jaeger gives back what it was sent."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request

from tests.servers import JaegerServer


def test_a_span_sent_by_otlp_is_found_by_its_trace_id(jaeger: JaegerServer) -> None:
    trace_id, span_id, now = secrets.token_hex(16), secrets.token_hex(8), time.time_ns()
    span = {
        "traceId": trace_id,
        "spanId": span_id,
        "name": "ADD",
        "kind": 2,
        "startTimeUnixNano": str(now - 1_000_000),
        "endTimeUnixNano": str(now),
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "agent"}}]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    request = urllib.request.Request(
        f"{jaeger.otlp_endpoint}/v1/traces",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200

    trace = jaeger.wait_for_trace(trace_id)
    assert [found["spanID"] for found in trace["spans"]] == [span_id]
    assert "agent" in jaeger.services()


def test_a_trace_that_was_never_sent_is_not_found(jaeger: JaegerServer) -> None:
    assert jaeger.traces(secrets.token_hex(16)) == []
