"""What every test gets: real servers on request, and an event loop on which the rooms must not block.

A server is started by the first test that asks for its fixture and shared by the session; a run that selects only pure
tests starts none. The logs of the servers are kept in build/logs when a test failed.
"""

from __future__ import annotations

import contextlib
import os
import types
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.isolation import GUEST_VARIABLE, isolate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers import CniBinaries, ControlPlane, JaegerServer

CHECKOUT: Final = Path(__file__).resolve().parents[1]
ROOMS: Final = ("api", "ipam", "telemetry", "runtime", "cni", "admission", "actors", "simulation", "ctl")
SERVER_FIXTURES: Final = frozenset({"control_plane", "jaeger", "namespace", "cni_binaries"})
LOGS: Final = CHECKOUT / "build" / "logs"
"""Has a folder for each of those that hold tests: several may run at once."""


def pytest_configure() -> None:
    """Cuts the run off from the machine's network; ``make servers`` has fetched what it needs before.

    Examples may be drawn slowly: how fast a busy machine does it is no property of the code. The servers, all in Go,
    live for minutes where there is memory to spare: collecting garbage more seldom saves a fifth of their CPU.
    """
    isolate()
    os.environ.setdefault("GOGC", "400")
    if GUEST_VARIABLE in os.environ:
        return  # where importing hypothesis takes ten seconds
    from hypothesis import HealthCheck, settings

    settings.register_profile("busy machine", suppress_health_check=[HealthCheck.too_slow], deadline=None)
    settings.load_profile("busy machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what starts servers, and skips what needs privileges that this user lacks."""
    for item in items:
        if SERVER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)
        if item.get_closest_marker("node") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root, or: unshare --map-root-user --net --mount"))


def _rooms() -> list[types.ModuleType]:
    """Stand-ins that carry the rooms' folders, so that watching them imports nothing."""
    rooms = []
    for name in ROOMS:
        room = types.ModuleType(name)
        room.__path__ = [f"{CHECKOUT / name}{os.sep}"]
        rooms.append(room)
    return rooms


@pytest.fixture(autouse=True)
def _loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes a blocking call below a room's code on the event loop an error; a test's own calls are its own business."""
    if request.node.get_closest_marker("blocking") or GUEST_VARIABLE in os.environ:
        yield
        return
    from blockbuster import blockbuster_ctx

    with blockbuster_ctx(scanned_modules=_rooms()):
        yield


@pytest.fixture(scope="session")
def terminal(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Prints lines through pytest's capture: figures for whoever reads the run."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            print(line, flush=True)

    return show


@pytest.fixture(scope="session")
def _progress(terminal: Callable[[str], None]) -> Callable[[str], None]:
    """Says what is being made: a server can take minutes."""
    return lambda line: terminal(f"servers: {line}")


def kept_logs(request: pytest.FixtureRequest) -> Path | None:
    """Where to keep logs: None while all went well."""
    if not request.session.testsfailed:
        return None
    folder = LOGS / request.session.items[0].path.relative_to(CHECKOUT / "tests").parts[0]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, _progress: Callable[[str], None]) -> Iterator[ControlPlane]:
    """A real etcd and kube-apiserver with RBAC, and the chart's CRDs in it as far as they exist."""
    from tests.servers import ControlPlane

    server = ControlPlane(progress=_progress)
    try:
        server.start()
        server.install_crds()
        yield server
    finally:
        server.stop(keep=kept_logs(request))


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the real API server that no other test uses."""
    return control_plane.create_namespace()


@pytest.fixture(scope="session")
def jaeger(request: pytest.FixtureRequest, _progress: Callable[[str], None]) -> Iterator[JaegerServer]:
    """A real Jaeger with an empty memory."""
    from tests.servers import JaegerServer

    server = JaegerServer(progress=_progress)
    try:
        yield server.start()
    finally:
        server.stop(keep=kept_logs(request))


@pytest.fixture(scope="session", name="cni_binaries")
def cni_binaries_fixture(_progress: Callable[[str], None]) -> CniBinaries:
    """cnitool and the CNI project's macvlan, bridge and host-local."""
    from tests.servers import cni_binaries

    return cni_binaries(progress=_progress)
