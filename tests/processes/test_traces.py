"""One ADD is one trace in Jaeger, from the shim's exec to the last netlink step, across both programs."""

from typing import Any

import pytest

from telemetry import attributes
from tests.processes.lab import Lab
from tests.servers import ControlPlane, JaegerServer


@pytest.mark.blocking
@pytest.mark.timeout(180)
def test_one_trace_per_add(control_plane: ControlPlane, jaeger: JaegerServer) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp_endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with Lab(control_plane, environment=environment) as lab:
        lab.create_pools(8)
        pod = lab.pod("traced")
        pod.new_sandbox()
        traced = pod.environment()
        traced["CNI_ARGS"] += f";TRACEPARENT=00-{trace_id}-b7ad6b7169203331-01"
        pod.environment = lambda: traced  # type: ignore[method-assign]
        pod.add()

        def complete(trace: dict[str, Any]) -> bool:
            wanted = {"cni ADD", "ippool.batch", "link.configure", "endpoint.write"}
            return wanted <= {span["operationName"] for span in trace["spans"]}

        trace = jaeger.wait_for_trace(trace_id, complete=complete)
        spans = {span["operationName"]: span for span in trace["spans"]}
        parents = {span["spanID"]: span for span in trace["spans"]}

        def above(name: str) -> list[str]:
            """The names of the spans above one, nearest first."""
            names = []
            span = spans[name]
            while span["references"] and span["references"][0]["spanID"] in parents:
                span = parents[span["references"][0]["spanID"]]
                names.append(span["operationName"])
            return names

        assert above("cni ADD") == []
        assert above("shim exec") == ["cni ADD"]
        assert above("link.create") == ["cni ADD"]
        assert above("link.configure") == ["cni ADD"]
        assert above("netlink create link") == ["kernel make_link", "link.create", "cni ADD"]
        assert above("netlink add addresses") == ["kernel configure_link", "link.configure", "cni ADD"]
        asked = {
            name: tag["value"]
            for name, span in spans.items()
            for tag in span["tags"]
            if tag["key"] == attributes.NETLINK_REQUESTS
        }
        # The parent, the link, and the link as it was made; two addresses, up and two routes at least.
        assert asked["kernel make_link"] == 3 and asked["kernel configure_link"] > 5
        assert asked.keys() == {name for name in spans if name.startswith("kernel ")}
        assert all(spans[name]["duration"] > 0 for name in asked)
        assert above("serve Allocate") == ["rpc Allocate", "cni ADD"]
        assert above("allocator.select")[0] == "serve Allocate"
        assert above("ippool.wait")[0] == "serve Allocate"
        assert above("ippool.batch")[0] == "serve Allocate"
        assert any(name.startswith("store.update") and above(name)[0] == "ippool.batch" for name in spans)
        assert any(name.startswith("store.create") and "serve Allocate" in above(name) for name in spans)
        assert any("journal" in name and above(name) == ["cni ADD"] for name in spans)
        services = {process["serviceName"] for process in trace["processes"].values()}
        assert services == {"spiderpool-agent", "spiderpool-controller"}
        batch = spans["ippool.batch"]
        assert any(reference["refType"] == "FOLLOWS_FROM" for reference in batch["references"])
        pod.delete()
        lab.wait_for(lambda: not lab.records())
