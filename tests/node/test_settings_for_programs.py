"""In a container that is not privileged, plugins of other people find /proc/sys/net writable, or they fail for IPv6."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.node

CONTAINER = """
set -e
mkdir -p "$1/host"
mount --bind /proc/sys/net "$1/host"
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
shift
exec "$@"
"""
"""Mounts as a runtime makes them, and the volume that the chart adds; of a namespace of their own."""

PROGRAM = """
import sys
from pathlib import Path
from cni.netlink.sysctl import open_to_programs

setting = Path("/proc/sys/net/ipv6/conf/lo/keep_addr_on_down")

def writable():
    try:
        setting.write_text(setting.read_text())
    except OSError:
        return False
    return True

before = writable()
print(before, repr(open_to_programs(Path(sys.argv[1]))), writable(), repr(open_to_programs(Path(sys.argv[1]))))
"""


def _in_a_container(folder: str, mounted: str, *wrap: str) -> str:
    argv = [*wrap, sys.executable, "-c", PROGRAM, mounted]
    shell = ["unshare", "--mount", "--net", "sh", "-c", CONTAINER, "sh", folder, *argv]
    return subprocess.run(shell, check=True, capture_output=True, text=True).stdout.strip()


def test_the_volume_is_laid_over_it(tmp_path: Path) -> None:
    assert _in_a_container(str(tmp_path), f"{tmp_path}/host") == "False '' True ''"


def test_without_the_volume_it_stays(tmp_path: Path) -> None:
    assert _in_a_container(str(tmp_path), f"{tmp_path}/none") == "False '' False ''"


def test_a_container_that_may_not_mount_says_so(tmp_path: Path) -> None:
    dropped = ("setpriv", "--bounding-set=-sys_admin")
    told = _in_a_container(str(tmp_path), f"{tmp_path}/host", *dropped)
    assert told.startswith("False '/proc/sys/net stays read-only: Operation not permitted' False"), told


def test_where_it_is_writable_nothing_is_done(tmp_path: Path) -> None:
    argv = ["unshare", "--mount", "--net", sys.executable, "-c", PROGRAM, str(tmp_path)]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip() == "True '' True ''"
