"""What stands between the API server and three controllers in a cluster, and load on it.

The API server picks a ready endpoint of the Service for each connection, as kube-proxy would for it. Who is ready is
found out as slowly as a test wants: kubelet, the endpoints' controller and every node's kube-proxy take their time.
"""

from __future__ import annotations

import base64
import itertools
import threading
import time
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from tests.processes.lab import CERTIFICATES
from tests.processes.webhooks import IPPOOLS, POOL_TYPE

if TYPE_CHECKING:
    from types import TracebackType

    from tests.processes.lab import Lab
    from tests.servers.control_plane import Answer, ControlPlane


class Try(Struct, frozen=True):
    """One write of a pool."""

    began: float
    """Monotonic seconds."""
    ended: float
    verb: str
    status: int
    text: str

    @property
    def refused(self) -> bool:
        return self.status >= HTTPStatus.BAD_REQUEST


class Loop:
    """A thread that does something again and again, as a context manager."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: Exception | None = None

    def once(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._seconds):
                self.once()
        except Exception as error:  # noqa: BLE001 - said by who ends it
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(60)
        if self.error is not None and error is None:
            raise self.error


class Front(Loop):
    """Keeps the Service's endpoints to what the controllers say of themselves, looking every so many seconds."""

    def __init__(self, lab: Lab, *, seconds: float = 0.2) -> None:
        super().__init__(seconds)
        self._lab = lab
        self._ready = dict.fromkeys(lab.controllers, True)
        self.changes: list[tuple[float, str, bool]] = []
        """When, who, whether it is ready from then on."""
        self.looking = threading.Lock()
        """Whoever has it keeps the endpoints as they are."""

    def once(self) -> None:
        with self.looking:
            self._look()

    def _look(self) -> None:
        for name, before in self._ready.items():
            ready = self._asked(name)
            if ready != before:
                path = f"/apis/discovery.k8s.io/v1/namespaces/{self._lab.namespace}/endpointslices/spiderpool-{name}"
                (endpoint,) = self._lab.control_plane.request("GET", path).body["endpoints"]
                endpoint["conditions"] = {"ready": ready}
                self._lab.control_plane.request("PATCH", path, {"endpoints": [endpoint]})
                self._ready[name] = ready
                self.changes.append((time.monotonic(), name, ready))

    def _asked(self, name: str) -> bool:
        url = f"http://127.0.0.1:{self._lab.health_ports[name]}/v1/runtime/readiness"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return True
        except OSError:
            return False


class Kubelet(Loop):
    """Writes the authorities into the file that agents trust by, as it does with a mounted Secret."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(0.2)
        self._lab = lab

    def once(self) -> None:
        trusted = secret_of(self._lab).get("ca.crt")
        if trusted and (not self._lab.agents_ca.exists() or self._lab.agents_ca.read_bytes() != trusted):
            new = self._lab.agents_ca.with_suffix(".new")
            try:
                new.write_bytes(trusted)
                new.replace(self._lab.agents_ca)
            except FileNotFoundError:
                if self._lab.folder.exists():
                    raise  # else the lab has ended, which it does before its kubelet


class Redials(Loop):
    """Has the API server dial anew several times a second: it keeps a connection, and might never meet who has ended.

    Its clients are told apart by the authorities that they trust, for which an empty line more is another text.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(0.25)
        self._lab = lab
        self._lines = itertools.cycle(range(2, 10))

    def once(self) -> None:
        bundle = base64.b64encode(self._lab.control_plane.ca_file.read_bytes() + b"\n" * next(self._lines)).decode()
        for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            path = f"/apis/admissionregistration.k8s.io/v1/{kind}/spiderpool-controller"
            hooks = self._lab.control_plane.request("GET", path).body["webhooks"]
            for hook in hooks:
                hook["clientConfig"]["caBundle"] = bundle
            self._lab.control_plane.request("PATCH", path, {"webhooks": hooks}, check=False)


class Writes(Loop):
    """Pools that are made and deleted, without a second try."""

    numbers = itertools.count()

    def __init__(self, lab: Lab) -> None:
        super().__init__(0.02)
        self._lab = lab
        self.tries: list[Try] = []

    def once(self) -> None:
        number = next(self.numbers)
        name = f"load-{number}"
        subnet = f"172.{16 + number // 250 % 15}.{number % 250}.0/24"
        pool = {**POOL_TYPE, "metadata": {"name": name}, "spec": {"subnet": subnet}}
        if not self._noted("POST", IPPOOLS, pool).refused:
            self._noted("DELETE", f"{IPPOOLS}/{name}", None)

    def _noted(self, verb: str, path: str, body: Any) -> Try:
        began = time.monotonic()
        answer: Answer = self._lab.control_plane.request(verb, path, body, check=False)
        text = str(answer.body.get("message", "")) if isinstance(answer.body, dict) else str(answer.body)
        done = Try(began, time.monotonic(), verb, answer.status, text)
        self.tries.append(done)
        return done

    @property
    def refusals(self) -> list[Try]:
        return [one for one in self.tries if one.refused]

    def wait_for(self, more: int) -> None:
        """Until so many more were tried."""
        wanted = len(self.tries) + more
        self._lab.wait_for(lambda: len(self.tries) >= wanted or self.error, seconds=60)


def load_of(control_plane: ControlPlane) -> list[str]:
    """Pools that `Writes` has made and that are still there."""
    items = control_plane.request("GET", IPPOOLS).body["items"]
    return [item["metadata"]["name"] for item in items if item["metadata"]["name"].startswith("load-")]


def remove_load(control_plane: ControlPlane) -> None:
    """Those whose deletion was refused, or was not ended by anybody."""
    for name in load_of(control_plane):
        control_plane.request("DELETE", f"{IPPOOLS}/{name}", check=False)
        control_plane.request("PATCH", f"{IPPOOLS}/{name}", {"metadata": {"finalizers": None}}, check=False)


def secret_of(lab: Lab) -> dict[str, bytes]:
    """What the Secret holds; nothing before it is there."""
    path = f"/api/v1/namespaces/{lab.namespace}/secrets/{CERTIFICATES}"
    data: dict[str, str] = lab.control_plane.request("GET", path, check=False).body.get("data") or {}
    return {name: base64.b64decode(value) for name, value in data.items()}
