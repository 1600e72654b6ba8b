"""How to reach an API server and as whom, without a Kubernetes client library (importing one costs an agent 60 MiB).

Understood are what a pod gets and what a kubeconfig holds by itself: certificates, keys and tokens, inline or in files.
A kubeconfig that runs a program or speaks to an OIDC provider needs `runtime.store.cluster_credentials`.

Everything here that reads files blocks; only a `TokenSource` is used on the loop, and reads on a thread.
"""

import asyncio
import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Struct

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, the cluster's CA and its namespace."""


class CredentialsError(Exception):
    """No way to the API server can be made of what was given. The text names the file or variable and the fault."""


class PluginNeeded(CredentialsError):
    """The kubeconfig's user authenticates by a plugin (exec or auth-provider): see `cluster_credentials`."""


class TokenSource(Protocol):
    """Where bearer tokens come from. Tokens expire: ask before every request."""

    async def token(self) -> str:
        """Return the token to send now. Raises `OSError` when it cannot be had."""
        ...

    async def renew(self) -> bool:
        """The API server refused the token: look for another, and tell whether there is one."""
        ...


class FixedToken:
    """A token that never changes."""

    def __init__(self, token: str) -> None:
        self._token = token.strip()

    async def token(self) -> str:
        """Return it."""
        return self._token

    async def renew(self) -> bool:
        """There is no other."""
        return False


class FileToken:
    """A token in a file that somebody else renews, kubelet for instance.

    The file is looked at no more than once in `interval` seconds, on a thread, and one reader does it for all who ask
    meanwhile. While it cannot be read the token of before stays.
    """

    def __init__(self, path: Path, *, interval: float = 60.0, now: Callable[[], float] | None = None) -> None:
        """`now` gives monotonic seconds, by default the running loop's."""
        self._path = path
        self._interval = interval
        self._now = now
        self._token = ""
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<FileToken {self._path}>"

    async def token(self) -> str:
        """Return the file's content without white space around it. Raises `OSError` when it could never be read."""
        if self._is_stale():
            async with self._lock:
                if self._is_stale():
                    await self._read()
        return self._token

    async def renew(self) -> bool:
        """Read the file now. True when it holds another token than before."""
        before = self._token
        async with self._lock:
            if self._token == before:
                await self._read()
        return self._token != before

    def _time(self) -> float:
        return asyncio.get_running_loop().time() if self._now is None else self._now()

    def _is_stale(self) -> bool:
        return self._time() - self._read_at >= self._interval

    async def _read(self) -> None:
        try:
            token = (await asyncio.to_thread(self._path.read_text)).strip()
        except OSError:
            if not self._token:
                raise
            token = ""
        self._token = token or self._token
        self._read_at = self._time()


class Credentials(Struct, frozen=True, kw_only=True):
    """The way to one API server."""

    url: str
    """For example ``https://10.0.0.1:6443``, without a slash at the end."""
    tls: ssl.SSLContext | None = None
    """None for plain HTTP."""
    tokens: TokenSource | None = None
    """None when the client certificate says it all."""
    server_name: str = ""
    """The name that the server's certificate must have, when it is not the URL's host."""
    proxy: str = ""
    """URL of an HTTP proxy to go through."""
    namespace: str = "default"
    """Where its user works by default: the pod's own namespace, or the context's."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the URL."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def in_cluster(
    *, folder: Path = SERVICE_ACCOUNT, environ: Mapping[str, str] = os.environ, interval: float = 60.0
) -> Credentials:
    """Make the credentials of the pod we run in. Raises `CredentialsError`.

    `interval` is how often, in seconds, the token file is looked at.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        msg = "KUBERNETES_SERVICE_HOST is not set: this process does not run in a pod"
        raise CredentialsError(msg)
    token, namespace = folder / "token", folder / "namespace"
    if not token.is_file():
        msg = f"{token}: no such file; does the pod mount its service account's token?"
        raise CredentialsError(msg)
    return Credentials(
        url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        tls=tls_context(authority=_text_of(folder / "ca.crt"), source=str(folder / "ca.crt")),
        tokens=FileToken(token, interval=interval),
        namespace=_text_of(namespace).strip() if namespace.is_file() else "default",
    )


