"""The files of a node: programs, tools, CNI plugins, and the configurations of containerd, kubelet and kube-proxy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from tests.cluster.inside.spec import Service
from tests.cluster.lab import images, plan

PROGRAMS: Final = ("kubelet", "kube-proxy", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "kubectl")
CNI_PLUGINS: Final = ("loopback", "bridge", "macvlan", "host-local")
PROGRAMS_INSIDE: Final = "/usr/libexec/lab"
IMAGES_INSIDE: Final = "/run/lab-images"
SHARED_INSIDE: Final = "/run/lab"
BRIDGE_FILE: Final = "10-lab.conflist"
BRIDGE_NAME: Final = "lab"
SOCKET: Final = "/run/containerd/containerd.sock"

CONTAINERD: Final = f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{SOCKET}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{images.PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE, as in many containers, no score may be lowered: every sandbox would fail.
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{PROGRAMS_INSIDE}/runc"
  SystemdCgroup = false
"""


def _kubelet() -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "failSwapOn": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True, "cacheTTL": "10s"},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/kubelet.crt",
        "tlsPrivateKeyFile": "/etc/kubernetes/kubelet.key",
        "clusterDomain": "cluster.local",
        "clusterDNS": ["10.96.0.10"],
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": False,
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 16,
        "staticPodPath": "/etc/kubernetes/manifests",
        # It pauses as long after a sandbox that failed, and before it starts again what has ended more than once.
        "syncFrequency": "5s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }


def kube_proxy() -> dict[str, Any]:
    """The lab's kube-proxy: what comes from elsewhere than the bridge CNI's pods is masqueraded."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": plan.POD_CIDRS,
        "clientConnection": {"kubeconfig": "/etc/kubernetes/proxy.kubeconfig"},
        # Limits of the machine's connection tracking belong to the machine.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "nftables": {"syncPeriod": "30s", "minSyncPeriod": "1s"},
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }


def bridge_cni(pod_cidrs: list[str], *, host_ports: bool = False) -> str:
    """An ordinary CNI configuration, as a cluster has it before ours takes over; with `host_ports` portmap in it."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": cidr}] for cidr in pod_cidrs],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    mapper = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [bridge, mapper] if host_ports else [bridge]
    return json.dumps({"cniVersion": "1.0.0", "name": BRIDGE_NAME, "plugins": plugins}, indent=1)


def reference_cni(node: str) -> str:
    """The reference chain on the LAN: what ours is measured against."""
    probe4, probe6 = plan.probe_addresses(node)
    part4, part6 = (cidr.rpartition("/")[0] for cidr in plan.reference_ranges(node))
    stem4, stem6 = part4.removesuffix("0"), part6.removesuffix("0")
    service4, service6 = plan.SERVICE_CIDRS.split(",")
    ranges = [
        {"subnet": "10.89.0.0/16", "rangeStart": f"{stem4}10", "rangeEnd": f"{stem4}250", "gateway": plan.GATEWAY[0]},
        {"subnet": "fd00:89::/64", "rangeStart": f"{stem6}10", "rangeEnd": f"{stem6}250", "gateway": plan.GATEWAY[1]},
    ]
    routes = [
        {"dst": "0.0.0.0/0", "gw": plan.GATEWAY[0]},
        {"dst": "::/0", "gw": plan.GATEWAY[1]},
        {"dst": service4, "gw": probe4},
        {"dst": service6, "gw": probe6},
    ]
    ipam = {"type": "host-local", "ranges": [[part] for part in ranges], "routes": routes}
    macvlan = {"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam}
    return json.dumps({"cniVersion": "1.0.0", "name": "lab-reference", "plugins": [macvlan]}, indent=1)


def make_files(folder: Path, node: str, *, cni: plan.Cni, programs: dict[str, Path], tools: Path, pki: Path) -> None:
    """Fills the folder of a new node.

    Args:
        folder: of the node; gets upper/, etc/, log/, disk/, shared/.
        node: its name.
        cni: what is configured from the start.
        programs: executables of the CNI plugins.
        tools: tree of Debian's packages.
        pki: folder of the cluster's keys.
    """
    for name in ("root", "upper", "work", "etc", "log", "shared", "tunables", "images"):
        (folder / name).mkdir(parents=True)
    for name in ("containerd", "kubelet", "cni"):
        (folder / "disk" / name).mkdir(parents=True)
    upper = folder / "upper"
    shutil.copytree(tools / "usr", upper / "usr", symlinks=True)
    links = upper / "usr" / "local" / "bin"
    links.mkdir(parents=True)
    for name in PROGRAMS:
        (links / name).symlink_to(f"{PROGRAMS_INSIDE}/{name}")
    plugins = upper / "opt" / "cni" / "bin"
    plugins.mkdir(parents=True)
    for name in CNI_PLUGINS:
        shutil.copy(programs[name], plugins / name)
    configurations = upper / "etc" / "cni" / "net.d"
    configurations.mkdir(parents=True)
    if cni == "ref":
        (configurations / BRIDGE_FILE).write_text(reference_cni(node))
    etc = folder / "etc"
    (etc / "containerd.toml").write_text(CONTAINERD)
    (etc / "kubelet.yaml").write_text(json.dumps(_kubelet(), indent=1))
    (etc / "kube-proxy.yaml").write_text(json.dumps(kube_proxy(), indent=1))
    (etc / "resolv.conf").write_text("nameserver 10.96.0.10\n")
    for source, target in {
        "ca.crt": "ca.crt",
        f"{node}.crt": "kubelet.crt",
        f"{node}.key": "kubelet.key",
        f"{node}.kubeconfig": "kubelet.kubeconfig",
        "proxy.kubeconfig": "proxy.kubeconfig",
    }.items():
        shutil.copy(pki / source, etc / target)


def services(node: str, archives: list[str]) -> list[Service]:
    """containerd with the images in it, then kubelet and kube-proxy."""
    settings = "/etc/kubernetes"
    load = ["ctr", "--namespace=k8s.io", "images", "import", "--local"]
    return [
        Service(
            name="containerd",
            argv=["containerd", f"--config={settings}/containerd.toml"],
            log="/var/log/containerd.log",
            ready=["ctr", "version"],
            then=[[*load, f"{IMAGES_INSIDE}/{archive}"] for archive in archives],
        ),
        Service(
            name="kubelet",
            argv=[
                "kubelet",
                f"--config={settings}/kubelet.yaml",
                f"--kubeconfig={settings}/kubelet.kubeconfig",
                f"--hostname-override={node}",
                f"--node-ip={','.join(plan.node_addresses(node))}",
                "--v=2",
            ],
            log="/var/log/kubelet.log",
        ),
        Service(
            name="kube-proxy",
            argv=["kube-proxy", f"--config={settings}/kube-proxy.yaml", f"--hostname-override={node}", "--v=2"],
            log="/var/log/kube-proxy.log",
        ),
    ]
