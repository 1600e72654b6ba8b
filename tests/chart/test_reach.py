"""What the pods of ``helm test`` run, on loopback: every way is tried, and a way that is shut fails the test."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.chart.conftest import CHART
from tests.servers import free_port

PROGRAM = [sys.executable, "-u", str(CHART / "files" / "reach.py")]
ADDRESSES = "127.0.0.1,::1"


@pytest.fixture
def server() -> Iterator[int]:
    """Its port."""
    port = free_port()
    env = {"PATH": os.environ["PATH"], "PORT": str(port), "POD_IPS": ADDRESSES}
    with subprocess.Popen([*PROGRAM, "serve"], env=env) as process:
        yield port
        process.terminate()


def call(port: int, *, own: str = ADDRESSES, seconds: int = 20) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": os.environ["PATH"],
        "PORT": str(free_port()),
        "PEER_PORT": str(port),
        "SERVICE": "127.0.0.1",
        "SERVICE_PORT": str(port),
        "POD_IPS": own,
        "SECONDS": str(seconds),
    }
    return subprocess.run(
        [*PROGRAM, "call"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )


def test_every_way_is_tried(server: int) -> None:
    done = call(server)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines() == [
        "this pod has 127.0.0.1, ::1",
        "ok   this pod -> Service 127.0.0.1",
        "ok   this pod -> pod 127.0.0.1",
        "ok   pod 127.0.0.1 -> this pod 127.0.0.1",
        "ok   this pod -> pod ::1",
        "ok   pod ::1 -> this pod ::1",
    ]


def test_a_way_that_is_shut_fails(server: int) -> None:
    done = call(server, own="127.0.0.1,192.0.2.1", seconds=1)
    assert done.returncode == 1
    assert "FAIL pod 127.0.0.1 -> this pod 192.0.2.1" in done.stdout


def test_nobody_there() -> None:
    done = call(free_port(), seconds=1)
    assert done.returncode == 1
    assert "FAIL this pod -> Service 127.0.0.1" in done.stdout
