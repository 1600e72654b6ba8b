"""Plays scheduler and kubelet for the chart's hooks: the API server of the tests has none of them.

Each hook's Pod is run once, as a process of this checkout with the container's command, arguments and environment, and
with the rights of the Pod's ServiceAccount only; without that account it fails, for a real API server would not take
it. So the hooks' accounts, roles and arguments are proved together. The Pods are bound to no node: then they go as soon
as helm deletes them, and nobody has to serve their logs. No controller runs: what its webhooks do not answer is let
through.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from tests.chart.conftest import CHART, HOOK
from tests.servers import ControlPlane
from tests.servers.control_plane import ApiRefused

PROGRAMS = Path(sys.executable).parent


class Ran:
    """One hook that was run."""

    def __init__(self, pod: dict[str, Any], code: int, output: str) -> None:
        self.name: str = pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self.code = code
        self.output = output

    def __repr__(self) -> str:
        return f"<Ran {self.name} exit {self.code}>\n{self.output}"


class Hooks:
    """Runs the hooks of one namespace while the block lasts."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, name="hooks", daemon=True)
        self.ran: list[Ran] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def last(self, name: str) -> Ran:
        """The last run of this hook."""
        return [ran for ran in self.ran if ran.name == name][-1]

    def _pods(self) -> list[dict[str, Any]]:
        """Of hooks of an installation: those of `helm test` need a network."""
        listed = self._cluster.request("GET", self._path).body["items"]
        return [pod for pod in listed if pod["metadata"].get("annotations", {}).get(HOOK, "test") != "test"]

    def _play(self) -> None:
        seen = {pod["metadata"]["uid"] for pod in self._pods()}
        while not self._over.wait(0.1):
            for pod in self._pods():
                if pod["metadata"]["uid"] not in seen:
                    seen.add(pod["metadata"]["uid"])
                    self._run(pod)

    def _run(self, pod: dict[str, Any]) -> None:
        started = _now()
        self._let_through()
        try:
            code, output = self._outcome(pod)
        except ApiRefused as error:
            code, output = 1, str(error)
        self.ran.append(Ran(pod, code, output))
        self._say_how_it_ended(pod, started, code)

    def _let_through(self) -> None:
        for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            path = f"/apis/admissionregistration.k8s.io/v1/{kind}/spiderpool-controller"
            found = self._cluster.request("GET", path, check=False)
            if found.status == HTTPStatus.OK:
                hooks = [{**hook, "failurePolicy": "Ignore"} for hook in found.body["webhooks"]]
                self._cluster.request("PATCH", path, {"webhooks": hooks})

    def _outcome(self, pod: dict[str, Any]) -> tuple[int, str]:
        """Exit code and output. Raises `ApiRefused`: no such account."""
        (container,) = pod["spec"]["containers"]
        token = self._cluster.service_account_token(self._namespace, pod["spec"]["serviceAccountName"])
        fields = {"metadata.namespace": self._namespace}
        environment = {
            each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
            if "valueFrom" in each
            else each.get("value", "")
            for each in container.get("env", ())
        }
        argv = [PROGRAMS / Path(container["command"][0]).name, *container.get("args", ())]
        if "crds" in argv:
            argv += ["--from", CHART / "crds"]
        done = subprocess.run(
            argv,
            env={
                **environment,
                "PATH": os.environ["PATH"],
                "KUBECONFIG": str(self._cluster.kubeconfig_for(token=token, name=f"hook-{pod['metadata']['uid']}")),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout

    def _say_how_it_ended(self, pod: dict[str, Any], started: str, code: int) -> None:
        (container,) = pod["spec"]["containers"]
        reason = "Error" if code else "Completed"
        terminated = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": _now()}
        of_container = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": {"terminated": terminated},
        }
        status = {
            "phase": "Failed" if code else "Succeeded",
            "startTime": started,
            "containerStatuses": [of_container],
        }
        self._cluster.request("PATCH", f"{self._path}/{pod['metadata']['name']}/status", {"status": status})


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
