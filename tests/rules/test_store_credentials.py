"""Credentials from a kubeconfig and from a pod's files; tokens that change while they are used."""

import asyncio
import base64
from pathlib import Path

import msgspec
import pytest

from runtime.store.cluster_credentials import from_kubernetes_asyncio
from runtime.store.credentials import Credentials, CredentialsError, FileToken, from_kubeconfig, in_cluster
from tests.servers.certificates import CertificateAuthority


def write(path: Path, *, cluster: dict[str, object], user: dict[str, object], **more: object) -> Path:
    config = {
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
        **more,
    }
    path.write_bytes(msgspec.yaml.encode(config))
    return path


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("pki"))


async def test_a_kubeconfig_with_files_beside_it(tmp_path: Path, authority: CertificateAuthority) -> None:
    pair = authority.issue("me")
    for name, source in (("ca.crt", authority.ca_file), ("me.crt", pair.certificate), ("me.key", pair.key)):
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "token").write_text(" from-file\n")
    path = write(
        tmp_path / "config",
        cluster={"server": "https://[fd00::1]:6443/", "certificate-authority": "ca.crt", "tls-server-name": "api"},
        user={"client-certificate": "me.crt", "client-key": "me.key", "tokenFile": "token"},
    )
    found = await asyncio.to_thread(from_kubeconfig, path)
    assert found.url == "https://[fd00::1]:6443"
    assert found.address == ("fd00::1", 6443)
    assert found.server_name == "api"
    assert found.namespace == "n"
    assert found.tls is not None
    assert found.tls.check_hostname
    assert len(found.tls.get_ca_certs()) == 1
    assert found.tokens is not None
    assert await found.tokens.token() == "from-file"


@pytest.mark.blocking  # the client library blocks, on a thread and a loop of its own
async def test_a_kubeconfig_with_everything_inside(tmp_path: Path, authority: CertificateAuthority) -> None:
    pair = authority.issue("me")
    encoded = [base64.b64encode(p.read_bytes()).decode() for p in (authority.ca_file, pair.certificate, pair.key)]
    path = write(
        tmp_path / "config",
        cluster={"server": "https://api", "certificate-authority-data": encoded[0]},
        user={"client-certificate-data": encoded[1], "client-key-data": encoded[2], "token": "inline"},
    )
    found = await asyncio.to_thread(from_kubeconfig, path)
    assert found.address == ("api", 443)
    assert found.tls is not None
    assert found.tokens is not None
    assert await found.tokens.token() == "inline"
    assert not await found.tokens.renew()
    same = await from_kubernetes_asyncio(path)
    assert same.url == found.url
    assert same.tls is not None
    assert same.tls.get_ca_certs() == found.tls.get_ca_certs()
    assert same.tokens is not None
    assert await same.tokens.token() == "inline"


@pytest.mark.blocking  # the client library blocks, on a thread and a loop of its own
async def test_a_plugin_is_for_the_controller(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    answer = '{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"%s"}}'
    plugin.write_text(f"#!/bin/sh\necho x >> {tmp_path}/runs\necho '{answer}' | sed s/%s/$(wc -l < {tmp_path}/runs)/\n")
    plugin.chmod(0o700)
    run = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    path = write(tmp_path / "config", cluster={"server": "http://api:8080"}, user={"exec": run})
    with pytest.raises(CredentialsError, match=r"config: .*exec"):
        await asyncio.to_thread(from_kubeconfig, path)
    found = await from_kubernetes_asyncio(path)
    assert found.tls is None
    assert found.tokens is not None
    assert await found.tokens.token() == "1"
    assert await found.tokens.token() == "1"
    assert await found.tokens.renew()
    assert await found.tokens.token() == "2"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"current-context": "gone"}, "no context 'gone' among"),
        ({"users": []}, "names a cluster or a user"),
        ({"clusters": [{"name": "c", "cluster": {}}]}, "server"),
        ({"contexts": "x"}, "not a kubeconfig"),
    ],
)
def test_a_broken_kubeconfig_is_named_with_its_fault(tmp_path: Path, more: dict[str, object], words: str) -> None:
    path = write(tmp_path / "config", cluster={"server": "https://api"}, user={}, **more)
    with pytest.raises(CredentialsError, match=words) as caught:
        from_kubeconfig(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", ["%%%", base64.b64encode(b"no certificate").decode()])
def test_broken_certificates_are_named(tmp_path: Path, data: str) -> None:
    cluster = {"server": "https://api", "certificate-authority-data": data}
    path = write(tmp_path / "config", cluster=dict(cluster), user={})
    with pytest.raises(CredentialsError, match="config"):
        from_kubeconfig(path)
    with pytest.raises(CredentialsError, match="missing"):
        from_kubeconfig(tmp_path / "missing")


async def test_a_pods_own_files(tmp_path: Path, authority: CertificateAuthority) -> None:
    def read(environ: dict[str, str]) -> Credentials:
        return in_cluster(folder=tmp_path, environ=environ)

    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(CredentialsError, match="KUBERNETES_SERVICE_HOST"):
        await asyncio.to_thread(read, {})
    with pytest.raises(CredentialsError, match="token"):
        await asyncio.to_thread(read, environ)
    (tmp_path / "token").write_text("t\n")
    (tmp_path / "ca.crt").write_bytes(authority.ca_file.read_bytes())
    (tmp_path / "namespace").write_text("kube-system\n")
    found = await asyncio.to_thread(read, environ)
    assert found.url == "https://[fd00::1]:443"
    assert found.namespace == "kube-system"
    assert found.tokens is not None
    assert await found.tokens.token() == "t"


async def test_a_token_file_is_looked_at_once_a_minute(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "token"
    path.write_text("one\n")
    source = FileToken(path, now=lambda: now)
    assert await asyncio.gather(*(source.token() for _ in range(3))) == ["one"] * 3
    path.write_text("two\n")
    now = 59.0
    assert await source.token() == "one"
    now = 60.0
    assert await source.token() == "two"
    path.unlink()
    now = 500.0
    assert await source.token() == "two"
    path.write_text("three")
    assert await source.renew()
    assert await source.token() == "three"
    assert not await source.renew()
    with pytest.raises(OSError, match="gone"):
        await FileToken(tmp_path / "gone").token()
