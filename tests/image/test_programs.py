"""The image's programs, started in the image: read-only root, the image's user, the image's environment."""

from __future__ import annotations

import resource

import pytest

from tests.image.conftest import CHECKOUT, Run
from tools.image import project

MAX_START_SECONDS = 1.5
"""CPU seconds, so that other work on the machine does not count."""

IMPORT_ALL = """
import importlib, pkgutil
count = 0
for room in ("api", "ipam", "telemetry", "runtime", "cni", "admission", "actors", "simulation", "ctl"):
    for module in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
print(count)
"""

PLUGIN_CREDENTIALS = """
import asyncio
from runtime.store.cluster_credentials import from_kubernetes_asyncio
asyncio.run(from_kubernetes_asyncio("/no/such/file"))
"""

CAPABILITIES = """
import ctypes, hashlib, sqlite3, ssl, sys, uuid, zlib
import google._upb._message, yaml, tzdata
from yaml import CSafeLoader
assert ssl.create_default_context().get_ca_certs()
assert sqlite3.connect(":memory:").execute("select json_extract('{\\"a\\": 1}', '$.a')").fetchone() == (1,)
assert sys.flags.isolated and sys.dont_write_bytecode and not sys.flags.optimize
assert uuid.uuid4() and ctypes.CDLL(None).getpid() and hashlib.sha256(b"").hexdigest()
try:
    open("/tmp/x", "w")
except OSError as error:
    print(error.errno)
"""


@pytest.mark.parametrize("name", sorted(project.programs(CHECKOUT)))
def test_every_program_answers(run: Run, name: str) -> None:
    done = run([f"/usr/bin/{name}", "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert name in done.stdout


@pytest.mark.parametrize("name", ["spiderpool-agent", "spiderpool-controller", "spiderpool-standalone"])
def test_a_daemon_starts_soon_and_says_which_version_it_is(run: Run, name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run([f"/usr/bin/{name}", "--version"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == f"{name} {project.version(CHECKOUT)}\n"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MAX_START_SECONDS


def test_every_module_of_ours_finds_what_it_imports(run: Run) -> None:
    done = run(["/usr/bin/python3", "-IB", "-W", "error", "-c", IMPORT_ALL])
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100


def test_a_kubeconfig_is_read_by_kubernetes_asyncio(run: Run) -> None:
    done = run(["/usr/bin/python3", "-IB", "-c", PLUGIN_CREDENTIALS])
    assert "CredentialsError: /no/such/file: Invalid kube-config file." in done.stderr


def test_what_was_left_out_is_not_missed(run: Run) -> None:
    done = run(["/usr/bin/python3", "-IB", "-c", CAPABILITIES])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "30\n", "the root is not read-only"


def test_there_is_no_shell(run: Run) -> None:
    done = run(["/bin/sh", "-c", "true"])
    assert done.returncode == 127
