"""The agent's own Pod object: its uid, for events about it, and the annotation by which it is asked to withdraw."""

import logging
from collections.abc import Callable

import anyio

from api.core import ObjectReference, Pod
from api.kinds import POD
from api.retirement import RETIRE
from api.settings import AgentSettings
from runtime.actor import System
from runtime.store.port import Store
from runtime.store.reflector import Reflector

_log = logging.getLogger(__name__)


class OwnPod:
    """Follows it. `run` does the work."""

    def __init__(self, settings: AgentSettings, system: System, store: Store) -> None:
        """Ask nothing yet."""
        self._namespace = settings.pod_namespace
        self._name = settings.pod_name
        self._uid = settings.pod_uid
        self._retire: Callable[[], None] = lambda: None
        self._seen = anyio.Event()
        self.retiring = False
        """Whether the annotation was there."""
        self._reflector: Reflector[Pod] = Reflector(
            store, POD, random=system.random, namespace=self._namespace, fields={"metadata.name": self._name}
        )

    def __repr__(self) -> str:
        return f"<OwnPod {self._namespace}/{self._name} {self._reflector!r}>"

    def on_retire(self, call: Callable[[], None]) -> None:
        """Have `call` called when the annotation is there, and again whenever the pod changes then."""
        self._retire = call

    @property
    def reference(self) -> ObjectReference:
        """What an event about it names."""
        return ObjectReference(api_version="v1", kind="Pod", namespace=self._namespace, name=self._name, uid=self._uid)

    async def seen(self) -> None:
        """Wait until it has been read once: before that nobody knows whether it is asked to withdraw."""
        await self._seen.wait()

    async def run(self) -> None:
        """Follow it until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._reflector.run)
            await self._reflector.synced()
            while True:
                cursor = self._reflector.snapshot.revision
                for pod in self._reflector.snapshot.values():
                    self._uid = self._uid or pod.metadata.uid
                    if pod.metadata.annotations.get(RETIRE) == "true":
                        _log.warning("pod %s asks this agent to withdraw from the node", self._name)
                        self.retiring = True
                        self._retire()
                self._seen.set()
                await self._reflector.snapshot.wait(cursor)
