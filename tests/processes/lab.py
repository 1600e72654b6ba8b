"""A cluster of real processes: API server and etcd, controllers, two agents, the shim, links on the real kernel.

What is missing of a cluster is played: nodes and pods are objects that the test creates, kubelet is a thread that
runs the shim, the token volume is a file. Everything runs in the test run's own network namespace.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from pyroute2 import IPRoute

from tests.netns import Netns
from tests.processes.webhooks import IPPOOLS, POOL_TYPE, Webhooks
from tests.servers import ControlPlane, ServerProcess, free_port

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "helm" / "spiderpool"
PROGRAMS = Path(sys.executable).parent
AUDIENCE = "spiderpool-controller"
NODES = ("n1", "n2")
CERTIFICATES = "spiderpool-controller-server-certs"
CONTROLLER_ADDRESS = "10.255.255.1"
"""On loopback of the test run's own namespace: an EndpointSlice may not name 127.0.0.1."""


def shim() -> Path:
    """The CNI executable for this machine, as ``make shim`` leaves it."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return CHECKOUT / "build" / "cni" / machine / "spiderpool"


class CniError(Exception):
    """The shim exited with an error: what it printed."""

    def __init__(self, document: dict[str, Any], code: int) -> None:
        super().__init__(f"exit {code}: {json.dumps(document)}")
        self.document = document
        self.code = code


def call(
    binary: Path, verb: str, config: Mapping[str, Any] | bytes, environment: Mapping[str, str], *, timeout: float = 60
) -> dict[str, Any]:
    """Run a plugin as libcni does and return what it prints; an empty object for verbs that print nothing.

    Raises `CniError` with the error object.
    """
    body = config if isinstance(config, bytes) else json.dumps(config).encode()
    done = subprocess.run(
        [str(binary)],
        input=body,
        capture_output=True,
        timeout=timeout,
        check=False,
        env={"CNI_COMMAND": verb, "CNI_PATH": str(binary.parent), **environment},
    )
    document: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode:
        raise CniError(document, done.returncode)
    return document


class Pod:
    """A pod object, and the namespace of its present sandbox."""

    def __init__(self, lab: "Lab", name: str, node: str, *, annotations: Mapping[str, str] | None = None) -> None:
        self.lab = lab
        self.name = name
        self.node = node
        self.uid = lab.create_pod(name, node, annotations=annotations or {})
        self.sandboxes = 0
        self.cid = ""
        self.netns: Netns | None = None
        self.result: dict[str, Any] = {}

    @property
    def addresses(self) -> list[str]:
        """Of the acknowledged ADD, without prefix length."""
        return [ip["address"].partition("/")[0] for ip in self.result.get("ips", ())]

    def environment(self) -> dict[str, str]:
        """What the runtime sets."""
        assert self.netns is not None
        args = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.lab.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_UID": self.uid,
            "K8S_POD_INFRA_CONTAINER_ID": self.cid,
        }
        return {
            "CNI_CONTAINERID": self.cid,
            "CNI_NETNS": str(self.netns.path),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
            "SPIDERPOOL_SOCKET": str(self.lab.socket(self.node)),
        }

    def new_sandbox(self) -> None:
        """What the runtime does before ADD."""
        self.sandboxes += 1
        self.cid = secrets.token_hex(32)
        self.netns = Netns(self.lab.folder / "netns", f"{self.name}-{self.sandboxes}").__enter__()

    def add(self, *, binary: Path | None = None, config: Mapping[str, Any] | bytes | None = None) -> dict[str, Any]:
        """One exec of ADD. Raises `CniError`."""
        self.result = call(
            binary or self.lab.plugins / "macvlan", "ADD", config or self.lab.config(self.node), self.environment()
        )
        return self.result

    def delete(self, *, binary: Path | None = None, config: Mapping[str, Any] | bytes | None = None) -> None:
        """One exec of DEL. Raises `CniError`."""
        call(binary or self.lab.plugins / "macvlan", "DEL", config or self.lab.config(self.node), self.environment())

    def start(self, *, seconds: float = 120) -> None:
        """As kubelet does it: sandbox after sandbox until one ADD succeeds."""
        deadline = time.monotonic() + seconds
        while True:
            self.new_sandbox()
            try:
                self.add()
            except CniError:
                self.stop(seconds=seconds)
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return

    def stop(self, *, seconds: float = 120) -> None:
        """As kubelet does it: DEL until it succeeds, then the namespace goes."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.delete()
            except CniError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                break
        self.result = {}
        assert self.netns is not None
        self.netns.__exit__(None, None, None)
        self.netns = None


