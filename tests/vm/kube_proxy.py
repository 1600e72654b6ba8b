"""``python -m tests.vm.kube_proxy FOLDER``: the rules of the real kube-proxy, written down for a guest.

An API server is too slow in an emulated machine. So it runs outside, with kube-proxy beside it on something that looks
like a node, in a network namespace that goes with this process; a guest loads what `nft` lists there. FOLDER gets one
file for each of `tests.vm.services.RULES`; see `tests.vm.beside`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute

from tests.isolation import isolate
from tests.servers import ControlPlane, ServerProcess, executable
from tests.servers.debian import node_packages
from tests.vm.beside import DONE, FAILED
from tests.vm.services import ANY_PORT, BACKENDS, LOCAL_PORT, NODES, PORT, RULES, SERVICE_CIDRS, Backend

_NODE: Final = "n1"
_NAMESPACE: Final = "default"


def _run(folder: Path) -> None:
    kube_proxy, tools = executable("kube-proxy"), node_packages()
    environment = {
        **os.environ,
        "PATH": f"{tools}/usr/sbin:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        "LD_LIBRARY_PATH": str(tools / "usr/lib/x86_64-linux-gnu"),
    }
    _be_a_node()
    cidrs = ",".join(SERVICE_CIDRS.values())
    with ControlPlane(api_server_arguments=[f"--service-cluster-ip-range={cidrs}"]) as api:
        _make_cluster(api)
        for name, settings in RULES.items():
            configuration = folder / f"{name}.json"
            configuration.write_text(json.dumps(_configuration(api, **settings)))
            argv = [str(kube_proxy), f"--config={configuration}", f"--hostname-override={_NODE}", "--v=2"]
            process = ServerProcess(f"kube-proxy-{name}", argv, folder=folder, env=environment)
            process.start()
            try:
                process.wait_until(lambda: _is_complete(_nft(environment, "list", "ruleset")))
            finally:
                process.stop()
            (folder / f"{name}.nft").write_text(_nft(environment, "list", "ruleset"))
            _nft(environment, "flush", "ruleset")


def _be_a_node() -> None:
    """Its addresses are what kube-proxy opens node ports at."""
    isolate()
    with IPRoute() as route:
        route.link("add", ifname="ens0", kind="veth", peer={"ifname": "lan"})
        for name in ("ens0", "lan"):
            route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        index = route.link_lookup(ifname="ens0")[0]
        route.addr("add", index=index, address=NODES[_NODE][4], prefixlen=16)
        route.addr("add", index=index, address=NODES[_NODE][6], prefixlen=64, flags=2)


def _make_cluster(api: ControlPlane) -> None:
    for node, addresses in NODES.items():
        api.request("POST", "/api/v1/nodes", {"metadata": {"name": node}})
        status = {"addresses": [{"type": "InternalIP", "address": one} for one in addresses.values()]}
        api.request("PATCH", f"/api/v1/nodes/{node}/status", {"status": status})
    for backend in BACKENDS.values():
        _make_service(api, backend.name, backend, clusterIPs=list(backend.cluster_ips.values()))
    for name, backend, port, policy in (
        ("port-local", BACKENDS["near"], LOCAL_PORT, "Local"),
        ("port-cluster", BACKENDS["far"], ANY_PORT, "Cluster"),
    ):
        _make_service(api, name, backend, node_port=port, type="NodePort", externalTrafficPolicy=policy)


def _make_service(api: ControlPlane, name: str, backend: Backend, *, node_port: int = 0, **spec: Any) -> None:
    ports = [
        {"name": kind.lower(), "protocol": kind, "port": 80, "targetPort": PORT}
        | ({"nodePort": node_port} if node_port else {})
        for kind in ("TCP", "UDP")
    ]
    families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}
    if "clusterIPs" in spec:
        spec["clusterIP"] = spec["clusterIPs"][0]
    service = {"metadata": {"name": name}, "spec": {**families, "ports": ports, **spec}}
    api.request("POST", f"/api/v1/namespaces/{_NAMESPACE}/services", service)
    for version, address in backend.addresses.items():
        slices = {
            "metadata": {"name": f"{name}-{version}", "labels": {"kubernetes.io/service-name": name}},
            "addressType": f"IPv{version}",
            "endpoints": [{"addresses": [address], "nodeName": backend.node, "conditions": {"ready": True}}],
            "ports": [{"name": kind.lower(), "protocol": kind, "port": PORT} for kind in ("TCP", "UDP")],
        }
        api.request("POST", f"/apis/discovery.k8s.io/v1/namespaces/{_NAMESPACE}/endpointslices", slices)


def _configuration(api: ControlPlane, *, masquerade_all: bool = False, **settings: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(api.admin_kubeconfig)},
        # Limits of the machine's connection tracking belong to the machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "nftables": {"masqueradeAll": masquerade_all},
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        **settings,
    }


def _is_complete(rules: str) -> bool:
    """Whether kube-proxy has written both families: each does it by one transaction."""
    addresses = [address for backend in BACKENDS.values() for address in backend.addresses.values()]
    ports = (LOCAL_PORT, ANY_PORT)
    return all(f"0 : {one} . {PORT} }}" in rules for one in addresses) and all(
        rules.count(f". {one} : goto") == 2 * len(SERVICE_CIDRS) for one in ports
    )


def _nft(environment: Mapping[str, str], *arguments: str) -> str:
    return subprocess.run(
        ["nft", *arguments], env=environment, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    ).stdout


def main() -> int:
    """Does it, and says so in the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _run(folder)
    except Exception:  # noqa: BLE001 - told where somebody waits
        (folder / FAILED).write_text(traceback.format_exc())
        return 1
    (folder / DONE).touch()
    return 0


if __name__ == "__main__":
    sys.exit(main())
