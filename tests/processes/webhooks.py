"""The chart's webhooks in a lab: the API server asks the lab's controllers, by a Service whose endpoints are played."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import yaml

from tests.servers.control_plane import Answer

if TYPE_CHECKING:
    from tests.processes.lab import Lab

IPPOOLS: Final = "/apis/spiderpool.spidernet.io/v2beta1/spiderippools"
DRY: Final = f"{IPPOOLS}?dryRun=All"
POOL_TYPE: Final = {"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderIPPool"}


class Webhooks:
    """They are the whole cluster's, so one lab at a time has them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._documents: list[dict[str, Any]] = []

    def install(self, rendered: Sequence[dict[str, Any]]) -> None:
        """Have those of the chart. Its controllers may be started later."""
        self._documents = [each for each in rendered if each["kind"].endswith("WebhookConfiguration")]
        services = [each for each in rendered if (each["kind"], each["metadata"]["name"]) == _SERVICE]
        for service in services:
            del service["spec"]["selector"]
        self._apply([*services, *self._documents])

    def remove(self) -> None:
        """Have objects written unseen, as in a cluster without them."""
        for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            path = f"/apis/admissionregistration.k8s.io/v1/{kind}/spiderpool-controller"
            self._lab.control_plane.request("DELETE", path, check=False)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Without them for a while."""
        self.remove()
        try:
            self._until(lambda: self._try("nonsense").status < HTTPStatus.BAD_REQUEST)
            yield
        finally:
            self._apply(self._documents)
            self.wait()

    def wait(self) -> None:
        """Until every controller serves, and what the API server would store has been seen by one."""
        self._lab.wait_readiness(*self._lab.controllers)
        self._until(lambda: "labels" in self._try("192.0.2.0/30").body.get("metadata", ()))

    def _apply(self, documents: Sequence[dict[str, Any]]) -> None:
        self._lab.control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def _try(self, subnet: str) -> Answer:
        pool = {**POOL_TYPE, "metadata": {"name": "asked"}, "spec": {"subnet": subnet}}
        return self._lab.control_plane.request("POST", DRY, pool, check=False)

    def _until(self, what: Callable[[], bool]) -> None:
        self._lab.processes[self._lab.controllers[0]].wait_until(what, seconds=30)


_SERVICE = ("Service", "spiderpool-controller")
