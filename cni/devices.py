"""Which devices the kubelet has given to a pod, for the plugins that put them into it.

A device plugin offers devices under a resource's name, the kubelet chooses some for each container and notes them in a
file of its own, by which it knows them again after a restart. A network that names a resource gets one of the pod's
devices of it: the n-th one goes to the n-th network that names it.

The file is no promised interface (that is a gRPC service on a socket, `pod-resources`), but all that is there before a
pod's sandbox is made, and its format has changed once in eight years; both are read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cni.errors import IoFailure

CHECKPOINT = Path("/var/lib/kubelet/device-plugins/kubelet_internal_checkpoint")


class _Entry(Struct, frozen=True, rename="pascal"):
    """The devices of one container and resource."""

    pod_uid: str = msgspec.field(name="PodUID")
    resource_name: str
    device_ids: dict[str, list[str] | None] | list[str] | None = msgspec.field(name="DeviceIDs", default=None)
    """By NUMA node, "-1" where there is none. Before Kubernetes 1.20 a list."""


class _Data(Struct, frozen=True, rename="pascal"):
    pod_device_entries: list[_Entry] | None = None


class _Checkpoint(Struct, frozen=True, rename="pascal"):
    data: _Data = _Data()


_decoder = msgspec.json.Decoder(_Checkpoint)


def decode(text: bytes, pod_uid: str) -> dict[str, tuple[str, ...]]:
    """The devices of a pod by resource, each once, in the order of its containers and of NUMA nodes.

    An init container and those that come after it have the same devices.

    Raises:
        IoFailure: this is no such file.
    """
    try:
        checkpoint = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IoFailure("the kubelet's list of devices cannot be read", str(error)) from error
    found: dict[str, tuple[str, ...]] = {}
    for entry in checkpoint.data.pod_device_entries or []:
        if entry.pod_uid == pod_uid:
            found[entry.resource_name] = found.get(entry.resource_name, ()) + _ids(entry)
    return {resource: tuple(dict.fromkeys(ids)) for resource, ids in found.items()}


def read(pod_uid: str, *, path: Path = CHECKPOINT) -> dict[str, tuple[str, ...]]:
    """The same from the node's file; nothing where the kubelet never had a device plugin. Blocks for a moment.

    Raises:
        IoFailure: it cannot be read.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise IoFailure(f"the kubelet's list of devices {path} cannot be read", str(error)) from error
    return decode(text, pod_uid)


class Devices:
    """A pod's devices, handed out one after the other."""

    def __init__(self, held: Mapping[str, Sequence[str]]) -> None:
        """By resource."""
        self._held = held
        self._taken: dict[str, int] = {}

    def take(self, resource: str) -> str:
        """The next device of a resource; empty where the pod has no further one, as a pod that did not ask for any."""
        number = self._taken.get(resource, 0)
        self._taken[resource] = number + 1
        ids = self._held.get(resource, ())
        return ids[number] if number < len(ids) else ""


def _ids(entry: _Entry) -> tuple[str, ...]:
    if isinstance(entry.device_ids, Mapping):
        by_node = sorted(entry.device_ids.items(), key=lambda item: (_number(item[0]), item[0]))
        return tuple(one for _, ids in by_node for one in ids or ())
    return tuple(entry.device_ids or ())


def _number(node: str) -> int:
    return int(node) if node.lstrip("-").isdigit() else 0
