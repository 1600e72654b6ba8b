"""Real servers for tests, the demo and the benchmarks: etcd, kube-apiserver, Jaeger, and CNI's own programs.

Each server is a class whose instance is a context manager (plain and async), holds its own temporary folder and
loopback ports, and stops its processes by their ids. Nothing here is imported by the rooms. Where the executables come
from is `tests.servers.provide`'s business; ``python -m tests.servers`` makes them all, so that a test never waits for a
compiler.
"""

from tests.servers.certificates import CertificateAuthority, KeyPair
from tests.servers.control_plane import ControlPlane
from tests.servers.controller_manager import ControllerManager
from tests.servers.debian import debian_plugins
from tests.servers.jaeger import JaegerServer
from tests.servers.process import CommandFailed, ServerFailed, ServerProcess, free_port
from tests.servers.provide import CniBinaries, ServersUnavailable, cni_binaries, executable
from tests.servers.proxy import Proxy

__all__ = [
    "CertificateAuthority",
    "CniBinaries",
    "CommandFailed",
    "ControlPlane",
    "ControllerManager",
    "JaegerServer",
    "KeyPair",
    "Proxy",
    "ServerFailed",
    "ServerProcess",
    "ServersUnavailable",
    "cni_binaries",
    "debian_plugins",
    "executable",
    "free_port",
]
