"""Credentials from a kubeconfig that needs plugins (exec programs, OIDC, GCP), by way of kubernetes_asyncio.

For the controller and the command line. Importing that package costs 60 MiB, so it happens inside the functions and the
agent never calls them. It reads files on the running loop and keeps a process-wide default: hence the thread with a
loop of its own, and the configuration object that is always passed.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.store.credentials import (
    Credentials,
    CredentialsError,
    PluginNeeded,
    from_kubeconfig,
    in_cluster,
    tls_context,
)

if TYPE_CHECKING:
    from kubernetes_asyncio.client import Configuration


class PluginToken:
    """A token that a kubeconfig's plugin makes. It is made anew when the API server has refused the last one."""

    def __init__(self, kubeconfig: Path, *, context: str, token: str) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._token = token
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """Return the last one made."""
        return self._token

    async def renew(self) -> bool:
        """Run the plugin, once for all who ask meanwhile. Raises `CredentialsError`."""
        before = self._token
        async with self._lock:
            if self._token == before:
                self._token = _token_of(await asyncio.to_thread(_load, self._kubeconfig, self._context))
        return self._token != before


async def credentials_of(kubeconfig: str) -> Credentials:
    """A kubeconfig with everything that kubectl does for it; empty: the pod's own account. Raises `CredentialsError`.

    kubernetes_asyncio is asked only where a plugin has to be run.
    """
    if not kubeconfig:
        return await asyncio.to_thread(in_cluster)
    try:
        return await asyncio.to_thread(from_kubeconfig, kubeconfig)
    except PluginNeeded:
        return await from_kubernetes_asyncio(kubeconfig)


async def from_kubernetes_asyncio(kubeconfig: str | Path, *, context: str = "") -> Credentials:
    """Read a kubeconfig with everything that kubectl would do for it. Raises `CredentialsError`."""
    path = Path(kubeconfig)
    configuration = await asyncio.to_thread(_load, path, context)
    token = _token_of(configuration)
    tls = await asyncio.to_thread(
        lambda: tls_context(
            authority=_read(configuration.ssl_ca_cert),
            certificate=_read(configuration.cert_file),
            key=_read(configuration.key_file),
            verify=bool(configuration.verify_ssl),
            source=str(path),
        )
    )
    url = configuration.host or ""
    return Credentials(
        url=url.rstrip("/"),
        tls=tls if url.startswith("https:") else None,
        tokens=PluginToken(path, context=context, token=token) if token else None,
        server_name=configuration.tls_server_name or "",
        proxy=configuration.proxy or "",
    )


def _load(kubeconfig: Path, context: str) -> "Configuration":
    """Let kubernetes_asyncio read the file and run its plugins. Blocks; must not run on a thread with a loop."""
    from kubernetes_asyncio.client import Configuration  # noqa: PLC0415 - 60 MiB
    from kubernetes_asyncio.config import ConfigException, load_kube_config  # noqa: PLC0415

    async def load() -> Configuration:
        configuration = Configuration()
        await load_kube_config(config_file=str(kubeconfig), context=context or None, client_configuration=configuration)
        return configuration

    try:
        return asyncio.run(load())
    except (ConfigException, OSError, ValueError) as error:
        msg = f"{kubeconfig}: {error}"
        raise CredentialsError(msg) from error


def _token_of(configuration: "Configuration") -> str:
    """Take the bearer token out of a configuration, without the word before it; empty when there is none."""
    return str(configuration.api_key.get("BearerToken", "")).removeprefix("Bearer ").strip()


def _read(path: str | None) -> str:
    return Path(path).read_text() if path else ""
