"""The agent's files on its node: the shim in the folder of CNI programs, the configuration in that of configurations.

The container runtime watches its configuration folder and takes the first file in lexical order; a node is Ready when
there is one. So the shim is there before the configuration, every file appears by a rename, and one that is as it
should be is not touched. What others put there stays theirs.

On the way out the configuration goes first. When another one takes over, the shim goes too; otherwise both have to
stay, for kubelet could remove no pod without a network configuration, and a mark beside the shim tells it that no agent
will answer any more.

Pure functions decide; `install` and `withdraw` act and block.
"""

import json
import os
import platform
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

CONFLIST = "00-spiderpool.conflist"
SHIM = "spiderpool"
MARK = "spiderpool.uninstalled"
"""The shim knows this name too (main.c)."""
LINK_KIND = "macvlan"
"""What the configuration's pods get; the node's kernel has to know it."""

_SUFFIXES = (".conf", ".conflist", ".json")
"""Of what containerd and CRI-O read."""
SET_ASIDE = ".before-spiderpool"
"""Suffix of a program of somebody else's whose name the shim has taken; it comes back on the way out."""
_OURS = b"POST /v1/cni HTTP/1.1\r\nHost: spiderpool\r\n"
"""In every shim of every version, and in nothing else."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
META_PLUGINS = frozenset({"multus", "multus-shim", "genie"})
"""Plugins that call others, ours perhaps, by configurations that are not in the folder."""


class InstallFailed(Exception):
    """A file could not be read, written or removed. The text names the path on the node and the errno."""

    def __init__(self, doing: str, path: Path, error: OSError) -> None:
        number = f", errno {error.errno}" if error.errno is not None else ""
        super().__init__(f"cannot {doing} {on_node(path)}: {error.strerror or error}{number}")


class Places(Struct, frozen=True, kw_only=True):
    """Where the files are, and what goes into them."""

    bin_dir: Path
    """The node's folder of CNI programs, as this process sees it."""
    conf_dir: Path | None
    """Its folder of configurations; None: other plugins call ours, only the shim is installed."""
    shim_dir: Path
    """Ours in the image: one folder an architecture."""
    plugins: tuple[str, ...] = (SHIM,)
    """Names that the shim gets on the node."""
    conflist: bytes = b""

    @property
    def shim(self) -> Path:
        """The executable for this machine."""
        machine = platform.machine()
        return self.shim_dir / _ARCHITECTURES.get(machine, machine) / SHIM


class Installed(Struct, frozen=True, kw_only=True):
    """What `install` found and did."""

    changed: tuple[str, ...] = ()
    """Paths on the node that were written."""
    shadow: str = ""
    """A configuration of somebody else's that the runtime takes instead, as a path on the node."""


class Withdrawn(Struct, frozen=True, kw_only=True):
    """What `withdraw` did."""

    removed: tuple[str, ...]
    left: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        removed = ", ".join(self.removed) or "nothing"
        return f"removed {removed}; left {', '.join(self.left) or 'nothing'}: {self.why}"


class Withdrawal(Struct, frozen=True, kw_only=True):
    """What is to go; what is not stays, with the mark if that is the shims."""

    conflist: bool = False
    shims: bool = False
    why: str


class Configuration(Struct, frozen=True):
    """One file of the folder of configurations, as a runtime reads it."""

    name: str
    problem: str = ""
    """Why a runtime cannot use it; empty when it can."""
    types: frozenset[str] = frozenset()
    """The plugins that it calls, IPAM included."""


# ---------------------------------------------------------------- decisions


def conflist(
    *, master: str = "", mtu: int = 0, networks: bool = True, cluster_network: str = "", status: bool = False
) -> bytes:
    """The network of every pod.

    Args:
        master: the parent of its first interface; empty: the device of the default route.
        mtu: its MTU; 0: the parent's.
        networks: whether pods are attached to further networks by their annotations.
        cluster_network: the configuration that makes the first interface instead; empty: this one.
        status: whether a runtime that can do so is to ask for STATUS, and to tell of what is valid by GC.
    """
    plugin: dict[str, object] = {"type": SHIM, "mode": "bridge"}
    if master:
        plugin["master"] = master
    if mtu:
        plugin["mtu"] = mtu
    plugin |= {"ipam": {"type": "spiderpool"}, "coordinator": {"mode": "auto"}}
    if networks:
        # What the runtime knows of ports and rates is for whichever plugins make the first interface.
        plugin |= {"networks": True, "capabilities": {"portMappings": True, "bandwidth": True}}
    if cluster_network:
        plugin["clusterNetwork"] = cluster_network
    document: dict[str, object] = {"cniVersion": "1.0.0", "name": "spiderpool", "plugins": [plugin]}
    if status:
        document["cniVersions"] = ["1.0.0", "1.1.0"]  # older runtimes pass this key over
    return json.dumps(document, indent=2).encode() + b"\n"


def in_order(names: Iterable[str]) -> list[str]:
    """The names that a runtime reads as configurations, those it takes first in front."""
    return sorted(name for name in names if name.endswith(_SUFFIXES))


def shadow_of(names: Iterable[str]) -> str:
    """The file that a runtime takes instead of ours; empty when it is ours."""
    first = next(iter(in_order([*names, CONFLIST])))
    return "" if first == CONFLIST else first


