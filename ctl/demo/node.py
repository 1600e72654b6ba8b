"""The node of the demonstration: a real spiderpool-standalone in its namespace, called through the real shim."""

import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from cni.netlink.socket import Netns
from ctl.demo.segment import NIC
from ctl.errors import Failure
from telemetry.recorder import FinishedSpan

NAME = "node-1"
PLUGIN = "macvlan"
CNI_VERSION = "1.1.0"
_HEALTH_PORT = 5710
"""The program's default: the namespace is its own, so the port is free."""
_TRACE_BUFFER = 4096
_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_CALL_SECONDS = 30.0
_SPANS_SECONDS = 2.0
_LOG_LINES = 5


class Pod(Struct, frozen=True):
    """A pod as a runtime would know it."""

    name: str
    netns: str
    """Path of its sandbox's namespace."""
    container_id: str
    uid: str

    def __str__(self) -> str:
        return f"default/{self.name}"


class Call(Struct, frozen=True):
    """What became of one call of the plugin."""

    result: dict[str, Any]
    """What it printed; empty for DEL."""
    milliseconds: float
    trace_id: str


class Node:
    """Runs the program as long as the `with` block. `folder` gets its socket, log and state."""

    def __init__(self, netns: Netns, folder: Path, *, shim: Path, environ: Mapping[str, str]) -> None:
        """`environ` is added to the program's environment."""
        self._netns = netns
        self._folder = folder
        self._environ = environ
        self._socket = folder / "spiderpool.sock"
        self._log = folder / "log"
        self._plugins = folder / "bin"
        self._plugins.mkdir()
        (self._plugins / PLUGIN).symlink_to(shim)
        self._process: subprocess.Popen[bytes] | None = None
        self.state = folder / "state"
        self.state.mkdir()

    def __enter__(self) -> Self:
        configuration = self._folder / "conf.yml"
        configuration.write_text(f"ipamUnixSocketPath: {self._socket}\n", encoding="utf-8")
        program = Path(sys.executable).with_name("spiderpool-standalone")
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "SPIDERPOOL_STATE_DIR": str(self.state),
            "SPIDERPOOL_NODE_NAME": NAME,
            "SPIDERPOOL_HEALTH_PORT": str(_HEALTH_PORT),
            "SPIDERPOOL_TRACE_BUFFER": str(_TRACE_BUFFER),
            **self._environ,
        }
        with self._log.open("wb") as log, self._netns.entered():
            self._process = subprocess.Popen(
                [sys.executable, str(program), "--config-path", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the program."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """End the program in its orderly way, or by force when that takes too long; its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def call(self, verb: str, pod: Pod) -> Call:
        """Execute the plugin as a container runtime does. Raises `Failure` with its error object in words."""
        trace_id = secrets.token_hex(16)
        arguments = {
            "K8S_POD_NAMESPACE": "default",
            "K8S_POD_NAME": pod.name,
            "K8S_POD_UID": pod.uid,
            "K8S_POD_INFRA_CONTAINER_ID": pod.container_id,
            "TRACEPARENT": f"00-{trace_id}-{secrets.token_hex(8)}-01",
        }
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": pod.netns,
            "CNI_IFNAME": NIC,
            "CNI_PATH": str(self._plugins),
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in {"IgnoreUnknown": "1", **arguments}.items()),
            "SPIDERPOOL_SOCKET": str(self._socket),
        }
        with self._netns.entered():
            begun = time.perf_counter()
            done = subprocess.run(
                [str(self._plugins / PLUGIN)],
                input=json.dumps(configuration()).encode(),
                capture_output=True,
                env=environment,
                timeout=_CALL_SECONDS,
                check=False,
            )
            milliseconds = (time.perf_counter() - begun) * 1e3
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            details = f": {answer['details']}" if answer.get("details") else ""
            msg = f"{verb} of {pod} failed: CNI error {answer.get('code')}: {answer.get('msg')}{details}"
            raise Failure(msg)
        return Call(result=answer, milliseconds=milliseconds, trace_id=trace_id)

    def trace(self, trace_id: str) -> list[FinishedSpan]:
        """The spans of a call. Waits a moment for its outermost one; whatever there is by then is returned."""
        until = time.monotonic() + _SPANS_SECONDS
        spans: list[FinishedSpan] = []
        while time.monotonic() < until and not any(span.name.startswith("cni ") for span in spans):
            body = self._get(f"/debug/traces?{trace_id}")
            spans = msgspec.json.decode(body, type=list[FinishedSpan]) if body is not None else []
        return spans

    def log_tail(self) -> str:
        """The last messages in the program's log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(_message(line) for line in lines[-_LOG_LINES:])

    def _wait(self) -> None:
        """Until shims are served. Raises `Failure`."""
        assert self._process is not None
        until = time.monotonic() + _START_SECONDS
        while not (self._socket.exists() and self._get("/v1/runtime/readiness") is not None):
            if self._process.poll() is not None:
                msg = f"spiderpool-standalone exited with code {self._process.returncode}: {self.log_tail()}"
                raise Failure(msg)
            if time.monotonic() > until:
                msg = f"spiderpool-standalone is not ready after {_START_SECONDS:.0f} s: {self.log_tail()}"
                raise Failure(msg)
            time.sleep(0.02)

    def _get(self, target: str) -> bytes | None:
        """The body of a good answer of the program's health port."""
        connection = http.client.HTTPConnection("127.0.0.1", _HEALTH_PORT, timeout=5.0)
        try:
            with self._netns.entered():
                connection.connect()
            connection.request("GET", target)
            response = connection.getresponse()
            body = response.read()
        except OSError:
            return None
        finally:
            connection.close()
        return body if response.status == http.client.OK else None


def configuration() -> dict[str, Any]:
    """The plugin's configuration, as it would stand in a conflist or a NetworkAttachmentDefinition."""
    return {
        "cniVersion": CNI_VERSION,
        "name": "lan",
        "type": PLUGIN,
        "master": NIC,
        "mode": "bridge",
        "ipam": {"type": "spiderpool"},
        "coordinator": {},
    }


def _message(line: str) -> str:
    try:
        entry = json.loads(line)
        return f"{entry['msg']} {entry.get('error', '')}".strip()
    except (ValueError, KeyError, TypeError):
        return line
