"""Other people's CNI plugins, executed as a container runtime would: environment, stdin, and what comes back.

A plugin of ours may have taken the name of one that was there before; the program that was set aside then is the one
that is meant here, since what is ours is never executed.

A runtime's plugins see the node's files: its iptables, its libraries, what they keep in /var. An agent in a container
that may do so executes them among the node's mounts, from the runtime's CNI_PATH; any other one from the node's folder
of plugins as it is mounted there.
"""

import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from cni.config import shown
from cni.errors import CniError, InvalidConfig, IoFailure, TryAgainLater
from cni.install import SET_ASIDE
from cni.protocol import Verb
from cni.result import Result, decode_result, encode_result
from cni.workers import Workers
from telemetry import attributes, metrics, traces

SECONDS = 50.0
"""For one plugin; the whole ADD has a minute."""
_AT_ONCE = 16
_MOST_SHOWN = 400
_NODE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What systemd gives a runtime: ours may be that of an image which has its programs in one folder."""
_REFUSALS = frozenset({1, 2, 4, 6, 7})
"""CNI error codes: version, field, environment, JSON and configuration."""


class Target(Struct, frozen=True, kw_only=True):
    """What a plugin is called for: the variables CNI_*."""

    container_id: str
    netns: str
    """May be empty for DEL."""
    ifname: str
    args: str = ""
    path: str = ""
    """CNI_PATH, as the runtime gave it."""


class DelegateFailed(CniError):
    """A plugin said no; the code is its own."""

    @property
    def refused(self) -> bool:
        """Whether it says of its configuration, or of the way it was called, that it does nothing with that."""
        return self.code in _REFUSALS


class Delegates(Protocol):
    """How plugins are executed: a port."""

    async def run(
        self,
        verb: Verb,
        target: Target,
        conf: Mapping[str, Any],
        *,
        previous: Result | None = None,
        seconds: float = SECONDS,
    ) -> Result:
        """Run the plugin that `conf` names by its type; its result, an empty one for other verbs than ADD.

        It gets `seconds`; then it is killed.

        Raises:
            InvalidConfig: there is no such plugin.
            DelegateFailed: it failed.
            TryAgainLater: it did not end in time.
        """
        ...


class ExecutedDelegates:
    """The plugins in the node's folders. Implements `Delegates`."""

    def __init__(self, *folders: str, socket: str = "", mounts: Path | None = None) -> None:
        """Nothing is executed yet.

        Args:
            folders: are looked through before CNI_PATH, as this process sees them.
            socket: where the shim finds this process, for plugins that call it as their IPAM; empty: the usual path.
            mounts: the node's mount namespace, /proc/1/ns/mnt; then only CNI_PATH is looked through.
        """
        self._folders = [folder for folder in folders if folder and mounts is None]
        self._mounts = mounts
        self._threads = Workers("delegates", threads=_AT_ONCE)
        """Each stays among the mounts that it has entered once: nothing else runs on them."""
        self._among = threading.local()
        self._environment = {"PATH": os.environ.get("PATH", os.defpath) if mounts is None else _NODE_PATH}
        if socket:
            self._environment["SPIDERPOOL_SOCKET"] = socket

    def __repr__(self) -> str:
        return f"<ExecutedDelegates {os.pathsep.join(self._folders)}>"

    async def run(
        self,
        verb: Verb,
        target: Target,
        conf: Mapping[str, Any],
        *,
        previous: Result | None = None,
        seconds: float = SECONDS,
    ) -> Result:
        """See `Delegates.run`."""
        kind = str(conf.get("type"))
        version = str(conf.get("cniVersion"))
        folders = [*self._folders, *filter(None, target.path.split(os.pathsep))]
        program = await self._threads.run(self._find, kind, folders)
        if program is None:
            raise InvalidConfig(
                f"type: there is no plugin {shown(kind)}", f"looked in {', '.join(folders) or 'nothing'}"
            )
        stdin = dict(conf)
        if previous is not None:
            stdin["prevResult"] = msgspec.Raw(encode_result(previous, version))
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": target.container_id,
            "CNI_NETNS": target.netns,
            "CNI_IFNAME": target.ifname,
            "CNI_ARGS": target.args,
            "CNI_PATH": os.pathsep.join(folders),
            **self._environment,
        }
        metrics.CNI_DELEGATE_EXECS.labels(verb=verb, type=kind).inc()
        with traces.span(f"delegate {kind}", attributes={attributes.CNI_TYPE: kind, attributes.CNI_COMMAND: verb}):
            code, out, err = await self._threads.run(
                self._execute, program, environment, msgspec.json.encode(stdin), kind, seconds
            )
        if code:
            raise _failure(kind, verb, code, out, err)
        if verb is not Verb.ADD:
            return Result()
        return decode_result(_decoded(out, kind), field=f"the result of plugin {kind}")

    def _find(self, kind: str, folders: Sequence[str]) -> Path | None:
        self._enter()
        return find_program(kind, folders)

    def _execute(
        self, program: Path, environment: Mapping[str, str], stdin: bytes, kind: str, seconds: float
    ) -> tuple[int, bytes, bytes]:
        """Exit code, stdout and stderr. Blocks."""
        self._enter()
        try:
            ended = subprocess.run(
                [program], input=stdin, capture_output=True, check=False, env=environment, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            msg = f"plugin {kind} did not end within {seconds:g} s"
            raise TryAgainLater(msg) from None
        except OSError as error:
            raise InvalidConfig(f"type: plugin {shown(kind)} cannot be executed", f"{program}: {error}") from error
        return ended.returncode, ended.stdout, ended.stderr

    def _enter(self) -> None:
        """Have the calling thread among the node's mounts; a process that it starts is there, too."""
        if self._mounts is None or getattr(self._among, "node", False):
            return
        try:
            with self._mounts.open("rb") as namespace:
                os.unshare(os.CLONE_FS)  # root and working folder of its own, or the kernel refuses
                os.setns(namespace.fileno(), os.CLONE_NEWNS)
        except OSError as error:
            msg = "other plugins cannot be executed among the node's mounts"
            raise IoFailure(msg, f"{self._mounts}: {error}; it needs CAP_SYS_ADMIN and CAP_SYS_CHROOT") from error
        self._among.node = True


def find_program(kind: str, folders: Sequence[str]) -> Path | None:
    """The executable of a plugin type, None where there is none. What was set aside for one of ours goes first."""
    for name in (kind + SET_ASIDE, kind):
        found = shutil.which(name, path=os.pathsep.join(folders)) if folders else None
        if found is not None:
            return Path(found)
    return None


def _failure(kind: str, verb: Verb, code: int, out: bytes, err: bytes) -> DelegateFailed:
    try:
        tree = msgspec.json.decode(out)
        said_code, msg, details = int(tree["code"]), str(tree["msg"]), str(tree.get("details", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError, ValueError, AttributeError):
        text = (err or out).decode(errors="replace").strip()[:_MOST_SHOWN]
        return DelegateFailed(999, f"plugin {kind}: {verb} ended with code {code}", text)
    return DelegateFailed(said_code, f"plugin {kind}: {msg}", details)


def _decoded(out: bytes, kind: str) -> object:
    try:
        return msgspec.json.decode(out)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"plugin {kind}: its result is no JSON"
        raise DelegateFailed(6, msg, f"{error}: {out[:_MOST_SHOWN].decode(errors='replace')}") from None
