"""A real Jaeger with traces in memory: what it receives by OTLP/HTTP can be asked back by trace id."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import http.client
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.servers.process import ServerFailed, ServerProcess, free_port
from tests.servers.provide import Progress, executable, silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

HOST: Final = "127.0.0.1"


def configuration(*, host: str, otlp_port: int, query_port: int, grpc_port: int) -> dict[str, Any]:
    """One pipeline, OTLP to memory, and the query API; none of the default's other listeners."""
    pipeline = {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
    query = {
        "storage": {"traces": "memory"},
        "http": {"endpoint": f"{host}:{query_port}"},
        "grpc": {"endpoint": f"{host}:{free_port(HOST)}"},
    }
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": pipeline},
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "info"}},
        },
        "extensions": {
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
            "jaeger_query": query,
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"{host}:{otlp_port}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def get_json(host: str, port: int, path: str) -> tuple[int, dict[str, Any]]:
    """The status and the decoded JSON object (empty when it is none) of a GET. Raises OSError."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            raw = response.read()
        except http.client.HTTPException as problem:
            raise ConnectionError(f"GET {path}: {problem!r}") from problem
    try:
        body = json.loads(raw)
    except ValueError:
        body = {}
    return response.status, body if isinstance(body, dict) else {}


class JaegerQueries(abc.ABC):
    """Questions to Jaeger's query API, wherever it is."""

    @abc.abstractmethod
    def _query(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the decoded body of a GET. Raises OSError."""

    def services(self) -> list[str]:
        """Names of the services that sent spans."""
        _, body = self._query("/api/services")
        return list(body.get("data") or [])

    def traces(self, trace_id: str) -> list[dict[str, Any]]:
        """What the query API knows of a trace (32 hex digits): no or one trace, in Jaeger's own JSON form."""
        status, body = self._query(f"/api/traces/{trace_id}")
        return list(body.get("data") or []) if status == http.client.OK else []

    def wait_for_trace(
        self, trace_id: str, *, complete: Callable[[dict[str, Any]], bool] = bool, seconds: float = 15.0
    ) -> dict[str, Any]:
        """Polls until the trace is there and `complete` (given Jaeger's JSON of it) is true.

        Exporters send in batches, so a span can come seconds after its end.

        Raises:
            ServerFailed: not within `seconds`; the message names the spans seen.
        """
        deadline = time.monotonic() + seconds
        seen: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            seen = self.traces(trace_id)
            if seen and complete(seen[0]):
                return seen[0]
            time.sleep(0.1)
        names = sorted(span["operationName"] for trace in seen for span in trace["spans"])
        raise ServerFailed(f"trace {trace_id} is not complete after {seconds:.0f} s; spans seen: {names}")


class JaegerServer(JaegerQueries):
    """Jaeger on free loopback ports with a temporary folder of its own; a context manager, plain or async.

    Args:
        progress: told about an executable that has to be made first.

    Attributes:
        otlp_endpoint: for OTEL_EXPORTER_OTLP_ENDPOINT (`/v1/traces` is appended by the exporter).
        query_url: base of the query API.
        process: the server.
    """

    def __init__(self, *, progress: Progress = silent) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spiderpool-jaeger-"))
        self._otlp_port, self._query_port = free_port(HOST), free_port(HOST)
        self.otlp_endpoint = f"http://{HOST}:{self._otlp_port}"
        self.query_url = f"http://{HOST}:{self._query_port}"
        config = self.folder / "jaeger.json"
        config.write_text(
            json.dumps(
                configuration(
                    host=HOST, otlp_port=self._otlp_port, query_port=self._query_port, grpc_port=free_port(HOST)
                ),
                indent=1,
            )
        )
        program = executable("jaeger", progress=progress)
        self.process = ServerProcess("jaeger", [program, f"--config={config}"], folder=self.folder)

    def __repr__(self) -> str:
        return f"<JaegerServer otlp={self.otlp_endpoint} query={self.query_url} {self.process!r}>"

    def start(self) -> Self:
        """Starts it and returns when the query API and the receiver answer. Raises ServerFailed."""
        self.process.start()
        self.process.wait_until(lambda: self._query("/api/services")[0] == http.client.OK)
        # 405: the receiver is there and wants a POST.
        self.process.wait_until(
            lambda: get_json(HOST, self._otlp_port, "/v1/traces")[0] == http.client.METHOD_NOT_ALLOWED
        )
        return self

    def stop(self, *, keep: Path | None = None) -> None:
        """Stops it and removes its folder; `keep` is a folder that the log is copied to first."""
        self.process.stop(kill=True)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.process.log, keep)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _query(self, path: str) -> tuple[int, dict[str, Any]]:
        return get_json(HOST, self._query_port, path)