def read_configuration(name: str, text: bytes) -> Configuration:
    """What a runtime makes of a file."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Configuration(name, f"it is no JSON: {error}")
    if not isinstance(document, dict):
        return Configuration(name, "it is no JSON object")
    plugins = document.get("plugins") if name.endswith(".conflist") else [document]
    if not isinstance(plugins, list) or not plugins:
        return Configuration(name, "it lists no plugins")
    types: set[str] = set()
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind:
            return Configuration(name, "a plugin has no type")
        types.add(kind)
        ipam = plugin.get("ipam")
        if isinstance(ipam, dict) and isinstance(ipam.get("type"), str):
            types.add(ipam["type"])
    return Configuration(name, types=frozenset(types))


def plan_withdrawal(others: Sequence[Configuration] | None, plugins: Iterable[str]) -> Withdrawal:
    """What goes and what stays.

    Args:
        others: the folder's configurations without ours; None when we have put none there.
        plugins: the names of the shims.
    """
    if others is None:
        return Withdrawal(why="other plugins may call the shim for pods that run")
    first = min(others, key=lambda one: one.name, default=None)
    if first is None:
        return Withdrawal(why="no other CNI configuration is there, and without one no pod could be removed")
    if first.problem:
        return Withdrawal(why=f"{first.name} comes next, and a container runtime cannot use it: {first.problem}")
    for one in others:
        called = one.types & (set(plugins) | META_PLUGINS)
        if called:
            why = f"{one.name} calls {', '.join(sorted(called))}, which may need the shim for pods that run"
            return Withdrawal(conflist=True, why=why)
    return Withdrawal(conflist=True, shims=True, why=f"{first.name} takes over")


# ---------------------------------------------------------------- files


def install(places: Places) -> Installed:
    """Put everything in its place; what is there already as it should be is not touched.

    Raises:
        InstallFailed: what is done until then stays done, and the configuration is never there before the shim.
    """
    changed: list[str] = []
    shim = _read(places.shim)
    for plugin in places.plugins:
        path = places.bin_dir / plugin
        _set_aside(path)
        if _put(path, shim, mode=0o755):
            changed.append(on_node(path))
    _remove(places.bin_dir / MARK)
    if places.conf_dir is None:
        return Installed(changed=tuple(changed))
    path = places.conf_dir / CONFLIST
    if _put(path, places.conflist, mode=0o644):
        changed.append(on_node(path))
    shadow = shadow_of(_names(places.conf_dir))
    return Installed(changed=tuple(changed), shadow=on_node(places.conf_dir / shadow) if shadow else "")


def install_shims(places: Places) -> Installed:
    """The shims alone, for a node whose kernel cannot make our links: other plugins may still want addresses."""
    return install(msgspec.structs.replace(places, conf_dir=None))


def withdraw(places: Places) -> Withdrawn:
    """Take away what can go, the configuration first.

    Raises:
        InstallFailed: what is done until then stays done.
    """
    shims = [places.bin_dir / plugin for plugin in places.plugins]
    ours = [] if places.conf_dir is None else [places.conf_dir / CONFLIST]
    plan = plan_withdrawal(_others(places.conf_dir), places.plugins)
    removed = [path for path in ours if plan.conflist and _remove(path)]
    mark = places.bin_dir / MARK
    if plan.shims:
        removed += [path for path in shims if _give_back(path)]
        _remove(mark)
    else:
        _put(mark, b"Spiderpool was uninstalled from this node. The shim beside this file looks for it.\n", mode=0o644)
    left = [path for path in (*ours, *shims, mark) if path.exists() and (path == mark or _is_ours(path))]
    return Withdrawn(removed=tuple(map(on_node, removed)), left=tuple(map(on_node, left)), why=plan.why)


def on_node(path: Path) -> str:
    """How a path is called on the node, whose folders are mounted under /host."""
    return f"/{path.relative_to('/host')}" if path.is_relative_to("/host") else str(path)


def _others(folder: Path | None) -> list[Configuration] | None:
    if folder is None:
        return None
    names = (name for name in in_order(_names(folder)) if name != CONFLIST)
    return [read_configuration(name, _read(folder / name)) for name in names]


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]
    except OSError as error:
        raise InstallFailed("read", folder, error) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InstallFailed("read", path, error) from error


def _is_ours(path: Path) -> bool:
    return path.name == CONFLIST or _OURS in _read(path)


def _set_aside(path: Path) -> None:
    """Keep the program of somebody else's that has a name of ours."""
    try:
        if path.exists() and not _is_ours(path):
            # A link beside it, so that there is no moment without a program of that name.
            link = path.with_name(f".{path.name}.aside")
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
            link.rename(path.with_name(path.name + SET_ASIDE))
    except OSError as error:
        raise InstallFailed("set aside", path, error) from error


def _give_back(path: Path) -> bool:
    """Remove a shim, or put what had its name before in its place; whether there was one of ours."""
    if not path.exists() or not _is_ours(path):
        return False
    before = path.with_name(path.name + SET_ASIDE)
    try:
        if before.exists():
            before.rename(path)
        else:
            path.unlink()
    except OSError as error:
        raise InstallFailed("remove", path, error) from error
    return True


def _put(path: Path, content: bytes, *, mode: int) -> bool:
    """Have a file with this content and mode, by a rename; whether anything had to be done."""
    temporary = path.with_name(f".{path.name}.new")  # no suffix that a runtime reads
    try:
        found = path.lstat() if path.is_symlink() or path.exists() else None
        regular = found is not None and stat.S_ISREG(found.st_mode)
        if found is not None and regular and found.st_size == len(content) and path.read_bytes() == content:
            if stat.S_IMODE(found.st_mode) == mode:
                return False
            path.chmod(mode)
            return True
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        raise InstallFailed("write", path, error) from error
    return True


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InstallFailed("remove", path, error) from error
    return True
