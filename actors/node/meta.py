"""What it takes of a node to attach pods to several networks."""

from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from msgspec import Struct

from api.wire import PodRef
from cni.conflist import ConfList, calls_multus, contents, find_conflist
from cni.delegate import Delegates
from cni.devices import CHECKPOINT, Devices
from cni.devices import read as read_devices


class Meta(Struct, frozen=True, kw_only=True):
    """What a meta plugin needs of the node."""

    delegates: Delegates
    conf_dir: Path | None = None
    """The node's CNI configurations, as this process sees them."""
    checkpoint: Path = CHECKPOINT
    """The kubelet's list of devices, as this process sees it."""

    async def apart[T](self, work: Callable[[], T]) -> T:
        """Do what blocks where it holds up nobody: on a thread."""
        return await anyio.to_thread.run_sync(work)

    def find(self, name: str) -> ConfList | None:
        """The node's own configuration of that name. Blocks. Raises `InvalidConfig`."""
        return None if self.conf_dir is None else find_conflist(self.conf_dir, name)

    def contents(self) -> str:
        """What the node has instead of a configuration that is not there, in words. Blocks."""
        return "the agent has no folder of CNI configurations" if self.conf_dir is None else contents(self.conf_dir)

    def below_multus(self) -> bool:
        """Whether the runtime calls a Multus first. Blocks."""
        return self.conf_dir is not None and calls_multus(self.conf_dir)

    def devices(self, pod: PodRef) -> Callable[[str], str]:
        """For a pod: takes the next device of a resource that the kubelet gave it; empty where there is none.

        Blocks. Raises `IoFailure`.
        """
        held: list[Devices] = []

        def take(resource: str) -> str:
            if not held:
                held.append(Devices(read_devices(pod.uid, path=self.checkpoint)))
            return held[0].take(resource)

        return take
