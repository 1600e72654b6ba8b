"""The faults carried out on a cluster: what begins, what ends, and how everything is put right at last."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Callable
from typing import Final

from tests.cluster.chaos.load import AWAY, Load
from tests.cluster.chaos.schedule import Step
from tests.cluster.lab import Cluster, LabFailed
from tests.cluster.lab.client import ApiClient
from tests.cluster.lab.cluster import PRODUCT_NAMESPACE
from tests.cluster.lab.node import Node
from tests.cluster.lab.state import Identity
from tests.cluster.product import AGENT, CONTROLLER, Product, is_ready
from tests.servers.process import CommandFailed

FAILURES: Final = (CommandFailed, LabFailed, LookupError, subprocess.TimeoutExpired, *AWAY)
"""What a step may meet while other faults last; it is logged, and the run goes on."""

_WELL_SECONDS: Final = 240.0

type Say = Callable[[str], None]
type Deed = Callable[[Step], str | None]


class Faults:
    """Everything that can be broken, and mended."""

    def __init__(self, product: Product, load: Load, say: Say) -> None:
        self._product = product
        self._cluster: Cluster = product.cluster
        self._load = load
        self._say = say
        self._hung: dict[tuple[str, str], list[Identity]] = {}
        self._upgrades: list[threading.Thread] = []
        self._debug = False
        plane = self._cluster.plane
        self._begin: dict[str, Deed] = {
            "agent killed": lambda step: self._send(AGENT, step.target, signal.SIGKILL),
            "agent hung": lambda step: self._send(AGENT, step.target, signal.SIGSTOP),
            "controller killed": lambda step: self._send(CONTROLLER, step.target, signal.SIGKILL),
            "controller hung": lambda step: self._send(CONTROLLER, step.target, signal.SIGSTOP),
            "kubelet killed": lambda step: self._node(step).restart("kubelet"),
            "kubelet away": lambda step: self._node(step).stop("kubelet"),
            "containerd killed": lambda step: self._node(step).restart("containerd"),
            "containerd away": lambda step: self._node(step).stop("containerd"),
            "API server away": lambda _: plane.stop("kube-apiserver"),
            "etcd hung": lambda _: plane.send("etcd", signal.SIGSTOP),
            "power off": lambda step: self._node(step).power_off(),
            "agents rolled out": lambda _: self._roll_out(f"daemonsets/{AGENT}"),
            "controllers rolled out": lambda _: self._roll_out(f"deployments/{CONTROLLER}"),
            "helm upgrade": lambda _: self._upgrade(),
            "pods deleted by force": lambda step: self._load.delete_some(step.dice, force=True),
            "pods deleted": lambda step: self._load.delete_some(step.dice, force=False),
            "scaled": lambda step: self._load.scale(step.dice),
            "node cordoned": lambda step: self._cordon(step.target, True),
            "node drained": lambda step: self._drain(step.target),
        }
        self._end: dict[str, Deed] = {
            "agent hung": lambda step: self._resume(AGENT, step.target),
            "controller hung": lambda step: self._resume(CONTROLLER, step.target),
            "kubelet away": lambda step: self._node(step).start("kubelet"),
            "containerd away": lambda step: self._node(step).start("containerd"),
            "API server away": lambda _: plane.start("kube-apiserver"),
            "etcd hung": lambda _: plane.send("etcd", signal.SIGCONT),
            "power off": lambda step: self._node(step).power_on(),
            "node cordoned": lambda step: self._cordon(step.target, False),
            "node drained": lambda step: self._cordon(step.target, False),
        }

    def carry_out(self, step: Step) -> str:
        """Do it; what else there is to say of it. Raises what FAILURES lists."""
        if step.begins:
            return self._begin[step.fault](step) or ""
        # What takes its time by itself, a roll-out, has no end to bring about.
        return (self._end[step.fault](step) or "") if step.fault in self._end else ""

    def mend(self) -> None:
        """End everything that lasts, and wait until nodes and product are well. Raises LabFailed."""
        for component, target in list(self._hung):
            self._resume(component, target)
        for machine in (self._cluster.plane, *self._cluster.nodes.values()):
            if not machine.is_on:
                self._cluster.node(machine.name).power_on()
            for service in sorted(path.name for path in (machine.folder / "hold").glob("*")):
                machine.start(service)
        self._cluster.plane.send("etcd", signal.SIGCONT)
        self._cluster.wait(lambda: self._cluster.kubectl("get", "--raw", "/readyz") == "ok", 60, "the API server")
        for upgrade in self._upgrades:
            upgrade.join()
        for node in self._cluster.nodes:
            self._cordon(node, False)
        self._cluster.wait(self._all_ready, _WELL_SECONDS, "all nodes Ready")
        self._product.rolled_out(timeout=_WELL_SECONDS)

    def _all_ready(self) -> bool:
        return all(is_ready(node) for node in self._cluster.kubectl_json("get", "nodes")["items"])

    def _node(self, step: Step) -> Node:
        return self._cluster.node(step.target)

    def _send(self, component: str, target: str, number: signal.Signals) -> str:
        """A signal to the programs of a component on a node; found without the API server, which may be away."""
        processes = programs(self._cluster.node(target), component)
        for process in processes:
            process.send(number)
        if number == signal.SIGSTOP:
            self._hung[component, target] = processes
        return f"pid {', '.join(str(it.pid) for it in processes)}" if processes else "none runs there"

    def _resume(self, component: str, target: str) -> None:
        for process in self._hung.pop((component, target), []):
            process.send(signal.SIGCONT)

    def _roll_out(self, what: str) -> None:
        with ApiClient(self._cluster, timeout=5) as api:
            path = f"/apis/apps/v1/namespaces/{PRODUCT_NAMESPACE}/{what}"
            generation = str(api.get(path)["metadata"]["generation"])
            note = {"metadata": {"annotations": {"chaos": generation}}}
            api.merge(path, {"spec": {"template": note}})

    def _upgrade(self) -> None:
        """Switches the agents' log level; in the background, as it waits for everything to be well."""
        self._debug = not self._debug
        values = {"spiderpoolAgent": {"debug": {"logLevel": "debug" if self._debug else "info"}}}

        def upgrade() -> None:
            try:
                self._product.upgrade(values=values)
            except (CommandFailed, subprocess.TimeoutExpired) as problem:
                self._say(f"helm upgrade failed: {str(problem)[:600]}")
            else:
                self._say("helm upgrade is done")

        if not any(it.is_alive() for it in self._upgrades):
            self._upgrades.append(threading.Thread(target=upgrade, name="helm", daemon=True))
            self._upgrades[-1].start()

    def _cordon(self, node: str, unschedulable: bool) -> None:
        with ApiClient(self._cluster, timeout=5) as api:
            api.merge(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": unschedulable}})

    def _drain(self, node: str) -> str:
        """As kubectl does it, for the workloads' pods."""
        self._cordon(node, True)
        return self._load.evict(node)


def programs(node: Node, component: str) -> list[Identity]:
    """The processes of a component on a node; neither sandboxes nor probes."""
    if not node.is_on:
        return []
    return [
        it
        for it in node.processes_below("kubepods")
        if any(part.endswith(f"/{component}") for part in it.command_line) and "daemon" in it.command_line
    ]


def quietly(work: Callable[[], object]) -> None:
    """What may fail as the run has failed already."""
    with contextlib.suppress(*FAILURES):
        work()
