"""Others' plugins are executed among the node's files: a mount namespace with what the agent does not have."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni.delegate import DelegateFailed, ExecutedDelegates, Target
from cni.errors import InvalidConfig, IoFailure
from cni.protocol import Verb
from cni.result import IpConfig, Result

pytestmark = pytest.mark.node

CONF = {"cniVersion": "1.0.0", "name": "n", "type": "theirs"}
ANSWER = json.dumps({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.9/24"}]})
PLUGIN = f"""#!/bin/sh
read -r given < "$CNI_PATH/iptables" || exit 1
[ "$given" = "the node's" ] && echo '{ANSWER}'
"""
NODE = """
import ctypes, os, sys
os.unshare(os.CLONE_NEWNS)
libc = ctypes.CDLL(None)
assert not libc.mount(b"none", b"/", None, 0x4000 | 1 << 18, None)
assert not libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, None)
for name, text in (("iptables", "the node's\\n"), ("theirs", sys.argv[2])):
    path = os.path.join(sys.argv[1], name)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def node_with(folder: Path) -> Iterator[Path]:
    """The mount namespace of a process that has a plugin, and what that needs, where others have an empty folder."""
    argv = [sys.executable, "-c", NODE, str(folder), PLUGIN]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield Path(f"/proc/{process.pid}/ns/mnt")
        finally:
            process.communicate()


def own_mounts() -> Path:
    """Of the thread that asks."""
    return Path("/proc/thread-self/ns/mnt").readlink()


def target(folder: Path) -> Target:
    return Target(container_id="c1", netns="/run/netns/x", ifname="net1", path=str(folder))


async def test_what_the_node_has_is_found_and_used(tmp_path: Path) -> None:
    before = own_mounts()
    with node_with(tmp_path) as mounts:
        delegates = ExecutedDelegates("/nowhere", mounts=mounts)
        expected = Result(ips=(IpConfig(address="10.0.0.9/24"),))
        assert await delegates.run(Verb.ADD, target(tmp_path), CONF) == expected
        assert await delegates.run(Verb.ADD, target(tmp_path), CONF) == expected
        # Without it, it is not there; and with a copy of it here, what it needs is not.
        with pytest.raises(InvalidConfig, match="there is no plugin"):
            await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, target(tmp_path), CONF)
        copy = tmp_path / "theirs"
        copy.write_text(PLUGIN)
        copy.chmod(0o755)
        with pytest.raises(DelegateFailed):
            await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, target(tmp_path), CONF)
    assert own_mounts() == before, "the rest of the process stays where it is"


async def test_programs_are_looked_for_where_a_runtimes_plugins_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the agent's image says: it has neither /usr/sbin nor iptables."""
    monkeypatch.setenv("PATH", "/usr/bin")
    plugin = tmp_path / "telling"
    plugin.write_text("""#!/bin/sh\necho "{\\"code\\": 100, \\"msg\\": \\"$PATH\\"}"; exit 1\n""")
    plugin.chmod(0o755)
    conf = {**CONF, "type": "telling"}
    with pytest.raises(DelegateFailed, match=r"/usr/sbin:/usr/bin:/sbin:/bin"):
        await ExecutedDelegates(mounts=Path("/proc/self/ns/mnt")).run(Verb.ADD, target(tmp_path), conf)
    with pytest.raises(DelegateFailed, match=r"telling: /usr/bin$"):
        await ExecutedDelegates(str(tmp_path)).run(Verb.ADD, target(tmp_path), conf)


async def test_mounts_that_cannot_be_entered(tmp_path: Path) -> None:
    with pytest.raises(IoFailure, match="among the node's mounts"):
        await ExecutedDelegates(mounts=tmp_path / "none").run(Verb.ADD, target(tmp_path), CONF)
