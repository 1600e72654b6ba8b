"""Which network makes the cluster's pods, by the CNI configurations of a node. Pure, for what files say.

Ours and a Multus's come first in that folder and say nothing of it: both call others.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct

from cni.install import CONFLIST, META_PLUGINS

type PodNetwork = Literal["calico", "cilium", "cluster", "none"]
"""As `spec.podCIDRType` has it, found out."""

MOST_BYTES = 1 << 20
"""Of a file that is read."""
_SUFFIXES = (".conf", ".conflist")
_NAMES: dict[str, PodNetwork] = {
    "calico": "calico",
    "k8s-pod-network": "calico",
    "cilium": "cilium",
    "flannel": "cluster",
}
"""By the name of a configuration, as the networks' own installers write it."""
_PLUGINS: dict[str, PodNetwork] = {
    "calico": "calico",
    "cilium-cni": "cilium",
    "flannel": "cluster",
}
"""By the first plugin's type: flannel's installer calls its configuration cbr0."""

_FILES: dict[str, PodNetwork] = {"calico": "calico", "cilium": "cilium", "flannel": "cluster"}
"""By a part of a file's name, for one that may not be read."""


class ConfigurationFile(Struct, frozen=True):
    """A file of the folder.

    Attributes:
        name: without the folder.
        text: what it says; empty where it could not be read.
        error: why it could not.
    """

    name: str
    text: bytes = b""
    error: str = ""


class Folder(Struct, frozen=True):
    """The folder of a node's CNI configurations.

    Attributes:
        path: for people.
        files: those that a runtime might read.
        error: why they could not be listed.
    """

    path: str
    files: tuple[ConfigurationFile, ...] = ()
    error: str = ""


class _Plugin(Struct, frozen=True):
    type: str = ""


class _Document(Struct, frozen=True):
    name: str = ""
    type: str = ""
    plugins: list[_Plugin] = []


def candidates(names: Iterable[str]) -> list[str]:
    """The files that may say it, in the order in which a runtime takes them."""
    return sorted(name for name in names if name.endswith(_SUFFIXES) and not _speaks_for_others(name))


def pod_network(folder: Folder) -> tuple[PodNetwork | None, str]:
    """What the first file says, and which that is. None: it could not be read, and this is why.

    A file that is there and means nothing to us is another network: none.
    """
    if folder.error:
        return None, f"{folder.path}: {folder.error}"
    for name in candidates(file.name for file in folder.files):
        file = next(file for file in folder.files if file.name == name)
        if file.error:
            # Calico's and Cilium's files may be root's alone; the names that their installers give them tell enough.
            told = next((network for word, network in _FILES.items() if word in name), None)
            return told, f"{folder.path}/{name}" if told else f"{folder.path}/{name}: {file.error}"
        document = _read(file.text)
        kinds = [plugin.type for plugin in document.plugins] or [document.type]
        if META_PLUGINS.intersection(kinds):
            continue
        return _NAMES.get(document.name) or _PLUGINS.get(kinds[0]) or "none", f"{folder.path}/{name}"
    return "none", f"{folder.path} has no other network's CNI configuration"


def _speaks_for_others(name: str) -> bool:
    return name == CONFLIST or "00-multus" in name


def _read(text: bytes) -> _Document:
    try:
        return msgspec.json.decode(text, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Document()
