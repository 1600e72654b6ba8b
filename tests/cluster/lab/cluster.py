"""A real cluster as a test sees it; see `Cluster`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from tests.cluster.lab import lifecycle, metrics, network, node_files, plan
from tests.cluster.lab.client import ApiClient, Refused
from tests.cluster.lab.jaeger import LabJaeger
from tests.cluster.lab.machine import Host, Machine
from tests.cluster.lab.node import PLANE, Node, routes_to
from tests.cluster.lab.state import ClusterState, Identity, LabFailed, LabUnavailable, StateFolder
from tests.servers.process import CommandFailed
from tests.servers.provide import Progress, silent

type Manifest = str | Mapping[str, Any]

READY_SECONDS: Final = 90.0
PRODUCT_NAMESPACE: Final = "spiderpool"
CORE: Final = "/api/v1"
PRODUCT: Final = "/apis/spiderpool.spidernet.io/v2beta1"


class Cluster:
    """A control plane and nodes on one LAN, with a router and a client beyond it; made by `up` or found by `attach`.

    Attributes:
        plane: the control plane's machine: `plane.stop("kube-apiserver")`, `plane.send("etcd", SIGSTOP)`.
        router: gateway of the LAN.
        outside: a client behind the router, on a network of its own.
        nodes: by name.
        api_url: of the API server, to be dialled on the LAN.
        kubeconfig: the administrator's.
        folder: logs, keys and disks.
    """

    def __init__(self, folder: StateFolder) -> None:
        self._state = folder
        self.folder = folder.path
        self.plane = Machine(PLANE, folder)
        self.router: Host = self.plane.held(network.ROUTER)
        self.outside: Host = self.plane.held(network.OUTSIDE)
        self.api_url = plan.API_URL
        self.kubeconfig = folder.path / "kubeconfig"
        self.nodes = {name: Node(name, folder) for name in self.state.nodes}
        self._api: ApiClient | None = None
        self._asking = threading.Lock()

    def __repr__(self) -> str:
        return f"<Cluster {self._state.name} {', '.join(self.nodes)} cni={self.state.cni}>"

    @property
    def state(self) -> ClusterState:
        """What is known of it on disk. Raises LabUnavailable."""
        state = self._state.read()
        if state is None:
            raise LabUnavailable(f"cluster {self._state.name} is not up: make cluster-up")
        return state

    # -------------------------------------------------------------- life

    @classmethod
    @contextlib.contextmanager
    def up(cls, *, name: str = "test", **options: Any) -> Iterator[Self]:
        """`start`, and `down` at the end."""
        cluster = cls.start(name=name, owner=Identity.of(os.getpid()), **options)
        try:
            yield cluster
        finally:
            cluster.down()

    @classmethod
    def start(
        cls,
        *,
        name: str = plan.DEFAULT_NAME,
        nodes: int = 2,
        cni: plan.Cni = "none",
        owner: Identity | None = None,
        prepare: Mapping[str, Sequence[Sequence[str]]] | None = None,
        images: Sequence[Path] = (),
        durable: bool = False,
        wait: float = 0.0,
        progress: Progress = silent,
    ) -> Self:
        """Brings a cluster up; returns when its nodes are registered, and Ready unless there is no CNI.

        Args:
            name: of its folder; clusters of different names can be up at once.
            nodes: how many.
            cni: `none`, `bridge` (an ordinary CNI) or `ref` (macvlan and host-local on the LAN).
            owner: process that it is for; when that is dead, the next `start` takes the cluster down. None: nobody.
            prepare: per node, commands that run in it before containerd and kubelet start, at every power-on.
            images: OCI archives that every node has, besides the lab's own.
            durable: let etcd wait for the disk.
            wait: seconds to wait for another cluster of this name to go.
            progress: told what takes long.

        Raises:
            LabUnavailable: the machine lacks something, or a cluster of this name is in use.
            LabFailed: it did not come up; the logs are in `<folder>/../failed`.
        """
        folder = StateFolder(name)
        began = time.monotonic()
        with folder.locked(seconds=max(wait, 60.0)):
            lifecycle.claim(folder, seconds=wait, progress=progress)
            try:
                lifecycle.create(
                    folder,
                    nodes=nodes,
                    cni=cni,
                    owner=owner,
                    prepare=prepare or {},
                    archives=images,
                    durable=durable,
                    progress=progress,
                )
                cluster = cls(folder)
                cluster._until_usable(progress, began)
            except BaseException:
                if folder.exists:
                    keep_logs(folder.path, folder.parent / "failed")
                    lifecycle.remove(folder)
                raise
            lifecycle.mark_ready(folder)
        return cluster

    @classmethod
    def attach(cls, name: str = plan.DEFAULT_NAME) -> Self:
        """The cluster of this name that is up. Raises LabUnavailable."""
        return cls(StateFolder(name))

    def down(self) -> None:
        """Takes it down; nothing stays. Raises LabFailed."""
        take_down(self._state.name)

    def _until_usable(self, progress: Progress, began: float) -> None:
        def step(what: str) -> None:
            progress(f"{what} after {time.monotonic() - began:.1f} s")

        step("processes")
        self.wait(lambda: self.text("/readyz") == "ok", READY_SECONDS, "the API server")
        step("API server ready")
        self.wait(lambda: len(self._node_objects()) == len(self.nodes), READY_SECONDS, "all nodes registered")
        step("nodes registered")
        cni = self.state.cni
        if cni == "bridge":
            self.install_bridge()
        if cni != "none":
            self.wait(self._all_ready, READY_SECONDS, "all nodes Ready")
            step("nodes Ready")
        account = f"{CORE}/namespaces/default/serviceaccounts/default"
        self.wait(lambda: self.get(account), READY_SECONDS, "the default ServiceAccount")
        step("up")

    def _node_objects(self) -> list[dict[str, Any]]:
        return self.items(f"{CORE}/nodes")

    def _all_ready(self) -> bool:
        return all(
            any(it["type"] == "Ready" and it["status"] == "True" for it in node["status"].get("conditions", []))
            for node in self._node_objects()
        )

    def install_bridge(self, *, host_ports: bool = False) -> None:
        """An ordinary CNI on every node, and routes to what it has there; `remove_bridge` takes its configuration away.

        With `host_ports` Debian's portmap is in it, which calls the iptables of a Debian.

        Node networks are given in the order of registration, so the routes follow what was given.
        """

        def given() -> dict[str, list[str]]:
            found = {node["metadata"]["name"]: node["spec"].get("podCIDRs", []) for node in self._node_objects()}
            return found if all(found.values()) else {}

        cidrs: dict[str, list[str]] = self.wait(given, READY_SECONDS, "pod networks of all nodes")
        (self.folder / "pod-cidrs.json").write_bytes(msgspec.json.encode(cidrs))
        for name, own in cidrs.items():
            others = [node for other, node in self.nodes.items() if other != name]
            pids = [self.plane.first.pid, self.plane.pid_of(network.ROUTER), *(node.first.pid for node in others)]
            for pid in pids:
                network.ip(pid, *routes_to(name, own))
            if host_ports:
                self.nodes[name].install_port_mapper()
            self.nodes[name].install_cni(node_files.bridge_cni(own, host_ports=host_ports))

    def remove_bridge(self) -> None:
        """Takes it away again; no pod may be left on it. The routes stay."""
        for node in self.nodes.values():
            node.run(["rm", f"/etc/cni/net.d/{node_files.BRIDGE_FILE}"])
            node.run(["ip", "link", "delete", "cni0"], check=False)
            node.remove_port_mapper()

    # -------------------------------------------------------------- clients

    def argv(self, program: str, *arguments: str) -> list[str]:
        """The command that runs kubectl or helm on the LAN; for a Popen with `environment`."""
        return self.plane.argv([str(self.folder / "bin" / program), *arguments])

    @property
    def environment(self) -> dict[str, str]:
        """Of kubectl and helm."""
        home = self.folder / "home"
        helm = {f"HELM_{kind}_HOME": str(home / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        path = f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}"
        return {**os.environ, **helm, "KUBECONFIG": str(self.kubeconfig), "HOME": str(home), "PATH": path}

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60.0) -> str:  # noqa: A002
        """Runs kubectl as the administrator and returns what it prints.

        Raises:
            CommandFailed: it exited non-zero; the message has its standard error.
            subprocess.TimeoutExpired: it was killed after `timeout` seconds.
        """
        return self._client("kubectl", arguments, stdin=input, timeout=timeout)

    def kubectl_json(self, *arguments: str, timeout: float = 60.0) -> Any:
        """`kubectl ... --output=json`, decoded."""
        return json.loads(self.kubectl(*arguments, "--output=json", timeout=timeout))

    def text(self, path: str) -> str:
        """What the API server answers to a GET of this process: to start kubectl costs a tenth of a second of CPU.

        Raises:
            OSError: there is no API server.
            LabFailed: it refused.
        """
        with self._asking:
            if self._api is None:
                self._api = ApiClient(self)
                weakref.finalize(self, self._api.close)
            try:
                return self._api.text(path)
            except (http.client.HTTPException, Refused) as problem:
                raise LabFailed(repr(problem)) from problem

    def get(self, path: str) -> Any:
        """An object or a list, decoded. Raises as `text`."""
        return json.loads(self.text(path))

    def items(self, path: str) -> list[dict[str, Any]]:
        """The objects of a list, without their kind. Raises as `text`."""
        return list(self.get(path)["items"])

    def helm(self, *arguments: str, timeout: float = 300.0) -> str:
        """Runs helm as the administrator and returns what it prints. Raises CommandFailed."""
        return self._client("helm", arguments, stdin=None, timeout=timeout)

    def _client(self, program: str, arguments: Sequence[str], *, stdin: str | None, timeout: float) -> str:
        done = subprocess.run(
            self.argv(program, *arguments),
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=self.environment,
        )
        if done.returncode:
            raise CommandFailed([program, *arguments], code=done.returncode, stdout=done.stdout, stderr=done.stderr)
        return done.stdout

    def apply(self, *manifests: Manifest) -> str:
        """`kubectl apply` of YAML texts or objects."""
        return self.kubectl("apply", "--filename=-", input=joined(manifests))

    def delete(self, *manifests: Manifest, timeout: float = 60.0) -> str:
        """`kubectl delete` of the same; waits until they are gone."""
        argv = ("delete", "--ignore-not-found", "--filename=-", f"--timeout={timeout:.0f}s")
        return self.kubectl(*argv, input=joined(manifests), timeout=timeout + 10)

    def node(self, name: str) -> Node:
        """One of `nodes`."""
        return self.nodes[name]

    def exec(self, pod: str, *argv: str, namespace: str = "default", timeout: float = 60.0) -> str:
        """Runs a command in a pod's first container and returns what it prints. Raises CommandFailed."""
        return self.kubectl("exec", f"--namespace={namespace}", pod, "--", *argv, timeout=timeout)

    def pod_ips(self, pod: str, namespace: str = "default") -> list[str]:
        """Addresses in the pod's status."""
        status = self.get(f"{CORE}/namespaces/{namespace}/pods/{pod}")["status"]
        return [entry["ip"] for entry in status.get("podIPs", [])]

    def wait_for_pods(self, *names: str, namespace: str = "default", timeout: float = 60.0) -> None:
        """Waits until pods are Ready. Raises LabFailed with their events."""

        def ready() -> bool:
            for name in names:
                status = self.get(f"{CORE}/namespaces/{namespace}/pods/{name}")["status"]
                if not any(it["type"] == "Ready" and it["status"] == "True" for it in status.get("conditions", ())):
                    return False
            return True

        try:
            self.wait(ready, timeout, f"pods {', '.join(names)} Ready")
        except LabFailed as problem:
            with contextlib.suppress(CommandFailed):
                events = self.kubectl("get", "events", f"--namespace={namespace}", "--sort-by=.lastTimestamp")
                raise LabFailed(f"{problem}\n{events[-3000:]}") from problem
            raise

    def wait[T](self, condition: Callable[[], T], timeout: float, what: str, *, interval: float = 0.2) -> T:
        """Polls until `condition` returns something true, and returns that; an exception counts as not yet.

        Raises:
            LabFailed: not within `timeout` seconds; the message names `what` and the last answer.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = condition()
            except (CommandFailed, LabFailed, LookupError, OSError, subprocess.TimeoutExpired) as problem:
                last = repr(problem)
            else:
                if answer:
                    return answer
                last = repr(answer)
            if time.monotonic() > deadline:
                raise LabFailed(f"{what}: not within {timeout:.0f} s; last: {last}")
            time.sleep(interval)

    # -------------------------------------------------------------- the LAN

    def add_segment(self, name: str, *, gateways: Sequence[str] = ()) -> None:
        """One more LAN, with a leg of the router in it when `gateways` (address/prefix) are given."""
        plane = self.plane.first.pid
        network.add_segment(plane, name)
        if gateways:
            network.connect_router(plane, self.plane.pid_of(network.ROUTER), name, gateways)
        state = self.state
        self._state.write(msgspec.structs.replace(state, segments={**state.segments, name: list(gateways)}))

    def add_nic(self, node: str, nic: str, *, segment: str = plan.LAN_SEGMENT) -> None:
        """Gives a node one more NIC in a segment, which is made when it is new."""
        if segment != plan.LAN_SEGMENT and segment not in self.state.segments:
            self.add_segment(segment)
        self.nodes[node].add_nic(nic, segment=segment)

    # -------------------------------------------------------------- measuring

    def metrics(self) -> str:
        """The API server's metrics as text."""
        return self.text("/metrics")

    def api_requests(self, *, group: str | None = None) -> Counter[tuple[str, str]]:
        """Requests to the API server so far, by (verb, resource[/subresource]); subtract two to measure."""
        return metrics.requests(self.metrics(), group=group)

    def api_writes(self, *, group: str | None = None) -> Counter[tuple[str, str]]:
        """Those that change something."""
        return metrics.writes(self.metrics(), group=group)

    def etcd_writes(self) -> int:
        """Keys put or deleted in etcd so far, events and leases included."""
        text = self.plane.get("http://127.0.0.1:2379/metrics")
        names = ("etcd_mvcc_put_total", "etcd_mvcc_delete_total")
        return int(sum(value for name in names for _, value in metrics.samples(text, name)))

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far by `<machine>/<service>`, and by every whole machine."""
        machines: list[Machine] = [self.plane, *(node for node in self.nodes.values() if node.is_on)]
        used = {f"{it.name}/{service}": spent for it in machines for service, spent in it.cpu_seconds().items()}
        return used | {name: node.cgroup_cpu_seconds() for name, node in self.nodes.items() if node.is_on}

    def jaeger(self) -> LabJaeger:
        """Starts Jaeger beside the API server (once); pods send to its `otlp_endpoint`. Raises LabFailed."""
        return LabJaeger(self.plane, self.folder).started(self.wait)

    # -------------------------------------------------------------- looking

    def logs_to(self, target: Path) -> None:
        """Collects all logs, objects, events and the product's pods' logs in a folder; never raises."""
        keep_logs(self.folder, target)
        reports = {
            "pods.txt": ("get", "pods", "--all-namespaces", "--output=wide"),
            "nodes.yaml": ("get", "nodes", "--output=yaml"),
            "events.txt": ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
            "describe.txt": ("describe", "pods", "--all-namespaces"),
        }
        pods: list[str] = []
        with contextlib.suppress(Exception):
            listed = self.kubectl_json("get", "pods", f"--namespace={PRODUCT_NAMESPACE}", timeout=20)
            pods = [pod["metadata"]["name"] for pod in listed["items"]]
        for pod in pods:
            logs = ("logs", f"--namespace={PRODUCT_NAMESPACE}", "--all-containers", pod)
            reports[f"{pod}.log"] = logs
            reports[f"{pod}.previous.log"] = (*logs, "--previous")
        for name, argv in reports.items():
            try:
                text = self.kubectl(*argv, timeout=20)
            except Exception as problem:  # noqa: BLE001 - the rest is worth having
                text = f"{problem}\n"
            (target / name).write_text(text)


def take_down(name: str) -> bool:
    """Takes a cluster down, whoever made it; whether there was one. Raises LabFailed, LabUnavailable."""
    folder = StateFolder(name)
    with folder.locked(seconds=60):
        existed = folder.exists
        lifecycle.remove(folder)
    return existed


def keep_logs(source: Path, target: Path) -> None:
    """Copies the log files of a cluster's machines."""
    target.mkdir(parents=True, exist_ok=True)
    for log in source.glob("log/*.log"):
        shutil.copy(log, target / log.name)
    for log in source.glob("n*/log/*.log"):
        shutil.copy(log, target / f"{log.parts[-3]}-{log.name}")


def joined(manifests: Sequence[Manifest]) -> str:
    """One YAML text of several documents (an object's JSON is YAML)."""
    return "\n---\n".join(text if isinstance(text, str) else json.dumps(text) for text in manifests)