class _Cluster(Struct, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""
    proxy_url: str = ""


class _User(Struct, rename="kebab"):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    exec: dict[str, object] | None = None
    auth_provider: dict[str, object] | None = None


class _Context(Struct, rename="kebab"):
    cluster: str
    user: str = ""
    namespace: str = ""


class _NamedCluster(Struct):
    name: str
    cluster: _Cluster


class _NamedUser(Struct):
    name: str
    user: _User | None = None


class _NamedContext(Struct):
    name: str
    context: _Context


class _KubeConfig(Struct, rename="kebab"):
    current_context: str = ""
    clusters: list[_NamedCluster] | None = None
    users: list[_NamedUser] | None = None
    contexts: list[_NamedContext] | None = None


def from_kubeconfig(path: str | Path, *, context: str = "") -> Credentials:
    """Read a kubeconfig file. Blocks: call it before the loop runs, or on a thread.

    Args:
        path: one file; relative paths in it are relative to its folder, as kubectl has it.
        context: by default the file's current context.

    Raises `CredentialsError` that names the file and what is wrong in it.
    """
    path = Path(path)
    try:
        config = msgspec.convert(yaml.safe_load(_text_of(path)), _KubeConfig)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        msg = f"{path}: not a kubeconfig: {error}"
        raise CredentialsError(msg) from error
    chosen = context or config.current_context
    contexts = {entry.name: entry.context for entry in config.contexts or ()}
    if chosen not in contexts:
        msg = f"{path}: no context {chosen!r} among {sorted(contexts)}"
        raise CredentialsError(msg)
    clusters = {entry.name: entry.cluster for entry in config.clusters or ()}
    users = {entry.name: entry.user or _User() for entry in config.users or ()}
    cluster, user = clusters.get(contexts[chosen].cluster), users.get(contexts[chosen].user)
    if cluster is None or (user is None and contexts[chosen].user):
        msg = f"{path}: context {chosen!r} names a cluster or a user that the file does not have"
        raise CredentialsError(msg)
    return _assemble(path, cluster, user or _User(), namespace=contexts[chosen].namespace or "default")


def _assemble(path: Path, cluster: _Cluster, user: _User, *, namespace: str) -> Credentials:
    if user.exec is not None or user.auth_provider is not None:
        msg = f"{path}: the user authenticates by a plugin (exec or auth-provider), which only the controller can run"
        raise PluginNeeded(msg)
    folder = path.parent
    tls = None
    if urlsplit(cluster.server).scheme == "https":
        authority = _data_or_file(path, cluster.certificate_authority_data, folder, cluster.certificate_authority)
        tls = tls_context(
            authority=authority,
            certificate=_data_or_file(path, user.client_certificate_data, folder, user.client_certificate),
            key=_data_or_file(path, user.client_key_data, folder, user.client_key),
            verify=not cluster.insecure_skip_tls_verify,
            source=str(path),
        )
    tokens: TokenSource | None = None
    if user.token_file:
        tokens = FileToken(folder / user.token_file)
    elif user.token:
        tokens = FixedToken(user.token)
    return Credentials(
        url=cluster.server.rstrip("/"),
        tls=tls,
        tokens=tokens,
        server_name=cluster.tls_server_name,
        proxy=cluster.proxy_url,
        namespace=namespace,
    )


def tls_context(
    *, authority: str = "", certificate: str = "", key: str = "", verify: bool = True, source: str = ""
) -> ssl.SSLContext:
    """Make a client's TLS context of PEM texts. Blocks.

    Args:
        authority: the CAs to trust, by default the system's.
        certificate: the client's own, with `key`.
        key: the private key of `certificate`.
        verify: whether the server is checked at all.
        source: where the texts come from, for the error.

    Raises `CredentialsError`.
    """
    try:
        tls = ssl.create_default_context(cadata=authority or None)
        # Python 3.13 began to demand extensions that many clusters' own CAs do not have; every other client of theirs
        # goes without, and the chain is verified all the same.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not verify:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        if certificate:
            _load_certificate(tls, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        msg = f"{source}: unusable certificate or key: {error}"
        raise CredentialsError(msg) from error
    return tls


def _load_certificate(tls: ssl.SSLContext, certificate: str, key: str) -> None:
    """Give the context a client certificate. OpenSSL takes one from files only: ours is private and goes at once."""
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{certificate}\n{key}\n")
        file.flush()
        tls.load_cert_chain(file.name)


def _data_or_file(path: Path, data: str, folder: Path, name: str) -> str:
    """Take a PEM text from base64 in the kubeconfig or from the file it names; empty when it has neither."""
    if not data:
        return _text_of(folder / name) if name else ""
    try:
        return base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        msg = f"{path}: certificate or key data is not base64 of a PEM text: {error}"
        raise CredentialsError(msg) from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}"
        raise CredentialsError(msg) from error
