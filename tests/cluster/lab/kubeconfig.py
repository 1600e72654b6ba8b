"""Keys, certificates and kubeconfigs of a cluster."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.lab import plan
from tests.servers.certificates import CertificateAuthority, KeyPair, write_private_key

NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


def write_kubeconfig(path: Path, ca_file: Path, pair: KeyPair) -> Path:
    """A kubeconfig that carries all it needs."""
    cluster = {"server": plan.API_URL, "certificate-authority-data": _base64(ca_file)}
    user = {"client-certificate-data": _base64(pair.certificate), "client-key-data": _base64(pair.key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def make_keys(folder: Path, nodes: list[str]) -> None:
    """Writes all keys and kubeconfigs of a cluster into a folder that only root can read."""
    folder.mkdir(mode=0o700)
    authority = CertificateAuthority(folder, name="lab-ca")
    # kube-controller-manager signs certificates with it.
    write_private_key(authority.private_key, folder / "ca.key")
    hosts = [*plan.API, "127.0.0.1", "::1", plan.API_SERVICE, "localhost", *NAMES]
    authority.issue("kube-apiserver", hosts=hosts, file="apiserver")
    authority.issue("kube-apiserver-kubelet-client", organizations=["system:masters"], file="kubelet-client")
    users = {
        "admin": ("lab-admin", ["system:masters"]),
        "controller-manager": ("system:kube-controller-manager", []),
        "scheduler": ("system:kube-scheduler", []),
        "proxy": ("system:kube-proxy", []),
    }
    for name, (user, groups) in users.items():
        pair = authority.issue(user, organizations=groups, file=name)
        write_kubeconfig(folder / f"{name}.kubeconfig", authority.ca_file, pair)
    for node in nodes:
        pair = authority.issue(
            f"system:node:{node}",
            organizations=["system:nodes"],
            hosts=[*plan.node_addresses(node), node],
            file=node,
        )
        write_kubeconfig(folder / f"{node}.kubeconfig", authority.ca_file, pair)
    front = CertificateAuthority(folder / "front-proxy", name="lab-front-proxy-ca")
    front.issue("front-proxy-client")
    account = ec.generate_private_key(ec.SECP256R1())
    write_private_key(account, folder / "accounts.key")
    public = account.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "accounts.pub").write_bytes(public)
