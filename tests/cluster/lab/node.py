"""A node: containerd, kubelet and kube-proxy in namespaces of their own, on a disk that survives a power cycle."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.cluster.inside.spec import Root, Spec
from tests.cluster.lab import cgroups, network, node_files, plan
from tests.cluster.lab.machine import Machine, environment_of, spawn
from tests.cluster.lab.state import ClusterState, Identity, LabFailed, Nic, StateFolder
from tests.servers.debian import debian_plugins

PLANE: Final = "plane"
_IPTABLES: Final = ("iptables", "ip6tables")


class Node(Machine):
    """One node; `run` sees its files, processes and links.

    `power_off` loses /run, /tmp, every process and every link; /var, /etc, /opt and containerd's images stay.
    """

    def __init__(self, name: str, state: StateFolder) -> None:
        super().__init__(name, state)
        self._home = state.path / name

    @property
    def namespaces(self) -> list[str]:
        return ["--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup"]

    @property
    def environment(self) -> dict[str, str]:
        return environment_of({"KUBECONFIG": "/etc/kubernetes/kubelet.kubeconfig"})

    @property
    def addresses(self) -> tuple[str, str]:
        """IPv4 and IPv6 on the LAN."""
        return plan.node_addresses(self.name)

    @property
    def disk(self) -> Path:
        """This machine's path of what the node has written to its own files: `disk / "opt/cni/bin"`."""
        return self._home / "upper"

    @property
    def root(self) -> Path:
        """This machine's path of all that the node sees: `root / "run/netns"`. Raises LabFailed when it is off."""
        return Path(f"/proc/{self.first.pid}/root")

    @property
    def logs(self) -> Path:
        """This machine's path of the node's /var/log."""
        return self._home / "log"

    def power_on(self) -> None:
        """Starts the node with its links; its services come up by themselves. Raises LabUnavailable, LabFailed."""
        if self.is_on:
            raise LabFailed(f"{self.name} is on")
        state = self._read()
        for name in ("go", "pids.json"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "hold", ignore_errors=True)
        # Cgroups do not survive a power failure; kubelet would look for three seconds into each for its container.
        cgroups.remove(state.cgroups[self.name])
        cgroups.make(state.cgroups[self.name])
        first = spawn(self._spec(), self._state.path, self.name)
        plane = self._plane()
        for nic in [Nic("eth0", plan.LAN_SEGMENT), *state.nics.get(self.name, [])]:
            network.forget(plane, name=self.name, nic=nic.name)
            network.plug(plane, first.pid, name=self.name, nic=nic.name, segment=nic.segment)
        network.configure_node(first.pid, self.name, state.cni)
        self._route_to_peers(first.pid)
        self.plugged_in()

    def add_nic(self, name: str, *, segment: str = plan.LAN_SEGMENT) -> None:
        """Plugs one more NIC into a segment; it is up, has no address, and survives a power cycle."""
        state = self._read()
        network.plug(self._plane(), self.first.pid, name=self.name, nic=name, segment=segment)
        nics = [*state.nics.get(self.name, []), Nic(name, segment)]
        self._state.write(msgspec.structs.replace(state, nics={**state.nics, self.name: nics}))

    def pull_nic(self, name: str) -> None:
        """Takes a NIC away, for good."""
        state = self._read()
        network.ip(self._plane(), f"link delete {self.name}-{name}")
        nics = [nic for nic in state.nics.get(self.name, []) if nic.name != name]
        self._state.write(msgspec.structs.replace(state, nics={**state.nics, self.name: nics}))

    def make_read_only(self, path: str) -> None:
        """Lets nobody write below a folder, containers included, until `make_writable` or the next power-on.

        A file system of its own that is read-only as a whole: a mount that is read-only alone, a container runtime
        makes writable again for its container.
        """
        fill = 'cp -a "$1" /tmp/kept && mount -t tmpfs kept "$1" && cp -a /tmp/kept/. "$1" && rm -r /tmp/kept'
        self.run(["sh", "-ec", f'{fill} && mount -o remount,ro "$1"', "sh", path])

    def make_writable(self, path: str) -> None:
        """Takes `make_read_only` back, for containers too."""
        self.run(["mount", "-o", "remount,rw", path])

    def load_image(self, archive: Path) -> None:
        """Imports an OCI archive of this machine into the node's containerd; it stays there. Raises CommandFailed."""
        copy = self._home / "images" / archive.name
        copy.unlink(missing_ok=True)
        shutil.copy(archive, copy)
        try:
            inside = f"{node_files.IMAGES_INSIDE}-more/{archive.name}"
            self.run(["ctr", "--namespace=k8s.io", "images", "import", "--local", inside], timeout=120)
        finally:
            copy.unlink()

    def containerd_ready(self, *, seconds: float = 30.0) -> None:
        """Waits until containerd answers. Raises LabFailed."""
        deadline = time.monotonic() + seconds
        while self.run(["ctr", "version"], check=False).returncode:
            if time.monotonic() > deadline:
                raise LabFailed(f"containerd of {self.name} does not answer; see {self.logs}")
            time.sleep(0.1)

    def processes_below(self, below: str) -> list[Identity]:
        """The processes in the cgroups that a glob names: `kubepods`, `kubepods/*/pod<uid>`."""
        return cgroups.processes(self._read().cgroups[self.name], below)

    def configure_kube_proxy(self, **settings: Any) -> None:
        """Starts kube-proxy anew, with settings over the lab's own; not waited until it has acted by them."""
        text = json.dumps({**node_files.kube_proxy(), **settings}, indent=1)
        (self._home / "etc" / "kube-proxy.yaml").write_text(text)
        self.restart("kube-proxy")

    def install_cni(self, configuration: str, name: str = node_files.BRIDGE_FILE) -> None:
        """Puts a CNI configuration into place, as an installer does: whole or not at all."""
        path = f"/etc/cni/net.d/{name}"
        self.run(["sh", "-c", f"cat > {path}.new && mv {path}.new {path}"], input=configuration)

    def install_port_mapper(self) -> None:
        """Debian's portmap, and the iptables that it calls by the names that Debian's alternatives give it."""
        shutil.copy(debian_plugins() / "portmap", self.root / "opt/cni/bin/portmap")
        for name in _IPTABLES:
            self.run(["ln", "-s", "xtables-nft-multi", f"/usr/sbin/{name}"])

    def remove_port_mapper(self) -> None:
        """Takes it away again with the chains that it leaves; without one there does nothing."""
        self.run(["rm", "-f", "/opt/cni/bin/portmap", *(f"/usr/sbin/{name}" for name in _IPTABLES)])
        for family in ("ip", "ip6"):
            self.run(["nft", "delete", "table", family, "nat"], check=False)

    def _read(self) -> ClusterState:
        state = self._state.read()
        if state is None:
            raise LabFailed(f"cluster {self._state.name} is down")
        return state

    def _plane(self) -> int:
        return Machine(PLANE, self._state).first.pid

    def _route_to_peers(self, pid: int) -> None:
        """The bridge CNI's pod networks are reached by the nodes' addresses."""
        for node, cidrs in pod_cidrs(self._state).items():
            if node != self.name:
                network.ip(pid, *routes_to(node, cidrs))

    def _spec(self) -> Spec:
        state = self._read()
        home, shared = self._home, self._state.path
        root = Root(
            mountpoint=str(home / "root"),
            upper=str(home / "upper"),
            work=str(home / "work"),
            binds={
                str(self.folder): node_files.SHARED_INSIDE,
                str(home / "log"): "/var/log",
                str(home / "etc"): "/etc/kubernetes",
                **{str(home / "disk" / name): f"/var/lib/{name}" for name in ("containerd", "kubelet", "cni")},
            },
            read_only_binds={
                str(shared / "programs"): node_files.PROGRAMS_INSIDE,
                str(shared / "images"): node_files.IMAGES_INSIDE,
                str(home / "images"): f"{node_files.IMAGES_INSIDE}-more",
            },
            hidden=list(plan.HIDDEN),
            tunables=str(home / "tunables"),
        )
        archives = sorted(path.name for path in (shared / "images").glob("*.tar"))
        return Spec(
            hostname=self.name,
            pid_file=str(shared / "pids" / self.name),
            shared=str(self.folder),
            shared_inside=node_files.SHARED_INSIDE,
            cgroups=state.cgroups[self.name],
            services=node_files.services(self.name, archives),
            root=root,
            hosts=["127.0.0.1 localhost", f"::1 localhost {self.name}", f"{plan.API[0]} api"],
            prepare=state.prepare.get(self.name, []),
            environment=self.environment,
        )


def pod_cidrs(state: StateFolder) -> dict[str, list[str]]:
    """The bridge CNI's pod networks by node, once the controller manager has chosen them."""
    path = state.path / "pod-cidrs.json"
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]]) if path.exists() else {}


def routes_to(node: str, cidrs: Sequence[str]) -> list[str]:
    """Lines of `ip -batch` that send a node's pod networks to the node."""
    ipv4, ipv6 = plan.node_addresses(node)
    return [f"route replace {cidr} via {ipv6 if ':' in cidr else ipv4}" for cidr in cidrs]
