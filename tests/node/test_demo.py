"""The demonstration, run for real: as whoever runs the tests, and as a user without any rights."""

import gzip
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
NOBODY = 65534
SECONDS = 60
LINES = (
    r"^  address  10\.77\.0\.10/24 via 10\.77\.0\.1$",
    r"^  address  fd00::10/64 via fd00::1$",
    r"^  address  10\.77\.0\.11/24 via 10\.77\.0\.1$",
    r"^           lan-v4: accepted$",
    r"^           storage-v4: rejected by namespaceName: wanted one of storage, found default$",
    r"^  trace [0-9a-f]{32}  [0-9.]+ ms$",
    r"\|  cni ADD$",
    r"\|    shim exec$",
    r"\|        netlink create link$",
    r"\|          store\.update spiderippools/status$",
    r"^  ok   pod-a -> pod-b 10\.77\.0\.11  [0-9.]+ ms$",
    r"^  ok   pod-b -> pod-a fd00::10  [0-9.]+ ms$",
    r"^  ok   pod-b -> the gateway 10\.77\.0\.1  [0-9.]+ ms$",
    r"^  ok   pod-a -> the gateway fd00::1  [0-9.]+ ms$",
    r"^  ok   pod-a -> its own node 10\.77\.0\.2  [0-9.]+ ms$",
    r"^  ok   pod-b -> its own node fd00::2  [0-9.]+ ms$",
    r"^  ok   node -> pod-a 10\.77\.0\.10  [0-9.]+ ms$",
    r"^  ok   node -> pod-b fd00::11  [0-9.]+ ms$",
    r"^  before: links 6, records in the pools 4, SpiderEndpoints 2, journal entries 2$",
    r"^  ok   nothing is left: links 0, records in the pools 0, SpiderEndpoints 0, journal entries 0$",
)


def run(*command: str | Path, folder: Path, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """A command in a process group of its own, with its temporary files in `folder`: exit code and all it printed."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder), "LANG": "C.UTF-8", **(environ or {})},
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"not done after {SECONDS} s:\n{output}")
    return process.returncode, output


def check(code: int, output: str, folder: Path) -> None:
    assert code == 0, output
    missing = [line for line in LINES if not re.search(line, output, re.MULTILINE)]
    assert not missing, output
    assert "\033" not in output and "FAIL" not in output
    assert not list(folder.iterdir())


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files that any user may use."""
    path = Path("/tmp") / f"demo-{os.getpid()}"
    path.mkdir(mode=0o1777)
    path.chmod(0o1777)
    return path


@pytest.fixture(autouse=True)
def _tidy(folder: Path) -> object:
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.node
def test_the_demonstration(folder: Path) -> None:
    links = Path("/proc/net/dev").read_text().count("\n")
    check(*run(Path(sys.executable).with_name("spiderpoolctl"), "demo", folder=folder), folder)
    assert Path("/proc/net/dev").read_text().count("\n") == links
    assert "spiderpool-demo" not in Path("/proc/self/mounts").read_text()


@pytest.mark.node
def test_any_user_may_run_it(folder: Path) -> None:
    probe = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "unshare", "--user", "--net", "true"],
        capture_output=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"this kernel gives users no namespaces: {probe.stderr.decode().strip()}")
    check(*run("unshare", "--mount", "sh", "-ec", as_nobody(folder), folder=folder), folder)


def as_nobody(folder: Path) -> str:
    """A shell script that runs the demonstration as nobody.

    Interpreter and checkout may lie in a home that others may not enter: then, in a mount namespace that ends with the
    script, that home is covered with an empty one through which they can be reached.
    """
    script, restore, covered = ["umask 022"], [], set[Path]()
    for number, needed in enumerate((Path(sys.base_prefix).resolve(), CHECKOUT)):
        closed = next((p for p in reversed(needed.parents) if not p.stat().st_mode & 0o001), None)
        if closed is None:
            continue
        covered.add(closed)
        aside = folder / f"aside-{number}"
        script += [f"mkdir {aside}", f"mount --rbind {shlex.quote(str(needed))} {aside}"]
        restore += [
            f"mkdir -p {shlex.quote(str(needed))}",
            f"mount --rbind {aside} {shlex.quote(str(needed))}",
            f"umount -l {aside}",
            f"rmdir {aside}",
        ]
    script += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(path))}" for path in sorted(covered)]
    program = Path(sys.executable).with_name("spiderpoolctl")
    user = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    return "\n".join([*script, *restore, f"cd /; exec {user} {shlex.quote(str(program))} demo"])


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP and keeps what it got."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") else body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.node
def test_traces_reach_a_collector_outside(folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/base"
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SERVICE_NAME": "shown"}
        program = Path(sys.executable).with_name("spiderpoolctl")
        code, output = run(program, "demo", folder=folder, environ=environ)
        server.shutdown()
    check(code, output, folder)
    assert f"  traces go to {url} too" in output.splitlines()
    assert {path for path, _ in Collector.received} == {"/base/v1/traces"}
    sent = b"".join(body for _, body in Collector.received)
    assert b"cni ADD" in sent and b"cni DEL" in sent and b"shown" in sent


@pytest.mark.node
def test_a_plugin_that_fails_fails_the_demonstration(folder: Path) -> None:
    code, output = run(
        Path(sys.executable).with_name("spiderpoolctl"), "demo", "--shim", shutil.which("true") or "", folder=folder
    )
    assert code == 1, output
    assert "default/pod-a has not got an address of each family" in output.splitlines()[-1]
    assert "FAIL pod-a -> the gateway 10.77.0.1  no answer" in output
    assert not list(folder.iterdir())