class Lab:
    """See the module. A context manager; `control_plane` outlives it.

    Attributes:
        pools_of_pods: the pools that pods ask for, by family: ipv4 and ipv6.
        agent_config: further keys of the agents' file; they hold for agents that are started from then on.
        controller_config: keys of the controllers' file over those that the chart renders, likewise.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        environment: Mapping[str, str] | None = None,
        controllers: int = 1,
        nodes: Sequence[str] = NODES,
        apart: bool = False,
        fallback: Sequence[str] = (),
        webhooks: bool = False,
        values: Sequence[str] = (),
        own_certificates: bool = False,
    ) -> None:
        """With `webhooks` the API server asks the controllers for admission: of everything, so one such lab at a time.

        `values` are those of the chart, as ``--set`` takes them. Controllers have the file of settings that it renders.

        `environment` is added to that of every program. Controllers that are `apart` do not know of each other.

        Agents of the nodes in `fallback`, the first one excepted, may allocate by themselves.

        With `own_certificates` the controllers make theirs, as with the chart's method of that name; whoever wants
        agents to trust them writes `agents_ca`, as kubelet would.
        """
        self._own_certificates = own_certificates
        self._fallback = tuple(fallback)
        self.webhooks: Webhooks | None = Webhooks(self) if webhooks else None
        self.nodes = tuple(nodes)
        self.controllers = tuple(f"controller-{number}" if number else "controller" for number in range(controllers))
        self._apart = apart
        self._values = [word for value in values for word in ("--set", value)]
        self.control_plane = control_plane
        self.folder = Path(tempfile.mkdtemp(prefix="spiderpool-lab-"))
        self.namespace = control_plane.create_namespace()
        self.plugins = self.folder / "bin"
        self.rpc_ports = {name: free_port() for name in self.controllers}
        self.webhook_ports = {name: free_port() for name in self.controllers}
        self.health_ports = {name: free_port() for name in (*self.controllers, *self.nodes)}
        self.metric_ports = {name: free_port() for name in (*self.controllers, *self.nodes)}
        self._environment = dict(environment or {})
        self.processes: dict[str, ServerProcess] = {}
        self._pools: list[str] = []
        self.pools_of_pods: dict[str, list[str]] = {}
        self.agent_config: dict[str, Any] = {}
        self.controller_config: dict[str, Any] = {}
        self._lock = threading.Lock()

    # -- set-up --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            (self.folder / "netns").mkdir()
            self._install_plugins()
            self._wire()
            self._install_chart()
            for name in self.controllers:
                self.start_controller(name)
            for node in self.nodes:
                self.start_agent(node)
            self.wait_ready()
            if self.webhooks is not None:
                self.webhooks.wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.webhooks is not None:
            self.webhooks.remove()
        for process in self.processes.values():
            process.stop()
        if kind is not None:
            for process in self.processes.values():
                sys.stderr.write(f"---- {process.name}\n{process.tail(60)}\n")
        for path in (self.folder / "netns").glob("*"):
            namespace = Netns(path.parent, path.name)
            namespace.__exit__(None, None, None)
        with IPRoute() as route:
            for name in ("lan", *(f"{node}-up" for node in self.nodes)):
                for index in route.link_lookup(ifname=name):
                    route.link("del", index=index)
        for name in self._pools:
            self.control_plane.request("DELETE", f"{IPPOOLS}/{name}", check=False)
            self.control_plane.request("PATCH", f"{IPPOOLS}/{name}", {"metadata": {"finalizers": None}}, check=False)
        self.control_plane.kubectl("delete", "clusterrole,clusterrolebinding", "-l", f"lab={self.namespace}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _install_plugins(self) -> None:
        self.plugins.mkdir()
        for name in ("macvlan", "spiderpool"):
            shutil.copy2(shim(), self.plugins / name)

    def _wire(self) -> None:
        """One segment: a bridge, and per node an uplink that the pods' links are made on."""
        with IPRoute() as route:
            route.addr("replace", index=1, address=CONTROLLER_ADDRESS, prefixlen=32)
            route.link("add", ifname="lan", kind="bridge")
            lan = route.link_lookup(ifname="lan")[0]
            route.link("set", index=lan, state="up")
            for node in self.nodes:
                route.link("add", ifname=f"{node}-up", kind="veth", peer={"ifname": f"{node}-port"})
                for name in (f"{node}-up", f"{node}-port"):
                    index = route.link_lookup(ifname=name)[0]
                    if name.endswith("-port"):
                        route.link("set", index=index, master=lan)
                    route.link("set", index=index, state="up")

    def _install_chart(self) -> None:
        """The chart's accounts and rights, as rendered, and what they are for."""
        values = [*self._values, *(("--set", "spiderpoolAgent.fallback.enabled=true") if self._fallback else ())]
        rendered = self.control_plane.helm("template", "spiderpool", str(CHART), "--namespace", self.namespace, *values)
        kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
        everything = [d for d in yaml.safe_load_all(rendered) if d]
        documents = [d for d in everything if d["kind"] in kinds]
        for document in documents:
            document["metadata"].setdefault("labels", {})["lab"] = self.namespace
            if document["kind"].startswith("Cluster"):
                document["metadata"]["name"] += f"-{self.namespace}"
                if "roleRef" in document:
                    document["roleRef"]["name"] += f"-{self.namespace}"
            if document["kind"] in {"ServiceAccount", "Role", "RoleBinding"}:
                document["metadata"]["namespace"] = self.namespace
        self.control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))
        for node in self.nodes:
            self.control_plane.request("POST", "/api/v1/nodes", {"metadata": {"name": node}}, check=False)
            self.create_pod(f"agent-{node}", node, account="spiderpool-agent")
        for number in range(len(self.controllers)):
            self.create_pod(
                f"controller-{number}", self.nodes[number % len(self.nodes)], account="spiderpool-controller"
            )
        self.write_tokens()
        pair = self.control_plane.authority.issue(
            "spiderpool", hosts=(f"spiderpool-controller.{self.namespace}.svc",), file=f"rpc-{self.namespace}"
        )
        self.certificate, self.key = pair.certificate, pair.key
        (settings,) = [d["data"]["conf.yml"] for d in everything if "conf.yml" in d.get("data", ())]
        (self.folder / "conf.yml").write_text(settings)
        self.agents_ca = self.folder / "agents-ca.crt"
        if self._own_certificates:
            secrets_path = f"/api/v1/namespaces/{self.namespace}/secrets"
            (secret,) = (d for d in everything if d["kind"] == "Secret")
            self.control_plane.request("POST", secrets_path, {**secret, "metadata": {"name": CERTIFICATES}})
        for number, name in enumerate(self.controllers):
            self._publish(number, name)
        if self.webhooks is not None:
            self.webhooks.install(everything)

    def _publish(self, number: int, name: str) -> None:
        """What the controller's Service makes of a ready replica; the ports differ, for they share an address."""
        endpoint: dict[str, Any] = {"addresses": [CONTROLLER_ADDRESS], "conditions": {"ready": True}}
        if len(self.controllers) > 1:
            pod = {"kind": "Pod", "namespace": self.namespace, "name": f"controller-{number}"}
            endpoint["targetRef"] = pod
        self.control_plane.request(
            "POST",
            f"/apis/discovery.k8s.io/v1/namespaces/{self.namespace}/endpointslices",
            {
                "metadata": {
                    "name": f"spiderpool-{name}",
                    "labels": {"kubernetes.io/service-name": "spiderpool-controller"},
                },
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": [
                    {"name": "rpc", "port": self.rpc_ports[name], "protocol": "TCP"},
                    {"name": "webhook", "port": self.webhook_ports[name], "protocol": "TCP"},
                ],
            },
        )

    def write_tokens(self) -> None:
        """What kubelet's projected volumes hold: tokens bound to the pods of agents and controllers."""
        pods = {node: ("spiderpool-agent", f"agent-{node}") for node in self.nodes}
        for number, name in enumerate(self.controllers):
            pods[name] = ("spiderpool-controller", f"controller-{number}")
        for name, (account, pod) in pods.items():
            token = self.control_plane.service_account_token(self.namespace, account, audience=AUDIENCE, pod=pod)
            self.token(name).write_text(token)

    def token(self, name: str) -> Path:
        """The file with the token that a program shows to controllers."""
        return self.folder / f"{name}.token"

    # -- programs ------------------------------------------------------------------------------------------------------

    def start_controller(self, name: str = "controller") -> None:
        """The real program, with the rights of its ServiceAccount only."""
        pod = f"controller-{self.controllers.index(name)}"
        token = self.control_plane.service_account_token(self.namespace, "spiderpool-controller", pod=pod)
        kubeconfig = self.kubeconfig(token, name)
        config = self.folder / f"{name}.yml"
        rendered = yaml.safe_load((self.folder / "conf.yml").read_text())
        config.write_text(yaml.safe_dump({**rendered, **self.controller_config}))
        served, key, trusted = self.certificate, self.key, self.control_plane.ca_file
        if self._own_certificates:
            served = key = self.folder / f"{name}-tls" / "server.pem"
            trusted = served.with_name("ca.crt")
        own = {"SPIDERPOOL_CERTIFICATE_SECRET": CERTIFICATES} if self._own_certificates else {}
        alone = {"SPIDERPOOL_CONTROLLER_ADDRESSES": f"127.0.0.1:{self.rpc_ports[name]}"} if self._apart else {}
        self._start(
            name,
            [
                PROGRAMS / "spiderpool-controller",
                "daemon",
                f"--config-path={config}",
                f"--tls-server-cert={served}",
                f"--tls-server-key={key}",
            ],
            {
                "KUBECONFIG": str(kubeconfig),
                "SPIDERPOOL_POD_NAME": pod,
                "SPIDERPOOL_RPC_PORT": str(self.rpc_ports[name]),
                "SPIDERPOOL_WEBHOOK_PORT": str(self.webhook_ports[name]),
                "SPIDERPOOL_CONTROLLER_TOKEN_FILE": str(self.token(name)),
                "SPIDERPOOL_CONTROLLER_CA_FILE": str(trusted),
                **own,
                **alone,
            },
        )

    def start_agent(self, node: str) -> None:
        """The real program, with its own state folder.

        The first node's agent is told where the controller is, the second one's finds it by the EndpointSlice, with the
        rights of its own ServiceAccount.
        """
        config = self.folder / f"{node}.yml"
        common = {"ipamUnixSocketPath": str(self.socket(node)), "tuneSysctlConfig": False}
        config.write_text(yaml.safe_dump({**common, **self.agent_config}))
        self._start(
            node,
            [PROGRAMS / "spiderpool-agent", "daemon", f"--config-path={config}"],
            {
                "SPIDERPOOL_POD_NAME": f"agent-{node}",
                "SPIDERPOOL_NODE_NAME": node,
                "SPIDERPOOL_STATE_DIR": str(self.folder / node),
                **self._way_to_controller(node),
                **(_FALLBACK if node in self._fallback else {}),
                "SPIDERPOOL_CONTROLLER_TOKEN_FILE": str(self.token(node)),
                "SPIDERPOOL_CONTROLLER_CA_FILE": str(
                    self.agents_ca if self._own_certificates else self.control_plane.ca_file
                ),
            },
        )

    def _way_to_controller(self, node: str) -> dict[str, str]:
        if node == self.nodes[0] or self._apart:
            ports = self.rpc_ports.values()
            if self._apart:
                ports = [list(ports)[self.nodes.index(node) % len(ports)]]  # type: ignore[assignment]
            return {"SPIDERPOOL_CONTROLLER_ADDRESSES": ",".join(f"127.0.0.1:{port}" for port in ports)}
        token = self.control_plane.service_account_token(self.namespace, "spiderpool-agent", pod=f"agent-{node}")
        return {"KUBECONFIG": str(self.kubeconfig(token, f"agent-{node}"))}

    def kubeconfig(self, token: str, name: str) -> Path:
        """The file by which a program finds the API server."""
        return self.control_plane.kubeconfig_for(token=token, name=f"{name}-{self.namespace}")

    def _start(self, name: str, argv: list[str | Path], environment: Mapping[str, str]) -> None:
        if name not in self.processes:
            common = {
                "PATH": os.environ["PATH"],
                "SPIDERPOOL_POD_NAMESPACE": self.namespace,
                "SPIDERPOOL_HEALTH_PORT": str(self.health_ports[name]),
                "SPIDERPOOL_METRIC_HTTP_PORT": str(self.metric_ports[name]),
                "SPIDERPOOL_ENABLED_METRIC": "true",
            }
            self.processes[name] = ServerProcess(
                name, argv, folder=self.folder, env={**common, **environment, **self._environment}
            )
        self.processes[name].start()

    def kill(self, name: str) -> None:
        """kill -9 of a program."""
        self.processes[name].stop(kill=True)

    @property
    def admission(self) -> Webhooks:
        """Of a lab that has them."""
        assert self.webhooks is not None
        return self.webhooks

    def wait_ready(self) -> None:
        """Until every agent says that an ADD would be served."""
        for node in self.nodes:
            self.wait_readiness(node)

    def wait_readiness(self, *names: str) -> None:
        """Until these programs say that they are ready."""
        for node in names:
            url = f"http://127.0.0.1:{self.health_ports[node]}/v1/runtime/readiness"

            def ready(url: str = url) -> bool:
                try:
                    with urllib.request.urlopen(url, timeout=5):
                        return True
                except OSError:
                    return False

            self.processes[node].wait_until(ready, seconds=30)

    def socket(self, node: str) -> Path:
        """Of a node's agent."""
        return self.folder / f"{node}.sock"

    # -- objects -------------------------------------------------------------------------------------------------------

    def config(self, node: str, **changes: Any) -> dict[str, Any]:
        """A network configuration on a node's uplink."""
        return {
            "cniVersion": "1.1.0",
            "name": "lan",
            "type": "macvlan",
            "master": f"{node}-up",
            "ipam": {"type": "spiderpool"},
            **changes,
        }

    def create_pod(
        self, name: str, node: str, *, account: str = "", annotations: Mapping[str, str] | None = None
    ) -> str:
        """A Pod object bound to a node; returns its uid."""
        spec: dict[str, Any] = {"nodeName": node, "containers": [{"name": "c", "image": "none"}]}
        if account:
            spec["serviceAccountName"] = account
        answer = self.control_plane.request(
            "POST",
            f"/api/v1/namespaces/{self.namespace}/pods",
            {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": spec},
        )
        return str(answer.body["metadata"]["uid"])

    def pod(self, name: str, node: str = NODES[0], *, pools: Mapping[str, list[str]] | None = None) -> Pod:
        """A pod that asks for pools by annotation; by default for all pools of the lab."""
        wanted = pools if pools is not None else self.pools_of_pods
        return Pod(self, name, node, annotations={"ipam.spidernet.io/ippool": json.dumps(wanted)})

    def create_pools(self, size: int, *, prefix: str = "") -> None:
        """An IPv4 and an IPv6 pool of so many addresses, which the pods of the lab then ask for."""
        stem = f"{prefix}{self.namespace}"
        self.pools_of_pods = {"ipv4": [f"{stem}-v4"], "ipv6": [f"{stem}-v6"]}
        first4, first6 = 0x0A060010, 0x10
        last4 = first4 + size - 1
        self.create_pool(
            f"{stem}-v4",
            ipVersion=4,
            subnet="10.6.0.0/16",
            gateway="10.6.0.1",
            ips=[f"{_v4(first4)}-{_v4(last4)}"],
        )
        self.create_pool(
            f"{stem}-v6",
            ipVersion=6,
            subnet="fd00:6::/64",
            gateway="fd00:6::1",
            ips=[f"fd00:6::{first6:x}-fd00:6::{first6 + size - 1:x}"],
        )

    def create_pool(self, name: str, **spec: Any) -> None:
        """A SpiderIPPool; gone with the lab."""
        self.control_plane.request("POST", IPPOOLS, {**POOL_TYPE, "metadata": {"name": name}, "spec": spec})
        self._pools.append(name)

    def remove_pool(self, name: str) -> None:
        """A pool that is empty again goes before the lab does."""
        self.control_plane.request("DELETE", f"{IPPOOLS}/{name}")
        self._pools.remove(name)

    def status(self, name: str) -> dict[str, Any]:
        """A pool's status."""
        return dict(self.control_plane.request("GET", f"{IPPOOLS}/{name}").body.get("status", {}))

    def records(self) -> dict[str, dict[str, Any]]:
        """Address to record, over all pools of the lab."""
        found: dict[str, dict[str, Any]] = {}
        for name in self._pools:
            for address, record in json.loads(self.status(name).get("allocatedIPs") or "{}").items():
                assert address not in found, f"{address} is recorded in two pools"
                found[address] = record
        return found

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """SpiderEndpoints of the lab by pod name."""
        path = f"/apis/spiderpool.spidernet.io/v2beta1/namespaces/{self.namespace}/spiderendpoints"
        return {item["metadata"]["name"]: item for item in self.control_plane.request("GET", path).body["items"]}

    def wait_for(self, what: Any, *, seconds: float = 30) -> None:
        """Until `what()` is true, asked less often the longer it takes; a release is a moment behind its DEL."""
        deadline, pause = time.monotonic() + seconds, 0.05
        while not what():
            if time.monotonic() > deadline:
                msg = f"still not after {seconds:g} s: {what}"
                raise AssertionError(msg)
            time.sleep(pause)
            pause = min(pause * 1.2, 0.5)

    def journal(self, node: str) -> list[Path]:
        """The files of the entries that an agent keeps; each may be gone by the time that it is looked at."""
        return list((self.folder / node / "journal").glob("*.json"))


_FALLBACK = {"SPIDERPOOL_AGENT_FALLBACK_ENABLED": "true", "SPIDERPOOL_AGENT_FALLBACK_AFTER": "1"}


def _v4(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
