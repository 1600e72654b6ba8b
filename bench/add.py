"""What one ADD costs: shim, agent, controller and a real API server on this machine. Figures, no verdicts.

    python -m bench.add            # make bench
    python -m bench.add --pods 200

One process of each program, two agents, links on the real kernel; needs root. The machine's cores and the date stand
beside every table, since the figures mean nothing without them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

from tests.isolation import isolate
from tests.processes.lab import NODES, Lab, Pod, shim
from tests.servers import ControlPlane


def main() -> int:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=1000, help="pods of the big run (default 1000)")
    parser.add_argument("--idle", type=int, default=60, help="pods that are added one at a time (default 60)")
    parser.add_argument("--kubelets", type=int, default=32, help="ADDs in flight per node (default 32)")
    options = parser.parse_args()
    if not isolate():
        sys.stderr.write("bench.add needs root: it makes network namespaces\n")
        return 2
    stamp = f"{os.cpu_count()} cores, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    shim_exec(stamp)
    with ControlPlane(progress=print) as control_plane:
        control_plane.install_crds()
        with Lab(control_plane) as lab:
            lab.create_pools(options.pods + 100)
            one_at_a_time(lab, options.idle, stamp)
            many(lab, options.pods, options.kubelets, stamp)
    return 0


def shim_exec(stamp: str) -> None:
    """The executable alone: VERSION, which it answers by itself, against an executable that does nothing."""

    def timed(argv: list[str]) -> float:
        begun = time.perf_counter()
        subprocess.run(argv, input=b"", env={"CNI_COMMAND": "VERSION"}, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - begun) * 1000

    for argv in ([str(shim())], ["/bin/true"]):
        runs = [timed(argv) for _ in range(300)]
        report(f"exec {Path(argv[0]).name} (fork and wait of this interpreter included)", runs, stamp)


def one_at_a_time(lab: Lab, count: int, stamp: str) -> None:
    """Whole ADD and DEL as the runtime sees them, nothing else going on."""
    stem = lab.namespace
    for family, pools in (
        ("IPv4", {"ipv4": [f"{stem}-v4"]}),
        ("dual stack", {"ipv4": [f"{stem}-v4"], "ipv6": [f"{stem}-v6"]}),
    ):
        adds: list[float] = []
        dels: list[float] = []
        for number in range(count):
            pod = lab.pod(f"idle-{family[:4].lower()}-{number}".replace(" ", ""), pools=pools)
            pod.new_sandbox()
            time.sleep(0.05)  # the watch has shown the pod, as it has when a kubelet calls
            adds.append(milliseconds(pod.add))
            dels.append(milliseconds(pod.delete))
        report(f"ADD {family}, one at a time", adds[5:], stamp)
        report(f"DEL {family}, one at a time", dels[5:], stamp)
    lab.wait_for(lambda: not lab.records())


def many(lab: Lab, count: int, kubelets: int, stamp: str) -> None:
    """Dual-stack pods over two agents at once: writes per pod, conflicts, memory."""
    pods: list[Pod] = []
    with ThreadPoolExecutor(16) as makers:
        pods = list(makers.map(lambda n: lab.pod(f"many-{n}", NODES[n % 2]), range(count)))
        list(makers.map(lambda pod: pod.new_sandbox(), pods))
    before = writes(lab)
    with ThreadPoolExecutor(kubelets * len(NODES)) as pool:
        begun = time.perf_counter()
        took = list(pool.map(lambda pod: milliseconds(pod.add), pods))
        seconds = time.perf_counter() - begun
    after = writes(lab)
    spent = {key: after.get(key, 0) - before.get(key, 0) for key in after}
    good = sum(number for (_, _, code), number in spent.items() if code.startswith("2"))
    conflicts = sum(number for (_, _, code), number in spent.items() if code == "409")
    report(f"ADD dual stack, {count} pods, {kubelets} in flight on each of 2 agents", took, stamp)
    print(f"  {count / seconds:.1f} pods/s; {good / count:.2f} API writes per pod; {conflicts} conflicts")
    for (verb, resource, code), number in sorted(spent.items()):
        if number:
            print(f"    {verb} {resource} {code}: {number}")
    for name, process in lab.processes.items():
        print(f"  resident memory of {name}: {resident(process.pid):.0f} MiB")
    with ThreadPoolExecutor(kubelets * len(NODES)) as pool:
        took = list(pool.map(lambda pod: milliseconds(pod.delete), pods))
    report(f"DEL dual stack, {count} pods", took, stamp)
    begun = time.perf_counter()
    lab.wait_for(lambda: not lab.records(), seconds=120)
    print(f"  all records gone {time.perf_counter() - begun:.1f} s after the last DEL")


def writes(lab: Lab) -> dict[tuple[str, str, str], int]:
    """The controller's own count of its writes: verb, resource, HTTP status."""
    found: dict[tuple[str, str, str], int] = {}
    with urlopen(f"http://127.0.0.1:{lab.metric_ports['controller']}/metrics") as answer:
        for line in answer.read().decode().splitlines():
            name, _, rest = line.partition("{")
            if name != "spiderpool_store_requests_total":
                continue
            labels = dict(part.split("=", 1) for part in rest.partition("}")[0].replace('"', "").split(","))
            if labels["verb"] in {"create", "update", "patch", "delete"} and labels["resource"].startswith("spider"):
                found[labels["verb"], labels["resource"], labels["code"]] = int(float(line.rpartition(" ")[2]))
    return found


def resident(pid: int) -> float:
    """MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def milliseconds(act: Callable[[], object]) -> float:
    """How long one call takes."""
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def report(what: str, runs: list[float], stamp: str) -> None:
    """One line of figures in milliseconds."""
    runs = sorted(runs)
    p99 = runs[min(len(runs) - 1, int(len(runs) * 0.99))]
    print(f"{what}: p50 {statistics.median(runs):.2f} ms, min {runs[0]:.2f}, p99 {p99:.2f} (n={len(runs)}; {stamp})")


if __name__ == "__main__":
    sys.exit(main())
