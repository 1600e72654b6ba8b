"""A cloud's network provider: what it has assigned, and a real HTTP server before it that can be made to misbehave."""

import contextlib
import json
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

from msgspec import Struct

ALLOCATE = "/v1/apis/network.iaas.io/ipam/allocate-ips"
RELEASE = "/v1/apis/network.iaas.io/ipam/release-ip"

type Fault = Literal[
    "500",
    "404",
    "hang",
    "reset",
    "reset after",
    "garbage",
    "another address",
    "missing",
    "no vlan",
    "slow",
]
"""``reset after``: the connection breaks when it is done. ``hang`` does nothing and says nothing; ``slow`` takes 0.3 s.
"""


class Request(Struct, frozen=True):
    """What it was asked."""

    method: str
    """``allocate`` or ``release``."""
    body: dict[str, Any]
    headers: dict[str, str]
    at: float = 0.0


class Cloud:
    """What is assigned to whom. An address is one pod's at a time; who breaks that is written down.

    Attributes:
        assigned: by address, the pod's uid, the node and the parent's MAC address.
        said: by address, its MAC address and VLAN id.
        last_vlan: the id that was given last; the next one is one more.
        violations: what nobody may ask of it.
    """

    def __init__(self) -> None:
        self.assigned: dict[str, tuple[str, str, str]] = {}
        self.said: dict[str, tuple[str, int]] = {}
        self.violations: list[str] = []
        self.last_vlan = 100

    def do(self, method: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of a request that is carried out now."""
        return self._allocate(body) if method == "allocate" else self._release(body)

    def _allocate(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        items = []
        for one in body["iaasIPsAllocationRequest"]:
            address = one["ipAddress"]
            holder = (body["podUID"], body["nodeName"], one["parentNicMac"])
            if self.assigned.setdefault(address, holder) != holder:
                self.violations.append(f"{address} is asked for by {holder} while {self.assigned[address]} has it")
                return 409, {"error": f"{address} is taken"}
            if address not in self.said:
                self.last_vlan += 1
                last = int(address.rpartition(".")[2])
                self.said[address] = f"fa:16:3e:00:{self.last_vlan % 256:02x}:{last:02x}", self.last_vlan
            mac, vlan = self.said[address]
            items.append({**one, "macAddress": mac, "vlanId": vlan})
        return 200, {
            "podName": body.get("podName"),
            "podNamespace": body.get("podNamespace"),
            "nodeName": body["nodeName"],
            "iaasIPsAllocationResponse": items,
        }

    def _release(self, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        address = body["ipAddress"]
        has = self.assigned.get(address)
        if has is not None and has[0] != body["podUID"]:
            self.violations.append(f"{address} of {has} is released for {body['podUID']}")
        self.assigned.pop(address, None)
        self.said.pop(address, None)
        return 202, {}


def spoiled(fault: str, answer: Mapping[str, Any]) -> bytes:
    """An answer that makes no sense."""
    items = [dict(one) for one in answer.get("iaasIPsAllocationResponse", ())]
    match fault:
        case "garbage":
            return b"<html>it works!</html>"
        case "another address":
            items[0]["ipAddress"] = "192.0.2.1"
        case "missing":
            items = items[1:]
        case "no vlan":
            items[0]["vlanId"] = 0
    return json.dumps({**answer, "iaasIPsAllocationResponse": items}).encode()


class ProviderServer:
    """The cloud's API on loopback. A context manager.

    Attributes:
        cloud: what it has assigned.
        requests: all that it was asked, in order.
        faults: by method, what the next requests come to; none is left: all goes well.
        down: whether every request is refused with 503.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.cloud = Cloud()
        self.requests: list[Request] = []
        self.faults: dict[str, deque[Fault]] = {"allocate": deque(), "release": deque()}
        self.down = False
        self._tls = tls
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._server: ThreadingHTTPServer

    def __enter__(self) -> Self:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                with contextlib.suppress(OSError):
                    provider._serve(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        scheme = "https" if self._tls is not None else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, method: str) -> list[Request]:
        """The requests of a method."""
        with self._lock:
            return [one for one in self.requests if one.method == method]

    def heal(self) -> None:
        """Have all go well from now on."""
        with self._lock:
            self.down = False
            for faults in self.faults.values():
                faults.clear()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        method = {ALLOCATE: "allocate", RELEASE: "release"}[handler.path]
        with self._lock:
            self.requests.append(Request(method, body, dict(handler.headers.items()), time.monotonic()))
            faults = self.faults[method]
            fault = faults.popleft() if faults else ""
        if self.down:
            self._answer(handler, 503, b'{"error": "maintenance"}')
            return
        match fault:
            case "500" | "404":
                self._answer(handler, int(fault), b'{"error": "rate limit\nof the cloud"}')
                return
            case "hang":
                self._ended.wait(60)
                return
            case "reset":
                self._reset(handler)
                return
            case "slow":
                time.sleep(0.3)
        with self._lock:
            status, answer = self.cloud.do(method, body)
        if fault == "reset after":
            self._reset(handler)
        else:
            self._answer(handler, status, spoiled(fault, answer) if method == "allocate" else b"")

    def _answer(self, handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _reset(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.close()
