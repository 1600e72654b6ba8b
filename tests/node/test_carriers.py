"""Whether any namespace of this machine carries an address: by its mount, by a process in it, and when it is gone."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from cni.kernel import LinuxKernel
from cni.netlink import carriers
from tests.netns import Netns

pytestmark = [pytest.mark.node, pytest.mark.blocking]

V4, V6 = "10.99.7.5", "fd99:7::5"


def put(*addresses: str) -> None:
    """On loopback of the namespace that the calling thread is in."""
    with IPRoute() as route:
        for address in addresses:
            route.addr("add", index=1, address=address, prefixlen=128 if ":" in address else 32)


def test_an_address_in_a_mounted_namespace(tmp_path: Path) -> None:
    with Netns(tmp_path, "with space") as netns:
        assert carriers.carried([V4, V6]) == frozenset()
        netns.run(lambda: put(V4, V6))
        assert carriers.carried([V4, V6, "10.99.7.6"]) == {V4, V6}
        assert carriers.carried(["fd99:7:0::5/64", f"{V4}/16"]) == {"fd99:7:0::5/64", f"{V4}/16"}
        assert carriers.carried([]) == frozenset()
    until(lambda: carriers.carried([V4, V6]) == frozenset())


def test_the_own_namespace_counts() -> None:
    put(V4)
    try:
        assert carriers.carried([V4]) == {V4}
    finally:
        with IPRoute() as route:
            route.addr("del", index=1, address=V4, prefixlen=32)
    assert carriers.carried([V4]) == frozenset()


def test_a_process_keeps_a_namespace_whose_mount_has_gone(tmp_path: Path) -> None:
    netns = Netns(tmp_path).__enter__()
    netns.run(lambda: put(V4))
    process = netns.run(lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    try:
        netns.__exit__(None, None, None)
        assert not netns.path.exists()
        assert carriers.carried([V4]) == {V4}
    finally:
        process.kill()
        process.wait()
    until(lambda: carriers.carried([V4]) == frozenset())


def test_no_descriptor_outlives_the_look(tmp_path: Path) -> None:
    """It would keep the namespace, and so the address, alive."""

    def open_namespaces() -> int:
        """Descriptors that are namespaces: all of one file system."""
        device = Path("/proc/self/ns/net").stat().st_dev
        found = 0
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                found += os.fstat(int(name)).st_dev == device
        return found

    before = open_namespaces()
    with Netns(tmp_path) as netns:
        netns.run(lambda: put(V4))
        assert carriers.carried([V4]) == {V4}
        assert open_namespaces() == before
        with netns.path.open():
            assert open_namespaces() == before + 1, "the control: a descriptor would be seen"


def test_each_namespace_is_looked_at_once(tmp_path: Path) -> None:
    with Netns(tmp_path) as netns:
        inodes = [Path(path).stat().st_ino for path in carriers.namespaces()]
        assert netns.path.stat().st_ino in inodes
        assert Path("/proc/self/ns/net").stat().st_ino == inodes[0]
        assert len(inodes) == len(set(inodes))


async def test_the_kernel_port_looks_without_blocking_the_loop(tmp_path: Path) -> None:
    with Netns(tmp_path) as netns:
        netns.run(lambda: put(V6))
        kernel = LinuxKernel()
        found = await asyncio.gather(*(kernel.carried([V4, V6]) for _ in range(4)))
        assert found == [{V6}] * 4


def test_mounts_are_read_as_the_kernel_writes_them() -> None:
    lines = [
        "22 1 0:20 / /sys rw - sysfs sysfs rw",
        r"733 31 0:4 net:[4026532281] /run/netns/a\040b rw shared:390 - nsfs nsfs rw",
        "734 31 0:4 mnt:[4026532282] /run/mntns/c rw - nsfs nsfs rw",
        "735 31 0:4 net:[4026532283] /run/net:[1] rw - tmpfs tmpfs rw",
        "garbage",
        "",
    ]
    assert list(carriers.mounted(lines)) == ["/run/netns/a b"]


def until(what: object, *, seconds: float = 10) -> None:
    """The kernel takes a dead namespace down in its own time."""
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
