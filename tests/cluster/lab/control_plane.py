"""Command lines of etcd, the API server, the controller manager and the scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.cluster.inside.spec import Service
from tests.cluster.lab import plan

ETCD_URL: Final = "http://127.0.0.1:2379"
ETCD_PEER_URL: Final = "http://127.0.0.1:2380"
COMPONENTS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def services(programs: dict[str, Path], folder: Path, *, durable: bool = False) -> list[Service]:
    """The services of the control plane.

    Args:
        programs: path of each component's executable.
        folder: of the cluster, with its keys in `pki/`.
        durable: let etcd wait for the disk as in production (benchmarks).
    """
    arguments = {
        "etcd": _etcd(folder, durable=durable),
        "kube-apiserver": _api_server(folder / "pki"),
        "kube-controller-manager": _controller_manager(folder / "pki"),
        "kube-scheduler": _client(folder / "pki", "scheduler"),
    }
    # The controllers end when they come before the API server's bootstrap roles, and would start again a second later.
    kubectl = [str(programs["kubectl"]), f"--kubeconfig={folder / 'kubeconfig'}"]
    ready = {"kube-apiserver": [*kubectl, "--request-timeout=2s", "get", "--raw=/readyz"]}
    return [
        Service(
            name=name,
            argv=[str(programs[name]), *arguments[name]],
            log=str(folder / "log" / f"{name}.log"),
            ready=ready.get(name, []),
        )
        for name in COMPONENTS
    ]


def _etcd(folder: Path, *, durable: bool) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={ETCD_PEER_URL}",
        f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
        f"--initial-cluster=default={ETCD_PEER_URL}",
        "--log-level=warn",
        *([] if durable else ["--unsafe-no-fsync"]),
    ]


def _api_server(pki: Path) -> list[str]:
    front = pki / "front-proxy"
    return [
        f"--etcd-servers={ETCD_URL}",
        "--bind-address=::",
        f"--advertise-address={plan.API[0]}",
        "--secure-port=6443",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--cert-dir={pki}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-cluster-ip-range={plan.SERVICE_CIDRS}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'accounts.pub'}",
        f"--service-account-signing-key-file={pki / 'accounts.key'}",
        f"--requestheader-client-ca-file={front / 'ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={front / 'front-proxy-client.key'}",
        # No kube-proxy runs beside the API server: webhooks are dialled at their endpoints.
        "--enable-aggregator-routing=true",
        "--shutdown-delay-duration=0s",
        "--profiling=false",
        "--v=1",
    ]


def _client(pki: Path, user: str) -> list[str]:
    config = pki / f"{user}.kubeconfig"
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--leader-elect=false",
        f"--cert-dir={pki / user}",
        "--bind-address=127.0.0.1",
        "--profiling=false",
        "--v=1",
    ]


def _controller_manager(pki: Path) -> list[str]:
    return [
        *_client(pki, "controller-manager"),
        # It asks for a token per controller before it starts the first; by default that takes four seconds.
        "--kube-api-qps=500",
        "--kube-api-burst=500",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'accounts.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        "--allocate-node-cidrs=true",
        # A node without power is NotReady after half a minute instead of a whole one; it renews its lease every 4 s.
        "--node-monitor-grace-period=25s",
        f"--cluster-cidr={plan.POD_CIDRS}",
        f"--service-cluster-ip-range={plan.SERVICE_CIDRS}",
    ]
