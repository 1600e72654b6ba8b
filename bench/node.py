"""What a node's work costs: one NIC and three, detection, many pods at once, against the reference plugins.

    python -m bench.node           # make bench BENCH=node

Real API server, one controller, one agent, links on the real kernel; needs root. Everything is called as a runtime
does it, and every figure that has a goal stands beside it.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.request import urlopen

from bench.figures import quantile, row, samples, title
from tests.isolation import isolate
from tests.netns import Netns
from tests.processes import networks
from tests.processes.lab import Lab, Pod, call
from tests.servers import ControlPlane, ServersUnavailable, debian_plugins

NODE: Final = "n1"
NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
_SETTLED_SECONDS: Final = 0.05
"""After a pod is made: the watch has shown it, as it has when a kubelet calls."""


def main(arguments: list[str] | None = None) -> int:
    """Run all measurements."""
    parser = argparse.ArgumentParser(
        prog="bench node", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idle", type=int, default=60, help="pods that are added one at a time (default 60)")
    parser.add_argument("--pods", type=int, default=1000, help="pods on one node in the end (default 1000)")
    options = parser.parse_args(arguments)
    if not isolate():
        sys.stderr.write("bench node needs root: it makes network namespaces\n")
        return 2
    with ControlPlane(progress=print) as control_plane:
        control_plane.install_crds()
        networks.install_kind(control_plane)
        for detection in (False, True):
            lab = Lab(control_plane, nodes=(NODE,))
            lab.agent_config = {"enableIPConflictDetection": detection}
            with lab:
                lab.create_pools(options.pods + 200)
                _define(lab)
                plain = one_at_a_time(lab, options.idle, detection=detection)
                if not detection:
                    reference(lab, options.idle, plain)
                    several(lab, options.idle, plain)
                    at_once(lab, 100)
                    full(lab, options.pods)
    return 0


def _define(lab: Lab) -> None:
    for name in ("second", "third"):
        ipam = {"type": "spiderpool", **_pools(lab, dual=False)}
        plugins = [{"type": "macvlan", "master": f"{NODE}-up", "ipam": ipam}, {"type": "coordinator", "mode": "auto"}]
        networks.define(
            lab.control_plane, lab.namespace, name, {"cniVersion": "1.0.0", "name": name, "plugins": plugins}
        )


def _pools(lab: Lab, *, dual: bool) -> dict[str, list[str]]:
    families = ("ipv4", "ipv6") if dual else ("ipv4",)
    return {f"default_{family}_ippool": lab.pools_of_pods[family] for family in families}


def _config(lab: Lab, *, dual: bool) -> dict[str, Any]:
    """As the installed configuration is: meta plugin, main plugin, IPAM and coordinator in one exec."""
    ipam = {"type": "spiderpool", **_pools(lab, dual=dual)}
    return {**lab.config(NODE), "networks": True, "coordinator": {"mode": "auto"}, "ipam": ipam}


class Timed:
    """One pod whose calls are timed."""

    def __init__(self, lab: Lab, name: str, config: Mapping[str, Any], **annotations: str) -> None:
        self._lab = lab
        self._config = config
        self.pod = Pod(lab, name, NODE, annotations=annotations)
        self.pod.new_sandbox()

    def run(self, verb: str) -> float:
        """Milliseconds of one call. Raises `tests.processes.lab.CniError`."""
        begun = time.perf_counter()
        call(self._lab.plugins / "macvlan", verb, self._config, self.pod.environment())
        return (time.perf_counter() - begun) * 1e3


def one_at_a_time(lab: Lab, count: int, *, detection: bool) -> dict[str, float]:
    """Whole ADD and DEL, nothing else going on; the medians of ADD by family."""
    title(f"one pod, one macvlan NIC, coordinator, IPAM{', conflict detection' if detection else ''}")
    goals = {"IPv4": "40 ms" if detection else "20 ms", "dual stack": "45 ms" if detection else "25 ms"}
    medians: dict[str, float] = {}
    for family, goal in goals.items():
        config = _config(lab, dual=family != "IPv4")
        adds, dels = [], []
        for number in range(count + 5):
            timed = Timed(lab, f"one-{family[:4].lower().strip()}-{detection:d}-{number}", config)
            time.sleep(_SETTLED_SECONDS)
            adds.append(timed.run("ADD"))
            dels.append(timed.run("DEL"))
        medians[family] = statistics.median(adds[5:])
        row(f"ADD {family}, p50", f"{medians[family]:.1f} ms", goal)
        row(f"ADD {family}, fastest", f"{min(adds[5:]):.1f} ms")
        row(f"DEL {family}, p50", f"{statistics.median(dels[5:]):.1f} ms", "15 ms")
    lab.wait_for(lambda: not lab.records(), seconds=60)
    return medians


def reference(lab: Lab, count: int, ours: Mapping[str, float]) -> None:
    """Debian's macvlan with host-local: one exec of each, no way to the node, no API server.

    Ours is a whole ADD, and once one that makes what theirs makes: link, address and routes.
    """
    title("against Debian's macvlan and host-local, IPv4")
    try:
        plugins = debian_plugins()
    except ServersUnavailable as problem:
        row("not here", str(problem)[:40])
        return
    adds = []
    with TemporaryDirectory() as state, ExitStack() as stack:
        ipam = {"type": "host-local", "dataDir": state, "subnet": "10.88.0.0/16"}
        config = {"cniVersion": "0.4.0", "name": "reference", "type": "macvlan", "master": f"{NODE}-up", "ipam": ipam}
        for number in range(count + 5):
            netns = stack.enter_context(Netns(Path(state), f"ns-{number}"))
            environment = {
                "CNI_CONTAINERID": f"c{number}",
                "CNI_NETNS": str(netns.path),
                "CNI_IFNAME": "eth0",
                "PATH": os.defpath,
            }
            begun = time.perf_counter()
            call(plugins / "macvlan", "ADD", config, environment)
            adds.append((time.perf_counter() - begun) * 1e3)
            call(plugins / "macvlan", "DEL", config, environment)
    median = statistics.median(adds[5:])
    row("their ADD, p50", f"{median:.1f} ms")
    row("ours / theirs", f"{ours['IPv4'] / median:.2f}", "<= 1")
    alone = {**lab.config(NODE), "ipam": {"type": "spiderpool", **_pools(lab, dual=False)}}
    adds = []
    for number in range(count + 5):
        timed = Timed(lab, f"alone-{number}", alone)
        time.sleep(_SETTLED_SECONDS)
        adds.append(timed.run("ADD"))
        timed.run("DEL")
    row("ours without the way to the node / theirs", f"{statistics.median(adds[5:]) / median:.2f}")
    lab.wait_for(lambda: not lab.records(), seconds=60)


def several(lab: Lab, count: int, plain: Mapping[str, float]) -> None:
    """Three NICs by annotation, with coordinators."""
    title("three macvlan NICs, IPv4")
    config = _config(lab, dual=False)
    adds, dels = [], []
    before = _requests(lab)
    for number in range(count + 5):
        timed = Timed(lab, f"three-{number}", config, **{NETWORKS: "second,third"})
        time.sleep(_SETTLED_SECONDS)
        adds.append(timed.run("ADD"))
        dels.append(timed.run("DEL"))
    median = statistics.median(adds[5:])
    row("ADD, p50", f"{median:.1f} ms")
    row("three NICs / one NIC", f"{median / plain['IPv4']:.2f}", "<= 2")
    row("DEL, p50", f"{statistics.median(dels[5:]):.1f} ms")
    spent = _requests(lab)
    for step in sorted(spent):
        each = (spent[step] - before.get(step, 0)) / (count + 5)
        if each >= 0.05:
            row(f"netlink requests of {step}, a pod", f"{each:.1f}")
    lab.wait_for(lambda: not lab.records(), seconds=60)


def at_once(lab: Lab, count: int) -> None:
    """All pods of a node that starts."""
    title(f"{count} pods at once on one node, dual stack")
    config = _config(lab, dual=True)
    pods = [Timed(lab, f"once-{number}", config) for number in range(count)]
    time.sleep(1)
    before = _stalls(lab)
    with ThreadPoolExecutor(count) as threads:
        begun = time.perf_counter()
        took = sorted(threads.map(lambda timed: timed.run("ADD"), pods))
        seconds = time.perf_counter() - begun
    row("all in", f"{seconds:.2f} s", "<= 2 s")
    row("ADD, p99", f"{quantile(took, 0.99):.0f} ms")
    looks = {bound: value - before.get(bound, 0) for bound, value in _stalls(lab).items()}
    late = f"{looks['+Inf'] - looks['0.02']:.0f} of {looks['+Inf']:.0f}"
    row("event loop over 20 ms late", late, "0")
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda timed: timed.run("DEL"), pods))
    lab.wait_for(lambda: not lab.records(), seconds=120)


def full(lab: Lab, count: int) -> None:
    """A node that fills: the last ADDs against the first ones, one at a time."""
    title(f"{count} pods on one node, IPv4, one at a time at both ends")
    config = _config(lab, dual=False)
    first: list[float] = []
    pods: list[Timed] = []
    edge = 40
    spent = [_spent(lab)]
    for number in range(edge + 5):
        pods.append(Timed(lab, f"full-{number}", config))
        time.sleep(_SETTLED_SECONDS)
        first.append(pods[-1].run("ADD"))
    spent.append(_spent(lab))
    middle = [Timed(lab, f"full-{number}", config) for number in range(len(pods), count - edge)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda timed: timed.run("ADD"), middle))
    last = []
    spent.append(_spent(lab))
    for number in range(count - edge, count):
        pods.append(Timed(lab, f"full-{number}", config))
        time.sleep(_SETTLED_SECONDS)
        last.append(pods[-1].run("ADD"))
    row("the first ADDs, p50", f"{statistics.median(first[5:]):.1f} ms")
    row("the last ADDs, p50", f"{statistics.median(last):.1f} ms")
    row("last / first", f"{statistics.median(last) / statistics.median(first[5:]):.2f}", "1")
    spent.append(_spent(lab))
    for what in spent[0]:
        of_first, _, of_last = (1e3 * (after[what] - before[what]) for before, after in pairwise(spent))
        row(f"of which {what}", f"{of_first / (edge + 5):.1f} -> {of_last / edge:.1f} ms")
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda timed: timed.run("DEL"), [*pods, *middle]))


def _metrics(lab: Lab, program: str = NODE) -> str:
    with urlopen(f"http://127.0.0.1:{lab.metric_ports[program]}/metrics") as answer:
        return str(answer.read().decode())


def _spent(lab: Lab) -> dict[str, float]:
    """Seconds in all until now, of the two that grow: the kernel with links, the pool's object with its records."""
    kernel = samples(_metrics(lab), "spiderpool_netlink_step_seconds_sum")
    commits = samples(_metrics(lab, "controller"), "spiderpool_pool_commit_seconds_sum")
    return {
        "requests to the kernel": sum(value for _, value in kernel),
        "the write of the pool's status": sum(value for _, value in commits),
    }


def _requests(lab: Lab) -> dict[str, float]:
    """Of the agent to the kernel, by step."""
    return {labels["step"]: value for labels, value in samples(_metrics(lab), "spiderpool_netlink_requests_total")}


def _stalls(lab: Lab) -> dict[str, float]:
    """How often the agent's loop was late by no more than so many seconds, of all times that it looked."""
    return {labels["le"]: value for labels, value in samples(_metrics(lab), "spiderpool_loop_lag_seconds_bucket")}


if __name__ == "__main__":
    sys.exit(main())
