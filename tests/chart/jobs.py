"""Plays job controller, scheduler and kubelet for the chart's hooks: the API server of the tests has none of them.

Each Job is run once, as a process of this checkout with the container's command, arguments and environment, and with
the rights of the Job's ServiceAccount only. So the hooks' accounts, roles and arguments are proved together.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from tests.chart.conftest import CHART
from tests.servers import ControlPlane

PROGRAMS = Path(sys.executable).parent


class Ran:
    """One Job that was run."""

    def __init__(self, job: dict[str, Any], code: int, output: str) -> None:
        self.name: str = job["metadata"]["name"]
        self.uid: str = job["metadata"]["uid"]
        self.code = code
        self.output = output

    def __repr__(self) -> str:
        return f"<Ran {self.name} exit {self.code}>\n{self.output}"


class Jobs:
    """Runs the Jobs of one namespace while the block lasts."""

    def __init__(self, cluster: ControlPlane, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, name="jobs", daemon=True)
        self.ran: list[Ran] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def last(self, name: str) -> Ran:
        """The last run of this Job."""
        return [ran for ran in self.ran if ran.name == name][-1]

    def _play(self) -> None:
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs"
        seen = {job["metadata"]["uid"] for job in self._cluster.request("GET", path).body["items"]}
        while not self._over.wait(0.1):
            for job in self._cluster.request("GET", path).body["items"]:
                if job["metadata"]["uid"] not in seen:
                    seen.add(job["metadata"]["uid"])
                    self._run(job)

    def _run(self, job: dict[str, Any]) -> None:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        token = self._cluster.service_account_token(self._namespace, pod["serviceAccountName"])
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
                "KUBECONFIG": str(self._cluster.kubeconfig_for(token=token, name=f"job-{job['metadata']['uid']}")),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        self.ran.append(Ran(job, done.returncode, done.stdout))
        self._say_how_it_ended(job, done.returncode)

    def _say_how_it_ended(self, job: dict[str, Any], code: int) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

        def condition(kind: str) -> dict[str, str]:
            return {"type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now}

        status: dict[str, Any] = {"startTime": now, "ready": 0, "terminating": 0}
        if code:
            status |= {"failed": 1, "conditions": [condition("FailureTarget"), condition("Failed")]}
        else:
            conditions = [condition("SuccessCriteriaMet"), condition("Complete")]
            status |= {"succeeded": 1, "completionTime": now, "conditions": conditions}
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs/{job['metadata']['name']}/status"
        self._cluster.request("PATCH", path, {"status": status})
