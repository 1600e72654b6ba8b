"""A real Kubernetes API: etcd and kube-apiserver on loopback, RBAC on, ready in a few seconds.

There is no controller manager and no kubelet: nothing makes ServiceAccounts, deletes a namespace's contents or moves a
pod on. A test says what those would have said.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import secrets
import shutil
import ssl
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers.certificates import CertificateAuthority, write_private_key
from tests.servers.process import ServerFailed, ServerProcess, free_port, run_command
from tests.servers.provide import CHECKOUT, Progress, executable, silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

ISSUER: Final = "https://kubernetes.default.svc"
CRDS: Final = CHECKOUT / "helm" / "spiderpool" / "crds"
START_ATTEMPTS: Final = 3
"""A free port can be taken by somebody else before the server binds it."""


class Answer(msgspec.Struct, frozen=True):
    """What the API server said: the HTTP status and the decoded JSON body (text when it is none)."""

    status: int
    body: Any


class ApiRefused(RuntimeError):
    """The API server answered 4xx or 5xx; `answer` holds the whole of it."""

    def __init__(self, method: str, path: str, answer: Answer) -> None:
        message = answer.body.get("message") if isinstance(answer.body, dict) else answer.body
        super().__init__(f"{method} {path}: {answer.status} {message}")
        self.answer = answer


class ControlPlane:
    """etcd and kube-apiserver with a temporary folder of their own; a context manager, plain or async.

    Args:
        address: the loopback or namespace address that the API server listens on.
        durable: let etcd wait for the disk as in production (benchmarks); tests don't.
        api_server_arguments: further command line arguments, after ours.
        progress: told about executables that have to be made first.

    Attributes:
        url: `https://host:port`.
        ca_file: PEM of the authority that signed the server's certificate (and the users').
        admin_kubeconfig: a kubeconfig of group system:masters.
        admin_token: a bearer token of the same.
        authority: issues further certificates: `authority.issue("alice", organizations=["devs"])` is the user alice.
        etcd, api_server: the processes.
        folder: kubeconfigs, certificates, logs.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        durable: bool = False,
        api_server_arguments: Sequence[str] = (),
        progress: Progress = silent,
    ) -> None:
        self._executables = {
            name: executable(name, progress=progress) for name in ("etcd", "kube-apiserver", "kubectl")
        }
        self._progress = progress
        self._address = address
        self._durable = durable
        self._extra = tuple(api_server_arguments)
        self.folder = Path(tempfile.mkdtemp(prefix="spiderpool-api-"))
        self.authority = CertificateAuthority(self.folder / "pki")
        self.ca_file = self.authority.ca_file
        self._serving = self.authority.issue(
            "kube-apiserver", hosts=[address, "127.0.0.1", "localhost", "kubernetes.default.svc", "10.96.0.1"]
        )
        self._account_key = self.folder / "pki" / "service-account.key"
        write_private_key(ec.generate_private_key(ec.SECP256R1()), self._account_key)
        self.admin_token = secrets.token_hex(16)
        (self.folder / "tokens.csv").write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        self._tls = ssl.create_default_context(cafile=str(self.ca_file))
        self._assign_ports()

    def __repr__(self) -> str:
        return f"<ControlPlane {self.url} {self.etcd!r} {self.api_server!r}>"

    @property
    def etcd_port(self) -> int:
        """Where etcd serves clients and its metrics, on loopback without TLS."""
        return self._etcd_port

    def _assign_ports(self) -> None:
        self._port = free_port(self._address)
        self._etcd_port, self._peer_port = free_port(), free_port()
        self.url = f"https://{self._address}:{self._port}"
        self.etcd = ServerProcess("etcd", self._etcd_command(), folder=self.folder)
        self.api_server = ServerProcess("kube-apiserver", self._api_server_command(), folder=self.folder)
        self.admin_kubeconfig = self.kubeconfig_for(token=self.admin_token, name="admin")

    def _etcd_command(self) -> list[str | Path]:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            self._executables["etcd"],
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--quota-backend-bytes=1073741824",
            "--log-level=warn",
            *([] if self._durable else ["--unsafe-no-fsync"]),
        ]

    def _api_server_command(self) -> list[str | Path]:
        return [
            self._executables["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--bind-address={self._address}",
            f"--secure-port={self._port}",
            # Nobody connects to it (no endpoint reconciler); without it a machine that has no default route is refused.
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={self.folder / 'pki'}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            f"--client-ca-file={self.ca_file}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._account_key}",
            f"--service-account-signing-key-file={self._account_key}",
            f"--api-audiences={ISSUER}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112",
            "--allow-privileged=true",
            "--enable-aggregator-routing=true",
            "--shutdown-delay-duration=0s",
            *self._extra,
        ]

    # -------------------------------------------------------------- life

    def start(self) -> Self:
        """Starts both and returns when the API server says that it is ready.

        Raises:
            ServerFailed: one of them ended, or was not ready within a minute.
        """
        for attempt in range(START_ATTEMPTS):
            try:
                self.start_etcd()
                self.start_apiserver()
            except Exception:
                in_use = "address already in use" in self.etcd.tail() + self.api_server.tail()
                self.stop_apiserver(kill=True)
                self.stop_etcd(kill=True)
                if not in_use or attempt == START_ATTEMPTS - 1:
                    raise
                self._assign_ports()
            else:
                break
        return self

    def stop(self, *, keep: Path | None = None) -> None:
        """Stops both and removes the folder.

        Args:
            keep: a folder that the logs are copied to first.
        """
        # Killed: nobody reads what a graceful end would save, and it takes seconds.
        self.api_server.stop(kill=True)
        self.etcd.stop(kill=True)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for log in self.folder.glob("*.log"):
                shutil.copy(log, keep / log.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_apiserver(self) -> None:
        """Starts the API server (again, on the same port) and waits until it is ready."""
        self.api_server.start()
        self.api_server.wait_until(lambda: self.request("GET", "/readyz", check=False).status == http.client.OK)

    def stop_apiserver(self, *, kill: bool = True) -> None:
        """Stops the API server; etcd keeps what it stored."""
        self.api_server.stop(kill=kill)

    def start_etcd(self) -> None:
        """Starts etcd (again) and waits until it answers."""
        self.etcd.start()
        self.etcd.wait_until(self._etcd_healthy)

    def stop_etcd(self, *, kill: bool = True) -> None:
        """Stops etcd; the API server then answers nothing that needs the store."""
        self.etcd.stop(kill=kill)

    def _etcd_healthy(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._etcd_port, timeout=5)) as connection:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    # -------------------------------------------------------------- clients

    def kubeconfig_for(
        self,
        *,
        token: str = "",
        user: str = "",
        groups: Sequence[str] = (),
        name: str = "",
        namespace: str = "default",
        server: str = "",
    ) -> Path:
        """Writes a kubeconfig for a bearer token, or for a user by a fresh client certificate.

        Args:
            token: the bearer token; or
            user: the user's name, with
            groups: the user's groups.
            name: stem of the file (the user's name, else random).
            namespace: default namespace of kubectl and helm.
            server: URL to dial instead of the API server's, a proxy's for instance.
        """
        stem = name or user.replace(":", "-") or secrets.token_hex(4)
        if user:
            pair = self.authority.issue(user, organizations=groups, file=f"user-{stem}")
            credentials = {
                "client-certificate-data": _base64(pair.certificate.read_bytes()),
                "client-key-data": _base64(pair.key.read_bytes()),
            }
        else:
            credentials = {"token": token}
        cluster = {"server": server or self.url, "certificate-authority-data": _base64(self.ca_file.read_bytes())}
        context = {"cluster": "test", "user": "me", "namespace": namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "me", "user": credentials}],
            "contexts": [{"name": "test", "context": context}],
        }
        path = self.folder / f"{stem}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config, indent=1))
        return path

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        content_type: str = "",
        check: bool = True,
    ) -> Answer:
        """One API call on a connection of its own.

        Args:
            method: HTTP method.
            path: with its query, e.g. `/api/v1/namespaces`.
            body: encoded as JSON unless None.
            token: instead of the admin's; "" sends none.
            content_type: of the body (`application/json`; PATCH: a JSON merge patch).
            check: raise for a status of 400 and above.

        Raises:
            ApiRefused: the answer was an error and `check` is set.
            OSError: no API server there.
        """
        bearer = self.admin_token if token is None else token
        default = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Accept": "application/json", "Content-Type": content_type or default}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        connection = http.client.HTTPSConnection(self._address, self._port, timeout=30, context=self._tls)
        with contextlib.closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                raw = response.read()
            except http.client.HTTPException as problem:
                raise ConnectionError(f"{method} {path}: {problem!r}") from problem
        try:
            decoded = json.loads(raw)
        except ValueError:
            decoded = raw.decode(errors="replace")
        answer = Answer(response.status, decoded)
        if check and answer.status >= http.client.BAD_REQUEST:
            raise ApiRefused(method, path, answer)
        return answer

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Runs kubectl as the administrator and returns what it prints.

        Raises:
            CommandFailed: it exited non-zero.
        """
        argv = [str(self._executables["kubectl"]), *arguments]
        return run_command(argv, env=self._environment(kubeconfig), stdin=stdin)

    def helm(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Runs helm as the administrator and returns what it prints.

        Raises:
            CommandFailed: it exited non-zero.
            ServersUnavailable: no helm for this machine.
        """
        argv = [str(executable("helm", progress=self._progress)), *arguments]
        return run_command(argv, env=self._environment(kubeconfig), stdin=stdin, timeout=180)

    def _environment(self, kubeconfig: Path | None) -> Mapping[str, str]:
        home = {f"HELM_{kind}_HOME": str(self.folder / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        own = {"KUBECONFIG": str(kubeconfig or self.admin_kubeconfig), "KUBECACHEDIR": str(self.folder / "kube-cache")}
        return {**os.environ, **home, **own, "HOME": str(self.folder)}

    # -------------------------------------------------------------- what a cluster would have

    def create_namespace(self, name: str = "", *, labels: Mapping[str, str] | None = None) -> str:
        """Makes a namespace (with a random name unless given) and returns its name."""
        name = name or f"test-{secrets.token_hex(4)}"
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        return name

    def create_service_account(self, namespace: str, name: str) -> None:
        """Makes a ServiceAccount (nothing makes the `default` ones here)."""
        self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})

    def service_account_token(
        self, namespace: str, name: str, *, audience: str = ISSUER, pod: str = "", seconds: int = 3600
    ) -> str:
        """Asks the API server for a ServiceAccount's token, as kubelet does for a projected volume.

        Args:
            namespace: of the account and the pod.
            name: the account.
            audience: who the token is for.
            pod: name of an existing Pod that runs under that account, which the token is then bound to.
            seconds: how long it is valid (the API server refuses less than 600).

        Raises:
            ApiRefused: no such account or pod.
        """
        spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": seconds}
        if pod:
            uid = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}").body["metadata"]["uid"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.request("POST", path, {"spec": spec}).body["status"]["token"])

    def install_crds(self, folder: Path = CRDS) -> bool:
        """Applies the chart's CRDs and waits until they are served; False when the folder holds none yet.

        Raises:
            CommandFailed: the API server refused one.
        """
        if not any(folder.glob("*.yaml")):
            return False
        self.kubectl("apply", "--server-side", "-f", str(folder))
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(folder))
        # Established is not yet served: the watch cache of a new resource answers 429 for a moment.
        for path in folder.glob("*.yaml"):
            plural, _, group = path.stem.partition("_")[2], "", path.stem.partition("_")[0]
            deadline = time.monotonic() + 30
            while self.request("GET", f"/apis/{group}/v2beta1/{plural}", check=False).status != http.client.OK:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"{plural}.{group} is not served after 30 s")
                time.sleep(0.05)
        return True


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
