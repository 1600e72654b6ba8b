"""What an agent does not import: each of these costs it tens of MiB or tenths of a second on every node."""

import subprocess
import sys


def test_an_agent_starts_without_what_it_does_not_need() -> None:
    code = "import actors.agent, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"kubernetes_asyncio", "pyroute2", "cryptography", "requests", "sqlite3", "hypothesis"} == set()
    assert "aiohttp" in loaded, "the control: what it does need is seen"
    assert "opentelemetry.exporter" not in done.stdout.split()
    assert loaded & {"grpclib", "h2", "google"} == set(), "only a device plugin speaks gRPC"


def test_only_an_agent_that_may_allocate_loads_what_that_takes() -> None:
    code = "import actors.agent, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"actors.agent", "actors.node.doors"} <= set(done.stdout.split())
    assert not {"actors.node.fallback", "actors.controller", "actors.allocation.allocator"} & set(done.stdout.split())
