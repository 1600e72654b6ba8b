"""Jaeger on the LAN of a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.cluster.lab import plan
from tests.cluster.lab.machine import Machine
from tests.servers.jaeger import JaegerQueries, configuration, get_json
from tests.servers.provide import executable

QUERY_PORT: Final = 16686
OK: Final = 200


class LabJaeger(JaegerQueries):
    """A Jaeger with traces in memory that lives and dies with the control plane's machine.

    Attributes:
        otlp_endpoint: for OTEL_EXPORTER_OTLP_ENDPOINT, reachable on the LAN.
        query_url: of the query API, on the LAN as well; the methods reach it from anywhere.
    """

    def __init__(self, plane: Machine, folder: Path) -> None:
        self._plane = plane
        self._folder = folder
        self.otlp_endpoint = f"http://{plan.API[0]}:{plan.OTLP_PORT}"
        self.query_url = f"http://{plan.API[0]}:{QUERY_PORT}"

    def __repr__(self) -> str:
        return f"<LabJaeger otlp={self.otlp_endpoint} query={self.query_url}>"

    def started(self, wait: Callable[[Callable[[], bool], float, str], bool]) -> LabJaeger:
        """Starts it unless it runs, and returns when it answers. Raises LabFailed."""
        if not self._answers():
            config = self._folder / "jaeger.json"
            config.write_text(
                json.dumps(
                    configuration(host="0.0.0.0", otlp_port=plan.OTLP_PORT, query_port=QUERY_PORT, grpc_port=16685)
                )
            )
            # In the plane's pid namespace it ends with the plane, and with the plane's mounts it finds itself in /proc.
            # The shell that starts it does not wait for it.
            log = self._folder / "log" / "jaeger.log"
            command = f'"$1" --config="$2" >>"{log}" 2>&1 </dev/null &'
            inside = ["nsenter", f"--target={self._plane.first.pid}", "--pid", "--mount", "--"]
            start = [*inside, "setsid", "sh", "-c", command, "sh"]
            self._plane.run([*start, str(executable("jaeger")), str(config)])
            wait(self._answers, 30, f"Jaeger; see {log}")
        return self

    def _answers(self) -> bool:
        try:
            return self._query("/api/services")[0] == OK
        except OSError:
            return False

    def _query(self, path: str) -> tuple[int, dict[str, Any]]:
        return self._plane.netns().run(lambda: get_json("127.0.0.1", QUERY_PORT, path))
